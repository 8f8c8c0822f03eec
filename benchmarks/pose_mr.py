"""The roll in MR: unseen phantoms, and MR made of real CT, turned by known angles.

    python benchmarks/pose_mr.py OUT [--phantoms 60] [--turns 6] [--stn-epochs 0]

Each phantom is seen in CT and in one of four contrasts of MR, in the pose of its cohort. Each real CT of
``shared/data``, where it is there, is turned by random angles of up to 60 degrees, and seen in CT, as T1 and
as T2 with suppressed fat, with bias field and Rician noise. CT is shown to the network of CT and to that of
any contrast, MR to the latter. Truth is the phantom's own roll; of real scans what the network of CT finds in
the CT as it lies, plus the turn. Errors are of slices, with ``pose.per=smooth``; scans that are left as their
header says are counted, and are no part of the errors. Counted as well are scans that are off by more than 6
degrees without a warning, and those whose mirror image would be reported as one; a mirror image has the
opposite logit. Writes ``OUT/pose-mr.md``.

With ``--stn-epochs`` of 100 steps each, the paper's STN1 is trained on phantoms in CT and in MR: on 64 pixels
and with a momentum of 0.9, with which rotation is learned early. Measured is its roll on the slices of a
validation fold, beside that of moments. Writes ``OUT/stn1-mr.md`` too.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from mr_scans import T1, T2_FATSAT, seen_by_mr, whole_phantom
from scipy import ndimage

from isopose.choices import Contrast, Modality
from isopose.data.preprocess import prepare_as
from isopose.devices import one_thread
from isopose.files import output_folder, write_text
from isopose.geometry.pose import ANGLE
from isopose.geometry.volume import Volume
from isopose.homogenize.reference import shipped_scale
from isopose.io.datasets import open_dataset
from isopose.io.images import read_volume
from isopose.models.pose import PoseTransformer
from isopose.models.shipped import load_reference, shipped_transformer
from isopose.phantom import write_cohort
from isopose.phantom.mr import SEQUENCES
from isopose.presets import load_config
from isopose.progress import Terminal
from isopose.scan.find import find_poses, slice_poses_of
from isopose.scan.pose import ScanPose
from isopose.scan.prior import CORRECT_WITHIN
from isopose.scan.warnings import MIRRORED_SCORE
from isopose.settings import DataConfig, PoseConfig, PredictConfig
from isopose.training.fit import fit

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"
#: A cohort that no network has seen, pixels and slices of its scans, and slices of each real scan.
UNSEEN, SIZE, SLICES, REAL_SLICES = 2_000_003, 160, 10, 30
#: Largest turn of a real scan, degrees.
TURN = 60.0
#: Networks in the table, and those to which an image is shown.
NETWORKS: dict[Contrast, str] = {"ct": "CT", "any": "any contrast"}
SHOWN_TO: dict[Modality, tuple[Contrast, ...]] = {"ct": ("ct", "any"), "mr": ("any",)}

#: Of the paper's preset, so small that minutes do: STN1 sees 64 pixels, and what follows is not trained.
STN1 = (
    *("data.size=64", "pose.size=64", "crop.enabled=false", "unet.input=full", "unet.base_features=4"),
    *("pose.optimizer.iterations=100", "pose.optimizer.batch_size=32", "pose.optimizer.momentum=0.9"),
    *("unet.optimizer.epochs=1", "unet.optimizer.min_epochs=1", "unet.optimizer.iterations=1"),
    *("train.device=cpu", "pose.optimizer.patience=1000"),
)


class Seen(NamedTuple):
    """A scan in one kind of image.

    Args:
        group: of the table.
        volume: reoriented.
        modality: of the image.
        roll: ``(z,)`` or ``()``, the true roll in radians.
    """

    group: str
    volume: Volume
    modality: Modality
    roll: np.ndarray


class Found(NamedTuple):
    """What was found of a scan.

    Args:
        errors: of the slices, degrees; None: the scan is left as its header says.
        unnoticed: more than half of the slices are wrong, and their confidence raises no warning.
        mirrored: mean logit that the scan is a mirror image.
    """

    errors: np.ndarray | None
    unnoticed: bool
    mirrored: float


def main(
    output: Annotated[Path, typer.Argument(help="folder")],
    phantoms: int = 60,
    turns: Annotated[int, typer.Option(help="of each real scan")] = 6,
    stn_epochs: Annotated[int, typer.Option(help="of 100 steps for STN1; 0: it is not trained")] = 0,
    cohort: Annotated[int, typer.Option(help="phantoms for STN1")] = 50,
) -> None:
    """Find the poses and write the table."""
    output_folder(output)
    real = [REAL / "dicom-series", REAL / "abdomen.nii.gz", *sorted((REAL / "trunk").glob("*.nii.gz"))]
    known = [path for path in real if path.exists()]
    found: dict[tuple[str, Contrast], list[Found]] = {}
    total = 2 * phantoms + 3 * turns * len(known)
    with one_thread(), torch.inference_mode(), Terminal().counting("rolls") as progress:
        shown = (*_phantoms(phantoms), *_real(known, turns))
        for number, scan in enumerate(shown, start=1):
            for contrast in SHOWN_TO[scan.modality]:
                pose = _pose(scan.volume, scan.modality, contrast)
                rows = found.setdefault((scan.group, contrast), [])
                rows.append(_found(pose, scan.roll))
            progress(number, total)
    lines = [
        "| images | network of | scans | left as the header says | median, ° | 99 % | worst "
        "| wrong, no warning | mirror image noticed | as it is |",
        "| --- " * 10 + "|",
    ]
    for (group, contrast), scans in found.items():
        errors = [scan.errors for scan in scans if scan.errors is not None]
        degrees = np.concatenate(errors or [np.full(1, np.nan)])
        left, unnoticed = len(scans) - len(errors), sum(scan.unnoticed for scan in scans)
        noticed, false = (
            sum(sign * scan.mirrored > MIRRORED_SCORE[contrast] for scan in scans) for sign in (-1, 1)
        )
        spread = f"{np.median(degrees):.2f} | {np.percentile(degrees, 99):.2f} | {degrees.max():.2f}"
        counts = f"{unnoticed} | {noticed} | {false}"
        lines.append(f"| {group} | {NETWORKS[contrast]} | {len(scans)} | {left} | {spread} | {counts} |")
    table = "\n".join(lines) + "\n"
    write_text(output / "pose-mr.md", table)
    typer.echo(table, nl=False)
    if stn_epochs:
        table = _stn1_table(output, cohort, stn_epochs)
        write_text(output / "stn1-mr.md", table)
        typer.echo(table, nl=False)


def _stn1_table(output: Path, cases: int, epochs: int) -> str:
    """Train STN1 on phantoms in CT and in MR, and return how well it finds the roll of others."""
    lines = [
        "| phantoms | STN1: slope over applied rotations | STN1: median, ° | moments: median, ° |",
        "| --- " * 4 + "|",
    ]
    settings = [*STN1, f"pose.optimizer.epochs={epochs}", f"pose.optimizer.min_epochs={epochs}"]
    modality: Modality
    for modality in ("ct", "mr"):
        root, model = output / f"stn1-phantoms-{modality}", output / f"stn1-{modality}"
        if not root.exists():
            side = SIZE // 2
            write_cohort(root, cases=cases, size=side, slices=SLICES, test_fraction=0.0, modality=modality)
        config = load_config("paper", settings=settings)
        turning = fit(open_dataset(root), model, config, resume=True, reporter=Terminal()).info.turning
        assert turning is not None, "the paper's STN1 learns the roll"
        errors = (turning.degrees_from_truth or math.nan, turning.moments_from_truth or math.nan)
        lines.append(f"| {modality.upper()} | {turning.slope:.2f} | {errors[0]:.2f} | {errors[1]:.2f} |")
    return "\n".join(lines) + "\n"


def _phantoms(count: int) -> Iterator[Seen]:
    for index in range(count):
        for sequence in (None, SEQUENCES[index % len(SEQUENCES)]):
            volume, roll = whole_phantom(UNSEEN, index, sequence, size=SIZE, slices=SLICES)
            group, modality = ("phantoms, CT", "ct") if sequence is None else (f"phantoms, {sequence}", "mr")
            yield Seen(group, volume, modality, np.array(roll))  # type: ignore[arg-type]


def _real(paths: list[Path], turns: int) -> Iterator[Seen]:
    for place, path in enumerate(paths):
        ct = read_volume(path).reoriented()
        step = max(1, len(ct.array) // REAL_SLICES)
        ct = Volume(ct.array[::step], ct.world_from_index @ np.diag([1.0, 1.0, step, 1.0]))
        lies = _pose(ct, "ct", "ct").pose[:, ANGLE]
        rng = np.random.default_rng(place)
        for number in range(turns):
            angle = math.radians(rng.uniform(-TURN, TURN))
            turned, roll = _turned(ct, angle), lies + angle
            yield Seen("real CT", turned, "ct", roll)
            bias, noise = (0.2, 0.35, 0.5)[number % 3], (0.02, 0.04)[number % 2]
            for name, shown in (("T1", T1), ("T2 without fat", T2_FATSAT)):
                scan = seen_by_mr(turned, shown, bias=bias, noise=noise, seed=number)
                yield Seen(f"{name} made of real CT", scan, "mr", roll)


def _turned(ct: Volume, angle: float) -> Volume:
    """Turn the content of a reoriented scan by an angle from +x to +y about the middle of its slices."""
    cos, sin = math.cos(angle), math.sin(angle)
    # Voxel sizes may differ; from the turned content back, in (z, y, x).
    sides = np.diag(ct.spacing[::-1])
    back = np.linalg.inv(sides) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ sides
    middle = 0.5 * (np.array(ct.array.shape) - 1.0)
    array = ndimage.affine_transform(
        ct.array.astype(np.float32), back, middle - back @ middle, order=1, cval=-1000.0
    )
    return ct.with_array(array)


def _pose(volume: Volume, modality: Modality, contrast: Contrast) -> ScanPose:
    scale, settings = shipped_scale(modality), PredictConfig()
    transformer = _transformer(contrast, scale.air, scale.top)
    prepared = prepare_as(volume, scale, None, DataConfig(), modality=modality)
    return find_poses(transformer, prepared, settings, slice_poses_of(transformer, prepared, settings))


def _transformer(contrast: Contrast, air: float, top: float) -> PoseTransformer:
    return shipped_transformer(PoseConfig(contrast=contrast), load_reference().mask, air, top)


def _found(pose: ScanPose, roll: np.ndarray) -> Found:
    mirrored = float(np.nanmean(pose.mirrored))
    if pose.decision is not None and pose.decision.header_kept:
        return Found(None, False, mirrored)
    errors = _errors(pose, roll)
    sure = float(np.nanmedian(pose.confidence)) >= PredictConfig().min_confidence
    return Found(errors, sure and float(np.median(errors)) > math.degrees(CORRECT_WITHIN), mirrored)


def _errors(pose: ScanPose, roll: np.ndarray) -> np.ndarray:
    """Return the errors of the slices with a body, degrees."""
    off = np.remainder(pose.pose[:, ANGLE] - roll + math.pi, 2.0 * math.pi) - math.pi
    errors: np.ndarray = np.degrees(np.abs(off[np.isfinite(off)]))
    return errors


if __name__ == "__main__":
    typer.run(main)
