"""The roll against the file's header: real trunks, phantoms, and bodies that are no trunk.

    python benchmarks/header.py OUT

writes ``OUT/header.md`` and ``OUT/header.json``. Each scan is seen as scanned and turned by a quarter, a half
and three quarters of a turn, as ``isopose homogenize --per smooth`` does it without a model. Trunks shall be
turned back, everything else shall stay within 5 degrees of the header.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from header_bodies import SIDE, SLICES, crop, draw_head, draw_limbs, draw_neck, draw_water, turn

from isopose.data.preprocess import prepare_as
from isopose.devices import one_thread
from isopose.files import write_json, write_text
from isopose.geometry.pose import ANGLE
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import PoseEstimator, open_estimator
from isopose.io.images import read_volume
from isopose.models.folder import versions
from isopose.phantom import render, sample_case, texture_generator
from isopose.phantom.levels import sample_level_slab
from isopose.phantom.randomized import roll_of
from isopose.presets import homogenize_config
from isopose.progress import Terminal
from isopose.scan.find import find_poses, slice_poses_of

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"
#: Real trunks, and the sides of the squares in mm that are cut out of them.
TRUNKS = ("dicom-series", "abdomen.nii.gz", *(f"trunk/chest-{name}.nii.gz" for name in (
    "upper-abdomen", "female", "arms-up",
)))  # fmt: skip
CROPS_MM = (80.0, 120.0)
#: A cohort of phantoms that nothing else draws from.
UNSEEN = 2_000_147
#: Other levels of the trunk, drawn as those from which the network learned, of other people.
LEVELS = {"chest": "drawn chests and shoulders", "pelvis": "drawn pelvises and thighs"}
DRAWN = {"heads": draw_head, "necks": draw_neck, "limbs": draw_limbs, "water": draw_water}


@dataclass(frozen=True)
class Seen:
    """One scan in one position.

    Args:
        kind: of the scan.
        trunk: whether it is one, so that it shall be turned back.
        quarters: quarter turns against the header.
        off_degrees: largest distance of a slice's roll from the truth; of what is no trunk, from the header.
        odds: that the slices show the roll.
        kept: whether the header's pose was kept.
        doubted: part of the slices below ``predict.min_confidence``.
    """

    kind: str
    trunk: bool
    quarters: int
    off_degrees: float
    odds: float
    kept: bool
    doubted: float


def main(
    output: Path,
    cases: Annotated[int, typer.Option(help="phantoms, and drawn bodies of each kind")] = 40,
    real: Annotated[bool, typer.Option(help="use the real scans, if they are there")] = True,
) -> None:
    """See all scans in all positions and write the table."""
    output.mkdir(parents=True, exist_ok=True)
    estimator = open_estimator(None, homogenize_config(size=128, per="smooth"))
    found = []
    with one_thread(), torch.inference_mode(), Terminal().counting("scans") as count:
        scans = list(_scans(cases, real and REAL.is_dir()))
        for number, (kind, truth, volume) in enumerate(scans, start=1):
            found += [_see(estimator, kind, truth, volume, quarters) for quarters in range(4)]
            count(number, len(scans))
    write_json(output / "header.json", {"versions": versions(), "seen": [asdict(one) for one in found]})
    table = table_of(found)
    write_text(output / "header.md", table)
    typer.echo(table)
    typer.echo(f"table: {output / 'header.md'}")


def _scans(cases: int, real: bool) -> Iterator[tuple[str, float | None, Volume]]:
    """Yield the kind, the true roll (radians; None for what is no trunk) and the volume of each scan."""
    for index in range(cases):
        case = sample_case(UNSEEN, index, size=192, slices=12)
        image, _ = render(case.anatomy, case.pose, case.scan, texture_generator(case))
        yield "phantoms", roll_of(case.pose), Volume(image, case.scan.world_from_index)
    for level in ("chest", "pelvis"):
        for index in range(cases):
            slab = sample_level_slab(UNSEEN, index, level=level, slices=SLICES, size=SIDE)
            yield LEVELS[level], slab.roll, slab.volume
    trunks = [read_volume(REAL / name).reoriented() for name in TRUNKS] if real else []
    for name, volume in zip(TRUNKS, trunks, strict=False):
        yield f"real: {Path(name).name.removesuffix('.nii.gz')}", 0.0, volume
    for kind, draw in DRAWN.items():
        for index in range(cases):
            yield kind, None, draw(np.random.default_rng([UNSEEN, index]))
    for volume in trunks:
        for side_mm in CROPS_MM:
            yield "real: crops without an outline", None, crop(volume, side_mm)


def _see(estimator: PoseEstimator, kind: str, truth: float | None, volume: Volume, quarters: int) -> Seen:
    """Find the roll of one scan in one position."""
    prepared = prepare_as(turn(volume, quarters), estimator.scale, estimator.fov_mm, estimator.data)
    transformer, settings = estimator.transformer, estimator.predict
    slices = slice_poses_of(transformer, prepared, settings, estimator.per)
    scan = find_poses(transformer, prepared, settings, slices, per=estimator.per, side_mm=estimator.side_mm)
    assert scan.decision is not None
    angle = scan.pose[scan.has_body, ANGLE]
    true = 0.0 if truth is None else truth - quarters * math.pi / 2.0
    off = np.degrees(np.abs(np.angle(np.exp(1j * (angle - true)))))
    doubted = float((scan.confidence[scan.has_body] < settings.min_confidence).mean())
    decision = scan.decision
    return Seen(
        kind, truth is not None, quarters, float(off.max()), decision.odds, decision.header_kept, doubted
    )


def table_of(seen: list[Seen]) -> str:
    """Return the table in Markdown: a row for each kind as scanned, and one for it turned."""
    lines = [
        "| scans | position | tried | turned back, or left if no trunk | off at worst, ° | "
        "smallest / largest odds | slices doubted |",
        "| --- " * 7 + "|",
    ]
    for kind in dict.fromkeys(one.kind for one in seen):
        for name, turned in (("as scanned", False), ("turned by 90, 180, 270°", True)):
            some = [one for one in seen if one.kind == kind and (one.quarters > 0) == turned]
            right = sum(one.off_degrees < 6.0 if one.trunk else one.off_degrees < 5.0 for one in some)
            odds = [one.odds for one in some]
            worst = max(one.off_degrees for one in some)
            doubted = f"{np.mean([one.doubted for one in some]):.1%}" if some[0].trunk else "-"
            of_odds = f"{min(odds):.2g} / {max(odds):.2g}"
            cells = [kind, name, str(len(some)), str(right), f"{worst:.1f}", of_odds, doubted]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
