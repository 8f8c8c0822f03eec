"""The three networks as one: x_image = theta1 · theta2 · x_crop, one resampling in and one out.

Slices: ``x_frame = theta1 · theta2 · x_crop``, matrices ``(N, 3, 3)``. Volumes (``dims=3``):
``x_stack = stack_from_frame · theta1 · reach · theta2 · x_crop``, matrices ``(N, 4, 4)``. A homogenized
volume has normalized coordinates: -1 to 1 in plane, as slices have, and along z over the length of the
training scans (``reach``, in half sides of the frame).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isopose.config import Config
from isopose.geometry.box import BOX_SIZE, transferred
from isopose.geometry.pose import POSE_SIZE, matrix_from_pose
from isopose.geometry.warp import compose, invert, warp
from isopose.models.crop import CropTransformer
from isopose.models.localization import Localization
from isopose.models.planner import plan_unet
from isopose.models.pose import PoseTransformer
from isopose.models.unet import UNet


class SliceTransforms(NamedTuple):
    """theta1 and theta2 of N slices, each estimated independently.

    Args:
        pose: ``(N, 5)``.
        theta2: ``(N, 3, 3)``, of the slice homogenized by that pose.
        agreement: ``(N,)`` soft Dice (Eq. 1) of the homogenized outline and the reference's.
        learned: ``(N,)`` True where the joint network's pose was taken, False where the initial pose was
            kept.
    """

    pose: Tensor
    theta2: Tensor
    agreement: Tensor
    learned: Tensor


class Networks(nn.Module):
    """Pose, crop and segmentation networks, each usable alone.

    With ``stn=joint`` one network, ``joint``, replaces the localization networks of STN1 and STN2: it
    regresses five numbers for theta1 and four for theta2 at once.

    Args:
        config: the model's whole configuration.
        classes: number of classes of the segmentation, background included.
        reference_mask: ``(1, 1, S, S)``, see :class:`isopose.models.pose.PoseTransformer`.
        air: value of air in the normalized images that show the pose.
        top: largest value of these images.
        airs: value of air in each channel that the U-Net sees; none: it sees these images alone.
    """

    reach: Tensor

    def __init__(
        self,
        config: Config,
        classes: int,
        reference_mask: Tensor,
        air: float,
        top: float,
        airs: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.air, self.top = float(air), float(top)
        self.airs = tuple(map(float, airs)) or (self.air,)
        joint = config.stn == "joint"
        self.pose = PoseTransformer(
            config.pose, reference_mask, air, top, joint=joint, plane=config.data.plane
        )
        self.crop = CropTransformer(config.crop, joint=joint, dims=config.dims)
        self.joint = Localization(config.pose.size, POSE_SIZE + BOX_SIZE) if joint else None
        plan = plan_unet(
            config.unet_size, config.unet_levels, config.unet, dims=config.dims, channels=len(self.airs)
        )
        self.unet = UNet(plan, classes, config.unet.output_norm, recompute=config.unet.recompute)
        if config.dims == 3:
            self.register_buffer("reach", torch.ones(()))

    def input_from_homogenized(self, pose: Tensor, stack_from_frame: Tensor | None = None) -> Tensor:
        """Return the matrices by which frames or stacks are homogenized.

        Args:
            pose: ``(N, 5)`` of slices, ``(N, 9)`` of volumes.
            stack_from_frame: for volumes, ``(N, 4, 4)`` or ``(4, 4)``, from the isotropic frame to the
                stored stack or to the scan's own grid (``geometry/frame.py``).

        Returns:
            theta1 ``(N, 3, 3)``; of volumes ``(N, 4, 4)``, from the homogenized volume to the stack.
        """
        theta1 = matrix_from_pose(pose)
        if self.config.dims == 2:
            return theta1
        assert stack_from_frame is not None, (
            "a volume needs stack_from_frame, which holds the spacing of its slices"
        )
        one = torch.ones_like(self.reach)
        return compose(stack_from_frame, theta1, torch.diag(torch.stack([one, one, self.reach, one])))

    def homogenized(
        self, image: Tensor, mask: Tensor, input_from_homogenized: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Warp images and masks to the reference's pose and size (H in the paper).

        Args:
            image: ``(N, 1, S, S)``, of volumes ``(N, 1, Z, S, S)``.
            mask: the same shape.
            input_from_homogenized: see :meth:`input_from_homogenized`.
            size: pixels in plane of the result; along z volumes have ``crop.depth``.

        Returns:
            Image and soft mask ``(N, 1, size, size)``, of volumes ``(N, 1, depth, size, size)``.
        """
        shape = (size, size) if self.config.dims == 2 else (self.config.crop.depth, size, size)
        return (
            warp(image, input_from_homogenized, shape, fill=self.air),
            warp(mask.to(image.dtype), input_from_homogenized, shape),
        )

    def transforms(self, image: Tensor, mask: Tensor, initial_pose: Tensor) -> SliceTransforms:
        """Estimate theta1 and theta2 of frames from initial poses.

        Separate STNs leave the initial poses as they are. The joint network refines them; its pose is dropped
        where the outline agrees with the reference less than ``predict.min_pose_dice`` and less than before.

        Args:
            image: frames ``(N, 1, S, S)``.
            mask: the same shape, foreground.
            initial_pose: ``(N, 5)``.
        """
        before = self.pose.agreement(mask, initial_pose)
        if self.joint is None:
            theta2 = self.theta2(image, mask, matrix_from_pose(initial_pose))
            return SliceTransforms(initial_pose, theta2, before, torch.zeros_like(before, dtype=torch.bool))
        pose, theta2 = self.joint_step(image, mask, initial_pose)
        after = self.pose.agreement(mask, pose)
        learned = (after >= self.config.predict.min_pose_dice) | (after >= before)
        chosen_pose = torch.where(learned[:, None], pose, initial_pose)
        theta2 = transferred(theta2, matrix_from_pose(pose), matrix_from_pose(chosen_pose))
        return SliceTransforms(chosen_pose, theta2, torch.where(learned, after, before), learned)

    def joint_step(self, image: Tensor, mask: Tensor, initial_pose: Tensor) -> tuple[Tensor, Tensor]:
        """Return refined poses ``(N, 5)`` and crops ``(N, 3, 3)`` from the joint network.

        Args:
            image: frames ``(N, 1, S, S)``.
            mask: the same shape, foreground.
            initial_pose: ``(N, 5)``, by which the network's input is homogenized.
        """
        assert self.joint is not None, "only with stn=joint"
        raw = self.joint(
            *self.homogenized(image, mask, matrix_from_pose(initial_pose), self.config.pose.size)
        )
        return self.pose.add_bounded(initial_pose, raw[:, :POSE_SIZE]), self.crop.square(raw[:, POSE_SIZE:])

    def theta2(self, image: Tensor, mask: Tensor, input_from_homogenized: Tensor) -> Tensor:
        """Return STN2's crops of frames or stacks, ``homogenized_from_crop``.

        Args:
            image: ``(N, 1, S, S)``, of volumes ``(N, 1, Z, S, S)``, not yet homogenized.
            mask: the same shape, foreground.
            input_from_homogenized: see :meth:`input_from_homogenized`.

        Returns:
            ``(N, 3, 3)`` or ``(N, 4, 4)``; the identity where ``crop.enabled`` is off.
        """
        if self.crop.localization is not None:
            image, mask = self.homogenized(image, mask, input_from_homogenized, self.config.crop.size)
        return self.crop(image, mask)

    def cut(self, image: Tensor, input_from_crop: Tensor, displacement: Tensor | None = None) -> Tensor:
        """Return the U-Net's input, resampled once from the image.

        Args:
            image: ``(N, C, S, S)`` or ``(N, C, Z, S, S)``, see :class:`isopose.data.samples.Batch`.
            input_from_crop: ``(N, 3, 3)`` or ``(N, 4, 4)``, theta1 · theta2; or ``(N, K, 3, 3)``, one for the
                slice and each neighbor (:func:`channels_from_crop`).
            displacement: of the crop's pixels, see :func:`isopose.geometry.warp.warp`.

        Returns:
            ``(N, C, M, M)`` or ``(N, C, D, M, M)``.
        """
        if len(self.airs) == 1:
            return self._cut(image, input_from_crop, self.air, displacement)
        airs = image.new_tensor(self.airs).repeat_interleave(image.shape[1] // len(self.airs))
        air = airs.reshape(-1, *[1] * (image.ndim - 2))
        return self._cut(image - air, input_from_crop, 0.0, displacement) + air

    def _cut(self, image: Tensor, input_from_crop: Tensor, air: float, displacement: Tensor | None) -> Tensor:
        """Resample the channels of :meth:`cut`, all of which have one value of air."""
        shape = self.config.unet_shape
        if input_from_crop.ndim == 3:
            return warp(image, input_from_crop, shape, fill=air, displacement=displacement)
        count, channels = image.shape[:2]
        if displacement is not None:
            displacement = displacement.repeat_interleave(channels, dim=0)
        matrices = input_from_crop.repeat(1, channels // input_from_crop.shape[1], 1, 1).flatten(0, 1)
        crop = warp(image.flatten(0, 1)[:, None], matrices, shape, fill=air, displacement=displacement)
        return crop.reshape(count, channels, *shape)

    def probabilities(self, crop: Tensor) -> Tensor:
        """Return class probabilities ``(N, classes, M, M)`` or ``(N, classes, D, M, M)`` float32 of crops."""
        return self.unet(crop)[0].float().softmax(dim=1)


def channels_from_crop(frame_from_crop: Tensor, channel_pose: Tensor) -> Tensor:
    """Return the matrices that cut a slice and its neighbors, so that they lie over each other.

    A neighbor is seen through theta1_neighbor · theta1^-1 · (theta1 · theta2): its own pose, and whatever
    else the slice is seen through: crop, jitter, mirroring.

    Args:
        frame_from_crop: ``(N, 3, 3)``, theta1 · theta2 of the slices.
        channel_pose: ``(N, K, 5)``, poses of a slice and its neighbors, the slice itself in the middle.

    Returns:
        ``(N, K, 3, 3)``; in the middle exactly ``frame_from_crop``.
    """
    theta1, middle = matrix_from_pose(channel_pose), channel_pose.shape[1] // 2
    out = compose(theta1, invert(theta1[:, middle : middle + 1]), frame_from_crop[:, None])
    out[:, middle] = frame_from_crop
    return out


def frame_from_crop(pose: Tensor, theta2: Tensor) -> Tensor:
    """Return theta1 · theta2 of slices, for poses ``(N, 5)`` and crops ``(N, 3, 3)``."""
    return compose(matrix_from_pose(pose), theta2)
