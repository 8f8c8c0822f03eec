"""Freed memory is kept for the next step, if the C library supports it."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

#: Pages that had to be cleared for steps after the first two; blocks are freed from the last to the first.
STEPS = """
import ctypes, resource, sys
from isopose.heap import keep_freed_memory
asked = sys.argv[1] == "keep" and keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
def step():
    blocks = [library.malloc(24_000_000) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 24_000_000)
    for block in reversed(blocks):
        library.free(block)
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(asked, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def steps(how: str, **environment: str) -> tuple[str, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    process = subprocess.run(
        [sys.executable, "-c", STEPS, how],
        capture_output=True,
        text=True,
        check=True,
        env=plain | environment,
    )
    requested, faults = process.stdout.split()
    return requested, int(faults)


def test_freed_memory_is_reused_by_the_next_step() -> None:
    _, by_itself = steps("plain")
    requested, kept = steps("keep")
    assert requested == "True"
    assert kept < by_itself / 10, (kept, by_itself)


def test_a_measurement_starts_from_the_memory_in_use() -> None:
    """Otherwise memory freed by an earlier stage would make the next stage look too small."""
    # What a module needs when it is loaded is taken from what was freed.
    script = "from isopose.study.measure import MB, peak_memory, reset_peak" + STEPS.replace(
        "print(", "_ = ("
    )
    script += """
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / MB
start = reset_peak()
step()
print(before - start, peak_memory() - start)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, "keep"], capture_output=True, text=True, check=True
    )
    given_back, taken = map(float, process.stdout.split())
    assert given_back > 80, "what is kept: four blocks of 24 MB"
    assert 85 < taken < 110, "what a step takes"


def test_settings_of_the_user_are_kept() -> None:
    requested, _ = steps("keep", MALLOC_TRIM_THRESHOLD_="1000000")
    assert requested == "False"
