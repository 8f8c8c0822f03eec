"""The three networks as one: x_frame = theta1 · theta2 · x_crop, one resampling in, one out."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isopose.config import Config
from isopose.geometry.box import BOX_SIZE, carried
from isopose.geometry.pose import POSE_SIZE, matrix_from_pose
from isopose.geometry.warp import Mode, Size, compose, invert, warp
from isopose.models.crop import CropTransformer
from isopose.models.localization import Localization
from isopose.models.planner import plan_unet
from isopose.models.pose import PoseTransformer
from isopose.models.unet import UNet


@dataclass(frozen=True)
class HomogenizedSlices:
    """Slices in the reference's pose and size.

    Args:
        pose: ``(N, 5)``.
        image: ``(N, 1, S, S)``.
        mask: ``(N, 1, S, S)`` soft.
    """

    pose: Tensor
    image: Tensor
    mask: Tensor


class SliceTransforms(NamedTuple):
    """theta1 and theta2 of N slices, each by itself.

    Args:
        pose: ``(N, 5)``.
        theta2: ``(N, 3, 3)``, of the slice homogenized by that pose.
        agreement: ``(N,)`` soft Dice of the outline in that pose and the reference's (Eq. 1).
        learned: ``(N,)`` whether the pose is the joint network's; else it is the one it started from.
    """

    pose: Tensor
    theta2: Tensor
    agreement: Tensor
    learned: Tensor


class Pipeline(nn.Module):
    """Pose, crop and segmentation, each usable alone.

    With ``stn=joint`` the network ``joint`` takes the place of those of STN1 and STN2: nine numbers from one
    look, of which STN1 makes theta1 and STN2 theta2 as they do of their own.

    Args:
        config: the model's whole configuration.
        classes: of the segmentation, background included.
        reference_mask: ``(1, 1, S, S)``, see :class:`PoseTransformer`.
        air: value of air in the normalized images.
        top: largest value of the normalized images.
        crop_start: ``(4,)``, of volumes ``(6,)``, see :class:`CropTransformer`.
    """

    def __init__(
        self,
        config: Config,
        classes: int,
        reference_mask: Tensor,
        air: float,
        top: float,
        crop_start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.air, self.top = float(air), float(top)
        joint = config.stn == "joint"
        self.pose = PoseTransformer(config.pose, reference_mask, air, top, joint=joint)
        self.crop = CropTransformer(config.crop, crop_start, joint=joint, dims=config.dims)
        self.joint = Localization(config.pose.size, POSE_SIZE + BOX_SIZE) if joint else None
        plan = plan_unet(config.unet_size, config.unet_levels, config.unet, dims=config.dims)
        self.unet = UNet(plan, classes, config.unet.output_norm, recompute=config.unet.recompute)

    def homogenize_scan(self, image: Tensor, mask: Tensor, pose: Tensor, size: int) -> HomogenizedSlices:
        """Frames ``(N, 1, S, S)`` warped by poses ``(N, 5)`` (H in the paper) on ``size`` pixels."""
        theta1 = matrix_from_pose(pose)
        return HomogenizedSlices(
            pose,
            warp(image, theta1, (size, size), fill=self.air),
            warp(mask.to(image.dtype), theta1, (size, size)),
        )

    def transforms(self, image: Tensor, mask: Tensor, start: Tensor) -> SliceTransforms:
        """theta1 and theta2 of frames ``(N, 1, S, S)`` seen once in the poses ``(N, 5)`` found so far.

        Where STN1 and STN2 are separate these are the poses. Jointly they are followed by the regressed step,
        unless its outline agrees less than ``predict.min_pose_dice`` and less than before.
        """
        before = self.pose.agreement(mask, start)
        if self.joint is None:
            theta2 = self.theta2(image, mask, start)
            return SliceTransforms(start, theta2, before, torch.zeros_like(before, dtype=torch.bool))
        pose, theta2 = self.look(image, mask, start)
        after = self.pose.agreement(mask, pose)
        learned = (after >= self.config.predict.min_pose_dice) | (after >= before)
        kept = torch.where(learned[:, None], pose, start)
        theta2 = carried(theta2, matrix_from_pose(pose), matrix_from_pose(kept))
        return SliceTransforms(kept, theta2, torch.where(learned, after, before), learned)

    def look(self, image: Tensor, mask: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The joint network's poses ``(N, 5)`` and crops ``(N, 3, 3)`` of frames seen once in poses."""
        assert self.joint is not None, "only with stn=joint"
        seen = self.homogenize_scan(image, mask, start, self.config.pose.size)
        raw = self.joint(seen.image, seen.mask)
        return self.pose.follow(start, raw[:, :POSE_SIZE]), self.crop.square(raw[:, POSE_SIZE:])

    def theta2(self, image: Tensor, mask: Tensor, pose: Tensor) -> Tensor:
        """STN2's crop ``(N, 3, 3)``, of volumes ``(N, 4, 4)``: homogenized from crop, of frames in a pose."""
        if not self.config.crop.enabled:
            side = self.config.dims + 1
            return torch.eye(side, device=image.device).expand(image.shape[0], side, side)
        if self.crop.localization is None:
            theta: Tensor = self.crop(image, mask)
            return theta
        seen = self.homogenize_scan(image, mask, pose, self.config.crop.size)
        learned: Tensor = self.crop(seen.image, seen.mask)
        return learned

    def cut(self, image: Tensor, frame_from_crop: Tensor) -> Tensor:
        """The U-Net's input ``(N, 1, M, M)``, straight from the frame by one resampling."""
        size = self.config.unet_size
        return warp(image, frame_from_crop, (size, size), fill=self.air)

    def probabilities(self, crop: Tensor) -> Tensor:
        """Class probabilities ``(N, classes, M, M)`` float32 of crops."""
        return self.unet(crop)[0].float().softmax(dim=1)


def frame_from_crop(pose: Tensor, theta2: Tensor) -> Tensor:
    """theta1 · theta2 for poses ``(N, 5)`` and crops ``(N, 3, 3)``."""
    return compose(matrix_from_pose(pose), theta2)


def most_probable(probabilities: Tensor) -> Tensor:
    """Classes ``(N, ...)`` uint8 of probabilities ``(N, classes, ...)``; of equal ones the first."""
    # On a CPU argmax over an outer axis takes ten times as long.
    return probabilities.max(dim=1).indices.to(torch.uint8)


def marked(probabilities: Tensor) -> Tensor:
    """Booleans ``(N, ...)``: where :func:`most_probable` is not background."""
    return probabilities[:, 1:].amax(dim=1) > probabilities[:, 0]


def reached(input_from_crop: Tensor, side: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of an image outside which crops leave nothing but background; never empty.

    Args:
        input_from_crop: ``(N, 3, 3)``, the transforms by which the crops were cut.
        side: M, pixels along a side of the crops.
        size: ``(h, w)`` of the image.
    """
    # Interpolation reaches half a pixel of the crop out of it.
    edge = 1.0 + 1.0 / side
    corners = input_from_crop.new_tensor(
        [[-edge, -edge, 1], [-edge, edge, 1], [edge, -edge, 1], [edge, edge, 1]]
    )
    places = (input_from_crop @ corners.T)[:, :2].transpose(0, 1).flatten(1).cpu()
    out = []
    for values, pixels in zip(places, (size[1], size[0]), strict=True):
        # Centers of pixels at (i + 1/2) / pixels; a pixel more on each side for rounding.
        first = math.floor(0.5 * (float(values.min()) + 1.0) * pixels - 0.5)
        last = math.ceil(0.5 * (float(values.max()) + 1.0) * pixels + 0.5)
        start = min(max(first, 0), pixels - 1)
        out.append(slice(start, min(max(last, start + 1), pixels)))
    return out[1], out[0]


def restore(
    probabilities: Tensor,
    input_from_crop: Tensor,
    size: Size,
    *,
    region: tuple[slice, slice] | None = None,
    mode: Mode = "bilinear",
) -> Tensor:
    """Bring probabilities from the crop back through the inverse of the composed transform.

    Outside the crop nothing is known: the missing mass goes to class 0, background.

    Args:
        probabilities: ``(N, classes, M, M)``, of volumes ``(N, classes, D, M, M)``.
        input_from_crop: ``(N, 3, 3)`` or ``(N, 4, 4)``, the transform by which the crop was cut.
        size: ``(h, w)`` or ``(d, h, w)`` of the image that it was cut from, any resolution.
        region: rows and columns of the image that are wanted, see :func:`reached`; none: all.
        mode: interpolation.

    Returns:
        ``(N, classes, *size)`` that sum to 1, or the region of it.
    """
    if region is not None:
        input_from_region = torch.eye(3, device=input_from_crop.device)
        for axis, (part, pixels) in enumerate(zip(reversed(region), reversed(size), strict=True)):
            input_from_region[axis, axis] = (part.stop - part.start) / pixels
            input_from_region[axis, 2] = (part.start + part.stop) / pixels - 1.0
        input_from_crop = compose(invert(input_from_region), input_from_crop)
        size = tuple(part.stop - part.start for part in region)
    back = warp(probabilities[:, 1:], invert(input_from_crop), size, mode=mode)
    rest = (1.0 - back.sum(dim=1, keepdim=True)).clamp(min=0.0)
    return torch.cat([rest, back], dim=1)
