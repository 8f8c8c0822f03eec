"""Preprocessing of several channels: own intensity scales, one for body and pose, all in the store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import torso

from isopose.data.fingerprint import Fingerprint, fingerprint_of
from isopose.data.normalization import ByScan, Intensity
from isopose.data.preprocess import prepare
from isopose.data.samples import Slices, Volumes
from isopose.data.store import open_store, write_store
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.cases import Case
from isopose.io.images import read_volume, write_image, write_labels
from isopose.labels import Labels
from isopose.presets import load_config
from isopose.settings import DataConfig, UNetConfig

LABELS = Labels.create({"kidney": 1})
CHANNELS = ("CT", "T2")
CONFIG = DataConfig(size=64)


def patient(folder: Path, number: int) -> Case:
    """A CT, and a second channel without unit whose values are the slice's number."""
    volume = torso(170.0 + 20.0 * number, arms=False, table=False, slices=6, pixel=(3.0, 3.0)).volume
    inside = volume.array > -300
    second = np.where(inside, 100.0 + 10.0 * np.arange(6)[:, None, None], 0.0).astype(np.float32)
    marks = np.zeros(volume.array.shape, np.uint8)
    middle = marks.shape[1] // 2
    marks[2:4, middle : middle + 6, middle - 3 : middle + 3] = 1
    paths = [folder / f"{number}_{channel}.nii.gz" for channel in (0, 1)]
    write_image(volume, paths[0])
    write_image(volume.with_array(second), paths[1])
    write_labels(volume.with_array(marks), folder / f"{number}.nii.gz")
    name = f"case_{number}"
    return Case(name, paths[0], folder / f"{number}.nii.gz", name, further=(paths[1],))


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    folder = tmp_path_factory.mktemp("channels")
    return [patient(folder, number) for number in range(2)]


@pytest.fixture(scope="module")
def fingerprint(cases: list[Case]) -> Fingerprint:
    return fingerprint_of(cases, LABELS, CONFIG, channels=CHANNELS)


@pytest.fixture
def store(cases: list[Case], fingerprint: Fingerprint, tmp_path: Path):
    return write_store(tmp_path, cases, fingerprint, LABELS, CONFIG)


def images_of(case: Case) -> list[Volume]:
    return [read_volume(path) for path in case.images]


def test_each_channel_has_its_own_intensity_scale(cases: list[Case], fingerprint: Fingerprint) -> None:
    ct, t2 = fingerprint.channels
    assert (ct.name, t2.name) == CHANNELS
    assert isinstance(ct.scale, Intensity)
    assert isinstance(t2.scale, ByScan)
    volumes = images_of(cases[0])
    alone = replace(fingerprint, channels=(ct,))
    both, first = prepare(volumes, fingerprint, CONFIG), prepare(volumes[0], alone, CONFIG)
    # What one channel gives, it gives beside another.
    np.testing.assert_array_equal(both.image, first.image)
    np.testing.assert_array_equal(both.mask, first.mask)
    inside = both.images[1][both.mask]
    assert (inside.mean(), inside.std()) == pytest.approx((0.0, 1.0), abs=0.1)
    means = [both.images[1, z][both.mask[z]].mean() for z in range(6)]
    assert (np.diff(means) > 0.05).all()
    assert both.images[1, 0, 0, 0] == pytest.approx(both.scales[1].air, abs=1e-5)


def test_body_and_pose_come_from_the_pose_channel(cases: list[Case], fingerprint: Fingerprint) -> None:
    volumes = images_of(cases[0])
    turned = replace(fingerprint, channels=fingerprint.channels[::-1])
    config = CONFIG.model_copy(update={"pose_channel": "CT"})
    expected, result = prepare(volumes, fingerprint, CONFIG), prepare(volumes[::-1], turned, config)
    assert (expected.pose_channel, result.pose_channel) == (0, 1)
    np.testing.assert_array_equal(result.mask, expected.mask)
    np.testing.assert_array_equal(result.images, expected.images[::-1])
    np.testing.assert_array_equal(result.image, expected.image)
    for wrong in ("PET", 2, -1):
        settings = CONFIG.model_copy(update={"pose_channel": wrong})
        with pytest.raises(InputError, match=r"data\.pose_channel is .*, expected 0 to 1 or one of CT, T2"):
            prepare(volumes, fingerprint, settings)
    assert load_config(settings=["data.pose_channel=1"]).data.pose_channel == 1


def test_a_mismatched_channel_is_refused_by_its_name(cases: list[Case], fingerprint: Fingerprint) -> None:
    ct, t2 = images_of(cases[0])
    with pytest.raises(InputError, match=r"expected 2 channels \(CT, T2\), got 1 image"):
        prepare(ct, fingerprint, CONFIG)
    with pytest.raises(InputError, match=r"channel T2: .* does not lie on the grid of channel CT"):
        prepare([ct, Volume(t2.array, t2.world_from_index + np.eye(4, k=3))], fingerprint, CONFIG)
    holes = t2.array.copy()
    holes[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="channel T2: the scan holds values that are not finite"):
        prepare([ct, t2.with_array(holes)], fingerprint, CONFIG)
    with pytest.raises(InputError, match="channel T2: nearly all voxels of the body have the value 3"):
        prepare([ct, t2.with_array(np.full_like(t2.array, 3.0))], fingerprint, CONFIG)


def test_the_store_holds_all_channels_and_notices_a_changed_one(
    cases: list[Case], fingerprint: Fingerprint, store, tmp_path: Path
) -> None:
    case = open_store(store.folder).cases[1]
    expected = prepare(images_of(cases[1]), fingerprint, CONFIG)
    image, mask, _ = case.read([4, 1], all_channels=True)
    np.testing.assert_array_equal(image, expected.images[:, [4, 1]].astype(np.float16))
    np.testing.assert_array_equal(mask, expected.mask[[4, 1]])
    np.testing.assert_array_equal(case.read([4, 1])[0], image[0])
    # A case whose second channel was changed is made again, the other one is not.
    moved = tmp_path / "other.nii.gz"
    second = read_volume(cases[0].further[0])
    write_image(second.with_array(second.array[::-1].copy()), moved)
    before = [case.folder.stat().st_mtime_ns for case in store.cases]
    upright = store.cases[0].read(range(6), all_channels=True)[0]
    changed = [replace(cases[0], further=(moved,)), cases[1]]
    again = write_store(tmp_path, changed, fingerprint, LABELS, CONFIG)
    assert again.cases[0].record.sources["image"] != store.cases[0].record.sources["image"]
    assert again.cases[0].record.sources["label"] == store.cases[0].record.sources["label"]
    upside_down = again.cases[0].read(range(6), all_channels=True)[0]
    np.testing.assert_array_equal(upside_down[0], upright[0])
    inside = again.cases[0].read(range(6))[1] > 0
    seen = [[one[1, z][inside[z]].mean() for z in range(6)] for one in (upright, upside_down)]
    assert seen[1] == pytest.approx(seen[0][::-1], abs=0.1)
    assert again.cases[1].folder.stat().st_mtime_ns == before[1]


def test_batches_hold_the_pose_channel_first_and_then_all_channels(store) -> None:
    slices = Slices(store.cases)
    rows = np.array([2, 4, 8])
    first = slices.read(rows).image
    assert first.shape == (3, 1, 64, 64)
    slices.all_channels = True
    slices.pose = torch.zeros(len(slices), 5)
    both = slices.read(rows).image
    torch.testing.assert_close(both[:, :1], first)
    slices.set_neighbors(UNetConfig(context=1))
    seen = slices.subset(np.arange(2, 9)).read(rows - 2).image
    assert seen.shape == (3, 6, 64, 64)
    for position, row in enumerate(rows):
        beside = [slices.channels[row, n] for n in range(3)]
        image, *_ = slices.cases[slices.rows[row, 0]].read(beside, all_channels=True)
        # Channel after channel, each with all its neighbors.
        np.testing.assert_array_equal(seen[position], image.reshape(6, 64, 64))
    volumes = Volumes(store.cases)
    volumes.all_channels = True
    (stack,) = volumes.read(np.array([1])).image
    assert stack.shape == (1, 2, 6, 64, 64)
    np.testing.assert_array_equal(stack[0], volumes.cases[1].read(range(6), all_channels=True)[0])
