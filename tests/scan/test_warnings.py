import math

import numpy as np
import pytest

from bright import bright_model
from isopose.models.pose import POSE_SOURCES
from isopose.scan.pose import ScanPose
from isopose.scan.warnings import pose_warnings

MOMENTS, IDENTITY = POSE_SOURCES.index("moments"), POSE_SOURCES.index("identity")


def records(degrees, *, agreement=0.95, source=MOMENTS, log_scale=0.0) -> ScanPose:
    """Make the poses of slices with given rolls in degrees; None for a slice without a body."""
    scan_pose = ScanPose.empty(len(degrees))
    for z, angle in enumerate(degrees):
        if angle is not None:
            scan_pose.pose[z] = [math.radians(angle), log_scale, -log_scale, 0.1, 0.2]
            scan_pose.source[z], scan_pose.agreement[z] = source, agreement
            scan_pose.confidence[z], scan_pose.mirrored[z] = 1.0, 0.0
    return scan_pose


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ([10, 12, 90], 12),
        ([None, 5, None, 7, 9], 7),
        ([179, -179, 178, -178, 177], 179),
        ([-179, -178, 179], -179),
        ([None, None], 0),
    ],
)
def test_the_mean_of_angles_is_continuous_at_half_a_turn(degrees, expected) -> None:
    assert math.degrees(records(degrees).roll) == pytest.approx(expected, abs=0.01)


def test_the_common_pose_is_weighted_by_agreement_and_ignores_empty_slices() -> None:
    scan_pose = records([None, 178, -178, 30], log_scale=0.3)
    scan_pose.agreement[3] = 0.1
    scan_pose.pose[3, 1:] = 9.0
    common = scan_pose.common_pose()
    assert abs(math.degrees(common[0])) == pytest.approx(180, abs=0.5)
    np.testing.assert_allclose(common[1:], [0.3, -0.3, 0.1, 0.2], atol=1e-6)


def test_each_warning_is_one_line() -> None:
    model = bright_model({"pose": {"learned": False}})
    transformer, settings = model.pipeline.pose, model.config.predict
    assert pose_warnings(records([3, 4, None]), transformer, settings) == []
    assert pose_warnings(records([None]), transformer, settings) == []
    # A patient of whom half the slices are read as +180 and half as -180 lies turned all the same.
    [line] = pose_warnings(records([179, -179, 179, -179]), transformer, settings)
    assert line.startswith("rotated by ")
    [line] = pose_warnings(records([3, 4, None], source=IDENTITY), transformer, settings)
    assert line == "pose fell back to identity in 2 of 2 slices"
    [line] = pose_warnings(records([3, 4, None], agreement=0.2), transformer, settings)
    assert line.startswith("low agreement in 2 of 2 slices")


@pytest.mark.parametrize(("contrast", "logit", "warns"), [
    ("ct", 0.6, False), ("ct", 0.8, True), ("any", 0.3, False), ("any", 0.5, True), ("any", -0.5, False),
])  # fmt: skip
def test_a_mirrored_scan_gives_a_warning(contrast, logit, warns) -> None:
    """In MR the network is less certain about sides, so its threshold is lower."""
    model = bright_model({"pose": {"learned": False, "start": "anatomy", "contrast": contrast}})
    scan_pose = records([3, 4, None], source=POSE_SOURCES.index("anatomy"))
    scan_pose.mirrored[:2] = [logit + 0.2, logit - 0.2]
    lines = pose_warnings(scan_pose, model.pipeline.pose, model.config.predict)
    assert any("its own mirror image" in line for line in lines) == warns
