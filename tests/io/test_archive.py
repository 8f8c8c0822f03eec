import stat
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from io_helpers import raw_slices, write_series
from isopose.errors import InputError
from isopose.io.archive import unpacked
from isopose.io.images import read_volume


def packed(folder, path, prefix="Scan/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


def write_medium(series: Path, medium: Path) -> None:
    """Write the files of a series with a DICOMDIR that lists them, as on a CD."""
    file_set = FileSet()
    for file in series.iterdir():
        data = pydicom.dcmread(file)
        data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200101", "120000", "1", ""
        data.InstanceNumber = 1
        file_set.add(data)
    file_set.write(medium)


def test_an_archive_is_read_like_its_folder(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices())
    path = packed(folder, tmp_path / "series.ZIP")
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)
    np.testing.assert_array_equal(read_volume(path).world_from_index, read_volume(folder).world_from_index)
    # Nothing of it stays.
    with unpacked(path) as unpacked_folder:
        assert len([file for file in unpacked_folder.rglob("*") if file.is_file()]) == 5
    assert not unpacked_folder.exists()


def test_one_of_several_series_is_selected_by_number(tmp_path):
    write_series(tmp_path / "s", raw_slices(), series="1.2.5", SeriesNumber=3)
    for file in list((tmp_path / "s").iterdir()):
        file.rename(file.with_stem(f"other{file.stem}"))
    write_series(tmp_path / "s", raw_slices(seed=4), series="1.2.6", SeriesNumber=12)
    path = packed(tmp_path / "s", tmp_path / "two.zip")
    with pytest.raises(InputError, match=r"two\.zip: expected one image series, got 2: .*--series"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, "12").array, raw_slices(seed=4).astype(int) - 1024)


def test_member_names_cannot_point_outside_the_archive(tmp_path):
    folder = write_series(tmp_path / "in" / "series", raw_slices())
    path = packed(folder, tmp_path / "in" / "evil.zip", prefix="../../../")
    assert read_volume(path).array.shape == (5, 6, 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("name", ["series/101", "latest"])
def test_links_in_an_archive_are_not_followed(tmp_path, name):
    folder = write_series(tmp_path / "series", raw_slices())
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(""))
    path = packed(folder, tmp_path / "a.zip", prefix="series/")
    link = zipfile.ZipInfo(name)
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    if name == "latest":
        np.testing.assert_array_equal(read_volume(path).array, raw_slices().astype(int) - 1024)
    else:
        with pytest.raises(
            InputError,
            match=r"5 images, but broken links, pipes or devices lie beside them \(1, e\.g\. 101\)",
        ):
            read_volume(path)


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
    with pytest.raises(InputError) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "isopose-" not in str(error.value)


def test_a_too_large_archive_is_refused_before_writing(tmp_path, monkeypatch):
    path = packed(write_series(tmp_path / "series", raw_slices()), tmp_path / "a.zip")
    monkeypatch.setenv("ISOPOSE_MAX_GB", "1e-6")
    with pytest.raises(InputError, match="unpacks to"):
        read_volume(path)


def test_a_member_larger_than_declared_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(4_000_000))
    data = path.read_bytes()
    real, false = (4_000_000).to_bytes(4, "little"), (4_000).to_bytes(4, "little")
    path.write_bytes(data.replace(real, false))
    with pytest.raises(InputError, match="cannot be unpacked"):
        read_volume(path)


def test_a_dicomdir_gives_its_listed_files(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices(), FrameOfReferenceUID="1.2.8")
    write_medium(folder, tmp_path / "medium")
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


JUNK = bytes.fromhex("0005160700020000") + b"Mac OS X        \0\2" + bytes(160)


def added_by_systems(path, names):
    """Add the files that macOS and Windows add to archives."""
    with zipfile.ZipFile(path, "a") as archive:
        for name in names:
            folder, _, last = name.rpartition("/")
            archive.writestr(f"__MACOSX/{folder}/._{last}", JUNK)
            archive.writestr(f"{folder}/._{last}", JUNK)
        for name in (".DS_Store", "Scan/.DS_Store", "Scan/Thumbs.db", "Scan/desktop.ini", "Scan/.x/000.dcm"):
            archive.writestr(name, b"no DICOM")
    return path


def test_files_added_by_operating_systems_are_ignored(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices())
    path = packed(folder, tmp_path / "finder.zip")
    added_by_systems(path, [f"Scan/{file.name}" for file in folder.iterdir()])
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, read_volume(folder).array)
    np.testing.assert_array_equal(volume.world_from_index, read_volume(folder).world_from_index)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    np.testing.assert_array_equal(read_volume(tmp_path / "unpacked").array, volume.array)
    np.testing.assert_array_equal(read_volume(tmp_path / "unpacked" / "Scan").array, volume.array)


@pytest.mark.parametrize(
    "name",
    [
        *("{}", "a/b/c/{}", "scan\\{}", "C:\\scan\\{}", "Größe/Ärzte/{}", "扫描/{}", "a:b/{}", "~1/{}"),
        *("/abs/{}", "./{}", "a//{}", "x" * 120 + "/{}", "y" * 300 + "/{}", "z/" * 450 + "{}"),
    ],
)
def test_members_in_folders_are_read_and_named(tmp_path, name):
    folder = write_series(tmp_path / "series", raw_slices())
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, name.format(file.name))
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            cut = file.read_bytes()[:900] if file.name == "003.dcm" else file.read_bytes()
            archive.writestr(name.format(file.name), cut)
    with zipfile.ZipFile(path) as archive:
        (as_archived,) = [member for member in archive.namelist() if member.endswith("003.dcm")]
    with pytest.raises(InputError) as error:
        read_volume(path)
    # Long messages are shortened in the middle.
    assert str(error.value)[:400].startswith(f"{path}: {as_archived}: "[:400])
    assert "isopose-" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["IM.dcm", "scan/IM.dcm", "scan\\IM.dcm"])
def test_members_with_the_same_name_are_all_read(tmp_path, name):
    folder = write_series(tmp_path / "series", raw_slices())
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, name)
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)


def test_a_member_and_a_folder_with_the_same_name_are_both_read(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices())
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(folder.iterdir()):
            archive.write(file, "a" + "/a" * (number + 1))
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)


def test_a_name_with_line_breaks_is_reported_in_one_line(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices())
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for number, file in enumerate(sorted(folder.iterdir())):
            archive.writestr(f"a\n\x1b[31m{number}.dcm", file.read_bytes()[:900])
    with pytest.raises(InputError) as error:
        read_volume(tmp_path / "scan.zip")
    assert str(error.value).isprintable()
    assert r"a \x1b[31m0.dcm" in str(error.value)


@pytest.mark.parametrize("name", ["scan/ct.nii.gz", "ct.nrrd", "inner.zip", "scan/inner.ZIP"])
def test_archives_without_scans_are_refused_with_their_contents(tmp_path, name):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"something")
        archive.writestr("__MACOSX/._x", JUNK)
        archive.writestr("notes.txt", b"hello")
    kind = "another archive" if name.lower().endswith("zip") else "a volume"
    with pytest.raises(InputError) as error:
        read_volume(path)
    assert (
        str(error.value) == f"{path}: expected a DICOM series, found {kind} ({name}); unpack it and give that"
    )


def test_a_volume_and_an_archive_beside_an_archived_series(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices())
    path = packed(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("backup.zip", b"something")
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)
    path = packed(folder, tmp_path / "b.zip", prefix="")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("mask.nii.gz", b"something")
    with pytest.raises(InputError, match=r"b\.zip: holds both DICOM slices and mask\.nii\.gz"):
        read_volume(path)


def test_an_archived_medium_with_a_dicomdir(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices(), FrameOfReferenceUID="1.2.8")
    write_medium(folder, tmp_path / "medium")
    path = tmp_path / "medium.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "medium").rglob("*")):
            archive.write(file, f"CD/{file.relative_to(tmp_path / 'medium')}")
    np.testing.assert_array_equal(read_volume(path).array, read_volume(folder).array)


def test_a_gap_in_an_archived_series_names_no_temporary_folder(tmp_path):
    folder = write_series(tmp_path / "series", raw_slices(8), skip=(3,))
    path = packed(folder, tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"a\.zip: series 4: slices are missing"):
        read_volume(path)


def with_flags(content, flags):
    """Set the flags of all members, in the central directory and in the local headers."""
    for sign, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = -1
        while (at := content.find(sign, at + 1)) >= 0:
            content[at + offset] |= flags
    return content


def test_an_encrypted_archive_is_refused_without_the_name_of_a_member(tmp_path):
    path = packed(write_series(tmp_path / "s", raw_slices()), tmp_path / "a.zip", "Muster_Erika/")
    path.write_bytes(with_flags(bytearray(path.read_bytes()), 1))
    with pytest.raises(InputError, match=r"a\.zip: is encrypted; unpack it yourself") as error:
        read_volume(path)
    assert "Muster" not in str(error.value)


def test_damage_within_a_member_is_reported_without_a_librarys_message(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Muster_Erika/1.dcm", b"stored as it is" * 100)
    content = (tmp_path / "a.zip").read_bytes()
    # The checksum of the content no longer fits.
    (tmp_path / "a.zip").write_bytes(content.replace(b"stored", b"damage", 1))
    with pytest.raises(InputError, match=r"a\.zip: cannot be unpacked \(damaged") as error:
        read_volume(tmp_path / "a.zip")
    assert "Muster" not in str(error.value)


def test_an_archive_without_files_is_called_empty(tmp_path):
    path = tmp_path / "series.zip"
    zipfile.ZipFile(path, "w").close()
    with pytest.raises(InputError, match=r"series\.zip: is empty, expected the files of a DICOM series"):
        read_volume(path)
