"""Make the reference outline that ships with the package: ``python -m isopose.phantom.roll.reference OUT``.

The section at the kidneys of a supine, straight phantom of two years and median build. It is 168 mm wide,
between a newborn's 115 mm and a sixteen-year-old's 290 mm, so that neither is scaled by more than a factor of
2.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from isopose.config import PoseConfig
from isopose.geometry.pose import pose_from_matrix
from isopose.geometry.warp import warp
from isopose.models.shipped import REFERENCE
from isopose.phantom.growth import reference_size
from isopose.phantom.outline import BINS, Trunk
from isopose.tensors import write_tensors
from isopose.training.targets import filling_matrix

AGE_YEARS = 2.0
#: Height above the second lumbar vertebra in levels, where the reference width and depth hold.
KIDNEYS = 0.3
#: Means of the distributions in ``phantom/anatomy.py: sample_anatomy``.
SAG, GROOVE = 0.055, 0.05
#: Pixels along a side of the drawing, oversampling per pixel for a soft edge, and the side in mm.
DRAWN, FINER, DRAWN_MM = 384, 4, 240.0


def make_reference() -> dict[str, Tensor]:
    """Return ``mask`` ``(1, 1, S, S)`` float16 in the homogenized frame, and ``side_mm``, its side."""
    config = PoseConfig()
    assert config.fill is not None
    drawn = draw_outline()
    theta = filling_matrix(drawn, 0.0, config.fill)
    scale = float(pose_from_matrix(theta.double())[0, 1].exp())
    mask = warp(drawn, theta, (config.size, config.size))
    return {"mask": mask.half(), "side_mm": torch.tensor(DRAWN_MM * scale, dtype=torch.float64)}


def draw_outline() -> Tensor:
    """Return the median child's section as a soft mask ``(1, 1, DRAWN, DRAWN)``, upright and centered."""
    size = reference_size(AGE_YEARS)
    maturity = float(np.clip((size.width / size.depth - 1.15) / 0.38, 0.0, 1.0))
    trunk = Trunk(
        size=size,
        maturity=maturity,
        harmonics=np.zeros((4, 2)),
        gravity=np.array([0.0, 1.0, 0.0]),
        sag=SAG,
        groove=GROOVE * (0.35 + 0.65 * maturity),
    )
    skin = trunk.at(KIDNEYS * size.level).skin
    line = ((np.arange(DRAWN * FINER) + 0.5) / (DRAWN * FINER) - 0.5) * DRAWN_MM
    x, y = np.meshgrid(line, line)
    angle = ((np.arctan2(y, x) + np.pi) * (BINS / (2.0 * np.pi))).astype(np.int64) % BINS
    inside = torch.from_numpy((np.hypot(x, y) <= skin[angle]).astype(np.float32))
    return F.avg_pool2d(inside[None, None], FINER)


def main(output: Annotated[Path, typer.Argument(help="the file, or a folder for it")]) -> None:
    """Write the reference outline."""
    path = output / REFERENCE if output.is_dir() else output
    write_tensors(path, make_reference())
    typer.echo(f"reference: {path}")


if __name__ == "__main__":
    typer.run(main)
