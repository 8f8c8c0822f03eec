"""Prediction of whole scans against nnU-Net v2 2D: files in, label files out, on this machine.

    python benchmarks/prediction.py --study STUDY --output /tmp/prediction [--arm crop-half] [--rounds 5]

STUDY is a folder of isopose study whose models are still there, with the arm and `nnunet` of one seed in the
default preset; needs nnU-Net (make peers). Both predict the study's test scans in turn, warm, ROUNDS times;
then each predicts one scan as a process of its own, from its start to its end, for time and peak memory. The
tables go to stdout and to OUTPUT/prediction.md.
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
    parser.add_argument("--one", choices=SIDES, help="predict one scan here, and tell the peak of memory")
    given = parser.parse_args()
    folders = {
        side: given.study / "runs" / "default" / arm / f"seed-{given.seed}-fold-0"
        for side, arm in zip(SIDES, (given.arm, given.arm, "nnunet", "nnunet"), strict=True)
    }
    if given.one is not None:
        from isopose.study.measure import peak_memory

        dataset, scans = opened(folders[given.one])
        with tempfile.TemporaryDirectory() as place:
            predictor(given.one, folders[given.one], dataset)(scans[:1], Path(place))
        print(json.dumps({"peak_mb": peak_memory()}))
        return
    table = measured(folders, given.rounds, given)
    print(table)
    write_text(given.output / "prediction.md", table + "\n")


def measured(folders: dict[str, Path], rounds: int, given: argparse.Namespace) -> str:
    dataset, scans = opened(folders[SIDES[0]])
    predictors = {side: predictor(side, folder, dataset) for side, folder in folders.items()}
    warm: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    dice: dict[str, str] = {}
    for number in range(rounds + 1):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as place:
                started, used = time.perf_counter(), time.process_time()
                predictors[side](scans, Path(place))
                # The first round warms up.
                if number:
                    warm[side].append((time.perf_counter() - started) / len(scans))
                    cpu[side].append((time.process_time() - used) / len(scans))
                else:
                    dice[side] = scores(Path(place), dataset, [scan.name for scan in scans])
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    cold: dict[str, list[float]] = {side: [] for side in SIDES}
    peak: dict[str, float] = {}
    for _ in range(rounds):
        for side in SIDES:
            started = time.perf_counter()
            command = [sys.executable, __file__, "--study", given.study, "--output", given.output]
            command += ["--arm", given.arm, "--seed", str(given.seed), "--one", side]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
            cold[side].append(time.perf_counter() - started)
            peak[side] = max(peak.get(side, 0.0), json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    shape = " x ".join(map(str, scan_shape(scans[0])))
    ours = statistics.median(warm[SIDES[0]])
    lines = [
        f"{len(scans)} scans of {shape} voxels, medians of {rounds} rounds in turn; seconds a scan.",
        "",
        "| | warm | times isopose | range | CPU s | cold, one scan | peak, MB | Dice |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side in SIDES:
        middle = statistics.median(warm[side])
        lines.append(
            f"| {side} | {middle:.3f} | {middle / ours:.1f} | {min(warm[side]):.3f} to {max(warm[side]):.3f} "
            f"| {statistics.median(cpu[side]):.3f} | {statistics.median(cold[side]):.2f} | {peak[side]:.0f} "
            f"| {dice[side]} |"
        )
    return "\n".join(lines)


def opened(folder: Path) -> tuple[Any, list[Any]]:
    """The study's dataset as a run has it, and its test scans."""
    from isopose.inference.scans import Scan
    from isopose.io.datasets import open_dataset

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
    from isopose.config import validate_config
    from isopose.inference.scans import predict_scans
    from isopose.models.folder import load_model
    from isopose.progress import Silent

    model = load_model(folder / "model")
    if precision is not None:
        values = model.config.model_dump()
        values["predict"]["precision"] = precision
        model = replace(model, config=validate_config(values, "benchmark"))

    def run(scans: Sequence[Any], place: Path) -> None:
        predict_scans(model, scans, place, probabilities=False, steps=False, reporter=Silent())

    return run


def theirs(folder: Path, dataset: Any, *, mirrored: bool) -> Predictor:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from isopose.config import validate_config
    from isopose.study import nnunet
    from isopose.study.arms import BY_NAME
    from isopose.study.measure import Measuring

    job = read_json(folder / "job.json")
    config = validate_config(job["config"], "job.json")
    peer = BY_NAME["nnunet"].peer
    assert peer is not None
    # Finished already: this only loads it.
    meter = Measuring(folder / "measures.json")
    trainer = nnunet.train(folder, Path(job["store"]), dataset, config, peer, 1, meter).trainer
    trainer.set_deep_supervision_enabled(False)
    axes = trainer.inference_allowed_mirroring_axes if mirrored else None
    made = nnUNetPredictor(
        use_mirroring=mirrored,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    made.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, type(trainer).__name__, axes,
    )  # fmt: skip

    def run(scans: Sequence[Any], place: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            inputs = [[str(scan.path)] for scan in scans]
            made.predict_from_files_sequential(inputs, [str(place / scan.name) for scan in scans])

    return run


def scores(place: Path, dataset: Any, names: list[str]) -> str:
    from isopose.evaluation.evaluate import evaluate
    from isopose.evaluation.summary import summarise

    found = evaluate(place, dataset, cases=names)
    means = {label: summarise(found.cases, label).dice.mean for label in dataset.labels.names}
    return ", ".join(f"{label} {mean:.3f}" for label, mean in means.items() if mean is not None)


def scan_shape(scan: Any) -> tuple[int, ...]:
    from isopose.io.images import read_volume

    return read_volume(scan.path).array.shape[::-1]


if __name__ == "__main__":
    sys.exit(main())
