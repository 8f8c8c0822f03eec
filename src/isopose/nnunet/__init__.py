"""Inside nnU-Net v2: pose and size normalized within its own training and prediction."""

from pathlib import Path


def trainers_folder() -> Path:
    """The folder that ``nnUNet_extTrainer`` has to name, so that nnU-Net finds ``nnUNetTrainerIsopose``."""
    return Path(__file__).parent / "trainers"
