"""Collect the facts of a training that are saved with the model: numbers and hashes, no names of cases."""

from isopose.data.store import Store
from isopose.io.datasets import Case
from isopose.models.folder import Model
from isopose.models.info import ReferenceInfo, StageInfo, TrainingInfo
from isopose.progress import Reporter
from isopose.training.checkpoint import StageProgress
from isopose.training.manual_targets import Corrections
from isopose.training.targets import Reference


def reference_info(reference: Reference, store: Store) -> ReferenceInfo:
    """Return the facts of a reference patient in a store."""
    (record,) = [case.record for case in store.cases if case.record.id == reference.case]
    return ReferenceInfo(
        image_sha256=record.sources["image"],
        slice=reference.slice,
        chosen=reference.chosen,
        area_cm2=reference.area_cm2,
        symmetry=reference.symmetry,
        lean=reference.lean,
    )


def training_info(
    store: Store,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    source: Model | None,
    corrections: Corrections,
) -> TrainingInfo:
    """Return the facts of the cases of a training.

    Args:
        store: contains the cases.
        training: training cases.
        validation: validation cases, by which the weights were chosen.
        source: the fine-tuned model; its training scans count as training scans of the new model.
        corrections: poses and crops set by hand.
    """
    image_of = {case.record.id: case.record.sources["image"] for case in store.cases}
    earlier = source.info.training if source else TrainingInfo(())
    return TrainingInfo(
        images_sha256=(*(image_of[case.id] for case in training), *earlier.images_sha256),
        validation_images_sha256=(
            *(image_of[case.id] for case in validation),
            *earlier.validation_images_sha256,
        ),
        cases=len(training),
        patients=len({case.patient for case in training}),
        validation_cases=len(validation),
        from_weights_sha256=source.weights_sha256 if source else None,
        corrections_sha256=tuple(sorted(correction.sha256 for correction in corrections.values())),
    )


def stages_info(stages: list[StageProgress]) -> dict[str, StageInfo]:
    """Return the number of epochs and the best epoch of each stage."""
    return {
        stage.history[0]["stage"]: StageInfo(stage.epoch, stage.best_epoch, stage.best) for stage in stages
    }


def warn_of_leakage(
    source: Model | None, stored: Store, validation: tuple[Case, ...], reporter: Reporter
) -> None:
    """Warn if validation patients are among the training patients of the model to fine-tune."""
    seen = set(source.info.training.images_sha256) if source else set()
    ids = {case.id for case in validation}
    leaked = sum(case.record.id in ids and case.record.sources["image"] in seen for case in stored.cases)
    if leaked:
        reporter.say(
            f"warning: {leaked} of {len(validation)} validation cases are training cases of the model "
            "to fine-tune: their scores are too good, and training may stop too late"
        )
