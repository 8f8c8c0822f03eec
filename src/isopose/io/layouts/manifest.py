"""Open a CSV manifest: one line per scan, for data in no other layout."""

from pathlib import Path

from isopose.errors import InputError
from isopose.files import as_stored
from isopose.io.cases import SPLITS, Case, Dataset, dataset_of
from isopose.io.endings import stem
from isopose.io.layouts.table import parse_age, read_table
from isopose.labels import Labels


def open_manifest(path: Path, labels: Labels | None) -> Dataset:
    """List the cases of a CSV manifest.

    Required columns: ``image`` (file, or folder of a DICOM series) and ``label`` (may be empty). Optional
    columns: ``case`` (default: the image's name), ``patient`` (default: the case), ``age`` in years,
    ``split`` (train, val, test or empty). Relative paths start at the manifest's folder.

    Args:
        path: the ``.csv`` file.
        labels: label names and values, by default kidney 1 and tumor 2.

    Raises:
        InputError: the table is invalid; the message names the line.
    """
    cases = []
    for line, row in read_table(path, ("image", "label"), ("case", "patient", "age", "split")):
        if not row["image"]:
            raise InputError(f"{path}: line {line} has no image; remove the line or fill it in")
        image = as_stored(path.parent / row["image"])
        name = row["case"] or stem(image)
        split = row["split"].lower() or None
        if split not in (None, *SPLITS):
            raise InputError(
                f"{path}: line {line} has split {row['split']!r}, expected {', '.join(SPLITS)} or none"
            )
        label = as_stored(path.parent / row["label"]) if row["label"] else None
        age = parse_age(path, line, row["age"])
        cases.append(Case(name, image, label, row["patient"] or name, age, split))
    dataset_labels = labels or Labels.create({"kidney": 1, "tumor": 2})
    return dataset_of(path.stem, "manifest", path.parent, dataset_labels, cases)
