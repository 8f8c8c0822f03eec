"""Make the reference outlines that ship with the package: ``python -m isopose.phantom.roll.reference OUT``.

The sections at the kidneys of two supine, straight phantoms of median build. The child of two years is 168 mm
wide, between a newborn's 115 mm and a sixteen-year-old's 290 mm, so that neither is scaled by more than a
factor of 2. The adult of 30 years is 332 mm wide.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from isopose.files import output_folder
from isopose.models.shipped import REFERENCES
from isopose.phantom.growth import reference_size
from isopose.phantom.outline import BINS, Trunk
from isopose.settings import PoseConfig
from isopose.tensors import write_tensors
from isopose.training.targets import normalized_outline

#: Age in years of each reference, and the side in mm of the square in which it is drawn.
PATIENTS = {"child": (2.0, 240.0), "adult": (30.0, 480.0)}
#: Height above the second lumbar vertebra in levels, where the reference width and depth hold.
KIDNEYS = 0.3
#: Means of the distributions in ``phantom/anatomy.py: sample_anatomy``.
SAG, GROOVE = 0.055, 0.05
#: Pixels along a side of the drawing, and oversampling per pixel for a soft edge.
DRAWING_SIZE, OVERSAMPLING = 384, 4


def make_reference(name: str) -> dict[str, Tensor]:
    """Return ``mask`` ``(1, 1, S, S)`` float16 in the homogenized frame, and ``side_mm``, its side.

    Args:
        name: of :data:`PATIENTS`.
    """
    mask, part = normalized_outline(draw_outline(name), 0.0, PoseConfig())
    return {"mask": mask.half(), "side_mm": torch.tensor(PATIENTS[name][1] * part, dtype=torch.float64)}


def draw_outline(name: str) -> Tensor:
    """Return the section of a median patient as a soft mask ``(1, 1, DRAWN, DRAWN)``, upright and centered.

    Args:
        name: of :data:`PATIENTS`.
    """
    age_years, drawn_mm = PATIENTS[name]
    size = reference_size(age_years)
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
    line = ((np.arange(DRAWING_SIZE * OVERSAMPLING) + 0.5) / (DRAWING_SIZE * OVERSAMPLING) - 0.5) * drawn_mm
    x, y = np.meshgrid(line, line)
    angle = ((np.arctan2(y, x) + np.pi) * (BINS / (2.0 * np.pi))).astype(np.int64) % BINS
    inside = torch.from_numpy((np.hypot(x, y) <= skin[angle]).astype(np.float32))
    return F.avg_pool2d(inside[None, None], OVERSAMPLING)


def main(output: Annotated[Path, typer.Argument(help="folder for the files")]) -> None:
    """Write the reference outlines."""
    output_folder(output)
    for name, file in REFERENCES.items():
        write_tensors(output / file, make_reference(name))
        typer.echo(f"{name}: {output / file}")


if __name__ == "__main__":
    typer.run(main)
