"""Homogenize pose and size inside nnU-Net v2's training and prediction."""

from pathlib import Path


def trainers_folder() -> Path:
    """Return the folder for ``nnUNet_extTrainer``, in which nnU-Net finds ``nnUNetTrainerIsopose``."""
    return Path(__file__).parent / "trainers"
