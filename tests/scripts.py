"""Run the repository's scripts as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def ran(script: str, *arguments: object, at: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a script of the repository in a process of its own; it must end well.

    Args:
        script: its path from the repository's root; ``tests/test_scripts.py`` looks for it in calls.
        arguments: its command line.
        at: path of a copy to run instead, for a script that writes beside itself.
        env: variables besides this process's.

    Returns:
        What it wrote to standard output.
    """
    path = at or ROOT / script
    start = ["sh"] if path.suffix == ".sh" else [sys.executable]
    process = subprocess.run(
        [*start, str(path), *map(str, arguments)],
        # One thread: what is tried is that it runs, not how fast.
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, (
        f"{script}: exit {process.returncode}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    )
    return process.stdout
