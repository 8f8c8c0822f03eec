"""Wrap a function that segments images: homogenize its input, and restore its output."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from isopose.api.homogenizer import Homogenized, Homogenizer
from isopose.api.images import Image, as_volume, like
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.homogenize.restore import BACKGROUND, check_probabilities, restore_classes
from isopose.io.images import on_image_grid
from isopose.isolation import named

logger = logging.getLogger("isopose")

#: Takes the place of a file's path in messages.
_RETURNED = Path("what the function returned")

#: What a segmenter returns: a label map, or the probability of each class by its name.
Segmentation = Image | Mapping[str, Image]


def wrap(
    function: Callable[[Any], Segmentation], homogenizer: Homogenizer | None = None, **options: Any
) -> Callable[[Image], Any]:
    """Wrap a function that segments an image, so that it gets the image in the reference's pose and size.

    Warnings about the pose are logged.

    Args:
        function: takes an image of the type that the wrapped function was given (for a path: a SimpleITK
            image), int16 HU (in MR its own values) on the homogenized grid. Returns on that grid, as any kind
            of image, a label map of whole numbers from 0 to 255, or a dictionary with the probability of each
            class by its name.
        homogenizer: an existing homogenizer; None: a new one.
        options: of a new homogenizer, see :class:`~isopose.api.homogenizer.Homogenizer`.

    Returns:
        A function of an image that returns the result on the image's own grid, as images of the type that
        ``function`` returned. In a dictionary ``background`` is added last: its probability is 1 minus the
        sum of the others.

    Raises:
        InputError: no function, options together with a homogenizer, or invalid options. The returned
            function raises it for an image without a body, and if the result of ``function`` is of another
            kind or on another grid.

    Example:
        >>> import SimpleITK as sitk
        >>> import isopose
        >>> bone = isopose.wrap(lambda image: sitk.Cast(image > 250, sitk.sitkUInt8), size=256)
        >>> bone("scan.nii.gz")  # doctest: +SKIP
    """
    if not callable(function):
        raise InputError(f"wrap: expected a function of an image, got {type(function).__name__}")
    if homogenizer is not None and options:
        raise InputError(f"wrap: a homogenizer has its own settings; leave {', '.join(options)} out")
    pose_homogenizer = Homogenizer(**options) if homogenizer is None else homogenizer

    @wraps(function)
    def wrapped(image: Image) -> Any:
        homogenized = pose_homogenizer.transform(image)
        for warning in homogenized.warnings:
            logger.warning(warning)
        segmentation = function(homogenized.image)
        if isinstance(segmentation, Mapping):
            return _restore_classes(segmentation, homogenized)
        labels = _on_homogenized_grid(segmentation, homogenized)
        return like(segmentation)(pose_homogenizer.inverse_transform(labels, homogenized))

    return wrapped


def _on_homogenized_grid(image: Image, homogenized: Homogenized) -> Volume:
    """Return an image in the storage order of the homogenized grid.

    Raises:
        InputError: the image does not lie on that grid.
    """
    try:
        return on_image_grid(_RETURNED, as_volume(image), homogenized.transform.homogenized)
    except InputError as error:
        raise InputError(named(str(error), str(_RETURNED))) from None


def _restore_classes(segmentation: Mapping[str, Image], homogenized: Homogenized) -> dict[str, Any]:
    """Return each class's probability on the scan's own grid, background last."""
    classes = {name: image for name, image in segmentation.items() if name != BACKGROUND}
    if not classes:
        raise InputError("wrap: the function returned no class but the background, expected at least one")
    restored: dict[str, Any] = {}
    first_image = next(iter(classes.values()))

    def write(name: str, volume: Volume) -> None:
        restored[name] = like(classes.get(name, first_image))(volume)

    def probabilities() -> Iterator[tuple[str, Volume]]:
        for name, image in classes.items():
            volume = _on_homogenized_grid(image, homogenized)
            check_probabilities(volume, f"wrap: {name}")
            yield name, volume.with_array(volume.array.astype(np.float32))

    restore_classes(probabilities(), {}, homogenized.transform, write)
    return restored
