"""Plan the U-Net's levels from the size of its input, as the paper and nnU-Net do."""

from dataclasses import dataclass

from isopose.settings import UNetConfig

#: Fewest voxels along z at the bottleneck.
MIN_DEPTH = 4


@dataclass(frozen=True)
class UNetPlan:
    """Levels of a U-Net from the input (0) to the bottleneck (last).

    Args:
        sizes: pixels along a side at each level.
        features: channels at each level.
        skips: whether a level has a skip connection, and with it a supervised output.
        depths: voxels along z at each level; empty for slices.
        channels: of the input: those of the scan, each of a slice and its neighbors.
    """

    sizes: tuple[int, ...]
    features: tuple[int, ...]
    skips: tuple[bool, ...]
    depths: tuple[int, ...] = ()
    channels: int = 1

    def strides(self, level: int) -> tuple[int, ...]:
        """Return the stride of each axis, in tensor order, from a level to the next coarser one."""
        plane = (self.sizes[level] // self.sizes[level + 1],) * 2
        return (self.depths[level] // self.depths[level + 1], *plane) if self.depths else plane

    @property
    def supervised(self) -> tuple[int, ...]:
        """Levels with an output, finest first: those with a skip connection (n = 0 to N in Eq. 3)."""
        return tuple(level for level, skip in enumerate(self.skips) if skip)


def plan_unet(size: int, levels: int, config: UNetConfig, *, dims: int = 2, channels: int = 1) -> UNetPlan:
    """Plan a U-Net that halves its input at each level and doubles the features up to a cap.

    Volumes have fewer and longer voxels along z. The depth is halved only at levels where it is at least half
    the side, and not below :data:`MIN_DEPTH`: voxels become nearly cubic, as in nnU-Net.

    Args:
        size: pixels along a side of the input.
        levels: number of halvings (``Config.unet_levels``).
        config: features, the smallest size with a skip connection, the neighbors of a slice, and for volumes
            the depth.
        dims: 3 for volumes.
        channels: of the scans.
    """
    sizes = tuple(size >> level for level in range(levels + 1))
    features = tuple(min(config.base_features << level, config.max_features) for level in range(levels + 1))
    # The finest level always has a skip connection: otherwise no level would be supervised.
    skips = tuple(level == 0 or side >= config.smallest_skip for level, side in enumerate(sizes[:-1]))
    depths = _depths(sizes, config.depth) if dims == 3 else ()
    return UNetPlan(sizes, features, (*skips, False), depths, channels * (2 * config.context + 1))


def _depths(sizes: tuple[int, ...], depth: int) -> tuple[int, ...]:
    depths = [depth]
    for side in sizes[:-1]:
        halve = 2 * depths[-1] >= side and depths[-1] >= 2 * MIN_DEPTH
        depths.append(depths[-1] // 2 if halve else depths[-1])
    return tuple(depths)
