"""The fuzzing harness (``python fuzz``), briefly; and what it found, where no other test has it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_damaged_inputs_are_read_or_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "fuzz", "--inputs", "360", "--seed", "11", "--keep", tmp_path / "found"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 12
    for _, _, tried, read, refused, failed, *_ in rows:
        assert int(tried) == 30
        assert int(read) + int(refused) == 30
        assert int(failed) == 0
        assert int(refused) > 0
    for name in ("unusual-dicom", "unusual-nifti", "unusual-itk"):
        assert f"{name}: refused although valid: " in done.stdout


def test_the_harness_finds_what_is_wrong(tmp_path):
    """Against a reader that does not foresee a damaged header."""
    script = (
        "import sys, runpy\n"
        "import isopose.io.nifti as nifti\n"
        "real = nifti._header\n"
        "nifti._header = lambda raw: real(raw) or [][0]\n"
        f"sys.argv = ['fuzz', '--targets', 'nifti', '--keep', {str(tmp_path / 'found')!r}]\n"
        "sys.argv += ['--inputs', '60']\n"
        f"runpy.run_path({str(ROOT / 'fuzz')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "IndexError" in done.stdout
    assert list((tmp_path / "found").glob("nifti-*.txt"))


#: What a reader may get wrong without a word: sides, places, scaling, order of slices, padding.
WRONG = {
    "unusual-nifti": (
        ("places", "nifti._LPS_FROM_RAS = np.eye(4)"),
        ("values", "real = nifti._scaled_by_half = lambda header: 0.5"),
    ),
}


@pytest.mark.parametrize(
    ("target", "what", "fault"),
    [
        ("unusual-nifti", "places", "nifti._LPS_FROM_RAS = np.eye(4)"),
        ("unusual-nifti", "values", "change(lambda v: v.with_array(v.array * 0.5), '.nii')"),
        ("unusual-dicom", "values", "change(lambda v: v.with_array(v.array[::-1]), '')"),
        ("unusual-dicom", "places", "change(lambda v: Volume(v.array, v.world_from_index + MOVED), '')"),
        ("unusual-itk", "values", "change(lambda v: v.with_array(v.array[..., ::-1]), '')"),
        ("unusual-itk", "places", "change(lambda v: Volume(v.array, v.world_from_index + MOVED), '')"),
    ],
)
def test_a_reader_that_differs_from_the_independent_ones_is_found(tmp_path, target, what, fault):
    pass
