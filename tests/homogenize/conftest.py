"""Three phantom patients as a dataset, and homogenized."""

from pathlib import Path

import pytest
from homogenized_datasets import run
from patients import write_dataset

from isopose.homogenize import case as module


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source") / "Dataset007_Phantoms"
    return write_dataset(root, {"anna": "Tr", "bert": "Tr", "cleo": "Ts"})


@pytest.fixture(scope="session")
def homogenized(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("done") / "Dataset008_Upright"
    outcomes = run(source, output)
    assert [outcome.problem for outcome in outcomes] == [None] * 3
    return output


@pytest.fixture
def counted(monkeypatch):
    """How many scans were homogenized."""
    calls = []
    work = module.homogenize_scan
    monkeypatch.setattr(module, "homogenize_scan", lambda *a: calls.append(1) or work(*a))
    return calls
