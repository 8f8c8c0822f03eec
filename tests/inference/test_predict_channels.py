"""Prediction with several channels, of which the pose channel does not show the mass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bright import BODY, FOV, INTENSITY, LABELS, Brightness, Scene, bright_model, dice, ellipse, make_scene
from isopose.api import Pipeline
from isopose.data.normalization import Channel
from isopose.errors import InputError
from isopose.export.onnx import export_onnx
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import Ensemble
from isopose.inference.files import predict_scans
from isopose.inference.predict import predict
from isopose.io.images import read_labels, write_image
from isopose.io.scans import find_scans
from isopose.models.folder import Model
from isopose.models.pipeline import Networks
from isopose.progress import Silent
from isopose.report.steps import write_steps


class OfChannel(Brightness):
    """Segment one channel of the input by brightness; keep all inputs."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, image: Tensor, *, deep: bool = False) -> list[Tensor]:
        self.seen.append(image)
        return super().forward(image[:, self.channel : self.channel + 1])


def two_channels(names: tuple[str, ...], channel: int, changes: dict[str, Any] | None = None) -> Model:
    """A model of two channels of HU, whose U-Net looks at one channel of its input."""
    model = bright_model({"predict": {"mirror": False, "precision": "32-true"}, **(changes or {})})
    mask = ellipse(64, (2 * BODY[0] / FOV, 2 * BODY[1] / FOV))
    airs = (INTENSITY.air, INTENSITY.air)
    networks = Networks(model.config, LABELS.classes, mask, INTENSITY.air, INTENSITY.top, airs)
    networks.unet = OfChannel(channel)  # type: ignore[assignment]
    fingerprint = replace(model.fingerprint, channels=tuple(Channel(name, INTENSITY) for name in names))
    return replace(model, pipeline=networks.eval().requires_grad_(False), fingerprint=fingerprint)


def split(scene: Scene) -> tuple[Volume, Volume]:
    """Split a scene into the body without the mass, and the mass without the body."""
    array = scene.volume.array
    body = np.where(array > 100, 40, array).astype(np.int16)
    return scene.volume.with_array(body), scene.volume.with_array(np.where(array > 100, array, -1000))


@pytest.fixture(scope="module")
def turned() -> Scene:
    return make_scene(roll=0.3, scale=0.85, center=(10.0, -6.0))


@pytest.mark.parametrize("dims", [2, 3])
def test_pose_and_segmentation_may_use_different_channels(turned: Scene, dims: int) -> None:
    changes: dict[str, Any] = {"pose": {"start": "moments", "learned": False, "per": "volume"}, "dims": dims}
    if dims == 3:
        changes |= {"crop": {"enabled": False}, "unet": {"input": "full", "base_features": 2, "depth": 32}}
    body, mass = split(turned)
    result = predict(two_channels(("CT", "PET"), 1, changes), [body, mass])
    assert result.labels.same_grid(turned.volume)
    assert dice(result.labels.array > 0, turned.truth > 0) > (0.95 if dims == 2 else 0.9)
    # The other way round, with the pose channel named.
    pose = {"data": {"size": 128, "pose_channel": "CT"}}
    other = predict(two_channels(("PET", "CT"), 0, {**changes, **pose}), [mass, body])
    np.testing.assert_array_equal(other.labels.array, result.labels.array)
    np.testing.assert_array_equal(other.scan_pose.pose, result.scan_pose.pose)
    if dims == 2:
        alone = predict(bright_model(changes), body)
        np.testing.assert_array_equal(alone.scan_pose.pose, result.scan_pose.pose)
        assert not alone.labels.array.any()


def test_channels_and_neighboring_slices_are_aligned(turned: Scene) -> None:
    model = two_channels(("CT", "PET"), 0, {"unet": {"input": "full", "base_features": 2, "context": 1}})
    predict(model, [turned.volume, turned.volume])
    (seen,) = model.pipeline.unet.seen
    assert seen.shape[1] == 6
    torch.testing.assert_close(seen[:, :3], seen[:, 3:])
    alone = bright_model({"predict": {"mirror": False, "precision": "32-true"}})
    expected = predict(alone, turned.volume, crops=True)
    result = predict(
        two_channels(("CT", "PET"), 4, model.config.model_dump()), [turned.volume] * 2, crops=True
    )
    np.testing.assert_array_equal(result.labels.array, expected.labels.array)


def test_scans_of_files_are_predicted_with_all_channels(turned: Scene, tmp_path: Path) -> None:
    body, mass = split(turned)
    for name, volumes in (("whole", (body, mass)), ("lonely", (body,)), ("third", (body, mass, mass))):
        for number, volume in enumerate(volumes):
            (tmp_path / "in").mkdir(exist_ok=True)
            write_image(volume, tmp_path / "in" / f"{name}_{number:04d}.nii.gz")
    moved = Volume(mass.array, mass.world_from_index + np.eye(4, k=3))
    for number, volume in enumerate((body, moved)):
        write_image(volume, tmp_path / "in" / f"moved_{number:04d}.nii.gz")
    model, out = two_channels(("CT", "PET"), 1), tmp_path / "out"

    def run() -> dict[str, Any]:
        scans = find_scans([tmp_path / "in"])
        finished = predict_scans(model, scans, out, probabilities=False, reporter=Silent(), steps=write_steps)
        return {one.name: one for one in finished}

    outcomes = run()
    assert outcomes["whole"].problem is None
    result = read_labels(out / "whole.nii.gz")
    assert dice(result.array > 0, turned.truth > 0) > 0.95
    np.testing.assert_array_equal(result.array, predict(model, [body, mass]).labels.array)
    assert "expected 2 channels (CT, PET), got 1 image" in outcomes["lonely"].problem
    assert "expected 2 channels (CT, PET), got 3 images" in outcomes["third"].problem
    assert "channel PET: " in outcomes["moved"].problem
    assert "does not lie on the grid of channel CT" in outcomes["moved"].problem
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["whole.nii.gz"]
    # One line for a model of one channel, too.
    [outcome] = predict_scans(
        bright_model(), find_scans([tmp_path / "in"])[-1:], out, probabilities=False, reporter=Silent()
    )
    assert "expected 1 channel (CT), got 2 images" in outcome.problem
    # The second channel decides the result as the first does.
    before = outcomes["whole"].record["input_sha256"]
    write_image(mass.with_array(np.full_like(mass.array, -1000)), tmp_path / "in" / "whole_0001.nii.gz")
    again = run()["whole"].record
    assert again["input_sha256"] != before
    assert again["volumes_ml"]["kidney"] == 0.0


def test_pipeline_accepts_a_list_of_channels(turned: Scene) -> None:
    pipeline = Pipeline(two_channels(("CT", "PET"), 1))
    body, mass = split(turned)
    assert pipeline.channels == ("CT", "PET")
    result = pipeline.predict([body, mass])
    assert dice(result.labels.array > 0, turned.truth > 0) > 0.95
    from monai.data.meta_tensor import MetaTensor

    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ body.world_from_index
    stacked = torch.from_numpy(np.stack([one.array.transpose(2, 1, 0) for one in (body, mass)]))
    labels = pipeline.predict(MetaTensor(stacked, affine=torch.from_numpy(ras)))
    np.testing.assert_array_equal(labels.labels[0].numpy().transpose(2, 1, 0), result.labels.array)
    with pytest.raises(InputError, match=r"expected 2 channels \(CT, PET\), got 1 image"):
        pipeline.predict(body)


def test_models_with_different_channels_cannot_be_combined() -> None:
    first = two_channels(("CT", "PET"), 1)
    assert Ensemble((first, first)).channels == ("CT", "PET")
    with pytest.raises(InputError, match=r"sees PET, CT, and member 1 CT, PET; .* the same channels"):
        Ensemble((first, two_channels(("PET", "CT"), 1)))
    with pytest.raises(InputError, match="need the same channels"):
        Ensemble((first, bright_model()))


def test_graphs_of_several_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="see one channel, this model CT, PET; use --format monai"):
        export_onnx(two_channels(("CT", "PET"), 1), tmp_path)
    assert not any(tmp_path.iterdir())
