import json
import pickle
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bright import bright_model, make_scene
from isopose.errors import InputError
from isopose.files import sha256
from isopose.geometry.pose import matrix_from_pose
from isopose.inference.predict import predict
from isopose.io.images import write_image
from isopose.models.folder import Model, for_prediction, load_model, save_model
from isopose.models.info import ModelInfo, ReferenceInfo, TrainingInfo
from isopose.presets import validate_config


@pytest.fixture(scope="module")
def model():
    """An untrained model in which all weights are random, including those initialized to zero."""
    untrained = bright_model({"data": {"size": 64}}, real_unet=True)
    generator = torch.Generator().manual_seed(3)
    for tensor in untrained.pipeline.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.02 * torch.rand(tensor.shape, generator=generator)
    info = ModelInfo(TrainingInfo(("a" * 64,)), ReferenceInfo(slice=3))
    return replace(untrained, info=info)


@pytest.fixture
def folder(model, tmp_path):
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def shared_folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    save_model(path, model)
    return path


def test_a_loaded_model_equals_the_saved_one(model, shared_folder):
    loaded = load_model(shared_folder)
    saved, again = model.pipeline.state_dict(), loaded.pipeline.state_dict()
    assert list(saved) == list(again)
    for name, tensor in saved.items():
        assert tensor.dtype == again[name].dtype
        assert torch.equal(tensor, again[name]), name
    for name in ("config", "labels", "fingerprint", "info"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.pipeline.air == model.pipeline.air
    assert loaded.weights_sha256 == sha256(shared_folder / "weights.safetensors")
    assert not any(module.training for module in loaded.pipeline.modules())
    assert not any(parameter.requires_grad for parameter in loaded.pipeline.parameters())


def test_a_loaded_model_predicts_the_same_bits(model, shared_folder):
    scan = make_scene(roll=0.2, slices=2).volume
    before = predict(model, scan, probabilities=True)
    after = predict(load_model(shared_folder), scan, probabilities=True)
    np.testing.assert_array_equal(before.probabilities, after.probabilities)
    np.testing.assert_array_equal(before.scan_pose.pose, after.scan_pose.pose)
    np.testing.assert_array_equal(before.scan_pose.theta2, after.scan_pose.theta2)
    # The weights matter: neither is just background, and the learned parts did something.
    assert np.ptp(before.probabilities[1]) > 1e-3
    assert np.abs(before.scan_pose.pose).max() > 1e-3


def test_the_fused_copy_for_prediction_gives_the_same_result(model):
    """The copy has fused layers and another memory format; the model itself is not changed."""
    exact = validate_config({**model.config.model_dump(), "predict": {"precision": "32-true"}}, "test")
    before = {name: value.clone() for name, value in model.pipeline.state_dict().items()}
    fast = for_prediction(replace(model, config=exact))
    scan = make_scene().volume
    expected, result = predict(replace(model, config=exact), scan), predict(fast, scan)
    assert np.mean(result.labels.array != expected.labels.array) < 1e-4
    assert (expected.labels.array > 0).any()
    after = model.pipeline.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_loading_and_predicting_import_only_needed_modules(shared_folder, tmp_path):
    """Importing compilers, matplotlib and the store costs seconds and a hundred megabytes per prediction."""
    write_image(make_scene(slices=3).volume, tmp_path / "scan.nii.gz")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from isopose.inference.files import predict_scans\n"
        "from isopose.io.scans import Scan\n"
        "from isopose.models.folder import load_model\n"
        "from isopose.progress import Silent\n"
        "model, scan, out = map(Path, sys.argv[1:])\n"
        "given = load_model(model), [Scan('scan', scan)], out\n"
        "predict_scans(*given, probabilities=False, reporter=Silent())\n"
        "print(*sys.modules)\n"
    )
    command = [sys.executable, "-c", program, shared_folder, tmp_path / "scan.nii.gz", tmp_path / "out"]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / "scan.nii.gz").exists()
    loaded = set(process.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"torch._dynamo", "sympy", "matplotlib", "blosc2", "lightning_fabric", "monai"}


def test_saving_again_gives_the_same_bytes(shared_folder, tmp_path):
    save_model(tmp_path / "again", load_model(shared_folder))
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "again" / name).read_bytes() == (shared_folder / name).read_bytes()


def test_nothing_in_the_folder_can_execute(shared_folder):
    assert sorted(path.name for path in shared_folder.iterdir()) == ["model.json", "weights.safetensors"]
    raw = (shared_folder / "weights.safetensors").read_bytes()
    # The safetensors format: a length, a JSON header, and nothing but the bytes that it names.
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    assert len(raw) == 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    assert "pose.reference_mask" in header


def test_nothing_is_unpickled(folder, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    load_model(folder)
    (folder / "weights.safetensors").write_bytes(pickle.dumps({"pose.reference_mask": torch.zeros(1)}))
    change(folder, lambda values: values.update(weights_sha256=sha256(folder / "weights.safetensors")))
    refused(folder, "damaged model")


def refused(folder, words):
    with pytest.raises(InputError, match=words) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def change(folder, edit):
    path = folder / "model.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_tampered_weights_are_refused(folder):
    weights = folder / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    refused(folder, "not the weights that model.json names")


def test_weights_of_another_model_are_refused_even_under_their_own_hash(folder, tmp_path):
    other = bright_model({"data": {"size": 64}, "unet": {"base_features": 3}}, real_unet=True)
    save_model(tmp_path / "other", other)
    weights = folder / "weights.safetensors"
    weights.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    refused(folder, "copy the whole folder")
    change(folder, lambda values: values.update(weights_sha256=sha256(weights)))
    refused(folder, "damaged model")


def test_weights_that_are_no_safetensors_are_refused(folder):
    weights = folder / "weights.safetensors"
    for content in (b"", b"PK\x03\x04 a zip with a pickle", weights.read_bytes()[:-40]):
        weights.write_bytes(content)
        change(folder, lambda values: values.update(weights_sha256=sha256(weights)))
        refused(folder, "damaged model")


def test_weights_that_are_no_numbers_are_refused_even_under_their_own_hash(folder):
    weights = folder / "weights.safetensors"
    tensors = load_file(weights)
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_file(tensors, weights)
    change(folder, lambda values: values.update(weights_sha256=sha256(weights)))
    refused(folder, r"damaged model \(weights that are not finite\)")


def test_missing_files_are_refused(folder, tmp_path):
    refused(tmp_path / "nowhere", "no model.json; expected the --model folder of a finished isopose fit")
    (folder / "weights.safetensors").unlink()
    refused(folder, "missing")
    (folder / "model.json").write_text("{")
    refused(folder, "expected a JSON file")


@pytest.mark.parametrize("given", [1, 3, 0, "2", None])
def test_another_format_is_refused(folder, given):
    change(folder, lambda values: values.update(format=given))
    refused(folder, f"model format {given!r}, this isopose .* reads 2; use the isopose that made it")


@pytest.mark.parametrize(
    ("change_values", "words"),
    [
        (lambda values: values["labels"]["values"].update(kidney=0), "labels: 'kidney' has value 0"),
        (lambda values: values["fingerprint"].update(channels=[]), "fingerprint: channels: "),
        (lambda values: values["config"].update(dims=7), "dims: Input should be 2 or 3"),
    ],
)
def test_a_message_names_the_damaged_model_of_several(folder, change_values, words):
    change(folder, change_values)
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert str(error.value).startswith(f"{folder / 'model.json'}: {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"model"'])
def test_json_that_is_no_object_is_refused(folder, content):
    (folder / "model.json").write_text(content)
    refused(folder, "model format None")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("config", "unet", "base_features"), 10**9, "damaged model"),
        (("config", "unet", "base_features"), 10**30, "damaged model"),
        (("config", "unet", "color"), 3, "unet.color: no such setting"),
        (("labels", "values"), [1, 2], "damaged model"),
        (("labels", "values", "kidney"), float("inf"), "damaged model"),
        (("air",), float("nan"), "damaged model"),
        (("air",), "cold", "damaged model"),
        (("info",), [], "damaged model"),
        (("info", "training"), None, "damaged model"),
        (("info", "training", "images_sha256"), 7, "damaged model"),
        (("info", "training", "images_sha256"), "abc", "damaged model"),
        (("info", "training", "validation_images_sha256"), 7, "damaged model"),
        (("info", "history"), [1], "damaged model"),
        (("info", "reference"), None, "damaged model"),
        (("info", "reference"), {"area_cm2": 0.0}, "damaged model .info.reference.area_cm2: "),
        (("info", "stages"), {"unet": {"epochs": 1}}, "damaged model .info.stages.unet.best_epoch: "),
        (("info", "history"), [{"loss": 1.0}], "expected rows with stage and epoch"),
        (("info", "training", "patients"), "three", "damaged model .info.training.patients: "),
        (("info", "color"), 3, "damaged model .info.color: "),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_impossible_values_are_refused(folder, path, value, words):
    def edit(values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    change(folder, edit)
    refused(folder, words)


def places(values, path=()):
    """Yield the path of every value in nested JSON."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**12, 10**400, -1, 0.5, float("nan"), float("inf"), -1e308, "", "kidney", "cpu"]),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from(["kidney", "x", "values"]), st.integers(-1, 300), max_size=2),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_manifest_is_a_valid_model_or_an_input_error(data, shared_folder, tmp_path):
    folder = tmp_path / "mutated"
    folder.mkdir(exist_ok=True)
    weights = folder / "weights.safetensors"
    if not weights.exists():
        weights.symlink_to(shared_folder / "weights.safetensors")
    values = json.loads((shared_folder / "model.json").read_text())
    for _ in range(data.draw(st.integers(1, 2), label="mutations")):
        place = data.draw(st.sampled_from(list(places(values))), label="place")
        parent = values
        for key in place[:-1]:
            parent = parent[key]
        if data.draw(st.booleans(), label="remove"):
            del parent[place[-1]]
        else:
            parent[place[-1]] = data.draw(ODD, label="value")
    (folder / "model.json").write_text(json.dumps(values))
    try:
        loaded = load_model(folder)
    except InputError:
        return
    assert isinstance(loaded, Model)
    # Valid means usable: it goes through a forward pass and can be saved again.
    config = loaded.config
    image = torch.zeros(1, 1, config.data.size, config.data.size)
    pose = loaded.pipeline.pose(image, torch.ones_like(image))
    theta2 = loaded.pipeline.theta2(image, torch.ones_like(image), matrix_from_pose(pose))
    assert loaded.pipeline.probabilities(loaded.pipeline.cut(image, theta2)).shape[1] == loaded.labels.classes
    assert isinstance(loaded.info, ModelInfo)
