"""Every setting, its default and its meaning, in one place; the whole of it is saved with each model.

Unknown keys fail. Nothing is read from the environment. Presets, files and ``--set`` are in
:mod:`isopose.presets`.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: Which slices of a scan share a pose: all of them, neighbors (smoothly), or none.
Per = Literal["volume", "smooth", "slice"]
#: Pixels along a side of a localization network's input.
Side = Literal[32, 64, 96, 128, 192, 256, 384, 512]
#: A part of a whole.
Part = Annotated[float, Field(ge=0, le=1)]
#: What a setting is called that the dataset's labels decide.
AUTO = "auto"
#: Part of the training slices that are mirrored where the labels allow it.
MIRRORED = 0.5
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


#: What scans are of.
Modality = Literal["ct", "mr"]
#: In which plane the slices of a scan lie, and are processed one by one.
Plane = Literal["axial", "coronal", "sagittal"]
#: What a roll network knows: CT, or tissues of any brightness.
Contrast = Literal["ct", "any"]
#: How the values of a channel are normalized; see :mod:`isopose.data.normalization`.
Normalization = Literal["ct", "zscore", "raw"]
#: What slices without any label are in a scan that shows labels before and after such slices.
Undrawn = Literal["background", "ignore"]


class DataConfig(Section):
    """From a scan to the slices that the networks see."""

    size: Literal[64, 96, 128, 192, 256, 384, 512] = Field(
        256, description="pixels along a side of the frame"
    )
    pixel_mm: Annotated[float, Field(gt=0.05, lt=10)] | Literal["median"] | None = Field(
        None,
        description="side of a frame's pixel; none: the frame just holds every training patient's body; "
        "median: it does, in whole pixels of the training cases' median size, then resized to data.size",
    )
    clip_percentiles: tuple[float, float] = Field(
        (0.5, 99.5),
        description="ct: of the labeled voxels of the training cases, as nnU-Net; zscore: of the scan's body",
    )
    normalization: Literal["auto"] | Normalization | tuple[Normalization, ...] = Field(
        "auto",
        description="of all channels, or of each (a list). ct: clip and z-score by the labeled voxels of the "
        "training cases; zscore: by each scan's own body; raw: values as they are; auto: by the channel's "
        "name, as nnU-Net: ct for CT, raw for noNorm, zscore for all others",
    )
    pose_channel: int | str = Field(
        0, description="the channel that shows body, pose and crop: its number from 0, or its name"
    )
    modality: Literal["auto"] | Modality = Field(
        "auto", description="what the scans are; auto: ct if the channel that shows the pose is CT, else mr"
    )
    plane: Plane = Field(
        "axial",
        description="in which the slices were acquired, and are processed one by one; coronal and sagittal: "
        "no roll network, size from the body's width or depth",
    )
    body_threshold_hu: float = Field(
        -250.0, description="CT: what is denser may be body; in MR each scan's own noise decides"
    )
    undrawn: Undrawn = Field(
        "background",
        description="what slices without any label are; ignore: nobody drew them, in scans that have such "
        "slices between labeled ones or a single labeled slice; they train and score nothing",
    )

    @field_validator("clip_percentiles")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("expected two percentiles from 0 to 100, the lower first")
        return value


class OptimizerConfig(Section):
    """One stage's optimizer and its length."""

    name: Literal["sgd", "adam", "adamw"] = Field("adamw", description="of PyTorch")
    learning_rate: float = Field(1e-3, gt=0, description="in the first epoch")
    weight_decay: float = Field(0.0, ge=0, description="L2 term with sgd and adam, decoupled with adamw")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD only; Nesterov where above 0")
    schedule: Literal["poly", "constant"] = Field("poly", description="poly: (1 - epoch / epochs) ** 0.9")
    epochs: int = Field(50, ge=1, description="at most; the poly schedule ends here")
    min_epochs: int = Field(50, ge=1, description="before early stopping may end the stage")
    patience: int = Field(20, ge=1, description="epochs without a better smoothed validation score")
    smoothing: float = Field(
        0.8, ge=0, lt=1, description="weight of the past in the smoothed validation score; 0: no smoothing"
    )
    max_norm: float = Field(12.0, gt=0, description="gradients are clipped to this norm, as nnU-Net does")
    iterations: int = Field(100, ge=1, description="batches an epoch")
    batch_size: int = Field(16, ge=1, description="slices a batch while training; with dims=3 volumes")
    parts: int = Field(
        1,
        ge=1,
        description="parts of a batch that go through the network one after the other, their gradients "
        "summed: less memory; batch norm and the loss then see a part at a time",
    )

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> "OptimizerConfig":
        if self.parts > self.batch_size:
            raise ValueError(f"parts is {self.parts}, expected at most batch_size, {self.batch_size}")
        return self


_OF_AN_STN = OptimizerConfig(epochs=30, min_epochs=15, patience=10, learning_rate=5e-4)


class PoseConfig(Section):
    """STN1: pose and size."""

    start: Literal["anatomy", "header", "moments", "identity"] = Field(
        "anatomy",
        description="anatomy: a shipped network sees the roll, moments give the rest; header: the roll is "
        "left as the file's header says. With data.plane=coronal or sagittal anatomy means header",
    )
    contrast: Contrast = Field(
        "ct",
        description="what the shipped network sees. ct: a window of soft tissue; any: each slice scaled by "
        "its own body, for a network that learned from tissues of any brightness. MR always has any",
    )
    learned: bool = Field(
        False,
        description="train STN1 (Eq. 1) from the start; with anatomy: fine-tune the shipped network (its "
        "confidence is then no longer calibrated), also before stn=joint, which always learns the rest",
    )
    per: Per = Field(
        "smooth", description="one pose for a scan, one that varies smoothly along it, or one for each slice"
    )
    smooth_mm: float = Field(
        20.0, gt=0, description="with smooth: standard deviation of the Gaussian along the scan, mm"
    )
    roll_sd: float = Field(
        10.0,
        gt=0,
        le=30,
        description="how most patients lie around what the header says: standard deviation, degrees",
    )
    roll_wide_share: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="part of the patients who lie further off: standard deviation 30 degrees",
    )
    roll_turned_share: float = Field(
        0.06, gt=0, lt=0.5, description="part of the patients turned by about a quarter or half turn"
    )
    turn_odds: float = Field(
        10.0,
        gt=0,
        description="least odds at which the roll that the slices show overrides what the header says",
    )
    scales: Literal[1, 2] = Field(2, description="2: the paper's five parameters; 1: a true similarity")
    size: Side = Field(96, description="pixels of the network's input")
    fill: float | None = Field(
        0.92, gt=0.1, le=1, description="part of the frame that the reference's body fills; none: as it lies"
    )
    reference: str | None = Field(
        None, description="case id of the reference patient; none: chosen and shown"
    )
    reference_within: float = Field(
        1.3,
        ge=1,
        description="the reference is chosen among patients whose body area lies within this factor of the "
        "median",
    )
    reference_lean: float = Field(
        1.0, ge=0, description="symmetry that a radian of lean costs when the reference is chosen"
    )
    max_angle: float = Field(0.6, gt=0, description="bound of the regressed angle, radians")
    max_log_scale: float = Field(0.7, gt=0, description="bound of the regressed log scales; 0.7 is 0.5 to 2")
    max_shift: float = Field(0.5, gt=0, description="bound of the regressed shift, half sides of the frame")
    optimizer: OptimizerConfig = _OF_AN_STN

    def in_plane(self, plane: Plane) -> "PoseConfig":
        """Return the start that slices of a plane can have: the roll network has seen axial ones only."""
        if plane == "axial" or self.start != "anatomy":
            return self
        return self.model_copy(update={"start": "header"})


class CropConfig(Section):
    """STN2: region of interest."""

    enabled: bool = Field(True, description="off: the U-Net sees the whole homogenized frame")
    learned: bool = Field(True, description="off: one box that holds every training label, no network")
    per: Literal["volume", "slice"] = Field(
        "volume", description="one crop for all slices of a scan, or the paper's own one for each slice"
    )
    loss: Literal["l1+rmse", "l2+rmse"] = Field("l1+rmse", description="Eq. 2's text, or its formula")
    margin: float = Field(0.1, ge=0, le=1, description="added to target boxes on each side, of the side")
    size: Side = Field(96, description="pixels of the network's input")
    depth: Literal[8, 16, 32, 64] = Field(16, description="with dims=3: voxels of it along z")
    jitter_shift: float = Field(
        0.08, ge=0, le=1, description="of crops while the U-Net trains, of half a side"
    )
    jitter_scale: float = Field(
        0.08, ge=0, le=1, description="of crops while the U-Net trains, of the size's logarithm"
    )
    optimizer: OptimizerConfig = _OF_AN_STN


class IntensityConfig(Section):
    """With ``unet.augmentation=homogenized``: the part of the slices that each change touches."""

    noise: Part = Field(0.1, description="Gaussian, with a standard deviation of up to 0.1")
    blur: Part = Field(0.1, description="Gaussian, with a sigma of 0.5 to 1 pixel")
    brightness: Part = Field(0.15, description="times 0.75 to 1.25")
    contrast: Part = Field(0.15, description="times 0.75 to 1.25 around the mean, within the slice's range")
    low_resolution: Part = Field(0.125, description="from 0.5 to 1 of the pixels along a side")
    inverted_gamma: Part = Field(0.1, description="0.7 to 1.5, of the inverted slice")
    gamma: Part = Field(0.3, description="0.7 to 1.5; mean and standard deviation stay")


class UNetConfig(Section):
    """The segmentation network."""

    input: Literal["full", "half", "quarter"] = Field("half", description="its input, of the frame's side")
    depth: Literal[8, 16, 32, 64, 128] = Field(32, description="with dims=3: voxels of its input along z")
    context: int = Field(
        0,
        ge=0,
        le=8,
        description="neighbors of a slice on each side that are channels of its input, each in its own pose; "
        "dims=2 only",
    )
    context_mm: float | None = Field(
        None,
        gt=0,
        description="with context: from a neighbor to the next along the scan; none: the next slices",
    )
    base_features: int = Field(32, ge=1, description="channels at the input's level; doubled at each level")
    max_features: int = Field(512, ge=1, description="cap of the doubling")
    bottleneck: int = Field(8, ge=2, description="least pixels along a side at the bottom")
    smallest_skip: int = Field(32, ge=2, description="no skip connection or deep supervision below")
    output_norm: bool = Field(
        False, description="batch norm before the softmax, as the paper's words have it"
    )
    recompute: bool = Field(
        False,
        description="keep less of each level and compute it again on the way back: the same result, less "
        "memory, slower",
    )
    loss_space: Literal["native", "canonical"] = Field("canonical", description="where Eq. 3 compares")
    pose_jitter: float = Field(
        0.3, ge=0, le=1, description="random pose around the estimated one; 1: 10 degrees, 10 %, 10 % shift"
    )
    mirror: Part | Literal["auto"] = Field(
        "auto",
        description="part of the training slices shown mirrored about the body's own midline; auto: half, "
        "unless a label without a side in its name lies on one side of the body",
    )
    augmentation: Literal["off", "homogenized", "nnunet"] = Field(
        "off",
        description="homogenized: unet.intensity and unet.elastic, of the homogenized crop; nnunet: "
        "rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma and mirroring of slices "
        "as they lie, in place of pose and crop: the paper's baseline",
    )
    intensity: IntensityConfig = IntensityConfig()
    elastic: Part = Field(
        0.2,
        description="with unet.augmentation=homogenized: part of the slices that are deformed smoothly, by "
        "up to 2 % of the crop's side",
    )
    # Measured on phantoms, 5040 slices seen, validation Dice kidney / tumor: AdamW 0.89 / 0.80, the paper's
    # SGD 0.82 / 0.79 (docs/measurements.md, "Choices").
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3,
        weight_decay=1e-2,
        epochs=100,
        min_epochs=50,
        patience=25,
        iterations=100,
        batch_size=12,
    )


class TrainConfig(Section):
    """What all stages share."""

    seed: int = Field(0, ge=0, lt=2**32, description="of weights, draws, jitter and the split into folds")
    folds: int = Field(5, ge=2, description="into which the patients are dealt")
    fold: int | Literal["all"] = Field(0, description="the validation fold; all: train on every patient")
    shared: bool = Field(
        False,
        description="normalization, frame and reference are of the training patients of all folds, so that "
        "folds agree; --folds all sets it",
    )
    oversample: dict[str, Part] | None = Field(
        None, description="least part of slices with a label; none: a third for each of the first two labels"
    )
    parts: Literal["all", "decoder", "first2-last2"] = Field(
        "all",
        description="with --from: what learns on. all: every network; decoder: the U-Net's whole decoder; "
        "first2-last2: its first two encoder and last two decoder levels",
    )
    device: str = Field("auto", description="auto, cpu, cuda, a GPU by its number (cuda:1), mps")
    precision: Precision = Field(
        "auto", description="auto: mixed where the GPU or CPU computes in 16 bits itself, else 32"
    )
    validation_slices: int = Field(
        512, ge=1, description="at most, evenly spread over the validation patients; dims=3 takes all volumes"
    )


class PredictConfig(Section):
    """What prediction does when a pose or crop cannot be trusted."""

    batch_size: int = Field(16, ge=1, description="slices at a time")
    precision: Precision = Field(
        "auto",
        description="of the U-Net; auto: mixed where the GPU or CPU computes in 16 bits itself, else 32",
    )
    min_pose_dice: float = Field(
        0.8, ge=0, le=1, description="agreement with the reference's outline below which a pose falls back"
    )
    min_confidence: float = Field(
        0.8,
        ge=0,
        le=1,
        description="probability that the roll is right (within 6 degrees) below which to warn",
    )
    mirror: bool | Literal["auto"] = Field(
        "auto",
        description="average with the answer to the mirrored crop: twice the U-Net's time; auto: if the "
        "training mirrored",
    )
    crop_border: int = Field(1, ge=0, description="pixels: a label that near the crop's border is cut off")


class HomogenizeConfig(Section):
    """What ``isopose homogenize`` writes; given on its command line, no part of a model."""

    modality: Literal["auto"] | Modality = Field(
        "auto", description="what the scans are; auto: as the dataset or the model says, else ct"
    )
    plane: Plane | None = Field(
        None, description="in which the slices were acquired; none: the model's, without a model axial"
    )
    per: Literal["volume", "smooth", "slice", "tilted"] = Field(
        "volume",
        description="as pose.per; with volume all slices of a scan are scaled alike; tilted: one pose for a "
        "volume with pitch and yaw too, resampled along z",
    )
    size: int = Field(384, ge=64, le=1024, description="pixels along a side of the reference's frame")
    crop: bool = Field(False, description="only the square that the model's STN2 crops, one for a scan")
    reference: str | None = Field(
        None,
        min_length=1,
        description="whose pose and size the scans get: child or adult, shipped; a case of the dataset; the "
        "path of a scan or of a model's folder; none: the child, with --model the model's",
    )
    pose_channel: int | str | None = Field(
        None,
        description="the channel that shows body and pose: its number from 0, or its name; none: that of the "
        "model, without one the first",
    )
    scale_z: bool = Field(
        True,
        description="distances of slices are scaled as the slices are, in the header alone; off: the scan's "
        "own",
    )


class Config(Section):
    """The whole configuration of a model."""

    preset: Literal["default", "paper"] = Field(
        "default", description="which preset the configuration started from; --preset chooses it"
    )
    stn: Literal["separate", "joint"] = Field(
        "separate",
        description="separate: STN1, then STN2 on what STN1 made; joint: one network sees the slice in the "
        "start's pose and regresses pose and crop at once (its size and bounds: [pose]; optimizer: [crop])",
    )
    dims: Literal[2, 3] = Field(
        2, description="2: slice by slice, as the paper; 3: whole volumes, with one pose and crop for a scan"
    )
    data: DataConfig = DataConfig()
    pose: PoseConfig = PoseConfig()
    crop: CropConfig = CropConfig()
    unet: UNetConfig = UNetConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Config":
        if self.unet_size < 2 * self.unet.bottleneck or self.unet_size % 2**self.unet_levels:
            raise ValueError(
                f"the U-Net's input of {self.unet_size} pixels cannot be halved down to a bottleneck of "
                f"{self.unet.bottleneck}; change data.size, unet.input or unet.bottleneck"
            )
        if self.dims == 3:
            for name, given, expected in (
                ("stn", self.stn, "separate"),
                ("pose.per", self.pose.per, "volume"),
                ("pose.learned", self.pose.learned, False),
                ("crop.per", self.crop.per, "volume"),
                ("unet.context", self.unet.context, 0),
                ("unet.output_norm", self.unet.output_norm, False),
                ("unet.loss_space", self.unet.loss_space, "canonical"),
            ):
                if given != expected:
                    raise ValueError(
                        f"{name} is {json.dumps(given)}, with dims=3 only {json.dumps(expected)} is possible"
                    )
        if self.train.fold != "all" and not 0 <= self.train.fold < self.train.folds:
            raise ValueError(f"train.fold is {self.train.fold}, expected 0 to {self.train.folds - 1} or all")
        return self

    @model_validator(mode="after")
    def _of_a_plane(self) -> "Config":
        """Only what slices of another plane than the axial one can be processed with."""
        plane = self.data.plane
        if plane == "axial":
            return self
        possible = (
            ("dims", self.dims, 2),
            ("stn", self.stn, "separate"),
            ("unet.context", self.unet.context, 0),
        )
        for name, given, expected in possible:
            if given != expected:
                raise ValueError(
                    f"{name} is {json.dumps(given)}, with data.plane={plane} only {json.dumps(expected)} is "
                    "possible"
                )
        if self.pose.start == "moments":
            raise ValueError(
                "pose.start is moments, whose roll is read from an outline that nothing cuts; "
                f"with data.plane={plane} choose header or identity"
            )
        if plane == "sagittal" and (
            self.unet.mirror not in (AUTO, 0) or self.predict.mirror not in (AUTO, False)
        ):
            raise ValueError(
                "unet.mirror and predict.mirror swap front and back with data.plane=sagittal; leave them out"
            )
        return self

    @model_validator(mode="after")
    def _augmented(self) -> "Config":
        changed = self.unet.augmentation == "homogenized" and self.unet.elastic > 0
        if changed and self.unet.loss_space == "native":
            raise ValueError(
                "unet.elastic deforms the crop, with unet.loss_space=native only unet.elastic=0 is possible"
            )
        if self.unet.augmentation == "nnunet":
            for name, found in (
                ("dims=2", self.dims == 2),
                ("stn=separate", self.stn == "separate"),
                ("pose.start=identity", self.pose.start == "identity"),
                ("pose.learned=false", not self.pose.learned),
                ("crop.enabled=false", not self.crop.enabled),
            ):
                if not found:
                    raise ValueError(f"unet.augmentation=nnunet needs {name}: it is of slices as they lie")
        return self

    @model_validator(mode="after")
    def _joint_crops(self) -> "Config":
        for key in ("enabled", "learned"):
            if self.stn == "joint" and not getattr(self.crop, key):
                raise ValueError(
                    f"stn=joint learns pose and crop together, but crop.{key} is false; set it to true, "
                    "or stn=separate"
                )
        return self

    def flat(self) -> dict[str, Any]:
        """All settings by ``section.key``, as ``--set`` names them; plain values."""

        def entries(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
            for key, value in values.items():
                if isinstance(value, dict):
                    yield from entries(value, f"{prefix}{key}.")
                else:
                    yield f"{prefix}{key}", value

        return dict(entries(self.model_dump(mode="json"), ""))

    @property
    def pose_estimated(self) -> bool:
        """Whether a pose is estimated at all; without, every slice is taken as it lies."""
        return self.stn == "joint" or self.pose.learned or self.pose.start != "identity"

    @property
    def mirrored(self) -> float:
        """Part of the training slices that are mirrored; a half where the labels are still to decide."""
        if self.data.plane == "sagittal":
            return 0.0
        return MIRRORED if self.unet.mirror == AUTO else float(self.unet.mirror)

    @property
    def averaged(self) -> bool:
        """Whether an answer is averaged with that to the mirrored crop."""
        return self.mirrored > 0 if self.predict.mirror == AUTO else bool(self.predict.mirror)

    @property
    def unet_size(self) -> int:
        """Pixels along a side of the U-Net's input."""
        return self.data.size // {"full": 1, "half": 2, "quarter": 4}[self.unet.input]

    @property
    def unet_shape(self) -> tuple[int, ...]:
        """``(h, w)`` of the U-Net's input; with ``dims=3`` ``(d, h, w)``."""
        plane = (self.unet_size, self.unet_size)
        return plane if self.dims == 2 else (self.unet.depth, *plane)

    @property
    def unet_levels(self) -> int:
        """How often the U-Net halves its input, so that the bottleneck is at least its configured size."""
        return (self.unet_size // self.unet.bottleneck).bit_length() - 1
