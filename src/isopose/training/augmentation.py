"""nnU-Net's augmentation of slices: the paper's baseline, to which homogenization is compared.

Transforms, order, probabilities and ranges are those of nnU-Net v2's 2D trainer
(``nnUNetTrainer.get_training_transforms``), implemented with MONAI.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
    RandZoomd,
)
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from isopose.data.samples import SliceBatch

KEYS = ("image", "labels")


class Augmentation:
    """Augment slices at random; each slice differently, reproducibly by seed.

    Args:
        airs: value of air in each channel, which fills pixels outside a rotated slice.
        mirror: whether slices are mirrored, which swaps left and right: not for labels with sides.
    """

    def __init__(self, *airs: float, mirror: bool = True) -> None:
        self.airs = airs
        self.flips = [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in (0, 1)] if mirror else []
        # nnU-Net's factor of 0.7 to 1.4 scales the sampled field; MONAI's scales the content, its inverse.
        smallest, largest = 1.0 / 1.4, 1.0 / 0.7
        modes = ("bilinear", "nearest")
        self.spatial = Compose(
            [
                RandRotated(KEYS, prob=0.2, range_x=math.pi, mode=modes, padding_mode="zeros"),
                RandZoomd(
                    KEYS, prob=0.2, min_zoom=smallest, max_zoom=largest, mode=modes, padding_mode="constant"
                ),
            ]
        )
        image = "image"
        self.intensities = Compose(
            [
                RandGaussianNoised(image, prob=0.1, std=0.1),
                # Blur and low resolution: 0.2 and 0.25 for a slice, a half of that for its one channel.
                RandGaussianSmoothd(image, prob=0.1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
                RandScaleIntensityd(image, prob=0.15, factors=0.25),
                RandScaleIntensityFixedMeand(image, prob=0.15, factors=0.25, preserve_range=True),
                RandSimulateLowResolutiond(image, prob=0.125, zoom_range=(0.5, 1.0), upsample_mode="bicubic"),
                RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
                RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
                *self.flips,
            ]
        )

    def __call__(
        self, batch: SliceBatch, seed: Sequence[int], positions: Sequence[int] | None = None
    ) -> SliceBatch:
        """Return the batch with augmented images and labels; the mask, which the U-Net does not see, is kept.

        Args:
            batch: of slices ``(N, C, S, S)`` and labels ``(N, S, S)``. Intensities of the scans' channels are
                changed independently, those of a slice and its neighbors alike.
            seed: numbers that identify the run, the epoch and the batch.
            positions: indices of these slices in the whole batch, of which this rank has a part; None: these
                slices are the whole batch.
        """
        positions = range(len(batch.image)) if positions is None else positions
        images, labels = [], []
        for image, label_map, position in zip(batch.image, batch.labels, positions, strict=True):
            state = np.random.SeedSequence([*seed, position]).generate_state(len(self.airs) + 2).tolist()
            self.spatial.set_random_state(state[0])
            # MONAI fills with zeros, so air is shifted to zero for the transform.
            air = image.new_tensor(self.airs).repeat_interleave(len(image) // len(self.airs))[:, None, None]
            moved = self.spatial({"image": image - air, "labels": label_map[None].float()})
            channels = (moved["image"] + air).chunk(len(self.airs))
            augmented = [self._augment(x, moved["labels"], state[n + 1 :]) for n, x in enumerate(channels)]
            # Convert MONAI's MetaTensors, which keep the history of transforms, to plain tensors.
            images.append(torch.cat([convert_to_tensor(channel["image"]) for channel in augmented]))
            labels.append(convert_to_tensor(augmented[0]["labels"])[0].to(label_map.dtype))
        return replace(batch, image=torch.stack(images), labels=torch.stack(labels))

    def _augment(self, channel: Tensor, label_map: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Change the intensities of one channel, and mirror it as all channels are.

        Args:
            channel: ``(K, S, S)``, a slice and its neighbors.
            label_map: ``(1, S, S)``, its labels.
            seeds: the first is the channel's own; the last, which all channels share, is that of the
                mirroring.
        """
        self.intensities.set_random_state(seeds[0])
        if len(self.airs) > 1:
            for number, flip in enumerate(self.flips):
                flip.set_random_state(seeds[-1] + number)
        return self.intensities({"image": channel, "labels": label_map})
