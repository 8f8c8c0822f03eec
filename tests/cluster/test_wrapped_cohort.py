"""A command on the scans of a cohort: where it runs, what it returns, and messages if it cannot run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.homogenize.command import read_command
from isopose.homogenize.wrap import open_scans, wrap_settings
from isopose.io.images import read_volume, write_labels
from isopose.io.sources import hash_of_source
from isopose.labels import Labels
from isopose.phantom import write_cohort

pytest.importorskip("ray")

from isopose.cluster.places import Place
from isopose.cluster.wrap import WrapWork

#: Marks bone, prints what it read, and fails on one of the scans.
SEGMENTER = """
import sys
import SimpleITK as sitk
print("seen", sys.argv[1])
if "phantom_001" in sys.argv[1]:
    sys.exit(3)
sitk.WriteImage(sitk.Cast(sitk.ReadImage(sys.argv[1]) > 250, sitk.sitkUInt8), sys.argv[2])
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    return write_cohort(root / "kids", cases=3, slices=4, size=64, seed=3, test_fraction=0) / "imagesTr"


@pytest.fixture
def words(tmp_path) -> list[str]:
    script = tmp_path / "segment.py"
    script.write_text(SEGMENTER)
    return [sys.executable, str(script), "{input}", "{output}"]


@pytest.fixture
def masks(scans, tmp_path) -> Path:
    """For each scan, a label map of all voxels that are not air."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for path in scans.iterdir():
        scan = read_volume(path)
        body = scan.with_array((scan.array > -200).astype(np.uint8))
        write_labels(body, folder / path.name.replace("_0000", ""))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["bodies found", "own masks"])
def test_wrap_on_a_cluster_gives_the_results_of_one_machine(
    own, isopose, scans, masks, words, tmp_path
) -> None:
    size = ("--size", "64", "--label", "bone=1", *(("--masks", masks) if own else ()))
    alone = isopose("wrap", scans, "--output", tmp_path / "alone", *size, "--", *words)
    output = tmp_path / "cluster"
    code, out, err = isopose("wrap", scans, "--output", output, *size, "--ray", "local", "--", *words)
    assert (alone[0], code) == (2, 2), err
    assert out.replace(str(output), "X") == alone[1].replace(str(tmp_path / "alone"), "X")
    failed = [line for line in err.splitlines() if line.startswith("isopose: ")]
    assert failed == [
        f"isopose: phantom_001: the command ended with exit code 3; see {output}/logs/phantom_001.log"
    ]
    assert "seen" in (output / "logs" / "phantom_001.log").read_text()
    files = {path.name for path in output.iterdir()}
    assert files == {path.name for path in (tmp_path / "alone").iterdir() if path.name != "work"} | {"cohort"}
    for name in ("phantom_000", "phantom_002"):
        assert (output / f"{name}.nii.gz").read_bytes() == (tmp_path / f"alone/{name}.nii.gz").read_bytes()
        records = [json.loads((tmp_path / f / f"{name}.json").read_text()) for f in ("alone", "cluster")]
        assert [record.pop("command_seconds") >= 0 for record in records] == [True, True]
        assert records[0] == records[1]
        mask = hash_of_source(masks / f"{name}.nii.gz")
        assert records[1].get("mask_sha256") == (mask if own else None)

    # One that failed is tried again, the others are there.
    (tmp_path / "segment.py").write_text(SEGMENTER.replace("phantom_001", "none"))
    code, _, err = isopose("wrap", scans, "--output", output, *size, "--ray", "local", "--", *words)
    assert code == 0, err
    assert "2 of 3 are done already" in err
    assert (output / "phantom_001.nii.gz").is_file()


def test_a_machine_without_the_program_is_named(scans, tmp_path) -> None:
    command = read_command(["no-such-program", "{input}", "{output}"], remote=True)
    opened = open_scans(scans)
    settings = wrap_settings(
        opened, tmp_path, command, HomogenizeConfig(), None, None, Labels({}), ("nifti",), None, keep=False
    )
    work = WrapWork(None, settings, Place(str(tmp_path)))
    work.open()
    with pytest.raises(InputError, match="the program no-such-program is missing or not executable"):
        work.work(opened.cases[0], tmp_path)


@pytest.mark.parametrize(
    ("given", "words", "why"),
    [
        ((), ("true", "{inputs}", "{outputs}"), "--ray: the command runs once for each scan"),
        (("--keep",), ("true", "{input}", "{output}"), "--keep: not supported with --ray"),
        (
            ("--masks", "nowhere"),
            ("true", "{input}", "{output}"),
            f"--masks: {Path.cwd()}/nowhere: no such file or folder",
        ),
    ],
)
def test_unsupported_options_on_a_cluster_are_reported(given, words, why, isopose, scans, tmp_path) -> None:
    output = tmp_path / "out"
    code, _, err = isopose("wrap", scans, "--output", output, "--ray", "local", *given, "--", *words)
    assert code == 2
    assert err.startswith(f"isopose: {why}")
    assert not output.exists()
