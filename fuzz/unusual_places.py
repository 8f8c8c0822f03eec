"""What lies beside the slices of a series, and how the folder reaches isopose."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from unusual_body import maybe


def lay_beside(scan: Path, kinds: list[str], draw: Random) -> bool:
    """Put other files into a folder of slices.

    Returns:
        Whether the series should still be read; a second one or a label map may be reported instead.
    """
    slices = sorted(path for path in scan.rglob("*") if path.is_file())
    act = draw.choice(("copies", "copies", "texts", "report", "capture", "scout", "second series", "mask"))
    kinds.append(f"beside: {act}")
    if act == "copies":
        for path in slices if maybe(draw, 0.5) else draw.sample(slices, 1):
            shutil.copy(path, path.with_name(f"{path.stem}(1){path.suffix}"))
    elif act == "texts":
        for name in draw.sample(
            ("README.txt", "Thumbs.db", ".DS_Store", "series.json", "a.pdf", "AUTORUN.INF"), 3
        ):
            (scan / name).write_bytes(
                draw.choice((b"", b"hello\n", bytes(200), json.dumps({"a": 1}).encode()))
            )
    elif act == "report":
        _write(slices[0].parent / "report.dcm", _other(BasicTextSRStorage, "SR"))
    elif act == "capture":
        d = _image(_other(SecondaryCaptureImageStorage, "OT"))
        _write(slices[0].parent / "capture.dcm", d)
    elif act in ("scout", "second series"):
        d = _image(_other(CTImageStorage, "CT"))
        d.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if act == "scout" else "AXIAL"]
        d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 0, -1]
        d.PixelSpacing, d.RescaleSlope, d.RescaleIntercept = [4, 4], 1, -1024
        _write(slices[0].parent / "0other.dcm", d)
    else:
        marks = nib.Nifti1Image(np.ones((8, 8, 5), np.uint8), np.eye(4))
        nib.save(marks, slices[0].parent / "mask.nii.gz")
    return act not in ("second series", "mask")


def _other(kind: str, modality: str) -> Dataset:
    d = Dataset()
    d.SOPClassUID, d.SOPInstanceUID, d.Modality = kind, generate_uid(entropy_srcs=[kind]), modality
    d.SeriesInstanceUID, d.StudyInstanceUID = (generate_uid(entropy_srcs=[kind, n]) for n in "ab")
    d.PatientName, d.SeriesNumber = "Secret^Name", 99
    return d


def _image(d: Dataset) -> Dataset:
    d.Rows = d.Columns = 32
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
    d.PixelData = bytes(32 * 32 * 2)
    return d


def _write(path: Path, d: Dataset) -> None:
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(path, d, enforce_file_format=True)


#: One of a series' files, in place of its folder.
ONE_FILE = "given as one file"
#: Names of an archive's members, of a file's name and its number; the first ones are sound.
_ODD_NAMES = (
    *("{1}", "a/{0}", "\u00fc \u4e2d/{0}", "deep/" * 30 + "{0}", "x{1}.zip.d/{0}", "b c/{1}/{0}"),
    *("../{0}", "/abs/{0}", "a\\b\\{0}", "C:/{0}", "../../{1}/{0}", "./{0}", "a//{0}"),
)


def pack(folder: Path, kinds: list[str], draw: Random) -> tuple[str, bool]:
    """The folder as it is, one of its files, or an archive of it.

    Returns:
        The path below ``folder`` that is given, and whether GDCM's search of a folder finds the same files.
    """
    scan = folder / "scan"
    below = any(path.is_dir() for path in scan.iterdir())
    beside = any(kind.startswith("beside") for kind in kinds)
    act = draw.random()
    if act < 0.65:
        return "scan", not (below or beside)
    if act < 0.75:
        slices = [path for path in sorted(scan.rglob("*")) if path.is_file()]
        chosen = next((path for path in slices if path.name.startswith(("IM", "1."))), None)
        if chosen is None or beside:
            return "scan", not (below or beside)
        kinds.append(ONE_FILE)
        return str(chosen.relative_to(folder)), not below
    kind = draw.choice(
        (
            *("ZIP", "ZIP of the Finder") * 2,
            "ZIP with odd names",
            "ZIP with odd names",
            "ZIP of several folders",
        )
    )
    kinds.append(kind)
    _archive(folder / "scan.zip", scan, kind, draw)
    return "scan.zip", False


def _archive(path: Path, scan: Path, kind: str, draw: Random) -> None:
    files = sorted(file for file in scan.rglob("*") if file.is_file())
    packed = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))
    form = draw.choice(_ODD_NAMES)
    with zipfile.ZipFile(path, "w", packed) as archive:
        if maybe(draw, 0.3):
            archive.writestr("scan/", b"")
        for number, file in enumerate(files):
            name = f"scan/{file.relative_to(scan)}"
            if kind == "ZIP with odd names":
                name = form.format(file.name, number)
            elif kind == "ZIP of several folders":
                name = draw.choice(_ODD_NAMES[:6]).format(file.name, number)
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), file.read_bytes())
            if kind == "ZIP of the Finder":
                junk = io.BytesIO(bytes.fromhex("0005160700020000") + b"Mac OS X        \0\2" + bytes(160))
                archive.writestr(f"__MACOSX/scan/._{file.name}", junk.getvalue())
        if kind == "ZIP of the Finder":
            archive.writestr("scan/.DS_Store", b"\0\0\0\1Bud1" + bytes(100))
    shutil.rmtree(scan)
