import gzip
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from bright import bright_model, make_scene
from io_helpers import dicom_slice, save, write_series
from isopose.errors import InputError
from isopose.files import sha256
from isopose.inference import files as scans_module
from isopose.inference.files import predict_scans
from isopose.io.images import read_labels, read_volume, write_image
from isopose.io.results.formats import choose_formats
from isopose.io.scans import find_scans
from isopose.io.sources import hash_of_source
from isopose.labels import Labels
from isopose.models.info import ModelInfo, TrainingInfo
from isopose.progress import Silent, Terminal
from isopose.report.steps import write_steps
from isopose.settings import PredictConfig


@pytest.fixture(scope="module")
def model():
    return bright_model({"pose": {"learned": False}, "crop": {"enabled": False}})


@pytest.fixture(scope="module")
def series(real_ct, tmp_path_factory):
    """A small real series with a patient's name planted in every text element."""
    folder = tmp_path_factory.mktemp("dicom") / "scan"
    folder.mkdir()
    for number, file in enumerate(sorted((real_ct / "dicom-series").iterdir())):
        data = pydicom.dcmread(file)
        data.PatientName, data.PatientID = "Zzyzx^Quentin", "PID-90210"
        data.PatientBirthDate, data.InstitutionName = "20110203", "Hospital of Zzyzx"
        data.StudyDescription = data.SeriesDescription = data.PatientComments = "Zzyzx Quentin"
        data.save_as(folder / f"{number:03d}.dcm")
    return folder


def run(
    model, inputs, output, *, probabilities=False, reporter=None, steps=False, formats=("nifti",), series=None
):
    return predict_scans(
        model,
        find_scans(inputs, series),
        output,
        probabilities=probabilities,
        steps=write_steps if steps else None,
        reporter=reporter or Silent(),
        formats=formats,
    )


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere.nii.gz", "no such file or folder"),
        ("two\nlines.nii.gz", "its name has control characters; rename it"),
        (f"{'n' * 201}.nii.gz", "its name has over 200 bytes; rename it"),
        (os.fsdecode(b"bad\xff.nii.gz"), "its name is not UTF-8; rename it"),
    ],
)
def test_an_unusable_scan_name_is_reported_in_one_line_and_the_others_are_predicted(
    model, tmp_path, capsys, name, problem
):
    scene = make_scene(slices=3)
    write_image(scene.volume, tmp_path / "good.nii.gz")
    odd = tmp_path / name
    if name != "nowhere.nii.gz":
        shutil.copy(tmp_path / "good.nii.gz", odd)
    outcomes = predict_scans(
        model,
        find_scans([odd, tmp_path / "good.nii.gz"]),
        tmp_path / "out",
        probabilities=False,
        steps=None,
        reporter=Terminal(),
    )
    assert problem in outcomes[0].problem
    assert outcomes[1].problem is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "good.nii.gz"]
    err = capsys.readouterr().err
    assert "two\nlines" not in err


def test_scans_that_would_get_one_name_are_one_line_each_and_the_others_are_done(model, tmp_path):
    for name in ("good.nii.gz", "twin.nii", "twin.nii.gz", "Ann.nii.gz", "ann.nii.gz"):
        write_image(make_scene(slices=3).volume, tmp_path / "in" / name)
    outcomes = run(model, [tmp_path / "in"], tmp_path / "out")
    assert {one.name for one in outcomes if one.problem is None} == {"good"}
    problems = [one.problem for one in outcomes if one.problem is not None]
    assert ["two inputs would be written as" in problem for problem in problems] == [True] * 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "good.nii.gz"]
    run(model, [tmp_path / "in" / "good.nii.gz"], tmp_path / "alone")
    results = [read_labels(tmp_path / name / "good.nii.gz").array for name in ("out", "alone")]
    np.testing.assert_array_equal(*results)


def test_no_empty_folders_stay_where_no_probabilities_are_written(model, tmp_path, monkeypatch):
    write_image(make_scene(slices=3).volume, tmp_path / "a.nii.gz")
    run(model, [tmp_path / "a.nii.gz"], tmp_path / "out", probabilities=True)
    assert (tmp_path / "out" / "probabilities" / "a_kidney.nii.gz").is_file()

    def fail(*_args, **_options):
        raise InputError("no")

    write_image(make_scene(slices=3, roll=0.2).volume, tmp_path / "a.nii.gz")
    monkeypatch.setattr(scans_module, "write_results", fail)
    [outcome] = run(model, [tmp_path / "a.nii.gz"], tmp_path / "out", probabilities=True)
    assert outcome.problem is not None
    assert not list((tmp_path / "out").iterdir())


def test_a_mask_beside_dicom_slices_is_not_taken_for_the_scan(model, tmp_path):
    scene = make_scene(slices=4)
    stored = (scene.volume.array + 1024).astype(np.uint16)
    for name in ("mixed", "plain"):
        write_series(tmp_path / name, stored, BitsStored=16, HighBit=15)
    write_image(scene.volume.with_array(scene.truth.astype(np.uint8)), tmp_path / "mixed" / "mask.nii.gz")
    mixed, plain = run(model, [tmp_path / "mixed", tmp_path / "plain"], tmp_path / "out")
    assert mixed.record is None
    assert mixed.problem.startswith(f"{tmp_path / 'mixed'}: holds both DICOM slices and mask.nii.gz; ")
    assert plain.problem is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plain.json", "plain.nii.gz"]
    # One of the slices chooses the series, and the answer is that of the series alone.
    slices, _ = run(model, [tmp_path / "mixed" / "003.dcm", tmp_path / "plain"], tmp_path / "chosen")
    assert slices.record["volumes_ml"] == plain.record["volumes_ml"]


def test_the_record_names_scan_model_and_settings(model, tmp_path):
    scene = make_scene(roll=math.radians(20), slices=4, empty=(0,))
    write_image(scene.volume, tmp_path / "in" / "child_0000.nii.gz")
    outcomes = run(model, [tmp_path / "in"], tmp_path / "out", probabilities=True, steps=True)
    record = json.loads((tmp_path / "out" / "child.json").read_text())
    assert outcomes[0].record == record
    assert outcomes[0].problem is None

    labels = read_labels(tmp_path / "out" / "child.nii.gz")
    milliliter = float(np.prod(labels.spacing)) / 1000
    assert record["volumes_ml"] == pytest.approx(
        {
            "kidney": (labels.array == 1).sum() * milliliter,
            "tumor": (labels.array == 7).sum() * milliliter,
            "kidney+tumor": (labels.array > 0).sum() * milliliter,
        }
    )
    assert record["volumes_ml"]["tumor"] == pytest.approx(3 * math.pi * 11**2 * 6 / 1000, rel=0.1)
    assert record["labels"] == {"kidney": 1, "tumor": 7}
    assert record["model_sha256"] == model.weights_sha256
    assert record["input_sha256"] == sha256(tmp_path / "in" / "child_0000.nii.gz")
    assert record["warnings"] == []
    assert record["frame"]["size"] == 128
    assert record["frame"]["fov_mm"] == 230.0

    assert [entry["slice"] for entry in record["slices"]] == [1, 2, 3]
    for entry in record["slices"]:
        assert entry["roll_degrees"] == pytest.approx(20, abs=2)
        assert entry["scale_x"] == pytest.approx(1.0, abs=0.05)
        assert entry["pose"][0] == pytest.approx(math.radians(entry["roll_degrees"]))
        assert entry["pose"][1] == pytest.approx(math.log(entry["scale_x"]), abs=1e-6)
        assert entry["homogenized_from_crop"] == np.eye(3).tolist()
        assert entry["agreement"] > 0.95
        assert (entry["pose_from"], entry["widened"], entry["cut_off"]) == ("moments", False, False)

    parts = [
        read_volume(tmp_path / "out" / "probabilities" / f"child_{name}.nii.gz")
        for name in ("background", "kidney", "tumor")
    ]
    values = np.stack([part.array for part in parts])
    np.testing.assert_allclose(values.sum(axis=0), 1.0, atol=1e-5)
    np.testing.assert_array_equal(np.array([0, 1, 7])[values.argmax(axis=0)], labels.array)
    assert all(part.same_grid(labels, 1e-6) for part in parts)
    assert (tmp_path / "out" / "steps" / "child.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "child.json",
        "child.nii.gz",
        "probabilities",
        "steps",
    ]


def test_one_bad_scan_does_not_stop_the_others(model, tmp_path, capsys):
    write_image(make_scene(slices=1).volume, tmp_path / "in" / "z_good.nii.gz")
    touch(tmp_path / "in" / "a_bad.nii.gz")
    air = make_scene(slices=1, empty=(0,)).volume
    write_image(air, tmp_path / "in" / "b_air.nii.gz")
    outcomes = run(model, [tmp_path / "in"], tmp_path / "out", reporter=Terminal())
    assert [(o.name, o.record is not None) for o in outcomes] == [
        ("a_bad", False),
        ("b_air", False),
        ("z_good", True),
    ]
    assert "a_bad.nii.gz" in outcomes[0].problem
    assert "no body found" in outcomes[1].problem
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["z_good.json", "z_good.nii.gz"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[3/3] z_good" in captured.err
    assert captured.err.count("error: ") == 2


def test_every_problem_names_its_scan(model, tmp_path):
    write_image(make_scene(slices=1, empty=(0,)).volume, tmp_path / "in" / "b_air.nii.gz")
    write_image(make_scene(slices=1, empty=(0,)).volume, tmp_path / "in" / "c_air.nii.gz")
    for outcome in run(model, [tmp_path / "in"], tmp_path / "out"):
        assert outcome.name in outcome.problem


def test_existing_results_are_not_computed_again(model, tmp_path, monkeypatch):
    scan, output = tmp_path / "child.nii.gz", tmp_path / "out"
    write_image(make_scene(slices=2).volume, scan)
    calls = []
    predict = scans_module.predict
    monkeypatch.setattr(scans_module, "predict", lambda *a, **k: calls.append(1) or predict(*a, **k))

    def again(with_model=model, **options) -> int:
        calls.clear()
        outcomes = run(with_model, [scan], output, **options)
        assert outcomes[0].record == json.loads((output / "child.json").read_text())
        return len(calls)

    assert again() == 1
    assert again() == 0
    # Whatever a result depends on, and whatever is missing or damaged, makes it anew.
    assert again(steps=True) == 1
    assert again(probabilities=True) == 1
    assert again(steps=True, probabilities=True) == 0
    (output / "probabilities" / "child_tumor.nii.gz").unlink()
    assert again(probabilities=True) == 1
    (output / "child.nii.gz").unlink()
    assert again() == 1
    (output / "child.json").write_text("{")
    assert again() == 1
    assert again(replace(model, weights_sha256="1" * 64)) == 1
    settings = model.config.model_copy(update={"predict": PredictConfig(min_pose_dice=0.1)})
    other = replace(model, config=settings, weights_sha256="1" * 64)
    assert again(other) == 1
    write_image(make_scene(slices=2, roll=0.1).volume, scan)
    assert again(other) == 1
    assert again(other) == 0


def test_a_result_never_replaces_its_scan(model, tmp_path):
    write_image(make_scene(slices=1).volume, tmp_path / "child.nii.gz")
    write_image(make_scene(slices=1).volume, tmp_path / "other_0000.nii.gz")
    before = sha256(tmp_path / "child.nii.gz")
    with pytest.raises(InputError, match=r"child\.nii\.gz: would be overwritten by its result"):
        run(model, [tmp_path], tmp_path)
    assert sha256(tmp_path / "child.nii.gz") == before
    assert run(model, [tmp_path / "other_0000.nii.gz"], tmp_path)[0].problem is None
    assert sha256(tmp_path / "child.nii.gz") == before


@pytest.mark.parametrize(
    ("key", "use"), [("images_sha256", "train"), ("validation_images_sha256", "validate")]
)
def test_a_training_scan_is_recognized_under_another_name(key, use, model, tmp_path):
    write_image(make_scene(slices=1).volume, tmp_path / "in" / "renamed.nii.gz")
    write_image(make_scene(slices=1, roll=0.1).volume, tmp_path / "in" / "unseen.nii.gz")
    known = sha256(tmp_path / "in" / "renamed.nii.gz")
    trained = replace(model, info=ModelInfo(TrainingInfo(**{"images_sha256": (), key: ("0" * 64, known)})))
    renamed, unseen = run(trained, [tmp_path / "in"], tmp_path / "out")
    assert renamed.record["warnings"] == [
        f"this scan was used to {use} the model: its result is not an independent test"
    ]
    assert unseen.record["warnings"] == []
    assert json.loads((tmp_path / "out" / "renamed.json").read_text())["warnings"] != []


def test_a_training_scan_is_recognized_with_and_without_a_series_number(series, tmp_path):
    """Training has no series number; the hash of a result covers the number that was given."""
    known = hash_of_source(series)
    small = bright_model(
        {"data": {"size": 64}, "pose": {"learned": False}, "crop": {"enabled": False}}, fov_mm=420.0
    )
    trained = replace(small, info=ModelInfo(TrainingInfo(images_sha256=(known,))))
    uid = pydicom.dcmread(min(series.iterdir())).SeriesInstanceUID
    for name, chosen in (("one", None), ("named", str(uid))):
        [outcome] = run(trained, [series], tmp_path / name, series=chosen)
        assert outcome.problem is None
        assert any("this scan was used to train the model" in line for line in outcome.record["warnings"])
        assert (outcome.record["input_sha256"] == known) == (chosen is None)


def test_a_series_in_a_subfolder_has_its_own_hash(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name / "DICOM").mkdir(parents=True)
        (tmp_path / name / "DICOM" / "0001").write_bytes(content)
    a, b, c = (hash_of_source(tmp_path / name) for name in "abc")
    assert a == c
    assert a != b


def test_no_patient_data_in_any_output(model, series, tmp_path, capsys):
    small = bright_model(
        {"data": {"size": 64}, "pose": {"learned": False}, "crop": {"enabled": False}}, fov_mm=420.0
    )
    broken = tmp_path / "broken"
    shutil.copytree(series, broken)
    sorted(broken.iterdir())[2].unlink()
    sorted(broken.iterdir())[-3].unlink()
    outcomes = run(
        small, [series, broken], tmp_path / "out", probabilities=True, steps=True, reporter=Terminal()
    )
    assert outcomes[0].record is not None
    assert outcomes[1].problem is not None, "a series with gaps should be refused"
    assert outcomes[0].record["input_sha256"] == hash_of_source(series)
    captured = capsys.readouterr()
    texts = [captured.out.encode(), captured.err.encode(), outcomes[1].problem.encode()]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".gz", ".json", ".png"}
    texts += [
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in written
    ]
    texts += [path.name.encode() for path in written]
    for secret in (b"zzyzx", b"quentin", b"pid-90210", b"20110203"):
        assert any(secret in file.read_bytes().lower() for file in series.iterdir())
        assert not any(secret in text.lower() for text in texts)


def test_a_label_name_cannot_point_outside_the_folder(model, tmp_path):
    write_image(make_scene(slices=1).volume, tmp_path / "child.nii.gz")
    odd = replace(model, labels=Labels.create({"mass/cyst": 1, "../../out": 7}))
    output = tmp_path / "a" / "b"
    assert run(odd, [tmp_path / "child.nii.gz"], output, probabilities=True)[0].problem is None
    assert sorted(p.name for p in (output / "probabilities").iterdir()) == [
        "child_..%2F..%2Fout.nii.gz",
        "child_background.nii.gz",
        "child_mass%2Fcyst.nii.gz",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "child.nii.gz"]


def test_existing_results_are_reported(model, tmp_path, capsys):
    write_image(make_scene(slices=1).volume, tmp_path / "child.nii.gz")
    for exists in (False, True):
        run(model, [tmp_path / "child.nii.gz"], tmp_path / "out", reporter=Terminal())
        assert ("is there already" in capsys.readouterr().err) is exists


def test_an_output_that_is_a_file_is_refused_before_predicting(model, tmp_path, monkeypatch):
    write_image(make_scene(slices=1).volume, tmp_path / "child.nii.gz")
    (tmp_path / "out").write_text("notes")
    monkeypatch.setattr(scans_module, "predict", None)
    with pytest.raises(InputError, match="out: cannot be used as a folder"):
        run(model, [tmp_path / "child.nii.gz"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "notes"


def test_a_series_is_written_as_dicom_objects_and_only_they_name_the_patient(model, series, tmp_path, capsys):
    output = tmp_path / "out"
    formats = choose_formats(["dicom-sr", "rtstruct", "nifti"])
    assert formats == ("nifti", "dicom-seg", "rtstruct", "dicom-sr")
    [outcome] = run(model, [series], output, formats=formats, reporter=Terminal())
    assert outcome.problem is None
    assert sorted(p.name for p in output.iterdir()) == [
        "scan.json",
        "scan.nii.gz",
        "scan.rtstruct.dcm",
        "scan.seg.dcm",
        "scan.sr.dcm",
    ]
    labels = read_labels(output / "scan.nii.gz")
    segments = highdicom.seg.segread(output / "scan.seg.dcm")
    for number, name in enumerate(model.labels.names, start=1):
        volume = segments.get_volume(segment_numbers=[number], combine_segments=True, relabel=True)
        index = np.argwhere(volume.array == 1)
        points = np.column_stack([index, np.ones(len(index))]) @ volume.affine.T
        scene = np.argwhere(labels.array == model.labels.values[name])[:, ::-1]
        expected = np.column_stack([scene, np.ones(len(scene))]) @ labels.world_from_index.T
        assert len(points) == len(expected)
        order = [np.lexsort(np.round(values[:, :3], 1).T) for values in (points, expected)]
        np.testing.assert_allclose(points[order[0], :3], expected[order[1], :3], atol=0.01)
    report = pydicom.dcmread(output / "scan.sr.dcm")
    assert report.PatientName == segments.PatientName == "Zzyzx^Quentin"
    text = "".join(capsys.readouterr()) + (output / "scan.json").read_text()
    assert "StudyInstanceUID" in text  # which the real series lacks
    for secret in ("Zzyzx", "Quentin", "PID-90210", "20110203"):
        assert secret not in text
    # Each format is asked for on its own: what is there is known by its files.
    before = (output / "scan.seg.dcm").stat().st_mtime_ns
    run(model, [series], output, formats=["dicom-seg"])
    assert (output / "scan.seg.dcm").stat().st_mtime_ns == before
    (output / "scan.seg.dcm").unlink()
    run(model, [series], output, formats=["dicom-seg"])
    assert (output / "scan.seg.dcm").exists()


def test_dicom_objects_need_a_series(model, tmp_path):
    write_image(make_scene(slices=1).volume, tmp_path / "child.nii.gz")
    with pytest.raises(InputError, match=r"--format rtstruct .* expected a DICOM series, got \.nii\.gz"):
        run(model, [tmp_path / "child.nii.gz"], tmp_path / "out", formats=["rtstruct"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="expected nifti, dicom-seg, rtstruct, dicom-sr, got 'dicom'"):
        choose_formats(["nifti", "dicom"])


def test_one_of_several_series_and_an_archive(model, tmp_path):
    volume = make_scene(roll=math.radians(5), slices=3).volume
    folder = tmp_path / "two"
    for number, (name, shift) in enumerate({"2": 0, "7": 40}.items()):
        raw = (np.roll(volume.array, shift, axis=2) + 1024).clip(0, 4095).astype(np.uint16)
        for z, pixels in enumerate(raw):
            data = dicom_slice(
                pixels,
                np.add(volume.origin, [0, 0, z * float(volume.spacing[2])]),
                series=f"1.2.3.{name}",
                SeriesNumber=int(name),
                PixelSpacing=[float(volume.spacing[1]), float(volume.spacing[0])],
                FrameOfReferenceUID="1.2.9",
            )
            save(data, folder / f"{number}{z}.dcm")
    [outcome] = run(model, [folder], tmp_path / "out")
    assert "2 (CT, 3 images), series 7 (CT, 3 images)" in outcome.problem
    [second] = run(model, [folder], tmp_path / "out", series="7")
    # The same name and files, but another series: nothing is taken for done.
    [first] = run(model, [folder], tmp_path / "out", series="2")
    assert first.record["input_sha256"] != second.record["input_sha256"]
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    [packed] = run(model, [Path(archive)], tmp_path / "out", series="2", formats=["nifti", "dicom-seg"])
    assert packed.name == "packed"
    np.testing.assert_array_equal(
        read_labels(tmp_path / "out" / "packed.nii.gz").array,
        read_labels(tmp_path / "out" / "two.nii.gz").array,
    )
    assert highdicom.seg.segread(tmp_path / "out" / "packed.seg.dcm").FrameOfReferenceUID == "1.2.9"


def test_a_result_of_another_model_is_not_reused(model, series, tmp_path):
    output, other = tmp_path / "out", replace(model, weights_sha256="1" * 64)
    run(model, [series], output, formats=["dicom-seg", "rtstruct"])
    old = (output / "scan.seg.dcm").read_bytes()
    (output / "scan.notes.txt").write_text("the user's own")
    [newer] = run(other, [series], output, formats=["nifti"])
    # Beside the new record nothing of the old model lies, and what is the user's stays.
    assert newer.record["files"] == ["scan.nii.gz"]
    assert sorted(p.name for p in output.iterdir()) == ["scan.json", "scan.nii.gz", "scan.notes.txt"]
    # Even if it came back by hand.
    (output / "scan.seg.dcm").write_bytes(old)
    [again] = run(other, [series], output, formats=["dicom-seg"])
    assert (output / "scan.seg.dcm").read_bytes() != old
    assert again.record["files"] == ["scan.nii.gz", "scan.seg.dcm"]
