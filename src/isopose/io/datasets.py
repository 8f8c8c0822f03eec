"""Datasets on disk as one list of cases: nnU-Net v2 raw, KiTS, Decathlon, CSV manifest."""

from dataclasses import dataclass
from pathlib import Path

from isopose.labels import Labels


@dataclass(frozen=True)
class Case:
    """One scan of one patient, not yet read."""

    id: str
    image: Path
    label: Path | None
    patient: str
    age_years: float | None = None
    split: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A named list of cases that share their labels."""

    name: str
    layout: str
    root: Path
    labels: Labels
    cases: tuple[Case, ...]
