import math

import numpy as np
import pytest
import SimpleITK as sitk

from bright import bright_model, make_scene
from isopose import Pipeline
from isopose.errors import InputError
from isopose.inference.ensemble import ensemble_of
from isopose.inference.files import predict_scans
from isopose.io.images import read_labels, to_sitk, write_image
from isopose.io.scans import Scan
from isopose.progress import Silent


@pytest.fixture(scope="module")
def model():
    return bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})


def test_model_is_loaded_onto_the_named_gpu(monkeypatch):
    """The documented ``device="cuda:1"``; a machine without that GPU gives a one-line error."""
    devices = []

    def load(folders, device):
        devices.append(str(device))
        return ensemble_of(bright_model())

    monkeypatch.setattr("isopose.api.pipeline.load_ensemble", load)
    monkeypatch.setattr("isopose.api.pipeline.for_prediction", lambda model: model)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device in ("cuda:1", "cuda", "cpu"):
        Pipeline.load("model", device=device)
    assert devices == ["cuda:1", "cuda", "cpu"]
    with pytest.raises(InputError, match="device 'cuda:2' is not available"):
        Pipeline.load("model", device="cuda:2")


def test_pipeline_gives_the_files_of_the_predict_command(model, tmp_path):
    volume = make_scene(roll=math.radians(15), slices=3).volume
    write_image(volume, tmp_path / "child.nii.gz")
    [outcome] = predict_scans(
        model,
        [Scan("child", tmp_path / "child.nii.gz")],
        tmp_path / "out",
        probabilities=False,
        reporter=Silent(),
    )
    expected = read_labels(tmp_path / "out" / "child.nii.gz")
    pipeline = Pipeline(model)
    assert pipeline.labels == {"kidney": 1, "tumor": 7}
    of_path = pipeline.predict(tmp_path / "child.nii.gz")
    assert isinstance(of_path.labels, sitk.Image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(of_path.labels), expected.array)
    assert of_path.volumes_ml == outcome.record["volumes_ml"]
    of_image = pipeline.predict(to_sitk(volume), probabilities=True)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(of_image.labels), expected.array)
    assert list(of_image.probabilities) == ["background", "kidney", "tumor"]
    values = np.stack([sitk.GetArrayFromImage(one) for one in of_image.probabilities.values()])
    np.testing.assert_array_equal(np.array([0, 1, 7])[values.argmax(axis=0)], expected.array)
    assert of_path.probabilities == {}
    assert of_path.warnings == ()


def test_a_folder_without_a_model_is_reported(tmp_path):
    with pytest.raises(InputError, match="model"):
        Pipeline.load(tmp_path)
