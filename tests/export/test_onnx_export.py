"""The exported graphs in ONNX Runtime give the model's outputs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bright import bright_model, dice, make_scene
from isopose.data.normalization import ByScan, Channel
from isopose.data.preprocess import prepare
from isopose.errors import InputError
from isopose.export.graphs import (
    Normalize,
    PoseGraph,
    SegmentGraph,
    VolumePoseGraph,
    VolumeSegmentGraph,
)
from isopose.export.onnx import export_onnx
from isopose.geometry.warp import compose
from isopose.inference.predict import predict
from isopose.io.images import read_labels, read_volume, write_image
from isopose.io.truth import true_rolls
from isopose.labels import Labels
from isopose.models.folder import Model
from isopose.models.pipeline import Networks
from isopose.models.shipped import load_shipped
from isopose.phantom import write_cohort
from scripts import ROOT, ran

pytestmark = pytest.mark.long

EXAMPLE = ROOT / "examples" / "onnx_without_torch.py"


@pytest.fixture(scope="module")
def model() -> Model:
    """A model with the shipped roll network, and a U-Net and a crop network of random weights."""
    bright = bright_model(
        {
            "pose": {"size": 32, "fill": None, "start": "anatomy", "learned": False, "per": "smooth"},
            "unet": {"input": "half", "base_features": 4},
            "predict": {"precision": "32-true", "crop_border": 0},
        },
        real_unet=True,
        crop_start=(-0.7, -0.6, 0.5, 0.6),
    )
    generator = torch.Generator().manual_seed(4)
    for part in (bright.pipeline.crop.localization, bright.pipeline.unet.outputs):
        for weight in part.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    load_shipped(bright.pipeline.pose.roll)
    return bright


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_onnx(model, folder)
    return folder


def frames(model: Model, slices: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random frames in HU, with some values beyond the clipping range."""
    prepared = prepare(make_scene(slices=slices, roll=0.3).volume, model.fingerprint, model.config.data)
    image, mask = (torch.from_numpy(array)[:, None].float() for array in (prepared.image, prepared.mask))
    intensity = model.fingerprint.channels[0].scale
    hu = image * intensity.sd + intensity.mean
    hu = torch.where(image <= prepared.scale.air, hu - 300.0, hu)
    return hu, mask, torch.arange(slices) * prepared.spacing[2]


@pytest.mark.parametrize("slices", [3, 7, 40])
def test_graphs_agree_with_pytorch(model: Model, exported: Path, slices: int) -> None:
    import onnxruntime

    image, mask, z_mm = frames(model, slices)
    with torch.inference_mode():
        theta, confidence = PoseGraph(model)(image, mask, z_mm)
        labels, expected = SegmentGraph(model)(image, theta)
    session = onnxruntime.InferenceSession(exported / "poses.onnx")
    inputs = {"hu": image.numpy(), "mask": mask.numpy(), "z_mm": z_mm.numpy()}
    found_theta, found_confidence = session.run(None, inputs)
    np.testing.assert_allclose(found_theta, theta.numpy(), atol=1e-4)
    np.testing.assert_allclose(found_confidence, confidence.numpy(), atol=1e-3)
    session = onnxruntime.InferenceSession(exported / "segment.onnx")
    values, result = session.run(None, {"hu": image.numpy(), "frame_from_crop": theta.numpy()})
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)
    # But where two classes are as probable as each other.
    assert (values == labels.numpy()).mean() > 0.999
    np.testing.assert_array_equal(values, model.labels.to_values(result.argmax(axis=1)))
    # What is compared says something: classes differ, and the crop is not the whole frame.
    assert np.ptp(result[:, 1]) > 0.1
    assert np.abs(result[:, 0] - 1.0).min() < 1e-6


def test_graphs_normalize_as_preprocessing_does(model: Model) -> None:
    hu = np.linspace(-2000, 3000, 101, dtype=np.float32)
    expected = model.fingerprint.channels[0].scale.normalize(hu)
    result = Normalize(model.fingerprint.channels[0].scale)(torch.from_numpy(hu))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    assert np.ptp(expected) > 0


def test_poses_and_crops_are_those_of_predict(model: Model, exported: Path) -> None:
    from isopose.models.pipeline import frame_from_crop

    image, mask, z_mm = frames(model, 12)
    records = predict(model, make_scene(slices=12, roll=0.3).volume).scan_pose
    with torch.inference_mode():
        theta, _ = PoseGraph(model)(image, mask, z_mm)
    expected = frame_from_crop(torch.from_numpy(records.pose), torch.from_numpy(records.theta2))
    torch.testing.assert_close(theta, expected, atol=1e-4, rtol=0)


def test_the_description_holds_what_preparing_a_scan_needs(model: Model, exported: Path) -> None:
    values = json.loads((exported / "export.json").read_text())
    assert values["labels"] == dict(model.labels.values)
    assert values["classes"][0] == "background"
    assert values["dims"] == 2
    assert values["frame"]["size"] == model.config.data.size
    assert values["model_sha256"] == model.weights_sha256


def test_the_example_without_pytorch_segments_the_mass(tmp_path: Path) -> None:
    """With a network that segments by brightness and poses from moments plus a learned step."""
    model = bright_model()
    # Named in another order than that of their values, which is that of the classes.
    bright = replace(model, labels=Labels.create(dict(reversed(model.labels.values.items()))))
    assert list(bright.labels.values) != list(bright.labels.names)
    export_onnx(bright, tmp_path / "export")
    scene = make_scene(slices=12, roll=0.3)
    write_image(scene.volume, tmp_path / "scan.nii.gz")
    files = [tmp_path / name for name in ("export", "scan.nii.gz", "labels.nii.gz")]
    assert "least confidence in a pose" in ran("examples/onnx_without_torch.py", *files)
    code = [line.strip() for line in EXAMPLE.read_text().split('"""')[2].splitlines()]
    assert not any("torch" in line or "isopose" in line.split("#")[0] for line in code)
    assert len([line for line in code if line and not line.startswith("#")]) <= 30
    result = read_labels(tmp_path / "labels.nii.gz", like=scene.volume).array
    for value in bright.labels.values.values():
        assert dice(result == value, scene.truth == value) > 0.85


@pytest.fixture(scope="module")
def of_volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model of volumes that segments by brightness in a crop smaller than the frame."""
    model = bright_model(
        {
            "dims": 3,
            "pose": {"per": "volume", "learned": False, "start": "moments"},
            "predict": {"precision": "32-true", "crop_border": 0},
        },
        crop_start=(-0.9, -0.8, -0.9, 0.8, 0.9, 0.9),
    )
    folder = tmp_path_factory.mktemp("volumes")
    export_onnx(model, folder)
    return model, folder


@pytest.mark.parametrize(("slices", "hidden"), [(4, 0), (9, 0), (30, 12)])
def test_graphs_of_volumes_agree_with_pytorch_and_predict(
    of_volumes: tuple[Model, Path], slices: int, hidden: int
) -> None:
    """Some slices are bright but have no body."""
    import onnxruntime

    model, folder = of_volumes
    volume = make_scene(slices=slices, roll=0.3).volume
    prepared = prepare(volume, model.fingerprint, model.config.data)
    scan_pose = predict(model, volume).scan_pose
    intensity = model.fingerprint.channels[0].scale
    hu = torch.from_numpy(prepared.image * intensity.sd + intensity.mean)[:, None].float()
    mask = torch.from_numpy(prepared.mask)[:, None].float()
    mask[:hidden] = 0.0
    rows = torch.from_numpy(np.flatnonzero(mask.flatten(1).any(dim=1)))
    apart = torch.tensor([prepared.spacing[2] / prepared.frame.fov_mm], dtype=torch.float32)
    with torch.inference_mode():
        theta, confidence = VolumePoseGraph(model)(hu, mask, rows, apart)
        labels, expected = VolumeSegmentGraph(model)(hu, rows, theta)
    session = onnxruntime.InferenceSession(folder / "poses.onnx")
    inputs = {"hu": hu.numpy(), "mask": mask.numpy(), "shown": rows.numpy(), "apart": apart.numpy()}
    found_theta, found_confidence = session.run(None, inputs)
    np.testing.assert_allclose(found_theta, theta.numpy(), atol=1e-4)
    np.testing.assert_allclose(found_confidence, confidence.numpy(), atol=1e-3)
    session = onnxruntime.InferenceSession(folder / "segment.onnx")
    inputs = {"hu": hu.numpy(), "shown": rows.numpy(), "stack_from_crop": theta.numpy()}
    values, result = session.run(None, inputs)
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)
    assert (values == labels.numpy()).mean() > 0.999
    assert set(np.unique(values)) == {0, *model.labels.values.values()}
    np.testing.assert_allclose(result.sum(axis=1), 1.0, atol=1e-5)
    assert not values[:hidden].any()
    if not hidden:
        stack = prepared.frame.stack_from_frame(prepared.shape[0], prepared.spacing[2])
        pipeline = model.pipeline
        assert isinstance(pipeline, Networks)
        homogenized = pipeline.input_from_homogenized(torch.from_numpy(scan_pose.pose), stack)
        predicted = compose(homogenized, torch.from_numpy(scan_pose.theta2))
        torch.testing.assert_close(theta, predicted, atol=1e-5, rtol=0)


def test_a_model_with_neighboring_slices_is_refused_in_one_line(tmp_path: Path) -> None:
    model = bright_model({"unet": {"base_features": 2, "context": 1}})
    with pytest.raises(InputError) as error:
        export_onnx(model, tmp_path / "export")
    assert str(error.value) == (
        "export: the ONNX graphs see slices one by one, this model has unet.context=1; "
        "use --format monai, or train with unet.context=0"
    )
    assert not (tmp_path / "export").exists()


@pytest.fixture(scope="module")
def of_mr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """The shipped roll network of any contrast, and each scan z-scored by its own body."""
    model = bright_model(
        {
            "data": {"size": 64, "modality": "mr"},
            "pose": {"start": "anatomy", "contrast": "any", "learned": False, "per": "slice"},
            "unet": {"input": "half", "base_features": 2},
            "predict": {"precision": "32-true", "crop_border": 0},
        },
        real_unet=True,
        crop_start=(-0.7, -0.6, 0.5, 0.6),
    )
    channel = Channel("MR", ByScan("zscore", (0.5, 99.5), -2.0, 2.5))
    model = replace(model, fingerprint=replace(model.fingerprint, channels=(channel,)))
    generator = torch.Generator().manual_seed(4)
    for weight in model.pipeline.unet.outputs.parameters():
        weight += 0.05 * torch.randn(weight.shape, generator=generator)
    load_shipped(model.pipeline.pose.roll, "any")
    folder = tmp_path_factory.mktemp("mr")
    export_onnx(model, folder)
    return model, folder


@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_graphs_of_mr_agree_with_pytorch_and_predict(
    of_mr: tuple[Model, Path], gain: float, tmp_path: Path
) -> None:
    """The scan's intensity scale is an input of the graph, so the gain does not matter."""
    import onnxruntime

    from isopose.models.pipeline import frame_from_crop

    model, folder = of_mr
    root = write_cohort(tmp_path / "mr", cases=1, slices=9, size=96, seed=5, test_fraction=0.0, modality="mr")
    (roll,) = true_rolls(root).values()
    scan = read_volume(next((root / "imagesTr").iterdir()))
    volume = scan.with_array((gain * scan.array).astype(np.float32))
    prepared = prepare(volume, model.fingerprint, model.config.data)
    own = prepared.scale
    values = (prepared.image * own.sd + own.mean)[:, None].astype(np.float32)
    inputs = {"values": values, "scale": np.array([own.low, own.high, own.mean, own.sd], np.float32)}
    body = {
        "mask": prepared.mask[:, None].astype(np.float32),
        "z_mm": np.arange(9, dtype=np.float32) * np.float32(prepared.spacing[2]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in (inputs | body).items()}
    scale = tensors["scale"]
    with torch.inference_mode():
        theta, confidence = PoseGraph(model)(tensors["values"], tensors["mask"], tensors["z_mm"], scale)
        labels, expected = SegmentGraph(model)(tensors["values"], theta, scale)
    session = onnxruntime.InferenceSession(folder / "poses.onnx")
    assert [one.name for one in session.get_inputs()] == ["values", "mask", "z_mm", "scale"]
    found_theta, found_confidence = session.run(None, inputs | body)
    np.testing.assert_allclose(found_theta, theta.numpy(), atol=1e-4)
    np.testing.assert_allclose(found_confidence, confidence.numpy(), atol=1e-3)
    # The roll was found, not left.
    assert abs(np.degrees(roll)) > 5
    assert np.arctan2(found_theta[4, 1, 0], found_theta[4, 0, 0]) == pytest.approx(roll, abs=0.06)
    session = onnxruntime.InferenceSession(folder / "segment.onnx")
    marked, result = session.run(None, inputs | {"frame_from_crop": theta.numpy()})
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)
    assert (marked == labels.numpy()).mean() > 0.999
    assert np.ptp(result[:, 1]) > 0.1
    records = predict(model, volume).scan_pose
    predicted = frame_from_crop(torch.from_numpy(records.pose), torch.from_numpy(records.theta2))
    torch.testing.assert_close(theta, predicted, atol=1e-4, rtol=0)


def test_the_description_of_mr_holds_the_normalization(of_mr: tuple[Model, Path], exported: Path) -> None:
    values, of_ct = (json.loads((folder / "export.json").read_text()) for folder in (of_mr[1], exported))
    assert values["normalization"] == {"method": "zscore", "percentiles": [0.5, 99.5]}
    assert (values["modality"], of_ct["modality"], of_ct["normalization"]) == ("mr", "ct", "ct")
    assert "body_threshold_hu" not in values["frame"]


def test_a_missing_extra_is_named_in_one_line(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"isopose\[onnx\]"):
        export_onnx(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()
