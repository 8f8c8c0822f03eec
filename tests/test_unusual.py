"""What is no trunk as its header says gives a warning or is refused, with the poses that ship."""

import numpy as np
import pytest

from isopose.config import homogenize_config
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import open_estimator
from isopose.homogenize.scan import homogenize_scan
from isopose.io.images import read_volume

SLICES, SIDE = 12, 192
Y, X = np.meshgrid(*[(np.arange(SIDE) - SIDE / 2 + 0.5) * 1.5] * 2, indexing="ij")


def scan(plane: np.ndarray) -> Volume:
    noise = np.random.default_rng(0).normal(0.0, 10.0, (SLICES, SIDE, SIDE))
    return Volume((plane + noise).astype(np.int16), np.diag([1.5, 1.5, 5.0, 1.0]))


def head() -> Volume:
    radius = np.hypot(X / 75, Y / 95)
    plane = np.select([radius < 0.87, radius < 0.95, radius < 1.0], [35.0, 1000.0, 60.0], -1000.0)
    plane[np.hypot(X / 12, Y / 25) < 1] = 8.0
    return scan(plane)


def legs() -> Volume:
    plane = np.full((SIDE, SIDE), -1000.0)
    for side in (-1, 1):
        plane[np.hypot((X - side * 70) / 55, Y / 60) < 1] = 50.0
        plane[np.hypot((X - side * 70) / 14, Y / 14) < 1] = 900.0
    return scan(plane)


def cylinder() -> Volume:
    return scan(np.where(np.hypot(X, Y) < 100, 0.0, -1000.0))


@pytest.fixture(scope="module")
def estimator():
    return open_estimator(None, homogenize_config(size=128))


def warnings_of(estimator, volume: Volume) -> str:
    return "\n".join(homogenize_scan(estimator, volume).warnings)


@pytest.mark.parametrize("make", [head, legs, cylinder], ids=lambda make: make.__name__)
def test_what_is_no_trunk_leaves_the_pose_in_doubt(estimator, make) -> None:
    assert f"not sure which way up the patient lies in {SLICES} of {SLICES} slices" in warnings_of(
        estimator, make()
    )


@pytest.fixture(scope="module")
def real(real_ct) -> Volume:
    return read_volume(real_ct / "abdomen.nii.gz").reoriented()


def test_a_patient_as_the_header_says_is_left_in_peace(estimator, real) -> None:
    assert warnings_of(estimator, real) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: hu[:, :, ::-1], "looks like its own mirror image"),
        (lambda hu: hu[:, ::-1, ::-1], "lies turned by -178 degrees against what the file's header says"),
        (lambda hu: (hu.astype(int) + 1024).clip(0), "the HU offset (often -1024) seems to be missing"),
        (lambda hu: hu.clip(-100, 150), "span too little for CT in HU"),
    ],
    ids=["mirrored", "upside down", "no offset", "windowed"],
)
def test_a_real_scan_that_was_spoilt_is_reported(estimator, real, change, words) -> None:
    spoilt = real.with_array(np.ascontiguousarray(change(real.array)).astype(np.int16))
    assert words in warnings_of(estimator, spoilt)


def test_another_modality_is_refused(estimator, real) -> None:
    """As MR has it: nothing outside, and tissue of any brightness."""
    signal = np.where(real.array < -300, 0, (real.array.clip(-150, 250) + 150) * 2).astype(np.int16)
    with pytest.raises(InputError, match="is it a CT in Hounsfield units"):
        homogenize_scan(estimator, real.with_array(signal))
