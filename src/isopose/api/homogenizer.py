"""Homogenize images and restore segmentations, with the interface of scikit-learn."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from isopose.api.images import Image, as_labels, as_volume, like
from isopose.choices import HOMOGENIZED_SIZE
from isopose.config import HomogenizeConfig
from isopose.data.preprocess import prepare_as
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.homogenize.estimator import PoseEstimator, open_estimator, shipped_estimator
from isopose.homogenize.reference import ReferenceOutline, ReferenceSource, side_from_area
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import homogenized_labels, restored_labels, restored_share
from isopose.presets import homogenize_config
from isopose.scan.find import body_slices
from isopose.training.targets import Candidate, Reference, reference_among


@dataclass(frozen=True, eq=False)
class Homogenized:
    """One image in the reference's pose and size.

    Args:
        image: int16 HU, in MR its own values, of the input image's type (for a path: a SimpleITK image).
        labels: uint8, of the input labels' type, or None.
        transform: for :meth:`Homogenizer.inverse_transform`; it is saved and loaded with ``to_text`` and
            ``from_text``.
        roll_degrees: roll of the patient that was corrected, in degrees.
        warnings: one line each.
    """

    image: Any
    labels: Any
    transform: Transform
    roll_degrees: float
    warnings: tuple[str, ...]


class Homogenizer:
    """Homogenize CT or MR images in memory, as ``isopose homogenize`` does files.

    It works without fitting: a network for poses and a reference outline ship with the package. :meth:`fit`
    replaces the reference by one of your own patients, whose size and pixels are then used.

    Args:
        model: folder of a trained model whose poses and reference are used; None: the package's.
        per: ``volume``, one pose for a scan; ``smooth``, a pose that varies smoothly along it; ``slice``, a
            pose of its own for each slice; or ``tilted``, one pose in three dimensions.
        size: pixels along a side of the reference's frame.
        crop: return only the model's crop, the same for all slices of a scan.
        reference: patient to whose pose and size images are brought: ``child`` or ``adult``, which are
            shipped, or the path of a scan or of a model's folder; None: the model's, without a model the
            child.
        scale_z: scale the distance of the slices by the in-plane factor, in the header only.
        modality: of the images, ``ct`` or ``mr``; ``auto``: the model's, without a model ``ct``.
        plane: in which the slices were acquired, ``axial``, ``coronal`` or ``sagittal``; None: the model's,
            without a model axial.

    Raises:
        InputError: no such model or reference, settings out of bounds, or a crop without a model that has
            one.

    Example:
        >>> homogenizer = Homogenizer(size=256)
        >>> homogenized = homogenizer.transform("scan.nii.gz")  # doctest: +SKIP
        >>> labels = segment(homogenized.image)  # doctest: +SKIP
        >>> homogenizer.inverse_transform(labels, homogenized)  # doctest: +SKIP
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
        modality: str = "auto",
        plane: str | None = None,
    ) -> None:
        self.model, self.per, self.size, self.crop = model, per, size, crop
        self.reference, self.scale_z, self.modality, self.plane = reference, scale_z, modality, plane
        self._estimator: PoseEstimator = open_estimator(
            None if model is None else Path(model), self._config()
        )
        #: The reference that :meth:`fit` chose; None before.
        self.reference_: Reference | None = None

    def __repr__(self) -> str:
        return f"Homogenizer({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    @property
    def pixel_mm(self) -> float:
        """Side in mm of a homogenized pixel, measured in the reference patient."""
        return self._estimator.pixel_mm

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  as scikit-learn has it
        """Return the constructor's arguments."""
        names = ("model", "per", "size", "crop", "reference", "scale_z", "modality", "plane")
        return {name: getattr(self, name) for name in names}

    def _config(self) -> HomogenizeConfig:
        options = self.get_params()
        del options["model"]
        options["reference"] = None if self.reference is None else str(self.reference)
        return homogenize_config(**options)

    def fit(self, images: Iterable[Image], y: object = None) -> Self:  # noqa: ARG002  as scikit-learn has it
        """Choose the reference among patients: of median size, upright and symmetric in the middle slice.

        Pass training patients only: test patients must not influence the reference.

        Args:
            images: CT in HU, or MR, read one at a time.
            y: not used.

        Raises:
            InputError: no image, an image without a body, or a homogenizer that has a reference already:
                a named one, or that of a trained model.
        """
        if self.model is not None:
            raise InputError("fit: a trained model has its own reference; leave model out")
        if self.reference is not None:
            raise InputError("fit: chooses the reference itself, but one was given; leave reference out")
        estimator = shipped_estimator(self._config())
        candidates = [_candidate(number, image, estimator) for number, image in enumerate(images)]
        if not candidates:
            raise InputError("fit: expected at least one image, got none")
        reference = reference_among(
            candidates, estimator.transformer.config, estimator.scale.air, estimator.data.plane
        )
        mask = reference.mask.numpy()
        source = ReferenceSource("scan", hash_of(mask.round(4).tolist()))
        outline = ReferenceOutline(source, mask, side_from_area(reference.mask, reference.area_cm2))
        self._estimator = shipped_estimator(self._config(), outline)
        self.reference_ = reference
        return self

    def transform(self, image: Image, labels: Image | None = None, mask: Image | None = None) -> Homogenized:
        """Homogenize an image, and its labels if given.

        Args:
            image: CT in HU, or MR, any size, spacing and orientation.
            labels: whole numbers from 0 to 255 on the image's grid.
            mask: on the image's grid, every value except 0 is body; None: the body is found automatically.

        Raises:
            InputError: no body, values that are not finite, labels or mask on another grid.
        """
        volume = as_volume(image)
        label_map = None if labels is None else as_labels(labels)
        body = None if mask is None else as_labels(mask)
        for subject, other in (("labels do", label_map), ("mask does", body)):
            if other is not None and not other.same_grid(volume):
                raise InputError(f"the {subject} not lie on the image's grid")
        if body is not None and not body.array.any():
            raise InputError("the mask is empty, expected the body")
        body_mask = None if body is None else body.array > 0
        homogenized = homogenize_scan(self._estimator, volume, label_map, body=body_mask)
        convert = like(image)
        return Homogenized(
            convert(homogenized.image),
            None if homogenized.labels is None or labels is None else like(labels)(homogenized.labels),
            homogenized.transform,
            float(np.degrees(homogenized.poses.roll)),
            homogenized.warnings,
        )

    def fit_transform(self, images: Iterable[Image], y: object = None) -> list[Homogenized]:
        """Choose the reference among images with :meth:`fit`, and return :meth:`transform` of each image."""
        images = list(images)
        self.fit(images, y)
        return [self.transform(image) for image in images]

    def inverse_transform(
        self, answer: Image, of: Homogenized | Transform, *, probability: bool = False
    ) -> Any:
        """Restore a segmentation from the homogenized grid to the scan's own grid.

        Args:
            answer: labels, whole numbers from 0 to 255, or with ``probability`` one class's probability.
            of: the homogenized image, or its transform.
            probability: interpolate the values, with 0 outside. Otherwise each label is interpolated
                linearly, and the label with the largest share is taken.

        Returns:
            An image of the answer's type.

        Raises:
            InputError: the answer is not on that grid, or labels are not whole numbers.
        """
        transform = of.transform if isinstance(of, Homogenized) else of
        if not probability:
            return like(answer)(restored_labels(as_labels(answer), transform))
        return like(answer)(transform.to_native(restored_share(as_volume(answer), transform)))

    def transform_labels(self, labels: Image, of: Homogenized | Transform) -> Any:
        """Homogenize further labels of a scan with a known transform.

        Args:
            labels: on the scan's own grid, whole numbers from 0 to 255.
            of: the homogenized image, or its transform.
        """
        transform = of.transform if isinstance(of, Homogenized) else of
        return like(labels)(homogenized_labels(as_labels(labels), transform))


def _candidate(number: int, image: Image, estimator: PoseEstimator) -> Candidate:
    """Return the middle slice of an image as a candidate for the reference."""
    volume = as_volume(image)
    prepared = prepare_as(
        volume, estimator.scale, estimator.fov_mm, estimator.data, modality=estimator.modality
    )
    with_body = body_slices(prepared)
    z = int(with_body[len(with_body) // 2])
    return Candidate(
        str(number),
        z,
        torch.from_numpy(prepared.image[z])[None, None],
        torch.from_numpy(prepared.mask[z])[None, None].float(),
        prepared.frame.pixel_mm,
    )
