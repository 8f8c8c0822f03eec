"""Pose and size: moments, the paper's STN, ours and SimpleITK registration against known poses, in one run.

    python benchmarks/pose.py OUT

writes ``OUT/pose.md`` (tables), ``OUT/pose.json`` and ``OUT/pose.png``; what was drawn or trained before in
OUT is used again. Errors are of slices unless a column says scans. Truth is the phantom's own pose, and for
turned scans the transform applied: the estimate of the turned scan against that of the scan as it lies.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import SimpleITK as sitk
import torch
import typer
from pose_errors import (
    Estimate,
    errors_of_phantoms,
    errors_of_turned,
    leaning,
    leans_by_symmetry,
    spread_of_dice,
)
from pose_figures import draw_errors, tables_of
from pose_registration import SIDE, Registration, nearest_pose
from pose_scans import DATA, Scan, corrupted, phantoms, reference_scan, turned_scans
from safetensors.torch import load_file
from torch import Tensor

from isopose.config import Config
from isopose.data.fingerprint import Fingerprint, fingerprint_of
from isopose.data.samples import Slices
from isopose.data.store import write_store
from isopose.devices import one_thread
from isopose.files import write_json, write_text
from isopose.geometry.box import box_of_mask
from isopose.geometry.moments import moments, pose_at_angle, pose_from_moments, radii_along
from isopose.geometry.overlap import soft_dice
from isopose.geometry.pose import identity_pose, matrix_from_pose
from isopose.geometry.warp import resize, warp
from isopose.io.datasets import open_dataset
from isopose.models.folder import versions
from isopose.models.pipeline import Networks
from isopose.models.pose import PoseTransformer
from isopose.models.roll import RollNetwork
from isopose.models.shipped import load_shipped
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.progress import Terminal
from isopose.scan.poses import scan_poses, slice_poses
from isopose.settings import PoseConfig
from isopose.training.fabric import fabric_for
from isopose.training.loop import Stage, train_stage
from isopose.training.objectives import PoseObjective, RollObjective
from isopose.training.transforms import poses_of

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"
#: The cohort from which the paper's STN learns and the intensities come: other patients than the table's.
COHORT, COHORT_SLICES = 2_000_081, 16
#: Pixels of the reference, and of the paper's STN (its Table 2 has 128 and 512).
REFERENCE_SIZE, PAPER_SIZE = 96, 128
WARM = 3
#: Scans of each group that are corrupted, to try the confidence.
CORRUPTED = 200


@dataclass(frozen=True)
class Contender:
    """Something that estimates poses.

    Args:
        name: in the table.
        mask: ``(1, 1, S, S)`` of the reference as it sees it.
        thetas: of a scan, ``(n, 3, 3)`` frame from homogenized.
        confidence: of the last scan, ``(n,)``, where it knows.
        on_all: whether it is quick enough for every slice; else the middle slices only.
    """

    name: str
    mask: Tensor
    thetas: Callable[[Scan], tuple[np.ndarray, np.ndarray | None]]
    on_all: bool = True


def main(
    output: Path,
    cases: Annotated[int, typer.Option(help="unseen phantoms")] = 500,
    turns: Annotated[int, typer.Option(help="random transforms of each real scan")] = 60,
    registered: Annotated[
        int, typer.Option(help="phantoms, and turned scans of each, that are registered")
    ] = 60,
    weights: Annotated[Path | None, typer.Option(help="of another roll network than the shipped one")] = None,
    trained: Annotated[bool, typer.Option(help="train what has to be: some minutes the first time")] = True,
    cohort: Annotated[int, typer.Option(help="phantoms to train on")] = 48,
    candidates: Annotated[int, typer.Option(help="phantoms of which the reference is chosen")] = 40,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for what is trained, repeated")
    ] = None,
    workers: int = 2,
) -> None:
    """Measure all contenders and write the tables."""
    output.mkdir(parents=True, exist_ok=True)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reporter = Terminal()
    slices, fingerprint = _cohort(output, cohort, workers, reporter)
    with reporter.counting("phantoms") as progress:
        (output / "phantoms").mkdir(exist_ok=True)
        groups = {"phantoms": phantoms(output / "phantoms", cases, fingerprint, workers, progress)}
    if REAL.is_dir():
        with reporter.counting("turned scans") as progress:
            (output / "real").mkdir(exist_ok=True)
            groups["real"] = turned_scans(output / "real", REAL, turns, fingerprint, workers, progress)
    with one_thread(), torch.inference_mode():
        others = torch.cat([batch.mask for batch in slices.batches(64)])[::4]
        reference = reference_scan(fingerprint, others, candidates)
    with one_thread():
        contenders = _contenders(
            reference, fingerprint, slices, output, weights, settings or [] if trained else None, reporter
        )
    results: dict[str, Any] = {"versions": versions(), "all": {}, "registered": {}}
    if "real" in groups:
        with one_thread(), torch.inference_mode():
            results["symmetry"] = leans_by_symmetry(groups["real"])
    known = [scan for group, scans in groups.items() for scan in _judged(group, scans, results)[:CORRUPTED]]
    groups["corrupted"] = [corrupted(scan, number) for number, scan in enumerate(known)]
    for group, scans in groups.items():
        for contender in contenders:
            with (
                one_thread(),
                torch.inference_mode(),
                reporter.counting(f"{contender.name}, {group}") as count,
            ):
                if contender.on_all:
                    rows = results["all"].setdefault(group, {})
                    rows[contender.name] = _measure(contender, scans, group, count)
                if group != "corrupted":
                    rows = results["registered"].setdefault(group, {})
                    some = _some(scans, registered)
                    rows[contender.name] = _measure(contender, some, group, count, middle=True)
    write_json(output / "pose.json", results)
    write_text(output / "pose.md", tables_of(results))
    draw_errors(results, output / "pose.png")
    typer.echo(tables_of(results))
    typer.echo(f"tables: {output / 'pose.md'}  picture: {output / 'pose.png'}")


def _cohort(output: Path, cases: int, workers: int, reporter: Terminal) -> tuple[Slices, Fingerprint]:
    with reporter.counting("cohort") as progress:
        folder = write_cohort(
            output / "cohort", cases=cases, slices=COHORT_SLICES, size=192, seed=COHORT,
            test_fraction=0.0, workers=workers, progress=progress,
        )  # fmt: skip
    dataset = open_dataset(folder)
    labeled = tuple(case for case in dataset.cases if case.label is not None)
    fingerprint = fingerprint_of(labeled, dataset.labels, DATA, workers=workers)
    store = write_store(output / "store", labeled, fingerprint, dataset.labels, DATA, workers=workers)
    return Slices(store.cases), fingerprint


def _judged(group: str, scans: list[Scan], results: dict[str, Any]) -> list[Scan]:
    """Return the scans with the patient's true roll; for real scans it includes the lean (mirror axis)."""
    return leaning(scans, results["symmetry"]) if group == "real" else scans


def _some(scans: list[Scan], most: int) -> list[Scan]:
    """A part of each group for the slow contenders; of turned scans the scan as it lies is always there."""
    names = sorted({scan.name.split("_")[0] for scan in scans})
    parts = [[scan for scan in scans if scan.name.startswith(name)][: most + 1] for name in names]
    return [scan for part in parts for scan in part]


def _contenders(
    reference: Scan,
    fingerprint: Fingerprint,
    slices: Slices,
    output: Path,
    weights: Path | None,
    settings: list[str] | None,
    reporter: Terminal,
) -> list[Contender]:
    """All of the table; what has to be trained is, with settings over its own, unless they are none."""
    image, mask = reference.images, reference.masks
    scale = fingerprint.channels[0].scale
    air, top = scale.air, scale.top
    box = box_of_mask(mask[:, 0] > 0.5)[0][0]
    half = float(max(box[2] - box[0], box[3] - box[1])) / 2.0 / PoseConfig().fill  # type: ignore[operator]
    log = math.log(half)
    theta = matrix_from_pose(
        torch.tensor([[0.0, log, log, float(box[0] + box[2]) / 2.0, float(box[1] + box[3]) / 2.0]])
    )
    filled = warp(mask, theta, (REFERENCE_SIZE, REFERENCE_SIZE))
    shown = warp(image, theta, (SIDE, SIDE), fill=air), warp(mask, theta, (SIDE, SIDE))

    def poses(estimate: Callable[[Scan], Tensor]) -> Callable[[Scan], tuple[np.ndarray, None]]:
        return lambda scan: (matrix_from_pose(estimate(scan)).numpy(), None)

    of_reference = moments(filled)
    found = [
        Contender("identity", filled, poses(lambda scan: identity_pose(len(scan.roll)))),
        Contender(
            "moments", filled, poses(lambda scan: pose_from_moments(moments(scan.masks), of_reference))
        ),
        # What outlines have in common once patients lie upright: no estimate of the roll can add to it.
        Contender(
            "the true roll, the rest by moments",
            filled,
            poses(
                lambda scan: pose_at_angle(
                    moments(scan.masks), torch.from_numpy(scan.roll).float(), of_reference
                )
            ),
        ),
    ]
    if settings is not None:
        as_it_lies = resize(mask, (PAPER_SIZE, PAPER_SIZE))
        small: dict[str, Any] = {"data": {"size": 128, "pixel_mm": None}, "pose": {"size": PAPER_SIZE}}
        config = load_config("paper", base=small, settings=settings)
        stn = _trained("paper", config, as_it_lies, slices, top, output, reporter)
        found.append(
            Contender("the paper's STN", as_it_lies, poses(lambda scan: stn(scan.images, scan.masks)))
        )
        config = load_config(base={"pose": {"start": "moments", "learned": True}}, settings=settings)
        refined = _trained("residual", config, filled, slices, top, output, reporter)
        found.append(
            Contender(
                "moments, then a residual by Eq. 1",
                filled,
                poses(lambda scan: refined(scan.images, scan.masks)),
            )
        )
        config = load_config(base={"pose": {"learned": True}}, settings=settings)
        tuned = _trained("tuned", config, filled, slices, top, output, reporter, weights)
        found.append(Contender("isopose, smooth, fine-tuned", filled, partial(_ours, tuned)))
    for per in ("slice", "smooth", "volume"):
        for scales in (2, 1):
            ours = PoseTransformer(PoseConfig(per=per, scales=scales), filled, air, top)
            assert ours.roll is not None
            ours.roll = _weighted(ours.roll, weights)
            name = f"isopose, {per}" + (", one scale" if scales == 1 else "")
            if scales == 2 or per == "smooth":
                found.append(Contender(name, filled, partial(_ours, ours.eval())))
    for passes in (1, 3):
        ours = PoseTransformer(PoseConfig(per="slice"), filled, air, top)
        assert ours.roll is not None
        ours.roll = _weighted(ours.roll, weights)
        ours.roll.estimate = partial(ours.roll.estimate, passes=passes)  # type: ignore[method-assign]
        name = f"isopose, slice, {'one pass' if passes == 1 else 'three passes'}"
        found.append(Contender(name, filled, partial(_ours, ours.eval())))
    for by in ("masks", "images"):
        for kind in ("similarity", "affine"):
            way = Registration(shown[0][0, 0].numpy(), shown[1][0, 0].numpy(), by, kind)
            found.append(Contender(f"SimpleITK, {by}, {kind}", filled, partial(_register, way), on_all=False))
    return found


def _weighted(network: RollNetwork, weights: Path | None) -> RollNetwork:
    """The shipped weights, or those of a file."""
    if weights is None:
        return load_shipped(network)
    network.load_state_dict({k: v.float() for k, v in load_file(weights).items()}, strict=False)
    return network


def _ours(transformer: PoseTransformer, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    images, masks = scan.images, scan.masks
    whole = np.arange(len(masks))

    def read(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return (images, masks) if rows is whole else (images[rows], masks[rows])

    single = slice_poses(transformer, read, [whole], 0.8)
    pose, confidence, _ = scan_poses(transformer, single, torch.from_numpy(scan.z_mm))
    return matrix_from_pose(pose).numpy(), confidence.numpy()


def _register(way: Registration, scan: Scan) -> tuple[np.ndarray, None]:
    size = (SIDE, SIDE)
    images = resize(scan.images, size, fill=float(scan.image.min()))[:, 0].numpy()
    masks = resize(scan.masks, size)[:, 0].numpy()
    return np.stack([way.theta(i, m) for i, m in zip(images, masks, strict=True)]), None


def _trained(
    name: str,
    config: Config,
    outline: Tensor,
    slices: Slices,
    top: float,
    output: Path,
    reporter: Terminal,
    weights: Path | None = None,
) -> PoseTransformer:
    """STN1 as a configuration has it, trained on the benchmark's own cohort; resumed where it was before."""
    torch.manual_seed(0)
    pipeline = Networks(config, 3, outline, slices.cases[0].record.air, top)
    fabric = fabric_for(config)
    objective: Any = PoseObjective(pipeline)
    if pipeline.pose.roll is not None:
        _weighted(pipeline.pose.roll, weights)
        slices.pose = poses_of(pipeline, slices, fabric.device)
        objective = RollObjective(pipeline)
    stage = Stage(
        name="pose",
        objective=objective,
        config=config.pose.optimizer,
        training=slices,
        validation=None,
        least={},
        seed=(0, 0),
    )
    train_stage(stage, fabric, output / name, reporter)
    return pipeline.pose.eval()


def _measure(
    contender: Contender,
    scans: list[Scan],
    group: str,
    count: Callable[[int, int], None],
    *,
    middle: bool = False,
) -> dict[str, Any]:
    """Errors and time of a contender; with ``middle`` errors of the middle slices only.

    What needs milliseconds is given the whole scan even so, for that is how it works; a registration of
    single slices has no use for the others.
    """
    for scan in scans[:WARM] if contender.on_all else ():
        contender.thetas(scan)
    estimates, judged, looked_at = [], [], 0
    for done, scan in enumerate(scans, start=1):
        row = np.array([len(scan.roll) // 2])
        given = scan.of(row) if middle and not contender.on_all else scan
        estimate = _estimate(contender, given)
        looked_at += len(given.roll)
        estimates.append(estimate.of(row) if middle and contender.on_all else estimate)
        judged.append(scan.of(row) if middle else scan)
        count(done, len(scans))
    scans = judged
    rows = errors_of_turned(scans, estimates) if group == "real" else errors_of_phantoms(scans, estimates)
    number = sum(len(scan.roll) for scan in scans)
    seconds = sum(e.seconds for e in estimates)
    rows["ms_slice"], rows["ms_volume"] = 1e3 * seconds / looked_at, 1e3 * seconds / len(scans)
    rows["slices"], rows["scans"] = number, len(scans)
    dice = np.concatenate([e.dice for e in estimates])
    rows["dice"] = spread_of_dice(dice)
    return rows


def _estimate(contender: Contender, scan: Scan) -> Estimate:
    started = time.perf_counter()
    thetas, confidence = contender.thetas(scan)
    seconds = time.perf_counter() - started
    size = contender.mask.shape[-1]
    theta = torch.from_numpy(np.asarray(thetas)).float()
    dice = soft_dice(warp(scan.masks, theta, (size, size)), contender.mask).numpy()
    parts = [nearest_pose(one) for one in thetas.astype(float)]
    of = moments(contender.mask)
    spread = radii_along(of, torch.zeros(1))[0].numpy()
    half = scan.fov_mm / 2.0
    center = (thetas[:, :2, :2] @ of.center[0].numpy()) + thetas[:, :2, 2]
    return Estimate(
        angle=np.array([angle for angle, _ in parts]),
        extent=np.array([scales for _, scales in parts]) * spread * half,
        center=center * half + scan.center_mm,
        dice=dice,
        confidence=confidence,
        seconds=seconds,
    )


if __name__ == "__main__":
    typer.run(main)
