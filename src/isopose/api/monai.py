"""Invertible MONAI transforms that homogenize images, for arrays and dictionaries.

Place them after loading and before intensity transforms; ``monai.transforms.Invertd`` (or ``inverse`` of a
``Compose``) restores segmentations through them:

    Compose([
        LoadImaged(("image", "label"), ensure_channel_first=True),
        ReferencePosed(("image", "label"), image_key="image", size=256),
        ScaleIntensityRanged("image", -150, 250, 0, 1, clip=True),
    ])
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.enums import TraceKeys

from isopose.api.homogenizer import Homogenizer
from isopose.api.images import are_labels, as_labels, as_volume, like
from isopose.choices import HOMOGENIZED_SIZE
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import homogenized_labels, restored_labels, restored_share


class ReferencePose(InvertibleTransform):
    """Homogenize CT, as :class:`~isopose.api.Homogenizer` does; invertible.

    Args:
        model: folder of a trained model whose poses and reference are used; None: the package's.
        per: ``volume``, one pose for a scan; ``smooth``, a pose that varies smoothly along it; ``slice``, a
            pose of its own for each slice; or ``tilted``, one pose in three dimensions.
        size: pixels along a side of the reference's frame.
        crop: return only the model's crop, the same for all slices of a scan.
        reference: patient to whose pose and size images are brought: ``child`` or ``adult``, which are
            shipped, or the path of a scan or of a model's folder; None: the model's, without a model the
            child.
        scale_z: scale the distance of the slices by the in-plane factor, in the affine only.

    Raises:
        InputError: no such model or reference, settings out of bounds, or a crop without a model that has
            one.
    """

    def __init__(
        self,
        model: Path | str | None = None,
        *,
        per: str = "volume",
        size: int = HOMOGENIZED_SIZE,
        crop: bool = False,
        reference: Path | str | None = None,
        scale_z: bool = True,
    ) -> None:
        self.homogenizer = Homogenizer(
            model, per=per, size=size, crop=crop, reference=reference, scale_z=scale_z
        )

    def __call__(self, data: torch.Tensor) -> torch.Tensor:
        """Homogenize a ``MetaTensor`` ``(1, x, y, z)`` in HU; returns float32.

        Raises:
            InputError: no body, several channels, or no affine.
        """
        homogenized = self.homogenizer.transform(_channel(data))
        return self.record(data, as_volume(homogenized.image), homogenized.transform)

    def record(self, data: torch.Tensor, homogenized: Volume, transform: Transform) -> torch.Tensor:
        """Return a homogenized volume as a MetaTensor that records the transform for its inverse.

        Args:
            data: the tensor before homogenization.
            homogenized: the homogenized volume.
            transform: of the scan.
        """
        out = _meta_like(data, homogenized)
        if self.tracing:
            extra = {"transform": transform.to_text()}
            self.push_transform(out, orig_size=tuple(data.shape[1:]), extra_info=extra)
        return out

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Restore a segmentation ``(C, x, y, z)`` from the homogenized grid to the scan's own.

        One channel of whole numbers from 0 to 255 is a label map: each label is interpolated linearly, and
        the largest share is taken. Otherwise each channel is a class's probability, 0 outside; with several
        channels the first is background and receives the missing probability mass.

        Raises:
            InputError: the segmentation is not on the grid of this transform's result.
        """
        info = self.pop_transform(data)
        transform = Transform.from_text(info[TraceKeys.EXTRA_INFO]["transform"])
        channels = [as_volume(MetaTensor(channel, affine=data.affine)) for channel in data.as_tensor()]  # type: ignore[attr-defined]
        if len(channels) == 1 and are_labels(channels[0].array):
            restored = [restored_labels(as_labels(channels[0]), transform)]
        else:
            restored = [transform.to_native(restored_share(channel, transform)) for channel in channels]
            if len(restored) > 1:
                foreground = np.sum([volume.array for volume in restored[1:]], axis=0, dtype=np.float32)
                restored[0] = restored[0].with_array((1.0 - foreground).clip(min=0.0))
        return _meta_like(data, *restored)


class ReferencePosed(MapTransform, InvertibleTransform):
    """Homogenize an image and its label maps in a dictionary; the pose is estimated from the image.

    Args:
        keys: keys of the image and of label maps on its grid.
        image_key: key of the image.
        model: see :class:`ReferencePose`.
        per: see :class:`ReferencePose`.
        size: see :class:`ReferencePose`.
        crop: see :class:`ReferencePose`.
        reference: see :class:`ReferencePose`.
        scale_z: see :class:`ReferencePose`.
        allow_missing_keys: whether label maps may be missing.

    Raises:
        InputError: ``image_key`` is not among the keys.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: Hashable = "image",
        model: Path | str | None = None,
        *,
        per: str = "volume",
        size: int = HOMOGENIZED_SIZE,
        crop: bool = False,
        reference: Path | str | None = None,
        scale_z: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if image_key not in self.keys:
            raise InputError(f"ReferencePosed: expected image_key among {self.keys}, got {image_key!r}")
        self.image_key = image_key
        self.pose = ReferencePose(model, per=per, size=size, crop=crop, reference=reference, scale_z=scale_z)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with homogenized image and label maps."""
        out = dict(data)
        image = _channel(out[self.image_key])
        labels = {
            key: as_labels(_channel(out[key])) for key in self.key_iterator(out) if key != self.image_key
        }
        union = None
        if labels:
            # The union of all labels, so that the grid is large enough for each.
            union = next(iter(labels.values()))
            union = union.with_array(np.max([volume.array for volume in labels.values()], axis=0))
        homogenized = self.pose.homogenizer.transform(image, union)
        out[self.image_key] = self.pose.record(image, as_volume(homogenized.image), homogenized.transform)
        for key, volume in labels.items():
            out[key] = self.pose.record(
                out[key], homogenized_labels(volume, homogenized.transform), homogenized.transform
            )
        return out

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore the segmentations under the keys, see :meth:`ReferencePose.inverse`."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.pose.inverse(out[key])
        return out


ReferencePoseD = ReferencePoseDict = ReferencePosed


def _channel(data: Any) -> torch.Tensor:
    """Check that data is a MetaTensor ``(1, x, y, z)``, and return it."""
    if not isinstance(data, MetaTensor) or data.ndim != 4 or data.shape[0] != 1:
        shape = tuple(data.shape) if hasattr(data, "shape") else type(data).__name__
        raise InputError(f"expected a MetaTensor of shape (1, x, y, z), got {shape}; load it with LoadImage")
    return data


def _meta_like(data: torch.Tensor, *channels: Volume) -> MetaTensor:
    """Return channels on one grid as a float32 MetaTensor, with metadata and transforms of ``data``."""
    tensors: list[MetaTensor] = [like(data)(volume) for volume in channels]
    values = torch.cat([tensor.as_tensor() for tensor in tensors]).float()
    return MetaTensor(
        values,
        # The affine goes into meta only: MONAI warns if it is also given as an argument.
        meta={**data.meta, "affine": tensors[0].affine, "spatial_shape": np.array(values.shape[1:])},  # type: ignore[attr-defined]
        applied_operations=list(data.applied_operations),  # type: ignore[attr-defined]
    )
