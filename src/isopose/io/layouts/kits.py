"""KiTS19, KiTS21 and KiTS23: one folder per case."""

import re
from pathlib import Path

from isopose.errors import InputError
from isopose.files import read_json
from isopose.io.cases import Case, Dataset, dataset_of
from isopose.labels import Labels

#: Where the published repositories keep their cases, below their root.
_INNER = ("", "data", "dataset", "kits21/data")
#: What KiTS21 and KiTS23 have beside the images and KiTS19 has not. (``kits.json`` is in KiTS19 as well.)
_LATER = ("aggregated_MAJ_seg.nii.gz", "instances", "segmentations")
_JSON = ("kits.json", "kits21.json", "kits23.json")
#: KiTS19 published cases 210 to 299 without labels.
_FIRST_TEST = 210
_OLDEST = 120


def kits_folder(root: Path) -> Path | None:
    """The folder that holds ``case_*`` folders of a KiTS dataset: the root or where the challenge has it."""
    for inner in _INNER:
        if any((root / inner).glob("case_*/imaging.nii.gz")) or any(
            (root / inner).glob("case_*/*seg*.nii.gz")
        ):
            return root / inner
    return None


def open_kits(root: Path, labels: Labels | None) -> Dataset:
    """List a KiTS dataset.

    KiTS19 has kidney 1 and tumor 2; KiTS21 and KiTS23 add cyst 3 (of KiTS21 the majority vote is taken) and
    score kidney with both masses, and both masses together. Ages come from the ``kits.json`` if it is there.

    Args:
        root: folder of the ``case_*`` folders.
        labels: in place of the challenge's.

    Raises:
        InputError: a ``kits.json`` that is not one, or no case.
    """
    folders = sorted(p for p in root.glob("case_*") if p.is_dir())
    later = (root / "kits23.json").exists() or any((f / n).exists() for f in folders for n in _LATER)
    ages = _ages(root)
    cases = []
    for folder in folders:
        label: Path | None = folder / "segmentation.nii.gz"
        majority = folder / "aggregated_MAJ_seg.nii.gz"
        if majority.exists():
            label = majority
        number = re.fullmatch(r"case_(\d+)", folder.name)
        held_out = number is not None and int(number[1]) >= _FIRST_TEST and not later
        split = None
        if held_out and label is not None and not label.exists():
            label, split = None, "test"
        image = folder / "imaging.nii.gz"
        cases.append(Case(folder.name, image, label, folder.name, ages.get(folder.name), split))
    return dataset_of(root.name, "kits21" if later else "kits19", root, labels or _labels(later), cases)


def _labels(later: bool) -> Labels:
    if not later:
        return Labels.create({"kidney": 1, "tumor": 2})
    return Labels.create(
        {"kidney": 1, "tumor": 2, "cyst": 3},
        {"kidney+tumor+cyst": ("kidney", "tumor", "cyst"), "tumor+cyst": ("tumor", "cyst")},
    )


def _ages(root: Path) -> dict[str, float]:
    where = next((root / name for name in _JSON if (root / name).exists()), None)
    if where is None:
        return {}
    records = read_json(where)
    if not isinstance(records, list) or not all(isinstance(r, dict) and "case_id" in r for r in records):
        raise InputError(f"{where}: expected KiTS's list of patients, each with a 'case_id'")
    told = {str(r["case_id"]): r.get("age_at_nephrectomy") for r in records}
    return {
        case: float(age)
        for case, age in told.items()
        if isinstance(age, int | float) and not isinstance(age, bool) and 0 <= age <= _OLDEST
    }
