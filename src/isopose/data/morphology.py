"""Masks that grow and shrink by octagons, slice by slice, 64 voxels of a row in one number.

A step is a few operations on words in place of as many on bytes for each voxel. Masks are booleans
``(n, y, x)``; what lies beyond the image grows nothing, and takes nothing off, for there the body goes on.
"""

import numpy as np

_WORD = np.dtype("<u8")
_BITS = 64


def dilated(mask: np.ndarray, steps: int, *, within: np.ndarray | None = None) -> np.ndarray:
    """A mask grown so many steps, each of a voxel; geodesic if ``within`` is given."""
    words = _dilated(_packed(mask), steps, mask.shape[2], None if within is None else _packed(within))
    return _unpacked(words, mask.shape[2])


def eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask shrunk so many steps."""
    return ~dilated(~mask, steps)


def opened(mask: np.ndarray, steps: int) -> np.ndarray:
    """What is left of a mask where it is wider than so many steps, grown back by one more within it."""
    return dilated(eroded(mask, steps), steps + 1, within=mask)


def met(kept: np.ndarray, core: np.ndarray, body: np.ndarray, *, steps: int) -> np.ndarray:
    """``kept`` grown step by step against the other cores, so that both meet in the neck between them."""
    width = body.shape[2]
    grown, other, body = _packed(kept), _packed(core & ~kept), _packed(body)
    for step in range(steps):
        grown = _grown(grown, step, width) & body & ~other
        other = _grown(other, step, width) & body & ~grown
    return _unpacked(grown, width)


def _packed(mask: np.ndarray) -> np.ndarray:
    bits = np.packbits(mask, axis=2, bitorder="little")
    missing = -bits.shape[2] % _WORD.itemsize
    return np.pad(bits, ((0, 0), (0, 0), (0, missing))).view(_WORD)


def _unpacked(words: np.ndarray, width: int) -> np.ndarray:
    return np.unpackbits(words.view(np.uint8), axis=2, count=width, bitorder="little").view(bool)


def _dilated(words: np.ndarray, steps: int, width: int, within: np.ndarray | None) -> np.ndarray:
    for step in range(steps):
        words = _grown(words, step, width)
        if within is not None:
            words &= within
    return words


def _grown(words: np.ndarray, step: int, width: int) -> np.ndarray:
    """One step further: crosses and squares in turn, together an octagon."""
    rows = words.copy()
    rows[:, 1:] |= words[:, :-1]
    rows[:, :-1] |= words[:, 1:]
    source = rows if step % 2 else words
    grown = rows | (source << 1)
    grown |= source >> 1
    grown[:, :, 1:] |= source[:, :, :-1] >> (_BITS - 1)
    grown[:, :, :-1] |= source[:, :, 1:] << (_BITS - 1)
    if width % _BITS:
        # Beyond the image nothing grows.
        grown[:, :, -1] &= np.array((1 << width % _BITS) - 1, _WORD)
    return grown
