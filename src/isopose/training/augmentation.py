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

from isopose.data.samples import SliceBatch

BOTH = ("image", "labels")


class Augmentation:
    """Augment slices at random; each slice differently, reproducibly by seed.

    Args:
        air: value of air in the normalized images, which fills pixels outside a rotated slice.
        mirror: whether slices are mirrored, which swaps left and right: not for labels with sides.
    """

    def __init__(self, air: float, *, mirror: bool = True) -> None:
        self.air = air
        flips = [RandFlipd(BOTH, prob=0.5, spatial_axis=axis) for axis in (0, 1)] if mirror else []
        # nnU-Net's factor of 0.7 to 1.4 scales the sampled field; MONAI's scales the content, its inverse.
        smallest, largest = 1.0 / 1.4, 1.0 / 0.7
        modes = ("bilinear", "nearest")
        self.spatial = Compose(
            [
                RandRotated(BOTH, prob=0.2, range_x=math.pi, mode=modes, padding_mode="zeros"),
                RandZoomd(
                    BOTH, prob=0.2, min_zoom=smallest, max_zoom=largest, mode=modes, padding_mode="constant"
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
                *flips,
            ]
        )

    def __call__(
        self, batch: SliceBatch, seed: Sequence[int], places: Sequence[int] | None = None
    ) -> SliceBatch:
        """Return the batch with image and labels disturbed; the mask, which the U-Net does not see, stays.

        Args:
            batch: of slices ``(N, C, S, S)``, all C changed alike, and labels ``(N, S, S)``.
            seed: numbers that name the whole batch, of this epoch of this run.
            places: of these slices in the whole batch, of which a rank has a part; none: they are the whole.
        """
        places = range(len(batch.image)) if places is None else places
        images, labels = [], []
        for image, marks, place in zip(batch.image, batch.labels, places, strict=True):
            state = np.random.SeedSequence([*seed, place]).generate_state(2)
            self.spatial.set_random_state(int(state[0]))
            self.rest.set_random_state(int(state[1]))
            # MONAI fills with zeros, so air is shifted to zero for the transform.
            out = self.spatial({"image": image - self.air, "labels": marks[None].float()})
            out["image"] = out["image"] + self.air
            out = self.rest(out)
            # Convert MONAI's MetaTensors, which keep the history of transforms, to plain tensors.
            images.append(convert_to_tensor(out["image"]))
            labels.append(convert_to_tensor(out["labels"])[0].to(marks.dtype))
        return replace(batch, image=torch.stack(images), labels=torch.stack(labels))
