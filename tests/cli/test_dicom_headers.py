"""Series with unusual headers, predicted by the command: results written, elements named, nothing quoted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from bright import scene
from io_helpers import dicom_slice, save
from isopose.io.images import read_labels, read_volume

#: A case, what its headers hold, and the elements that are left empty.
CASES = {
    "plain": ({}, ()),
    "name-without-caret": ({"PatientName": "Mustermann"}, ()),
    "birth-date-with-dots": ({"PatientBirthDate": "1980.02.03"}, ("PatientBirthDate",)),
    "no-slice-thickness": ({"SliceThickness": None}, ()),
    "sex-other": ({"PatientSex": "X"}, ("PatientSex",)),
    "study-date-with-dashes": ({"StudyDate": "2020-01-01"}, ("StudyDate",)),
    "study-time-with-colons": ({"StudyTime": "10:11:12"}, ("StudyTime",)),
    "birth-date-zero": ({"PatientBirthDate": "00000000"}, ("PatientBirthDate",)),
}
SECRETS = ("Muster", "Erika", "ID-4711", "20090817", "1980.02.03", "2020-01-01", "10:11:12", "1.2.3")
#: What the command itself writes to the terminal.
OURS = re.compile(r"\[\d+/\d+\] [\w-]+|  warning: .*|predict [\w-]+: .*|isopose: .*|  error: .*|.*% .*|")


def series(folder: Path, fields: dict) -> Path:
    here = scene(slices=4, roll=0.1).volume
    for number, hu in enumerate(here.array):
        position = (here.world_from_index @ [0, 0, number, 1])[:3]
        known = {"PatientSex": "F", "StudyDate": "20210304", "StudyTime": "112233"}
        x, y = here.direction[:, 0], here.direction[:, 1]
        data = dicom_slice(
            (hu.astype(int) + 1024).clip(0, 4095).astype(np.uint16),
            position,
            orientation=(*x, *y),
            PixelSpacing=[float(here.spacing[1]), float(here.spacing[0])],
            **known,
        )
        data.FrameOfReferenceUID = "1.2.3.9"
        for name, value in fields.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        save(data, folder / f"{number:03d}.dcm")
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = tmp_path_factory.mktemp("unusual")
    before = (
        pydicom.config.settings._writing_validation_mode,
        pydicom.config.settings._reading_validation_mode,
    )
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        return [series(root / name, fields) for name, (fields, _) in CASES.items()]
    finally:
        pydicom.config.settings._writing_validation_mode, pydicom.config.settings._reading_validation_mode = (
            before
        )


def run(*arguments, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **variables},
        check=False,
    )


@pytest.fixture(scope="module")
def predicted(cases, model_folder, tmp_path_factory):
    """All cases by one command."""
    output = tmp_path_factory.mktemp("predicted")
    formats = [part for one in ("nifti", "rtstruct", "dicom-sr") for part in ("--format", one)]
    done = run(
        *("-m", "isopose", "predict", model_folder, *cases, "--output", output, *formats),
    )
    return output, done


def test_every_case_is_done_and_nothing_is_said_but_by_the_command(predicted):
    output, done = predicted
    assert done.returncode == 0, done.stderr
    for line in re.split(r"[\r\n]", done.stdout + done.stderr):
        assert not any(secret in line for secret in (*SECRETS, "00000000")), line
    for line in re.split(r"[\r\n]", done.stderr):
        assert OURS.fullmatch(line), line
    for name in CASES:
        record = (output / f"{name}.json").read_text()
        assert not any(secret in record for secret in SECRETS)


def test_a_home_that_cannot_be_written_to_is_no_matter(cases, model_folder, tmp_path):
    """matplotlib keeps its list of fonts there, and reports at length where it cannot."""
    output = tmp_path / "out"
    done = run(
        *("-m", "isopose", "predict", model_folder, cases[0], "--output", output, "--steps"),
        HOME="/dev/null/home",
    )
    assert done.returncode == 0, done.stderr
    assert (output / "steps" / "plain.png").stat().st_size > 1000
    for line in re.split(r"[\r\n]", done.stderr):
        assert OURS.fullmatch(line), line


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_valid_is_named_and_all_else_is_as_of_the_plain_series(name, predicted, cases):
    output, done = predicted
    lines = done.stderr.partition(f"] {name}\n")[2].partition("[")[0]
    fields, empty = CASES[name]
    assert re.findall(r"left empty or out in the DICOM results: (.*)", lines) == [", ".join(empty)] * bool(
        empty
    )
    labels, plain = read_labels(output / f"{name}.nii.gz"), read_labels(output / "plain.nii.gz")
    np.testing.assert_array_equal(labels.array, plain.array)
    np.testing.assert_allclose(labels.world_from_index, plain.world_from_index, atol=1e-6)
    assert labels.array.any()
    read = {kind: pydicom.dcmread(output / f"{name}.{kind}.dcm") for kind in ("seg", "rtstruct", "sr")}
    for data in read.values():
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
            expected = {
                "PatientName": "Muster^Erika",
                "PatientBirthDate": "20090817",
                "PatientSex": "F",
                "StudyDate": "20210304",
                "StudyTime": "112233",
                **fields,
            }[keyword]
            assert str(data.get(keyword) or "") == ("" if keyword in empty else expected)
    segments = hd.seg.Segmentation.from_dataset(read["seg"])
    for number, value in enumerate((1, 7), start=1):
        volume = segments.get_volume(segment_numbers=[number], combine_segments=True)
        found = np.column_stack(
            [np.argwhere(volume.array == number), np.ones((volume.array == number).sum())]
        )
        there = np.column_stack(
            [np.argwhere(labels.array == value)[:, ::-1], np.ones((labels.array == value).sum())]
        )
        assert len(found) == len(there) > 0
        np.testing.assert_allclose(
            sorted((found @ volume.affine.T)[:, :3].round(2).tolist()),
            sorted((there @ labels.world_from_index.T)[:, :3].round(2).tolist()),
            atol=0.02,
        )
    [measures] = read["seg"].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    thickness = read_volume(cases[0]).spacing[2] if name == "no-slice-thickness" else 3
    assert float(measures.SliceThickness) == pytest.approx(thickness)


def test_the_python_interface_says_nothing_either(cases, model_folder):
    code = (
        "import sys\n"
        "import isopose\n"
        "for folder in sys.argv[2:]:\n"
        "    isopose.Pipeline.load(sys.argv[1], 'cpu').predict(folder)\n"
        "isopose.Homogenizer().fit_transform(sys.argv[2:4])\n"
        "import warnings\n"
        "warnings.warn('still heard')\n"
    )
    done = run("-c", code, model_folder, *cases[:3])
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.endswith("still heard")
