"""Images in one pose and size, and answers brought back, in the manner of scikit-learn."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from isopose.api.images import Image, as_labels, as_volume, like
from isopose.config import PoseConfig, homogenize_config
from isopose.data.preprocess import prepare_as
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.homogenize.scan import homogenize_scan
from isopose.homogenize.transform import Transform
from isopose.homogenize.warping import homogenized_labels, restored_labels, restored_share
from isopose.models.pose import PoseTransformer
from isopose.models.shipped import load_shipped
from isopose.training.targets import Candidate, Reference, reference_among


@dataclass(frozen=True, eq=False)
class Homogenized:
    """One image in the reference's pose and size.

    Args:
        image: int16 HU, of the type of the image that it was made of (of a path: a SimpleITK image).
        labels: uint8, likewise, where labels were given.
        transform: what brings answers back, see :meth:`Homogenizer.inverse_transform`; ``to_text``
            and ``from_text`` keep it.
        roll_degrees: by which the patient was turned back.
        warnings: for people, one line each.
    """

    image: Any
    labels: Any
    transform: Transform
    roll_degrees: float
    warnings: tuple[str, ...]


class Homogenizer:
    """Brings CT to one pose and size; as ``isopose homogenize``, on images in memory.

    Nothing need be fitted: a network that finds poses and a reference's outline ship with the package.
    :meth:`fit` puts one of your own patients in that outline's place, so that size and pixel are theirs.

    Args:
        model: folder of a trained model whose poses and reference are taken; none: the package's.
        per: one pose for a ``volume``, ``smooth`` along it, each ``slice``'s own, or ``tilted``: one for a
            volume in three dimensions.
        size: pixels along a side of the reference's frame.
        crop: only the square that the model crops, one for a scan.

    Raises:
        InputError: no such model, settings out of bounds, or a crop without a model that has one.

    Example:
        >>> homogenizer = Homogenizer(size=256)
        >>> upright = homogenizer.transform("scan.nii.gz")  # doctest: +SKIP
        >>> answer = segment(upright.image)  # doctest: +SKIP
        >>> homogenizer.inverse_transform(answer, upright)  # doctest: +SKIP
    """

    def __init__(
        self, model: Path | str | None = None, *, per: str = "volume", size: int = 384, crop: bool = False
    ) -> None:
        self.model, self.per, self.size, self.crop = model, per, size, crop
        self._estimator: PoseEstimator = open_estimator(
            None if model is None else Path(model), homogenize_config(per=per, size=size, crop=crop)
        )
        #: The reference that :meth:`fit` chose; none before.
        self.reference_: Reference | None = None

    def __repr__(self) -> str:
        return f"Homogenizer(model={self.model!r}, per={self.per!r}, size={self.size}, crop={self.crop})"

    @property
    def pixel_mm(self) -> float:
        """Side of a homogenized pixel, as large as it is in the reference patient, mm."""
        return self._estimator.pixel_mm

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002  as scikit-learn has it
        """The constructor's arguments."""
        return {"model": self.model, "per": self.per, "size": self.size, "crop": self.crop}

    def fit(self, images: Iterable[Image], y: object = None) -> Self:  # noqa: ARG002  as scikit-learn has it
        """Choose the reference among patients: one of median size, upright and symmetric in its middle slice.

        Give training patients only: those to be tested must not decide what all are brought to.

        Args:
            images: CT in HU; they are looked at one after the other.
            y: not used.

        Raises:
            InputError: no image, one without a body, or the homogenizer is a trained model's, whose networks
                know its own reference.
        """
        if self.model is not None:
            raise InputError("fit: a trained model's networks know their own reference; leave model out")
        plain = open_estimator(None, homogenize_config(per=self.per, size=self.size))
        candidates = [_candidate(number, image, plain) for number, image in enumerate(images)]
        if not candidates:
            raise InputError("fit: expected at least one image, got none")
        pose: PoseConfig = plain.transformer.config
        reference = reference_among(candidates, pose, plain.scale.air)
        transformer = PoseTransformer(pose, reference.mask, plain.scale.air, plain.scale.top)
        assert transformer.roll is not None
        load_shipped(transformer.roll)
        transformer.eval().requires_grad_(False)
        self._estimator = replace(
            plain,
            transformer=transformer,
            # The body's area is known in cm², and what part of the frame it fills.
            side_mm=10.0 * float(np.sqrt(reference.area_cm2 / float(reference.mask.mean()))),
            sha256=hash_of([plain.sha256, hash_of(reference.mask.numpy().round(4).tolist())]),
        )
        self.reference_ = reference
        return self

    def transform(self, image: Image, labels: Image | None = None) -> Homogenized:
        """Bring an image, and its labels if given, to the reference's pose and size.

        Args:
            image: CT in HU, any size, spacing and orientation.
            labels: whole numbers from 0 to 255 on the image's grid.

        Raises:
            InputError: no body, values that are not finite, labels on another grid.
        """
        volume = as_volume(image)
        marked = None if labels is None else as_labels(labels)
        if marked is not None and not marked.same_grid(volume):
            raise InputError("the labels do not lie on the image's grid")
        found = homogenize_scan(self._estimator, volume, marked)
        made = like(image)
        return Homogenized(
            made(found.image),
            None if found.labels is None or labels is None else like(labels)(found.labels),
            found.transform,
            float(np.degrees(found.poses.roll)),
            found.warnings,
        )

    def fit_transform(self, images: Iterable[Image], y: object = None) -> list[Homogenized]:
        """:meth:`fit`, then :meth:`transform` of each."""
        images = list(images)
        self.fit(images, y)
        return [self.transform(image) for image in images]

    def inverse_transform(
        self, answer: Image, of: Homogenized | Transform, *, probability: bool = False
    ) -> Any:
        """An answer on the homogenized grid, brought back to the scan's own grid.

        Args:
            answer: labels, whole numbers from 0 to 255, or with ``probability`` one class's probability.
            of: what the image became, or its transform.
            probability: bring values back as they are, 0 outside; otherwise each label linearly, of which the
                largest share wins.

        Returns:
            An image of the answer's type.

        Raises:
            InputError: the answer does not lie on that grid, or labels are not whole.
        """
        transform = of.transform if isinstance(of, Homogenized) else of
        if not probability:
            return like(answer)(restored_labels(as_labels(answer), transform))
        back = restored_share(as_volume(answer), transform)
        return like(answer)(transform.native.with_array(transform.reorientation.undo(back)))

    def transform_labels(self, labels: Image, of: Homogenized | Transform) -> Any:
        """Further labels on the scan's own grid, through a transform that is known."""
        transform = of.transform if isinstance(of, Homogenized) else of
        return like(labels)(homogenized_labels(as_labels(labels), transform))


def _candidate(number: int, image: Image, estimator: PoseEstimator) -> Candidate:
    prepared = prepare_as(as_volume(image), estimator.scale, estimator.fov_mm, estimator.data)
    shown = np.flatnonzero(prepared.mask.any(axis=(1, 2)))
    z = int(shown[len(shown) // 2])
    return Candidate(
        str(number),
        z,
        torch.from_numpy(prepared.image[z])[None, None],
        torch.from_numpy(prepared.mask[z])[None, None].float(),
        prepared.frame.pixel_mm,
    )
