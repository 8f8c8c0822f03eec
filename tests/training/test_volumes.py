"""``isopose fit --set dims=3`` with the smallest training: fit, predict, resume, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isopose.config import Config
from isopose.data.samples import Volumes
from isopose.data.store import open_store
from isopose.errors import InputError
from isopose.inference.files import predict_scans
from isopose.inference.predict import predict
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume
from isopose.io.scans import Scan
from isopose.models.folder import Model, load_model
from isopose.models.pipeline import Networks
from isopose.progress import Silent
from isopose.report.steps import write_steps
from isopose.training.fit import fit

SMALL = ("dims=3", "pose.learned=false", "crop.depth=8", "unet.depth=8", "unet.base_features=2")


@pytest.fixture(scope="module")
def config(tiny) -> Config:
    return tiny(*SMALL, "crop.optimizer.batch_size=2", "unet.optimizer.batch_size=2")


@pytest.fixture(scope="module")
def fitted(cohort: Path, config: Config, tmp_path_factory) -> tuple[Model, Path, Path]:
    folder = tmp_path_factory.mktemp("volumes")
    model = fit(open_dataset(cohort), folder / "model", config, store=folder / "store")
    return model, folder / "model", folder / "store"


def test_crop_and_unet_of_volumes_are_trained(fitted) -> None:
    model, folder, _ = fitted
    assert isinstance(model.pipeline, Networks)
    stages = model.info.stages
    assert {name: stages[name].epochs for name in stages} == {"crop": 2, "unet": 3}
    history = model.info.history
    assert all(np.isfinite(row["loss"]) for row in history)
    assert "box overlap" in history[0]
    assert {"dice", "dice kidney", "dice tumor"} <= history[2].keys()
    assert model.pipeline.crop.localization.output.weight.abs().max() > 0
    assert model.pipeline.crop.localization.output.weight.shape[0] == 6
    # Six slices of 5 mm in the frame, for the smallest body, whose scale enlarges most.
    assert 0.05 < float(model.pipeline.reach) < 0.5
    assert "Muster" not in (folder / "model.json").read_text()


def test_predict_writes_labels_on_the_scans_grid_and_a_record(fitted, cohort, tmp_path) -> None:
    model, folder, _ = fitted
    path = cohort / "imagesTs" / "Muster_Erika_6_0000.nii.gz"
    (outcome,) = predict_scans(
        load_model(folder),
        [Scan("six", path)],
        tmp_path,
        probabilities=True,
        reporter=Silent(),
    )
    assert outcome.problem is None
    scan, labels = read_volume(path), read_labels(tmp_path / "six.nii.gz")
    assert labels.same_grid(scan)
    record = json.loads((tmp_path / "six.json").read_text())
    assert record["roll_degrees"] == pytest.approx(0.0, abs=5)
    assert len(record["pose"]) == 9
    total = sum(
        read_volume(tmp_path / "probabilities" / f"six_{name}.nii.gz").array
        for name in ("background", "kidney", "tumor")
    )
    np.testing.assert_allclose(total, 1.0, atol=1e-4)
    again = predict(model, scan)
    assert np.array_equal(again.labels.array, labels.array)


def test_steps_are_refused_for_volumes_in_one_line(fitted, cohort, tmp_path) -> None:
    scans = [Scan("six", cohort / "imagesTs" / "Muster_Erika_6_0000.nii.gz")]
    with pytest.raises(InputError, match="--steps draws single slices"):
        predict_scans(
            fitted[0], scans, tmp_path / "out", probabilities=False, reporter=Silent(), steps=write_steps
        )
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_resumes_to_the_same_weights(
    fitted, cohort, config, tmp_path, monkeypatch
) -> None:
    _, whole, store = fitted

    class Broken(Exception):
        pass

    class Breaking(Silent):
        def epoch(self, row):
            if (row["stage"], row["epoch"]) == ("unet", 2):
                raise Broken

    with pytest.raises(Broken):
        fit(open_dataset(cohort), tmp_path / "model", config, store=store, reporter=Breaking())
    fit(open_dataset(cohort), tmp_path / "model", config, store=store, resume=True)
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole, tmp_path / "model"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_fixed_crop_contains_every_training_label(fitted, cohort, tiny, tmp_path) -> None:
    _, _, store = fitted
    settings = ("crop.learned=false", "unet.optimizer.epochs=1", "train.fold=all")
    model = fit(open_dataset(cohort), tmp_path / "model", tiny(*SMALL, *settings), store=store)
    box = model.pipeline.crop.start
    assert (box[3:] > box[:3]).all()
    # The labels are in the four inner slices of six: less than the whole along z, and within the body.
    assert box[2] > -1.0
    assert box[5] < 1.0
    assert box[0] > -0.95
    shutil.rmtree(tmp_path / "model")


def test_a_whole_case_equals_its_slices(fitted) -> None:
    store = open_store(next(path.parent for path in fitted[2].rglob("store.json")))
    volumes = Volumes(store.cases)
    batch = volumes.read(np.array([2, 0]))
    image, mask, labels = store.cases[2].read(range(6))
    np.testing.assert_array_equal(batch.image[0][0, 0], image)
    np.testing.assert_array_equal(batch.mask[0][0, 0], mask)
    np.testing.assert_array_equal(batch.labels[0][0], labels)
    # Six slices of 5 mm in a frame of so many mm: the stack's half depth in half sides of the frame.
    fov = store.cases[2].record.frame.fov_mm
    assert float(batch.stack_from_frame[0, 2, 2]) == pytest.approx(fov / 30.0)
    assert volumes.presence.all()
    assert [tuple(b.rows.tolist()) for b in volumes.batches(4)] == [(0, 1, 2, 3), (4, 5)]


def test_volumes_labeled_in_part_train_and_no_voxel_is_predicted_to_ignore(
    sparse, config: Config, tmp_path
) -> None:
    model = fit(open_dataset(sparse), tmp_path / "model", config, store=tmp_path / "store")
    assert all(np.isfinite(row["loss"]) for row in model.info.history)
    assert "dice kidney and tumor" in model.info.history[-1]
    path = sparse / "imagesTs" / "Muster_Erika_6_0000.nii.gz"
    result = predict(model, read_volume(path)).labels.array
    assert set(np.unique(result)) <= {0, 1, 2}
