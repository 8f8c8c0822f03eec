import math
from dataclasses import replace

import numpy as np
import pytest

from isopose.phantom.anatomy import sample_anatomy
from isopose.phantom.pose import Pose
from isopose.phantom.randomized import HIGHEST, LOWEST, dense, roll_of, sample_slab, slabs


def test_a_slab_depends_on_seed_and_index_alone():
    one, other = sample_slab(3, 5, slices=3, size=64), list(slabs(3, range(4, 6), slices=3, size=64))[1]
    np.testing.assert_array_equal(one.volume.array, other.volume.array)
    assert one.roll == other.roll
    assert not np.array_equal(one.volume.array, sample_slab(3, 6, slices=3, size=64).volume.array)


@pytest.mark.parametrize("degrees", [0, 25, -50, 170])
def test_the_roll_is_that_of_the_left_side_at_any_tilt(degrees):
    for pitch, yaw in ((0.0, 0.0), (0.1, -0.1), (-0.15, 0.05)):
        pose = Pose("supine", True, math.radians(degrees), pitch, yaw, (0.0, 0.0, 0.0))
        left = pose.world_from_canonical[:3, :3] @ np.array([1.0, 0.0, 0.0])
        assert math.degrees(roll_of(pose)) == pytest.approx(math.degrees(math.atan2(left[1], left[0])))
        assert math.degrees(roll_of(pose)) == pytest.approx(degrees, abs=1.0)


def test_only_densities_are_randomized():
    anatomy = sample_anatomy(np.random.default_rng(1), 4.0, np.array([0.0, 1.0, 0.0]), tumor_share=1.0)
    other = dense(np.random.default_rng(2), anatomy)
    assert other.liver_hu != anatomy.liver_hu
    assert other.bone_hu != anatomy.bone_hu
    kept = ("cortex_hu", "medulla_hu")
    for before, after in zip(anatomy.kidneys, other.kidneys, strict=True):
        assert after.cortex_hu != before.cortex_hu
        same = replace(after, **{name: getattr(before, name) for name in kept})
        np.testing.assert_array_equal(same.center, before.center)
        np.testing.assert_array_equal(same.axes, before.axes)
    np.testing.assert_array_equal(other.tumor.mass.center, anatomy.tumor.mass.center)


def test_slices_are_spread_over_the_trunk():
    slab = sample_slab(9, 0, slices=4, size=64)
    z = slab.volume.spacing[2] * 3
    assert 0 < z < 60.0 * (HIGHEST - LOWEST)
    assert slab.volume.array.shape == (4, 64, 64)
    assert (slab.volume.array > -200).any(axis=(1, 2)).all()
