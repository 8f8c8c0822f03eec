"""Ensembles: averaging, shared computation, refusals and records."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bright import FOV, bright_model, make_scene
from isopose.api.pipeline import Pipeline
from isopose.errors import InputError
from isopose.files import sha256
from isopose.inference import predict as predicting
from isopose.inference.ensemble import Ensemble, load_ensemble, save_ensemble
from isopose.inference.files import predict_scans
from isopose.inference.postprocess import Midline, Rule
from isopose.inference.predict import predict
from isopose.inference.record import prediction_record, recorded_midline
from isopose.io.images import read_labels, write_image
from isopose.io.scans import Scan
from isopose.labels import Labels
from isopose.models.folder import Model, load_model, save_model
from isopose.progress import Silent

PLAIN = {"pose": {"learned": False}, "crop": {"enabled": False}}
#: Remove everything, whatever random weights mark.
RULES = (Rule("kidney", "volume", 1e6), Rule("tumor", "volume", 1e6))
VOLUMES = {
    "dims": 3,
    "data": {"size": 96},
    "pose": {"learned": False, "per": "volume"},
    "crop": {"enabled": False, "depth": 16},
    "unet": {"depth": 64},
}


@pytest.fixture(scope="module")
def supine():
    return make_scene(empty=(0,))


def alike(seed: int, **changes) -> Model:
    """Make a model that differs from the others only in the random weights of its U-Net."""
    model = bright_model(PLAIN | changes, real_unet=True)
    torch.manual_seed(seed)
    for weight in model.pipeline.unet.parameters():
        weight.copy_(0.2 * torch.randn_like(weight))
    return replace(model, weights_sha256=str(seed) * 64)


def saved(folder: Path, seed: int) -> Path:
    save_model(folder, alike(seed))
    return folder


def test_probabilities_are_the_mean_and_labels_its_argmax(supine) -> None:
    models = [alike(1), alike(2), alike(3)]
    alone = [predict(model, supine.volume, probabilities=True) for model in models]
    together = predict(Ensemble(tuple(models)), supine.volume, probabilities=True)
    mean = np.mean([one.probabilities for one in alone], axis=0)
    np.testing.assert_allclose(together.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(together.probabilities.sum(axis=0), 1.0, atol=1e-5)
    sure = np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 1e-5
    expected = np.array([0, 1, 7], np.uint8)[mean.argmax(axis=0)]
    assert np.array_equal(together.labels.array[sure], expected[sure])
    # They differ from each other and from the mean, so that agreement means something.
    assert not np.array_equal(alone[0].labels.array, alone[1].labels.array)
    assert not np.array_equal(alone[0].labels.array, together.labels.array)


def test_an_ensemble_of_one_model_twice_equals_the_model(supine) -> None:
    model = bright_model({"pose": {"learned": False}}, crop_start=(0.4, 0.4, -0.2, -0.1))
    one = predict(model, supine.volume, probabilities=True)
    two = predict(Ensemble((model, model)), supine.volume, probabilities=True)
    assert np.array_equal(one.labels.array, two.labels.array)
    assert np.array_equal(one.probabilities, two.probabilities)
    assert one.warnings == two.warnings
    assert np.array_equal(one.scan_pose.theta2, two.scan_pose.theta2, equal_nan=True)


def test_members_that_mirror_alternate_between_plain_and_mirrored() -> None:
    """The U-Net sees half of its input; the second member's input is mirrored, its output flipped back."""
    scene = make_scene(slices=2)
    mirroring = bright_model(PLAIN | {"predict": {"mirror": True}}, sided=True, half="left")
    network_inputs: list[torch.Tensor] = []
    mirroring.pipeline.unet.register_forward_hook(lambda _, inputs, __: network_inputs.append(inputs[0]))
    one = predict(mirroring, scene.volume, probabilities=True)
    two = predict(Ensemble((mirroring, mirroring)), scene.volume, probabilities=True)
    assert len(network_inputs) == 4
    assert torch.equal(network_inputs[2], network_inputs[0])
    assert torch.equal(network_inputs[3], network_inputs[0].flip(3))
    np.testing.assert_allclose(two.probabilities, one.probabilities, atol=1e-6)
    assert two.probabilities[1].sum() > 10 * two.probabilities[3].sum()
    still = bright_model(PLAIN, sided=True)
    assert Ensemble((still, mirroring)).views == ((False,), (False, True))
    assert Ensemble((mirroring, still, mirroring, mirroring)).views == ((False,), (False,), (True,), (False,))


def test_members_may_crop_different_parts_of_the_scan(supine) -> None:
    """Outside its own crop, each member predicts background."""
    models = [
        bright_model({"pose": {"learned": False}, "predict": {"crop_border": 0}}, crop_start=start)
        for start in ((0.3, 0.3, -0.3, 0.0), (0.3, 0.3, 0.3, 0.0), (0.9, 0.9, 0.0, 0.0))
    ]
    alone = [predict(model, supine.volume, probabilities=True).probabilities for model in models]
    reached = [(one[0] < 1).any(axis=(0, 1)) for one in alone]
    assert not np.array_equal(reached[0], reached[1])
    together = predict(Ensemble(tuple(models)), supine.volume, probabilities=True)
    np.testing.assert_allclose(together.probabilities, np.mean(alone, axis=0), atol=1e-6)


def test_members_of_slices_and_volumes_are_combined(supine) -> None:
    models = [bright_model(PLAIN), bright_model(VOLUMES)]
    alone = [predict(model, supine.volume, probabilities=True).probabilities for model in models]
    for order in (models, models[::-1]):
        together = predict(Ensemble(tuple(order)), supine.volume, probabilities=True)
        np.testing.assert_allclose(together.probabilities, np.mean(alone, axis=0), atol=1e-5)
        assert (together.labels.array == 7).any()


def test_shared_preparation_and_poses_are_computed_once(supine, monkeypatch) -> None:
    calls: dict[str, int] = {"prepare": 0, "slice_poses_of": 0}
    for name in calls:
        real = getattr(predicting, name)

        def counted(*arguments, real=real, name=name, **named):
            calls[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(predicting, name, counted)
    predict(Ensemble((alike(1), alike(2), alike(3))), supine.volume)
    assert calls == {"prepare": 1, "slice_poses_of": 1}
    # Another normalization, then another reference: what depends on it is done for that member.
    other = replace(alike(2), fingerprint=bright_model(PLAIN, fov_mm=FOV + 10).fingerprint)
    predict(Ensemble((alike(1), other)), supine.volume)
    assert calls == {"prepare": 3, "slice_poses_of": 3}
    turned = alike(2)
    turned.pipeline.pose.reference_mask.copy_(turned.pipeline.pose.reference_mask.transpose(2, 3).clone())
    predict(Ensemble((alike(1), turned)), supine.volume)
    assert calls == {"prepare": 4, "slice_poses_of": 5}


def test_warnings_name_their_member(supine) -> None:
    cutting = bright_model({"pose": {"learned": False}}, crop_start=(0.15, 0.15, 0.3, 0.0))
    whole = bright_model(PLAIN)
    of_one = predict(cutting, supine.volume).warnings
    assert of_one
    of_two = predict(Ensemble((whole, cutting)), supine.volume).warnings
    assert of_two == tuple(f"member 2 of 2: {line}" for line in of_one)


def test_other_labels_are_refused_in_one_line(tmp_path) -> None:
    model = alike(1)
    save_model(tmp_path / "one", model)
    other = replace(model, labels=Labels.create({"liver": 1, "tumor": 7}))
    save_model(tmp_path / "other", other)
    with pytest.raises(InputError, match=r"other: marks liver=1, tumor=7, and .*one kidney=1, tumor=7;"):
        load_ensemble([tmp_path / "one", tmp_path / "other"])
    with pytest.raises(InputError, match="need the same labels"):
        Ensemble((model, other))


@pytest.fixture
def folded(tmp_path) -> Path:
    """A model folder of two folds with a postprocessing rule."""
    folder = tmp_path / "M"
    members = tuple(load_model(saved(folder / f"fold-{n}", n + 1)) for n in range(2))
    save_ensemble(folder, Ensemble(members, RULES), ["fold-0", "fold-1"], {"kidney": {"none": 0.5}})
    return folder


def test_a_model_of_folds_with_a_missing_fold_is_refused(folded, supine) -> None:
    loaded = load_ensemble([folded])
    assert [one.weights_sha256 for one in loaded.members] == [
        sha256(folded / f"fold-{n}" / "weights.safetensors") for n in range(2)
    ]
    assert loaded.rules == RULES
    # The rules are of these folds alone.
    assert load_ensemble([folded, folded / "fold-0"]).rules == ()
    assert len(load_ensemble([folded, folded / "fold-0"]).members) == 3
    with pytest.raises(InputError, match="a model of 2 folds, which only predict, serve and the Python API"):
        load_model(folded)
    (folded / "fold-1").rename(folded / "elsewhere")
    with pytest.raises(InputError, match="fold-1, one of its 2 members, is missing; copy the whole folder"):
        load_ensemble([folded])
    saved(folded / "fold-1", 5)
    with pytest.raises(InputError, match=r"fold-1: not the member that .*model.json names"):
        load_ensemble([folded])


@pytest.mark.parametrize(
    "change",
    [
        {"members": []},
        {"members": [{"folder": "../M/fold-0", "weights_sha256": "0"}]},
        {"members": [{"folder": "..", "weights_sha256": "0"}]},
        {"members": 3},
        {"clean_up": [{"label": "spleen", "keep": "largest"}]},
        {"clean_up": [{"label": "kidney", "keep": "none"}]},
        {"clean_up": None},
    ],
)
def test_a_damaged_manifest_is_one_line(folded, change) -> None:
    manifest = json.loads((folded / "model.json").read_text())
    (folded / "model.json").write_text(json.dumps(manifest | change))
    with pytest.raises(InputError, match="damaged model"):
        load_ensemble([folded])


def test_the_record_names_all_members_and_a_changed_member_predicts_again(folded, supine, tmp_path) -> None:
    write_image(supine.volume, tmp_path / "scan.nii.gz")
    scan, output = Scan("scan", tmp_path / "scan.nii.gz"), tmp_path / "out"

    def run(ensemble: Ensemble) -> dict:
        [outcome] = predict_scans(ensemble, [scan], output, probabilities=False, reporter=Silent())
        assert outcome.problem is None
        return outcome.record

    loaded = load_ensemble([folded])
    record = run(loaded)
    assert record["members_sha256"] == [one.weights_sha256 for one in loaded.members]
    assert record["clean_up"] == [
        {"label": name, "keep": "volume", "ml": 1e6} for name in ("kidney", "tumor")
    ]
    assert record["volumes_ml"]["kidney+tumor"] == 0 < sum(record["removed_ml"].values())
    assert record == json.loads((output / "scan.json").read_text())
    first = read_labels(output / "scan.nii.gz").array
    stamp = (output / "scan.nii.gz").stat().st_mtime_ns
    assert run(loaded) == record
    assert (output / "scan.nii.gz").stat().st_mtime_ns == stamp

    as_it_is = run(loaded.with_clean_up(False))
    assert not {"clean_up", "removed_ml"} & as_it_is.keys()
    for label in ("kidney", "tumor"):
        assert as_it_is["volumes_ml"][label] == pytest.approx(record["removed_ml"][label], rel=1e-6)
    assert (read_labels(output / "scan.nii.gz").array != first).any()

    changed = replace(loaded, members=(loaded.members[0], replace(alike(4))))
    assert run(changed)["members_sha256"][1] == "4" * 64
    assert "members_sha256" not in run(Ensemble(loaded.members[:1]))


def test_the_midline_from_the_record_equals_that_of_the_prediction() -> None:
    for model in (bright_model(PLAIN), bright_model(VOLUMES)):
        volume = make_scene(roll=0.3, center=(8.0, -5.0), slices=12).volume
        result = predict(model, volume)
        upright = result.labels.reoriented()
        recorded = recorded_midline(prediction_record(model, result, "0" * 64), upright, 0.5)
        prepared, scan = result.prepared, result.scan_pose
        own = Midline.of(prepared.frame, prepared.shape, prepared.spacing, scan.pose, scan.confidence >= 0.5)
        assert recorded is not None
        np.testing.assert_allclose(recorded.x_from_index, own.x_from_index, atol=1e-6)


def test_pipeline_accepts_folds_and_several_models(folded, supine) -> None:
    whole = Pipeline.load(folded, "cpu")
    result = whole.predict(supine.volume)
    assert sum(result.removed_ml.values()) > 0 == result.volumes_ml["kidney+tumor"]
    as_it_is = Pipeline.load(folded, "cpu", clean_up=False).predict(supine.volume)
    assert as_it_is.removed_ml == {}
    listed = Pipeline.load([folded / "fold-0", folded / "fold-1"], "cpu").predict(supine.volume)
    assert np.array_equal(listed.labels.array, as_it_is.labels.array)


def test_models_and_scans_are_distinguished_on_the_command_line(folded, supine, tmp_path, isopose) -> None:
    write_image(supine.volume, tmp_path / "scan.nii.gz")
    out = ("--output", tmp_path / "out", "--device", "cpu")
    code, _, _ = isopose("predict", folded, folded / "fold-0", tmp_path / "scan.nii.gz", *out)
    assert code == 0
    assert len(json.loads((tmp_path / "out" / "scan.json").read_text())["members_sha256"]) == 3
    code, _, _ = isopose("predict", folded, tmp_path / "scan.nii.gz", *out, "--no-clean-up")
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert (code, len(record["members_sha256"]), "clean_up" in record) == (0, 2, False)
    code, _, error = isopose("predict", folded, folded / "fold-0", *out)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "expected scans after the models" in error
    for arguments in (
        ("export", folded, "--output", tmp_path / "export"),
        ("export", folded, "--output", tmp_path / "export", "--format", "monai"),
        ("predict", folded, tmp_path / "scan.nii.gz", *out, "--ray", "local"),
    ):
        code, _, error = isopose(*arguments)
        assert (code, len(error.splitlines())) == (2, 1)
        assert "a model of 2 folds" in error
        assert "give a fold, e.g." in error
