"""Write weights as safetensors files, atomically."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from isopose.errors import IsoposeError
from isopose.files import replacing


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically: complete or not at all.

    Args:
        path: of the file.
        tensors: on the CPU and contiguous, by name.
        metadata: strings for the file's header.

    Raises:
        IsoposeError: the file cannot be written, most often because the disk is full.
    """
    try:
        with replacing(path) as temporary:
            # Safetensors makes files that only their owner can read; restore the mode that the umask gives.
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(mode)
    except SafetensorError as error:  # raised instead of OSError
        raise IsoposeError(f"{path}: cannot be written ({error}); free some space, then resume") from None
