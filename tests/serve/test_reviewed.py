"""A finished cohort is collected for review."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bright import make_scene
from isopose.errors import InputError
from isopose.evaluation.evaluate import evaluate, open_truth
from isopose.geometry.volume import Volume
from isopose.io.images import read_labels, write_image, write_labels
from isopose.serve.cohort import Decisions, case_view, open_cohort, thumbnail
from isopose.serve.viewing import reduced, reduction

LABELS = {"kidney": 1, "tumor": 7}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Scans, references and predictions of two cases; the second is stored flipped and half missed."""
    root = tmp_path_factory.mktemp("cohort")
    for number in range(2):
        scene = make_scene(slices=5 + number)
        volume, truth = scene.volume, scene.volume.with_array(scene.truth)
        predicted = truth.with_array(
            np.where(np.arange(truth.array.shape[0])[:, None, None] < 3, truth.array, 0)
        )
        if number:
            matrix = volume.world_from_index @ np.array(
                [[-1.0, 0, 0, volume.array.shape[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
            )
            volume, truth, predicted = (
                Volume(v.array[:, :, ::-1], matrix) for v in (volume, truth, predicted)
            )
        write_image(volume, root / "imagesTs" / f"case_{number}_0000.nii.gz")
        write_labels(truth, root / "labelsTs" / f"case_{number}.nii.gz")
        write_labels(truth if number == 0 else predicted, root / "ours" / f"case_{number}.nii.gz")
        write_labels(predicted, root / "theirs" / f"case_{number}.nii.gz")
    record = {
        "labels": LABELS,
        "volumes_ml": {"kidney": 12.5, "tumor": 1.5},
        "warnings": ["looks odd"],
        "frame": {"center_mm": [0, 0], "fov_mm": 300.0, "size": 64},
        "slices": [
            {"confidence": 0.9, "scale_x": 1.0, "scale_y": 0.25},
            {"confidence": 0.4, "scale_x": 1.0, "scale_y": 0.25},
        ],
    }
    (root / "ours" / "case_1.json").write_text(json.dumps(record))
    return root


def opened(folders: Path, tmp_path: Path, **options):
    scores = evaluate(folders / "ours", *open_truth(folders / "labelsTs", LABELS))
    theirs = evaluate(folders / "theirs", *open_truth(folders / "labelsTs", LABELS))
    review_options = {
        "truth": folders / "labelsTs",
        "images": None,
        "against": folders / "theirs",
        "labels": None,
        "scores": scores,
        "scores_against": theirs,
    }
    return open_cohort(folders / "ours", tmp_path / "review", **{**review_options, **options})


def test_each_case_has_its_scan_scores_and_record(folders, tmp_path):
    cohort = opened(folders, tmp_path)
    first, second = (case.row(cohort.targets) for case in cohort.cases)
    assert [case.image.name for case in cohort.cases] == ["case_0_0000.nii.gz", "case_1_0000.nii.gz"]
    assert first["dice"] == {"kidney": 1.0, "tumor": 1.0, "kidney+tumor": 1.0}
    assert 0.3 < first["against"]["kidney"] < 1.0
    assert second["dice"] == second["against"]
    assert (first["confidence"], second["confidence"]) == (None, 0.4)
    assert (second["volumes_ml"], second["warnings"]) == ({"kidney": 12.5, "tumor": 1.5}, ["looks odd"])
    assert second["size_mm"] == 150.0


def test_without_references_the_table_lists_all_cases(folders, tmp_path):
    options = {"truth": None, "scores": None, "scores_against": None, "against": None}
    cohort = opened(folders, tmp_path, **options)
    assert [case.row(cohort.targets)["dice"] for case in cohort.cases] == [None, None]
    assert cohort.targets == ("kidney", "tumor", "kidney+tumor")
    assert cohort.cases[0].image is None
    cohort = opened(folders, tmp_path, **options, images=folders / "imagesTs")
    assert cohort.cases[0].image == folders / "imagesTs" / "case_0_0000.nii.gz"
    with pytest.raises(InputError, match="the labels are unknown"):
        open_cohort(folders / "theirs", tmp_path, **{**options, "images": None, "labels": None})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected a folder of predicted label maps"):
        open_cohort(tmp_path / "empty", tmp_path, **{**options, "images": None, "labels": LABELS})


def test_all_maps_of_a_case_lie_on_the_patients_axes(folders, tmp_path):
    cohort = opened(folders, tmp_path)
    case_folder, view = case_view(cohort, 1)
    straight = make_scene(slices=6)
    classes = np.array([0, 1, 0, 0, 0, 0, 0, 2], np.uint8)[straight.truth]
    np.testing.assert_array_equal(read_labels(case_folder / "truth.nii").array, classes)
    result = read_labels(case_folder / "labels.nii").array
    np.testing.assert_array_equal(result[:3], classes[:3])
    assert not result[3:].any()
    assert view["maps"] == ["labels", "truth", "against"]
    assert view["best"] in range(3)


def test_only_the_last_cases_are_cached(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("isopose.serve.cohort.MAX_CACHED_CASES", 1)
    cohort = opened(folders, tmp_path)
    case_view(cohort, 0)
    case_view(cohort, 1)
    assert [path.name for path in (tmp_path / "review" / "views").iterdir()] == [cohort.cases[1].key]


def test_a_replaced_prediction_is_shown(folders, tmp_path):
    scene = make_scene(slices=5)
    path = tmp_path / "ours" / "case_0.nii.gz"
    write_labels(scene.volume.with_array(scene.truth), path)
    options = {"labels": LABELS, "scores": None, "scores_against": None, "against": None}
    cohort = open_cohort(path.parent, tmp_path / "review", truth=folders / "labelsTs", images=None, **options)
    case_folder, _ = case_view(cohort, 0)
    before = read_labels(case_folder / "labels.nii").array
    first = thumbnail(cohort, cohort.cases[0]).read_bytes()
    write_labels(scene.volume.with_array(np.zeros_like(scene.truth)), path)
    case_folder, _ = case_view(cohort, 0)
    assert before.any()
    assert not read_labels(case_folder / "labels.nii").array.any()
    assert thumbnail(cohort, cohort.cases[0]).read_bytes() != first


def test_a_thumbnail_shows_the_labels(folders, tmp_path):
    cohort = opened(folders, tmp_path)
    picture = np.asarray(Image.open(thumbnail(cohort, cohort.cases[0]))).astype(int)
    assert max(picture.shape[:2]) == 96
    green = (picture[..., 1] - picture[..., 0] > 60).mean()
    assert 0.01 < green < 0.5
    # The mass is on the patient's left: on the right of the picture.
    assert np.median(np.nonzero(picture[..., 1] - picture[..., 0] > 60)[1]) > picture.shape[1] / 2


def test_decisions_are_saved_without_losing_those_of_others(tmp_path):
    path = tmp_path / "review.csv"
    first = Decisions(path, ("a", "b", "c"))
    first.decide("a", "accepted", "")
    first.decide("b", "rejected", 'tumor missed, "left"\nlook again')
    first.decide("c", "", "=HYPERLINK(1)")
    # A spreadsheet would take it for a formula.
    assert "'=HYPERLINK(1)" in path.read_text()
    second = Decisions(path, ("b", "c"))
    assert second.of == {"b": ("rejected", 'tumor missed, "left"\nlook again'), "c": ("", "=HYPERLINK(1)")}
    second.decide("b", "", "")
    assert Decisions(path, ("a", "b", "c")).of == {"a": ("accepted", ""), "c": ("", "=HYPERLINK(1)")}


@pytest.mark.parametrize(
    "text", ["case,decision\n", "case;decision;comment\n", "case,decision,comment\na,b\n", ""]
)
def test_a_file_of_another_format_is_neither_read_as_decisions_nor_overwritten(tmp_path, text):
    path = tmp_path / "review.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="expected columns case, decision, comment"):
        Decisions(path, ("a",))
    assert path.read_text() == text


def test_downsampled_volumes_keep_world_positions(tmp_path, monkeypatch):
    monkeypatch.setattr("isopose.serve.viewing.MAX_SHOWN_VOXELS", 5000)
    shape = (30, 40, 20)
    x, y, z = reduction(shape)
    assert (x, y, z) != (1, 1, 1)
    assert -(-shape[2] // x) * -(-shape[1] // y) * -(-shape[0] // z) <= 5000
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    matrix = np.diag([0.7, 0.8, 3.0, 1.0])
    matrix[:3, 3] = (-10.0, 20.0, 30.0)
    write_image(Volume(array, matrix), tmp_path / "scan.nii")
    from isopose.io.images import read_volume

    small = read_volume(reduced(tmp_path / "scan.nii", shape))
    np.testing.assert_array_equal(small.array, array[::z, ::y, ::x])
    sizes = np.array(small.array.shape[::-1]) - 1
    last, point = np.append(sizes, 1), np.append(sizes * [x, y, z], 1)
    np.testing.assert_allclose(small.world_from_index @ last, matrix @ point, atol=1e-4)
    assert reduction((10, 20, 20)) == (1, 1, 1)
