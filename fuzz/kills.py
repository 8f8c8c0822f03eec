"""``python fuzz/kills.py``: commands killed at random moments and given again end in the same bytes.

    python fuzz/kills.py --kills 30 --seed 1

Each command is first run undisturbed, which says how long it takes and what it writes. Then it is started,
killed (SIGKILL, with all its processes) after a random part of that time and given again, until it was killed
so many times; after every few kills it may finish, what it wrote is compared, and it begins anew. What is
compared is every file that is a result, byte by byte; of JSON what is no measured time.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Kills of one folder before it may finish.
OF_A_CHAIN = 3
#: Of measurements, which differ from run to run, and of what a run keeps for itself alone.
MEASURED = ("seconds", "_mb", "estimate", "minute", "time_to")
UNCOMPARED = (
    "tensorboard",
    "checkpoints",
    "tracking",
    "estimate.json",
    "report",
    "figures",
    "tables.tex",
    ".log",
    ".csv",
)

PREPROCESS = """
import sys
from pathlib import Path
from isopose.presets import load_config
from isopose.data.fingerprint import fingerprint_of
from isopose.data.store import write_store
from isopose.io.datasets import open_dataset

data = open_dataset(Path(sys.argv[1]))
config = load_config("default", None, ["data.size=64"]).data
fingerprint = fingerprint_of(data.cases, data.labels, config)
write_store(Path(sys.argv[2]), data.cases, fingerprint, data.labels, config, workers=2)
"""
SETTINGS = """
[data]
size = 64
[crop.optimizer]
epochs = 2
iterations = 6
batch_size = 4
[unet]
base_features = 4
[unet.optimizer]
epochs = 3
iterations = 8
batch_size = 4
[train]
precision = "32-true"
"""


@dataclass(frozen=True)
class Job:
    """A command that writes to a folder.

    Args:
        first: its arguments, for a folder.
        again: what is added when it is given again.
    """

    first: Callable[[Path], list[str]]
    again: tuple[str, ...] = ()


def jobs(place: Path) -> Mapping[str, Job]:
    """By name; ``place`` holds what ``prepare`` made."""
    data, isopose = str(place / "data"), [sys.executable, "-m", "isopose"]
    settings, model = str(place / "settings.toml"), str(place / "model")
    return {
        "preprocess": Job(lambda out: [sys.executable, "-c", PREPROCESS, data, str(out)]),
        "fit": Job(
            lambda out: [*isopose, "fit", data, "--model", str(out), "--config", settings, "--fold", "0"],
            ("--resume",),
        ),
        "predict": Job(
            lambda out: [
                *(*isopose, "predict", model, f"{data}/imagesTr", "--output", str(out), "--probabilities"),
                *("--steps", "--format", "nifti"),
            ]
        ),
        "homogenize": Job(lambda out: [*isopose, "homogenize", data, str(out), "--size", "128"]),
        "study": Job(
            lambda out: [
                *(*isopose, "study", data, "--output", str(out), "--arms", "plain,moments"),
                *("--config", settings, "--presets", "default", "--short-stns"),
            ]
        ),
    }


def prepare(place: Path) -> None:
    """A cohort, settings and a model."""
    isopose = [sys.executable, "-m", "isopose"]
    cohort = ["phantom", str(place / "data"), "--cases", "8", "--slices", "8", "--size", "64", "--seed", "3"]
    _run([*isopose, *cohort])
    (place / "settings.toml").write_text(SETTINGS)
    _run(jobs(place)["fit"].first(place / "model"))


def killed(name: str, job: Job, kills: int, place: Path, draw: random.Random) -> tuple[int, list[str]]:
    """Kill a command so many times, at random moments of an undisturbed run.

    Returns:
        How many times it was running when it was killed, and every difference that was found.
    """
    # The same folder each time, for some results name it.
    folder = place / name
    started = time.monotonic()
    _run(job.first(folder))
    seconds = time.monotonic() - started
    expected = written(folder)
    assert expected, f"{name} wrote nothing"
    done, wrong = 0, []
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        arguments = job.first(folder)
        for _ in range(min(OF_A_CHAIN, kills - done)):
            if not _run(arguments, kill_after=draw.uniform(0.05, 1.0) * seconds):
                break
            done += 1
            arguments = [*job.first(folder), *job.again]
        _run(arguments)
        found = written(folder)
        names = sorted({*expected, *found})
        differing = [each for each in names if expected.get(each) != found.get(each)]
        left = [str(path.relative_to(folder)) for path in folder.rglob("*.partial.*")]
        wrong += [f"{name} after {done} kills: {each}" for each in (*differing, *left)]
        print(f"{name}: {done} of {kills} kills, {len(wrong)} differences", file=sys.stderr, flush=True)
    return done, wrong


def written(folder: Path) -> dict[str, str]:
    """A hash of every result, by name."""
    out = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part in name for part in UNCOMPARED):
            continue
        data = path.read_bytes()
        if path.suffix == ".json":
            data = json.dumps(_unmeasured(json.loads(data)), sort_keys=True).encode()
        out[name] = hashlib.sha256(data).hexdigest()
    return out


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _unmeasured(v) for k, v in value.items() if not any(part in k for part in MEASURED)}
    return [_unmeasured(each) for each in value] if isinstance(value, list) else value


def _run(arguments: list[str], kill_after: float | None = None) -> bool:
    """Run a command; true where it was killed. It must end well where it is not."""
    process = subprocess.Popen(
        arguments,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, printed = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}: exit {process.returncode}: {printed[-2000:]}")
    return False


def main() -> int:
    """Print a table; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="preprocess,fit,predict,homogenize,study")
    given = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory(prefix="kills-") as made:
        place = Path(made)
        prepare(place)
        for name in given.commands.split(","):
            done, differences = killed(
                name, jobs(place)[name], given.kills, place, random.Random(f"{given.seed} {name}")
            )
            rows.append(f"| {name} | {done} | {len(differences)} |")
            wrong += differences
    print("| command | kills | differences |\n| --- | --- | --- |")
    print("\n".join(rows))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
