"""How long a command takes before it does anything, against nnU-Net's where it is installed.

    python benchmarks/start_up.py --output /tmp/start_up

Each command is run in turn, ROUNDS times, in a process of its own. The table goes to stdout and to
OUTPUT/start_up.md.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from isopose.files import write_text

HERE = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "isopose --help": [str(HERE / "isopose"), "--help"],
    "isopose predict --help": [str(HERE / "isopose"), "predict", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "nnUNetv2_predict -h": [str(HERE / "nnUNetv2_predict"), "-h"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    present = {name: command for name, command in COMMANDS.items() if shutil.which(command[0])}
    times: dict[str, list[float]] = {name: [] for name in present}
    for number in range(given.rounds + 1):
        for name, command in present.items():
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            # The first round fills the disk's cache.
            if number:
                times[name].append(time.perf_counter() - started)
    lines = ["| command | s, median | fastest | slowest |", "| --- | --- | --- | --- |"]
    for name, values in times.items():
        lines.append(
            f"| `{name}` | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"
        )
    print("\n".join(lines))
    write_text(given.output / "start_up.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
