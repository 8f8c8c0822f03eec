"""Which device a computation runs on, and on how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from isopose.errors import InputError


def choose_device(name: str) -> torch.device:
    """Return the named device, or with ``auto`` a CUDA GPU where there is one and otherwise the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, a GPU by its number (``cuda:1``) or ``mps``.

    Raises:
        InputError: the device is unknown or not available.
    """
    available = available_devices()
    if name == "auto":
        name = "cuda" if "cuda" in available else "cpu"
    if name not in available:
        raise InputError(f"device {name!r} is not available; expected auto or one of {', '.join(available)}")
    return torch.device(name)


def available_devices() -> list[str]:
    """Return the names of the devices of this machine; GPUs also by their numbers."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def fast_bfloat16(device: str) -> bool:
    """Return True if a device type has bfloat16 in hardware; others emulate it, slower than float32."""
    if device == "cpu":
        # PyTorch has no public function for it. A version without these private ones counts as slow.
        checks = (getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile"))
        return any(bool(supported()) for supported in checks if supported is not None)
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_precision(name: str, device: str) -> str:
    """Return the named precision, or with ``auto`` the fastest one of a device type.

    Args:
        name: ``auto``, ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        device: device type, for example ``cuda``.
    """
    if name != "auto":
        return name
    if fast_bfloat16(device):
        return "bf16-mixed"
    return "16-mixed" if device == "cuda" else "32-true"


def autocast(precision: str, device: str) -> torch.autocast:
    """Return the autocast context of a precision."""
    # A CPU has no fast float16.
    low = torch.float16 if precision == "16-mixed" and device != "cpu" else torch.bfloat16
    return torch.autocast(device, dtype=low, enabled=precision != "32-true")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread within the context: sums must not depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
