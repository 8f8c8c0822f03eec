"""A model that is trained further: which weights change, what stays, what is refused, the command line."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isopose.cli import main
from isopose.config import Config
from isopose.errors import InputError
from isopose.io.datasets import Dataset, open_dataset
from isopose.labels import Labels
from isopose.models.folder import Model, load_model
from isopose.models.planner import plan_unet
from isopose.models.unet import UNet
from isopose.presets import load_config
from isopose.progress import Silent
from isopose.training.fit import fit
from isopose.training.transfer import check_source, fine_tuning_settings
from reporters import RecordingReporter

VOLUMES: dict[str, Any] = {
    "dims": 3,
    "data": {"size": 64},
    "crop": {"size": 32, "depth": 8, "optimizer": {"epochs": 1, "min_epochs": 1, "iterations": 1}},
    "unet": {
        "base_features": 2,
        "depth": 8,
        "optimizer": {"epochs": 2, "min_epochs": 1, "iterations": 2, "batch_size": 2},
    },
    "train": {"folds": 3, "device": "cpu"},
}


@dataclass(frozen=True)
class Source:
    """A trained model, its folder and what it was trained on."""

    model: Model
    folder: Path
    dataset: Dataset
    store: Path


class Stopping(Silent):
    """A reporter that interrupts training after an epoch."""

    def epoch(self, row) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module", params=[2, 3], ids=["slices", "volumes"])
def source(request, cohort: Path, tiny, tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    config = tiny() if request.param == 2 else load_config(base=VOLUMES)
    dataset = open_dataset(cohort)
    model = fit(dataset, folder / "model", config, store=folder / "store")
    return Source(model, folder / "model", dataset, folder / "store")


def going_on(source: Source, *settings: str) -> Config:
    usual = ("train.folds=3", "train.device=cpu")
    return load_config(base=fine_tuning_settings(source.model), settings=(*usual, *settings))


def go_on(source: Source, folder: Path, *settings: str, **options: Any) -> Model:
    arguments = {"source": source.model, "store": source.store} | options
    return fit(source.dataset, folder, going_on(source, *settings), **arguments)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    """Names of the tensors in which two models differ."""
    before, after = weights_of(one), weights_of(other)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_levels(source: Source, levels: int, *, encoder: bool) -> set[str]:
    """Return tensor names of the last levels of the decoder, optionally also of the encoder's first."""
    parts = ("up", "decode", "outputs", *(("first", "down") if encoder else ()))
    names = [name.split(".") for name in source.model.pipeline.state_dict()]
    return {".".join(n) for n in names if n[0] == "unet" and n[1] in parts and int(n[2]) < levels}


@pytest.mark.parametrize(("parts", "levels", "encoder"), [("decoder", 99, False), ("first2-last2", 2, True)])
def test_only_the_named_parts_are_trained(
    source: Source, tmp_path: Path, parts: str, levels: int, encoder: bool
) -> None:
    model = go_on(source, tmp_path / "model", f"train.parts={parts}", "train.seed=5")
    # Weights and, where the norm keeps any, statistics; of pose, crop and reference nothing moves.
    assert changed(source.folder, tmp_path / "model") == of_levels(source, levels, encoder=encoder)
    assert list(model.info.stages) == ["unet"]
    assert model.info.reference == source.model.info.reference
    assert model.info.training.from_weights_sha256 == source.model.weights_sha256
    assert model.fingerprint == source.model.fingerprint


def test_all_parts_are_trained_from_the_source_weights(source: Source, tmp_path: Path) -> None:
    sections = ("crop", "unet") if source.model.config.dims == 3 else ("pose", "crop", "unet")
    settings = ("learning_rate=1e-12", "weight_decay=0")
    go_on(source, tmp_path / "slow", *(f"{p}.optimizer.{setting}" for p in sections for setting in settings))
    go_on(source, tmp_path / "fast")
    before, slow = weights_of(source.folder), weights_of(tmp_path / "slow")
    learned = [name for name, _ in source.model.pipeline.named_parameters()]
    for name in learned:
        torch.testing.assert_close(slow[name], before[name], rtol=0, atol=1e-6)
    moved = changed(source.folder, tmp_path / "fast")
    assert {name for name in learned if name.startswith(("unet.", "pose.loc", "crop.loc"))} <= moved
    assert "pose.reference_mask" not in moved


def test_an_interrupted_run_resumes_to_the_same_weights(source: Source, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go_on(source, tmp_path / "broken", "train.parts=decoder", reporter=Stopping())
    go_on(source, tmp_path / "broken", "train.parts=decoder", resume=True)
    go_on(source, tmp_path / "whole", "train.parts=decoder")
    assert changed(tmp_path / "broken", tmp_path / "whole") == set()


def test_another_source_model_is_refused_on_resume(source: Source, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go_on(source, tmp_path / "model", "train.parts=decoder", reporter=Stopping())
    other = replace(source, model=replace(source.model, weights_sha256="0" * 64))
    with pytest.raises(InputError, match="another model to begin from"):
        go_on(other, tmp_path / "model", "train.parts=decoder", resume=True)


def test_patients_seen_by_the_source_are_reported_and_recorded(source: Source, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    model = go_on(source, tmp_path / "model", "train.parts=decoder", "train.fold=1", reporter=reporter)
    assert any("2 of 2 validation cases are training cases of the model" in line for line in reporter.lines)
    seen = set(source.model.info.training.images_sha256)
    assert seen < set(model.info.training.images_sha256)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.size=128", "data.size is 128, the model to fine-tune has 64"),
        ("unet.base_features=16", "unet.base_features is 16"),
        ("unet.context=1", "unet.context is 1"),
        ("data.modality=mr", "data.modality is 'mr', the model to fine-tune has 'auto'"),
        ("pose.contrast=any", "pose.contrast is 'any', the model to fine-tune has 'ct'"),
        ("pose.reference=Muster_Erika_1", "keeps its own reference"),
    ],
)
def test_settings_that_do_not_match_the_source_are_refused_before_writing(
    source: Source, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        go_on(source, tmp_path / "model", setting)
    assert not (tmp_path / "model").exists()


def test_slices_of_another_plane_are_refused(source: Source, cohort: Path) -> None:
    config = going_on(source)
    coronal = config.model_copy(update={"data": config.data.model_copy(update={"plane": "coronal"})})
    with pytest.raises(InputError, match=r"data\.plane is 'coronal', the model to fine-tune has 'axial'"):
        check_source(source.model, coronal, open_dataset(cohort))


def test_other_labels_and_channels_are_refused(source: Source, cohort: Path) -> None:
    opened = open_dataset(cohort)
    other = replace(opened, labels=Labels.create({"kidney": 1, "cyst": 2}))
    with pytest.raises(InputError, match="has the labels kidney, tumor, the dataset kidney, cyst"):
        check_source(source.model, going_on(source), other)
    with pytest.raises(InputError, match="has the channels CT, the dataset CT, PET; the same names"):
        check_source(source.model, going_on(source), replace(opened, channels=("CT", "PET")))


def test_unknown_parts_are_refused(cohort: Path, tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name it with --from"):
        fit(open_dataset(cohort), tmp_path / "model", tiny("train.parts=decoder"))


def test_frozen_layers_stay_in_evaluation_while_the_others_train() -> None:
    config = load_config(settings=["unet.base_features=2", "data.size=128"])
    unet = UNet(plan_unet(config.unet_size, config.unet_levels, config.unet), 3)
    unet.freeze("decoder")
    unet.train()
    modes = {name: module.training for name, module in unet.named_modules() if not list(module.children())}
    assert {training for name, training in modes.items() if name.startswith(("first", "down"))} == {False}
    assert {training for name, training in modes.items() if name.startswith(("up", "dec", "out"))} == {True}
    unet.freeze("all")
    unet.train()
    assert all(module.training for module in unet.modules())
    assert all(parameter.requires_grad for parameter in unet.parameters())


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["isopose", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_fit_starts_from_the_settings_of_the_source(
    source: Source, tmp_path: Path, monkeypatch, capsys
) -> None:
    arguments = (
        "fit",
        str(source.dataset.root),
        "--model",
        str(tmp_path / "model"),
        "--from",
        str(source.folder),
    )
    assert run(monkeypatch, *arguments, "--preset", "paper") == 2
    assert "--preset: fine-tuning keeps the model's own settings" in capsys.readouterr().err
    quick = ("--set", "train.folds=3", "--set", "train.device=cpu", "--workers", "0")
    assert run(monkeypatch, *arguments, *quick, "--train", "nothing") == 2
    assert "train.parts" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert run(monkeypatch, *arguments, *quick, "--train", "decoder", "--set", "unet.optimizer.epochs=1") == 0
    saved = json.loads((tmp_path / "model" / "model.json").read_text())
    expected = source.model.config.model_dump(mode="json")
    assert saved["config"].pop("train")["parts"] == "decoder"
    expected.pop("train")
    expected["unet"]["optimizer"]["epochs"] = 1
    assert saved["config"] == expected
    assert load_model(tmp_path / "model").info.stages["unet"].epochs == 1
