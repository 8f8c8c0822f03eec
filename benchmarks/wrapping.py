"""What isopose wrap adds to the command that it wraps, for each scan.

    python benchmarks/wrapping.py OUT [--slices 300] [--size 512] [--scans 2] [--rounds 1] [--workers 0]

Each scan is a phantom's, repeated along z. The command is a program that reads the homogenized scan, marks
bone by a threshold, and writes a label map. isopose wrap runs in this process, once on a small scan to warm
up, then ROUNDS times on each scan; the table has medians. A step's time is that of all that it calls, but for
other steps. On a machine that others use, look at CPU seconds. With --workers so many scans are wrapped at a
time, each in its process, as isopose wrap --workers does; seconds are then divided by their number, which is
what a scan adds to the time of many. The table goes to stdout and to OUT/wrapping.md.
"""

import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from growth import write_scan
from parts import timed

from isopose.config import HomogenizeConfig
from isopose.devices import one_thread
from isopose.files import output_folder, write_text
from isopose.homogenize.command import read_command
from isopose.homogenize.wrap import open_scans, wrap
from isopose.parallel import in_order
from isopose.progress import Silent, Terminal

#: Steps, and the functions that take them, where they are called.
FILES = {
    "reading, and hashes of what is read": (
        "isopose.homogenize.case.read_channels",
        "isopose.homogenize.case.hash_of_channels",
        "isopose.homogenize.command_output.read_volume",
        "isopose.homogenize.command_output.read_labels",
    ),
    "writing, and hashes of what is written": (
        "isopose.homogenize.case.write_image",
        "isopose.homogenize.wrapped.write_image",
        "isopose.io.results.formats.write_labels",
        "isopose.homogenize.record.hashes",
        "isopose.outputs.hashes",
    ),
}
OWN = {
    "body mask": ("isopose.data.preprocess.find_body",),
    "into the frame": ("isopose.homogenize.scan.prepare_as",),
    "poses": ("isopose.homogenize.scan.slice_poses_of", "isopose.homogenize.scan.find_poses"),
    "the image homogenized": ("isopose.homogenize.scan.homogenized_image",),
    "labels restored": ("isopose.homogenize.command_output.restored_labels",),
}
COMMAND = {"the command": ("isopose.homogenize.wrap.run_command",)}
STEPS = {**FILES, **COMMAND, **OWN}
ELSE, REST, WHOLE = "all else", "beside the command, reading and writing", "the whole"
#: A segmenter of one line.
SEGMENTER = (
    "import sys; import SimpleITK as sitk; "
    "sitk.WriteImage(sitk.Cast(sitk.ReadImage(sys.argv[1]) > 250, sitk.sitkUInt8), sys.argv[2])"
)
#: Seconds by step.
Seconds = dict[str, float]


def wrapped(scan: Path) -> tuple[Seconds, Seconds]:
    """Seconds and CPU seconds of each step of one scan, of all else, and of the whole."""
    command = read_command([sys.executable, "-c", SEGMENTER, "{input}", "{output}"])
    with (
        tempfile.TemporaryDirectory() as place,
        timed(STEPS) as wall,
        timed(STEPS, "process_time") as cpu,
    ):
        before, started, used = of_children(), time.perf_counter(), time.process_time()
        [outcome] = wrap(
            open_scans(scan), Path(place) / "results", command, HomogenizeConfig(), reporter=Silent()
        )
        whole, busy, its_own = (
            time.perf_counter() - started,
            time.process_time() - used,
            of_children() - before,
        )
    cpu["the command"] += its_own
    if outcome.problem:
        raise SystemExit(outcome.problem)
    return finished(wall, whole), finished(cpu, busy + its_own)


def wrapped_warm(small: Path, rounds: int, scan: Path) -> list[tuple[Seconds, Seconds]]:
    """Seconds of each round of one scan, after the process has warmed up on a small one."""
    wrapped(small)
    with one_thread():
        return [wrapped(scan) for _ in range(rounds)]


def of_children() -> float:
    """CPU seconds of the programs that this process has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def finished(steps: Seconds, whole: float) -> Seconds:
    """Seconds by step, with all else, what is neither the command nor files, and the whole."""
    others = sum(steps[step] for step in (*FILES, *COMMAND))
    return {**steps, ELSE: whole - sum(steps.values()), REST: whole - others, WHOLE: whole}


def table(found: list[tuple[Seconds, Seconds]]) -> str:
    """Markdown: medians of wall and CPU seconds."""
    lines = ["| of a scan | seconds | CPU seconds |", "| --- | --- | --- |"]
    for step in (*COMMAND, *FILES, REST, *OWN, ELSE, WHOLE):
        cells = [f"{statistics.median(one[step] for one in kind):.2f}" for kind in zip(*found, strict=True)]
        name = f"of it: {step}" if step in OWN or step == ELSE else step
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    slices: int = 300,
    size: Annotated[int, typer.Option(help="pixels a side")] = 512,
    scans: int = 2,
    rounds: int = 1,
    workers: Annotated[int, typer.Option(help="processes that wrap at the same time; 0: this one")] = 0,
) -> None:
    """Wrap the command around phantoms and share out the time."""
    output_folder(output)
    with tempfile.TemporaryDirectory() as place:
        small = Path(place) / "small.nii.gz"
        write_scan(small, 4, 64)
        paths = [Path(place) / f"scan_{number}.nii.gz" for number in range(scans)]
        for number, path in enumerate(paths):
            write_scan(path, slices, size, seed=3 + number)
        work = partial(wrapped_warm, small, rounds)
        with Terminal().counting("wrapping") as progress:
            each = list(in_order(work, paths, name=str, workers=workers, progress=progress))
    at_once = max(workers, 1)
    found = [
        ({step: seconds / at_once for step, seconds in wall.items()}, cpu)
        for rounds_of_one in each
        for wall, cpu in rounds_of_one
    ]
    write_text(output / "wrapping.md", table(found))
    typer.echo(table(found), nl=False)


if __name__ == "__main__":
    typer.run(main)
