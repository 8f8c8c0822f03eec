"""A smooth image, on which interpolation methods agree."""

import numpy as np
import torch
from scipy import ndimage


def smooth_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(height, width))
    return torch.from_numpy(ndimage.gaussian_filter(noise, 2.0) * 10).float()[None, None]
