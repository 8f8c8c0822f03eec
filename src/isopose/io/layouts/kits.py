"""Open KiTS19, KiTS21 and KiTS23 datasets (one folder per case)."""

import re
from pathlib import Path

from isopose.errors import InputError
from isopose.files import read_json
from isopose.io.cases import Case, Dataset, dataset_of
from isopose.io.layouts.table import MAX_AGE_YEARS
from isopose.labels import Labels

#: Folders of the cases in the published repositories, relative to their root.
_CASE_PARENTS = ("", "data", "dataset", "kits21/data")
#: Files that exist in KiTS21 and KiTS23 but not in KiTS19. (``kits.json`` is in KiTS19 as well.)
_KITS21_FILES = ("aggregated_MAJ_seg.nii.gz", "instances", "segmentations")
_JSON_NAMES = ("kits.json", "kits21.json", "kits23.json")
#: KiTS19 published cases 210 to 299 without labels.
_FIRST_TEST_CASE = 210


def kits_folder(root: Path) -> Path | None:
    """Return the folder of a KiTS dataset that holds the ``case_*`` folders; None if there is none."""
    for folder in (root / inner for inner in _CASE_PARENTS):
        if any(folder.glob("case_*/imaging.nii.gz")) or any(folder.glob("case_*/*seg*.nii.gz")):
            return folder
    return None


def open_kits(root: Path, labels: Labels | None) -> Dataset:
    """List the cases of a KiTS dataset.

    KiTS19 has the labels kidney 1 and tumor 2. KiTS21 and KiTS23 add cyst 3 (KiTS21: majority vote) and score
    the unions kidney+tumor+cyst and tumor+cyst. Ages come from ``kits.json``, if present.

    Args:
        root: folder of the ``case_*`` folders.
        labels: replaces the challenge's labels.

    Raises:
        InputError: an invalid ``kits.json``, or no case.
    """
    folders = sorted(p for p in root.glob("case_*") if p.is_dir())
    has_cysts = (root / "kits23.json").exists() or any(
        (f / n).exists() for f in folders for n in _KITS21_FILES
    )
    ages = _ages(root)
    cases = []
    for folder in folders:
        majority = folder / "aggregated_MAJ_seg.nii.gz"
        label = majority if majority.exists() else folder / "segmentation.nii.gz"
        number = re.fullmatch(r"case_(\d+)", folder.name)
        is_unlabeled_test = (
            number is not None and int(number[1]) >= _FIRST_TEST_CASE and not has_cysts and not label.exists()
        )
        label_path, split = (None, "test") if is_unlabeled_test else (label, None)
        image = folder / "imaging.nii.gz"
        cases.append(Case(folder.name, image, label_path, folder.name, ages.get(folder.name), split))
    return dataset_of(
        root.name, "kits21" if has_cysts else "kits19", root, labels or _labels(has_cysts), cases
    )


def _labels(later: bool) -> Labels:
    if not later:
        return Labels.create({"kidney": 1, "tumor": 2})
    return Labels.create(
        {"kidney": 1, "tumor": 2, "cyst": 3},
        {"kidney+tumor+cyst": ("kidney", "tumor", "cyst"), "tumor+cyst": ("tumor", "cyst")},
    )


def _ages(root: Path) -> dict[str, float]:
    where = next((root / name for name in _JSON_NAMES if (root / name).exists()), None)
    if where is None:
        return {}
    records = read_json(where)
    if not isinstance(records, list) or not all(isinstance(r, dict) and "case_id" in r for r in records):
        raise InputError(f"{where}: expected KiTS's list of patients, each with a 'case_id'")
    listed = {str(r["case_id"]): r.get("age_at_nephrectomy") for r in records}
    return {
        case: float(age)
        for case, age in listed.items()
        if isinstance(age, int | float) and not isinstance(age, bool) and 0 <= age <= MAX_AGE_YEARS
    }
