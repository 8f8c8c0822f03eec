"""Morphology of masks with octagons, slice by slice, on words that hold 64 voxels of a row.

A step takes a few operations per word instead of per voxel. The position of a word in its row is the first
axis, so that an operation on the same word of all rows is one long loop. Masks are booleans ``(n, y, x)``.
Outside the image the body is assumed to continue: the image's border neither dilates nor erodes a mask.
"""

import numpy as np

_WORD = np.dtype("<u8")
_BITS = 64


def dilated(mask: np.ndarray, steps: int, *, within: np.ndarray | None = None) -> np.ndarray:
    """Dilate a mask ``(n, y, x)`` by ``steps`` voxels, geodesically inside ``within`` if that is given."""
    words, width = _packed(mask), mask.shape[2]
    allowed = None if within is None else _packed(within)
    for step in range(steps):
        words = _dilate_once(words, step, width)
        if allowed is not None:
            words &= allowed
    return _unpacked(words, width)


def eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode a mask ``(n, y, x)`` by ``steps`` voxels."""
    return ~dilated(~mask, steps)


def opened(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode a mask ``(n, y, x)`` by ``steps`` voxels, then dilate by ``steps + 1`` voxels within the mask."""
    return dilated(eroded(mask, steps), steps + 1, within=mask)


def grow_until_meeting(
    trunk_cores: np.ndarray, cores: np.ndarray, body: np.ndarray, *, steps: int
) -> np.ndarray:
    """Grow ``trunk_cores`` and the other cores within a body until they meet in the neck between them.

    Args:
        trunk_cores: ``(n, y, x)`` booleans, the cores of the trunk.
        cores: ``(n, y, x)`` booleans, all cores, also those of the arms.
        body: ``(n, y, x)`` booleans, the mask in which they grow.
        steps: number of dilations by one voxel.

    Returns:
        ``(n, y, x)`` booleans, the grown ``trunk_cores``.
    """
    width = body.shape[2]
    grown, others, body = _packed(trunk_cores), _packed(cores & ~trunk_cores), _packed(body)
    for step in range(steps):
        grown = _dilate_once(grown, step, width) & body & ~others
        others = _dilate_once(others, step, width) & body & ~grown
    return _unpacked(grown, width)


def _packed(mask: np.ndarray) -> np.ndarray:
    """Pack the voxels of rows into words ``(words of a row, n, y)``, the first voxel in the lowest bit."""
    bits = np.packbits(mask, axis=2, bitorder="little")
    missing = -bits.shape[2] % _WORD.itemsize
    words = np.pad(bits, ((0, 0), (0, 0), (0, missing))).view(_WORD)
    return np.ascontiguousarray(np.moveaxis(words, 2, 0))


def _unpacked(words: np.ndarray, width: int) -> np.ndarray:
    """Unpack words to rows of ``width`` voxels; the inverse of :func:`_packed`."""
    rows = np.ascontiguousarray(np.moveaxis(words, 0, 2))
    return np.unpackbits(rows.view(np.uint8), axis=2, count=width, bitorder="little").view(bool)


def _dilate_once(words: np.ndarray, step: int, width: int) -> np.ndarray:
    """Dilate by one voxel: a cross in even steps, a square in odd ones, which together give an octagon."""
    rows = words.copy()
    rows[:, :, 1:] |= words[:, :, :-1]
    rows[:, :, :-1] |= words[:, :, 1:]
    source = rows if step % 2 else words
    shifted = source << 1
    grown = rows | shifted
    grown |= np.right_shift(source, 1, out=shifted)
    grown[1:] |= np.right_shift(source[:-1], _BITS - 1, out=shifted[1:])
    grown[:-1] |= np.left_shift(source[1:], _BITS - 1, out=shifted[1:])
    if width % _BITS:
        # Clear the bits beyond the image.
        grown[-1] &= np.array((1 << width % _BITS) - 1, _WORD)
    return grown
