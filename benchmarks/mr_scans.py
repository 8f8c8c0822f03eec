"""What an MR scanner would show of phantoms, of simple bodies and of real CT, with the true trunk."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from isopose.geometry.volume import Volume
from isopose.phantom.case import PhantomCase, sample_case, texture_generator
from isopose.phantom.mr import Sequence, drawn_for_mr, sample_mr
from isopose.phantom.outline import BINS
from isopose.phantom.randomized import roll_of
from isopose.phantom.render import render
from isopose.phantom.section import coordinates

#: Densities in HU, and their brightness in MR: gas, lung, fat, fluid, muscle, organs, marrow, bone.
DRAWN = (-960, -850, -500, -300, -130, -60, 0, 20, 45, 65, 90, 130, 200, 400, 700)
T1 = (0, 0.05, 0.05, 0.5, 1.0, 1.0, 0.2, 0.2, 0.4, 0.4, 0.5, 0.5, 0.5, 0.06, 0.06)
T2_FATSAT = (0, 0.05, 0.05, 0.1, 0.2, 0.2, 1.0, 1.0, 0.25, 0.25, 0.5, 0.5, 0.3, 0.06, 0.06)


@dataclass(frozen=True)
class Scanned:
    """An MR scan, the true mask of the trunk, and the true labels."""

    volume: Volume
    trunk: np.ndarray
    labels: np.ndarray


def phantom(index: int, sequence: Sequence, *, size: int = 160) -> Scanned:
    """Two slices of a patient, thin ones, which are rendered fast."""
    case = sample_case(11, index, size=size, slices=6)
    scan = replace(case.scan, slices=2, thickness=3.0, distance=3.0 * case.scan.thickness)
    case = replace(case, scan=scan)
    mr = sample_mr(np.random.default_rng(index), case.anatomy.size.width, sequence)
    image, labels = render(drawn_for_mr(case.anatomy), case.pose, case.scan, texture_generator(case), mr=mr)
    return Scanned(Volume(image, case.scan.world_from_index), outline_of(case), labels)


def whole_phantom(
    seed: int, index: int, sequence: Sequence | None, *, size: int, slices: int
) -> tuple[Volume, float]:
    """A whole scan of a patient, in MR or (``None``) in CT, and the roll of the patient in radians."""
    case = sample_case(seed, index, size=size, slices=slices)
    if sequence is None:
        image, _ = render(case.anatomy, case.pose, case.scan, texture_generator(case))
    else:
        mr = sample_mr(np.random.default_rng(index), case.anatomy.size.width, sequence)
        drawn = drawn_for_mr(case.anatomy)
        image, _ = render(drawn, case.pose, case.scan, texture_generator(case), mr=mr)
    return Volume(image, case.scan.world_from_index), roll_of(case.pose)


def outline_of(case: PhantomCase) -> np.ndarray:
    """The drawn skin, without noise or partial volumes."""
    canonical_from_world, scan, out = np.linalg.inv(case.pose.world_from_canonical), case.scan, []
    for k in range(scan.slices):
        plane = canonical_from_world @ scan.slice_matrix(k)
        x, y, _ = coordinates(plane, (slice(0, scan.size), slice(0, scan.size)))
        middle = float(plane[2] @ [0.5 * (scan.size - 1), 0.5 * (scan.size - 1), 0, 1])
        bins = ((np.arctan2(y, x) + np.pi) * (BINS / (2 * np.pi))).astype(int).clip(max=BINS - 1)
        out.append(np.hypot(x, y) < case.anatomy.trunk.at(middle).skin[bins])
    return np.stack(out)


def seen_by_mr(
    ct: Volume,
    shown: tuple[float, ...] = T1,
    *,
    bias: float = 0.3,
    noise: float = 0.03,
    gain: float = 1000.0,
    seed: int = 0,
) -> Volume:
    """A CT as MR: a function of its densities, times a coil's sensitivity, with Rician noise."""
    rng = np.random.default_rng(seed)
    brightness = np.interp(ct.array, DRAWN, shown)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in ct.array.shape], indexing="ij")
    brightness = ndimage.gaussian_filter(brightness, (0, 0.5, 0.5))
    brightness *= np.exp(bias * (np.cos(2 * x + 1) + np.sin(1.5 * y) - 0.5 * z**2))
    real, imaginary = rng.normal(0, noise, (2, *brightness.shape))
    return ct.with_array(np.rint(gain * np.hypot(brightness + real, imaginary)).astype(np.int32))
