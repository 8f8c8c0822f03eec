"""The reference of homogenization: a shipped patient, a case, another scan or a model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from patients import patient, write_dataset

from bright import bright_model, make_scene
from isopose.config import HomogenizeConfig
from isopose.errors import InputError
from isopose.files import sha256
from isopose.geometry.overlap import soft_dice
from isopose.geometry.volume import Volume
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.estimator import estimator_from_model, open_estimator, shipped_estimator
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.reference import (
    ReferenceOutline,
    ReferenceSource,
    find_reference,
    outline_of_scan,
    shipped_outline,
)
from isopose.homogenize.scan import homogenize_scan
from isopose.io.cases import Case
from isopose.io.images import write_image
from isopose.models.folder import load_model, save_model
from isopose.models.info import ReferenceInfo
from isopose.models.shipped import REFERENCES, load_reference, shipped_sha256
from isopose.presets import homogenize_config
from isopose.progress import Silent
from reporters import RecordingReporter

#: Of the reference of a model below.
AREA_CM2 = 226.2


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("source") / "data", {"anna": "Tr", "bert": "Tr", "cleo": "Ts"}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder_model = bright_model({"data": {"size": 64}}, real_unet=True)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(
        folder,
        replace(folder_model, info=replace(folder_model.info, reference=ReferenceInfo(area_cm2=AREA_CM2))),
    )
    return folder


def find(name, cases=()):
    return find_reference(HomogenizeConfig(reference=name), cases=cases)


def outline(number, degrees=0.0):
    mask, side_mm, warnings = outline_of_scan(patient(number, degrees).volume)
    return ReferenceOutline(ReferenceSource("scan", "0" * 64), mask, side_mm, warnings)


def brought_to(reference, one, per="volume"):
    estimator = shipped_estimator(HomogenizeConfig(per=per, size=192), reference)
    return homogenize_scan(estimator, one.volume, one.volume.with_array(one.classes))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_shipped_reference_is_loaded_by_name(name) -> None:
    result, shipped = find(name), load_reference(name)
    assert result == shipped_outline(name)
    assert result.source == ReferenceSource(name, shipped_sha256(REFERENCES[name]))
    np.testing.assert_array_equal(result.mask, shipped.mask.numpy())
    assert result.side_mm == shipped.side_mm


def test_the_default_reference_is_the_child() -> None:
    assert find(None) == find("child") != find("adult")
    assert open_estimator(None, HomogenizeConfig()).side_mm == load_reference("child").side_mm


@pytest.mark.parametrize("per", ["volume", "tilted"])
def test_patients_are_scaled_to_the_size_of_the_adult_reference(per) -> None:
    """Pixel size and slice distance grow with the reference; labels are restored as with the child."""
    one = patient(0)
    child, adult = (brought_to(find(name), one, per) for name in ("child", "adult"))
    ratio = load_reference("adult").side_mm / load_reference("child").side_mm
    np.testing.assert_allclose(adult.image.spacing[:2] / child.image.spacing[:2], ratio, rtol=1e-6)
    assert adult.image.spacing[2] / child.image.spacing[2] == pytest.approx(ratio, rel=0.07)
    body = adult.image.array[len(adult.image.array) // 2] > -250
    width_mm = float(np.ptp(np.flatnonzero(body.any(axis=0)))) * adult.image.spacing[0]
    assert width_mm == pytest.approx(332.0, rel=0.06)
    assert (adult.poses.agreement > 0.95).all()
    assert adult.warnings == child.warnings


@pytest.mark.parametrize("number", [0, 1])
def test_the_reference_itself_keeps_its_size(number) -> None:
    one = patient(number)
    scan = brought_to(outline(number), one)
    grid, native = scan.transform.grid, one.volume
    assert grid.z_scale == pytest.approx(1.0, abs=0.01)
    # Voxels are as large as their labels say in both.
    assert grid.size == grid.usual
    for value in (1, 2):
        expected_mm, actual_mm = (
            np.count_nonzero(array == value) * float(np.prod(spacing))
            for array, spacing in ((scan.labels.array, scan.labels.spacing), (one.classes, native.spacing))
        )
        assert expected_mm == pytest.approx(actual_mm, rel=0.05)


def test_the_outline_is_upright_for_a_reference_in_any_pose() -> None:
    straight, turned, upside_down = outline(1), outline(1, 30.0), outline(1, 180.0)
    assert straight.warnings == turned.warnings == ()
    assert any("rotated by" in line for line in upside_down.warnings)
    for other in (turned, upside_down):
        assert float(soft_dice(straight.tensor, other.tensor)) > 0.97
        assert other.side_mm == pytest.approx(straight.side_mm, rel=0.03)
    # Not mirrored or upside down: it is less deep at its lower side, on which it lies.
    assert float(soft_dice(straight.tensor, turned.tensor)) > float(
        soft_dice(straight.tensor, turned.tensor.flip(2))
    )


def test_a_scan_without_an_outline_is_no_reference() -> None:
    scene = make_scene(slices=5)
    middle = scene.volume.array.shape[1] // 2
    cut = slice(middle - 16, middle + 16)
    array = np.ascontiguousarray(scene.volume.array[:, cut, cut])
    with pytest.raises(InputError, match="shows no outline of a body, so it cannot be the reference"):
        outline_of_scan(Volume(array, scene.volume.world_from_index))
    # Without air, as in MR: the doubt about the values tells why.
    with pytest.raises(InputError, match=r"the reference \(no value below 0, .*\); choose another scan"):
        outline_of_scan(Volume(array - array.min(), scene.volume.world_from_index))


def test_names_are_resolved_as_shipped_reference_then_case_then_path(source, tmp_path, monkeypatch) -> None:
    cases = open_input(source).cases
    case = find("bert", cases)
    image = next(one.image for one in cases if one.id == "bert")
    assert case.source == ReferenceSource("case", sha256(image), "bert")
    scan = find(str(image), cases)
    assert scan.source == ReferenceSource("scan", sha256(image))
    np.testing.assert_array_equal(scan.mask, case.mask)
    assert scan.side_mm == case.side_mm
    # What has the name of a shipped one by chance.
    named_adult = [Case("adult", image, None, patient="p")]
    assert find("adult", named_adult).source.kind == "adult"
    monkeypatch.chdir(tmp_path)
    write_image(patient(0).volume, tmp_path / "child" / "one.nii.gz")
    assert find("child").source.kind == "child"
    assert find("./child").source.kind == "scan"


def test_a_models_reference_with_the_shipped_poses_or_its_own(model) -> None:
    result, loaded = find(str(model)), load_model(model)
    assert result.source == ReferenceSource("model", loaded.weights_sha256)
    torch.testing.assert_close(result.tensor, loaded.pipeline.pose.reference_mask)
    own = estimator_from_model(loaded, HomogenizeConfig())
    assert (own.origin, own.reference) == ("model", result.source)
    assert result.side_mm == own.side_mm
    shipped = open_estimator(None, HomogenizeConfig(reference=str(model)))
    assert (shipped.origin, shipped.side_mm, shipped.reference) == ("shipped", own.side_mm, result.source)
    assert shipped.sha256 != own.sha256
    # Named twice it is the model's, as without.
    twice = open_estimator(model, HomogenizeConfig(reference=f"{model}/../model"))
    assert (twice.origin, twice.sha256) == ("model", own.sha256)
    for other in ("child", "adult", "anna"):
        with pytest.raises(InputError, match="with --model poses and reference are the model's"):
            open_estimator(model, HomogenizeConfig(reference=other))


def test_a_wrong_name_gets_an_error_that_lists_the_possible_ones(source, tmp_path) -> None:
    cases = open_input(source).cases
    for name, start, expected in (
        ("chld", (), "--reference chld: expected child, adult, or the path of a scan or of a model's folder"),
        (
            "ana",
            cases,
            "--reference ana: expected child, adult, a case of the dataset (anna, bert, cleo), or the path "
            "of a scan or of a model's folder",
        ),
        (
            "ana",
            (*cases, cases[0]),
            "--reference ana: expected child, adult, a case of the dataset (anna, bert, cleo and 1 more), or "
            "the path of a scan or of a model's folder",
        ),
        ("no/where.nii.gz", (), "--reference: no/where.nii.gz: no such file or folder"),
        (
            "s3://bucket/a.nii.gz",
            (),
            "--reference s3://bucket/a.nii.gz: a URL; name a case of the dataset, or a path on this machine",
        ),
        (
            str(source / "imagesTr"),
            (),
            f"--reference {source / 'imagesTr'}: holds 2 scans; name the file of one",
        ),
    ):
        with pytest.raises(InputError) as error:
            find(name, start)
        assert str(error.value).startswith(expected)
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^the reference: .*bad\.nii\.gz: expected a NIfTI file"):
        find(str(tmp_path / "bad.nii.gz"))
    with pytest.raises(InputError, match="reference: "):
        homogenize_config(reference="")


def run(source, output, reference, **options):
    config = HomogenizeConfig(size=96, reference=reference)
    return homogenize(open_input(source), output, config, reporter=Silent(), **options)


def test_the_record_names_the_reference_and_another_one_needs_another_folder(source, tmp_path) -> None:
    output = tmp_path / "out"
    outcomes = run(source, output, "cleo")
    assert [(one.problem, one.made) for one in outcomes] == [(None, True)] * 3
    head = json.loads((output / "homogenize.json").read_text())
    image = source / "imagesTs" / "cleo_0000.nii.gz"
    expected = {"kind": "case", "sha256": sha256(image), "case": "cleo"}
    assert {key: head["reference"][key] for key in expected} == expected
    assert head["reference"]["side_mm"] == find(str(image)).side_mm
    record = read_record(record_path(output, "anna"))
    assert (record.format, record.reference) == (3, ReferenceSource(**expected))
    assert record.transform.grid.pixel_mm == head["reference"]["side_mm"] / 96
    own = read_record(record_path(output, "cleo")).transform.grid
    assert own.z_scale == pytest.approx(1.0, abs=0.01)
    assert [one.made for one in run(source, output, "cleo")] == [False] * 3
    for other in (None, "adult", "bert", str(image)):
        with pytest.raises(InputError, match="with another model, settings or labels"):
            run(source, output, other)
    # The path of a reference outside the dataset is not reported.
    run(source, tmp_path / "scan", str(image), workers=1)
    texts = [path.read_text() for path in (tmp_path / "scan").rglob("*.json")]
    assert len(texts) == 5
    assert not any(
        str(source) in text or "cleo_0000" in text for text in texts if '"case": "cleo"' not in text
    )
    assert json.loads((tmp_path / "scan" / "homogenize.json").read_text())["reference"]["kind"] == "scan"
    # Another process was given the same outline.
    for name in ("imagesTr/anna_0000.nii.gz", "labelsTs/cleo.nii.gz"):
        assert (tmp_path / "scan" / name).read_bytes() == (output / name).read_bytes()


def test_an_unknown_reference_is_refused_before_writing(source, tmp_path) -> None:
    with pytest.raises(InputError, match="a case of the dataset"):
        run(source, tmp_path / "out", "dora")
    assert not (tmp_path / "out").exists()


def test_warnings_about_the_reference_are_reported(source, tmp_path) -> None:
    reporter = RecordingReporter()
    write_image(patient(1, 180.0).volume, tmp_path / "turned.nii.gz")
    config = HomogenizeConfig(size=96, reference=str(tmp_path / "turned.nii.gz"))
    homogenize(open_input(source), tmp_path / "out", config, reporter=reporter)
    assert reporter.lines[0].startswith("warning: the reference: rotated by ")
