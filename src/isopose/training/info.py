"""What is kept with a model of its training: numbers and hashes, no case's name."""

from typing import Any

from isopose.data.store import Store
from isopose.io.datasets import Case
from isopose.models.folder import Model
from isopose.progress import Reporter
from isopose.training.checkpoint import Progress
from isopose.training.targets import Reference
from isopose.training.turning import Turning


def reference_info(reference: Reference, store: Store) -> dict[str, Any]:
    """What is kept of the reference: numbers and a hash, no case's name."""
    (record,) = [case.record for case in store.cases if case.record.id == reference.case]
    return {
        "image_sha256": record.sources["image"],
        "slice": reference.slice,
        "chosen": reference.chosen,
        "area_cm2": reference.area_cm2,
        "symmetry": reference.symmetry,
        "lean": reference.lean,
    }


def training_info(
    stages: list[Progress],
    turning: Turning | None,
    reference: dict[str, Any],
    store: Store,
    training: tuple[Case, ...],
    validation: tuple[Case, ...],
    source: Model | None,
) -> dict[str, Any]:
    """What is kept with the model: numbers and hashes, no case's name."""
    by_id = {case.record.id: case.record for case in store.cases}
    # What the model to begin from has seen, this one has seen as well.
    before = source.info["training"] if source else {}

    def hashes(cases: tuple[Case, ...], key: str) -> list[str]:
        return [*(by_id[case.id].sources["image"] for case in cases), *before.get(key, ())]

    return {
        "reference": reference,
        "training": {
            "cases": len(training),
            "patients": len({case.patient for case in training}),
            "validation_cases": len(validation),
            "images_sha256": hashes(training, "images_sha256"),
            "validation_images_sha256": hashes(validation, "validation_images_sha256"),
            "from_weights_sha256": source.weights_sha256 if source else None,
        },
        "stages": {
            stage.history[0]["stage"]: {
                "epochs": stage.epoch,
                "best_epoch": stage.best_epoch,
                "best": stage.best,
            }
            for stage in stages
        },
        "turning": turning.to_json() if turning else None,
        "history": [row for stage in stages for row in stage.history],
    }


def warn_of_seen(
    source: Model | None, stored: Store, validation: tuple[Case, ...], reporter: Reporter
) -> None:
    """Say where the patients that decide when to stop are among those of the model to begin from."""
    known = set(source.info["training"]["images_sha256"]) if source else set()
    names = {case.id for case in validation}
    both = [c for c in stored.cases if c.record.id in names and c.record.sources["image"] in known]
    if both:
        reporter.say(
            f"warning: {len(both)} of {len(validation)} validation cases trained the model that this one "
            "begins from: their scores flatter, and training may stop too late"
        )
