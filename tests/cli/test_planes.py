"""Coronal and sagittal stacks, from phantoms to results, by the commands."""

import json

import numpy as np
import pytest

from bright import bright_model, dice, ellipse, make_scene, stored_otherwise, world_center
from isopose.api import Homogenizer
from isopose.errors import InputError
from isopose.homogenize.record import read_record, record_path
from isopose.inference.predict import predict
from isopose.io.images import read_labels, read_volume
from isopose.models.folder import load_model, save_model

PLANES = ("coronal", "sagittal")
#: Voxels of a thick stack: left-right, front-back, head-foot.
THICK = {"coronal": (2.1, 6.0, 2.9), "sagittal": (6.0, 2.1, 2.9)}
TINY = [
    *("data.size=64", "pose.size=32", "crop.size=32", "unet.input=full", "unet.base_features=4"),
    "train.folds=2",
    *(f"{stage}.optimizer.{key}={value}" for stage in ("pose", "crop", "unet")
      for key, value in (("epochs", 1), ("min_epochs", 1), ("iterations", 2), ("batch_size", 4))),
]  # fmt: skip


def given(settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module", params=PLANES)
def stacks(request, tmp_path_factory):
    """Two small patients for training and one for testing."""
    from isopose.phantom import write_cohort

    root = tmp_path_factory.mktemp(request.param) / "Dataset003_Stacks"
    return request.param, write_cohort(
        root, cases=3, slices=12, size=48, seed=5, modality="mr", plane=request.param
    )


def test_phantoms_of_a_plane_keep_left_and_right(stacks):
    plane, root = stacks
    truth = json.loads((root / "phantom.json").read_text())["cases"]
    thick = {"coronal": 1, "sagittal": 0}[plane]
    for case in truth:
        part = "Ts" if case["split"] == "test" else "Tr"
        image = read_volume(root / f"images{part}" / f"{case['case']}_0000.nii.gz")
        labels = read_labels(root / f"labels{part}" / f"{case['case']}.nii.gz", like=image)
        assert image.array.shape[0] == 12
        assert np.abs(image.direction[thick, 2]) > 0.99
        assert image.spacing[2] == pytest.approx(4 * image.spacing[0])
        assert case["shape_zyx"] == list(image.array.shape)
        canonical_from_world = np.linalg.inv(case["world_from_canonical"])
        tumor = canonical_from_world @ [*world_center(labels, labels.array == 2), 1.0]
        assert (tumor[0] > 0) == (case["tumor_side"] == "left")
        # What lies in the kidneys' slices is tissue, around them is air.
        assert image.array[labels.array > 0].mean() > 3 * np.median(image.array[:, :, :2])


def test_check_reports_the_plane_and_the_setting_for_it(stacks, isopose):
    plane, root = stacks
    code, out, _ = isopose("check", root)
    assert code == 2
    assert out.count(f"{plane} slices (voxels") == 3
    assert "not those of axial" not in out
    assert f"give --plane {plane} here" in out
    code, out, _ = isopose("check", root, "--plane", plane, "--json")
    report = json.loads(out)
    assert (code, report["planes"]) == (0, {plane: 3})
    assert report["fingerprint"]["slices_max"] == 12


@pytest.mark.parametrize("more", [[], ["pose.start=identity", "pose.learned=true", "pose.per=slice"]])
def test_a_model_of_a_plane_is_trained_and_predicts_on_the_scans_grid(stacks, isopose, tmp_path, more):
    plane, root = stacks
    model = tmp_path / "model"
    code, out, err = isopose("fit", root, "--model", model, *given([*TINY, *more, f"data.plane={plane}"]))
    assert code == 0, err
    loaded = load_model(model)
    assert loaded.config.data.plane == plane
    assert loaded.config.pose.start == ("identity" if more else "header")
    assert ("front and back" in out + err) == (plane == "sagittal")
    (path,) = (root / "imagesTs").iterdir()
    code, _, err = isopose("predict", model, path, "--output", tmp_path / "out", "--steps")
    assert code == 0
    for word in ("roll of the patient", "turned by", "mirror image", "axial"):
        assert word not in err
    scan = read_volume(path)
    name = path.name.replace("_0000", "")
    labels = read_volume(tmp_path / "out" / name)
    assert labels.array.shape == scan.array.shape
    np.testing.assert_allclose(labels.world_from_index, scan.world_from_index, atol=1e-4)
    record = json.loads((tmp_path / "out" / name.replace(".nii.gz", ".json")).read_text())
    assert record["roll_decision"] is None
    if not more:
        assert len({(one["scale_x"], one["roll_degrees"]) for one in record["slices"]}) == 1
        assert all(one["scale_x"] == one["scale_y"] for one in record["slices"])


def test_scans_of_another_plane_are_refused_in_one_line(isopose, tmp_path):
    save_model(tmp_path / "model", of_plane("coronal", real_unet=True))
    scene = make_scene(spacing=(2.1, 2.9, 6.0))
    from isopose.io.images import write_image

    write_image(scene.volume, tmp_path / "scan.nii.gz")
    code, _, err = isopose(
        "predict", tmp_path / "model", tmp_path / "scan.nii.gz", "--output", tmp_path / "out"
    )
    assert code == 2
    assert "scan.nii.gz: axial slices (voxels of 2.10 x 2.90 x 6.00 mm" in err
    assert "expected coronal ones" in err
    assert "Traceback" not in err
    code, _, err = isopose("homogenize", tmp_path / "scan.nii.gz", tmp_path / "h", "--plane", "sagittal")
    assert (code, "expected sagittal ones" in err) == (2, True)
    for words, message in (
        (("--model", tmp_path / "model", "--plane", "axial"), "the model is of coronal slices"),
        (("--plane", "coronal", "--per", "tilted"), "--per tilted: brings axial slices"),
        (("--reference", tmp_path / "model"), "a model of coronal slices, the scans' are axial"),
    ):
        code, _, err = isopose("homogenize", tmp_path / "scan.nii.gz", tmp_path / "h2", *words)
        assert (code, message in err) == (2, True), err


def test_onnx_and_models_of_several_planes_are_refused(tmp_path):
    from isopose.export.onnx import export_onnx
    from isopose.inference.ensemble import Ensemble

    coronal = of_plane("coronal")
    with pytest.raises(InputError, match="the ONNX graphs see axial slices, this model coronal ones"):
        export_onnx(coronal, tmp_path)
    with pytest.raises(InputError, match="models of coronal and sagittal slices: expected one plane"):
        Ensemble((coronal, of_plane("sagittal")))


def of_plane(plane, **changes):
    """A model that segments by brightness; its reference is the phantom's body as seen in the plane."""
    whole = ellipse(64, (1.0, 1.0))
    whole[:] = 0.0
    whole[..., 14:50] = 1.0
    return bright_model(
        {
            "data": {"size": 128, "plane": plane},
            "pose": {"start": "header", "learned": False, "per": "volume"},
        },
        reference=whole,
        **changes,
    )


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("axes", "flips"),
    [((0, 1, 2), (False, False, False)), ((2, 0, 1), (True, False, True)), ((1, 0, 2), (False, True, True))],
)
def test_predictions_keep_their_position_in_every_storage_order(plane, axes, flips):
    scene = make_scene(spacing=THICK[plane], slices=60)
    stored = stored_otherwise(scene.volume, axes, flips)
    truth = stored_otherwise(scene.volume.with_array(scene.truth), axes, flips).array
    prediction = predict(of_plane(plane), stored)
    assert prediction.labels.array.shape == stored.array.shape
    np.testing.assert_array_equal(prediction.labels.world_from_index, stored.world_from_index)
    assert dice(prediction.labels.array > 0, truth > 0) > 0.95
    marked, true = (world_center(stored, one > 0) for one in (prediction.labels.array, truth))
    np.testing.assert_allclose(marked, true, atol=1.0)
    assert marked[0] > scene.middle[0] + 20, "the mass is the patient's left"
    assert prediction.warnings == ()


def test_the_page_shows_the_slices_of_the_plane(tmp_path):
    from isopose.inference.record import prediction_record
    from isopose.serve.viewing import write_view

    model, scene = of_plane("coronal"), make_scene(spacing=THICK["coronal"], slices=60)
    prediction = predict(model, scene.volume, crops=True)
    write_view(tmp_path, model, scene.volume, prediction, prediction_record(model, prediction, "0" * 64))
    view = json.loads((tmp_path / "view.json").read_text())
    assert view["plane"] == "coronal"
    assert view["shape"] == [scene.volume.array.shape[1], 60, scene.volume.array.shape[2]]
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_array_equal(volume.array, scene.volume.reoriented("coronal").array)


@pytest.mark.parametrize("with_model", [False, True])
def test_a_homogenized_stack_is_restored(stacks, isopose, tmp_path, with_model):
    plane, root = stacks
    out, back = tmp_path / "upright", tmp_path / "back"
    reference = ("--reference", "phantom_000") if with_model else ()
    code, _, err = isopose("homogenize", root, out, "--plane", plane, "--size", 192, *reference)
    assert code == 0, err
    assert json.loads((out / "homogenize.json").read_text())["plane"] == plane
    code, _, err = isopose("restore", out / "labelsTr", "--homogenized", out, "--output", back)
    assert code == 0, err
    for number in range(2):
        name = f"phantom_{number:03d}.nii.gz"
        scan = read_volume(root / "imagesTr" / name.replace(".nii", "_0000.nii"))
        truth = read_labels(root / "labelsTr" / name, like=scan)
        restored = read_labels(back / name, like=scan)
        for value in (1, 2):
            assert dice(restored.array == value, truth.array == value) >= 0.99
        transform = read_record(record_path(out, f"phantom_{number:03d}")).transform
        assert transform.grid.plane == plane
        homogenized = read_volume(out / "imagesTr" / name.replace(".nii", "_0000.nii"))
        # The header tells the true axes, so that other programs show the patient the right way.
        np.testing.assert_allclose(homogenized.reoriented(plane).direction, scan.direction, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
def test_patients_are_scaled_to_the_size_of_the_reference(plane):
    wide = []
    for scale in (0.6, 1.0):
        scene = make_scene(spacing=THICK[plane], slices=60, scale=scale)
        result = Homogenizer(plane=plane, size=128).transform(
            scene.volume, scene.volume.with_array(scene.truth)
        )
        assert result.roll_degrees == 0.0
        columns = np.flatnonzero((result.image.array > -300).any(axis=(0, 1)))
        wide.append(columns[-1] - columns[0])
        restored = Homogenizer(plane=plane).inverse_transform(result.labels, result)
        assert dice(restored.array > 0, scene.truth > 0) > 0.97
    assert wide[0] == pytest.approx(wide[1], rel=0.06)
