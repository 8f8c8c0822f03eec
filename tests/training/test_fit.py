"""The whole of ``isopose fit``, with the smallest training: model folder, resumption, refusals, KiTS19."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file

from isopose.config import Config
from isopose.data.samples import Slices
from isopose.data.splits import split_patients
from isopose.data.store import Record, StoredCase, open_store, store_head
from isopose.errors import InputError, IsoposeError
from isopose.files import hash_of, sha256
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.inference.files import predict_scans
from isopose.inference.predict import Prediction, predict
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.io.scans import Scan
from isopose.io.truth import true_rolls
from isopose.labels import Labels
from isopose.models.card import CARD, model_card
from isopose.models.folder import Model, load_model
from isopose.models.info import StageInfo
from isopose.models.roll import RollNetwork
from isopose.models.shipped import load_shipped
from isopose.phantom import write_cohort
from isopose.progress import Silent
from isopose.report.steps import write_steps
from isopose.training.fit import _angles_to_reference, fit
from isopose.training.mirroring import check_mirroring
from isopose.training.transforms import poses_of, transforms_of
from reporters import RecordingReporter

MASKS = Path(__file__).parents[3] / "shared" / "data" / "kits19-masks"


@dataclass(frozen=True)
class Fitted:
    """One run and all that it was made from."""

    model: Model
    folder: Path
    dataset: Dataset
    config: Config
    store: Path
    lines: list[str]


@pytest.fixture(scope="module")
def fitted(cohort: Path, tiny, tmp_path_factory) -> Fitted:
    folder = tmp_path_factory.mktemp("fit")
    dataset, config, reporter = open_dataset(cohort), tiny(), RecordingReporter()
    model = fit(dataset, folder / "model", config, store=folder / "store", reporter=reporter)
    return Fitted(model, folder / "model", dataset, config, folder / "store", reporter.lines)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = weights_of(a), weights_of(b)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def info_of(folder: Path) -> dict[str, Any]:
    """What ``model.json`` says of the training, without times."""
    info = json.loads((folder / "model.json").read_text())["info"]
    for row in info["history"]:
        for name in ("seconds", "cpu_seconds", "validation_seconds"):
            del row[name]
    return info


def snapshot(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_model_card_is_written_and_names_no_patient(fitted: Fitted) -> None:
    card = (fitted.folder / CARD).read_text(encoding="utf-8")
    assert card == model_card(fitted.model)
    assert "Segments kidney, tumor in CT" in card
    assert "Muster" not in card
    assert str(fitted.folder) not in card


def test_the_model_folder_is_complete_and_names_no_patient(fitted: Fitted) -> None:
    manifest = (fitted.folder / "model.json").read_text()
    values = json.loads(manifest)
    assert values["labels"]["values"] == {"kidney": 1, "tumor": 2}
    expected = fitted.config.model_dump(mode="json")
    # What was left to the labels is decided.
    assert expected["predict"]["mirror"] == "auto"
    expected["predict"]["mirror"] = True
    assert values["config"] == expected
    assert values["weights_sha256"] == sha256(fitted.folder / "weights.safetensors")
    assert values["versions"]["torch"] == torch.__version__
    assert values["fingerprint"]["cases"] == 4
    training, validation = split_patients(fitted.dataset, 3, 0, 0)
    written = values["info"]["training"]
    assert written["images_sha256"] == [sha256(case.image) for case in training]
    assert written["validation_images_sha256"] == [sha256(case.image) for case in validation]
    assert (written["cases"], written["patients"], written["validation_cases"]) == (4, 4, 2)
    for word in ("Muster", "Erika", str(fitted.dataset.root), str(fitted.folder)):
        assert word not in manifest
        assert word.encode() not in (fitted.folder / "weights.safetensors").read_bytes()
    # At the top the model alone; what may name cases lies in ``work``.
    assert {p.name for p in fitted.folder.iterdir()} == {CARD, "model.json", "weights.safetensors", "work"}
    files = [p for p in fitted.folder.rglob("*") if p.is_file()]
    # Neither a pickle's opcodes nor the archive that torch.save makes of them.
    assert [p.name for p in files if p.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK")] == []


def test_three_stages_train_one_after_the_other(fitted: Fitted) -> None:
    history = fitted.model.info.history
    assert [(row["stage"], row["epoch"]) for row in history] == [
        *[("pose", 1), ("pose", 2), ("crop", 1), ("crop", 2)],
        *[("unet", 1), ("unet", 2), ("unet", 3)],
    ]
    stages = fitted.model.info.stages
    assert list(stages) == ["pose", "crop", "unet"]
    assert [stages[name].epochs for name in stages] == [2, 2, 3]
    assert all(np.isfinite(row["loss"]) for row in history)
    assert {"mask dice", "loss", "learning_rate", "seconds"} <= history[0].keys()
    assert {"roll slope", "degrees from moments"} <= history[0].keys()
    assert "degrees from the true roll" not in history[0], "these are no phantoms"
    assert "box overlap" in history[2]
    assert {"dice", "dice kidney", "dice tumor"} <= history[4].keys()
    assert all((fitted.folder / "work" / "tensorboard" / name).is_dir() for name in stages)
    # Each network left its start.
    pipeline = fitted.model.pipeline
    assert pipeline.pose.localization.output.weight.abs().max() > 0
    assert pipeline.crop.localization.output.weight.abs().max() > 0
    assert pipeline.unet.first[0][1].running_mean.abs().max() > 0


def test_the_reference_is_reported_and_saved_without_its_name(fitted: Fitted) -> None:
    line = next(line for line in fitted.lines if line.startswith("reference: "))
    assert "chosen automatically" in line
    training, _ = split_patients(fitted.dataset, 3, 0, 0)
    named = next(case for case in training if f" {case.id}," in line)
    reference = fitted.model.info.reference
    assert reference.image_sha256 == sha256(named.image)
    assert f"slice {reference.slice}," in line
    mask = fitted.model.pipeline.pose.reference_mask
    assert 0.4 < mask.mean() < 0.8


def test_a_loaded_model_predicts_the_same(fitted: Fitted) -> None:
    scan = read_volume(fitted.dataset.root / "imagesTs" / "Muster_Erika_6_0000.nii.gz")
    first = predict(fitted.model, scan, probabilities=True)
    again = predict(load_model(fitted.folder), scan, probabilities=True)
    assert np.array_equal(first.probabilities, again.probabilities)
    assert np.array_equal(first.labels.array, again.labels.array)
    assert first.labels.same_grid(scan)
    # It is not the same answer everywhere, so that agreement means something.
    assert np.ptp(first.probabilities[1]) > 0.05


def test_the_same_settings_give_the_same_weights(fitted: Fitted, tmp_path: Path) -> None:
    fit(fitted.dataset, tmp_path / "again", fitted.config, store=fitted.store)
    assert_same_weights(tmp_path / "again", fitted.folder)
    assert info_of(tmp_path / "again") == info_of(fitted.folder)


def test_another_seed_gives_other_weights(fitted: Fitted, tiny, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        config = tiny(*_short("train.fold=all", f"train.seed={seed}"))
        fit(fitted.dataset, tmp_path / seed, config, store=tmp_path / "store")
    one, other = weights_of(tmp_path / "1"), weights_of(tmp_path / "2")
    assert not torch.equal(one["unet.first.0.0.weight"], other["unet.first.0.0.weight"])


def _short(*settings: str) -> tuple[str, ...]:
    return ("unet.optimizer.epochs=1", "pose.learned=false", "crop.enabled=false", *settings)


#: Runs a fit that is killed without warning in the middle of a stage's second epoch.
KILLED = """
import os, signal, sys
from pathlib import Path
from isopose.presets import load_config
from isopose.io.datasets import open_dataset
from isopose.report.steps import write_steps
from isopose.progress import Silent
from isopose.training.fit import fit

class Killer(Silent):
    def stage(self, name, epochs, iterations, done):
        self.name, self.left = name, iterations + 2
        return super().stage(name, epochs, iterations, done)

    def step(self):
        self.left -= 1
        if self.name == stage_to_die_in and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

dataset, model, store, config, stage_to_die_in = sys.argv[1:]
fit(open_dataset(Path(dataset)), Path(model), load_config(file=Path(config)), store=Path(store),
    reporter=Killer())
"""


def test_a_killed_and_resumed_training_gives_the_same_weights(fitted: Fitted, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(fitted.config.model_dump_json())
    arguments = [str(fitted.dataset.root), str(tmp_path / "model"), str(fitted.store), str(config), "unet"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=os.environ, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "model" / "model.json").exists()
    left = snapshot(tmp_path / "model" / "work" / "checkpoints")
    assert sorted(left) == ["crop.safetensors", "pose.safetensors", "unet.safetensors"]

    # Without --resume nothing is touched; with it the finished stages are not trained again.
    with pytest.raises(InputError, match="not empty; add --resume"):
        fit(fitted.dataset, tmp_path / "model", fitted.config, store=fitted.store)
    assert snapshot(tmp_path / "model" / "work" / "checkpoints") == left
    started = time.time()
    fit(fitted.dataset, tmp_path / "model", fitted.config, store=fitted.store, resume=True)
    touched = [
        p.name for p in (tmp_path / "model" / "work" / "checkpoints").iterdir() if p.stat().st_mtime > started
    ]
    assert touched == ["unet.safetensors"]
    assert_same_weights(tmp_path / "model", fitted.folder)
    assert info_of(tmp_path / "model") == info_of(fitted.folder)


def test_the_roll_slope_of_stn1_is_measured_saved_and_reported(fitted: Fitted, tiny, tmp_path: Path) -> None:
    """With a start from moments the roll is followed after any training; from the identity it is not yet."""
    turning = fitted.model.info.turning
    assert turning.slope > 0.8
    assert turning.degrees_from_truth is None
    assert turning.patients == "validation"
    assert turning.slices > 0
    assert not any("has not learned rotation" in line for line in fitted.lines)
    assert any(line.startswith("STN1's roll on ") for line in fitted.lines)
    assert json.loads((fitted.folder / "model.json").read_text())["info"]["turning"] == asdict(turning)

    reporter, config = RecordingReporter(), tiny("pose.start=identity")
    model = fit(fitted.dataset, tmp_path / "still", config, store=fitted.store, reporter=reporter)
    assert model.info.turning.slope < 0.5
    [warning] = [line for line in reporter.lines if "has not learned rotation" in line]
    assert warning.startswith("warning: STN1")
    assert "pose.optimizer.epochs" in warning
    # Nothing in it is a case's name, and a trial of the speed judges nothing.
    assert "Muster" not in warning
    quick = RecordingReporter()
    tried = fit(fitted.dataset, tmp_path / "tried", config, store=fitted.store, reporter=quick, trial=True)
    assert tried.info.turning is None
    assert not any("learned rotation" in line for line in quick.lines)


def test_without_validation_patients_the_roll_is_measured_on_those_that_train(
    fitted: Fitted, tiny, tmp_path: Path
) -> None:
    model = fit(fitted.dataset, tmp_path / "all", tiny("train.fold=all"), reporter=RecordingReporter())
    assert model.info.turning.patients == "training"


@pytest.mark.slow
def test_true_rolls_of_phantoms_are_relative_to_the_reference(tiny, tmp_path: Path) -> None:
    """In the paper preset the reference is used as scanned, so its own roll is subtracted."""
    cohort = write_cohort(tmp_path / "phantoms", cases=4, slices=4, size=64, test_fraction=0.0)
    dataset, config, reporter = open_dataset(cohort), tiny(preset="paper"), RecordingReporter()
    model = fit(dataset, tmp_path / "model", config, reporter=reporter)
    [reference_line] = [line for line in reporter.lines if line.startswith("reference: ")]
    rolls, (_, validation) = true_rolls(cohort), split_patients(dataset, 3, 0, 0)
    own = rolls[reference_line.split()[1].rstrip(",")]
    # After so few steps STN1 says about the same of all slices.
    off = np.degrees([abs(rolls[case.id] - own) for case in validation])
    turning = model.info.turning
    assert off.min() - 3.0 < turning.degrees_from_truth < off.max() + 3.0
    assert turning.moments_from_truth < 20.0
    assert "degrees from the true roll" in model.info.history[0]
    assert f"{turning.degrees_from_truth:.1f} degrees from the true one (moments: " in "\n".join(
        reporter.lines
    )


@pytest.mark.parametrize(("lean", "expected"), [(0.0, 0.5), (0.2, 0.7)])
def test_a_reference_that_was_turned_upright_is_no_longer_where_it_lay(lean: float, expected: float) -> None:
    """A reference with a roll of 0.3 that was rotated by 0.2 has a roll of 0.1."""
    reference = SimpleNamespace(case="a", lean=lean)
    assert _angles_to_reference({"a": 0.3, "b": 0.8}, reference)["b"] == pytest.approx(expected)
    assert _angles_to_reference({"b": 0.8}, reference) == {}


@pytest.fixture(scope="module")
def together(fitted: Fitted, tiny, tmp_path_factory) -> Fitted:
    """As ``fitted``, with one network for pose and crop."""
    folder = tmp_path_factory.mktemp("joint") / "model"
    config, reporter = tiny("stn=joint"), RecordingReporter()
    model = fit(fitted.dataset, folder, config, store=fitted.store, reporter=reporter)
    return Fitted(model, folder, fitted.dataset, config, fitted.store, reporter.lines)


def test_pose_and_crop_are_one_stage_where_one_network_does_both(together: Fitted) -> None:
    info = together.model.info
    assert [(row["stage"], row["epoch"]) for row in info.history] == [
        *[("joint", 1), ("joint", 2), ("unet", 1), ("unet", 2), ("unet", 3)]
    ]
    assert list(info.stages) == ["joint", "unet"]
    assert {"pose and crop", "mask dice", "moments alone", "box overlap"} <= info.history[0].keys()
    assert any(line.startswith("joint: 2 epochs, best ") for line in together.lines)
    assert (together.folder / "work" / "tensorboard" / "joint").is_dir()
    weights = weights_of(together.folder)
    assert weights["joint.output.weight"].shape[0] == 9
    assert (weights["joint.output.weight"].abs().amax(dim=1) > 0).all()
    assert not any("localization" in name for name in weights)
    loaded = load_model(together.folder)
    assert loaded.config.stn == "joint"
    assert torch.equal(loaded.pipeline.joint.output.weight, weights["joint.output.weight"])


def test_the_joint_stage_uses_the_optimizer_of_the_crop(fitted: Fitted, tiny, tmp_path: Path) -> None:
    config = tiny(
        *_short("stn=joint", "crop.enabled=true", "crop.optimizer.epochs=1", "pose.optimizer.epochs=9")
    )
    model = fit(fitted.dataset, tmp_path / "model", config, store=fitted.store)
    assert model.info.stages["joint"].epochs == 1
    hasty = tiny("stn=joint", "crop.optimizer.name=sgd", "crop.optimizer.learning_rate=1e30")
    with pytest.raises(IsoposeError, match=r"stage joint: .*lower crop\.optimizer\.learning_rate"):
        fit(fitted.dataset, tmp_path / "hasty", hasty, store=fitted.store)


@pytest.mark.parametrize("per", ["smooth", "volume"])
def test_training_and_prediction_give_the_same_transforms(together: Fitted, tiny, per: str) -> None:
    """theta1 and theta2 of a training case, computed by training and by prediction."""
    model = replace(together.model, config=tiny("stn=joint", f"pose.per={per}"))
    model.pipeline.config, model.pipeline.pose.config = model.config, model.config.pose
    training, _ = split_patients(together.dataset, 3, 0, 0)
    slices = Slices([_stored_case(together.store, model, training[0].id)])
    slices.pose = poses_of(model.pipeline, slices, torch.device("cpu"))
    pose, theta2 = transforms_of(model.pipeline, slices, torch.device("cpu"))
    records = predict(model, read_volume(training[0].image)).scan_pose
    rows = slices.rows[:, 1]
    np.testing.assert_allclose(records.pose[rows], pose, atol=1e-5)
    kept = ~records.widened[rows]
    assert kept.any()
    np.testing.assert_allclose(records.theta2[rows][kept], theta2[kept], atol=1e-5)
    # The network has a say in both.
    assert (pose - slices.pose).abs().max() > 1e-3
    assert (theta2 - torch.eye(3)).abs().max() > 1e-3


def test_a_killed_and_resumed_joint_stage_gives_the_same_weights(together: Fitted, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(together.config.model_dump_json())
    arguments = [
        str(together.dataset.root),
        str(tmp_path / "model"),
        str(together.store),
        str(config),
        "joint",
    ]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=os.environ, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list(snapshot(tmp_path / "model" / "work" / "checkpoints")) == ["joint.safetensors"]
    fit(together.dataset, tmp_path / "model", together.config, store=together.store, resume=True)
    assert_same_weights(tmp_path / "model", together.folder)
    assert info_of(tmp_path / "model") == info_of(together.folder)


@pytest.mark.parametrize("stn", ["separate", "joint"])
def test_the_shipped_roll_network_is_not_changed_by_training(
    fitted: Fitted, tiny, tmp_path: Path, stn: str
) -> None:
    """Weights and statistics: neither its use on training slices nor the joint stage changes them."""
    config = tiny(f"stn={stn}", "pose.start=anatomy", "pose.learned=false")
    model = fit(fitted.dataset, tmp_path / "model", config, store=fitted.store)
    shipped, result = load_shipped(RollNetwork()).state_dict(), model.pipeline.pose.roll.state_dict()
    assert shipped.keys() == result.keys()
    assert [name for name in shipped if not torch.equal(shipped[name], result[name])] == []


@pytest.mark.parametrize("start", ["anatomy", "identity"])
def test_the_joint_network_works_with_every_start(fitted: Fitted, tiny, tmp_path: Path, start: str) -> None:
    config = tiny("stn=joint", f"pose.start={start}", "pose.learned=false", "crop.per=slice")
    model = fit(fitted.dataset, tmp_path / "model", config, store=fitted.store)
    assert list(model.info.stages) == ["joint", "unet"]
    assert f"{start} alone" in model.info.history[0]
    scan = Scan("patient", fitted.dataset.root / "imagesTs" / "Muster_Erika_6_0000.nii.gz")
    (outcome,) = predict_scans(
        model, [scan], tmp_path / "out", probabilities=False, reporter=Silent(), steps=write_steps
    )
    assert outcome.problem is None
    assert (tmp_path / "out" / "steps" / "patient.png").stat().st_size > 10_000
    assert {row["pose_from"] for row in outcome.record["slices"]} <= {"learned", start}


def test_the_roll_network_can_be_fine_tuned_before_the_joint_stage(
    fitted: Fitted, tiny, tmp_path: Path
) -> None:
    config = tiny("stn=joint", "pose.start=anatomy", "pose.learned=true", "unet.optimizer.epochs=1")
    reporter = RecordingReporter()
    model = fit(fitted.dataset, tmp_path / "model", config, store=fitted.store, reporter=reporter)
    assert list(model.info.stages) == ["pose", "joint", "unet"]
    assert "roll cosine" in model.info.history[0]
    assert any("not calibrated" in line for line in reporter.lines)


def test_a_finished_run_is_not_repeated(fitted: Fitted) -> None:
    before = snapshot(fitted.folder)
    reporter = RecordingReporter()
    model = fit(fitted.dataset, fitted.folder, fitted.config, resume=True, reporter=reporter)
    assert snapshot(fitted.folder) == before
    assert reporter.lines == [f"{fitted.folder} is finished already"]
    assert model.weights_sha256 == fitted.model.weights_sha256


def test_the_folder_of_another_run_is_refused(fitted: Fitted, tiny) -> None:
    before = snapshot(fitted.folder)
    fewer = replace(fitted.dataset, cases=fitted.dataset.cases[1:])
    other = tiny("train.seed=1")
    for dataset, config, resume, message in (
        (fitted.dataset, fitted.config, False, r"not empty; add --resume"),
        (fitted.dataset, other, False, r"not empty"),
        (fitted.dataset, other, True, r"was started with another config"),
        (fewer, fitted.config, True, r"was started with another cases"),
    ):
        with pytest.raises(InputError, match=message) as error:
            fit(dataset, fitted.folder, config, resume=resume, store=fitted.store)
        assert str(fitted.folder) in str(error.value)
    assert snapshot(fitted.folder) == before


def test_a_folder_with_other_files_is_refused(fitted: Fitted, tiny, tmp_path: Path) -> None:
    """A model copied without its ``work`` folder, or a user's own files, are never reused."""
    for name in ("model.json", "notes.txt"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_bytes((fitted.folder / "model.json").read_bytes())
        before = snapshot(folder)
        with pytest.raises(InputError, match=rf"{folder}: is not a training folder of isopose fit"):
            fit(fitted.dataset, folder, fitted.config, store=fitted.store, resume=True)
        assert snapshot(folder) == before


def test_other_images_under_the_same_names_are_refused(fitted: Fitted, tiny, tmp_path: Path) -> None:
    config = tiny(*_short())
    folder = tmp_path / "model"
    fit(fitted.dataset, folder, config, store=fitted.store)
    (folder / "model.json").unlink()
    before = snapshot(folder)
    training, _ = split_patients(fitted.dataset, 3, 0, 0)
    image = read_volume(training[0].image)
    write_image(image.with_array(image.array + 1), tmp_path / "other.nii.gz")
    cases = tuple(
        replace(case, image=tmp_path / "other.nii.gz") if case.id == training[0].id else case
        for case in fitted.dataset.cases
    )
    with pytest.raises(InputError, match="was started with other images or labels"):
        fit(replace(fitted.dataset, cases=cases), folder, config, store=tmp_path / "store", resume=True)
    assert snapshot(folder) == before
    # With the images it was started with it ends as it would have.
    fit(fitted.dataset, folder, config, store=fitted.store, resume=True)
    assert snapshot(folder)["weights.safetensors"] == before["weights.safetensors"]


def test_unknown_names_are_refused(fitted: Fitted, tiny, tmp_path: Path) -> None:
    for setting, message in (
        ("pose.reference=nobody", "case 'nobody' is not among the 4 training cases"),
        ('train.oversample={"liver": 0.5}', "no label 'liver'; expected some of kidney, tumor"),
        ("train.folds=9", "9 folds need as many labeled patients, got 6"),
    ):
        with pytest.raises(InputError, match=message):
            fit(fitted.dataset, tmp_path / setting[:10], tiny(setting), store=fitted.store)
    assert list(tmp_path.iterdir()) == [], "the corrected command may use the same folder"


@pytest.mark.parametrize(
    ("setting", "way_out"),
    [("unet.mirror=0.5", "set unet.mirror=0"), ("predict.mirror=true", "set predict.mirror=false")],
)
def test_a_side_that_cannot_be_mirrored_is_reported_at_the_start(
    fitted: Fitted, tiny, tmp_path: Path, setting: str, way_out: str
) -> None:
    off = ("unet.mirror=0", "predict.mirror=false")
    labels = Labels.create({"kidney left": 1, "tumor": 2})
    one_side = replace(fitted.dataset, labels=labels)
    with pytest.raises(InputError, match=f"{setting.split('=')[0]}: label 'kidney left' .*; {way_out}"):
        fit(one_side, tmp_path / "model", tiny(*off, setting))
    assert not (tmp_path / "model").exists(), "the corrected command may use the same folder"
    check_mirroring(tiny(*off), labels)
    check_mirroring(tiny(setting), Labels.create({"kidney left": 1, "right kidney": 2}))


def test_a_model_folder_that_is_a_file_is_refused(fitted: Fitted, tiny, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("notes")
    with pytest.raises(InputError, match="model: cannot be used as a folder"):
        fit(fitted.dataset, tmp_path / "model", tiny())
    assert (tmp_path / "model").read_text() == "notes"


def test_validation_and_test_patients_do_not_affect_the_weights(fitted: Fitted, tiny, tmp_path: Path) -> None:
    """Replacing their images changes only their scores, not fingerprint and weights."""
    config = tiny(*_short("unet.optimizer.patience=3"))
    _, validation = split_patients(fitted.dataset, 3, 0, 0)
    fit(fitted.dataset, tmp_path / "plain", config, store=tmp_path / "plain store")
    changed = {}
    for case in validation:
        image = read_volume(case.image)
        labels = read_labels(case.label, like=image)
        bright = np.where(labels.array > 0, 900, np.where(image.array > -500, -100, -1000)).astype(np.int16)
        write_image(image.with_array(bright), tmp_path / f"{case.id}.nii.gz")
        write_labels(labels.with_array(labels.array[:, ::-1].copy()), tmp_path / f"{case.id}_labels.nii.gz")
        paths = {"image": tmp_path / f"{case.id}.nii.gz", "label": tmp_path / f"{case.id}_labels.nii.gz"}
        changed[case.id] = replace(case, **paths)
    unread = replace(fitted.dataset.cases[-1], image=tmp_path / "absent.nii.gz", split="test")
    other = replace(
        fitted.dataset,
        cases=tuple(
            changed.get(case.id, unread if case.split == "test" else case) for case in fitted.dataset.cases
        ),
    )
    fit(other, tmp_path / "changed", config, store=tmp_path / "changed store")
    assert_same_weights(tmp_path / "plain", tmp_path / "changed")
    plain, new = (load_model(tmp_path / name) for name in ("plain", "changed"))
    assert plain.fingerprint == new.fingerprint
    assert plain.info.reference == new.info.reference
    assert plain.info.history[0]["loss"] == new.info.history[0]["loss"]
    assert plain.info.history[0]["dice"] != new.info.history[0]["dice"]


def test_fold_all_trains_on_all_patients(fitted: Fitted, tiny, tmp_path: Path) -> None:
    model = fit(fitted.dataset, tmp_path / "all", tiny(*_short("train.fold=all")), store=tmp_path / "store")
    assert (model.info.training.cases, model.info.training.validation_cases) == (6, 0)
    assert model.info.stages["unet"] == StageInfo(epochs=1, best_epoch=1, best=None)


def test_fold_all_never_trains_on_test_patients(fitted: Fitted, tiny, tmp_path: Path) -> None:
    """A second scan of a test patient must not train either."""
    first, *others = fitted.dataset.cases
    again = replace(first, id="again", split="test")
    mixed = replace(fitted.dataset, cases=(first, again, *others))
    with pytest.raises(InputError, match="are scans of one patient; keep a patient on one side"):
        fit(mixed, tmp_path / "model", tiny("train.fold=all"))


def test_labels_only_where_no_body_is_are_refused(cohort: Path, tiny, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "data")
    for path in (tmp_path / "data" / "imagesTr").iterdir():
        volume = read_volume(path)
        array = volume.array.copy()
        array[0] = np.random.default_rng(0).integers(-1020, -980, array.shape[1:])
        write_image(volume.with_array(array), path)
        marks = np.zeros(array.shape, np.uint8)
        marks[0, 30:40, 30:40] = 1
        name = path.name.replace("_0000", "")
        write_labels(volume.with_array(marks), tmp_path / "data" / "labelsTr" / name)
    with pytest.raises(InputError, match="no training slice shows both a label and the body"):
        fit(open_dataset(tmp_path / "data"), tmp_path / "model", tiny(*_short()))


def test_the_fixed_box_contains_every_training_label(fitted: Fitted, tiny, tmp_path: Path) -> None:
    config = tiny("crop.learned=false", "pose.learned=false", "unet.optimizer.epochs=1")
    model = fit(fitted.dataset, tmp_path / "box", config, store=fitted.store)
    x0, y0, x1, y1 = model.pipeline.crop.start.tolist()
    assert -1.0 < x0 < x1 < 1.0
    assert -1.0 < y0 < y1 < 1.0
    training, _ = split_patients(fitted.dataset, 3, 0, 0)
    for case in training:
        volume = read_volume(case.image)
        prediction = predict(model, volume)
        truth = read_labels(case.label, like=volume).array
        # Where the crop lies on the scan: the labels are inside of it.
        for z in np.flatnonzero(truth.any(axis=(1, 2))):
            inside = _in_crop(prediction, z, truth[z] > 0)
            assert np.abs(inside).max() < 1.0


def _in_crop(prediction: Prediction, z: int, mask: np.ndarray) -> np.ndarray:
    """Normalized crop coordinates of a slice's pixels."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    points = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1, np.ones(len(rows))])
    slice_from_frame = prediction.prepared.slice_from_frame.numpy()
    frame_from_homogenized = matrix_from_pose(torch.from_numpy(prediction.scan_pose.pose[z])).numpy()
    chain = slice_from_frame @ frame_from_homogenized @ prediction.scan_pose.theta2[z]
    return (np.linalg.inv(chain) @ points)[:2]


def test_the_papers_preset_runs_all_stages(fitted: Fitted, tiny, tmp_path: Path) -> None:
    config = tiny(
        *("pose.optimizer.epochs=1", "crop.optimizer.epochs=1", "unet.optimizer.epochs=1"), preset="paper"
    )
    assert (config.pose.start, config.pose.fill, config.unet.loss_space) == ("identity", None, "native")
    assert (config.unet.output_norm, config.unet_size, config.unet.optimizer.name) == (True, 64, "sgd")
    model = fit(fitted.dataset, tmp_path / "paper", config, store=fitted.store)
    assert [row["stage"] for row in model.info.history] == ["pose", "crop", "unet"]
    assert all(np.isfinite(row["loss"]) for row in model.info.history)
    assert model.info.reference.lean == 0.0
    assert "unet.outputs.0.1.running_mean" in weights_of(tmp_path / "paper")
    scan = read_volume(fitted.dataset.root / "imagesTs" / "Muster_Erika_6_0000.nii.gz")
    assert predict(model, scan).labels.same_grid(scan)


@pytest.fixture(scope="module")
def kits(tmp_path_factory) -> Path:
    """A KiTS19 folder of real masks, axial axis first, subsampled, with synthetic images."""
    if not MASKS.is_dir():
        pytest.skip(f"no real masks: {MASKS} is absent")
    root = tmp_path_factory.mktemp("kits19")
    # The three with the fewest voxels, which are read quickly.
    for name in ("case_00004", "case_00012", "case_00037"):
        mask = read_volume(MASKS / name / "segmentation.nii.gz")
        assert mask.reorientation().axes == (2, 1, 0), "the axial axis is stored first"
        step = np.array([7, 7, 3 if mask.array.shape[2] < 90 else 4])
        marks = np.ascontiguousarray(mask.array[:: step[0], :: step[1], :: step[2]]).astype(np.uint8)
        matrix = mask.world_from_index.copy()
        matrix[:3, :3] *= step[::-1]
        small = Volume(marks, matrix)
        write_image(_image_around(small), root / name / "imaging.nii.gz")
        write_labels(small, root / name / "segmentation.nii.gz")
    return root


def _image_around(labels: Volume) -> Volume:
    """Soft tissue in an ellipse around the labels, kidneys and tumors brighter, a spine; air around."""
    lps = labels.reoriented()
    y, x = np.nonzero((lps.array > 0).any(axis=0))
    height, width = lps.array.shape[1:]
    rows, columns = np.indices((height, width))
    center = (y.min() + y.max()) / 2 - 0.1 * height, (x.min() + x.max()) / 2
    body = ((rows - center[0]) / (0.33 * height)) ** 2 + ((columns - center[1]) / (0.42 * width)) ** 2 < 1
    body |= (lps.array > 0).any(axis=0)
    spine = (rows - center[0] - 0.2 * height) ** 2 + (columns - center[1]) ** 2 < 12
    plane = np.where(body, np.where(spine, 500.0, 30.0), -1000.0)
    array = plane[None] + 150.0 * (lps.array == 1) + 70.0 * (lps.array == 2)
    array += np.random.default_rng(0).normal(0, 10, array.shape)
    return labels.with_array(labels.reorientation().undo(array.round().astype(np.int16)))


def test_real_masks_in_kits19_layout_are_trained_and_predicted(kits: Path, tiny, tmp_path: Path) -> None:
    dataset = open_dataset(kits)
    assert dataset.layout == "kits19"
    config = tiny(
        *("train.fold=all", "unet.input=full", "unet.optimizer.iterations=40"),
        "unet.optimizer.learning_rate=0.01",
    )
    model = fit(dataset, tmp_path / "model", config)
    assert model.fingerprint.spacing_median[2] >= 12.0  # the axial spacing, stored first
    scans = [Scan(case.id, case.image) for case in dataset.cases]
    outcomes = predict_scans(model, scans, tmp_path / "out", probabilities=False, reporter=Silent())
    assert [outcome.problem for outcome in outcomes] == [None, None, None]
    for case in dataset.cases:
        image, truth, result = (
            sitk.ReadImage(str(path))
            for path in (case.image, case.label, tmp_path / "out" / f"{case.id}.nii.gz")
        )
        # What was trained on lies where the file has it, in the patient's own coordinates.
        stored = _stored_case(tmp_path / "model" / "work" / "store", model, case.id)
        _, _, seen = stored.read(range(stored.record.shape[0]))
        # Within a frame's pixel: between two kidneys the center moves by a few voxels of either.
        for label in (1, 2):
            seen_at, lies_at = _center_of_frame(stored.record, seen == label), _center(truth, label)
            assert seen_at == pytest.approx(lies_at, abs=stored.record.frame.pixel_mm)
        # The tumor is far from the middle: on the wrong side this could not have held.
        middle = (image.GetSize()[2] - 1) / 2 * image.GetSpacing()[2] + image.GetOrigin()[0]
        assert abs(lies_at[0] - middle) > 40.0
        # KiTS19's first axis is the axial one, from head to feet: the slices have been turned round.
        heights = [(sitk.GetArrayFromImage(truth) > 0).sum(axis=(0, 1)), (seen > 0).sum(axis=(1, 2))]
        assert np.corrcoef(heights[0][::-1], heights[1])[0, 1] > 0.95
        assert np.corrcoef(heights[0], heights[1])[0, 1] < 0.95

        assert result.GetSize() == image.GetSize()
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(result, name)() == pytest.approx(getattr(image, name)(), abs=1e-6)
        marked, labeled = (sitk.GetArrayFromImage(part) > 0 for part in (result, truth))
        hit = (marked & labeled).sum() / marked.sum()
        assert hit > 0.8
        assert (marked & labeled).sum() > 0.3 * labeled.sum()
        # On the right side, at the right height: nothing is mirrored on the way there and back.
        for axis in (0, 1, 2):
            assert hit > (marked & np.flip(labeled, axis)).sum() / marked.sum() + 0.1


def _stored_case(folder: Path, model: Model, name: str) -> StoredCase:
    """A case as this model was trained on it; the folder may hold stores of other settings as well."""
    key = hash_of(store_head(model.fingerprint, model.labels, model.config.data))
    return next(case for case in open_store(folder / key[:12]).cases if case.record.id == name)


def _center(labels: sitk.Image, label: int) -> list[float]:
    """World position (LPS, mm) of a label's center, as SimpleITK has it."""
    z, y, x = np.argwhere(sitk.GetArrayFromImage(labels) == label).mean(axis=0)
    return list(labels.TransformContinuousIndexToPhysicalPoint((float(x), float(y), float(z))))


def _center_of_frame(record: Record, seen: np.ndarray) -> list[float]:
    """World position of a label's center in the prepared slices, by the frame in the record."""
    z, y, x = np.argwhere(seen).mean(axis=0)
    frame = record.frame
    corner = [center - frame.fov_mm / 2 for center in frame.center_mm]
    index = [(corner[a] + (v + 0.5) * frame.pixel_mm) / record.spacing[a] for a, v in enumerate((x, y))]
    return (np.array(record.world_from_index) @ [*index, z, 1.0])[:3].tolist()


def test_a_dataset_labeled_in_part_trains_and_no_voxel_is_predicted_to_ignore(sparse, tiny, tmp_path) -> None:
    folder, store = tmp_path / "model", tmp_path / "store"
    fit(open_dataset(sparse), folder, tiny("pose.learned=false"), store=store)
    model = load_model(folder)
    assert model.labels.ignore == 3
    assert dict(model.labels.regions) == {"kidney and tumor": 1, "tumor": 2}
    history = [row for row in model.info.history if row["stage"] == "unet"]
    assert {"dice", "dice kidney and tumor", "dice tumor"} <= history[-1].keys()
    assert all(np.isfinite(row["loss"]) for row in history)
    # Slices 1, 3 and 4 show a kidney; the tumor of slice 2 was not labeled.
    facts = {label.name: label.slices for label in model.fingerprint.labels}
    assert facts == {"label_1": 12, "tumor": facts["tumor"]}
    cases = open_store(next(path.parent for path in store.rglob("store.json"))).cases
    slices = Slices(cases)
    assert all(case.record.undrawn == (0, 2, 5) for case in cases)
    assert sorted(set(slices.annotated().rows[:, 1])) == [1, 3, 4]
    assert set(np.unique(cases[0].read([0])[2])) == {255}
    scan = Scan("one", sparse / "imagesTs" / "Muster_Erika_6_0000.nii.gz")
    (outcome,) = predict_scans(model, [scan], tmp_path / "out", probabilities=False, reporter=Silent())
    assert outcome.problem is None
    assert set(np.unique(read_labels(tmp_path / "out" / "one.nii.gz").array)) <= {0, 1, 2}
