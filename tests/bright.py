"""A model that needs no training, and a phantom whose bright, asymmetric mass it must segment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isopose.data.fingerprint import Fingerprint
from isopose.data.normalization import Channel, Intensity
from isopose.geometry.volume import Volume
from isopose.labels import Labels
from isopose.models.folder import Model
from isopose.models.info import ModelInfo, TrainingInfo
from isopose.models.pipeline import Networks
from isopose.presets import load_config

INTENSITY = Intensity((0.5, 99.5), -80.0, 100.0, 400.0, 95.0, 75.0, -200.0, 900.0)
LABELS = Labels.create({"kidney": 1, "tumor": 7})
#: Of :class:`Sided`; the classes of the sides do not follow one another.
SIDED = Labels.create({"left kidney": 2, "tumor": 5, "right kidney": 9})
THRESHOLDS_HU = (145.0, 325.0)
#: Half axes of the body in mm and side of the frame: at the identity the body is the reference.
BODY, FOV = (100.0, 72.0), 230.0


class Brightness(nn.Module):
    """Stand-in for the U-Net: class 1 and 2 above the two thresholds, background where ``blind`` is true."""

    def __init__(self, blind: Any = None) -> None:
        super().__init__()
        self.levels = [float(INTENSITY.normalize(np.array([level]))[0]) for level in THRESHOLDS_HU]
        self.blind = blind
        self.seen: list[Tensor] = []

    def fused(self) -> "Brightness":
        return self

    def forward(self, image: Tensor, *, deep: bool = False) -> list[Tensor]:
        steps = torch.cat([30.0 * (image - level) for level in self.levels], dim=1)
        logits = torch.cat([torch.zeros_like(image), steps.cumsum(dim=1)], dim=1)
        if self.blind is not None:
            logits[self.blind(image), 1:] = -30.0
        return [logits]


class Sided(Brightness):
    """As :class:`Brightness`, with the left kidney in the right half of the image and the right one left.

    With ``half``, "left" or "right", the other half of the image is background.
    """

    def __init__(self, half: str | None = None) -> None:
        super().__init__()
        self.half = half

    def forward(self, image: Tensor, *, deep: bool = False) -> list[Tensor]:
        (logits,) = super().forward(image)
        right = torch.arange(image.shape[3]) * 2 >= image.shape[3]
        if self.half is not None:
            logits[:, 1:] = torch.where(right == (self.half == "right"), logits[:, 1:], -30.0)
        none = torch.full_like(logits[:, 1], -30.0)
        left, other = torch.where(right, logits[:, 1], none), torch.where(right, none, logits[:, 1])
        return [torch.stack([logits[:, 0], left, logits[:, 2], other], dim=1)]


def fingerprint(fov_mm: float = FOV) -> Fingerprint:
    one = (1.0, 1.0, 1.0)
    body = (2 * BODY[0], 2 * BODY[1])
    return Fingerprint(1, 1, one, one, one, 3.0, 3, 3, (Channel("CT", INTENSITY),), body, body, fov_mm, ())


def ellipse(size: int, radii: tuple[float, float]) -> Tensor:
    """Return a mask ``(1, 1, size, size)`` of a centered ellipse; radii ``(x, y)`` in half sides."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    return ((line / radii[0]).square() + (line[:, None] / radii[1]).square() <= 1).float()[None, None]


def bright_model(
    changes: Mapping[str, Any] | None = None,
    *,
    reference: Tensor | None = None,
    crop_start: tuple[float, ...] | None = None,
    fov_mm: float = FOV,
    blind: Any = None,
    real_unet: bool = False,
    sided: bool = False,
    half: str | None = None,
) -> Model:
    base: dict[str, Any] = {
        "data": {"size": 128},
        "pose": {"size": 32, "fill": None, "start": "moments", "learned": True, "per": "slice"},
        "crop": {"size": 32},
        "unet": {"input": "full", "base_features": 2},
        "predict": {"mirror": False},
    }
    for section, values in (changes or {}).items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, Mapping) else values
    config = load_config(base=base)
    torch.manual_seed(0)
    mask = ellipse(64, (2 * BODY[0] / FOV, 2 * BODY[1] / FOV)) if reference is None else reference
    labels = SIDED if sided else LABELS
    pipeline = Networks(config, labels.classes, mask, INTENSITY.air, INTENSITY.top)
    if crop_start is not None:
        pipeline.crop.start.copy_(torch.tensor(crop_start))
    if not real_unet:
        pipeline.unet = Sided(half) if sided else Brightness(blind)  # type: ignore[assignment]
    pipeline.eval().requires_grad_(False)
    info = ModelInfo(TrainingInfo((), patients=1))
    return Model(pipeline, config, labels, fingerprint(fov_mm), info, "0" * 64)


@dataclass(frozen=True)
class Scene:
    """A scan on axes L, P, S, its label map, and the center of the body ``(x, y)`` in LPS mm."""

    volume: Volume
    truth: np.ndarray
    middle: tuple[float, float]


def make_scene(
    *,
    roll: float = 0.0,
    scale: float = 1.0,
    center: tuple[float, float] = (0.0, 0.0),
    spacing: tuple[float, float, float] = (2.1, 2.9, 6.0),
    slices: int = 6,
    field: tuple[float, float] = (250.0, 205.0),
    empty: tuple[int, ...] = (),
) -> Scene:
    """Make a scan of a body with an L-shaped mass on the patient's left in front, a tumor in its corner.

    Args:
        roll: radians from +x (left) to +y (back), about the body's middle.
        scale: of everything.
        center: of the body in mm, from the middle of the field of view.
        spacing: ``(x, y, z)``.
        slices: how many.
        field: field of view ``(x, y)`` in mm.
        empty: slices that show only air.
    """
    width, height = (round(side / step) for side, step in zip(field, spacing[:2], strict=True))
    y, x = np.meshgrid(
        (np.arange(height) - (height - 1) / 2) * spacing[1] - center[1],
        (np.arange(width) - (width - 1) / 2) * spacing[0] - center[0],
        indexing="ij",
    )
    u = (np.cos(roll) * x + np.sin(roll) * y) / scale
    v = (-np.sin(roll) * x + np.cos(roll) * y) / scale
    body = np.hypot(u / BODY[0], v / BODY[1]) <= 1
    trunk = (u > 20) & (u < 70) & (v > -10) & (v < 25)
    arm = (u > 20) & (u < 45) & (v > -45) & (v <= -10)
    core = np.hypot(u - 35, v - 8) <= 11
    plane = np.where(body, 40.0, -1000.0)
    plane[trunk | arm] = 250.0
    plane[core] = 400.0
    labels = np.where(trunk | arm, 1, 0)
    labels[core] = 7
    array, truth = np.repeat(plane[None], slices, 0), np.repeat(labels[None], slices, 0)
    for z in empty:
        array[z], truth[z] = -1000.0, 0
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = (-37.5, 12.25, 400.0)
    middle = np.array([(width - 1) / 2 * spacing[0] + center[0], (height - 1) / 2 * spacing[1] + center[1]])
    middle_lps = middle + matrix[:2, 3]
    return Scene(
        Volume(array.astype(np.int16), matrix),
        truth.astype(np.uint8),
        (float(middle_lps[0]), float(middle_lps[1])),
    )


def stored_otherwise(volume: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """Reorder the storage: index axis ``a`` of ``(x, y, z)`` is axis ``axes[a]``, flipped if ``flips[a]``.

    Independent of :class:`isopose.geometry.volume.Reorientation`, which is tested against it.
    """
    size = volume.array.shape[::-1]
    xyz = volume.array.transpose(2, 1, 0).transpose(axes)
    xyz = xyz[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    index_from_stored = np.zeros((4, 4))
    index_from_stored[3, 3] = 1.0
    for index, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        index_from_stored[axis, index] = -1.0 if flip else 1.0
        index_from_stored[axis, 3] = size[axis] - 1.0 if flip else 0.0
    return Volume(np.ascontiguousarray(xyz.transpose(2, 1, 0)), volume.world_from_index @ index_from_stored)


def world_center(labels: Volume, mask: np.ndarray) -> np.ndarray:
    """Return the mean position ``(x, y, z)`` of the voxels of a mask in LPS mm."""
    index = np.argwhere(mask).mean(axis=0)[::-1]
    center: np.ndarray = (labels.world_from_index @ [*index, 1.0])[:3]
    return center


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)
