"""Cohorts on disk: layout, bytes, resuming, refusals; and whether the truth agrees with the images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.errors import InputError, IsoposeError
from isopose.files import sha256
from isopose.io.datasets import open_dataset
from isopose.io.truth import true_rolls
from isopose.phantom import (
    render,
    sample_case,
    texture_generator,
    truth,
    write_cohort,
)
from isopose.phantom.case import age_at, tumor_volume_ml
from isopose.phantom.cohort import SMALL_ML, _choose
from isopose.phantom.pose import POSITIONS, Pose, sample_pose
from isopose.phantom.scan import landmarks, sample_scan

SMALL = {"cases": 3, "slices": 5, "size": 64, "seed": 7, "test_fraction": 0.34}


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("phantom") / "cohort", **SMALL)


def test_the_layout_is_nnunet_raw_and_readable(cohort: Path) -> None:
    assert set(hashes(cohort)) == {
        "dataset.json", "patients.csv", "phantom.json",
        "imagesTr/phantom_000_0000.nii.gz", "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz", "labelsTr/phantom_001.nii.gz", "labelsTs/phantom_002.nii.gz",
    }  # fmt: skip
    description = json.loads((cohort / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0, "kidney": 1, "tumor": 2}
    assert description["numTraining"] == 2
    assert description["file_ending"] == ".nii.gz"
    dataset = open_dataset(cohort)
    assert [case.id for case in dataset.cases] == ["phantom_000", "phantom_001", "phantom_002"]
    truths = json.loads((cohort / "phantom.json").read_text())["cases"]
    assert [case.age_years for case in dataset.cases] == [case["age_years"] for case in truths]
    with open(cohort / "patients.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [case["case"] for case in truths]


def test_files_have_identity_direction_one_grid_and_only_known_labels(cohort: Path) -> None:
    for label_path in sorted(cohort.glob("labels*/*.nii.gz")):
        name = label_path.name.replace(".nii.gz", "_0000.nii.gz")
        label = sitk.ReadImage(str(label_path))
        image = sitk.ReadImage(str(cohort / label_path.parent.name.replace("labels", "images") / name))
        assert image.GetDirection() == pytest.approx(np.eye(3).ravel())
        assert image.GetSpacing() == pytest.approx(label.GetSpacing())
        assert image.GetOrigin() == pytest.approx(label.GetOrigin())
        assert image.GetSize() == label.GetSize() == (64, 64, 5)
        assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, 1, 2}
        array = sitk.GetArrayViewFromImage(image)
        assert array.dtype == np.int16
        assert array.min() >= -1024
        assert array.max() > 300  # bone


def test_workers_do_not_change_a_byte(cohort: Path, tmp_path: Path) -> None:
    assert hashes(write_cohort(tmp_path / "parallel", **SMALL, workers=2)) == hashes(cohort)


def test_another_seed_gives_other_patients(cohort: Path) -> None:
    ours, other = sample_case(7, 0, size=64, slices=5), sample_case(8, 0, size=64, slices=5)
    assert ours.anatomy.age_years != other.anatomy.age_years
    assert not np.array_equal(ours.pose.world_from_canonical, other.pose.world_from_canonical)


def test_resuming_makes_only_what_is_missing_and_ends_the_same(cohort: Path, tmp_path: Path) -> None:
    before = hashes(cohort)
    copy = tmp_path / "cohort"
    shutil.copytree(cohort, copy)
    (copy / "labelsTr/phantom_001.nii.gz").unlink()
    (copy / "dataset.json").unlink()
    kept = (copy / "imagesTr/phantom_000_0000.nii.gz").stat().st_mtime_ns
    seen = []
    write_cohort(copy, **SMALL, progress=lambda done, of: seen.append((done, of)))
    assert hashes(copy) == before
    assert (copy / "imagesTr/phantom_000_0000.nii.gz").stat().st_mtime_ns == kept
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_truncated_image_is_written_again(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "cut")
    image = tmp_path / "cut" / "imagesTr" / "phantom_000_0000.nii.gz"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    assert hashes(write_cohort(tmp_path / "cut", **SMALL)) == hashes(cohort)


def test_a_full_disk_without_an_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitk, "WriteImage", lambda _image, name, **_: Path(name).write_bytes(b"\x1f\x8b"))
    with pytest.raises(IsoposeError, match="is the disk full"):
        write_cohort(tmp_path / "full", **SMALL)
    assert list((tmp_path / "full").rglob("*.nii.gz")) == []


def test_a_cohort_of_adults(tmp_path: Path, cohort: Path) -> None:
    folder = write_cohort(tmp_path / "adults", **SMALL, population="adult")
    truths = json.loads((folder / "phantom.json").read_text())["cases"]
    children = json.loads((cohort / "phantom.json").read_text())["cases"]
    assert all(20 <= case["age_years"] <= 88 for case in truths)
    assert min(c["body_width_mm"] for c in truths) > max(
        c["body_width_mm"] for c in children if c["age_years"] < 12
    )
    assert [case.age_years for case in open_dataset(folder).cases] == [case["age_years"] for case in truths]
    for case in truths:
        for kidney in ("left", "right"):
            # About 139 ml; a tumor takes from its own kidney.
            assert case[f"kidney_{kidney}_ml"] > 60 or case["tumor_side"] == kidney
    with pytest.raises(InputError, match="other parameters"):
        write_cohort(folder, **SMALL)


def test_the_tumors_volume_is_known_before_the_patient_is_drawn() -> None:
    for index, population in ((0, "child"), (3, "child"), (1, "adult")):
        whole = sample_case(7, index, size=64, slices=4, population=population).anatomy.tumor.diameter_mm
        assert tumor_volume_ml(7, index, population) == pytest.approx(np.pi / 6 * whole**3 / 1000)


def test_a_share_of_small_tumors_in_both_parts() -> None:
    """Patients are chosen among those of the seed; those with a small tumor are chosen more often."""
    chosen = _choose(12, 6, 7, 0.34, "child")
    assert len(set(chosen)) == 12
    small = [tumor_volume_ml(7, index) < SMALL_ML for index in chosen]
    assert [sum(small[:6]), sum(small[6:])] == [2, 2]
    assert chosen[:6] == sorted(chosen[:6])
    assert chosen[6:] == sorted(chosen[6:])
    assert _choose(12, 6, 7, None, "child") == list(range(12))


def test_an_unreachable_share_of_small_tumors_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isopose.phantom.cohort.tumor_volume_ml", lambda *_: 50.0)
    with pytest.raises(InputError, match=r"of 120 patients too few have a tumor below 20 ml"):
        _choose(3, 1, 7, 0.5, "child")


def test_a_cohort_of_small_tumors(tmp_path: Path, cohort: Path) -> None:
    parameters = {**SMALL, "cases": 2, "size": 32, "slices": 4, "test_fraction": 0.5}
    folder = write_cohort(tmp_path / "small", **parameters, small_tumors=1.0)
    written = json.loads((folder / "phantom.json").read_text())
    assert written["parameters"]["small_tumors"] == 1.0
    assert all(np.pi / 6 * case["tumor_diameter_mm"] ** 3 / 1000 < SMALL_ML for case in written["cases"])
    expected = sample_case(SMALL["seed"], _choose(2, 1, SMALL["seed"], 1.0, "child")[1], size=32, slices=4)
    assert written["cases"][1]["roll"] == expected.pose.roll
    assert "small_tumors" not in json.loads((cohort / "phantom.json").read_text())["parameters"]
    with pytest.raises(InputError, match=r"other parameters \(small_tumors\)"):
        write_cohort(folder, **parameters)


def test_other_folders_and_other_parameters_are_refused(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(InputError, match="not empty"):
        write_cohort(tmp_path, **SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holiday.txt"]
    with pytest.raises(InputError, match="a file has that name"):
        write_cohort(tmp_path / "holiday.txt", **SMALL)
    with pytest.raises(InputError, match="a file has that name"):
        write_cohort(tmp_path / "holiday.txt" / "below", **SMALL)
    with pytest.raises(InputError, match="other parameters"):
        write_cohort(cohort, **{**SMALL, "seed": 8})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cases": 0}, "cases"), ({"slices": 2}, "slices"), ({"size": 8}, "size"), ({"seed": -1}, "seed"),
        ({"workers": -1}, "workers"), ({"test_fraction": 1.0}, "test"),
        ({"small_tumors": 1.5}, "small tumors"),
        ({"population": "cat"}, "child or adult"),
        ({"modality": "us"}, "expected ct or mr"),
        ({"modality": "mr", "pet": True}, "leave one of the two out"),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_in_one_line(tmp_path: Path, change: dict, word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        write_cohort(tmp_path / "out", **{**SMALL, **change})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@given(st.integers(0, 1000), st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_anatomy_does_not_depend_on_the_grid_and_lies_within_it(seed: int, index: int) -> None:
    coarse = sample_case(seed, index, size=64, slices=8)
    fine = sample_case(seed, index, size=512, slices=None)
    assert np.array_equal(coarse.pose.world_from_canonical, fine.pose.world_from_canonical)
    assert coarse.anatomy.tumor.diameter_mm == fine.anatomy.tumor.diameter_mm
    assert coarse.scan.pixel == pytest.approx(8.0 * fine.scan.pixel)
    assert 0.35 <= fine.scan.pixel <= 0.95
    assert 1.0 <= fine.scan.thickness <= 5.0
    for case in (coarse, fine):
        points = landmarks(case.anatomy) @ case.pose.rotation.T + np.array(case.pose.offset)
        scan, low = case.scan, case.scan.origin[2]
        assert low - 0.5 * scan.thickness < points[:, 2].min() - 4.0
        assert low + (scan.slices - 0.5) * scan.thickness > points[:, 2].max() + 4.0
        assert abs(case.pose.roll) <= np.deg2rad(60.0)


def test_thickness_exceeds_5_mm_only_where_few_slices_must_cover_the_kidneys() -> None:
    for index in range(6):
        case = sample_case(3, index, size=64, slices=None)
        points = landmarks(case.anatomy) @ case.pose.rotation.T
        needed = float(np.ptp(points[:, 2])) + 10.0
        for slices in (12, 60):
            scan = sample_scan(np.random.default_rng(index), case.anatomy, case.pose, 64, slices)
            assert scan.thickness <= max(5.0, needed / slices) + 1e-9


def test_a_cohort_spans_the_ages_and_has_its_share_of_rare_positions() -> None:
    cases = [sample_case(0, index, size=64, slices=8) for index in range(60)]
    ages = np.array([case.anatomy.age_years for case in cases])
    assert ages.min() < 0.5
    assert ages.max() > 13.5
    assert 3.0 < np.median(ages) < 5.0
    assert (age_at(0.0), age_at(1.0)) == (0.0, 16.0)
    positions = [case.pose.position for case in cases]
    assert 1 <= positions.count("prone") <= 6
    assert 1 <= sum("decubitus" in position for position in positions) <= 6
    assert 10.0 < np.rad2deg(np.std([case.pose.roll for case in cases])) < 20.0
    assert {case.anatomy.tumor.side for case in cases} == {1, -1}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("header_right", [True, False])
def test_gravity_pulls_where_the_position_says(position: str, header_right: bool) -> None:
    pose = Pose(position, header_right, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    down = {
        "supine": (0, 1, 0),
        "prone": (0, -1, 0),
        "left decubitus": (1, 0, 0),
        "right decubitus": (-1, 0, 0),
    }
    # The patient's own frame: back, front, left side, right side lie below.
    assert pose.gravity_canonical == pytest.approx(down[position], abs=1e-12)
    expected = down[position] if header_right else (0, 1, 0)
    assert pose.gravity_world == pytest.approx(expected, abs=1e-12)


def test_roll_is_positive_from_x_to_y() -> None:
    pose = Pose("supine", True, 0.3, 0.0, 0.0, (5.0, -3.0, 0.0))
    left = pose.world_from_canonical @ [100.0, 0.0, 0.0, 1.0]
    assert left[:2] == pytest.approx([5.0 + 100.0 * np.cos(0.3), -3.0 + 100.0 * np.sin(0.3)])
    poses = [sample_pose(np.random.default_rng(n), 0.5, 200.0) for n in range(200)]
    assert {pose.position for pose in poses} == {"supine"}
    assert all(pose.header_right for pose in poses)


@pytest.mark.parametrize("index", [0, 1, 9])
def test_true_pose_leads_to_spine_canal_and_kidneys_in_the_image(index: int) -> None:
    case = sample_case(11, index, size=96, slices=20)
    image, labels = render(case.anatomy, case.pose, case.scan, texture_generator(case), noise=False)
    true = truth(case, labels)
    index_from_canonical = np.linalg.inv(case.scan.world_from_index) @ np.array(true["world_from_canonical"])

    def hu(x: float, y: float, z: np.ndarray) -> np.ndarray:
        points = np.stack([np.full_like(z, x), np.full_like(z, y), z, np.ones_like(z)])
        i, j, k = np.rint(index_from_canonical @ points)[:3].astype(int)
        kept = (k >= 0) & (k < image.shape[0])
        return image[k[kept], j[kept], i[kept]]

    size, back = case.anatomy.size, case.anatomy.spine_y
    z = np.linspace(-3.0, 3.0, 61) * size.level
    assert np.percentile(hu(0.0, back, z), 60) > 150  # vertebral bodies
    canal = hu(0.0, back + 0.36 * size.vertebra + 2.8 + 0.155 * size.vertebra, z)
    assert np.median(canal) < 90  # soft, with bone around it
    aorta = next(tube for tube in case.anatomy.vessels if tube.name == "aorta")
    assert aorta.points[:, 0].mean() > 0.0
    side = true["tumor_side"]
    assert true["tumor_ml"] > 0.0
    healthy = "right" if side == "left" else "left"
    assert true[f"kidney_{healthy}_ml"] == pytest.approx(size.kidney_ml, rel=0.2)
    assert true["body_width_mm"] == pytest.approx(size.width, rel=0.15)


def test_liver_is_on_the_right_spleen_on_the_left_and_gas_floats() -> None:
    for index in range(5):
        case = sample_case(5, index, size=64, slices=8)
        assert all(lobe.center[0] < 0.05 * case.anatomy.size.width for lobe in case.anatomy.liver)
        assert case.anatomy.liver[0].center[0] < -0.15 * case.anatomy.size.width
        assert case.anatomy.spleen.center[0] > 0.2 * case.anatomy.size.width
        left, right = case.anatomy.kidneys
        assert left.side > 0 > right.side


def test_gas_rises_against_gravity_in_the_same_patient() -> None:
    case = sample_case(5, 3, size=128, slices=6)
    height = {}
    for position in ("supine", "prone", "left decubitus"):
        pose = Pose(position, True, 0.2, 0.0, 0.0, (0.0, 0.0, 0.0))
        scan = sample_scan(np.random.default_rng(0), case.anatomy, pose, 128, 8)
        image, _ = render(case.anatomy, pose, scan, texture_generator(case), noise=False)
        k, j, i = np.nonzero(image < -900)
        canonical_from_index = np.linalg.inv(pose.world_from_canonical) @ scan.world_from_index
        x, y, z, _ = canonical_from_index @ np.stack([i, j, k, np.ones_like(i)])
        size = case.anatomy.size
        # Neither the air around the body nor the lungs.
        bowel = (np.hypot(x / size.width, y / size.depth) < 0.38) & (z < 1.2 * size.level)
        assert bowel.sum() > 100
        height[position] = np.array([x[bowel].mean(), y[bowel].mean()])
    assert height["prone"][1] > height["supine"][1] + 2.0  # to the back, which is up
    assert height["left decubitus"][0] < height["supine"][0] - 1.0  # to the right, which is up


def test_true_rolls_are_those_that_the_patients_were_drawn_at(cohort: Path, tmp_path: Path) -> None:
    """For a patient on a side, the roll is zero if the header states that position, else a quarter turn."""
    written = json.loads((cohort / "phantom.json").read_text())
    expected = {
        case["case"]: case["roll"] + (0.0 if case["header_right"] else POSITIONS[case["position"]])
        for case in written["cases"]
    }
    result = true_rolls(cohort)
    assert result.keys() == expected.keys()
    for case, roll in result.items():
        assert np.angle(np.exp(1j * (roll - expected[case]))) == pytest.approx(0.0, abs=1e-9)
    # Of what is no whole cohort nothing is known: no file, another's file, a damaged or unfinished one.
    assert true_rolls(tmp_path) == {}
    for text in (
        "[]", "{}", "not json", '{"complete": false, "cases": []}', '{"complete": true, "cases": [{}]}',
        '{"complete": true, "cases": [{"case": "a", "world_from_canonical": 3}]}',
        '{"complete": true, "cases": [{"case": "a", "world_from_canonical": [[1, "x"], [0, 1]]}]}',
        '{"complete": true, "cases": 7}',
    ):  # fmt: skip
        (tmp_path / "phantom.json").write_text(text)
        assert true_rolls(tmp_path) == {}, text


def test_a_second_channel_holds_the_uptake(cohort: Path, tmp_path: Path) -> None:
    small = {**SMALL, "cases": 2, "test_fraction": 0.0}
    written = write_cohort(tmp_path / "pet", **small, pet=True)
    opened = open_dataset(written)
    assert opened.channels == ("CT", "PET")
    before, plain = hashes(written), hashes(cohort)
    # CT and labels are those of the cohort without it.
    alike = {name for name in before if "_0000" in name or "labels" in name}
    assert len(alike) == 4
    assert {name: before[name] for name in alike} == {name: plain[name] for name in alike}
    for case in opened.cases:
        ct, uptake, labels = (sitk.ReadImage(str(path)) for path in (*case.images, case.label))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(uptake, get)() == getattr(ct, get)()
        hu, values, classes = map(sitk.GetArrayFromImage, (ct, uptake, labels))
        tumor, kidney = (float(np.median(values[classes == value])) for value in (2, 1))
        rest = float(np.median(values[(classes == 0) & (hu > 0) & (hu < 100)]))
        assert tumor > kidney > rest > float(np.median(values[hu < -500]))
        assert values.min() >= 0.0
    (written / "imagesTr" / "phantom_001_0001.nii.gz").unlink()
    assert hashes(write_cohort(written, **small, pet=True)) == before
    with pytest.raises(InputError, match=r"other parameters \(pet\)"):
        write_cohort(written, **small)
