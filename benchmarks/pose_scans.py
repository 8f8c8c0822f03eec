"""Scans whose pose is known: unseen phantoms, and real and phantom scans turned, scaled and shifted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isopose.data.fingerprint import Fingerprint
from isopose.data.preprocess import Prepared, prepare
from isopose.files import replacing
from isopose.geometry.moments import moments, pose_from_moments
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.volume import Volume
from isopose.geometry.warp import invert, normalized_from_pixel, warp
from isopose.io.images import read_volume
from isopose.parallel import Progress, in_order
from isopose.phantom import render, sample_case, texture_generator
from isopose.phantom.anatomy import Anatomy
from isopose.phantom.outline import COS, SIN
from isopose.phantom.pose import Pose
from isopose.phantom.randomized import roll_of
from isopose.phantom.scan import sample_scan
from isopose.settings import DataConfig

#: Cohorts that neither the shipped network nor the paper's STN of the benchmark has seen.
UNSEEN, REFERENCE = 2_000_003, 2_000_029
#: Slices of a phantom, pixels of its slices, pixels of the frame.
SLICES, SIZE, FRAME = 12, 192, 192
DATA = DataConfig(size=FRAME)
#: Applied to real scans: degrees, factor, mm.
TURN, SMALLEST, LARGEST, SHIFT = 60.0, 0.5, 1.6, 30.0
AIR = -1000.0


@dataclass(frozen=True)
class Scan:
    """One scan as the networks see it, and what is true of it.

    Args:
        name: of the scan; turned versions of one scan begin with its name.
        image: ``(n, S, S)`` normalized, only slices with a body.
        mask: ``(n, S, S)``.
        z_mm: ``(n,)``.
        slices: ``(n,)`` indices from the feet.
        center_mm: of the frame.
        fov_mm: of the frame.
        roll: ``(n,)`` true roll of each slice, radians.
        spread_mm: ``(n, 2)`` true spreads of the body along the patient's own axes; NaN if unknown.
        middle_mm: ``(n, 2)`` true centroid of the body; NaN if unknown.
        applied: ``(angle, factor, shift x, shift y, center x, center y)`` radians and mm, of turned scans.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    z_mm: np.ndarray
    slices: np.ndarray
    center_mm: np.ndarray
    fov_mm: float
    roll: np.ndarray
    spread_mm: np.ndarray
    middle_mm: np.ndarray
    applied: np.ndarray

    @property
    def images(self) -> torch.Tensor:
        return torch.from_numpy(self.image)[:, None]

    @property
    def masks(self) -> torch.Tensor:
        return torch.from_numpy(self.mask).float()[:, None]

    def moved(self, points: np.ndarray) -> np.ndarray:
        """Where the applied transform takes points ``(n, 2)`` of the scan as it was, mm."""
        angle, factor, *rest = self.applied
        shift, center = np.array(rest[:2]), np.array(rest[2:])
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return factor * (points - center) @ turn.T + center + shift

    def of(self, rows: np.ndarray) -> "Scan":
        """Some slices only."""
        names = ("image", "mask", "z_mm", "slices", "roll", "spread_mm", "middle_mm")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def phantoms(
    folder: Path, count: int, fingerprint: Fingerprint, workers: int, progress: Progress
) -> list[Scan]:
    """Unseen patients in every pose of the cohorts; drawn once and kept."""
    make = partial(_phantom, folder, fingerprint)
    paths = in_order(make, range(count), name=str, workers=workers, progress=progress)
    return [_read(path) for path in paths]


def turned_scans(
    folder: Path, real: Path, count: int, fingerprint: Fingerprint, workers: int, progress: Progress
) -> list[Scan]:
    """The real scans as they lie, then each so many times turned, scaled and shifted at random."""
    names = {"series": real / "dicom-series", "abdomen": real / "abdomen.nii.gz"}
    # The part of a name before "_" is the scan's, so these have none.
    names |= {
        path.name.removesuffix(".nii.gz").replace("-", ""): path
        for path in sorted((real / "trunk").glob("*.nii.gz"))
    }
    jobs = [(name, path, number) for name, path in names.items() for number in range(count + 1)]
    make = partial(_turned, folder, fingerprint)
    paths = in_order(make, jobs, name=lambda job: job[0], workers=workers, progress=progress)
    return [_read(path) for path in paths]


def reference_scan(fingerprint: Fingerprint, others: Tensor, candidates: int) -> Scan:
    """The reference of all contenders: of some phantoms of 2 years, laid exactly upright, the most typical.

    Typical is the one whose outline, in the middle slice, agrees best with those of other patients, none of
    the table: masks ``(N, 1, S, S)``, brought onto it by moments.
    """
    pose = Pose("supine", True, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    found: list[tuple[float, Scan]] = []
    for index in range(400):
        case = sample_case(REFERENCE, index, size=SIZE, slices=SLICES)
        if abs(case.anatomy.age_years - 2.0) > 0.5:
            continue
        rng = np.random.default_rng([REFERENCE, index])
        scan = sample_scan(rng, case.anatomy, pose, SIZE, SLICES)
        image, _ = render(case.anatomy, pose, scan, rng)
        truth = _truth(case.anatomy, pose, scan.world_from_index)
        whole = _scan("reference", Volume(image, scan.world_from_index), fingerprint, truth)
        middle = whole.of(np.array([len(whole.roll) // 2]))
        found.append((_typical(middle.masks, others), middle))
        if len(found) == candidates:
            break
    return max(found, key=lambda pair: pair[0])[1]


def _typical(mask: Tensor, others: Tensor) -> float:
    theta = pose_from_moments(moments(others), moments(mask))
    size = (mask.shape[2], mask.shape[3])
    return float(soft_dice(warp(others, matrix_from_pose(theta), size), mask).mean())


def corrupted(scan: Scan, number: int) -> Scan:
    """A scan in which little can be seen of the pose, the truth unchanged: for the confidence.

    By number: a field of view that cuts part of the body off, noise as strong as all contrast, nothing within
    the outline, an arm that was taken for trunk, or a mask that lacks a piece.
    """
    rng = np.random.default_rng(number)
    image, mask = scan.image.copy(), scan.mask.copy()
    side = image.shape[1]
    air = float(image.min())
    y, x = (np.indices((side, side)) * 2.0 + 1.0) / side - 1.0
    radius = math.sqrt(mask.mean() * 4.0 / math.pi)
    angle = rng.uniform(-math.pi, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    middle = [float((mask * c).sum() / mask.sum()) for c in (x, y)]
    along = along - middle[0] * math.cos(angle) - middle[1] * math.sin(angle)
    kind = number % 5
    if kind == 0:
        gone = along > rng.uniform(0.3, 0.9) * radius
        mask &= ~gone
        image[:, gone] = air
    elif kind == 1:
        image += rng.normal(0.0, np.ptp(image) * rng.uniform(0.3, 1.0), image.shape).astype(np.float32)
        image = image.clip(air, None)
    elif kind == 2:
        image = np.where(mask, np.float32(0.5 * (air + image.max())), np.float32(air))
    else:
        cx, cy = (
            m + 1.1 * radius * f for m, f in zip(middle, (math.cos(angle), math.sin(angle)), strict=True)
        )
        blob = (x - cx) ** 2 + (y - cy) ** 2 < (rng.uniform(0.25, 0.5) * radius) ** 2
        if kind == 3:
            image[:, blob] = 0.5 * (air + image.max())
            mask |= blob
        else:
            mask &= ~blob
    keep = np.flatnonzero(mask.any(axis=(1, 2)))
    return replace(scan, image=image.astype(np.float32), mask=mask).of(keep)


def _phantom(folder: Path, fingerprint: Fingerprint, index: int) -> Path:
    path = folder / f"phantom_{index:04d}.npz"
    if not path.exists():
        case = sample_case(UNSEEN, index, size=SIZE, slices=SLICES)
        image, _ = render(case.anatomy, case.pose, case.scan, texture_generator(case))
        matrix = case.scan.world_from_index
        truth = _truth(case.anatomy, case.pose, matrix)
        _write(path, _scan(path.stem, Volume(image, matrix), fingerprint, truth))
    return path


def _turned(folder: Path, fingerprint: Fingerprint, job: tuple[str, Path, int]) -> Path:
    name, source, number = job
    path = folder / f"{name}_{number:04d}.npz"
    if not path.exists():
        volume = read_volume(source).reoriented()
        rng = np.random.default_rng([number, len(name)])
        applied = np.zeros(6)
        applied[1] = 1.0
        if number:
            angle = math.radians(rng.uniform(-TURN, TURN))
            factor = math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
            shift = rng.uniform(-SHIFT, SHIFT, 2) * factor
            height, width = volume.array.shape[1:]
            center = np.array([(width - 1) * volume.spacing[0], (height - 1) * volume.spacing[1]]) / 2.0
            volume, applied = _apply(volume, np.array([angle, factor, *shift, *center]))
        truth = (np.full(len(volume.array), applied[0]), None, None)
        _write(path, replace(_scan(path.stem, volume, fingerprint, truth), applied=applied))
    return path


def _apply(volume: Volume, applied: np.ndarray) -> tuple[Volume, np.ndarray]:
    """A scan turned, scaled and shifted in its plane, on a grid that holds it, and what was applied."""
    angle, factor, *rest = applied
    shift, center = np.array(rest[:2]), np.array(rest[2:])
    spacing = np.asarray(volume.spacing[:2])
    height, width = volume.array.shape[1:]
    half = factor * math.hypot(*(np.array([width, height]) * spacing)) / 2.0 + np.abs(shift).max() + 10.0
    # Half the size would alias on the old pixels; a finer grid costs nothing here.
    pixel = float(spacing.min() * min(factor, 1.0))
    side = math.ceil(2.0 * half / pixel)
    origin = center - (side - 1) / 2.0 * pixel
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    forward = torch.eye(3, dtype=torch.float64)
    forward[:2, :2] = factor * turn
    forward[:2, 2] = torch.from_numpy(center + shift) - factor * turn @ torch.from_numpy(center)
    new_mm = torch.diag(torch.tensor([pixel, pixel, 1.0], dtype=torch.float64))
    new_mm[:2, 2] = torch.from_numpy(origin)
    old_mm = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    old_from_new = invert(old_mm) @ invert(forward) @ new_mm
    norm_old = normalized_from_pixel((height, width), dtype=torch.float64)
    norm_new = normalized_from_pixel((side, side), dtype=torch.float64)
    theta = norm_old @ old_from_new @ invert(norm_new)
    source = torch.from_numpy(volume.array.astype(np.float32))[:, None]
    out = torch.cat([warp(s[None], theta.float(), (side, side), fill=AIR, mode="bicubic") for s in source])
    world = volume.world_from_index @ np.diag([pixel / spacing[0], pixel / spacing[1], 1.0, 1.0])
    # Millimeters of the new grid start at its own first voxel.
    moved = np.array([angle, factor, *(shift - origin), *center])
    return Volume(out[:, 0].numpy().round().astype(np.int16), world), moved


def _truth(anatomy: Anatomy, pose: Pose, world_from_index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Roll, spreads and centroids of a phantom's slices in closed form, from the outline it is drawn with."""
    roll, spread, middle = [], [], []
    origin = world_from_index[:3, 3]
    for k in range(SLICES):
        world_z = origin[2] + k * world_from_index[2, 2]
        # The height at which the patient's own axis meets the slice; tilts are small.
        height = (world_z - pose.offset[2]) / pose.rotation[2, 2]
        skin = anatomy.trunk.at(height).skin
        area = np.square(skin).sum() / 2.0
        cx, cy = ((np.power(skin, 3) * f).sum() / 3.0 / area for f in (COS, SIN))
        xx, yy = ((np.power(skin, 4) * f * f).sum() / 4.0 / area for f in (COS, SIN))
        spread.append([math.sqrt(xx - cx * cx), math.sqrt(yy - cy * cy)])
        place = pose.rotation @ np.array([cx, cy, height]) + np.array(pose.offset)
        middle.append(place[:2] - origin[:2])
        roll.append(roll_of(pose))
    return np.array(roll), np.array(spread), np.array(middle)


def _scan(name: str, volume: Volume, fingerprint: Fingerprint, truth: Sequence[np.ndarray | None]) -> Scan:
    prepared: Prepared = prepare(volume, fingerprint, DATA)
    shown = np.flatnonzero(prepared.mask.any(axis=(1, 2)))
    roll, spread, middle = (np.full((len(prepared.mask), 2), np.nan) if t is None else t for t in truth)
    return Scan(
        name=name,
        image=prepared.image[shown],
        mask=prepared.mask[shown],
        z_mm=shown * prepared.spacing[2],
        slices=shown,
        center_mm=np.array(prepared.frame.center_mm),
        fov_mm=prepared.frame.fov_mm,
        roll=roll[shown],
        spread_mm=spread[shown],
        middle_mm=middle[shown],
        applied=np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    )


def _write(path: Path, scan: Scan) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        values = {k: v for k, v in vars(scan).items() if k != "name"}
        np.savez_compressed(file, **values | {"image": scan.image.astype(np.float16)})


def _read(path: Path) -> Scan:
    with np.load(path) as stored:
        values = {name: stored[name] for name in stored.files}
    values["image"] = values["image"].astype(np.float32)
    return Scan(name=path.stem, **values | {"fov_mm": float(values["fov_mm"])})
