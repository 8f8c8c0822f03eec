"""The shape of the U-Net, planned from the size of its input as the paper and nnU-Net do."""

from dataclasses import dataclass

from isopose.config import UNetConfig

#: Fewest voxels along z at the bottom.
LEAST_DEPTH = 4


@dataclass(frozen=True)
class UNetPlan:
    """Levels of a U-Net from the input (0) to the bottleneck (last).

    Args:
        sizes: pixels along a side at each level.
        features: channels at each level.
        skips: whether a level's decoder sees the encoder's features and gives a supervised output.
        depths: voxels along z at each level of a network for volumes; none for slices.
    """

    sizes: tuple[int, ...]
    features: tuple[int, ...]
    skips: tuple[bool, ...]
    depths: tuple[int, ...] = ()

    def strides(self, level: int) -> tuple[int, ...]:
        """By how much each axis, in the order of tensors, shrinks from a level to the next."""
        plane = (self.sizes[level] // self.sizes[level + 1],) * 2
        return (self.depths[level] // self.depths[level + 1], *plane) if self.depths else plane

    @property
    def supervised(self) -> tuple[int, ...]:
        """Levels with an output, finest first: those with a skip connection (Eq. 3's n = 0 to N)."""
        return tuple(level for level, skip in enumerate(self.skips) if skip)


def plan_unet(size: int, levels: int, config: UNetConfig, *, dims: int = 2) -> UNetPlan:
    """Halve the input down to the bottleneck, double the features up to a cap.

    Volumes have fewer and longer voxels along z, which are halved only from the level on where they are at
    least half as many as those along a side, down to :data:`LEAST_DEPTH`: so voxels come near to cubes, as
    nnU-Net has it.

    Args:
        size: pixels along a side of the input.
        levels: how often it is halved (``Config.unet_levels``).
        config: features, the level down to which skip connections go, and a volume's voxels along z.
        dims: 3 for volumes.
    """
    sizes = tuple(size >> level for level in range(levels + 1))
    features = tuple(min(config.base_features << level, config.max_features) for level in range(levels + 1))
    # The input's own level always has a skip: without one nothing would be supervised.
    skips = tuple(level == 0 or side >= config.smallest_skip for level, side in enumerate(sizes[:-1]))
    return UNetPlan(sizes, features, (*skips, False), _depths(sizes, config.depth) if dims == 3 else ())


def _depths(sizes: tuple[int, ...], depth: int) -> tuple[int, ...]:
    depths = [depth]
    for side in sizes[:-1]:
        halve = 2 * depths[-1] >= side and depths[-1] >= 2 * LEAST_DEPTH
        depths.append(depths[-1] // 2 if halve else depths[-1])
    return tuple(depths)
