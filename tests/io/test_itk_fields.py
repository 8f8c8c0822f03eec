"""Header fields of MetaImage and NRRD as ITK and Slicer write them, and fields that ITK misreads."""

import bz2
import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from io_helpers import SECRETS, raw_slices, upright, write_series
from isopose.data.check import check_dataset
from isopose.errors import InputError
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume, to_sitk
from isopose.io.sources import hash_of_source

HERE = upright()
MHA = ("a.mha", "a.mhd")


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_volume(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert not any(secret in text for secret in SECRETS), text
    for word in words:
        assert word in text, text


def same(path, volume=HERE):
    result = read_volume(path)
    np.testing.assert_array_equal(result.array, volume.array)
    np.testing.assert_allclose(result.world_from_index, volume.world_from_index, atol=1e-5)


@pytest.fixture
def from_nifti(tmp_path):
    """An ITK image read from NIfTI, with the NIfTI header in its metadata dictionary."""
    nib.save(
        nib.Nifti1Image(HERE.array.T, np.diag([-1, -1, 1, 1]) @ HERE.world_from_index), tmp_path / "from.nii"
    )
    return sitk.ReadImage(str(tmp_path / "from.nii"))


@pytest.mark.parametrize("name", MHA)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_itk_writes_of_a_nifti_file_are_read(tmp_path, from_nifti, name, packed):
    sitk.WriteImage(from_nifti, str(tmp_path / name), packed)
    assert b"dim[0] = 3" in (tmp_path / name).read_bytes()
    same(tmp_path / name)
    # Read and written once more it can still be read, and is known by its voxels, too.
    again = tmp_path / f"again{name[1:]}"
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / name)), str(again), packed)
    same(again)
    assert len(hash_of_source(again)) == 64


@pytest.mark.parametrize("name", MHA)
def test_headers_that_itk_writes_of_dicom_are_read(tmp_path, name):
    folder = write_series(tmp_path / "series", raw_slices(4))
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = reader.Execute()
    for key, value in {
        "0008|103e": "Abdomen Erika Muster",
        "0010|0010": "\x1b$B;3ED\x1b(B^Muster",
        "0010|4000": "Müller = Erika: ID-4711",
        "my own key": "a|b \\ c",
        "Größe": "1",
    }.items():
        image.SetMetaData(key, value)
    first = sitk.ReadImage(files[0])
    for key in first.GetMetaDataKeys():
        if not image.HasMetaDataKey(key):
            image.SetMetaData(key, first.GetMetaData(key))
    sitk.WriteImage(image, str(tmp_path / name))
    assert b"0020|000d = " in (tmp_path / name).read_bytes()
    same(tmp_path / name, read_volume(folder))
    sitk.WriteImage(first, str(tmp_path / "one.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "one.mha").array, sitk.GetArrayFromImage(first))
    # What is wrong is said without its values.
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data.replace(b"DimSize = ", b"DimSize = 0 ", 1))
    refused(tmp_path / name)
    (tmp_path / name).write_bytes(data.replace(b"0010|0010 = ", b"0010|0010 \0 ", 1))
    refused(tmp_path / name, "of its header is not one")


TEXTS = [
    "one\ntwo",
    "\none",
    "one\n\nthree\n",
    "one\r\n\ttwo",
    "a\nb = c\nd: e",
    "\x1b$B;3\x1b(B\n\x1b$B;3\x1b(B",
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MHA)
@pytest.mark.parametrize("text", TEXTS)
def test_multi_line_fields_are_read_as_itk_reads_them(tmp_path, name, text, packed):
    image = to_sitk(HERE)
    for key, value in {"0010|4000": text, "0020|000d": "1.2.3"}.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(tmp_path / name), packed)
    same(tmp_path / name)
    result = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), HERE.array)
    assert np.allclose(result.GetOrigin(), HERE.origin)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        # ITK skips the field after the text: here what says where the voxels lie, and how they are stored.
        ("DimSize", "Erika\nMuster"),
        ("Offset", "Erika\nMuster"),
        ("TransformMatrix", "Erika\nMuster"),
        ("BinaryDataByteOrderMSB", "Erika\nMuster"),
        ("ElementDataFile", "Erika\nMuster"),
        # ITK believes the text.
        ("DimSize", "Erika Muster\nOffset = 9 9 9"),
        ("DimSize", "Erika Muster\nBinaryDataByteOrderMSB = True"),
        ("DimSize", "Erika Muster\nCompressedData: True"),
        ("DimSize", "Erika Muster\nDistanceUnits = cm"),
        ("DimSize", "Erika Muster\nElementDataFile = LOCAL"),
        ("DimSize", "Erika Muster\n" + "x" * 300),
    ],
)
def test_a_text_that_changes_the_voxels_or_their_place_is_refused(tmp_path, before, text):
    field = f"{before} = ".encode()
    refused(meta(tmp_path / "a.mha", (field, f"0010|4000 = {text}\n".encode() + field)))


def test_images_and_labels_of_a_dataset_in_itk_formats(tmp_path):
    root, array = tmp_path / "Dataset001_mha", np.full((6, 96, 96), -1000, np.int16)
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    labels = np.zeros(array.shape, np.uint8)
    for case in range(3):
        array[:, 10:80, 12:84] = np.random.default_rng(case).integers(-50, 150, (6, 70, 72))
        labels[2:4, 30:40, 30:40], labels[3, 33:36, 33:36] = 1, 2
        for name, values in ((f"imagesTr/c{case}_0000", array), (f"labelsTr/c{case}", labels)):
            nib.save(nib.Nifti1Image(values.T, np.diag([-2, -2, 5, 1.0])), tmp_path / "x.nii")
            sitk.WriteImage(sitk.ReadImage(str(tmp_path / "x.nii")), str(root / f"{name}.mha"))
    (root / "dataset.json").write_text(
        '\ufeff{"channel_names": {"0": "CT"}, "labels": {"background": 0, "kidney": 1, "tumor": 2}, '
        '"file_ending": ".mha", "numTraining": 3}',
        encoding="utf-8",
    )
    (root / "list.csv").write_text(
        "\ufeffimage,label\n" + "".join(f"imagesTr/c{c}_0000.mha,labelsTr/c{c}.mha\n" for c in range(3)),
        encoding="utf-8",
    )
    for path in (root, root / "list.csv"):
        dataset = open_dataset(path)
        assert check_dataset(dataset) == []
        for case in dataset.cases:
            image = read_volume(case.image)
            np.testing.assert_array_equal(read_labels(case.label, like=image).array, labels)


def meta(path, *changes):
    sitk.WriteImage(to_sitk(HERE), str(path))
    data = path.read_bytes()
    for old, new in changes:
        assert old in data
        data = data.replace(old, new, 1)
    path.write_bytes(data)
    return path


MATRIX = b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n"


@pytest.mark.parametrize(
    "change",
    [
        (b"ElementSpacing", b"ElementSize"),
        (b"DimSize", b"ElementSize = 9 9 9\nDimSize"),
        (MATRIX, MATRIX.replace(b"TransformMatrix", b"Orientation")),
        (MATRIX, b""),
        (b"Offset", b"Position"),
        (b"NDims = 3", b"NDims: 3"),
        (b"DimSize", b"Comment = hello | you = me\nDimSize"),
        (b"DimSize", b"DistanceUnits = mm\nDimSize"),
        (b"DimSize", b"DistanceUnits = millimetre\nDimSize"),
        (b"DimSize", b"Foo = a\r\nDimSize"),
        (b"ElementDataFile", b"HeaderSize = -1\nElementDataFile"),
        (b"DimSize", b"ElementToIntensityFunctionSlope = 1.0\nElementToIntensityFunctionOffset = 0\nDimSize"),
    ],
)
def test_fields_of_metaimage_are_read(tmp_path, change):
    same(meta(tmp_path / "a.mha", change))


def test_the_transform_matrix_of_metaimage_is_used(tmp_path):
    turned = b"TransformMatrix = -1 0 0 0 -1 0 0 0 1\n"
    path = meta(tmp_path / "a.mha", (MATRIX, turned))
    for before in (b"AnatomicalOrientation = RAI", b"CenterOfRotation = 0 0 0"):
        assert before in path.read_bytes()
    np.testing.assert_array_equal(
        read_volume(path).world_from_index[:3, :3], HERE.world_from_index[:3, :3] * [[-1], [-1], [1]]
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ([(b"DimSize", b"ElementToIntensityFunctionSlope = 2\nDimSize")], "values are scaled"),
        ([(b"DimSize", b"ElementToIntensityFunctionOffset = -1000\nDimSize")], "values are scaled"),
        ([(b"DimSize", b"ElementToIntensityFunctionOffset = x\nDimSize")], "values are scaled"),
        ([(b"DimSize", b"DistanceUnits = cm\nDimSize")], "millimeters"),
        ([(b"DimSize", b"DistanceUnits = um\nDimSize")], "millimeters"),
        ([(MATRIX, b""), (b"= RAI", b"= LPI")], "left and right"),
        ([(b"ElementSpacing", b"Spacing")], "ElementSpacing"),
        ([(b"DimSize", b"F" * 300 + b" = 3\nDimSize")], "of its header is not one"),
        ([(b"DimSize", b"no field\nDimSize")], "hides the field DimSize"),
        # A DICOM text of several lines, as ITK writes it.
        ([(b"DimSize", b"0010|4000 = a\nOffset = 1 2 3\nDimSize")], "field Offset twice"),
    ],
)
def test_metaimage_fields_that_itk_ignores_are_refused(tmp_path, changes, word):
    refused(meta(tmp_path / "a.mha", *changes), word)


def in_files(path, data_file, names=("s1.raw", "s2.raw", "s3.raw", "s4.raw")):
    """Write a header that refers to one file per slice."""
    for name, plane in zip(names, HERE.array, strict=True):
        (path.parent / name).write_bytes(plane.tobytes())
    if path.suffix == ".mhd":
        meta(path.with_suffix(".mha"))
        head = path.with_suffix(".mha").read_bytes().partition(b"ElementDataFile")[0]
        path.write_bytes(head + f"ElementDataFile = {data_file}".encode())
    else:
        path.write_bytes(nrrd_header(data_file=data_file.strip()).encode())
    return path


NAMES = "s1.raw\ns2.raw\ns3.raw\ns4.raw\n"


@pytest.mark.parametrize(
    ("name", "data_file"),
    [
        ("a.mhd", f"LIST\n{NAMES}"),
        ("a.mhd", f"LIST 2\n{NAMES}"),
        ("a.mhd", "s%d.raw 1 4 1\n"),
        ("a.nhdr", f"LIST\n{NAMES}"),
        ("a.nhdr", f"LIST 2\n{NAMES}"),
        ("a.nhdr", "s%d.raw 1 4 1 2\n"),
    ],
)
def test_metaimage_with_one_file_per_slice_is_read(tmp_path, name, data_file):
    path = in_files(tmp_path / name, data_file)
    same(path)
    before = hash_of_source(path)
    (tmp_path / "s3.raw").write_bytes(bytes(60))
    assert hash_of_source(path) != before


@pytest.mark.parametrize(
    ("name", "data_file"),
    [
        # ITK makes up the voxels of these, or ends the process.
        *(("a.mhd", text) for text in ("LIST\ns1.raw\n", "LIST\n", "LIST 9\ns1.raw\n", "s%d.raw 1 4\n")),
        *(
            ("a.mhd", text)
            for text in ("s%d.raw 4 1 1\n", "s%d.raw 1 4 0\n", "s%d.raw 1 4 x\n", "s%n.raw 1 4 1")
        ),
        *(
            ("a.mhd", text)
            for text in ("s%s.raw 1 4 1\n", "s%d%d.raw 1 4 1", "s%99999d.raw 1 4 1", "s%d.raw")
        ),
        *(("a.nhdr", text) for text in ("LIST\ns1.raw\n", "s%99999d.raw 1 4 1 2\n", "s%n.raw 1 4 1 2\n")),
    ],
)
def test_invalid_lists_of_slice_files_are_refused(tmp_path, name, data_file):
    with pytest.raises(InputError, match=rf"{name}: "):
        read_volume(in_files(tmp_path / name, data_file))


def nrrd_header(without=(), **fields):
    base = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "6 5 4",
        "space directions": "(0.75,0,0) (0,0.5,0) (0,0,2.5)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(-101.25,33.5,-640)",
    }
    base |= {name.replace("_", " "): value for name, value in fields.items()}
    return "NRRD0005\n" + "".join(f"{n}: {v}\n" for n, v in base.items() if n not in without)


def nrrd(path, data=None, **fields):
    path.write_bytes(f"{nrrd_header(**fields)}\n".encode() + (data or HERE.array.tobytes()))
    return path


TURNED = {
    (1, 1, 1): ("left-posterior-superior", "LPS"),
    (-1, -1, 1): ("right-anterior-superior", "RAS"),
    (1, -1, 1): ("left-anterior-superior", "LAS"),
}


@pytest.mark.parametrize(("signs", "name"), [(s, n) for s, names in TURNED.items() for n in names])
@pytest.mark.parametrize("case", [str, str.lower, str.upper, str.title])
def test_anatomical_spaces_of_nrrd_are_read(tmp_path, signs, name, case):
    volume = read_volume(nrrd(tmp_path / "a.nrrd", space=case(name)))
    np.testing.assert_allclose(volume.world_from_index, np.diag([*signs, 1]) @ HERE.world_from_index)


@pytest.mark.parametrize(
    "space",
    [
        *(
            "scanner-xyz",
            "Scanner-XYZ",
            "3D-right-handed",
            "3D-left-handed",
            "3DR",
            "3DL",
            "scanner-xyz-time",
        ),
        *("left-posterior-superior-time", "LPST", "RAST", "LAST", "3D-right-handed-time", "Erika Muster", ""),
    ],
)
def test_other_spaces_of_nrrd_are_refused(tmp_path, space):
    refused(nrrd(tmp_path / "a.nrrd", space=space))
    refused(nrrd(tmp_path / "b.nrrd", without=("space",), space_dimension="3"))


@pytest.mark.parametrize(
    "fields",
    [
        {"measurement frame": "(1,0,0) (0,1,0) (0,0,1)"},
        {"space units": '"mm" "mm" "mm"'},
        {"space units": '"millimetres" "millimetre" "millimeters"'},
        {"kinds": "space space space"},
        {"centers": "cell cell cell"},
        {"min": "0", "max": "119"},
        {"dimension": "4", "sizes": "1 6 5 4", "space directions": "none (0.75,0,0) (0,0.5,0) (0,0,2.5)"}
        | {"kinds": "list domain domain domain"},
        {"dimension": "4", "sizes": "6 5 4 1", "space directions": "(0.75,0,0) (0,0.5,0) (0,0,2.5) none"}
        | {"kinds": "domain domain domain list"},
    ],
)
def test_fields_of_nrrd_are_read(tmp_path, fields):
    same(nrrd(tmp_path / "a.nrrd", **fields))


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (gzip.compress(HERE.array.tobytes()), {"encoding": "gzip"}),
        (" ".join(map(str, HERE.array.ravel())).encode(), {"encoding": "ascii"}),
        (HERE.array.tobytes().hex().encode(), {"encoding": "hex"}),
        (b"junk" * 5 + HERE.array.tobytes(), {"byte skip": "-1"}),
        (b"junk" * 5 + HERE.array.tobytes(), {"byte skip": "20"}),
        (b"line\n" + HERE.array.tobytes(), {"line skip": "1"}),
        (HERE.array.astype(">i2").tobytes(), {"endian": "big"}),
    ],
)
def test_attached_and_detached_encodings_of_nrrd_are_read(tmp_path, data, fields):
    same(nrrd(tmp_path / "a.nrrd", data=data, **fields))
    (tmp_path / "b.bin").write_bytes(data)
    (tmp_path / "b.nhdr").write_text(nrrd_header(**fields, **{"data file": "b.bin"}))
    same(tmp_path / "b.nhdr")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"space units": '"cm" "cm" "cm"'}, "millimeters"),
        ({"space units": '"m" "m" "m"'}, "millimeters"),
        ({"space units": '"um" "um" "um"'}, "millimeters"),
        ({"units": '"mm" "mm" "cm"'}, ""),
        ({"old min": "-1000", "old max": "3000"}, "quantized"),
        ({"space directions": "(0.75,0,0) none (0,0,2.5)"}, "space directions"),
        ({"space directions": "(0.75,0,0) (nan,nan,nan) (0,0,2.5)"}, ""),
        ({"without": ("space directions", "space origin")}, "space directions"),
        ({"without": ("space directions",), "spacings": "0.75 0.5 2.5"}, ""),
        ({"kinds": "vector domain domain"}, ""),
        ({"type": "Erika Muster"}, ""),
        ({"encoding": "ID-4711"}, ""),
    ],
)
def test_nrrd_fields_that_itk_ignores_are_refused(tmp_path, fields, word):
    refused(nrrd(tmp_path / "a.nrrd", **fields), word)


def test_data_that_cannot_be_decompressed_are_refused(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", data=bz2.compress(HERE.array.tobytes()), encoding="bzip2")
    with pytest.raises(InputError, match=r"a\.nrrd: "):
        read_volume(path)


def test_a_header_that_is_a_symbolic_link_is_read(tmp_path):
    (tmp_path / "store").mkdir()
    sitk.WriteImage(to_sitk(HERE), str(tmp_path / "store" / "a.mha"))
    shutil.move(tmp_path / "store" / "a.mha", tmp_path / "store" / "d41d8cd98f00")
    (tmp_path / "case_1.mha").symlink_to(tmp_path / "store" / "d41d8cd98f00")
    same(tmp_path / "case_1.mha")
