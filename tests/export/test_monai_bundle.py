"""The exported bundle in MONAI's own runner gives the model's predictions."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from typer.testing import CliRunner

from bright import bright_model, make_scene
from isopose import Pipeline
from isopose.api.bundle import ScanSegmenter
from isopose.api.images import as_labels
from isopose.cli import app
from isopose.errors import InputError
from isopose.export.monai import export_bundle
from isopose.io.images import read_labels, write_image
from isopose.models.folder import load_model, save_model
from isopose.models.info import ModelInfo, TrainingInfo
from isopose.models.shipped import load_shipped

pytest.importorskip("ignite", reason="pytorch-ignite is not installed (extra: monai-bundle)")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with a U-Net of random weights and varied outputs; label values 1 and 7."""
    bright = bright_model(
        {
            "pose": {"size": 32, "fill": None, "start": "anatomy", "per": "smooth"},
            "unet": {"input": "full", "base_features": 4},
            "crop": {"enabled": False},
            "predict": {"precision": "32-true"},
        },
        real_unet=True,
    )
    generator = torch.Generator().manual_seed(4)
    for weight in bright.pipeline.unet.outputs.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=generator)
    load_shipped(bright.pipeline.pose.roll)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, replace(bright, info=ModelInfo(TrainingInfo((), cases=1, patients=1))))
    return folder


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "kidneys"
    export_bundle(model, folder)
    for number, roll in enumerate((10.0, -25.0)):
        write_image(
            make_scene(roll=math.radians(roll), slices=4).volume, folder / "images" / f"scan_{number}.nii.gz"
        )
    return folder


def test_monai_bundle_run_writes_what_the_model_predicts(model: Path, bundle: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle),
         "--config_file", str(bundle / "configs" / "inference.json"),
         "--meta_file", str(bundle / "configs" / "metadata.json")],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    pipeline = Pipeline.load(model, "cpu")
    for number in range(2):
        written = read_labels(bundle / "eval" / f"scan_{number}_seg.nii.gz")
        expected = pipeline.predict(bundle / "images" / f"scan_{number}.nii.gz")
        expected_labels = as_labels(expected.labels)
        assert written.same_grid(expected_labels, 1e-4)
        # Numbers of the channels that metadata.json names; the model's own stored values are 1 and 7.
        np.testing.assert_array_equal(np.array([0, 1, 7])[written.array], expected_labels.array)
        assert {1, 7} <= set(np.unique(expected_labels.array))


def test_a_batch_of_scans_equals_the_scans_one_by_one(bundle: Path) -> None:
    network = ScanSegmenter(bundle / "models" / "isopose")
    first, second = (make_scene(roll=roll, slices=3).volume for roll in (0.2, -0.4))
    arrays = torch.stack(
        [torch.from_numpy(v.array.transpose(2, 1, 0).astype(np.float32)) for v in (first, second)]
    )
    affine = torch.diag(torch.tensor([-first.spacing[0], -first.spacing[1], first.spacing[2], 1.0])).double()
    both = MetaTensor(arrays[:, None], affine=affine)
    out = network(both)
    assert out.shape == (2, 3, *arrays.shape[1:])
    torch.testing.assert_close(out.affine, affine)
    torch.testing.assert_close(out.as_tensor().sum(dim=1), torch.ones(2, *arrays.shape[1:]))
    alone = network(MetaTensor(arrays[1:, None], affine=affine))
    torch.testing.assert_close(out.as_tensor()[1:], alone.as_tensor())
    # Left is where the affine says: with its sign changed the patient is seen from the other side.
    mirrored = affine.clone()
    mirrored[0, 0] *= -1
    assert not torch.allclose(
        network(MetaTensor(arrays[1:, None], affine=mirrored)).as_tensor(), alone.as_tensor()
    )
    with pytest.raises(InputError, match="expected a MetaTensor"):
        network(arrays[:, None])


def test_exported_weights_equal_those_of_the_network(bundle: Path) -> None:
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network = ScanSegmenter(bundle / "models" / "isopose")
    assert list(weights) == list(network.state_dict())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(weights[name], value)
    # What predicts is what those weights are loaded into.
    for weight in network.pipeline.unet.parameters():
        weight.zero_()
    volume = make_scene(slices=3).volume
    array = torch.from_numpy(volume.array.transpose(2, 1, 0).astype(np.float32))[None, None]
    affine = torch.diag(
        torch.tensor([-volume.spacing[0], -volume.spacing[1], volume.spacing[2], 1.0])
    ).double()
    emptied = network(MetaTensor(array, affine=affine))
    network.load_state_dict(weights)
    assert not torch.allclose(network(MetaTensor(array, affine=affine)).as_tensor(), emptied.as_tensor())


def test_metadata_describe_the_model_and_name_no_patient(model: Path, bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == {"0": "background", "1": "kidney", "2": "tumor"}
    assert metadata["model_sha256"] == load_model(model).weights_sha256
    assert "Segments kidney, tumor in CT" in (bundle / "docs" / "README.md").read_text("utf-8")
    # A card that its maker filled in goes with it.
    (model / "MODEL_CARD.md").write_text("ours")
    try:
        export_bundle(model, bundle.parent / "again")
    finally:
        (model / "MODEL_CARD.md").unlink()
    assert (bundle.parent / "again" / "docs" / "README.md").read_text() == "ours"
    for path in (bundle / "configs").iterdir():
        assert str(model) not in path.read_text()


def test_a_missing_model_and_an_unknown_format_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.json"):
        export_bundle(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(
        app, ["export", str(tmp_path), "--output", str(tmp_path), "--format", "coreml"]
    )
    assert isinstance(result.exception, InputError)
    assert "expected onnx or monai, got 'coreml'" in str(result.exception)
