"""Which device a computation runs on, and on how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isopose.errors import InputError


def choose_device(name: str) -> torch.device:
    """The named device, or with ``auto`` a GPU where there is one.

    Raises:
        InputError: the device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, False):
        usable = ", ".join(key for key, there in available.items() if there)
        raise InputError(f"device {name!r} is not there; expected auto or one of {usable}")
    return torch.device(name)


def fast_bfloat16(device: str) -> bool:
    """Whether a type of device computes in bfloat16 itself, not emulated: then mixed precision is that."""
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread, as before afterwards: a sum must not depend on how it was split."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
