"""Weights on disk."""

import os
import stat
from pathlib import Path

import pytest
import torch

from isopose.tensors import write_tensors


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weight_files_have_default_permissions(tmp_path: Path, mask: int) -> None:
    """They were once readable by their owner alone, so a container's user could not load the model."""
    before = os.umask(mask)
    try:
        (tmp_path / "other").touch()
        write_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "weights.safetensors")]
    assert modes[0] == modes[1] == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()].count("weights.safetensors") == 1
