"""A modality that is set against what the dataset states is used, with a warning."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from patients import write_dataset
from segmenters import __file__ as SEGMENTER
from typer.testing import CliRunner

from isopose.cli import app
from isopose.io.images import read_volume

WARNING = (
    "dataset.json names the channel {name}, which means {stated}, but {setting} says {used}, which is used; "
    "leave {setting} out unless it is right"
)


@pytest.fixture
def dataset(tmp_path: Path):
    """A function that writes a dataset of one CT scan under the given channel name and returns its folder."""

    def named(channel: str) -> Path:
        data = write_dataset(tmp_path / channel, {"anna": "Tr"})
        content = json.loads((data / "dataset.json").read_text())
        (data / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": channel}}))
        return data

    return named


def output_of(*options) -> str:
    result = CliRunner().invoke(app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def commands(data: Path, out: Path, *options: str) -> dict[str, str]:
    command = ("--", sys.executable, SEGMENTER, "body", "{input}", "{output}")
    return {
        "check": output_of("check", data, *options),
        "homogenize": output_of("homogenize", data, out / "h", "--size", "96", *options),
        "wrap": output_of("wrap", data, "--output", out / "w", "--size", "96", *options, *command),
    }


def test_ct_against_a_dataset_of_mr(dataset, tmp_path: Path) -> None:
    expected = WARNING.format(name="MR", stated="MR", used="CT", setting="--modality")
    for name, text in commands(dataset("MR"), tmp_path / "set", "--modality", "ct").items():
        assert text.count(expected) == 1, (name, text)
    # It is used as it was set: these values are HU.
    image = "h/imagesTr/anna_0000.nii.gz"
    assert json.loads((tmp_path / "set" / "h" / "dataset.json").read_text())["channel_names"] == {"0": "CT"}
    for name, text in commands(dataset("CT"), tmp_path / "same", "--modality", "ct").items():
        assert "which is used" not in text, (name, text)
    first, second = (read_volume(tmp_path / folder / image).array for folder in ("set", "same"))
    np.testing.assert_array_equal(first, second)


def test_mr_against_a_dataset_of_ct(dataset, tmp_path: Path) -> None:
    expected = WARNING.format(name="CT", stated="CT", used="MR", setting="--modality")
    data = dataset("CT")
    assert output_of("homogenize", data, tmp_path / "h", "--modality", "mr").count(expected) == 1
    store = ("--store", tmp_path / "store")
    text = output_of("preprocess", data, *store, "--set", "data.modality=mr", "--set", "train.fold=all")
    assert text.count(expected.replace("--modality", "data.modality")) == 1


def test_scans_state_nothing(dataset, tmp_path: Path) -> None:
    assert "which is used" not in output_of(
        "homogenize", dataset("CT") / "imagesTr", tmp_path / "h", "--modality", "mr"
    )
