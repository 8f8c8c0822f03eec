"""Render the slices on which the roll network is trained, and store them, so that a run can be resumed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isopose.data.body import body_mask
from isopose.files import replacing
from isopose.geometry.moments import moments
from isopose.geometry.pose import matrix_from_pose
from isopose.geometry.warp import warp
from isopose.parallel import Progress, in_order
from isopose.phantom.randomized import Slab, sample_slab

#: Pixels along a side as rendered and as stored, and half the stored side in radii of the disc of the body's
#: area.
RENDERED_SIZE, STORED_SIZE, STORED_REACH = 128, 128, 2.0
#: HU are stored as bytes: offset and step.
LOWEST_HU, STEP_HU = -300.0, 4.0
BODY_HU = -250.0


@dataclass(frozen=True)
class Slabs:
    """Slices of bodies, centered and scaled to one size, at their own roll.

    Args:
        hu: ``(N, S, S)`` bytes, see :func:`hounsfield`.
        mask: ``(N, S, S)`` booleans.
        roll: ``(N,)`` radians.
        patient: ``(N,)`` index.
    """

    hu: Tensor
    mask: Tensor
    roll: Tensor
    patient: Tensor

    def of(self, rows: Tensor) -> "Slabs":
        """Return some slices, by booleans or indices."""
        return Slabs(self.hu[rows], self.mask[rows], self.roll[rows], self.patient[rows])


def concatenated(parts: Sequence[Slabs]) -> Slabs:
    """Concatenate slabs; patients of different parts are different, whatever their index."""
    first = np.cumsum([0] + [1 + int(part.patient.max()) for part in parts])
    return Slabs(
        torch.cat([part.hu for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat([part.roll for part in parts]),
        torch.cat([part.patient + int(shift) for part, shift in zip(parts, first, strict=False)]),
    )


def hounsfield(hu: Tensor) -> Tensor:
    """Convert stored bytes to HU, float32."""
    return hu.float() * STEP_HU + LOWEST_HU


def draw_slabs(
    folder: Path,
    seed: int,
    patients: Sequence[int],
    slices: int,
    workers: int,
    progress: Progress | None = None,
    sample: Callable[..., Slab] = sample_slab,
) -> Slabs:
    """Render the slices of patients, or read them if they were stored before.

    Args:
        folder: where they are stored, by the cohort's seed.
        seed: of the cohort; each way of drawing has its own.
        patients: indices.
        slices: per patient.
        workers: processes; 0 uses this one.
        progress: called with the numbers of patients done and of all patients.
        sample: draws a patient's slices from seed, index, ``slices`` and ``size``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_stored_slab, sample, folder, seed, slices)
    parts = list(
        in_order(make, patients, name=lambda index: f"patient {index}", workers=workers, progress=progress)
    )
    loaded = [np.load(path) for path in parts]
    hu, mask, roll = (np.concatenate([part[name] for part in loaded]) for name in ("hu", "mask", "roll"))
    patient = np.concatenate(
        [np.full(len(part["roll"]), index) for index, part in zip(patients, loaded, strict=True)]
    )
    return Slabs(*(torch.from_numpy(array) for array in (hu, mask, roll, patient)))


def _stored_slab(sample: Callable[..., Slab], folder: Path, seed: int, slices: int, index: int) -> Path:
    """Render and store the slices of one patient if they are not there; return their file."""
    path = folder / f"{seed}_{index:05d}_{slices}.npz"
    if not path.exists():
        slab = sample(seed, index, slices=slices, size=RENDERED_SIZE)
        found = body_mask(slab.volume, BODY_HU)
        keep = found.any(axis=(1, 2))
        mask = torch.from_numpy(found[keep]).float()[:, None]
        hu = torch.from_numpy(slab.volume.array[keep].astype(np.float32))[:, None]
        outline = moments(mask)
        radius = (STORED_REACH * (4.0 * mask.mean(dim=(1, 2, 3)) / np.pi).sqrt()).log()[:, None]
        theta = matrix_from_pose(torch.cat([torch.zeros_like(radius), radius, radius, outline.center], dim=1))
        inside = warp(mask, theta, (STORED_SIZE, STORED_SIZE))[:, 0] >= 0.5
        sampled = warp(hu, theta, (STORED_SIZE, STORED_SIZE), fill=-1000.0, mode="bicubic")[:, 0]
        quantized = ((sampled - LOWEST_HU) / STEP_HU).round().clamp(0, 255).to(torch.uint8)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                hu=quantized.numpy(),
                mask=inside.numpy(),
                roll=np.full(int(keep.sum()), slab.roll, np.float32),
            )
    return path
