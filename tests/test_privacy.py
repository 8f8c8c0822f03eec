"""Identifiers of patients appear in no output but DICOM results, and there only in copied elements."""

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from io_helpers import write_series
from isopose.io.images import read_volume, to_sitk, write_labels
from isopose.io.results.copied import PATIENT_AND_STUDY

pytestmark = pytest.mark.long

#: Of any element that holds text: by the series' one word it is found wherever it goes.
WORD = "Zzyzx"
_TEXT = (
    *("InstitutionAddress", "StationName", "InstitutionalDepartmentName", "PerformingPhysicianName"),
    *("OperatorsName", "PhysiciansOfRecord", "ProtocolName", "ImageComments", "FrameComments"),
    *("RequestedProcedureDescription", "PerformedProcedureStepDescription", "DerivationDescription"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "StudyID"),
    *("PatientComments", "OtherPatientNames", "PatientAddress", "PatientMotherBirthName", "Occupation"),
    *("AdditionalPatientHistory", "MedicalRecordLocator", "CountryOfResidence", "AdmissionID"),
    *("IssuerOfPatientID", "ClinicalTrialSubjectID", "ClinicalTrialSponsorName", "ResponsiblePerson"),
    *("RequestingPhysician", "NameOfPhysiciansReadingStudy", "DeidentificationMethod", "ContrastBolusAgent"),
)
PLANTED = {
    **dict.fromkeys(_TEXT, WORD),
    "PatientName": "Zzyzx^Quentin",
    "PatientID": "PID-90210",
    "PatientBirthDate": "19870623",
    "PatientBirthTime": "0417",
    "StudyDate": "20211105",
    "SeriesDate": "20211105",
    "AcquisitionDateTime": "20211105101010",
    "AccessionNumber": "ACC-31337",
    "InstitutionName": "Hopital Xanadu",
    "ReferringPhysicianName": "Grommit^Doktor",
    "StudyDescription": "Nephroblastoma of Quentin",
    "SeriesDescription": "Abdomen Quentin 2021",
    "StudyInstanceUID": "1.2.826.0.1.7777.1",
    "FrameOfReferenceUID": "1.2.826.0.1.7777.3",
}
#: Over the former, in the second and third patient's series: of the kinds that libraries complain about.
UNUSUAL = (
    {
        "PatientName": WORD,
        "PatientID": "PID-90210, ward of Quentin",
        "PatientBirthDate": "1987.06.23",
        "PatientSex": "Quentin",
        "PatientAge": "Quentin",
        "StudyDate": "1987-06-23",
        "StudyTime": "23.06.1987",
        "SeriesDate": "1987-06-23",
        "AcquisitionDateTime": "23.06.1987",
        "AccessionNumber": "ACC-31337 of Quentin Zzyzx",
        "SpecificCharacterSet": "ISO_IR 192",
        "SliceThickness": None,
    },
    {
        "PatientName": "TCGA-ZZ-9021^^",
        "PatientID": "TCGA-ZZ-9021",
        "PatientBirthDate": "00000000",
        "StudyInstanceUID": "Quentin",
        "FrameOfReferenceUID": "1.2.826.0.1.7777.03",
        "SpecificCharacterSet": WORD,
        "OtherPatientNames": ["A=B=C=Zzyzx", "Quentin^a^b^c^d^e^f"],
    },
)
SECRETS = (
    *(WORD, WORD.upper(), "Quentin", "PID-90210", "19870623", "1987-06-23", "1987.06.23", "23.06.1987"),
    *("20211105", "2021-11-05", "ACC-31337", "TCGA-ZZ-9021", "Xanadu", "Grommit", "Nephroblastoma"),
    "1.2.826.0.1.7777",
)
#: These refer to the series, its study and its place.
TIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ReferencedFrameOfReferenceUID")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three patients' series, their labels, and a manifest that names them by numbers."""
    root = tmp_path_factory.mktemp("secret")
    before = (
        pydicom.config.settings._writing_validation_mode,
        pydicom.config.settings._reading_validation_mode,
    )
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        return _make(root)
    finally:
        pydicom.config.settings._writing_validation_mode, pydicom.config.settings._reading_validation_mode = (
            before
        )


def _make(root: Path) -> Path:
    rows = ["case,image,label,patient"]
    y, x = np.meshgrid(*[(np.arange(64) - 31.5) * 4.0] * 2, indexing="ij")
    body = np.hypot(x / 100, y / 72) < 1
    for number in range(3):
        mass = np.hypot(x - 40 + 5 * number, y) < 24
        hu = np.repeat(np.where(mass, 200, np.where(body, 40, -1000))[None], 5, 0)
        raw = (hu + 1024 + np.random.default_rng(number).integers(0, 20, hu.shape)).astype(np.uint16)
        folder = root / f"c{number}"
        write_series(
            folder,
            raw,
            step=(0.0, 0.0, 5.0),
            series=f"1.2.826.0.1.7777.2.{number}",
            PixelSpacing=[4.0, 4.0],
            RescaleIntercept=-1024,
            RescaleSlope=1,
            **{**PLANTED, **(UNUSUAL[number - 1] if number else {})},
        )
        for file in folder.iterdir():
            _plant_beyond_names(file, broken=number == 1)
        volume = read_volume(folder)
        write_labels(
            volume.with_array(np.repeat(mass[None], 5, 0).astype(np.uint8)), root / f"c{number}.nii.gz"
        )
        rows.append(f"c{number},c{number},c{number}.nii.gz,p{number}")
    (root / "cases.csv").write_text("\n".join(rows) + "\n")
    _plant_in_other_formats(root, read_volume(root / "c0"))
    damaged = root / "damaged"
    damaged.mkdir()
    for file in sorted((root / "c0").iterdir())[:4]:
        (damaged / file.name).write_bytes(file.read_bytes()[:-700])
    return root


def _plant_beyond_names(file: Path, *, broken: bool) -> None:
    """Plant identifiers in private elements, sequence items, file meta information, another encoding."""
    data, inner = pydicom.dcmread(file), Dataset()
    inner.PatientID, inner.TypeOfPatientID = "PID-90210", "TEXT"
    inner.add_new(0x00090010, "LO", "Zzyzx Inc")
    inner.add_new(0x00091001, "LO", "Quentin!")
    data.OtherPatientIDsSequence = [inner]
    data.add_new(0x00090010, "LO", "Zzyzx Inc")
    data.add_new(0x00091001, "LO", "Quentin!")
    data.add_new(0x00091002, "UN", b"Quentin!")
    data.file_meta.SourceApplicationEntityTitle = "ZZYZX"
    data.file_meta.PrivateInformationCreatorUID = "1.2.826.0.1.7777.9"
    data.file_meta.PrivateInformation = b"Quentin!"
    data.save_as(file)
    if broken:
        # Of the length that the name had, with a byte that UTF-8 does not have.
        content = file.read_bytes()
        name = b"\x10\x00\x10\x00PN\x06\x00Zzyzx "
        assert name in content
        file.write_bytes(content.replace(name, name[:-6] + b"Z\xfczyzx"))


def _plant_in_other_formats(root: Path, volume: object) -> None:
    """Write one scan in each other format, with the patient's name in every possible header field."""
    (root / "others").mkdir()
    image = to_sitk(volume)
    header = nib.Nifti1Image(np.asarray(volume.array).T, np.diag([-4.0, -4.0, 5.0, 1.0]))
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        header.header[field] = WORD.encode()
    header.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Quentin Zzyzx"))
    nib.save(header, root / "others" / "one.nii.gz")
    for key in ("0010|0010", "0010|0020", "0008|0080", "Quentin", "ITK_FileNotes"):
        image.SetMetaData(key, "Quentin Zzyzx")
    for ending in ("nrrd", "mha", "mhd"):
        sitk.WriteImage(image, str(root / "others" / f"a_{ending}.{ending}"))
    # As damaged ones, of which a library would quote what it does not understand.
    broken = root / "broken"
    broken.mkdir()
    whole = (root / "others" / "a_nrrd.nrrd").read_bytes()
    (broken / "sizes.nrrd").write_bytes(whole.replace(b"sizes: 64", b"sizes: Zzyzx 64"))
    (broken / "short.nrrd").write_bytes(whole[:-500])
    whole = (root / "others" / "a_mha.mha").read_bytes()
    (broken / "size.mha").write_bytes(whole.replace(b"DimSize = 64", b"DimSize = Zzyzx 64"))
    (broken / "short.mha").write_bytes(whole[:-500])
    whole = gzip.decompress((root / "others" / "one.nii.gz").read_bytes())
    (broken / "short.nii").write_bytes(whole[:-500])


def run(*arguments: object, code: int = 0) -> str:
    process = subprocess.run(
        [sys.executable, "-m", "isopose", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    output = process.stdout + process.stderr
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def test_no_planted_identifier_is_written_or_printed(data, tmp_path):
    manifest, label = data / "cases.csv", ("--label", "mass=1")
    small = "data.size=64 unet.base_features=2 unet.optimizer.epochs=1 unet.optimizer.iterations=2 "
    small += "crop.optimizer.epochs=1 crop.optimizer.iterations=2"
    settings = [part for setting in small.split() for part in ("--set", setting)]
    model, predicted, upright = tmp_path / "model", tmp_path / "predicted", tmp_path / "upright"
    cases = [data / f"c{number}" for number in range(3)]
    formats = [part for one in ("nifti", "rtstruct", "dicom-sr") for part in ("--format", one)]
    outputs = [
        run("check", manifest, *label),
        run("check", manifest, *label, "--json"),
        run("fit", manifest, *label, "--model", model, "--fold", "all", *settings),
        run("predict", model, *cases, "--output", predicted, "--steps", "--probabilities", *formats),
        run("homogenize", manifest, upright, *label, "--size", "128"),
        run("restore", upright / "labelsTr", "--homogenized", upright, "--output", tmp_path / "back"),
        run("evaluate", tmp_path / "back", manifest, *label, "--output", tmp_path / "scores"),
        run("predict", model, data / "c0", "--output", predicted, "--series", "99", code=2),
        run(
            *("predict", model, data / "damaged", data / "others", data / "broken"),
            *("--output", tmp_path / "others"),
            code=2,
        ),
    ]
    names = ("PatientSex", "PatientAge", "PatientBirthDate", "StudyInstanceUID", "PatientName")
    assert all(name in outputs[3] for name in names)
    seen = 0
    for path in tmp_path.rglob("*"):
        if not path.is_file():
            continue
        seen += 1
        assert not any(secret in path.name for secret in SECRETS)
        if path.suffix == ".dcm":
            continue
        contents = path.read_bytes()
        contents = gzip.decompress(contents) if contents[:2] == b"\x1f\x8b" else contents
        for secret in SECRETS:
            assert secret.encode() not in contents, f"{path.name} holds {secret}"
    assert seen > 60
    for text in outputs:
        for secret in SECRETS:
            assert secret not in text
    results = sorted(predicted.glob("*.dcm"))
    assert len(results) == 9
    for path in results:
        _copies_nothing_else(path, data / path.name.partition(".")[0])


def _copies_nothing_else(result: Path, series: Path) -> None:
    """Assert that a DICOM result holds identifiers only in elements copied from the series."""
    source = pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True)
    written = pydicom.dcmread(result)
    actual = list(_planted(written))
    assert not list(_planted(written.file_meta))
    for path, value in actual:
        if path[-1] in TIES or value in (written.StudyInstanceUID, source.SeriesInstanceUID):
            continue
        assert path[0] in PATIENT_AND_STUDY, f"{result.name}: {'/'.join(path)}"
        assert value == str(_at(source, path))
    # What is not of patient and study is nowhere, whatever element it may have come to.
    contents = result.read_bytes()
    for secret in ("Xanadu", "Zzyzx Inc", "Quentin!", "ZZYZX", "Abdomen Quentin"):
        assert secret.encode() not in contents
    if series.name != "c1":
        assert "PatientName" in [path[0] for path, _ in actual]


def _planted(data: Dataset, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of keywords and the value of each element that holds an identifier."""
    for element in data:
        path = (*before, element.keyword)
        if element.VR == "SQ":
            for item in element.value:
                yield from _planted(item, path)
        elif any(secret in str(element.value) for secret in SECRETS):
            yield path, str(element.value)


def _at(data: Dataset, path: tuple[str, ...]) -> object:
    for name in path[:-1]:
        [data] = data.get(name)
    return data.get(path[-1])


def test_the_planted_identifiers_are_in_the_input_files(data):
    """Otherwise a search that finds nothing would prove nothing."""
    files = [path for path in data.rglob("*") if path.is_file()]
    whole = b"".join(gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in files)
    for secret in SECRETS:
        if secret != "2021-11-05":
            assert secret.encode() in whole
