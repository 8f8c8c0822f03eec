"""Writing weights: whole or absent, and a full disk in one line."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from isopose.errors import IsoposeError
from isopose.files import replacing


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file at once or not at all.

    Args:
        path: of the file.
        tensors: on the CPU and contiguous, by name.
        metadata: texts that are kept in the file's header.

    Raises:
        IsoposeError: the file cannot be written, most often because the disk is full.
    """
    try:
        with replacing(path) as temporary:
            # Safetensors' own files are for their owner's eyes only, and colleagues could not use a model.
            temporary.touch()
            usual = temporary.stat().st_mode
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(usual)
    except SafetensorError as error:  # in place of the OSError that one would expect
        raise IsoposeError(f"{path}: cannot be written ({error}); free some space, then resume") from None
