"""Fingerprint and preprocessing against nnU-Net v2's, on the same phantoms with as many processes.

    python benchmarks/preprocessing.py --output /tmp/preprocessing [--sizes 128 256 512] [--processes 2]

Needs nnU-Net (make peers). From files to what training reads, each ROUNDS times in turn, in a process of
its own that has its libraries loaded and no workers yet, with nothing kept: isopose's fingerprint and store;
nnU-Net's fingerprint, plans and 2D preprocessing. The table goes to stdout and to OUTPUT/preprocessing.md.
"""

import argparse
import contextlib
import importlib
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from isopose.data.fingerprint import fingerprint_of
from isopose.data.store import write_store
from isopose.files import write_text
from isopose.io.datasets import open_dataset
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.study import nnunet
from isopose.study.arms import Peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=SIDES, help="one round of one side, here, in the folder OUTPUT")
    given = parser.parse_args()
    if given.one:
        print(SIDES[given.one](given.output, given.sizes[0], given.processes))
        return
    lines = [f"{given.cases} phantoms of {given.slices} slices, {given.processes} processes", ""]
    lines += ["| pixels | isopose, s | nnU-Net, s | times | stored: isopose, MB | nnU-Net, MB |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    # One place for all sizes: nnU-Net reads where its folders are only once.
    with tempfile.TemporaryDirectory() as place:
        lines += [row(Path(place), size, given) for size in given.sizes]
    print("\n".join(lines))
    write_text(given.output / "preprocessing.md", "\n".join(lines) + "\n")


def row(root: Path, size: int, given: argparse.Namespace) -> str:
    """One size's line; the folder is empty again afterwards."""
    write_cohort(
        root / "cohort", cases=given.cases, slices=given.slices, size=size, seed=6, test_fraction=0,
        workers=given.processes,
    )  # fmt: skip
    ours_s, theirs_s, sizes = [], [], (0.0, 0.0)
    for number in range(given.rounds):
        ours_s.append(alone("ours", root, size, given.processes))
        theirs_s.append(alone("theirs", root, size, given.processes))
        sizes = megabytes(root / "ours"), megabytes(root / "theirs" / "preprocessed")
        for folder in ("ours", "theirs"):
            shutil.rmtree(root / folder)
        print(f"{size}: round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    shutil.rmtree(root / "cohort")
    a, b = statistics.median(ours_s), statistics.median(theirs_s)
    return f"| {size} | {a:.2f} | {b:.2f} | {b / a:.1f} | {sizes[0]:.0f} | {sizes[1]:.0f} |"


def alone(side: str, root: Path, size: int, processes: int) -> float:
    """Seconds of one round in a process of its own."""
    given = ["--one", side, "--output", str(root), "--sizes", str(size), "--processes", str(processes)]
    done = subprocess.run([sys.executable, __file__, *given], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def ours(root: Path, size: int, processes: int) -> float:
    dataset = open_dataset(root / "cohort")
    config = load_config(settings=[f"data.size={size}"]).data
    started = time.perf_counter()
    fingerprint = fingerprint_of(dataset.cases, dataset.labels, config, workers=processes)
    write_store(root / "ours", dataset.cases, fingerprint, dataset.labels, config, workers=processes)
    return time.perf_counter() - started


def theirs(root: Path, _size: int, processes: int) -> float:
    folder, dataset = root / "theirs", open_dataset(root / "cohort")
    nnunet._set_environment(folder / "run", folder)
    nnunet._write_raw(folder / "raw" / nnunet.NAME, dataset)
    # Loaded before, as isopose's own libraries are.
    importlib.import_module("nnunetv2.experiment_planning.plan_and_preprocess_api")
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        nnunet._make_plans(folder, dataset, Peer(), processes)
    return time.perf_counter() - started


#: Each gives the seconds of one round.
SIDES = {"ours": ours, "theirs": theirs}


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
