"""The commands on MR, from phantoms to results, and with masks given by the user."""

import json
import math
import shutil

import numpy as np
import pytest
from pydicom.uid import MRImageStorage

from io_helpers import raw_slices, write_series
from isopose.homogenize.record import FOLDER, record_path
from isopose.io.images import read_labels, read_volume, write_image, write_labels
from isopose.io.truth import true_rolls
from isopose.models.folder import load_model

TINY = [
    *("data.size=64", "pose.size=32", "crop.size=32", "unet.input=full", "unet.base_features=4"),
    "train.folds=3",
    *(f"{stage}.optimizer.{key}={value}" for stage in ("crop", "unet")
      for key, value in (("epochs", 2), ("min_epochs", 1), ("iterations", 3), ("batch_size", 4))),
]  # fmt: skip


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Three MR phantoms for training and one for testing."""
    from isopose.phantom import write_cohort

    root = tmp_path_factory.mktemp("mr") / "Dataset002_Mr"
    return write_cohort(root, cases=4, slices=5, size=80, seed=2, modality="mr")


@pytest.fixture(scope="module")
def mr_model(phantoms, tmp_path_factory):
    from isopose.io.datasets import open_dataset
    from isopose.presets import load_config
    from isopose.training.fit import fit

    folder = tmp_path_factory.mktemp("model") / "model"
    fit(open_dataset(phantoms), folder, load_config(settings=TINY), workers=0)
    return folder


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def test_mr_phantoms_differ_from_ct_phantoms_in_contrast_alone(phantoms, isopose, tmp_path):
    assert json.loads((phantoms / "dataset.json").read_text())["channel_names"] == {"0": "MR"}
    code, _, _ = isopose("phantom", tmp_path / "ct", "--cases", 1, "--slices", 5, "--size", 80, "--seed", 2)
    assert code == 0
    one, other = (
        read_labels(root / "labelsTr" / "phantom_000.nii.gz") for root in (phantoms, tmp_path / "ct")
    )
    np.testing.assert_array_equal(one.array, other.array)
    truth = json.loads((phantoms / "phantom.json").read_text())["cases"]
    ct = json.loads((tmp_path / "ct" / "phantom.json").read_text())["cases"]
    assert truth[0]["roll"] == ct[0]["roll"]
    assert {case["sequence"] for case in truth} <= {"t1", "t1-fatsat", "t2", "t2-fatsat"}
    assert "sequence" not in ct[0]


def test_check_recognizes_mr_by_the_channel_name(phantoms, isopose):
    code, out, _ = isopose("check", phantoms, "--json")
    report = json.loads(out)
    assert code == 0
    # Few slices lie far apart; nothing else is unusual.
    assert [p["message"] for p in report["problems"] if "leave gaps" not in p["message"]] == []
    width = np.median([
        case["body_width_mm"] for case in json.loads((phantoms / "phantom.json").read_text())["cases"][:3]
    ])  # fmt: skip
    # Boxes of turned patients are wider or narrower than the patients themselves.
    assert 0.7 * width < report["fingerprint"]["body_median_mm"][0] < 1.2 * width
    assert report["fingerprint"]["tissue"] is None
    assert report["fingerprint"]["channels"][0]["scale"]["method"] == "zscore"


def test_predictions_of_an_mr_model_do_not_depend_on_the_gain(phantoms, mr_model, isopose, tmp_path):
    model = load_model(mr_model)
    assert (model.modality, model.config.pose.contrast) == ("mr", "any")
    scan = read_volume(only(phantoms / "imagesTs", "*"))
    write_image(scan, tmp_path / "in" / "scan.nii.gz")
    # A power of two: other gains round otherwise, and a model of three steps is undecided about some voxels.
    write_image(scan.with_array(scan.array.astype(np.int32) * 4), tmp_path / "in" / "louder.nii.gz")
    code, _, _ = isopose("predict", mr_model, tmp_path / "in", "--output", tmp_path / "out")
    assert code == 0
    one, other = (read_labels(tmp_path / "out" / f"{name}.nii.gz") for name in ("scan", "louder"))
    np.testing.assert_array_equal(one.array, other.array)
    assert one.same_grid(scan, 1e-6)
    records = [json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("scan", "louder")]
    assert records[0]["roll_decision"]["odds"] == pytest.approx(records[1]["roll_decision"]["odds"], rel=0.01)


def test_page_images_of_mr_do_not_depend_on_the_units(phantoms, mr_model, tmp_path):
    """Large values and values below one are displayed alike."""
    from isopose.inference.predict import predict
    from isopose.inference.record import prediction_record
    from isopose.serve.viewing import read_view, write_view

    model, scan = load_model(mr_model), read_volume(only(phantoms / "imagesTs", "*"))
    seen = {}
    for name, gain in (("whole", 1.0), ("small", 1e-4)):
        volume = scan.with_array(scan.array if gain == 1.0 else (scan.array * gain).astype(np.float32))
        prediction, folder = predict(model, volume, crops=True), tmp_path / name
        write_view(folder, model, volume, prediction, prediction_record(model, prediction, "0" * 64))
        values = read_view(folder)["values"]
        assert (values["unit"], list(values["windows"])) == ("", ["usual", "brighter", "darker", "all"])
        picture = values["slope"] * read_volume(folder / "scan.nii").array.astype(float) + values["intercept"]
        np.testing.assert_allclose(picture / gain, scan.reoriented().array, atol=0.6 * values["slope"] / gain)
        crop = values["slope"] * np.load(folder / "crop.npy").astype(float) + values["intercept"]
        ends = [
            (values["slope"] * end + values["intercept"]) / gain
            for end in (*values["windows"]["usual"], *read_view(folder)["steps"]["window"])
        ]
        seen[name] = crop / gain, ends
        # What is shown first is bright enough to see the body, and not cut off.
        inside = prediction.prepared.mask.any()
        assert inside
        body = scan.array[scan.array > scan.array.mean()]
        assert np.mean(body > ends[1]) < 0.02
        assert ends[0] < np.median(body) < ends[1]
    np.testing.assert_allclose(seen["whole"][0], seen["small"][0], atol=1.0)
    assert seen["whole"][1] == pytest.approx(seen["small"][1], rel=0.01, abs=1.0)


def test_step_images_of_a_scan_share_one_window(phantoms, mr_model):
    """If MR slices get darker along the scan, the step images get darker as well."""
    from isopose.inference.predict import predict
    from isopose.report.figure import window_of_scan
    from isopose.report.steps import steps_of

    model, scan = load_model(mr_model), read_volume(only(phantoms / "imagesTs", "*"))
    scan = scan.with_array(
        (scan.array * np.linspace(1.0, 0.4, len(scan.array))[:, None, None]).astype(np.int16)
    )
    rows = steps_of(model, scan, predict(model, scan))
    assert len(rows) > 1
    assert {row.native_window for row in rows} == {window_of_scan(scan.array)}


def test_review_of_mr_uses_the_modality_of_the_record_or_dataset(phantoms, mr_model, isopose, tmp_path):
    """The modality comes from the record, else from the dataset; values below -200 do not make a scan CT."""
    from isopose.serve.cohort import case_view, open_cohort, thumbnail

    out, name = tmp_path / "out", only(phantoms / "labelsTs", "*").name.removesuffix(".nii.gz")
    scan = read_volume(only(phantoms / "imagesTs", "*"))
    dark = scan.with_array(scan.array.astype(np.int16) - 300)
    write_image(dark, tmp_path / "images" / f"{name}.nii.gz")
    code, _, _ = isopose("predict", mr_model, tmp_path / "images", "--output", out)
    assert code == 0
    record = out / f"{name}.json"
    assert json.loads(record.read_text())["modality"] == "mr"
    options = dict.fromkeys(("against", "labels", "scores", "scores_against"))

    def opened(truth, **more):
        cohort = open_cohort(out, tmp_path / "review", truth=truth, **{"images": None, **options, **more})
        (number,) = [k for k, case in enumerate(cohort.cases) if case.case == name]
        return cohort, number

    cohort, number = opened(None, images=tmp_path / "images")
    _, view = case_view(cohort, number)
    assert view["values"]["unit"] == ""
    assert view["values"]["windows"]["usual"][0] < -200
    from PIL import Image

    gray = np.asarray(Image.open(thumbnail(cohort, cohort.cases[number]))).mean(axis=2)
    assert 10 < np.percentile(gray, 75) < 250
    record.unlink()
    # Without the record the dataset says it; with neither, nothing does.
    for truth in (phantoms, phantoms / "labelsTs"):
        cohort, number = opened(truth)
        assert cohort.cases[number].modality == "mr"
    cohort, number = opened(None, labels={"kidney": 1, "tumor": 2})
    assert cohort.cases[number].modality is None


def test_series_of_another_modality_are_refused(mr_model, model_folder, isopose, tmp_path):
    write_series(tmp_path / "ct", raw_slices())
    write_series(tmp_path / "mr", raw_slices(), SOPClassUID=MRImageStorage, Modality="MR")
    for model, scan, message in (
        (mr_model, "ct", "a DICOM series of CT, expected MR"),
        (model_folder, "mr", "a DICOM series of MR, expected CT"),
    ):
        code, _, err = isopose("predict", model, tmp_path / scan, "--output", tmp_path / f"of-{scan}")
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not (tmp_path / f"of-{scan}" / f"{scan}.nii.gz").exists()
    code, _, err = isopose("homogenize", tmp_path / "mr", tmp_path / "hom")
    assert (code, "--modality mr" in err) == (2, True)


def test_homogenized_mr_keeps_its_values_and_is_restored(phantoms, isopose, tmp_path):
    out = tmp_path / "upright"
    code, _, err = isopose("homogenize", phantoms, out, "--size", 128)
    assert code == 0
    rolls = true_rolls(phantoms)
    records = {path.stem: json.loads(path.read_text()) for path in (out / FOLDER).glob("*.json")}
    assert set(records) == set(rolls)
    kept = 0
    for case, record in records.items():
        if record["roll_decision"]["header_kept"]:
            kept += 1
        else:
            assert abs(record["roll_decision"]["shown_degrees"] - math.degrees(rolls[case])) < 5.0
    assert kept < len(records)
    assert err.count("left as the file's header says") == kept
    assert json.loads((out / "dataset.json").read_text())["channel_names"] == {"0": "MR"}
    before = read_volume(phantoms / "imagesTr" / "phantom_001_0000.nii.gz")
    after = read_volume(out / "imagesTr" / "phantom_001_0000.nii.gz")
    assert after.array.max() <= before.array.max()
    marks = read_labels(out / "labelsTr" / "phantom_001.nii.gz")
    drawn = read_labels(phantoms / "labelsTr" / "phantom_001.nii.gz")
    inside = [scan.array[labels.array > 0].mean() for scan, labels in ((before, drawn), (after, marks))]
    assert abs(inside[1] / inside[0] - 1) < 0.03
    (tmp_path / "answers").mkdir()
    shutil.copy(out / "labelsTr" / "phantom_001.nii.gz", tmp_path / "answers")
    code, _, _ = isopose("restore", tmp_path / "answers", "--homogenized", out, "--output", tmp_path / "back")
    back = read_labels(tmp_path / "back" / "phantom_001.nii.gz", like=drawn)
    both = np.count_nonzero((back.array > 0) & (drawn.array > 0))
    assert 2 * both / (np.count_nonzero(back.array) + np.count_nonzero(drawn.array)) > 0.9


def boxes(dataset, folder, names):
    """Write box-shaped masks, which no estimated body mask resembles."""
    for name, path in names.items():
        scan = read_volume(dataset / path)
        mask = np.zeros(scan.array.shape, np.uint8)
        mask[:, 20:50, 30:70] = 1
        write_labels(scan.with_array(mask), folder / f"{name}.nii.gz")


def test_given_masks_replace_the_estimated_body_masks(cohort, model_folder, isopose, tmp_path):
    masks, scans = tmp_path / "masks", cohort / "imagesTr"
    boxes(cohort, masks, {"case_0": "imagesTr/case_0_0000.nii.gz"})
    out = tmp_path / "out"
    code, _, err = isopose("predict", model_folder, scans, "--output", out, "--masks", masks)
    assert code == 2  # of the other scan, and only of that
    assert err.count("error:") == 1
    assert "case_1.nii.gz" in err
    record = json.loads((out / "case_0.json").read_text())
    scan = read_volume(scans / "case_0_0000.nii.gz").reoriented()
    middle = np.array([49.5, 34.5]) * scan.spacing[:2]
    flipped = (np.array(scan.array.shape[:0:-1]) - 1) * scan.spacing[:2] - middle
    center = np.array(record["frame"]["center_mm"])
    assert all(min(abs(c - a), abs(c - b)) < 1e-6 for c, a, b in zip(center, middle, flipped, strict=True))
    assert len(record["mask_sha256"]) == 64
    again = isopose("predict", model_folder, scans / "case_0_0000.nii.gz", "--output", out, "--masks", masks)
    assert "is there already" in again[2]
    without = isopose("predict", model_folder, scans / "case_0_0000.nii.gz", "--output", out)
    assert "is there already" not in without[2]
    assert "mask_sha256" not in json.loads((out / "case_0.json").read_text())
    # A result without the mask is not the one that is asked for, if the mask is lost.
    (masks / "case_0.nii.gz").unlink()
    code, _, lost = isopose(
        "predict", model_folder, scans / "case_0_0000.nii.gz", "--output", out, "--masks", masks
    )
    assert (code, "is there already" in lost, "case_0.nii.gz: no such file" in lost) == (2, False, True)


def test_homogenize_and_check_accept_masks(cohort, isopose, tmp_path):
    masks = tmp_path / "masks"
    names = {"case_0": "imagesTr/case_0_0000.nii.gz", "case_2": "imagesTs/case_2_0000.nii.gz"}
    boxes(cohort, masks, names)
    code, _, err = isopose("homogenize", cohort, tmp_path / "hom", "--masks", masks, "--size", 128)
    assert code == 2
    assert err.count("error:") == 1
    record = json.loads(record_path(tmp_path / "hom", "case_0").read_text())
    assert set(record["sources"]) == {"image", "label", "mask"}
    scan = read_volume(cohort / "imagesTr" / "case_0_0000.nii.gz")
    # Its own frame just holds the box.
    assert record["transform"]["frame"]["fov_mm"] == pytest.approx(
        1.04 * max(40 * scan.spacing[0], 30 * scan.spacing[1])
    )
    code, out, _ = isopose("check", cohort, "--masks", masks)
    assert code == 2
    assert "case_1: image: " in out
    code, _, err = isopose("check", cohort, "--masks", tmp_path / "nowhere")
    assert (code, err.count("\n")) == (2, 1)
