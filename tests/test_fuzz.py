"""The fuzzer (``python fuzz``), briefly."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
UNUSUAL = ("unusual-dicom", "unusual-nifti", "unusual-itk")


def test_fuzzed_inputs_are_read_correctly_or_refused_in_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, ROOT / "fuzz", "--inputs", "180", "--seed", "11", "--keep", tmp_path / "found"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    first, second = process.stdout.split("\nin all: ")
    rows = [line.split("|") for line in first.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 12
    for _, _, tried, read, refused, failed, *_ in rows:
        assert int(tried) == 15
        assert int(read) + int(refused) == 15
        assert int(failed) == 0
        assert int(refused) > 0
    for name in UNUSUAL:
        assert f"| {name} | 15 | " in second


def test_the_fuzzer_detects_an_unhandled_error(tmp_path):
    """The reader under test does not handle a damaged header."""
    script = (
        "import sys, runpy\n"
        "import isopose.io.nifti as nifti\n"
        "real = nifti._parse_header\n"
        "nifti._parse_header = lambda raw: real(raw) or [][0]\n"
        f"sys.argv = ['fuzz', '--targets', 'nifti', '--keep', {str(tmp_path / 'found')!r}]\n"
        "sys.argv += ['--inputs', '60']\n"
        f"runpy.run_path({str(ROOT / 'fuzz')!r}, run_name='__main__')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 1, process.stdout + process.stderr
    assert "IndexError" in process.stdout
    assert list((tmp_path / "found").glob("nifti-*.txt"))


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("values", "v.with_array(v.array[..., ::-1])"),
        ("values", "v.with_array(v.array + (v.array.max() > 255))"),
        ("places", "Volume(v.array, np.diag([-1.0, 1.0, 1.0, 1.0]) @ v.world_from_index)"),
    ],
)
def test_the_fuzzer_detects_values_and_positions_unlike_other_readers(tmp_path, what, fault):
    script = (
        "import sys, runpy\n"
        "import numpy as np\n"
        "import isopose.io.images as images\n"
        "from isopose.geometry.volume import Volume\n"
        "real = images.read_volume\n"
        "def read(path, series=None, **more):\n"
        "    v = real(path, series, **more)\n"
        f"    return {fault}\n"
        "images.read_volume = read\n"
        f"sys.argv = ['fuzz', '--targets', '{','.join(UNUSUAL)}', '--keep', {str(tmp_path / 'found')!r}]\n"
        "sys.argv += ['--inputs', '90']\n"
        f"runpy.run_path({str(ROOT / 'fuzz')!r}, run_name='__main__')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 1, process.stdout + process.stderr
    for name in UNUSUAL:
        texts = [path.read_text() for path in (tmp_path / "found").glob(f"{name}-*.txt")]
        assert any(text.startswith(f"{what}: ") for text in texts), name
