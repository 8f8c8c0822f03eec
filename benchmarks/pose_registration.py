"""The classical way: SimpleITK registers each slice to the reference slice, by masks or by images.

Several starting angles at the coarsest level, since a local optimizer does not cross 30 degrees by itself, of
which the best by its own metric goes on to the finer ones; center and size start from the masks' moments.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
import torch
from scipy.linalg import polar

from isopose.geometry.moments import moments

#: Pixels along a side on which both are registered.
SIDE = 128
#: Starting angles, degrees.
STARTS = (-60.0, -30.0, 0.0, 30.0, 60.0)
#: Shrink factor and blur in pixels of the coarse level, and of the two finer ones.
COARSE, FINE = ((4, 2.0),), ((2, 1.0), (1, 0.0))
ITERATIONS = 100

Linear = TypeVar("Linear", sitk.Similarity2DTransform, sitk.AffineTransform)


@dataclass(frozen=True)
class Registration:
    """One of the four ways.

    Args:
        image: fixed, ``(S, S)`` normalized coordinates as its physical space.
        mask: of the fixed image.
        by: ``masks`` or ``images``.
        kind: ``similarity`` or ``affine``.
    """

    image: np.ndarray
    mask: np.ndarray
    by: str
    kind: str

    def theta(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Frame from homogenized ``(3, 3)``, normalized, of one slice; not always of the form T · R · S."""
        fixed_mask, moving_mask = _physical(self.mask), _physical(mask)
        pair = (fixed_mask, moving_mask)
        if self.by == "masks":
            fixed, moving = (sitk.SmoothingRecursiveGaussian(m, 3.0 / SIDE) for m in pair)
        else:
            fixed, moving = _physical(self.image * self.mask), _physical(image * mask)
        of, reference = (
            moments(torch.from_numpy(np.ascontiguousarray(m, dtype=np.float32))[None, None])
            for m in (mask, self.mask)
        )
        size = float((of.radii.prod() / reference.radii.prod()).sqrt())
        best: tuple[float, sitk.Similarity2DTransform] | None = None
        for degrees in STARTS:
            start = sitk.Similarity2DTransform()
            start.SetCenter([float(v) for v in reference.center[0]])
            start.SetTranslation([float(v) for v in (of.center - reference.center)[0]])
            start.SetAngle(math.radians(degrees))
            start.SetScale(size)
            found = self._run(fixed, moving, start, COARSE)
            if best is None or found[0] < best[0]:
                best = found
        assert best is not None
        transform: sitk.Similarity2DTransform | sitk.AffineTransform
        transform = self._run(fixed, moving, best[1], FINE)[1]
        if self.kind == "affine":
            affine = sitk.AffineTransform(2)
            affine.SetMatrix(transform.GetMatrix())
            affine.SetCenter(transform.GetCenter())
            affine.SetTranslation(transform.GetTranslation())
            transform = self._run(fixed, moving, affine, FINE)[1]
        matrix = np.array(transform.GetMatrix()).reshape(2, 2)
        center = np.array(transform.GetCenter())
        theta = np.eye(3)
        theta[:2, :2] = matrix
        theta[:2, 2] = np.array(transform.GetTranslation()) + center - matrix @ center
        return theta

    def _run(
        self,
        fixed: sitk.Image,
        moving: sitk.Image,
        transform: Linear,
        levels: tuple[tuple[int, float], ...],
    ) -> tuple[float, Linear]:
        method = sitk.ImageRegistrationMethod()
        if self.by == "masks":
            method.SetMetricAsMeanSquares()
        else:
            method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.5, seed=1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=0.1, minStep=1e-4, numberOfIterations=ITERATIONS, gradientMagnitudeTolerance=1e-8
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([shrink for shrink, _ in levels])
        method.SetSmoothingSigmasPerLevel([sigma * 2.0 / SIDE for _, sigma in levels])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError:
            # All samples fell outside the moving image: a start that leads nowhere.
            return math.inf, transform
        return method.GetMetricValue(), transform


def nearest_pose(theta: np.ndarray) -> tuple[float, np.ndarray]:
    """Rotation (radians) and the two scales of a matrix, by its polar decomposition."""
    turn, stretch = polar(theta[:2, :2])
    return math.atan2(turn[1, 0], turn[0, 0]), np.diag(stretch).copy()


def _physical(array: np.ndarray) -> sitk.Image:
    """A square image whose physical space is normalized coordinates, -1 to 1 over the whole."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    side = array.shape[0]
    image.SetSpacing([2.0 / side] * 2)
    image.SetOrigin([1.0 / side - 1.0] * 2)
    return image
