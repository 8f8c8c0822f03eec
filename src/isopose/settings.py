"""Every setting of a model, its default and its meaning, section by section.

:class:`isopose.config.Config` joins the sections and says which settings exclude each other.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from isopose.choices import Contrast, Modality, Normalization, Per, Plane, Undrawn

#: Pixels along a side of a localization network's input.
Side = Literal[32, 64, 96, 128, 192, 256, 384, 512]
#: A part of a whole.
Part = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        0.9,
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
