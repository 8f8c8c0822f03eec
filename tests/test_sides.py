"""Left stays left in all commands, for every storage order and position of the patient."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from bright import bright_model, dice, make_scene, stored_otherwise, world_center
from isopose.api.homogenizer import Homogenizer
from isopose.api.wrapping import wrap
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import ensemble_of
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.models.shipped import load_reference, load_shipped
from isopose.phantom.case import sample_case, texture_generator
from isopose.phantom.pose import POSITIONS, Pose
from isopose.phantom.render import render

STORAGES = list(product(permutations(range(3)), product((False, True), repeat=3)))
LEFT, TUMOR, RIGHT = 2, 5, 9


def test_predictions_of_all_48_storages_have_the_same_sides(isopose, monkeypatch, tmp_path):
    """A network that distinguishes sides labels a mass on the patient's left as left."""
    model = bright_model({"pose": {"learned": False}, "crop": {"enabled": False}}, sided=True)
    monkeypatch.setattr("isopose.inference.ensemble.load_ensemble", lambda *_: ensemble_of(model))
    supine = make_scene(slices=5)
    for number, (axes, flips) in enumerate(STORAGES):
        write_image(
            stored_otherwise(supine.volume, axes, flips), tmp_path / "in" / f"scan_{number:02d}.nii.gz"
        )
    assert isopose("predict", tmp_path / "model", tmp_path / "in", "--output", tmp_path / "out")[0] == 0
    upright = [read_labels(tmp_path / "out" / f"scan_{n:02d}.nii.gz").reoriented() for n in range(48)]
    assert set(np.unique(upright[0].array)) == {0, LEFT, TUMOR}
    assert world_center(upright[0], upright[0].array == LEFT)[0] > supine.middle[0] + 20
    assert dice(upright[0].array > 0, supine.truth > 0) > 0.9
    for labels in upright:
        np.testing.assert_array_equal(labels.array, upright[0].array)
    # The same scan in a mirror: its mass is on the right, and is called so.
    mirrored = Volume(np.ascontiguousarray(supine.volume.array[:, :, ::-1]), supine.volume.world_from_index)
    write_image(mirrored, tmp_path / "mirrored.nii.gz")
    assert (
        isopose("predict", tmp_path / "model", tmp_path / "mirrored.nii.gz", "--output", tmp_path / "out")[0]
        == 0
    )
    assert set(np.unique(read_labels(tmp_path / "out" / "mirrored.nii.gz").array)) == {0, RIGHT, TUMOR}


def sided(slices: slice, size: int = 96) -> tuple[Volume, np.ndarray]:
    """A patient on voxels of three different sides, and kidneys left (1) and right (2) with a tumor (3)."""
    case = sample_case(11, 0, size=size, slices=20)
    supine = replace(case, pose=Pose("supine", True, 0.1, 0.0, 0.0, case.pose.offset))
    image, classes = render(case.anatomy, supine.pose, case.scan, texture_generator(case), noise=False)
    # A fourth deeper than wide.
    stretched = case.scan.world_from_index @ np.diag([1.0, 1.25, 1.0, 1.0])
    image, classes = image[slices], classes[slices]
    middle = np.flatnonzero((image > -300).any(axis=(0, 1))).mean()
    on_the_left = np.arange(classes.shape[2]) > middle
    labels = np.select([classes == 2, classes == 1], [3, np.where(on_the_left, 1, 2)], 0)
    return Volume(image, stretched), labels.astype(np.uint8)


def test_wrapped_labels_are_restored_in_all_48_storages() -> None:
    """All storage orders are homogenized to the same grid and get the same label map."""
    image, labels = sided(slice(8, 12))
    assert len({*np.round(image.spacing, 1)}) == 3
    homogenizer = Homogenizer(size=192)
    upright = homogenizer.transform(image, image.with_array(labels))
    assert world_center(upright.labels, upright.labels.array == 1)[0] > 20
    assert world_center(upright.labels, upright.labels.array == 2)[0] < -20

    def segment(seen: Volume) -> Volume:
        assert seen.same_grid(upright.image)
        assert np.corrcoef(seen.array.ravel(), upright.image.array.ravel())[0, 1] > 0.99
        return upright.labels

    wrapped = wrap(segment, homogenizer)
    for axes, flips in STORAGES:
        stored = stored_otherwise(image, axes, flips)
        truth = stored_otherwise(image.with_array(labels), axes, flips)
        result = wrapped(stored)
        np.testing.assert_array_equal(result.world_from_index, stored.world_from_index)
        assert result.array.shape == truth.array.shape
        for value in (1, 2, 3):
            assert dice(result.array == value, truth.array == value) > 0.995, (axes, flips, value)


@pytest.mark.slow
def test_homogenized_and_restored_in_all_48_storages(isopose, tmp_path):
    image, labels = sided(slice(8, 12))
    data = tmp_path / "Dataset001_Sides"
    for number, (axes, flips) in enumerate(STORAGES):
        for folder, volume, name, write in (
            ("imagesTr", image, f"s_{number:02d}_0000.nii.gz", write_image),
            ("labelsTr", image.with_array(labels), f"s_{number:02d}.nii.gz", write_labels),
        ):
            write(stored_otherwise(volume, axes, flips), data / folder / name)
    (data / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "left": 1, "right": 2, "tumor": 3}, '
        '"numTraining": 48, "file_ending": ".nii.gz"}'
    )
    upright, back = tmp_path / "upright", tmp_path / "back"
    assert isopose("homogenize", data, upright, "--size", "192")[0] == 0
    assert isopose("restore", upright / "labelsTr", "--homogenized", upright, "--output", back)[0] == 0
    first = read_volume(upright / "imagesTr" / "s_00_0000.nii.gz").array
    for number in range(48):
        homogenized = read_volume(upright / "imagesTr" / f"s_{number:02d}_0000.nii.gz")
        assert np.corrcoef(homogenized.array.ravel(), first.ravel())[0, 1] > 0.99, STORAGES[number]
        restored = read_labels(back / f"s_{number:02d}.nii.gz")
        truth = read_labels(data / "labelsTr" / f"s_{number:02d}.nii.gz")
        np.testing.assert_array_equal(restored.world_from_index, truth.world_from_index)
        assert restored.array.shape == truth.array.shape
        for value in (1, 2, 3):
            assert dice(restored.array == value, truth.array == value) > 0.995, (STORAGES[number], value)


@pytest.mark.slow
def test_patients_in_every_position_are_homogenized_alike(isopose, tmp_path):
    """With the correct position in the header or always supine: upright and not mirrored."""
    case = sample_case(11, 0, size=128, slices=12)
    for position, right in product(POSITIONS, (True, False)):
        pose = Pose(position, right, 0.0, 0.0, 0.0, case.pose.offset)
        image, _ = render(case.anatomy, pose, case.scan, texture_generator(case), noise=False)
        name = f"{position.replace(' ', '-')}-{right}.nii.gz"
        write_image(Volume(image, case.scan.world_from_index), tmp_path / "in" / name)
    assert isopose("homogenize", tmp_path / "in", tmp_path / "out", "--size", "128")[0] == 0
    result = {
        path.name: read_volume(path).array.astype(float) for path in (tmp_path / "out" / "imagesTs").glob("*")
    }
    assert len(result) == 8
    straight = result["supine-True_0000.nii.gz"]
    for name, image in result.items():
        alike = np.corrcoef(image.ravel(), straight.ravel())[0, 1]
        in_a_mirror = np.corrcoef(image[:, :, ::-1].ravel(), straight.ravel())[0, 1]
        upside_down = np.corrcoef(image[:, ::-1, ::-1].ravel(), straight.ravel())[0, 1]
        assert alike > 0.93, (name, alike)
        assert alike > max(in_a_mirror, upside_down) + 0.02, (name, alike, in_a_mirror, upside_down)


@pytest.mark.slow
def test_predictions_in_every_position_have_the_patients_sides(isopose, monkeypatch, tmp_path):
    """A network that labels the left side of its crop as left, on phantoms of known pose."""
    model = bright_model(
        {"pose": {"learned": False, "start": "anatomy", "size": 128}, "crop": {"enabled": False}},
        sided=True,
        reference=load_reference().mask,
        fov_mm=420.0,
    )
    load_shipped(model.pipeline.pose.roll)
    monkeypatch.setattr("isopose.inference.ensemble.load_ensemble", lambda *_: ensemble_of(model))
    case = sample_case(11, 0, size=128, slices=12)
    poses = {}
    for position, right in product(POSITIONS, (True, False)):
        name = f"{position.replace(' ', '-')}-{right}"
        poses[name] = Pose(position, right, 0.0, 0.0, 0.0, case.pose.offset)
        image, _ = render(case.anatomy, poses[name], case.scan, texture_generator(case), noise=False)
        write_image(Volume(image, case.scan.world_from_index), tmp_path / "in" / f"{name}.nii.gz")
    assert isopose("predict", tmp_path / "model", tmp_path / "in", "--output", tmp_path / "out")[0] == 0
    for name, pose in poses.items():
        labels = read_labels(tmp_path / "out" / f"{name}.nii.gz")
        left, right = (np.array(world_center(labels, labels.array == value)) for value in (LEFT, RIGHT))
        assert (left - right) @ (pose.rotation @ [1.0, 0.0, 0.0])[: len(left)] > 20, name
