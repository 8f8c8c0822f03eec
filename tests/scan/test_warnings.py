import math

import numpy as np
import pytest

from bright import bright_model
from isopose.models.pose import POSE_SOURCES
from isopose.scan.pose import ScanPose
from isopose.scan.warnings import pose_warnings

MOMENTS, IDENTITY = POSE_SOURCES.index("moments"), POSE_SOURCES.index("identity")


def records(degrees, *, agreement=0.95, source=MOMENTS, log_scale=0.0) -> ScanPose:
    """Slices that lean by these angles; none where no body is."""
    found = ScanPose.empty(len(degrees))
    for z, angle in enumerate(degrees):
        if angle is not None:
            found.pose[z] = [math.radians(angle), log_scale, -log_scale, 0.1, 0.2]
            found.source[z], found.agreement[z] = source, agreement
            found.confidence[z], found.mirrored[z] = 1.0, 0.0
    return found


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
def test_the_middle_of_angles_does_not_break_at_half_a_turn(degrees, expected) -> None:
    assert math.degrees(records(degrees).roll) == pytest.approx(expected, abs=0.01)


def test_the_common_pose_is_of_slices_with_a_body_and_good_outlines_count_more() -> None:
    found = records([None, 178, -178, 30], log_scale=0.3)
    found.agreement[3] = 0.1
    found.pose[3, 1:] = 9.0
    common = found.common_pose()
    assert abs(math.degrees(common[0])) == pytest.approx(180, abs=0.5)
    np.testing.assert_allclose(common[1:], [0.3, -0.3, 0.1, 0.2], atol=1e-6)


def test_each_doubt_is_one_line() -> None:
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
def test_a_mirror_image_is_noticed_by_what_the_network_sees(contrast, logit, warns) -> None:
    """In MR the network is less sure of the sides, so that less of it says as much."""
    model = bright_model({"pose": {"learned": False, "start": "anatomy", "contrast": contrast}})
    found = records([3, 4, None], source=POSE_SOURCES.index("anatomy"))
    found.mirrored[:2] = [logit + 0.2, logit - 0.2]
    lines = pose_warnings(found, model.pipeline.pose, model.config.predict)
    assert any("its own mirror image" in line for line in lines) == warns
