"""The whole configuration of a model, which is saved with it, and that of ``isopose homogenize``.

Unknown keys are errors. Nothing is read from the environment. The settings of each section are in
:mod:`isopose.settings`; presets, files and ``--set`` in :mod:`isopose.presets`.
"""

import json
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Literal

from pydantic import Field, model_validator

from isopose.choices import AUTO, HOMOGENIZED_SIZE, Modality, Plane
from isopose.settings import (
    ConfigSection,
    CropConfig,
    DataConfig,
    PoseConfig,
    PredictConfig,
    TrainConfig,
    UNetConfig,
)

#: Fraction of the training slices that are mirrored where the labels allow it.
MIRRORED = 0.5


class HomogenizeConfig(ConfigSection):
    """Options of ``isopose homogenize``. They are set on its command line and are not saved with a model."""

    modality: Literal["auto"] | Modality = Field(
        "auto", description="modality of the scans; auto: as the dataset or the model says, else ct"
    )
    plane: Plane | None = Field(
        None,
        description="plane in which the slices were acquired; none: the model's, without a model axial",
    )
    per: Literal["volume", "smooth", "slice", "tilted"] = Field(
        "volume",
        description="as pose.per; volume scales all slices of a scan equally; tilted: one pose for a scan "
        "with pitch and yaw, too, resampled along z",
    )
    size: int = Field(
        HOMOGENIZED_SIZE, ge=64, le=1024, description="pixels per side of the reference's frame"
    )
    crop: bool = Field(
        False, description="write only the square that the model's STN2 crops, the same for a whole scan"
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="reference to whose pose and size the scans are brought: child or adult, which are "
        "shipped; a case of the dataset; the path of a scan or of a model's folder; none: child, with "
        "--model the model's",
    )
    pose_channel: int | str | None = Field(
        None,
        description="the channel in which body and pose are found: its number, counted from 0, or its name; "
        "none: the model's, without a model the first",
    )
    scale_z: bool = Field(
        True,
        description="scale the slice spacing in the header by the same factor as the slices, without "
        "resampling; off: keep the scan's own spacing",
    )

    @property
    def scan_modality(self) -> Modality:
        """Modality of the scans; CT where ``auto`` has not been replaced."""
        return "mr" if self.modality == "mr" else "ct"

    @property
    def scan_plane(self) -> Plane:
        """Plane of the scans' slices; axial where none is set."""
        return self.plane or "axial"


class Config(ConfigSection):
    """The whole configuration of a model."""

    preset: Literal["default", "paper"] = Field(
        "default", description="preset that the configuration started from; --preset chooses it"
    )
    stn: Literal["separate", "joint"] = Field(
        "separate",
        description="separate: STN1, then STN2 on the output of STN1; joint: one network sees the slice in "
        "the pose of pose.start and regresses pose and crop together (input size and bounds: [pose]; "
        "optimizer: [crop])",
    )
    dims: Literal[2, 3] = Field(
        2,
        description="2: slice by slice, as in the paper; 3: whole volumes, with one pose and crop for a scan",
    )
    data: DataConfig = DataConfig()
    pose: PoseConfig = PoseConfig()
    crop: CropConfig = CropConfig()
    unet: UNetConfig = UNetConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    def _check_values(self, expected: Mapping[str, Any], condition: str) -> None:
        """Raise a ValueError if a setting has another value than the one that a condition allows.

        Args:
            expected: the allowed values by setting, such as ``{"pose.per": "volume"}``.
            condition: setting and value because of which no others are possible, for the message.
        """
        for name, allowed in expected.items():
            value = attrgetter(name)(self)
            if value != allowed:
                raise ValueError(
                    f"{name} is {json.dumps(value)}, with {condition} only {json.dumps(allowed)} is possible"
                )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Config":
        """Check the U-Net's input, the settings that volumes do not allow, and the fold."""
        if self.unet_size < 2 * self.unet.bottleneck or self.unet_size % 2**self.unet_levels:
            raise ValueError(
                f"the U-Net's input of {self.unet_size} pixels cannot be halved down to a bottleneck of "
                f"{self.unet.bottleneck}; change data.size, unet.input or unet.bottleneck"
            )
        if self.dims == 3:
            expected = {
                "stn": "separate",
                "pose.per": "volume",
                "pose.learned": False,
                "crop.per": "volume",
                "unet.context": 0,
                "unet.output_norm": False,
                "unet.loss_space": "canonical",
            }
            self._check_values(expected, "dims=3")
        if self.train.fold != "all" and not 0 <= self.train.fold < self.train.folds:
            raise ValueError(f"train.fold is {self.train.fold}, expected 0 to {self.train.folds - 1} or all")
        return self

    @model_validator(mode="after")
    def _plane_fits(self) -> "Config":
        """Check the settings for coronal and sagittal slices, with which fewer are possible."""
        plane = self.data.plane
        if plane == "axial":
            return self
        self._check_values({"dims": 2, "stn": "separate", "unet.context": 0}, f"data.plane={plane}")
        if self.pose.start == "moments":
            raise ValueError(
                "pose.start is moments, which need a body outline that the field of view does not cut off; "
                f"with data.plane={plane} choose header or identity"
            )
        if plane == "sagittal" and (
            self.unet.mirror not in (AUTO, 0) or self.predict.mirror not in (AUTO, False)
        ):
            raise ValueError(
                "unet.mirror and predict.mirror would swap front and back with data.plane=sagittal; leave "
                "them out"
            )
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> "Config":
        is_deformed = self.unet.augmentation == "homogenized" and self.unet.elastic > 0
        if is_deformed and self.unet.loss_space == "native":
            raise ValueError(
                "unet.elastic deforms the crop, with unet.loss_space=native only unet.elastic=0 is possible"
            )
        if self.unet.augmentation == "nnunet":
            # It augments slices as scanned, which have neither pose nor crop.
            expected = {
                "dims": 2,
                "stn": "separate",
                "pose.start": "identity",
                "pose.learned": False,
                "crop.enabled": False,
            }
            self._check_values(expected, "unet.augmentation=nnunet")
        return self

    @model_validator(mode="after")
    def _joint_fits(self) -> "Config":
        for key in ("enabled", "learned"):
            if self.stn == "joint" and not getattr(self.crop, key):
                raise ValueError(
                    f"stn=joint learns pose and crop together, but crop.{key} is false; set it to true, "
                    "or stn=separate"
                )
        return self

    def flat(self) -> dict[str, Any]:
        """Return all settings as plain values by ``section.key``, as ``--set`` names them."""

        def entries(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
            for key, value in values.items():
                if isinstance(value, dict):
                    yield from entries(value, f"{prefix}{key}.")
                else:
                    yield f"{prefix}{key}", value

        return dict(entries(self.model_dump(mode="json"), ""))

    @property
    def pose_estimated(self) -> bool:
        """Whether a pose is estimated; if not, slices are used as scanned."""
        return self.stn == "joint" or self.pose.learned or self.pose.start != "identity"

    @property
    def mirrored(self) -> float:
        """Fraction of the training slices that are mirrored; with ``auto`` half, if the labels allow it."""
        if self.data.plane == "sagittal":
            return 0.0
        return MIRRORED if self.unet.mirror == AUTO else float(self.unet.mirror)

    @property
    def averaged(self) -> bool:
        """Whether a prediction is averaged with the prediction on the mirrored crop."""
        return self.mirrored > 0 if self.predict.mirror == AUTO else bool(self.predict.mirror)

    @property
    def unet_size(self) -> int:
        """Pixels per side of the U-Net's input."""
        return self.data.size // {"full": 1, "half": 2, "quarter": 4}[self.unet.input]

    @property
    def unet_shape(self) -> tuple[int, ...]:
        """``(h, w)`` of the U-Net's input; with ``dims=3`` ``(d, h, w)``."""
        plane = (self.unet_size, self.unet_size)
        return plane if self.dims == 2 else (self.unet.depth, *plane)

    @property
    def unet_levels(self) -> int:
        """Number of times that the U-Net halves its input; the bottleneck is at least ``unet.bottleneck``."""
        return (self.unet_size // self.unet.bottleneck).bit_length() - 1
