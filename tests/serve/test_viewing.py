"""The steps that the page shows are those of the prediction, for slices and for volumes."""

import numpy as np
import pytest
import torch

from bright import bright_model, make_scene
from isopose.geometry.pose import PITCH
from isopose.inference.predict import predict
from isopose.inference.record import prediction_record
from isopose.serve.viewing import read_view, slice_bytes, write_view

SLICES = 10
SIZE = {"data": {"size": 128}}
VOLUMES = {"dims": 3, "pose": {"per": "volume", "learned": False}} | SIZE


def shown(folder, model, predicts, recorded):
    volume = make_scene(slices=SLICES, roll=0.2, spacing=(2.1, 2.9, 9.0)).volume
    prediction = predicts(model, volume, crops=True)
    write_view(folder, model, volume, prediction, recorded(model, prediction, "0" * 64))
    view = read_view(folder)
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("homogenized", "crop", "crop_labels")}
    return view, prediction, arrays


@pytest.fixture(params=["slices", "volumes"])
def seen(request, tmp_path):
    if request.param == "slices":
        view, prediction, arrays = shown(tmp_path, bright_model(SIZE), predict, prediction_record)
        entries = view["slices"]
    else:
        view, prediction, arrays = shown(tmp_path, bright_model(VOLUMES), predict, prediction_record)
        entries = view["steps"]["slices"]
    return tmp_path, view, prediction, arrays, entries


def matrix_of(entry):
    if "frame_from_homogenized" in entry:
        return np.array(entry["frame_from_homogenized"])[:, :2]
    angle, lx, ly = entry["pose"][:3]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag(np.exp([lx, ly]))


def test_the_labeled_area_in_the_crop_equals_the_restored_area(seen):
    _, view, prediction, arrays, entries = seen
    assert [entry["slice"] for entry in entries] == list(range(SLICES))
    marked = prediction.labels.array > 0
    half, side = view["frame"]["fov_mm"] / 2, arrays["crop_labels"].shape[-1]
    pixel = 2.1 * 2.9
    for entry in entries:
        z = entry["slice"]
        crop = np.array(entry["homogenized_from_crop"])[:2, :2]
        area_of_crop_pixel = abs(np.linalg.det(matrix_of(entry) @ crop)) * (2 * half / side) ** 2
        in_crop = (arrays["crop_labels"][z] > 0).sum() * area_of_crop_pixel
        assert in_crop == pytest.approx(marked[z].sum() * pixel, rel=0.1)
        assert in_crop > 1000


def test_homogenized_slices_and_crops_are_aligned(seen):
    """The bright mass in the crop has the position that the crop's box gives in the homogenized slice."""
    _, _, _, arrays, entries = seen
    for entry in entries:
        z = entry["slice"]
        places = []
        for name in ("homogenized", "crop"):
            plane = arrays[name][z]
            rows, columns = np.nonzero(plane > 150)
            places.append((2 * np.array([columns.mean(), rows.mean()]) + 1) / plane.shape[0] - 1)
        square = np.array(entry["homogenized_from_crop"])
        assert places[0] == pytest.approx(square[:2, :2] @ places[1] + square[:2, 2], abs=0.03)


def test_homogenized_slices_are_upright_and_as_large_as_the_outline(seen):
    _, view, _, arrays, _ = seen
    (outline,) = view["steps"]["outline"]
    low, high = np.min(outline, axis=0), np.max(outline, axis=0)
    for plane in arrays["homogenized"]:
        rows, columns = np.nonzero(plane > 0)
        size = plane.shape[0]
        for extent, expected in (((columns.min(), columns.max()), 0), ((rows.min(), rows.max()), 1)):
            ends = (2 * np.array(extent) + 1) / size - 1
            assert ends == pytest.approx([low[expected], high[expected]], abs=0.08)


def test_the_bytes_of_a_slice_hold_all_steps(seen):
    folder, view, *_ = seen
    data = slice_bytes(folder, tuple(view["shape"]), 3)
    for name in (b"native", b"labels", b"homogenized", b"crop", b"crop_labels"):
        assert b'"' + name + b'"' in data[:600]


def test_planes_of_a_volume_follow_its_pitch(tmp_path):
    """In a pitched patient, the plane of each slice passes through its middle, where the bright spot is."""
    model = bright_model(VOLUMES)
    volume = make_scene(slices=SLICES, spacing=(2.1, 2.9, 9.0)).volume
    # A bright rod from the feet to the head moves back with each slice.
    array = volume.array.copy()
    middle = array.shape[1] // 2, array.shape[2] // 2
    for z in range(SLICES):
        array[z, middle[0] - 3 + z // 2 : middle[0] + z // 2, middle[1] - 4 : middle[1] - 1] = 1000
    leaning = volume.with_array(array)
    with torch.inference_mode():
        prediction = predict(model, leaning, crops=True)
    prediction.scan_pose.pose[0, PITCH] = 0.1
    write_view(tmp_path, model, leaning, prediction, prediction_record(model, prediction, "0" * 64))
    view = read_view(tmp_path)
    homogenized = np.load(tmp_path / "homogenized.npy")
    half = view["frame"]["fov_mm"] / 2
    for entry in view["steps"]["slices"][2:-2]:
        z = entry["slice"]
        size = homogenized.shape[-1]
        # The mass is on the left, the rod is not.
        rows, columns = np.nonzero(homogenized[z][:, : size // 2 + 2] > 150)
        point = (2 * np.array([columns.mean(), rows.mean()]) + 1) / size - 1
        to_frame = np.array(entry["frame_from_homogenized"])
        mm = np.array(view["frame"]["center_mm"]) + half * (to_frame[:, :2] @ point + to_frame[:, 2])
        expected = ((middle[1] - 3) * 2.1, (middle[0] - 2 + z // 2) * 2.9)
        assert mm == pytest.approx(expected, abs=4.5)
