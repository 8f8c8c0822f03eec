"""The body mask in MR, compared with true outlines and with the CT that the MR was simulated from."""

import numpy as np
import pytest
from bodies import dice, torso

from isopose.data.body import body_mask
from isopose.data.body_mr import mr_body_mask
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.phantom.mr import SEQUENCES
from test_benchmarks import load

SCANS = load("mr_scans")
T1, T2_FATSAT, phantom, seen_by_mr = SCANS.T1, SCANS.T2_FATSAT, SCANS.phantom, SCANS.seen_by_mr


def test_trunk_of_phantoms_in_every_contrast() -> None:
    results = []
    for index, sequence in enumerate(SEQUENCES):
        case = phantom(index, sequence)
        results.append(dice(mr_body_mask(case.volume), case.trunk))
    assert min(results) > 0.98, results
    assert np.median(results) > 0.99, results


@pytest.mark.parametrize("shown", [T1, T2_FATSAT], ids=["t1", "t2-fatsat"])
@pytest.mark.parametrize("width", [120, 380])
def test_lungs_are_inside_and_arms_are_not(width: float, shown: tuple[float, ...]) -> None:
    case = torso(width, pixel=(width / 150, width / 150), slices=2, table=False)
    mask = mr_body_mask(seen_by_mr(case.volume, shown))
    assert dice(mask, case.trunk) > 0.965
    assert (mask & case.arms).sum() <= 0.06 * case.arms.sum()
    middle = mask.shape[1] // 2
    across = case.trunk[0, middle]
    assert mask[0, middle, across].mean() > 0.97  # lungs, which are as dark as air


def test_mask_does_not_depend_on_gain_type_or_a_zero_background() -> None:
    case = torso(250, pixel=(1.5, 1.5), slices=2, table=False, arms=False)
    volume = seen_by_mr(case.volume)
    expected = mr_body_mask(volume)
    assert dice(expected, case.trunk) > 0.98
    louder = volume.with_array(volume.array.astype(np.float32) * 12.5)
    assert dice(mr_body_mask(louder), expected) > 0.9999
    # Scanners set the corners to 0 that their gradients distort, others all of the air.
    y, x = np.indices(case.trunk.shape[1:])
    half = case.trunk.shape[1] / 2
    for zero in (np.hypot(x - half, y - half) > 1.02 * half, ~case.trunk[0]):
        array = volume.array.copy()
        array[:, zero] = 0
        assert dice(mr_body_mask(volume.with_array(array)), case.trunk) > 0.98


def test_a_wrapped_arm_at_the_border_is_left_out() -> None:
    case = torso(250, pixel=(1.5, 1.5), slices=2, table=False, arms=False)
    array = seen_by_mr(case.volume).array.copy()
    array[:, 80:140, :25] += 400
    mask = mr_body_mask(case.volume.with_array(array))
    assert dice(mask, case.trunk) > 0.98
    assert not mask[:, :, :25].any()


@pytest.mark.parametrize(("name", "least"), [("abdomen", 0.96), ("dicom", 0.93)])
def test_real_bodies_with_simulated_mr_contrast(
    real_scans: dict[str, Volume], name: str, least: float
) -> None:
    scan = real_scans[name]
    part = Volume(np.ascontiguousarray(scan.array[::8]), scan.world_from_index @ np.diag([1, 1, 8, 1]))
    truth = body_mask(part, -250.0)
    for seed, shown in enumerate((T1, T2_FATSAT)):
        assert dice(mr_body_mask(seen_by_mr(part, shown, noise=0.02, seed=seed)), truth) > least


def test_a_scan_without_a_body_is_reported_in_one_line() -> None:
    with pytest.raises(InputError, match="no body found: nearly all values are 7"):
        mr_body_mask(Volume(np.full((2, 40, 40), 7)))
    with pytest.raises(InputError, match="nearly all values are 0"):
        mr_body_mask(Volume(np.zeros((2, 40, 40))))
