"""The hash of a scan covers all of its files."""

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from bright import bright_model, make_scene
from io_helpers import write_series
from isopose.errors import InputError
from isopose.files import sha256
from isopose.geometry.volume import Volume
from isopose.inference.files import predict_scans
from isopose.io.images import write_image
from isopose.io.results.formats import NIFTI
from isopose.io.scans import find_scans
from isopose.io.sources import hash_of_source
from isopose.progress import Silent


def test_the_hash_of_a_file_is_of_its_bytes_alone(tmp_path):
    write_image(make_scene(slices=3).volume, tmp_path / "a.nii.gz")
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert hash_of_source(tmp_path / "a.nii.gz") == sha256(tmp_path / "a.nii.gz")
    assert hash_of_source(tmp_path / "b.nii.gz") == hash_of_source(tmp_path / "a.nii.gz")


def test_the_hash_of_a_folder_covers_files_in_subfolders(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b", "a", "below/c"):
        (tmp_path / name).write_text(name)
    before = hash_of_source(tmp_path)
    (tmp_path / "below" / "c").write_text("other")
    assert hash_of_source(tmp_path) != before
    (tmp_path / "below" / "c").write_text("below/c")
    assert hash_of_source(tmp_path) == before


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_the_hash_of_a_file_with_attached_voxels_is_of_its_bytes(ending, tmp_path):
    image = sitk.GetImageFromArray(make_scene(slices=3).volume.array)
    sitk.WriteImage(image, str(tmp_path / f"scan{ending}"))
    (tmp_path / "other.raw").write_bytes(b"1")
    with open(tmp_path / f"scan{ending}", "ab") as file:
        file.write(b"\ndata file: other.raw\nElementDataFile = other.raw\n")
    assert hash_of_source(tmp_path / f"scan{ending}") == sha256(tmp_path / f"scan{ending}")


@pytest.mark.parametrize("header", ["scan.mhd", "scan.nhdr", "scan.mha", "scan.nrrd"])
def test_the_hash_covers_detached_voxels(header, tmp_path):
    image = sitk.GetImageFromArray(make_scene(slices=3).volume.array)
    apart = {".mha": ".mhd", ".nrrd": ".nhdr"}.get(header[4:], header[4:])
    sitk.WriteImage(image, str(tmp_path / f"scan{apart}"))
    # A header may name another file under either ending.
    (tmp_path / f"scan{apart}").rename(tmp_path / header)
    (voxels,) = set(tmp_path.iterdir()) - {tmp_path / header}
    before, alone = hash_of_source(tmp_path / header), sha256(tmp_path / header)
    content = voxels.read_bytes()
    voxels.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert sha256(tmp_path / header) == alone
    assert hash_of_source(tmp_path / header) != before
    voxels.write_bytes(content)
    assert hash_of_source(tmp_path / header) == before


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("scan.mhd", "ObjectType = Image\nNDims = 3\nElementDataFile = LIST\none.raw\ntwo.raw\n"),
        ("scan.mhd", "ObjectType = Image\r\nElementDataFile = LIST\r\none.raw\r\ntwo.raw\r\n"),
        ("scan.nhdr", "NRRD0004\ndimension: 3\ndata file: LIST 2\none.raw\ntwo.raw\n"),
    ],
)
def test_the_hash_covers_listed_files(header, text, tmp_path):
    (tmp_path / header).write_text(text, newline="")
    for name in ("one.raw", "two.raw"):
        (tmp_path / name).write_bytes(b"1")
    result = {hash_of_source(tmp_path / header)}
    for name in ("one.raw", "two.raw"):
        (tmp_path / name).write_bytes(b"2")
        result.add(hash_of_source(tmp_path / header))
    assert len(result) == 3


@pytest.mark.parametrize(
    ("header", "line"),
    [("s.mhd", "ElementDataFile = cut%03d.raw 1 5 2"), ("s.nhdr", "data file: cut%03d.raw 1 5 2 2")],
)
def test_the_hash_covers_files_of_a_pattern(header, line, tmp_path):
    (tmp_path / header).write_text(f"NRRD0004\n{line}\n" if header == "s.nhdr" else f"NDims = 3\n{line}\n")
    for number in range(1, 6):
        (tmp_path / f"cut{number:03d}.raw").write_bytes(b"1")
    before = hash_of_source(tmp_path / header)
    for number in range(1, 6):
        file = tmp_path / f"cut{number:03d}.raw"
        file.write_bytes(b"2")
        assert (hash_of_source(tmp_path / header) != before) == (number % 2 == 1)
        file.write_bytes(b"1")


@pytest.mark.parametrize(
    "line",
    [
        "ElementDataFile = cut%999999999d.raw 1 9 1",
        "ElementDataFile = %s%n%d 1 9 1",
        "ElementDataFile = cut%d.raw 0 999999999 1",
        "ElementDataFile = ..",
        "ElementDataFile = /dev/zero",
        "ElementDataFile =",
        "ElementDataFile = LOCAL",
        f"ElementDataFile = {'a' * 5000}",
        "ElementDataFile = scan.mhd/below",
        "ElementDataFile = a\0b",
        "NDims = 3",
    ],
)
def test_hashing_ends_for_any_header(line, tmp_path):
    (tmp_path / "scan.mhd").write_text(f"{line}\n")
    assert hash_of_source(tmp_path / "scan.mhd") == sha256(tmp_path / "scan.mhd")


def test_the_hash_of_one_dicom_file_is_that_of_its_series(tmp_path):
    write_series(tmp_path / "series", make_scene(slices=4).volume.array)
    first, second, *_, last = sorted((tmp_path / "series").iterdir())
    before = hash_of_source(first)
    assert hash_of_source(second) == before
    (tmp_path / "series" / "notes.txt").write_text("no slice")
    assert hash_of_source(first) == before
    content = last.read_bytes()
    last.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert hash_of_source(first) != before


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        hash_of_source(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "scan.zip").symlink_to("/dev/zero")
    for name in ("pipe", "scan.zip"):
        with pytest.raises(InputError, match="is neither a file nor a folder"):
            hash_of_source(tmp_path / name)


def test_a_scan_with_changed_detached_voxels_is_predicted_again(tmp_path):
    """A hash of the header alone would reuse the result of the former voxels."""

    def write(volume: Volume) -> None:
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing([float(side) for side in volume.spacing])
        sitk.WriteImage(image, str(tmp_path / "scan.mhd"))

    def volumes() -> dict[str, float]:
        scans = find_scans([tmp_path / "scan.mhd"])
        (outcome,) = predict_scans(
            bright_model(),
            scans,
            tmp_path / "out",
            formats=(NIFTI,),
            probabilities=False,
            reporter=Silent(),
        )
        return outcome.record["volumes_ml"]

    scene = make_scene(slices=4)
    write(scene.volume)
    header, before = sha256(tmp_path / "scan.mhd"), volumes()
    write(scene.volume.with_array(np.where(scene.truth == 7, 40, scene.volume.array).astype(np.int16)))
    assert sha256(tmp_path / "scan.mhd") == header
    assert volumes() != before
