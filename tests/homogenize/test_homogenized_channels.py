"""A dataset of several channels in one pose and size: all channels lie where the pose channel does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patients import patient, write_dataset

from bright import INTENSITY, LABELS, bright_model
from isopose.config import HomogenizeConfig
from isopose.data.normalization import Channel
from isopose.errors import InputError
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.record import read_record, record_path
from isopose.homogenize.restore import restore
from isopose.homogenize.wrap import open_scans
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume, write_image
from isopose.models.folder import save_model
from isopose.models.info import ReferenceInfo
from isopose.models.pipeline import Networks
from isopose.progress import Silent

CONFIG = HomogenizeConfig(size=128)


def write_both(root: Path, order: tuple[str, str]) -> Path:
    """CT, and the same without a unit: HU / 1000 + 1, as fractions."""
    write_dataset(root, {"anna": "Tr", "bert": "Ts"}, channel_names=dict(enumerate(order)))
    for number, (name, part) in enumerate((("anna", "Tr"), ("bert", "Ts"))):
        ct = patient(number).volume
        images = {"CT": ct, "T1": ct.with_array(ct.array.astype(np.float32) / 1000.0 + 1.0)}
        images["T2"] = images["T1"]
        for channel, kind in enumerate(order):
            write_image(images[kind], root / f"images{part}" / f"{name}_{channel:04d}.nii.gz")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_both(tmp_path_factory.mktemp("source") / "Dataset001", ("CT", "T1"))


def test_all_channels_are_written_in_the_pose_of_one(source: Path, tmp_path: Path) -> None:
    outcomes = homogenize(open_input(source), tmp_path / "out", CONFIG, reporter=Silent())
    assert [outcome.problem for outcome in outcomes] == [None, None]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["channel_names"] == {
        "0": "CT",
        "1": "T1",
    }
    opened = open_dataset(tmp_path / "out")
    assert opened.channels == ("CT", "T1")
    for case in opened.cases:
        ct, t1 = (read_volume(path) for path in case.images)
        assert t1.same_grid(ct)
        assert ct.array.dtype == np.int16
        assert t1.array.dtype == np.float32
        # Rounding of HU, and the padding below air, are all that tells them apart.
        assert np.abs(1000.0 * (t1.array - 1.0) - ct.array).max() < 1.0
        record = read_record(record_path(tmp_path / "out", case.id))
        assert {name for name in record.files if "images" in name} == {
            path.relative_to(tmp_path / "out").as_posix() for path in case.images
        }
    # The pose of the CT, wherever it stands.
    swapped = write_both(tmp_path / "swapped", ("T1", "CT"))
    named = CONFIG.model_copy(update={"pose_channel": "CT"})
    homogenize(open_input(swapped), tmp_path / "again", named, reporter=Silent())
    for case, other in zip(opened.cases, open_dataset(tmp_path / "again").cases, strict=True):
        for one, two in zip(case.images, other.images[::-1], strict=True):
            np.testing.assert_array_equal(read_volume(one).array, read_volume(two).array)


def test_the_pose_channel_comes_from_the_model(tmp_path: Path) -> None:
    """A model that estimates poses in CT uses the CT channel, even if it is not the first."""
    model = bright_model({"data": {"pose_channel": "CT"}, "pose": {"learned": False}})
    channels = (Channel("T1", INTENSITY), Channel("CT", INTENSITY))
    air, outline = INTENSITY.air, model.pipeline.pose.reference_mask
    networks = Networks(model.config, LABELS.classes, outline, air, INTENSITY.top, (air, air)).eval()
    model = replace(
        model,
        pipeline=networks,
        fingerprint=replace(model.fingerprint, channels=channels),
        info=replace(model.info, reference=ReferenceInfo(area_cm2=226.2)),
    )
    save_model(tmp_path / "model", model)
    swapped = write_both(tmp_path / "swapped", ("T1", "CT"))
    homogenize(open_input(swapped), tmp_path / "out", CONFIG, model=tmp_path / "model", reporter=Silent())
    named = CONFIG.model_copy(update={"pose_channel": 1})
    homogenize(open_input(swapped), tmp_path / "named", named, model=tmp_path / "model", reporter=Silent())
    for case in open_dataset(tmp_path / "out").cases:
        result, expected = (
            read_record(record_path(tmp_path / folder, case.id)).transform for folder in ("out", "named")
        )
        assert result == expected
    other = write_both(tmp_path / "other", ("T1", "T2"))
    with pytest.raises(InputError, match="has the channels T1, T2, and the model finds poses in CT"):
        homogenize(open_input(other), tmp_path / "no", CONFIG, model=tmp_path / "model", reporter=Silent())


def test_a_case_with_a_changed_channel_is_homogenized_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    homogenize(open_input(source), out, CONFIG, reporter=Silent())
    again = homogenize(open_input(source), out, CONFIG, reporter=Silent())
    assert [outcome.made for outcome in again] == [False, False]
    copied = write_both(tmp_path / "copy", ("CT", "T1"))
    t1 = read_volume(copied / "imagesTr" / "anna_0001.nii.gz")
    write_image(t1.with_array(t1.array * 2.0), copied / "imagesTr" / "anna_0001.nii.gz")
    changed = homogenize(open_input(copied), out, CONFIG, reporter=Silent())
    assert [outcome.made for outcome in changed] == [True, False]
    # A prediction on the homogenized dataset comes back to the scan's own grid.
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    (predictions / "anna.nii.gz").write_bytes((out / "labelsTr" / "anna.nii.gz").read_bytes())
    restore(predictions, out, tmp_path / "restored", reporter=Silent())
    back = read_labels(tmp_path / "restored" / "anna.nii.gz")
    truth = patient(0)
    assert back.same_grid(truth.volume)
    marked, expected = back.array > 0, truth.stored > 0
    assert 2.0 * np.count_nonzero(marked & expected) / (marked.sum() + expected.sum()) > 0.9


def test_commands_for_a_single_channel_refuse_several(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 2 channels \(CT, T1\), and wrap takes one"):
        open_scans(source)
    [anna, *_] = open_input(source / "imagesTr").unusable
    assert "anna_0000.nii.gz: has 2 channels (_0000, _0001, ...); give a dataset whose" in anna.problem
    wrong = CONFIG.model_copy(update={"pose_channel": "T2"})
    with pytest.raises(InputError, match="--pose-channel is 'T2', expected 0 to 1 or one of CT, T1"):
        homogenize(open_input(source), tmp_path / "out", wrong, reporter=Silent())
    assert not (tmp_path / "out").exists()
