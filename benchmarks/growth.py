"""How time and memory of prediction grow with the slices of a scan and with their pixels.

    python benchmarks/growth.py MODEL --output /tmp/growth [--slices 100 300 1000 ...] [--sides 128 256 512]

MODEL is any model of slices. Each scan is a phantom's, repeated along z to so many slices, drawn on so many
pixels a side; each prediction is a process of its own. Of a process's memory only what lies in no file is
needed (Linux tells it apart; looked at every 10 ms); arrays in files (isopose/scratch.py) are dropped when
other programs ask for room. The table goes to stdout and to OUTPUT/growth.md, a plot to OUTPUT/growth.png.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isopose.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000])
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--one", type=Path, help="predict this scan here")
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(predicted(given.model, given.one)))
        return
    lines = ["| slices | side | seconds | ms a slice | needed, MB | beyond the program | and in files |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    print("\n".join(lines))
    along = [(count, given.sides[0]) for count in given.slices]
    across = [(given.slices[0], side) for side in given.sides]
    cases: dict[tuple[int, int], dict[str, float]] = {case: {} for case in (*along, *across)}
    for count, side in cases:
        with tempfile.TemporaryDirectory() as place:
            scan = Path(place) / "scan.nii.gz"
            write_scan(scan, count, side)
            command = [sys.executable, __file__, given.model, "--output", given.output, "--one", scan]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        found = cases[count, side] = json.loads(done.stdout.splitlines()[-1])
        lines.append(
            f"| {count} | {side} | {found['seconds']:.1f} | {1e3 * found['seconds'] / count:.1f} "
            f"| {found['needed_mb']:.0f} | {found['own_mb']:.0f} | {found['files_mb']:.0f} |"
        )
        print(lines[-1], flush=True)
    write_text(given.output / "growth.md", "\n".join(lines) + "\n")
    axes = {"slices": (given.slices, [cases[c] for c in along])}
    axes["pixels a side"] = (given.sides, [cases[c] for c in across])
    draw(axes, given.output / "growth.png")


def draw(axes: dict[str, tuple[list[int], list[dict[str, float]]]], path: Path) -> None:
    """Seconds and memory by slices and by pixels, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for plot, (name, (sizes, found)) in zip(figure.subplots(1, 2), axes.items(), strict=True):
        plot.loglog(sizes, [one["seconds"] for one in found], "o-", color="#0072b2", label="seconds")
        own = [one["own_mb"] for one in found]
        plot.loglog(sizes, own, "s--", color="#d55e00", label="MB needed beyond the program")
        plot.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        plot.minorticks_off()
        plot.set_xlabel(name)
        plot.grid(alpha=0.3)
        plot.legend(frameon=False)
    figure.savefig(path, dpi=110)


def write_scan(path: Path, slices: int, side: int, seed: int = 3) -> None:
    """A phantom of 20 slices, there and back along z until there are enough of them."""
    import numpy as np

    from isopose.geometry.volume import Volume
    from isopose.io.images import read_volume, write_image
    from isopose.phantom import write_cohort

    with tempfile.TemporaryDirectory() as place:
        write_cohort(Path(place) / "c", cases=1, slices=20, size=side, seed=seed, test_fraction=0)
        volume = read_volume(next((Path(place) / "c" / "imagesTr").glob("*.nii.gz")))
    # There and back again, so that the body goes on from slice to slice.
    there = np.concatenate([volume.array, volume.array[::-1]])
    array = np.resize(there, (slices, *there.shape[1:])).astype(np.int16)
    write_image(Volume(array, volume.world_from_index), path)


def predicted(model: Path, scan: Path) -> dict[str, float]:
    from isopose.inference.files import predict_scans
    from isopose.io.scans import find_scans
    from isopose.models.folder import load_model
    from isopose.progress import Silent

    loaded = load_model(model)
    with tempfile.TemporaryDirectory() as place, watched() as seen:
        started = time.perf_counter()
        [outcome] = predict_scans(
            loaded, find_scans([scan]), Path(place), probabilities=False, reporter=Silent()
        )
        if outcome.problem:
            raise SystemExit(outcome.problem)
        seconds = time.perf_counter() - started
    (before, files), needed = seen[0], max(one for one, _ in seen)
    return {
        "needed_mb": needed,
        "own_mb": needed - before,
        "files_mb": max(one for _, one in seen) - files,
        "seconds": seconds,
    }


@contextmanager
def watched() -> Iterator[list[tuple[float, float]]]:
    """MB of this process that lie in no file, and that do, every 10 ms while the block runs."""
    seen, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def resident() -> tuple[float, float]:
    """MB of this process that lie in no file, and that do."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return kilobytes["RssAnon"] / 1024, (kilobytes["RssFile"] + kilobytes["RssShmem"]) / 1024


if __name__ == "__main__":
    main()
