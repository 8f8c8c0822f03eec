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
        self.rest = Compose(
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
        self, batch: SliceBatch, seed: Sequence[int], places: Sequence[int] | None = None
    ) -> SliceBatch:
        """Return the batch with image and labels disturbed; the mask, which the U-Net does not see, stays.

        Args:
            batch: of slices ``(N, C, S, S)`` and labels ``(N, S, S)``. Intensities of the scans' channels are
                changed independently, those of a slice and its neighbors alike.
            seed: numbers that name the whole batch, of this epoch of this run.
            places: of these slices in the whole batch, of which a rank has a part; none: they are the whole.
        """
        places = range(len(batch.image)) if places is None else places
        images, labels = [], []
        for image, marks, place in zip(batch.image, batch.labels, places, strict=True):
            state = np.random.SeedSequence([*seed, place]).generate_state(len(self.airs) + 2).tolist()
            self.spatial.set_random_state(state[0])
            # MONAI fills with zeros, so air is shifted to zero for the transform.
            air = image.new_tensor(self.airs).repeat_interleave(len(image) // len(self.airs))[:, None, None]
            out = self.spatial({"image": image - air, "labels": marks[None].float()})
            parts = (out["image"] + air).chunk(len(self.airs))
            done = [self._rest(part, out["labels"], state[n + 1 :]) for n, part in enumerate(parts)]
            # Convert MONAI's MetaTensors, which keep the history of transforms, to plain tensors.
            images.append(torch.cat([convert_to_tensor(one["image"]) for one in done]))
            labels.append(convert_to_tensor(done[0]["labels"])[0].to(marks.dtype))
        return replace(batch, image=torch.stack(images), labels=torch.stack(labels))

    def _rest(self, part: Tensor, marks: Tensor, state: Sequence[int]) -> dict[str, Tensor]:
        """Change the intensities of one channel, and mirror it as all channels are.

        Args:
            part: ``(K, S, S)``, a slice and its neighbors.
            marks: ``(1, S, S)``, its labels.
            state: seeds; the first is the channel's own, the last that of all channels.
        """
        self.rest.set_random_state(state[0])
        if len(self.airs) > 1:
            for number, flip in enumerate(self.flips):
                flip.set_random_state(state[-1] + number)
        return self.rest({"image": part, "labels": marks})
