"""Benchmarks against nnU-Net v2, where it is installed (``make test-peers``), on their smallest size."""

import subprocess
import sys
from pathlib import Path

import pytest

from isopose.phantom import write_cohort
from isopose.study.nnunet import available
from scripts import ran

pytestmark = [
    pytest.mark.skipif(not available(), reason="nnunetv2 is not installed (extra: nnunet)"),
    pytest.mark.slow,
]

SETTINGS = (
    *("data.size=64", "unet.base_features=4", "unet.optimizer.epochs=2", "unet.optimizer.iterations=3"),
    *("unet.optimizer.batch_size=4", "crop.optimizer.epochs=1", "crop.optimizer.iterations=2"),
    *("train.folds=3", "train.device=cpu"),
)


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_predictions_of_both_sides_are_timed(tmp_path: Path) -> None:
    """Of a study's models, on its own test scans and on phantoms drawn for it."""
    write_cohort(tmp_path / "children", cases=6, slices=6, size=64, test_fraction=0.34)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "isopose", "study", tmp_path / "children"]
    command += ["--output", tmp_path / "study", "--arms", "crop-half,nnunet", "--presets", "default"]
    # Its STN2 is shortened as well, which a study refuses otherwise.
    command += ["--workers", "1", "--short-stns", *settings]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    arguments = ("--study", tmp_path / "study", "--output", tmp_path / "out", "--rounds", 1, "--scans", 1)
    output = ran("benchmarks/prediction.py", *arguments)
    assert output == (tmp_path / "out" / "prediction.md").read_text()
    _, *sides = rows_of(output)
    assert [side[0] for side in sides] == [
        "isopose", "isopose, 32 bits", "nnU-Net, plain", "nnU-Net, mirrored",
    ]  # fmt: skip
    # Seconds warm, times isopose, and a Dice of each: all were predicted.
    assert all(float(side[1]) > 0 and "kidney" in side[7] for side in sides)
    assert float(sides[0][2]) == 1.0
    output = ran("benchmarks/prediction.py", *arguments, "--sizes", 96, "--slices", 5)
    assert "1 scans of 96 x 96 x 5 voxels, medians of 1 rounds" in output


def test_training_steps_of_both_sides_are_timed(tmp_path: Path) -> None:
    small = ("--sizes", 64, "--batches", 4, "--cases", 7, "--slices", 6, "--rounds", 1)
    output = ran("benchmarks/training.py", "--output", tmp_path, *small)
    _, *arms = rows_of((tmp_path / "training.md").read_text())
    assert [arm[:3] for arm in arms] == [
        ["64", "4", "augmented"], ["64", "4", "pose"], ["64", "4", "crop-half"], ["64", "4", "nnunet"],
    ]  # fmt: skip
    assert arms[-1][5] == "1.000"
    assert all(line in output for line in (tmp_path / "training.md").read_text().splitlines())


def test_preprocessing_of_both_sides_is_timed(tmp_path: Path) -> None:
    small = ("--sizes", 64, "--cases", 3, "--slices", 5, "--processes", 1, "--rounds", 1)
    output = ran("benchmarks/preprocessing.py", "--output", tmp_path, *small)
    assert output == (tmp_path / "preprocessing.md").read_text()
    _, row = rows_of(output)
    assert row[0] == "64"
    assert all(float(seconds) > 0 for seconds in row[1:4])
