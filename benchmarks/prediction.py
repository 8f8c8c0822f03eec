"""Prediction of whole scans against nnU-Net v2 2D: files in, label files out, on this machine.

    python benchmarks/prediction.py --study STUDY --output /tmp/prediction [--arm crop-half] [--scans 4]
        [--sizes 128 256 512 [--slices 40]]

STUDY is a folder of isopose study whose models are still there, with the arm and `nnunet` of one seed in the
default preset; needs nnU-Net (make peers). Both sides predict the study's test scans, or phantoms drawn for
this on so many pixels, in turn, --rounds times, each time in a process of its own: a first scan, from the
start of the process, then SCANS of them, warm. The tables go to stdout and to OUTPUT/prediction.md.

On more pixels both use the networks that they have: nnU-Net resamples to the spacing that it was trained on
and back. Trained on as many pixels its patches would be larger and slower than here.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isopose.files import read_json, write_text

#: Predicts scans into a folder.
Predictor = Callable[[Sequence[Any], Path], None]
SIDES = ("isopose", "isopose, 32 bits", "nnU-Net, plain", "nnU-Net, mirrored")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arm", default="crop-half")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scans", type=int, default=4, help="how many of the test scans")
    parser.add_argument("--sizes", type=int, nargs="+", help="draw phantoms of so many pixels a side")
    parser.add_argument("--slices", type=int, default=40, help="of the phantoms drawn")
    parser.add_argument("--one", choices=SIDES, help="predict here, and tell the peak of memory")
    parser.add_argument("--cohort", type=Path, help="with --one: whose scans")
    given = parser.parse_args()
    folders = {
        side: given.study / "runs" / "default" / arm / f"seed-{given.seed}-fold-0"
        for side, arm in zip(SIDES, (given.arm, given.arm, "nnunet", "nnunet"), strict=True)
    }
    if given.one is not None:
        print(json.dumps(timed(given.one, folders[given.one], given.cohort, given.scans)))
        return
    with tempfile.TemporaryDirectory() as place:
        cohorts: list[Path | None] = [drawn(Path(place), size, given) for size in given.sizes or ()]
        tables = [measured(given, cohort) for cohort in cohorts or [None]]
    print("\n\n".join(tables))
    write_text(given.output / "prediction.md", "\n\n".join(tables) + "\n")


def drawn(place: Path, size: int, given: argparse.Namespace) -> Path:
    """Phantoms that no study has seen."""
    from isopose.phantom import write_cohort

    folder = place / str(size)
    write_cohort(folder, cases=given.scans, slices=given.slices, size=size, seed=77, test_fraction=0)
    return folder


def timed(side: str, folder: Path, cohort: Path | None, count: int) -> dict[str, Any]:
    """In a process of its own: one scan from the start, then others, warm."""
    from isopose.io.datasets import open_dataset
    from isopose.io.scans import Scan
    from isopose.study.measure import peak_memory

    trained_on, scans = opened(folder)
    dataset = trained_on
    if cohort is not None:
        dataset = open_dataset(cohort)
        scans = [Scan(case.id, case.image) for case in dataset.cases]
    scans = scans[:count]
    with tempfile.TemporaryDirectory() as place:
        run = predictor(side, folder, trained_on)
        run(scans[:1], Path(place) / "first")
        first = time.time()
        started, used = time.perf_counter(), time.process_time()
        run(scans, Path(place) / "warm")
        return {
            "first": first,
            "seconds": (time.perf_counter() - started) / len(scans),
            "cpu": (time.process_time() - used) / len(scans),
            "peak_mb": peak_memory(),
            "dice": scores(Path(place) / "warm", dataset, [scan.name for scan in scans]),
            "shape": scan_shape(scans[0]),
        }


def measured(given: argparse.Namespace, cohort: Path | None) -> str:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(given.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--study", given.study, "--output", given.output]
            command += ["--arm", given.arm, "--seed", given.seed, "--scans", given.scans, "--one", side]
            command += [] if cohort is None else ["--cohort", cohort]
            started = time.time()
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
            values = json.loads(done.stdout.splitlines()[-1])
            found[side].append(values | {"cold": values["first"] - started})
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)

    def middle(side: str, key: str) -> float:
        return statistics.median(values[key] for values in found[side])

    shape = " x ".join(map(str, found[SIDES[0]][0]["shape"]))
    lines = [
        f"{given.scans} scans of {shape} voxels, medians of {given.rounds} rounds in turn; seconds a scan.",
        "",
        "| | warm | times isopose | range | CPU s | first scan, with start | peak, MB | Dice |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side in SIDES:
        seconds = [values["seconds"] for values in found[side]]
        lines.append(
            f"| {side} | {middle(side, 'seconds'):.3f} "
            f"| {middle(side, 'seconds') / middle(SIDES[0], 'seconds'):.1f} "
            f"| {min(seconds):.3f} to {max(seconds):.3f} | {middle(side, 'cpu'):.3f} "
            f"| {middle(side, 'cold'):.2f} | {middle(side, 'peak_mb'):.0f} | {found[side][0]['dice']} |"
        )
    return "\n".join(lines)


def opened(folder: Path) -> tuple[Any, list[Any]]:
    """The study's dataset as a run has it, and its test scans."""
    from isopose.io.datasets import open_dataset
    from isopose.io.scans import Scan

    job = read_json(folder / "job.json")
    dataset = open_dataset(Path(job["dataset"]), job["labels"])
    cases = tuple(replace(case, split=job["splits"][case.id]) for case in dataset.cases)
    scans = [Scan(case.id, case.image) for case in cases if case.split == "test"]
    return replace(dataset, cases=cases), scans


def predictor(side: str, folder: Path, dataset: Any) -> Predictor:
    if side.startswith("isopose"):
        return ours(folder, "32-true" if side.endswith("32 bits") else None)
    return theirs(folder, dataset, mirrored=side.endswith("mirrored"))


def ours(folder: Path, precision: str | None) -> Predictor:
    from isopose.inference.files import predict_scans
    from isopose.models.folder import load_model
    from isopose.presets import validate_config
    from isopose.progress import Silent

    model = load_model(folder / "model")
    if precision is not None:
        values = model.config.model_dump()
        values["predict"]["precision"] = precision
        model = replace(model, config=validate_config(values, "benchmark"))

    def run(scans: Sequence[Any], place: Path) -> None:
        predict_scans(model, scans, place, probabilities=False, reporter=Silent())

    return run


def theirs(folder: Path, dataset: Any, *, mirrored: bool) -> Predictor:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from isopose.presets import validate_config
    from isopose.study import nnunet
    from isopose.study.arms import BY_NAME
    from isopose.study.measure import Measuring

    job = read_json(folder / "job.json")
    config = validate_config(job["config"], "job.json")
    peer = BY_NAME["nnunet"].peer
    assert peer is not None
    device = torch.device("cpu")
    # Finished already: this only loads it.
    meter = Measuring(folder / "measures.json", device)
    trainer = nnunet.train(folder, Path(job["store"]), dataset, config, peer, 1, meter).trainer
    trainer.set_deep_supervision_enabled(False)
    axes = trainer.inference_allowed_mirroring_axes if mirrored else None
    made = nnUNetPredictor(
        use_mirroring=mirrored,
        perform_everything_on_device=False,
        device=device,
        allow_tqdm=False,
    )
    made.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, type(trainer).__name__, axes,
    )  # fmt: skip

    def run(scans: Sequence[Any], place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            inputs = [[str(scan.path)] for scan in scans]
            made.predict_from_files_sequential(inputs, [str(place / scan.name) for scan in scans])

    return run


def scores(place: Path, dataset: Any, names: list[str]) -> str:
    from isopose.evaluation.evaluate import evaluate
    from isopose.evaluation.summary import summarize

    found = evaluate(place, dataset, cases=names)
    means = {label: summarize(found.cases, label).statistics["dice"].mean for label in dataset.labels.names}
    return ", ".join(f"{label} {mean:.3f}" for label, mean in means.items() if mean is not None)


def scan_shape(scan: Any) -> tuple[int, ...]:
    from isopose.io.images import read_volume

    return read_volume(scan.path).array.shape[::-1]


if __name__ == "__main__":
    main()
