"""The reference whose pose and size all scans get: shipped, of one of the user's scans, or a model's."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from isopose.choices import Modality, Per, Plane
from isopose.config import HomogenizeConfig
from isopose.data.normalization import ByScan, Scale, Window
from isopose.data.plane import MIN_THICKNESS
from isopose.data.preprocess import prepare_as
from isopose.devices import one_thread
from isopose.errors import InputError, first_names
from isopose.files import composed
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, SHIFT_X
from isopose.geometry.volume import Volume
from isopose.io.cases import Case
from isopose.io.images import missing_message, read_volume
from isopose.io.masks import read_mask
from isopose.io.scans import find_scans
from isopose.io.sources import hash_of_source
from isopose.isolation import named
from isopose.models.folder import Model, load_model
from isopose.models.roll import SOFT_TISSUE_HU
from isopose.models.shipped import (
    DEFAULT_REFERENCE,
    REFERENCES,
    load_reference,
    shipped_sha256,
    shipped_transformer,
)
from isopose.scan.find import find_poses, slice_poses_of
from isopose.scan.warnings import pose_warnings
from isopose.settings import DataConfig, PoseConfig, PredictConfig
from isopose.strict import STRICT, Hash
from isopose.training.targets import normalized_outline

#: Largest number of cases that a message lists.
MAX_NAMED_CASES = 3

#: Bound of z-scored values of scans without a unit, whose range is not known in advance.
MAX_Z_SCORE = 100.0


@dataclass(frozen=True)
class ReferenceSource:
    """The source of a reference, as it is recorded: without its path, which may contain a patient's name.

    Args:
        kind: ``child`` or ``adult``, which are shipped; ``case``, of the dataset that is homogenized; another
            ``scan``; or ``model``.
        sha256: of the shipped file, of the scan, or of the model's weights.
        case: id of the case, else None.
    """

    kind: Literal["child", "adult", "case", "scan", "model"]
    sha256: Hash
    case: str | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class ReferenceOutline:
    """The outline whose pose and size scans get; small and picklable, as it is sent to other processes.

    Outlines are equal if their sources are.

    Args:
        source: of the outline.
        mask: ``(1, 1, S, S)`` float32 in [0, 1], the reference's foreground in the homogenized frame.
        side_mm: side of that frame in the reference's true millimeters.
        warnings: of the reference's own scan, one line each.
    """

    source: ReferenceSource
    mask: np.ndarray = field(compare=False, repr=False)
    side_mm: float = field(compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tensor(self) -> Tensor:
        """The mask as a tensor."""
        return torch.from_numpy(self.mask)


def find_reference(
    config: HomogenizeConfig, model: Path | None = None, cases: Sequence[Case] = ()
) -> ReferenceOutline | None:
    """Return the reference that ``config.reference`` names.

    A name is looked up in this order: ``child`` and ``adult``, the ids of the cases, a path. A file or folder
    with one of these names must be given by a path, e.g. ``./child``.

    Args:
        config: names the reference; modality and plane are those of the scans, and of a scan that is the
            reference.
        model: folder of the model whose pose networks are used; it has its own reference.
        cases: of the dataset that is homogenized.

    Returns:
        The reference; None with a model.

    Raises:
        InputError: no such reference, another one than the model's, or a scan that cannot be read or shows
            no outline of a body.
    """
    name, plane = config.reference, config.scan_plane
    if model is not None:
        if name is not None and os.path.realpath(name) != os.path.realpath(model):
            raise InputError(
                f"--reference {name}: with --model poses and reference are the model's; leave one of the two "
                "out (--reference MODEL alone takes the model's reference and the shipped poses)"
            )
        return None
    name = DEFAULT_REFERENCE if name is None else name
    if name in REFERENCES:
        return shipped_outline(name, plane)
    case = reference_case(name, cases)
    if case is not None:
        return _outline_from_file(case.image, "case", config, case.id, case.mask)
    path = Path(name)
    if not os.path.lexists(path):
        raise InputError(_unknown_reference_message(name, cases))
    if (path / "model.json").is_file():
        loaded = load_model(path)
        if loaded.config.data.plane != plane:
            raise InputError(
                f"--reference {name}: a model of {loaded.config.data.plane} slices, the scans' are {plane}; "
                "name another reference"
            )
        return outline_of_model(loaded)
    scans = find_scans([path])
    if len(scans) > 1:
        raise InputError(f"--reference {path}: holds {len(scans)} scans; name the file of one of them")
    return _outline_from_file(scans[0].path, "scan", config)


def reference_case(name: str | None, cases: Sequence[Case]) -> Case | None:
    """Return the case whose id is the name of a reference; None if the name is no case's id."""
    if name is None or name in REFERENCES:
        return None
    return next((case for case in cases if case.id == composed(name)), None)


def shipped_outline(name: str = DEFAULT_REFERENCE, plane: Plane = "axial") -> ReferenceOutline:
    """Return a shipped reference.

    The shipped outlines are axial. A coronal reference spans the columns, a sagittal one the rows, in which
    the axial outline has at least half of its maximum thickness
    (:data:`isopose.data.plane.MIN_THICKNESS`). It spans the whole height of the frame, because the field of
    view cuts off every outline above and below.

    Args:
        name: ``child`` or ``adult``.
        plane: of the scans' slices.
    """
    kind: Literal["child", "adult"] = "adult" if name == "adult" else "child"
    reference = load_reference(kind)
    source = ReferenceSource(kind, shipped_sha256(REFERENCES[kind]))
    mask = reference.mask.numpy()
    if plane != "axial":
        # Columns are left to right, rows front to back.
        thickness = mask[0, 0].sum(axis=0 if plane == "coronal" else 1)
        columns = (thickness >= MIN_THICKNESS * thickness.max()).astype(mask.dtype)
        mask = np.ascontiguousarray(np.broadcast_to(columns, mask.shape))
    return ReferenceOutline(source, mask, reference.side_mm)


def outline_of_model(model: Model) -> ReferenceOutline:
    """Return the reference of a model.

    Raises:
        InputError: the model does not record the size of its reference.
    """
    area_cm2 = model.info.reference.area_cm2
    if area_cm2 is None:
        raise InputError(
            "the model does not say how large its reference is (info.reference.area_cm2); train again"
        )
    mask = model.pipeline.pose.reference_mask
    source = ReferenceSource("model", model.weights_sha256)
    return ReferenceOutline(source, mask.cpu().numpy(), side_from_area(mask, area_cm2))


def side_from_area(mask: Tensor, area_cm2: float) -> float:
    """Return the side in mm of the frame of an outline, from the known area of the body.

    Args:
        mask: ``(1, 1, S, S)``, the body in the frame.
        area_cm2: of the body.
    """
    return 10.0 * math.sqrt(area_cm2 / float(mask.mean()))


@one_thread()
@torch.inference_mode()
def outline_of_scan(
    volume: Volume,
    modality: Modality = "ct",
    body: np.ndarray | None = None,
    plane: Plane = "axial",
) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """Rotate a scan upright by the shipped network, and return the outline of its most typical slice.

    A coronal or sagittal stack is not rotated; its outline is the silhouette of its body.

    All slices share one pose. The most typical slice is the one whose own width and depth are nearest to
    those of that pose, so that the scan itself keeps its size when it is homogenized to its own outline.

    Args:
        volume: CT in Hounsfield units, or MR, any size, spacing and orientation.
        modality: of the scan.
        body: ``(z, y, x)`` booleans on the volume's grid, in place of the automatic mask.
        plane: in which its slices lie.

    Returns:
        The outline ``(1, 1, S, S)`` float32, the side of its frame in mm, and warnings, one line each.

    Raises:
        InputError: no body, or it reaches out of the scan on all sides.
    """
    scale, settings = shipped_scale(modality), PredictConfig()
    config, initial_reference = shipped_pose_config(modality, "volume", plane), shipped_outline(plane=plane)
    transformer = shipped_transformer(config, initial_reference.tensor, scale.air, scale.top, plane)
    prepared = prepare_as(volume, scale, None, DataConfig(plane=plane), modality=modality, body=body)
    slices = slice_poses_of(transformer, prepared, settings)
    scan = find_poses(transformer, prepared, settings, slices)
    if slices is None or (scan.decision is not None and not scan.decision.outline_visible):
        reasons = f" ({'; '.join(prepared.warnings)})" if prepared.warnings else ""
        raise InputError(
            f"shows no outline of a body, so it cannot be the reference{reasons}; choose another scan"
        )
    rows = np.flatnonzero(scan.has_body)
    common_pose = torch.from_numpy(scan.pose[rows[0]])
    slice_poses = transformer.pose_at_angle(slices.outline, common_pose[ANGLE].expand(len(rows)))
    deviation = (slice_poses - common_pose)[:, LOG_SCALE_X:SHIFT_X].norm(dim=1)
    typical = rows[int(deviation.argmin())]
    mask = torch.from_numpy(prepared.mask[typical])[None, None].float()
    outline, relative_side = normalized_outline(mask, float(common_pose[ANGLE]), transformer.config, plane)
    warnings = (*prepared.warnings, *pose_warnings(scan, transformer, settings))
    return outline.numpy(), relative_side * prepared.frame.fov_mm, warnings


def shipped_scale(modality: Modality) -> Scale | ByScan:
    """Return the normalization of the shipped network's input: CT a window in HU, MR z-scores by scan."""
    if modality == "ct":
        return Window(*SOFT_TISSUE_HU)
    # Bounds that no z-score between percentiles reaches.
    return ByScan("zscore", DataConfig().clip_percentiles, air=-MAX_Z_SCORE, top=MAX_Z_SCORE)


def shipped_pose_config(modality: Modality, per: Per, plane: Plane = "axial") -> PoseConfig:
    """Return the settings of a shipped transformer, which select the roll network of the modality."""
    return PoseConfig(per=per, contrast="ct" if modality == "ct" else "any").in_plane(plane)


def _outline_from_file(
    path: Path,
    kind: Literal["case", "scan"],
    config: HomogenizeConfig,
    case: str | None = None,
    mask: Path | None = None,
) -> ReferenceOutline:
    """Read a scan, and its body mask if there is one, and return its outline."""
    try:
        source = ReferenceSource(kind, hash_of_source(path), case)
        volume = read_volume(path, modality=config.scan_modality)
        body = None if mask is None else read_mask(mask, volume)
        outline = outline_of_scan(volume, config.scan_modality, body, config.scan_plane)
        return ReferenceOutline(source, *outline)
    except InputError as error:
        raise InputError(f"the reference: {named(str(error), str(path))}") from None


def _unknown_reference_message(name: str, cases: Sequence[Case]) -> str:
    """Return the error message for an unknown reference, which lists the possible names."""
    path = Path(name)
    if "://" in name:
        return f"--reference {name}: a URL; name a case of the dataset, or a path on this machine"
    if path.is_absolute() or len(path.parts) > 1 or path.suffix:
        return f"--reference: {missing_message(path)}"
    case_names = first_names([case.id for case in cases], MAX_NAMED_CASES)
    case_option = f"a case of the dataset ({case_names}), " if cases else ""
    return (
        f"--reference {name}: expected {', '.join(REFERENCES)}, {case_option}or the path of a scan or of a "
        "model's folder"
    )
