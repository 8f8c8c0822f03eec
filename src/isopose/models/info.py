"""Facts of a model's training that are saved with it: numbers and hashes, no names of patients or cases."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from isopose.strict import STRICT, Count, first_problem

#: One epoch of a stage: ``stage``, ``epoch``, ``loss``, ``learning_rate``, seconds and validation's numbers.
Row = dict[str, str | int | float]
#: Below this slope more than half of a patient's rotation remains in the homogenized slice, which then varies
#: nearly as much as before: the network has not learned rotation.
MIN_SLOPE = 0.5


@dataclass(frozen=True)
class ReferenceInfo:
    """The reference patient; fields are None in models of versions that did not record them.

    Args:
        image_sha256: of the reference's scan.
        slice: index of the reference slice, from the feet.
        chosen: how it was chosen.
        area_cm2: area of the body in that slice.
        symmetry: Dice of that slice's outline and its mirror image.
        lean: angle by which the slice was turned upright, radians.
    """

    image_sha256: str | None = None
    slice: Count | None = None
    chosen: str | None = None
    area_cm2: Annotated[float, Field(gt=0)] | None = None
    symmetry: float | None = None
    lean: float | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class TrainingInfo:
    """The cases of a training.

    Args:
        images_sha256: of the training scans, those of the model it started from included.
        validation_images_sha256: of the validation scans, in the same way.
        cases: number of training scans.
        patients: number of training patients.
        validation_cases: number of validation scans.
        from_weights_sha256: of the model it started from; None without one.
        corrections_sha256: of the corrections that it was trained with.
    """

    images_sha256: tuple[str, ...]
    validation_images_sha256: tuple[str, ...] = ()
    cases: Count = 0
    patients: Count = 0
    validation_cases: Count = 0
    from_weights_sha256: str | None = None
    corrections_sha256: tuple[str, ...] = ()
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class StageInfo:
    """One stage of a training.

    Args:
        epochs: that were trained.
        best_epoch: the epoch, from 1, whose weights were kept.
        best: its smoothed validation score; None without validation.
    """

    epochs: Count
    best_epoch: Count
    best: float | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class RollCheck:
    """How well a trained STN1 estimates the roll; medians over slices.

    Args:
        slope: change of the estimated angle divided by the angle by which a slice was rotated; 1 is correct,
            0 means that the network has not learned rotation.
        degrees_from_moments: difference from the angle of the mask's moments, as an axis (at most 90).
        degrees_from_truth: difference from the true angle, which is known only for phantoms; else None.
        moments_from_truth: difference of the moments' angle from the true one, for comparison.
        slices: number of slices that were measured.
        patients: whose slices these are; training patients where there is no validation.
    """

    slope: float
    degrees_from_moments: float
    degrees_from_truth: float | None
    moments_from_truth: float | None
    slices: Count
    patients: Literal["validation", "training"]
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    @property
    def learned(self) -> bool:
        """Whether the network follows turns well enough to bring patients to one roll."""
        return self.slope >= MIN_SLOPE


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model's training that are saved with it.

    Args:
        training: the cases.
        reference: the reference patient.
        stages: by name, in the order of training.
        turning: how well STN1 estimates the roll; None where no trained network estimates it.
        history: a row for each epoch of each stage.
    """

    training: TrainingInfo
    reference: ReferenceInfo = ReferenceInfo()
    stages: dict[str, StageInfo] = field(default_factory=dict)
    turning: RollCheck | None = None
    history: tuple[Row, ...] = ()
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        if not all({"stage", "epoch"} <= row.keys() for row in self.history):
            raise ValueError("history: expected rows with stage and epoch")

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON holds exactly."""
        values = _INFO.dump_python(self, mode="json")
        if not self.training.corrections_sha256:
            del values["training"]["corrections_sha256"]
        # Fields of the reference that are None are left out.
        values["reference"] = {key: value for key, value in values["reference"].items() if value is not None}
        return {key: values[key] for key in ("reference", "training", "stages", "turning", "history")}

    @classmethod
    def from_json(cls, values: Any) -> "ModelInfo":
        """Return the info from values of :meth:`to_json`; keys that older models lack get their defaults.

        Raises:
            ValueError: a key is unknown, a value of another type or out of range.
        """
        try:
            return _INFO.validate_json(json.dumps(values))
        except ValidationError as error:
            raise ValueError(f"info.{first_problem(error)}") from None


_INFO = TypeAdapter(ModelInfo)
