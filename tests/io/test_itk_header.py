import numpy as np
import pytest
import SimpleITK as sitk

from isopose.errors import InputError
from isopose.io.images import read_volume


@pytest.fixture
def write(tmp_path):
    def made(name):
        image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
        sitk.WriteImage(image, tmp_path / name, useCompression=name.endswith(("a", "d")))
        return tmp_path / name

    return made


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
def test_valid_headers_are_accepted(write, name):
    path = write(name)
    assert read_volume(path).array.ravel().tolist() == list(range(60))
    if path.suffix in (".nrrd", ".nhdr"):
        # Comments, keys of one's own and the other line ends are the format's.
        head = b"NRRD0004\n# a comment\nmy key:=any \xc3\xa9 value\nParameters:=" + b"x" * 20_000 + b"\n"
        path.write_bytes(path.read_bytes().replace(b"NRRD0004\n", head, 1))
        assert read_volume(path).array.ravel().tolist() == list(range(60))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        # Each made ITK crash, found by the fuzzing harness.
        ("a.nhdr", b"sizes:", b"x" * 5000 + b"\nsizes:"),
        ("a.nrrd", b"sizes:", b"color: " + b"x" * 3000 + b"\nsizes:"),
        ("a.nrrd", b"type: short", b"type: " + b"x" * 3000),
        ("a.mha", b"ElementDataFile = ", b"ElementDataFile\x00\x00\xc0\x7f"),
        ("a.nrrd", b"type: short", b"type: short\nno field"),
        ("a.mhd", b"NDims = 3", b"NDims = 3\n\x1b[31m = 3"),
        ("a.mha", b"DimSize", b"\x00imSize"),
    ],
)
def test_invalid_header_lines_are_refused(write, name, before, after):
    path = write(name)
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after, 1))
    with pytest.raises(InputError, match=r"line \d+ of its header is not one of a \.\w+ file"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_header_without_an_end_is_refused(write, name):
    path = write(name)
    data = path.read_bytes()
    end = data.find(b"ElementDataFile") if name == "a.mha" else data.find(b"\n\n")
    path.write_bytes(data[:end])
    with pytest.raises(InputError, match="no end"):
        read_volume(path)
