"""A voxel, a body or a field of view that no patient has is reported by check, homogenize and predict."""

import json
import shutil
import time

import nibabel as nib
import numpy as np
import pytest

from bright import bright_model, make_scene
from io_helpers import upright
from isopose.data.check import check_dataset
from isopose.data.doubts import scan_warnings
from isopose.data.preprocess import prepare
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.homogenize.dataset import homogenize, open_input
from isopose.inference.files import predict_scans
from isopose.io.datasets import open_dataset
from isopose.io.images import read_volume, write_image
from isopose.io.scans import find_scans
from isopose.io.sizes import check_extent
from isopose.presets import homogenize_config
from isopose.progress import Silent

#: By what a scan's millimeters are multiplied where its header holds another unit.
REFUSED = {"meters": 1e-3, "micrometers": 1e3}


def scaled(volume, factor):
    matrix = volume.world_from_index.copy()
    matrix[:3] *= factor
    return Volume(volume.array, matrix)


def write(path, volume):
    nib.save(nib.Nifti1Image(volume.array.T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.world_from_index), path)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(("unit", "factor"), REFUSED.items())
def test_implausible_voxel_sizes_are_refused_from_the_header(tmp_path, ending, unit, factor):
    path = tmp_path / f"scan{ending}"
    write_image(scaled(make_scene().volume, factor), path)
    with pytest.raises(InputError, match=rf"voxel size .* mm is not plausible.*{unit}") as error:
        read_volume(path)
    assert str(error.value).startswith(f"{path}: ")


def test_implausible_voxel_sizes_are_refused_without_reading_voxels(tmp_path):
    small = write(tmp_path / "a.nii", scaled(upright(), 1e3))
    data = bytearray(small.read_bytes())
    # Two gigabytes of voxels, by the header.
    data[42:48] = b"".join(n.to_bytes(2, "little") for n in (1000, 1000, 1000))
    small.write_bytes(data)
    started = time.monotonic()
    with pytest.raises(InputError, match="not plausible"):
        read_volume(small)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("edges", [(0.05, 0.05, 0.05), (0.3, 0.3, 0.2), (1.5, 1.5, 20), (0.7, 0.7, 10)])
def test_unusual_but_plausible_voxel_sizes_are_read(tmp_path, edges):
    path = tmp_path / "a.nrrd"
    write_image(Volume(upright().array, np.diag([*edges, 1.0])), path)
    np.testing.assert_allclose(read_volume(path).spacing, edges)


def test_excessive_memory_is_refused_before_allocation():
    wide = Volume(np.broadcast_to(np.int16(0), (4, 400, 400)), np.diag([40.0, 40, 5, 1]))
    with pytest.raises(InputError, match="field of view of 16000 x 16000 x 20 mm"):
        check_extent(wide)
    model = bright_model()
    with pytest.raises(InputError, match="field of view"):
        prepare(wide, model.fingerprint, model.config.data)
    for factor in REFUSED.values():
        # Also where it comes from no file.
        with pytest.raises(InputError, match="not plausible"):
            prepare(scaled(make_scene().volume, factor), model.fingerprint, model.config.data)


def test_an_implausible_body_size_is_reported_by_check_predict_and_homogenize(tmp_path):
    good, small = make_scene().volume, scaled(make_scene().volume, 0.1)
    root = tmp_path / "in"
    root.mkdir()
    write(root / "a_0000.nii.gz", good)
    write(root / "b_0000.nii.gz", small)
    expected = "a body of 19 x 14 mm is not a patient's"

    (root / "list.csv").write_text("image,label\na_0000.nii.gz,\nb_0000.nii.gz,\n")
    problems = check_dataset(open_dataset(root / "list.csv"))
    problems_of_size = {p.case: p for p in problems if "a patient's, expected" in p.message}
    assert list(problems_of_size) == ["b_0000"]
    assert expected in problems_of_size["b_0000"].message
    assert "centimeters?" in problems_of_size["b_0000"].message
    assert problems_of_size["b_0000"].severity == "warning"

    model = bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})
    predicted = predict_scans(
        model, find_scans([root]), tmp_path / "out", probabilities=False, reporter=Silent()
    )
    brought = homogenize(
        open_input(root / "list.csv"), tmp_path / "same", homogenize_config(size=64), reporter=Silent()
    )
    for outcomes in (predicted, brought):
        first, second = outcomes
        assert (first.problem, second.problem) == (None, None)
        warnings = [getattr(o.record, "warnings", None) or o.record["warnings"] for o in outcomes]
        assert any(expected in line for line in warnings[1])
        assert not any("a patient's, expected" in line for line in warnings[0])
    kept = json.loads((tmp_path / "out" / "b.json").read_text())
    assert any(expected in line for line in kept["warnings"])


def test_other_scans_are_processed_beside_one_of_implausible_size(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name, factor in (("a", 1e3), ("b", 1.0), ("c", 1e-3)):
        write(root / f"{name}.nii.gz", scaled(make_scene().volume, factor))
    model = bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})
    predicted = predict_scans(
        model, find_scans([root]), tmp_path / "out", probabilities=False, reporter=Silent()
    )
    brought = homogenize(open_input(root), tmp_path / "same", homogenize_config(size=64), reporter=Silent())
    for outcomes in (predicted, brought):
        assert ["micrometers" in (outcomes[0].problem or ""), outcomes[1].problem] == [True, None]
        assert "meters" in outcomes[2].problem
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.json", "b.nii.gz"]


@pytest.mark.parametrize("value", [3e38, -2e6])
def test_implausible_values_are_refused_and_left_out_of_the_fingerprint(tmp_path, isopose, value):
    root = tmp_path / "in"
    root.mkdir()
    for name in "abc":
        volume = make_scene(roll=0.1 * "abc".index(name)).volume
        if name == "b":
            array = volume.array.astype(np.float32)
            array[0, 0, 0] = value
            volume = volume.with_array(array)
        write(root / f"{name}.nii.gz", volume)
    model = bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})
    outcomes = predict_scans(
        model, find_scans([root]), tmp_path / "out", probabilities=False, steps=None, reporter=Silent()
    )
    assert [outcome.problem is None for outcome in outcomes] == [True, False, True]
    assert "are not HU" in outcomes[1].problem
    (root / "list.csv").write_text("image,label\n" + "".join(f"{name}.nii.gz,\n" for name in "abc"))
    problems = check_dataset(open_dataset(root / "list.csv"))
    assert [p.case for p in problems if p.severity == "error"] == ["b"]


def test_a_case_in_wrong_units_does_not_hide_other_problems(tmp_path, isopose):
    for name, factor in (("a", 1e-3), ("b", 1.0), ("c", 1.0)):
        write(tmp_path / f"{name}.nii.gz", scaled(make_scene().volume, factor))
        write(
            tmp_path / f"{name}_l.nii.gz", scaled(make_scene().volume.with_array(make_scene().truth), factor)
        )
    shutil.copy(tmp_path / "b.nii.gz", tmp_path / "b_l.nii.gz")
    (tmp_path / "list.csv").write_text("image,label\n" + "".join(f"{n}.nii.gz,{n}_l.nii.gz\n" for n in "abc"))
    for more in ((), ("--json",)):
        code, out, err = isopose("check", tmp_path / "list.csv", "--label", "k=1", "--label", "t=7", *more)
        assert code == 2
        assert "voxel size" in out
        assert "is it the image?" in out
        assert "Traceback" not in err


def test_messages_about_excessive_sizes():
    def messages_for(spacing, shape):
        array = np.broadcast_to(np.int16(0), shape)
        return list(scan_warnings(Volume(array, np.diag([*spacing, 1.0])), (300.0, 200.0)))

    assert messages_for((1, 1, 5), (100, 300, 300)) == []
    assert "fit into no scanner" in messages_for((5, 5, 5), (100, 300, 300))[-1]
    assert "longer than any table" in messages_for((1, 1, 10), (300, 300, 300))[-1]
    assert "leave gaps" in messages_for((1, 1, 25), (20, 300, 300))[-1]
    (line,) = scan_warnings(Volume(np.broadcast_to(np.int16(0), (9, 300, 300))), (950.0, 500.0))
    assert "a body of 950 x 500 mm" in line


@pytest.mark.parametrize(("width", "fine"), [(55, False), (65, True), (180, True), (880, True), (920, False)])
def test_newborns_and_the_heaviest_adults_are_plausible(width, fine):
    volume = Volume(np.broadcast_to(np.int16(0), (9, 300, 300)), np.diag([3.2, 3.2, 5, 1]))
    assert (list(scan_warnings(volume, (float(width), 0.7 * width))) == []) == fine


def test_a_body_too_small_to_be_segmented_is_reported(tmp_path):
    model = bright_model()
    inches = scaled(make_scene().volume, 1 / 25.4)
    with pytest.raises(InputError, match=r"no body found.*field of view of 10 x 8 mm.*inches"):
        prepare(inches, model.fingerprint, model.config.data)
    write(tmp_path / "a.nii", inches)
    (tmp_path / "list.csv").write_text("image,label,split\na.nii,,test\n")
    first, *_ = check_dataset(open_dataset(tmp_path / "list.csv"))
    assert (first.case, first.severity) == ("a", "error")
    assert "inches" in first.message
    with pytest.raises(InputError, match=r"no body found.*field of view of 2 x 2 mm shows no patient"):
        prepare(scaled(make_scene().volume, 0.01), model.fingerprint, model.config.data)
