"""Manual corrections of poses and crops as targets of training."""

from pathlib import Path

import pytest
import torch

import isopose.training.stages as stages_module
from bright import bright_model
from isopose.data.samples import Batch
from isopose.errors import InputError
from isopose.geometry.frame import Frame
from isopose.io.datasets import open_dataset
from isopose.io.sources import hash_of_source
from isopose.models.folder import load_model
from isopose.scan.correction import Correction, SetCrop, SetPose, outline_of
from isopose.training.fit import fit
from isopose.training.objectives import CropObjective, PoseObjective, noise_size

POSE = (0.3, 0.05, -0.05, 0.1, -0.1)
CASE = "Muster_Erika_2"


def correction_of(image: Path, frame: Frame, reference_mask: torch.Tensor) -> Correction:
    crops = (SetCrop(0, 0.6, 0.1, 0.0),)
    return Correction(hash_of_source(image), frame, outline_of(reference_mask), (SetPose(0, POSE),), crops)


def test_corrections_replace_the_targets_of_their_scan_alone(
    cohort: Path, tiny, tmp_path: Path, monkeypatch
) -> None:
    dataset, config = open_dataset(cohort), tiny(f"pose.reference={CASE}", "train.fold=all")
    first = fit(dataset, tmp_path / "first", config, store=tmp_path / "store")
    seen = {}
    train = stages_module._train

    def watched(run, name, objective, training, *rest, **options):
        pose, theta2 = (
            None if value is None else value.clone() for value in (training.pose, training.theta2)
        )
        seen[name] = (training, pose, theta2, getattr(objective, "manual", None))
        return train(run, name, objective, training, *rest, **options)

    monkeypatch.setattr(stages_module, "_train", watched)
    frame = Frame((140.0, 150.0), 300.0, 64)
    image = cohort / "imagesTr" / f"{CASE}_0000.nii.gz"
    correction = correction_of(image, frame, first.pipeline.pose.reference_mask)
    corrections = {correction.image_sha256: correction}
    model = fit(dataset, tmp_path / "model", config, store=tmp_path / "store", corrections=corrections)
    assert list(seen) == ["pose", "crop", "unet"]
    crop = torch.tensor([[0.6, 0, 0.1], [0, 0.6, 0], [0, 0, 1.0]])
    for name, (slices, pose, theta2, by_hand) in seen.items():
        number = next(n for n, case in enumerate(slices.cases) if case.record.id == CASE)
        mine = slices.rows[:, 0] == number
        count = int(mine.sum())
        assert 0 < count < len(mine)
        own = slices.cases[number].record.frame
        expected = correction.poses_at(slices.rows[mine, 1], own, model.pipeline.pose.reference_mask)
        if name == "pose":
            assert pose is None
            torch.testing.assert_close(by_hand[mine], expected)
        else:
            torch.testing.assert_close(pose[mine], expected)
            assert pose.isfinite().all()
        if name == "crop":
            assert theta2 is None
            torch.testing.assert_close(by_hand[mine], crop.expand(count, 3, 3))
        if name == "unet":
            torch.testing.assert_close(theta2[mine], crop.expand(count, 3, 3))
            assert theta2.isfinite().all()
        else:
            assert by_hand[~mine].isnan().all()
    assert load_model(tmp_path / "model").info.training.corrections_sha256 == (correction.sha256,)
    with pytest.raises(InputError, match="was started with another corrections"):
        fit(dataset, tmp_path / "model", config, store=tmp_path / "store", resume=True)


def batch(count: int, pose: torch.Tensor | None = None) -> Batch:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, 64, 64, generator=random)
    mask = torch.zeros(count, 1, 64, 64)
    mask[:, :, 16:48, 10:54] = 1.0
    labels = torch.zeros(count, 64, 64, dtype=torch.uint8)
    labels[:, 24:32, 20:30] = 1
    return Batch(torch.arange(count), image, mask, labels, pose, None)


def test_the_loss_of_a_corrected_pose_is_its_distance() -> None:
    pipeline = bright_model({"data": {"size": 64}}).pipeline
    with torch.no_grad():
        result = PoseObjective(pipeline).pose(batch(2).image, batch(2).mask)
        away = result.clone()
        away[1] = torch.nan
        away[0, 3] += 0.3
        without, same, moved = (
            float(PoseObjective(pipeline, by_hand)(batch(2), torch.zeros(2, noise_size(2))))
            for by_hand in (None, result, away)
        )
    assert same == pytest.approx(without, abs=1e-5)
    # One slice of two, whose matrix differs by 0.3 in one place.
    assert moved == pytest.approx(without + 0.15, abs=1e-5)


def test_a_corrected_crop_is_the_target() -> None:
    """The loss is lowest at the corrected crop and not at the box of the labels."""
    pipeline = bright_model({"data": {"size": 64}}).pipeline
    with torch.no_grad():
        pose = torch.zeros(2, 5)
        own_crop = pipeline.crop(*CropObjective(pipeline)._homogenized_inputs(batch(2, pose))[:2])
        by_hand = own_crop.clone()
        by_hand[1] = torch.nan
        noise = torch.zeros(2, noise_size(2))
        without = float(CropObjective(pipeline)(batch(2, pose), noise))
        half = float(CropObjective(pipeline, by_hand)(batch(2, pose), noise))
        whole = float(CropObjective(pipeline, own_crop)(batch(2, pose), noise))
    assert whole == pytest.approx(0.0, abs=1e-3)
    assert whole < half < without


def test_the_command_line_refuses_a_folder_without_corrections(isopose, cohort, tmp_path) -> None:
    code, _, message = isopose("fit", cohort, "--model", tmp_path / "model", "--corrections", tmp_path)
    assert (code, message.count("\n")) == (2, 1)
    assert "holds no correction" in message
    assert not (tmp_path / "model").exists()
