"""The shape of the U-Net, planned from the size of its input as the paper and nnU-Net do."""

from dataclasses import dataclass

from isopose.config import UNetConfig


@dataclass(frozen=True)
class UNetPlan:
    """Levels of a U-Net from the input (0) to the bottleneck (last).

    Args:
        sizes: pixels along a side at each level.
        features: channels at each level.
        skips: whether a level's decoder sees the encoder's features and gives a supervised output.
    """

    sizes: tuple[int, ...]
    features: tuple[int, ...]
    skips: tuple[bool, ...]

    @property
    def supervised(self) -> tuple[int, ...]:
        """Levels with an output, finest first: those with a skip connection (Eq. 3's n = 0 to N)."""
        return tuple(level for level, skip in enumerate(self.skips) if skip)


def plan_unet(size: int, levels: int, config: UNetConfig) -> UNetPlan:
    """Halve the input down to the bottleneck, double the features up to a cap.

    Args:
        size: pixels along a side of the input.
        levels: how often it is halved (``Config.unet_levels``).
        config: features and the level down to which skip connections go.
    """
    sizes = tuple(size >> level for level in range(levels + 1))
    features = tuple(min(config.base_features << level, config.max_features) for level in range(levels + 1))
    # The input's own level always has a skip: without one nothing would be supervised.
    skips = tuple(level == 0 or side >= config.smallest_skip for level, side in enumerate(sizes[:-1]))
    return UNetPlan(sizes, features, (*skips, False))
