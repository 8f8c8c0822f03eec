"""Predictions are matched to cases if one name is stored as NFC and the other as NFD."""

import shutil
import unicodedata

import pytest
from patients import write_dataset

from isopose.files import composed
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.restore import restore
from isopose.presets import homogenize_config
from isopose.progress import Silent

NFC, NFD = (unicodedata.normalize(form, "Käthe_Ñ") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("stored", [NFC, NFD])
def test_homogenized_cases_are_restored_under_their_names(tmp_path, stored):
    source = write_dataset(tmp_path / "source", {stored: "Tr"})
    (outcome,) = homogenize(
        open_input(source), tmp_path / "same", homogenize_config(size=64), reporter=Silent()
    )
    assert (outcome.name, outcome.problem) == (NFC, None)
    (tmp_path / "found").mkdir()
    (homogenized,) = (tmp_path / "same" / "labelsTr").iterdir()
    shutil.copy(homogenized, tmp_path / "found" / f"{NFD}.nii.gz")
    # As an archive of macOS gives a record back.
    (record,) = (path for path in (tmp_path / "same").rglob(f"{NFC}.json"))
    for name in (record.name, f"{NFD}.json"):
        record = record.rename(record.with_name(name))
        (restored,) = restore(tmp_path / "found", tmp_path / "same", tmp_path / name, reporter=Silent())
        assert restored.problem is None
        assert composed(restored.name) == NFC
