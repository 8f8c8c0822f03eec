import zipfile

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from io_helpers import raw_slices, write_series
from isopose.errors import InputError
from isopose.io.archive import unpacked
from isopose.io.images import peek, read_volume


def packed(folder, path, prefix="Scan/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(folder.iterdir()):
            made.write(file, prefix + file.name)
    return path


def test_an_archive_holds_the_series_that_its_folder_holds(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices())
    path = packed(folder, tmp_path / "series.ZIP")
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)
    np.testing.assert_array_equal(peek(path).world_from_index, peek(folder).world_from_index)
    # Nothing of it stays.
    with unpacked(path) as place:
        assert len([file for file in place.rglob("*") if file.is_file()]) == 5
    assert not place.exists()


def test_several_series_are_asked_for_by_number(tmp_path):
    write_series(tmp_path / "s", raw_slices(), series="1.2.5", SeriesNumber=3)
    for file in list((tmp_path / "s").iterdir()):
        file.rename(file.with_stem(f"other{file.stem}"))
    write_series(tmp_path / "s", raw_slices(seed=4), series="1.2.6", SeriesNumber=12)
    path = packed(tmp_path / "s", tmp_path / "two.zip")
    with pytest.raises(InputError, match=r"two\.zip: expected one image series, got 2: .*--series"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, "12").array, raw_slices(seed=4).astype(int) - 1024)


def test_names_that_lead_out_of_the_archive_lead_nowhere(tmp_path):
    folder = write_series(tmp_path / "in" / "series", raw_slices())
    path = packed(folder, tmp_path / "in" / "evil.zip", prefix="../../../")
    assert read_volume(path).array.shape == (5, 6, 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("spoil", ["cut", "flipped", "empty", "text"])
def test_damaged_archives_are_refused_in_one_line(tmp_path, spoil):
    path = packed(write_series(tmp_path / "series", raw_slices()), tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    if spoil == "cut":
        data = data[: len(data) // 2]
    elif spoil == "flipped":
        data[200:260] = bytes(60)
    elif spoil == "empty":
        data = bytearray(b"PK\x05\x06" + bytes(18))
    else:
        data = bytearray(b"not an archive")
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "isopose-" not in str(caught.value)


def test_too_large_is_told_before_anything_is_written(tmp_path, monkeypatch):
    path = packed(write_series(tmp_path / "series", raw_slices()), tmp_path / "a.zip")
    monkeypatch.setenv("ISOPOSE_MAX_GB", "1e-6")
    with pytest.raises(InputError, match="unpacks to"):
        read_volume(path)


def test_a_member_larger_than_it_says_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.dcm", bytes(4_000_000))
    data = path.read_bytes()
    real, told = (4_000_000).to_bytes(4, "little"), (4_000).to_bytes(4, "little")
    path.write_bytes(data.replace(real, told))
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_volume(path)


def test_a_dicomdir_gives_the_files_that_it_lists(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices(), FrameOfReferenceUID="1.2.8")
    made = FileSet()
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200101", "120000", "1", ""
        data.InstanceNumber = 1
        made.add(data)
    made.write(tmp_path / "medium")
    # A file beside them that the medium does not list.
    write_series(tmp_path / "medium" / "other", raw_slices(seed=3), series="1.2.77")
    volume = read_volume(tmp_path / "medium" / "DICOMDIR")
    np.testing.assert_array_equal(volume.array, raw_slices().astype(int) - 1024)
    next(p for p in (tmp_path / "medium").rglob("*") if p.is_file() and p.name.startswith("IM")).unlink()
    with pytest.raises(InputError, match="lists 5 files, 1 of which are not there"):
        read_volume(tmp_path / "medium" / "DICOMDIR")
    damaged = tmp_path / "damaged" / "DICOMDIR"
    damaged.parent.mkdir()
    whole = (tmp_path / "medium" / "DICOMDIR").read_bytes()
    damaged.write_bytes(whole[:700])
    with pytest.raises(InputError, match="DICOMDIR"):
        read_volume(damaged)
    damaged.write_bytes(whole.replace(b"IM000000", b"..      ").replace(b"IM000001", b"../ABCDE"))
    with pytest.raises(InputError, match="not below it"):
        read_volume(damaged)
