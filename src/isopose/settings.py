"""Every setting of a model, its default and its meaning, section by section.

:class:`isopose.config.Config` joins the sections and checks which settings exclude each other.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from isopose.choices import Contrast, Modality, Normalization, Per, Plane, Undrawn

#: Pixels per side of a localization network's input.
Side = Literal[32, 64, 96, 128, 192, 256, 384, 512]
#: A fraction of a whole.
Part = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


class ConfigSection(BaseModel):
    """Base of the sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(ConfigSection):
    """Preprocessing: from a scan to the slices that the networks see."""

    size: Literal[64, 96, 128, 192, 256, 384, 512] = Field(256, description="pixels per side of the frame")
    pixel_mm: Annotated[float, Field(gt=0.05, lt=10)] | Literal["median"] | None = Field(
        None,
        description="pixel size of the frame in mm; none: the smallest frame that holds every training "
        "patient's body; median: that frame in whole pixels of the training cases' median size, then resized "
        "to data.size",
    )
    clip_percentiles: tuple[float, float] = Field(
        (0.5, 99.5),
        description="percentiles to which intensities are clipped. ct: of the labeled voxels of the training "
        "cases, as in nnU-Net; zscore: of the voxels in the scan's body",
    )
    normalization: Literal["auto"] | Normalization | tuple[Normalization, ...] = Field(
        "auto",
        description="one for all channels, or a list with one for each. ct: clip and z-score with statistics "
        "of the labeled voxels of the training cases; zscore: with those of each scan's own body; raw: "
        "values unchanged; auto: by the channel's name, as in nnU-Net: ct for CT, raw for noNorm, zscore for "
        "all others",
    )
    pose_channel: int | str = Field(
        0,
        description="the channel in which body, pose and crop are found: its number, counted from 0, or its "
        "name",
    )
    modality: Literal["auto"] | Modality = Field(
        "auto", description="modality of the scans; auto: ct if data.pose_channel is CT, else mr"
    )
    plane: Plane = Field(
        "axial",
        description="plane in which the slices were acquired and are processed one by one; coronal and "
        "sagittal: no roll network, size from the body's width or depth",
    )
    body_threshold_hu: float = Field(
        -250.0,
        description="CT: threshold above which a voxel may be body; in MR it is found from each scan's noise",
    )
    undrawn: Undrawn = Field(
        "background",
        description="meaning of slices without any label. background: they show no structure; ignore: they "
        "were not annotated, in scans that have such slices between labeled ones or a single labeled slice, "
        "and are left out of training and scores",
    )

    @field_validator("clip_percentiles")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("expected two percentiles from 0 to 100, the lower first")
        return value


class OptimizerConfig(ConfigSection):
    """Optimizer and length of one training stage."""

    name: Literal["sgd", "adam", "adamw"] = Field("adamw", description="optimizer, as in PyTorch")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of the first epoch")
    weight_decay: float = Field(0.0, ge=0, description="L2 term with sgd and adam, decoupled with adamw")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD only; above 0 it is Nesterov's")
    schedule: Literal["poly", "constant"] = Field(
        "poly", description="schedule of the learning rate; poly: times (1 - epoch / epochs) ** 0.9"
    )
    epochs: int = Field(50, ge=1, description="maximum number of epochs, at which the poly schedule ends")
    min_epochs: int = Field(50, ge=1, description="epochs before early stopping may end the stage")
    patience: int = Field(
        20, ge=1, description="epochs without a better smoothed validation score, after which the stage stops"
    )
    smoothing: float = Field(
        0.8,
        ge=0,
        lt=1,
        description="weight of earlier epochs in the smoothed validation score (exponential moving average); "
        "0: no smoothing",
    )
    max_norm: float = Field(12.0, gt=0, description="gradients are clipped to this norm, as in nnU-Net")
    iterations: int = Field(100, ge=1, description="batches per epoch")
    batch_size: int = Field(16, ge=1, description="slices per training batch; volumes with dims=3")
    parts: int = Field(
        1,
        ge=1,
        description="gradient accumulation: parts of a batch that go through the network one after the "
        "other, with summed gradients. Takes less memory; batch norm and the loss then see one part at a "
        "time",
    )

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> "OptimizerConfig":
        if self.parts > self.batch_size:
            raise ValueError(f"parts is {self.parts}, expected at most batch_size, {self.batch_size}")
        return self


_STN_OPTIMIZER = OptimizerConfig(epochs=30, min_epochs=15, patience=10, learning_rate=5e-4)


class PoseConfig(ConfigSection):
    """STN1: pose and size."""

    start: Literal["anatomy", "header", "moments", "identity"] = Field(
        "anatomy",
        description="how the pose is found before STN1. anatomy: a shipped network estimates the roll, and "
        "moments of the body mask give position and size; header: the roll is left as the file's header "
        "says; moments: all from moments; identity: no pose. With data.plane=coronal or sagittal anatomy "
        "means header",
    )
    contrast: Contrast = Field(
        "ct",
        description="input of the shipped roll network. ct: a soft tissue window; any: each slice scaled by "
        "the intensities of its own body, for a network trained on tissues of any brightness. MR always uses "
        "any",
    )
    learned: bool = Field(
        False,
        description="train STN1 (Eq. 1) from the start; with anatomy: fine-tune the shipped network (its "
        "confidence is then no longer calibrated), also before stn=joint, which always learns the rest",
    )
    per: Per = Field(
        "smooth",
        description="volume: one pose for a scan; smooth: one that varies smoothly along it; slice: one for "
        "each slice",
    )
    smooth_mm: float = Field(
        20.0, gt=0, description="with pose.per=smooth: standard deviation of the Gaussian along the scan, mm"
    )
    roll_sd: float = Field(
        10.0,
        gt=0,
        le=30,
        description="prior of the roll: standard deviation of most patients around the header, degrees",
    )
    roll_wide_share: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="prior of the roll: fraction of patients with a standard deviation of 30 degrees",
    )
    roll_turned_share: float = Field(
        0.06,
        gt=0,
        lt=0.5,
        description="prior of the roll: fraction of patients rotated by about a quarter or half turn",
    )
    turn_odds: float = Field(
        10.0,
        gt=0,
        description="minimum odds at which the roll seen in the slices overrides the header",
    )
    scales: Literal[1, 2] = Field(2, description="2: the paper's five parameters; 1: a true similarity")
    size: Side = Field(96, description="pixels per side of STN1's input")
    fill: float | None = Field(
        0.92,
        gt=0.1,
        le=1,
        description="fraction of the frame's side that the reference's body fills; none: the reference is "
        "used as scanned",
    )
    reference: str | None = Field(
        None, description="case id of the reference patient; none: it is chosen and printed"
    )
    reference_within: float = Field(
        1.3,
        ge=1,
        description="the reference is chosen among patients whose body area lies within this factor of the "
        "median",
    )
    reference_lean: float = Field(
        1.0,
        ge=0,
        description="in the choice of the reference: penalty per radian of roll, subtracted from the "
        "symmetry",
    )
    max_angle: float = Field(0.6, gt=0, description="bound of the regressed angle, radians")
    max_log_scale: float = Field(0.7, gt=0, description="bound of the regressed log scales; 0.7 is 0.5 to 2")
    max_shift: float = Field(
        0.5, gt=0, description="bound of the regressed translation, in half sides of the frame"
    )
    optimizer: OptimizerConfig = _STN_OPTIMIZER

    def in_plane(self, plane: Plane) -> "PoseConfig":
        """Return the settings for a plane; the roll network was trained on axial slices only."""
        if plane == "axial" or self.start != "anatomy":
            return self
        return self.model_copy(update={"start": "header"})


class CropConfig(ConfigSection):
    """STN2: region of interest."""

    enabled: bool = Field(True, description="off: the U-Net sees the whole homogenized frame")
    learned: bool = Field(True, description="off: one box that holds every training label, no network")
    per: Literal["volume", "slice"] = Field(
        "volume",
        description="volume: one crop for all slices of a scan; slice: one for each slice, as in the paper",
    )
    loss: Literal["l1+rmse", "l2+rmse"] = Field(
        "l1+rmse", description="reading of Eq. 2. l1+rmse: the paper's text; l2+rmse: its formula"
    )
    margin: float = Field(
        0.1, ge=0, le=1, description="margin on each side of target boxes, as a fraction of the box's side"
    )
    size: Side = Field(96, description="pixels per side of STN2's input")
    depth: Literal[8, 16, 32, 64] = Field(16, description="with dims=3: voxels of STN2's input along z")
    jitter_shift: float = Field(
        0.08,
        ge=0,
        le=1,
        description="random shift of crops while the U-Net trains, as a fraction of half a side",
    )
    jitter_scale: float = Field(
        0.08, ge=0, le=1, description="random change of the crops' log size while the U-Net trains"
    )
    optimizer: OptimizerConfig = _STN_OPTIMIZER


class IntensityConfig(ConfigSection):
    """Probability of each intensity transform for a slice, with ``unet.augmentation=homogenized``."""

    random_convolutions: Part = Field(
        0.0,
        description="a shallow network of random weights (GIN), for scans of another contrast phase or "
        "scanner than the training scans",
    )
    noise: Part = Field(0.1, description="Gaussian noise with a standard deviation of up to 0.1")
    blur: Part = Field(0.1, description="Gaussian blur with a sigma of 0.5 to 1 pixel")
    brightness: Part = Field(0.15, description="multiply by 0.75 to 1.25")
    contrast: Part = Field(
        0.15, description="multiply by 0.75 to 1.25 around the mean, clipped to the slice's range"
    )
    low_resolution: Part = Field(0.125, description="downsample to 0.5 to 1 of the pixels per side and back")
    inverted_gamma: Part = Field(0.1, description="gamma of 0.7 to 1.5 on the inverted slice")
    gamma: Part = Field(0.3, description="gamma of 0.7 to 1.5; mean and standard deviation are kept")


class UNetConfig(ConfigSection):
    """The segmentation network."""

    input: Literal["full", "half", "quarter"] = Field(
        "half", description="side of the U-Net's input, relative to the frame's side (data.size)"
    )
    depth: Literal[8, 16, 32, 64, 128] = Field(
        32, description="with dims=3: voxels of the U-Net's input along z"
    )
    context: int = Field(
        0,
        ge=0,
        le=8,
        description="neighboring slices on each side that are added as channels, each in its own pose; "
        "dims=2 only",
    )
    context_mm: float | None = Field(
        None,
        gt=0,
        description="with unet.context: distance between these neighbors along the scan, mm; none: adjacent "
        "slices",
    )
    base_features: int = Field(
        32, ge=1, description="features of the first level; doubled with each further level"
    )
    max_features: int = Field(512, ge=1, description="maximum number of features of a level")
    bottleneck: int = Field(8, ge=2, description="minimum pixels per side at the bottleneck")
    smallest_skip: int = Field(
        32, ge=2, description="pixels per side below which there is no skip connection or deep supervision"
    )
    output_norm: bool = Field(False, description="batch norm before the softmax, as the paper's text says")
    recompute: bool = Field(
        False,
        description="activation checkpointing: recompute activations in the backward pass. The same result "
        "with less memory, but slower",
    )
    loss_space: Literal["native", "canonical"] = Field(
        "canonical",
        description="space in which Eq. 3 compares. native: in the frame, before theta1; canonical: in the "
        "crop",
    )
    pose_jitter: float = Field(
        0.3,
        ge=0,
        le=1,
        description="random change of the estimated pose in training; 1 means 10 degrees, 10 % of size, 10 % "
        "shift",
    )
    mirror: Part | Literal["auto"] = Field(
        "auto",
        description="fraction of the training slices that are mirrored about the body's own midline; auto: "
        "half, unless a label without a side in its name lies on one side of the body",
    )
    augmentation: Literal["off", "homogenized", "nnunet"] = Field(
        "off",
        description="homogenized: unet.intensity and unet.elastic, applied to the homogenized crop; nnunet: "
        "rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma and mirroring, applied "
        "to slices as scanned, instead of pose and crop: the paper's baseline",
    )
    intensity: IntensityConfig = IntensityConfig()
    elastic: Part = Field(
        0.2,
        description="with unet.augmentation=homogenized: probability of an elastic deformation of a slice, "
        "by up to 2 % of the crop's side",
    )
    # AdamW, because on phantoms it reached a validation Dice (kidney / tumor, after 5040 slices) of 0.89 /
    # 0.80, the paper's SGD 0.82 / 0.79 (docs/measurements.md, "Choices").
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3,
        weight_decay=1e-2,
        epochs=100,
        min_epochs=50,
        patience=25,
        iterations=100,
        batch_size=12,
    )


class TrainConfig(ConfigSection):
    """Settings that all training stages share."""

    seed: int = Field(
        0, ge=0, lt=2**32, description="random seed of weights, sampling, jitter and the split into folds"
    )
    folds: int = Field(5, ge=2, description="number of folds into which the patients are split")
    fold: int | Literal["all"] = Field(0, description="the validation fold; all: train on every patient")
    shared: bool = Field(
        False,
        description="take normalization, frame and reference from the training patients of all folds, so "
        "that the models of all folds share them; --folds all sets it",
    )
    oversample: dict[str, Part] | None = Field(
        None,
        description="minimum fraction of sampled slices that contain each label; none: a third for each of "
        "the first two labels",
    )
    parts: Literal["all", "decoder", "first2-last2"] = Field(
        "all",
        description="with --from: parts that are trained further. all: every network; decoder: the U-Net's "
        "whole decoder; first2-last2: its first two encoder and last two decoder levels",
    )
    device: str = Field("auto", description="auto, cpu, cuda, a GPU by its number (cuda:1), mps")
    precision: Precision = Field(
        "auto", description="auto: mixed if the GPU or CPU has 16-bit arithmetic in hardware, else 32-true"
    )
    validation_slices: int = Field(
        512,
        ge=1,
        description="maximum number of validation slices, evenly spread over the patients; dims=3 takes all "
        "volumes",
    )


class PredictConfig(ConfigSection):
    """Settings of prediction, and thresholds below which a pose or crop is not trusted."""

    batch_size: int = Field(16, ge=1, description="slices per batch")
    precision: Precision = Field(
        "auto",
        description="precision of the U-Net; auto: mixed if the GPU or CPU has 16-bit arithmetic in "
        "hardware, else 32-true",
    )
    min_pose_dice: float = Field(
        0.8,
        ge=0,
        le=1,
        description="agreement (Eq. 1) with the reference's outline below which the fallback pose is used",
    )
    min_confidence: float = Field(
        0.9,
        ge=0,
        le=1,
        description="confidence (probability that the roll is right within 6 degrees) below which a warning "
        "is given",
    )
    mirror: bool | Literal["auto"] = Field(
        "auto",
        description="average with the prediction on the mirrored crop, which takes twice the U-Net's time; "
        "auto: if slices were mirrored in training",
    )
    crop_border: int = Field(
        1, ge=0, description="distance from the crop's border, in pixels, at which a label counts as cut off"
    )
