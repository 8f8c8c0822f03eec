"""The results of one scan: formats are checked before prediction, all files or none, libraries are silent."""

import json

import numpy as np
import pydicom
import pytest

from bright import bright_model
from io_helpers import dicom_slice, save
from isopose.errors import InputError, RunError
from isopose.inference import files as scans
from isopose.inference.files import predict_scans
from isopose.io.images import read_volume
from isopose.io.results.formats import FORMATS, result_files, write_results
from isopose.io.scans import Scan
from isopose.labels import Labels
from isopose.progress import Silent


def series(folder, **fields):
    y, x = np.meshgrid(*[(np.arange(48) - 23.5) * 5.0] * 2, indexing="ij")
    hu = np.where(np.hypot(x - 30, y) < 20, 200, np.where(np.hypot(x / 100, y / 72) < 1, 40, -1000))
    for number in range(4):
        data = dicom_slice((hu + 1024).astype(np.uint16), (0, 0, 5.0 * number), PixelSpacing=[5, 5], **fields)
        data.FrameOfReferenceUID = "1.2.9"
        save(data, folder / f"{number}.dcm")
    return folder


@pytest.fixture(scope="module")
def model():
    return bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})


def predict(model, folders, output, formats):
    return predict_scans(
        model,
        [Scan(folder.name, folder) for folder in folders],
        output,
        probabilities=False,
        reporter=Silent(),
        formats=formats,
    )


def test_a_series_of_which_no_result_can_be_written_is_reported_before_it_is_predicted(
    model, tmp_path, monkeypatch
):
    nameless, sound = series(tmp_path / "nameless"), series(tmp_path / "sound", PatientSex="Z")
    for file in nameless.iterdir():
        data = pydicom.dcmread(file)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = ""
        pydicom.dcmwrite(file, data, enforce_file_format=False)
    predicted = []

    def counted(*given, **named):
        predicted.append(given[1])
        return scans_predict(*given, **named)

    scans_predict = scans.predict
    monkeypatch.setattr(scans, "predict", counted)
    output = tmp_path / "out"
    refused, outcome = predict(model, [nameless, sound], output, ("dicom-seg", "rtstruct"))
    assert "expected SOPInstanceUID" in refused.problem
    assert len(predicted) == 1
    assert any(line.endswith(": PatientSex") for line in outcome.record["warnings"])
    assert sorted(path.name for path in output.iterdir()) == [
        "sound.json",
        "sound.rtstruct.dcm",
        "sound.seg.dcm",
    ]
    assert json.loads((output / "sound.json").read_text())["warnings"] == outcome.record["warnings"]
    read = pydicom.dcmread(output / "sound.seg.dcm")
    assert (str(read.PatientName), read.PatientSex) == ("Muster^Erika", "")


def test_slices_with_one_shared_uid_are_predicted_but_not_to_dicom(model, tmp_path, monkeypatch):
    """Anonymizers may leave such slices; they can be read, but DICOM results cannot refer to them."""
    folder = series(tmp_path / "alike", SOPInstanceUID="1.2.3.4")
    predicted = []
    scans_predict = scans.predict
    monkeypatch.setattr(scans, "predict", lambda *g, **n: (predicted.append(g), scans_predict(*g, **n))[1])
    [refused] = predict(model, [folder], tmp_path / "out", ("dicom-seg",))
    assert refused.problem.startswith(f"{folder}: expected a SOPInstanceUID of its own in each file")
    assert "write NIfTI" in refused.problem
    assert "1.2.3.4" not in refused.problem
    assert not predicted
    assert not list((tmp_path / "out").glob("alike*"))
    [outcome] = predict(model, [folder], tmp_path / "out", ("nifti",))
    assert outcome.problem is None
    read = read_volume(tmp_path / "out" / "alike.nii.gz")
    assert read.array.shape == (4, 48, 48)
    np.testing.assert_allclose(read.origin, read_volume(folder).origin, atol=1e-4)


@pytest.mark.parametrize(
    "error", [KeyError("Muster"), ValueError("Muster^Erika 20090817"), RecursionError("Muster")]
)
def test_an_error_at_the_last_object_leaves_no_object_and_is_not_quoted(error, tmp_path, monkeypatch):
    source = series(tmp_path / "series")
    labels = read_volume(source)
    labels = labels.with_array((labels.array > 150).astype(np.uint8))
    files = result_files(tmp_path / "out", "scan", tuple(FORMATS))

    def broken(*_):
        raise error

    monkeypatch.setattr("isopose.io.results.report.report", broken)
    with pytest.raises(InputError) as raised:
        write_results(
            files, labels, Labels({"mass": 1}), {"mass": 1.0}, path=source, series=None, made_from=[]
        )
    message = str(raised.value)
    assert str(source) in message
    assert type(error).__name__ in message
    assert not any(secret in message for secret in ("Muster", "20090817"))
    assert not (tmp_path / "out").exists()


def test_objects_that_cannot_be_written_leave_none(tmp_path, monkeypatch):
    source = series(tmp_path / "series")
    labels = read_volume(source)
    labels = labels.with_array((labels.array > 150).astype(np.uint8))
    files = result_files(tmp_path / "out", "scan", tuple(FORMATS))

    def full(self, path, **_):
        path.write_bytes(b"half")
        if path.name.endswith(".sr.dcm"):
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(RunError, match="No space"):
        write_results(
            files, labels, Labels({"mass": 1}), {"mass": 1.0}, path=source, series=None, made_from=[]
        )
    assert list((tmp_path / "out").iterdir()) == []
