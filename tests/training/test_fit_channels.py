"""Training with several channels, of which only the second shows the tumor."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trunks import patient

from bright import dice
from isopose.config import Config
from isopose.data.normalization import ByScan
from isopose.errors import InputError
from isopose.evaluation.crossvalidation import cross_validate
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import load_ensemble
from isopose.inference.predict import predict
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import read_volume, write_image, write_labels
from isopose.models.card import CARD
from isopose.models.folder import load_model
from isopose.presets import load_config
from isopose.progress import Silent
from isopose.training.fit import fit
from isopose.training.folds import fit_folds
from isopose.training.memory import training_bytes

SHORT = {"epochs": 4, "min_epochs": 4, "iterations": 25, "batch_size": 12}
BASE = {
    "data": {"size": 64},
    "crop": {"learned": False},
    "unet": {"base_features": 8, "optimizer": SHORT},
    "train": {"folds": 3, "device": "cpu"},
}


def channels_of(number: int) -> tuple[Volume, Volume, Volume]:
    """A patient's CT, in which the tumor looks as the body does; uptake without a unit; labels."""
    image, labels = patient(number)
    random = np.random.default_rng(100 + number)
    ct = np.where(labels.array == 2, image.array - 60, image.array)
    body = image.array > -500
    uptake = np.where(body, 1.0 + 4.0 * (labels.array == 2), 0.0) * (1.0 + number)
    uptake = uptake + np.where(body, random.normal(0.0, 0.1, uptake.shape), 0.0)
    return image.with_array(ct), image.with_array(uptake.astype(np.float32)), labels


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("channels") / "Dataset002"
    for number in range(7):
        *images, labels = channels_of(number)
        part = "Ts" if number == 6 else "Tr"
        for channel, image in enumerate(images):
            write_image(image, folder / f"images{part}" / f"case_{number}_{channel:04d}.nii.gz")
        write_labels(labels, folder / f"labels{part}" / f"case_{number}.nii.gz")
    facts = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "kidney": 1, "tumor": 2},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stores")


def settings(*changes: str) -> Config:
    return load_config(base=BASE, settings=changes)


def first_alone(dataset: Dataset) -> Dataset:
    cases = tuple(replace(case, further=()) for case in dataset.cases)
    return replace(dataset, cases=cases, channels=dataset.channels[:1])


def test_a_tumor_visible_only_in_the_second_channel_is_segmented(
    both: Path, stores: Path, tmp_path: Path
) -> None:
    opened = open_dataset(both)
    config = settings()
    images = [read_volume(path) for path in opened.cases[-1].images]
    truth = read_volume(both / "labelsTs" / "case_6.nii.gz").array
    scores = []
    for name, dataset in (("ct", first_alone(opened)), ("both", opened)):
        trained = fit(dataset, tmp_path / name, config, store=stores)
        result = predict(trained, images[: len(dataset.channels)]).labels.array
        scores.append([dice(result == value, truth == value) for value in (1, 2)])
    (kidney_alone, tumor_alone), (kidney, tumor) = scores
    assert min(kidney_alone, kidney) > 0.8
    # In CT the tumor has the values of what is around it.
    assert tumor_alone < 0.3
    assert tumor > 0.8
    assert trained.pipeline.unet.first[0][0].weight.shape[1] == 2
    assert trained.channels == ("CT", "PET")
    assert isinstance(trained.fingerprint.channels[1].scale, ByScan)
    # From the disk it is the same model, and it says what it takes.
    loaded = load_model(tmp_path / "both")
    assert loaded.pipeline.airs == trained.pipeline.airs
    np.testing.assert_array_equal(predict(loaded, images).labels.array, result)
    assert "Segments kidney, tumor in CT and PET, on" in (tmp_path / "both" / CARD).read_text()
    # The scans that trained it are known by all their channels.
    assert len(set(trained.info.training.images_sha256)) == len(trained.info.training.images_sha256) == 4


def test_a_changed_channel_is_refused_on_resume(both: Path, stores: Path, tmp_path: Path) -> None:
    opened, config = open_dataset(both), settings("unet.optimizer.epochs=1", "unet.optimizer.iterations=1")
    fit(opened, tmp_path / "model", config, store=stores)
    (tmp_path / "model" / "model.json").unlink()
    fit(opened, tmp_path / "model", config, store=stores, resume=True)
    (tmp_path / "model" / "model.json").unlink()
    case = opened.cases[2]
    image = read_volume(case.further[0])
    write_image(image.with_array(image.array[::-1].copy()), tmp_path / "other.nii.gz")
    cases = [replace(c, further=(tmp_path / "other.nii.gz",)) if c is case else c for c in opened.cases]
    with pytest.raises(InputError, match="was started with other images or labels"):
        fit(replace(opened, cases=tuple(cases)), tmp_path / "model", config, store=stores, resume=True)
    with pytest.raises(InputError, match=r"data\.pose_channel is 2, expected 0 to 1 or one of CT, PET"):
        fit(opened, tmp_path / "new", settings("data.pose_channel=2"))
    with pytest.raises(InputError, match=r"data\.normalization lists 1, expected one for each of the 2"):
        fit(opened, tmp_path / "new", settings('data.normalization=["ct"]'))
    assert not (tmp_path / "new").exists()


def test_volumes_and_folds_use_all_channels(both: Path, tmp_path: Path) -> None:
    opened = open_dataset(both)
    images = [read_volume(path) for path in opened.cases[-1].images]
    short = (
        "unet.base_features=2",
        "unet.optimizer.epochs=1",
        "unet.optimizer.iterations=1",
        "unet.optimizer.batch_size=1",
    )
    volumes = fit(opened, tmp_path / "volumes", settings("dims=3", "unet.depth=8", *short))
    assert volumes.pipeline.unet.first[0][0].weight.shape[1] == 2
    result = predict(volumes, images).labels
    assert result.same_grid(images[0])
    np.testing.assert_array_equal(
        predict(load_model(tmp_path / "volumes"), images).labels.array, result.array
    )
    # The second channel reaches the network.
    other = images[1].with_array(images[1].array[:, ::-1].copy())
    changed = predict(volumes, [images[0], other], probabilities=True).probabilities
    plain = predict(volumes, images, probabilities=True).probabilities
    assert changed is not None
    assert plain is not None
    assert np.abs(changed - plain).max() > 1e-3

    config = settings(*short)
    assert fit_folds(opened, tmp_path / "folds", config, reporter=Silent())
    evaluation = cross_validate(opened, tmp_path / "folds", config, reporter=Silent())
    assert len(evaluation.cases) == 6
    ensemble = load_ensemble([tmp_path / "folds"])
    assert ensemble.channels == ("CT", "PET")
    assert len(ensemble.members) == 3
    assert predict(ensemble, images).labels.same_grid(images[0])


def test_predicted_memory_grows_with_channels() -> None:
    config = settings()
    alone, two, three = (training_bytes(config, 3, "cpu", channels) for channels in (1, 2, 3))
    assert training_bytes(config, 3, "cpu") == alone
    assert alone < two < three
