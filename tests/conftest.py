"""Models without training: the U-Net is replaced by one that marks what is bright, so that truth is known."""

from pathlib import Path

import pytest

REAL = Path(__file__).parents[2] / "shared" / "data" / "real-ct"


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """Folder of the real scans."""
    if not REAL.is_dir():
        pytest.skip(f"no real scans: {REAL} is absent")
    return REAL


@pytest.fixture(scope="session")
def make_model():
    """Build a model that marks what is brighter than 145 HU as kidney (1), than 325 HU as tumour (7)."""
    from bright import bright_model

    return bright_model
