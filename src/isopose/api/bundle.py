"""A trained model as the network of a MONAI bundle (``isopose export --format monai``)."""

import logging
from pathlib import Path

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from isopose.api.pipeline import Pipeline
from isopose.errors import InputError
from isopose.models.folder import for_prediction, load_model

logger = logging.getLogger("isopose")


class ScanSegmenter(nn.Module):
    """Segment whole scans; returns probabilities on the scans' own grids. MONAI's ``network_def``.

    It takes MetaTensors, because it needs the affine. Warnings are logged.

    Args:
        model: folder of a trained model.

    Raises:
        InputError: no model, or a damaged one.
    """

    def __init__(self, model: Path | str) -> None:
        super().__init__()
        loaded = for_prediction(load_model(Path(model)))
        self._predictor = Pipeline(loaded)
        # Registered as a submodule, so that the weights move to the device with this module.
        self.pipeline = loaded.pipeline
        self.classes = ("background", *loaded.labels.names)

    def forward(self, image: Tensor) -> MetaTensor:
        """Return probabilities ``(N, classes, x, y, z)`` of scans ``(N, channels, x, y, z)``.

        CT is in Hounsfield units; MR may have any unit.

        Raises:
            InputError: not a MetaTensor of that shape, or a scan without a body.
        """
        channels = len(self._predictor.channels)
        if not isinstance(image, MetaTensor) or image.ndim != 5 or image.shape[1] != channels:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"expected a MetaTensor of shape (N, {channels}, x, y, z), got {shape}; load it with "
                "LoadImaged"
            )
        affines = image.affine if image.affine.ndim == 3 else image.affine.expand(len(image), 4, 4)
        volumes = []
        for scan, affine in zip(image.as_tensor(), affines, strict=True):
            result = self._predictor.predict(MetaTensor(scan, affine=affine), probabilities=True)
            for warning in result.warnings:
                logger.warning(warning)
            volumes.append(torch.stack([result.probabilities[name].as_tensor()[0] for name in self.classes]))
        out = MetaTensor(torch.stack(volumes).to(image.device))
        out.copy_meta_from(image)
        out.is_batch = image.is_batch
        return out
