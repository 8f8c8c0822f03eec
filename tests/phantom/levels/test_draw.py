from dataclasses import replace

import numpy as np
import pytest

from isopose.data.body import body_mask
from isopose.phantom.levels import sample_level_slab
from isopose.phantom.levels.draw import LEVELS
from isopose.phantom.levels.person import Person, sample_person
from isopose.phantom.levels.sheet import AIR_HU, Sheet

SEED = 77


@pytest.mark.parametrize("level", LEVELS)
def test_a_body_depends_on_seed_and_index_only(level):
    one, again, other = (
        sample_level_slab(SEED, index, level=level, slices=3, size=64) for index in (4, 4, 5)
    )
    assert np.array_equal(one.volume.array, again.volume.array)
    assert one.roll == again.roll
    assert not np.array_equal(one.volume.array, other.volume.array)


@pytest.mark.parametrize("level", LEVELS)
def test_every_slice_shows_a_body_within_the_image(level):
    for index in range(6):
        volume = sample_level_slab(SEED, index, level=level, slices=5, size=64).volume
        part = body_mask(volume, -250.0).mean(axis=(1, 2))
        assert (part > 0.02).all(), (index, part)
        assert (part < 0.8).all(), (index, part)


def painted(level: str, height: float, **alike: object) -> tuple[Sheet, Person]:
    """One slice of a lean person without deformation; x and y from -1.6 to 1.6."""
    rng = np.random.default_rng(SEED)
    person = replace(sample_person(rng), fat=0.1, wall=0.1, breast=0.0, blood_hu=250.0, lung_hu=-800.0)
    sample, paint, *_ = LEVELS[level]
    line = (np.arange(160) - 79.5) / 50.0
    x, y = np.meshgrid(line, line)
    sheet = Sheet(x, y, np.full_like(x, AIR_HU), person)
    paint(sheet, rng, replace(sample(rng), **alike), height)
    return sheet, person


def at(sheet: Sheet, x: float, y: float) -> float:
    """Return the HU at a position in half widths and half depths."""
    return float(sheet.hu[round(y * 50.0 + 79.5), round(x * 50.0 + 79.5)])


CHEST = {
    "arms": "none", "heart": 0.4, "heart_x": 0.2, "spine_y": 0.45, "effusion": (0.0, 0.0), "collapsed": 0.0,
    "mass": (0.0, 0.0, 0.0),
}  # fmt: skip


def test_chest_has_its_spine_behind_and_its_heart_left_of_the_midline():
    sheet, person = painted("chest", 0.3, **CHEST)
    assert at(sheet, 0.0, 0.36) in (person.bone_hu, person.cortex_hu)
    assert at(sheet, 0.0, -0.36) not in (person.bone_hu, person.cortex_hu)
    assert at(sheet, 0.26, -0.3) == person.blood_hu
    dense = (sheet.hu > 0.0) & (np.abs(sheet.x) < 0.6) & (sheet.y > -0.6) & (sheet.y < 0.2)
    assert sheet.x[dense].mean() > 0.05


def test_liver_is_on_the_right_under_the_dome():
    sheet, person = painted("chest", -0.05, **CHEST)
    assert at(sheet, -0.35, 0.0) == person.organ_hu + 10.0
    assert at(sheet, 0.35, 0.05) != person.organ_hu + 10.0


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_fluid_lies_behind_in_its_own_side(side):
    effusion = (0.5, 0.0) if side < 0 else (0.0, 0.5)
    sheet, person = painted("chest", 0.5, **{**CHEST, "effusion": effusion})
    assert at(sheet, side * 0.4, 0.4) == person.fluid_hu
    assert at(sheet, -side * 0.4, 0.4) in (person.lung_hu, person.blood_hu)
    assert at(sheet, side * 0.4, -0.1) in (person.lung_hu, person.blood_hu)


def test_pelvis_has_sacrum_behind_bladder_in_front_and_a_hip_on_each_side():
    alike = {"arms": False, "bladder": 0.3, "bladder_hu": 7.0, "womb": False, "hips": 1.05, "flat": 0.0}
    sheet, person = painted("pelvis", 0.4, **alike)
    assert at(sheet, 0.0, -0.3) == 7.0
    assert at(sheet, 0.1, 0.48) in (person.bone_hu, person.cortex_hu)
    for side in (-1.0, 1.0):
        assert at(sheet, side * 0.56 * 1.05, -0.02) == person.bone_hu


def test_thighs_are_two_legs_with_a_shaft_in_front_of_the_middle():
    sheet, person = painted("pelvis", -0.5, arms=False, apart=0.6, foot=0.0, hips=1.05, flat=0.0)
    assert at(sheet, 0.0, 0.4) == AIR_HU
    for side in (-1.0, 1.0):
        shaft = (sheet.hu == person.cortex_hu) & (side * sheet.x > 0.0)
        assert shaft.any()
        assert sheet.y[shaft].mean() < -0.05


def test_bodies_without_a_given_roll_have_random_rolls():
    rolls = np.array(
        [sample_level_slab(SEED, index, level="unknown", slices=2, size=64).roll for index in range(80)]
    )
    assert abs(np.exp(1j * rolls).mean()) < 0.3
    people = np.array(
        [sample_level_slab(SEED, index, level="chest", slices=2, size=64).roll for index in range(40)]
    )
    assert np.degrees(np.median(np.abs(people))) < 20.0
