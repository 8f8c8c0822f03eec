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

from bright import make_scene
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
    volume = make_scene(slices=4, roll=0.1).volume
    for number, hu in enumerate(volume.array):
        position = (volume.world_from_index @ [0, 0, number, 1])[:3]
        known = {"PatientSex": "F", "StudyDate": "20210304", "StudyTime": "112233"}
        x, y = volume.direction[:, 0], volume.direction[:, 1]
        data = dicom_slice(
            (hu.astype(int) + 1024).clip(0, 4095).astype(np.uint16),
            position,
            orientation=(*x, *y),
            PixelSpacing=[float(volume.spacing[1]), float(volume.spacing[0])],
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
    """The output folder and the finished process of one ``isopose predict`` over all cases."""
    output = tmp_path_factory.mktemp("predicted")
    formats = [part for one in ("nifti", "rtstruct", "dicom-sr") for part in ("--format", one)]
    process = run(
        *("-m", "isopose", "predict", model_folder, *cases, "--output", output, *formats),
    )
    return output, process


def test_unusual_headers_are_predicted_without_messages_of_libraries(predicted):
    output, process = predicted
    assert process.returncode == 0, process.stderr
    for line in re.split(r"[\r\n]", process.stdout + process.stderr):
        assert not any(secret in line for secret in (*SECRETS, "00000000")), line
    for line in re.split(r"[\r\n]", process.stderr):
        assert OURS.fullmatch(line), line
    for name in CASES:
        record = (output / f"{name}.json").read_text()
        assert not any(secret in record for secret in SECRETS)


def test_a_read_only_home_folder_gives_no_message(cases, model_folder, tmp_path):
    """matplotlib caches its fonts in the home folder and prints long messages if it cannot."""
    output = tmp_path / "out"
    process = run(
        *("-m", "isopose", "predict", model_folder, cases[0], "--output", output, "--steps"),
        HOME="/dev/null/home",
    )
    assert process.returncode == 0, process.stderr
    assert (output / "steps" / "plain.png").stat().st_size > 1000
    for line in re.split(r"[\r\n]", process.stderr):
        assert OURS.fullmatch(line), line


@pytest.mark.parametrize("name", CASES)
def test_invalid_elements_are_named_and_results_equal_those_of_a_valid_series(name, predicted, cases):
    output, process = predicted
    lines = process.stderr.partition(f"] {name}\n")[2].partition("[")[0]
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
        result = np.column_stack(
            [np.argwhere(volume.array == number), np.ones((volume.array == number).sum())]
        )
        expected_points = np.column_stack(
            [np.argwhere(labels.array == value)[:, ::-1], np.ones((labels.array == value).sum())]
        )
        assert len(result) == len(expected_points) > 0
        np.testing.assert_allclose(
            sorted((result @ volume.affine.T)[:, :3].round(2).tolist()),
            sorted((expected_points @ labels.world_from_index.T)[:, :3].round(2).tolist()),
            atol=0.02,
        )
    [measures] = read["seg"].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    thickness = read_volume(cases[0]).spacing[2] if name == "no-slice-thickness" else 3
    assert float(measures.SliceThickness) == pytest.approx(thickness)


def test_the_python_interface_prints_nothing(cases, model_folder):
    code = (
        "import sys\n"
        "import isopose\n"
        "for folder in sys.argv[2:]:\n"
        "    isopose.Pipeline.load(sys.argv[1], 'cpu').predict(folder)\n"
        "isopose.Homogenizer().fit_transform(sys.argv[2:4])\n"
        "import warnings\n"
        "warnings.warn('still heard')\n"
    )
    process = run("-c", code, model_folder, *cases[:3])
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    [line] = process.stderr.splitlines()
    assert line.endswith("still heard")
