"""One run of a study, in its own process to measure its time and memory: train, predict, score."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isopose.api.images import as_volume
from isopose.api.pipeline import Pipeline
from isopose.api.wrapping import wrap
from isopose.config import Config
from isopose.devices import choose_device, choose_precision
from isopose.errors import InputError, IsoposeError
from isopose.evaluation.evaluate import Evaluation, evaluate
from isopose.evaluation.summary import badness
from isopose.files import only_writer, read_json, write_json
from isopose.inference.files import predict_scans
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import write_labels
from isopose.io.scans import Scan, scan_of
from isopose.io.truth import true_poses
from isopose.models.folder import Model, for_prediction, load_model
from isopose.presets import validate_config
from isopose.progress import Silent
from isopose.report.steps import write_steps
from isopose.report.tables import write_evaluation
from isopose.study import nnunet
from isopose.study.arms import BY_NAME, DIRECT_HOMOGENIZED, UNTRAINED
from isopose.study.lengths import lengths_of
from isopose.study.measure import Measuring, circumstances, size_of, timed
from isopose.study.sides import count_sides
from isopose.training.fit import fit


def write_job(
    folder: Path,
    dataset: Dataset,
    config: Config,
    *,
    arm: str,
    store: Path,
    source: Path | None,
    labels: dict[str, int] | None,
    path: Path,
    sizes: dict[str, float],
    predict: bool,
    workers: int,
    trial: bool = False,
) -> None:
    """Write ``job.json`` with all that a run needs; splits are listed by case."""
    write_json(
        folder / "job.json",
        {
            "arm": arm,
            "dataset": str(path.resolve()),
            "labels": labels,
            "splits": {case.id: case.split for case in dataset.cases},
            "config": config.model_dump(mode="json"),
            "store": str(store.resolve()),
            "source": str(source.resolve()) if source else None,
            "sizes_mm": sizes,
            "predict": predict,
            "workers": workers,
            "trial": trial,
        },
    )


def run_job(folder: Path) -> None:
    """Do the run that ``job.json`` describes and write ``result.json``; an interrupted run is continued.

    Raises:
        IsoposeError: training failed or a scan could not be predicted.
    """
    job = read_json(folder / "job.json")
    if not isinstance(job, dict) or "splits" not in job:
        raise InputError(f"{folder}: expected a folder that isopose study made, with its job.json")
    # If the study was killed, its process for this run may still be working; wait for it.
    with only_writer(folder, wait=True):
        if not (folder / "result.json").exists():
            _run_job(folder, job)


def _run_job(folder: Path, job: dict[str, Any]) -> None:
    config = validate_config(job["config"], str(folder / "job.json"))
    opened = open_dataset(Path(job["dataset"]), job["labels"])
    splits = job["splits"]
    cases = tuple(replace(case, split=splits[case.id]) for case in opened.cases if case.id in splits)
    dataset = replace(opened, cases=cases)
    device = choose_device(config.train.device)
    meter = Measuring(folder / "measures.json", device)
    stn: dict[str, Any] = {"lengths": {}, "turning": None}
    arm = BY_NAME.get(job["arm"])
    if arm is not None and arm.peer is not None:
        shared, workers = Path(job["store"]), job["workers"]
        peer = nnunet.train(folder, shared, dataset, config, arm.peer, workers, meter)
        model, history, size = None, peer.history, peer.size
        versions = nnunet.versions() | circumstances(device, nnunet.precision(device))
    else:
        model = _make_model(folder, job, dataset, config, meter)
        history = list(model.info.history) if job["arm"] not in UNTRAINED else []
        if arm is not None:
            stns = {name: length.to_json() for name, length in lengths_of(config, arm, history).items()}
            stn = {"lengths": stns, "turning": model.info.to_json()["turning"]}
        size = size_of(model.pipeline)
        versions = circumstances(device, choose_precision(config.train.precision, device.type))
    result: dict[str, Any] = {
        "arm": job["arm"],
        "history": history,
        "size": size,
        "made": versions,
        "stn": stn,
    }
    if job["predict"]:
        test_cases = [case for case in cases if case.split == "test" and case.label is not None]
        scans = [scan_of(case) for case in test_cases]
        if model is None:
            nnunet.predict(peer, scans, dataset, folder, meter)
        elif job["arm"] == DIRECT_HOMOGENIZED:
            _predict_homogenized(model, Path(job["source"]), scans, folder / "predictions", meter)
        else:
            _predict_scans(model, scans, folder / "predictions", meter)
        names = [scan.name for scan in scans]
        evaluation = evaluate(folder / "predictions", dataset, cases=names, body_sizes_mm=job["sizes_mm"])
        write_evaluation(evaluation, folder / "scores")
        result["evaluation"] = evaluation.to_json()
        poses = true_poses(dataset.root)
        result["sides"] = count_sides(test_cases, dataset.labels, folder / "predictions", poses)
        if model is not None and config.dims == 2 and job["arm"] != DIRECT_HOMOGENIZED:
            result["shown"] = _draw_steps(model, scans, evaluation, folder / "shown")
    write_json(folder / "result.json", result | {"measures": meter.values})


def _make_model(
    folder: Path, job: dict[str, Any], dataset: Dataset, config: Config, meter: Measuring
) -> Model:
    source = load_model(Path(job["source"]), choose_device(config.train.device)) if job["source"] else None
    if job["arm"] in UNTRAINED:
        assert source is not None, "direct inference is with the source's model"
        if source.labels.names != dataset.labels.names:
            before, now = ", ".join(source.labels.names), ", ".join(dataset.labels.names)
            raise InputError(f"the source has the labels {before}, the dataset {now}: expected the same")
        return source
    return fit(
        dataset,
        folder / "model",
        config,
        source=source,
        resume=True,
        store=Path(job["store"]),
        workers=job["workers"],
        reporter=meter,
        trial=job.get("trial", False),
    )


def _predict_scans(model: Model, scans: Sequence[Scan], output: Path, meter: Measuring) -> None:
    """Predict each scan, including reading and writing, and measure the time."""
    model = for_prediction(model)
    with meter.counting("predict") as progress:
        for done, scan in enumerate(scans, start=1):
            if scan.name not in meter.values["predict"] or not (output / f"{scan.name}.nii.gz").exists():
                # Remove an earlier result that was not timed: the time to find it would be measured instead.
                (output / f"{scan.name}.json").unlink(missing_ok=True)
                with timed() as seconds:
                    [outcome] = predict_scans(model, [scan], output, probabilities=False, reporter=Silent())
                if outcome.problem:
                    raise IsoposeError(f"a test patient could not be predicted: {outcome.problem}")
                meter.keep("predict", scan.name, seconds)
            progress(done, len(scans))


def _predict_homogenized(
    model: Model, source: Path, scans: Sequence[Scan], output: Path, meter: Measuring
) -> None:
    """Predict each scan in the pose and size of the model's reference, and restore the prediction.

    Args:
        model: the source's model.
        source: its folder.
        scans: test patients.
        output: folder for the label maps, on the scans' own grids.
        meter: measures the time, including reading, homogenizing, restoring and writing.
    """
    pipeline = Pipeline(model)
    segment = wrap(lambda image: pipeline.predict(image).labels, reference=source, modality=model.modality)
    output.mkdir(parents=True, exist_ok=True)
    with meter.counting("predict") as progress:
        for done, scan in enumerate(scans, start=1):
            path = output / f"{scan.name}.nii.gz"
            if scan.name not in meter.values["predict"] or not path.exists():
                with timed() as seconds:
                    write_labels(as_volume(segment(scan.path)), path)
                meter.keep("predict", scan.name, seconds)
            progress(done, len(scans))


def _draw_steps(model: Model, scans: Sequence[Scan], evaluation: Evaluation, output: Path) -> dict[str, str]:
    """Draw the best, the median and the worst patient by Dice of the last label; return place to case.

    Patients in whom that structure is neither present nor predicted are left out, unless there are no others.
    """
    target = [name for name in evaluation.targets if name in model.labels.names][-1]
    marked = [case for case in evaluation.cases if case.scores[target].outcome != "empty"]
    order = sorted(marked or evaluation.cases, key=lambda case: badness(case.scores[target], "dice"))
    places = {"best": order[0].case, "median": order[len(order) // 2].case, "worst": order[-1].case}
    wanted = [scan for scan in scans if scan.name in places.values()]
    predict_scans(model, wanted, output, probabilities=False, reporter=Silent(), steps=write_steps)
    return places
