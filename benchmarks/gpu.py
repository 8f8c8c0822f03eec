"""Whether a GPU does what the CPUs do, and how near to its limit: all that it is asked, in four minutes.

    python benchmarks/gpu.py OUT [--device cuda] [--quick] [--only PART ...]

Each part is a process of its own, so that one that fails, runs out of memory or out of time stops no other.
Its rows say what was measured, what is expected, and whether it holds. Times are medians, after a first round
to warm up. On a CPU nothing is expected of speed, and --quick makes all as small as it can be. The table goes
to stdout and to OUT/gpu.md.

    step        the default preset's training step, as a share of a matrix product in bfloat16
    memory      the peak of two training steps against what --memory foresees
    weights     20 steps in float32 on the device and on the CPU, from the same seed
    prediction  isopose predict of 300 slices of 512 pixels
    full        isopose fit without enough memory ends in one line
    compiled    the same step with torch.compile, and whether the network's output is the same
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from growth import write_scan
from limit import training
from memory import CLASSES, peak_of
from torch.utils.flop_counter import FlopCounterMode

from isopose.config import Config
from isopose.data.fingerprint import Fingerprint
from isopose.data.normalization import Channel, Intensity
from isopose.devices import autocast, choose_device, choose_precision
from isopose.files import output_folder, write_text
from isopose.inference.files import predict_scans
from isopose.io.scans import find_scans
from isopose.labels import Labels
from isopose.models.folder import Model, load_model, save_model
from isopose.models.info import ModelInfo, TrainingInfo
from isopose.models.pipeline import Networks
from isopose.models.shipped import load_reference, load_shipped
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.progress import Silent
from isopose.study.measure import peak_memory, reset_peak
from isopose.training.memory import PROCESS_BYTES, fitted, training_bytes

#: Seconds for all parts together.
LIMIT = 240.0
#: What is hoped for: share of the product's rate, seconds of a prediction. No GPU has shown them yet.
LEAST_SHARE, MOST_SECONDS = 0.2, 5.0
#: Most difference of weights, as a part of how far they went; of outputs, as a part of their range.
OFF_WEIGHTS, OFF_OUTPUT, OFF_OUTPUT_16 = 0.05, 1e-3, 0.05
SMALL = ["data.size=64", "unet.base_features=4", "unet.optimizer.batch_size=4"]
#: Sets a limit that a training cannot keep, then runs isopose.
FULL = {
    "cuda": "import torch; total = torch.cuda.get_device_properties(0).total_memory; "
    "torch.cuda.set_per_process_memory_fraction(3e8 / total)",
    # Not the address space, of which PyTorch's CUDA build takes gigabytes for its libraries alone.
    "cpu": "import resource; resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))",
}


class Row(NamedTuple):
    """What was measured, its value, what is expected, and whether that holds; None: nothing is expected."""

    what: str
    value: str
    expected: str = ""
    holds: bool | None = None


Rows = Iterable[Row]


def settings(quick: bool) -> Config:
    """The default preset, or as small as it can be."""
    return load_config(settings=SMALL if quick else [])


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Median of the time that work takes on a device, after a first round."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def step(device: torch.device, quick: bool) -> Rows:
    """The default preset's training step."""
    config, precision = settings(quick), choose_precision("auto", device.type)
    batch, side = config.unet.optimizer.batch_size, 512 if quick else 2048 if device.type == "cpu" else 8192
    _, work = training(config, batch, precision, device=str(device))
    with FlopCounterMode(display=False) as counter:
        work()
    flops = counter.get_total_flops()
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    rate = 2.0 * side**3 / seconds(lambda: a @ a, device)
    took = seconds(work, device)
    share = flops / took / rate
    yield Row(f"training step of {batch} slices, {precision}", f"{1e3 * took:.1f} ms")
    yield Row("its rate", f"{flops / took / 1e12:.3g} TFLOP/s")
    yield Row(f"matrix product of {side} in bfloat16", f"{rate / 1e12:.3g} TFLOP/s")
    expected, holds = asked(device, f"at least {LEAST_SHARE}", share >= LEAST_SHARE)
    yield Row("the step's share of the product's rate", f"{share:.2f}", expected, holds)


def asked(device: torch.device, expected: str, holds: bool) -> tuple[str, bool | None]:
    """An expectation that only a GPU must meet."""
    return (expected, holds) if device.type == "cuda" else ("", None)


def memory(device: torch.device, quick: bool) -> Rows:
    """The peak of two steps against the plan, without a limit and with half of what that takes."""
    config, kind = settings(quick), device.type
    whole = training_bytes(config, CLASSES, kind)
    process = PROCESS_BYTES if kind == "cpu" else 0.0
    budget = process + (whole - process) / 2
    for name, chosen in (("", config), (" --memory of half", fitted(config, CLASSES, budget, kind))):
        found = peak_of(chosen, device)
        own, foreseen = found["peak"] - found["before"], found["foreseen"]
        # In a small step on a CPU, what libraries take once is most of it.
        expected, holds = asked(device, f"at most {foreseen:.0f} MB", own <= foreseen)
        yield Row(f"peak of training{name}", f"{own:.0f} MB of {foreseen:.0f} predicted", expected, holds)


def weights(device: torch.device, quick: bool) -> Rows:
    """A short training on the device and on the CPU; on a CPU, with other convolutions."""
    config, steps = load_config(settings=SMALL), 5 if quick else 20
    # 19 bits of a float32 are not what is compared.
    torch.backends.cudnn.allow_tf32 = False
    start, plain = trained(config, torch.device("cpu"), steps)
    with torch.backends.mkldnn.flags(enabled=device.type != "cpu"):
        _, other = trained(config, device, steps)
    off = {
        name: float((other[name] - value).norm() / (value - start[name]).norm())
        for name, value in plain.items()
        if value.is_floating_point()
    }
    worst = max(off, key=lambda name: off[name])
    what = f"weights after {steps} steps in float32, " + (
        "as on the CPU" if device.type == "cuda" else "without oneDNN"
    )
    yield Row(
        what,
        f"off by {off[worst]:.1e} of their change ({worst})",
        f"at most {OFF_WEIGHTS}",
        off[worst] <= OFF_WEIGHTS,
    )


def trained(config: Config, device: torch.device, steps: int) -> tuple[dict[str, torch.Tensor], ...]:
    """Weights on the CPU before and after some steps."""
    torch.manual_seed(0)
    objective, work = training(config, config.unet.optimizer.batch_size, "32-true", device=str(device))

    def now() -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().clone() for name, value in objective.state_dict().items()}

    before = now()
    for _ in range(steps):
        work()
    return before, now()


def prediction(device: torch.device, quick: bool) -> Rows:
    """A large scan, files in and files out, by networks of which only the roll network was trained."""
    slices, size = (4, 64) if quick else (300, 512)
    with tempfile.TemporaryDirectory() as place:
        scan, folder = Path(place) / "scan.nii.gz", Path(place) / "model"
        write_scan(scan, slices, size)
        save_model(folder, untrained(settings(quick)))
        model, results = load_model(folder, device), iter(range(9))

        def work() -> None:
            out = Path(place) / f"results-{next(results)}"
            [outcome] = predict_scans(model, find_scans([scan]), out, probabilities=False, reporter=Silent())
            if outcome.problem:
                raise SystemExit(outcome.problem)

        before = reset_peak(device)
        took = seconds(work, device, 1 if quick else 3)
        peak = peak_memory(device) - before
    expected, holds = asked(device, f"at most {MOST_SECONDS:.0f} s", took <= MOST_SECONDS)
    yield Row(f"prediction of {slices} slices of {size}, warm", f"{took:.2f} s", expected, holds)
    yield Row("its peak of memory", f"{peak:.0f} MB")


def untrained(config: Config) -> Model:
    """A model of phantoms whose U-Net and STN2 have their first, random weights."""
    intensity = Intensity((0.5, 99.5), -80.0, 100.0, 400.0, 95.0, 75.0, -200.0, 900.0)
    spacing, body = (1.0, 1.0, 1.0), (250.0, 200.0)
    channels = (Channel("CT", intensity),)
    fingerprint = Fingerprint(1, 1, spacing, spacing, spacing, 3.0, 3, 3, channels, body, body, 300.0, ())
    labels = Labels.create({"kidney": 1, "tumor": 2})
    networks = Networks(config, labels.classes, load_reference().mask, intensity.air, intensity.top)
    if networks.pose.roll is not None:
        load_shipped(networks.pose.roll)
    return Model(networks.eval(), config, labels, fingerprint, ModelInfo(TrainingInfo((), patients=1)))


def full(device: torch.device, quick: bool) -> Rows:  # noqa: ARG001 - a lack of memory has one size
    """isopose fit in a process that may not have the memory that it needs."""
    with tempfile.TemporaryDirectory() as place:
        data = write_cohort(Path(place) / "data", cases=2, slices=8, size=64, seed=2, test_fraction=0)
        changes = ["unet.optimizer.epochs=1", "unet.optimizer.iterations=2", "crop.enabled=false"]
        changes += ["unet.input=full", "unet.optimizer.batch_size=4096", f"train.device={device}"]
        changes += ["data.size=64"]
        words = ["fit", data, "--model", Path(place) / "model", "--fold", "all"]
        words += [part for change in changes for part in ("--set", change)]
        start = f"{FULL[device.type]}; from isopose.cli import main; main()"
        command = [sys.executable, "-c", start, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        left = [path.name for path in Path(place).rglob("*.partial.*")]
    lines = [line for line in done.stderr.splitlines() if line.startswith("isopose: ")]
    said = len(lines) == 1 and lines[0].startswith("isopose: out of memory; lower the batch size")
    yield Row(
        "isopose fit without enough memory",
        f"exit code {done.returncode}; {lines[-1] if lines else 'no line'}",
        "1, and one line that says what to lower",
        done.returncode == 1 and said and "Traceback" not in done.stderr and not left,
    )


def compiled(device: torch.device, quick: bool) -> Rows:
    """The step of a U-Net that went through torch.compile, and its output against the plain one's."""
    config, precision = settings(quick), choose_precision("auto", device.type)
    batch = config.unet.optimizer.batch_size
    plain = seconds(training(config, batch, precision, device=str(device))[1], device)
    started = time.perf_counter()
    objective, work = training(config, batch, precision, device=str(device), compiled=True)
    work()
    first = time.perf_counter() - started
    took = seconds(work, device)
    yield Row("the same step, compiled", f"{1e3 * took:.1f} ms, {took / plain:.2f} of the plain one's")
    yield Row("compiling", f"{first:.0f} s")
    unet = objective.eval().unet
    crop = torch.randn(2, 1, config.unet_size, config.unet_size, device=device)
    with torch.inference_mode(), autocast(precision, device.type):
        mine, expected = unet(crop)[0].float(), unet.forward(crop)[0].float()
    off = float((mine - expected).abs().max() / (expected.max() - expected.min()))
    most = OFF_OUTPUT if precision == "32-true" else OFF_OUTPUT_16
    yield Row(
        "its output against the plain one's", f"off by {off:.1e} of the range", f"at most {most}", off <= most
    )


PARTS: dict[str, Callable[[torch.device, bool], Rows]] = {
    "step": step,
    "memory": memory,
    "weights": weights,
    "prediction": prediction,
    "full": full,
    "compiled": compiled,
}


def rows_of(part: str, device: str, quick: bool, left: float) -> list[Row]:
    """Rows of a part, measured in a process of its own that has so many seconds."""
    if left <= 0:
        return [Row(part, "left out: no time is left")]
    if part == "compiled" and device == "cpu":
        return [Row(part, "left out on a CPU, where benchmarks/limit.py --compile measures it")]
    command = [sys.executable, __file__, ".", "--device", device, "--one", part, *["--quick"] * quick]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        return [Row(part, "stopped: no time is left", "a result", False)]
    rows = [Row(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        rows.append(Row(part, f"failed: {lines[-1] if lines else done.returncode}", "a result", False))
    return rows


def table(found: list[Row]) -> str:
    """Markdown."""
    said = {None: "", True: "yes", False: "**no**"}
    lines = ["| measured | value | expected | holds |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.what} | {row.value} | {row.expected} | {said[row.holds]} |" for row in found]
    return "\n".join(lines) + "\n"


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script itself")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="as small as it can be")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(PARTS)}; repeated")] = None,
    one: Annotated[str | None, typer.Option(help="measure this part here")] = None,
) -> None:
    """Measure all parts within the time limit."""
    chosen = choose_device(device)
    if one is not None:
        for row in PARTS[one](chosen, quick):
            print(json.dumps(row), flush=True)
        return
    started, found = time.monotonic(), []
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "CPU"
    head = f"{name}, PyTorch {torch.__version__}{', as small as it can be' if quick else ''}\n\n"
    output_folder(output)
    for part in only or PARTS:
        found += rows_of(part, str(chosen), quick, LIMIT - (time.monotonic() - started))
        # Whatever comes next, what is there is kept.
        write_text(output / "gpu.md", head + table(found))
        typer.echo(f"{part}: after {time.monotonic() - started:.0f} s", err=True)
    typer.echo(head + table(found), nl=False)


if __name__ == "__main__":
    typer.run(main)
