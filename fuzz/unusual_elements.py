"""Elements of a patient and a study that are missing, empty, or not as the standard wants them."""

from random import Random
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName
from unusual_body import maybe

#: Elements of the patient and the study, and what is found in them; each names nobody but "Secret".
ODD: dict[str, tuple[Any, ...]] = {
    "PatientName": (
        "Secret",
        "SECRET 12",
        "Secret^A^B^C^D^E^F",
        "Secret=Secret^X",
        "",
        "Secr\xe9t^Secret\\Secret",
    ),
    "PatientID": ("SECRET" * 15, "", "SECRET\\1"),
    "PatientBirthDate": ("1980.02.03", "00000000", "SECRET", "1980", "19800230", "", "1980-02-03"),
    "PatientSex": ("X", "male", "SECRET", "", "m"),
    "PatientAge": ("3", "003", "SECRET", "3Y", "", "0036M", "-01Y"),
    "PatientWeight": ("70 kg SECRET", "", "1e99", "70,5"),
    "PatientSize": ("SECRET", "", "1,2"),
    "StudyDate": ("2020-01-01", "2020.01.01", "", "20201301", "SECRET"),
    "StudyTime": ("10:00:00", "", "SECRET", "250000", "10"),
    "AcquisitionDate": ("2020-01-01", "SECRET"),
    "ContentTime": ("10:00:00.123", "SECRET"),
    "AccessionNumber": ("SECRET" * 9, ""),
    "StudyID": ("SECRET" * 9, ""),
    "ReferringPhysicianName": ("Secret", "Secret, Secret"),
    "SpecificCharacterSet": (
        "ISO_IR 192",
        "ISO_IR 100",
        "UTF8",
        "ISO 2022 IR 6\\ISO 2022 IR 87",
        "SECRET",
        "",
    ),
    "SliceThickness": (None, "", "SECRET", "5 mm", 0, -5, "5.0000000000000000001"),
    "SeriesNumber": (None, "", "3.0", "-1", "SECRET", "99999999999"),
    "InstanceNumber": (None, "", "SECRET", "1.5"),
    "SeriesDescription": ("Secret " * 20,),
    "WindowCenter": ("SECRET", [40, 50], "40,5"),
    "SliceLocation": ("SECRET", "", 1e30),
    "PatientPosition": ("", "SECRET", "FFS"),
    "SpacingBetweenSlices": (0, -1, 999, "SECRET"),
    "GantryDetectorTilt": ("", "SECRET", 15.0),
    "ImageType": ("AXIAL", ["DERIVED", "SECONDARY", "REFORMATTED", "", "AVERAGE"], ""),
    "RescaleType": ("HU", "US", "", "SECRET"),
    "FrameOfReferenceUID": (None, "", "1.2.3.SECRET"),
    "StudyInstanceUID": ("1.2.03", "SECRET", "1." * 40 + "1"),
}


def odd_elements(slices: list[Dataset], kinds: list[str], draw: Random) -> None:
    """One to four elements that are missing, empty, or not as the standard wants them."""
    for name in draw.sample(sorted(ODD), draw.choice((1, 1, 2, 4))):
        value = draw.choice(ODD[name])
        every = maybe(draw, 0.8) or name in ("StudyInstanceUID", "SeriesNumber")
        for d in slices:
            if not (every or maybe(draw, 0.5)):
                continue
            if value is None:
                if name in d:
                    delattr(d, name)
            else:
                d.add(_unchecked(name, value))
        kinds.append(f"odd {name}" if value not in (None, "") else f"no {name}")


def _unchecked(name: str, value: Any) -> DataElement:
    """An element past pydicom's checks, which would not write what others write."""
    tag, kind = tag_for_keyword(name), dictionary_VR(name)
    assert tag is not None
    if kind == "PN":
        value = PersonName(value.encode("latin-1"))
    return DataElement(tag, kind, value, already_converted=True)
