"""Copy valid elements of patient, study and image from a series to its DICOM results."""

import re
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import pydicom
from pydicom.charset import python_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, DA, DT, STR_VR, TM, VR, PersonName, validate_value

from isopose.io.quiet import quiet_pydicom

#: UTF-8: label names and the patient's name may be in different scripts.
CHARACTER_SET = "ISO_IR 192"
#: Elements of type 2: the standard requires them, possibly with an empty value.
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
#: Elements of the modules Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial
#: Study (DICOM PS3.3, C.7.1 and C.7.2), and of the frame of reference.
PATIENT_AND_STUDY = (
    *TYPE_2,
    *("IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence"),
    *("PatientBirthTime", "OtherPatientNames", "OtherPatientIDsSequence", "QualityControlSubject"),
    *("PatientBirthDateInAlternativeCalendar", "PatientAlternativeCalendar", "EthnicGroupCodeSequence"),
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription"),
    *("PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson"),
    *("ResponsiblePersonRole", "ResponsibleOrganization", "PatientComments", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName"),
    *("ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("ClinicalTrialSubjectReadingID", "ClinicalTrialProtocolEthicsCommitteeName"),
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    *("StudyDescription", "IssuerOfAccessionNumberSequence", "ConsultingPhysicianName"),
    *("ProcedureCodeSequence", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "RequestingService"),
    *("ReasonForPerformedProcedureCodeSequence", "AdmittingDiagnosesDescription"),
    *("AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize", "PatientWeight"),
    *("PatientBodyMassIndex", "MedicalAlerts", "Allergies", "Occupation", "SmokingStatus"),
    *("AdditionalPatientHistory", "PregnancyStatus", "LastMenstrualDate", "PatientSexNeutered"),
    *("ReasonForVisit", "AdmissionID", "IssuerOfAdmissionIDSequence", "ServiceEpisodeID"),
    *("ServiceEpisodeDescription", "PatientState"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
    *("LongitudinalTemporalOffsetFromEvent", "LongitudinalTemporalEventType"),
)
#: Elements about lossy compression, which a segmentation repeats from the source images.
COMPRESSION = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
#: Values that the standard allows for these elements.
_ENUMERATED = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "QualityControlSubject": ("YES", "NO"),
    "PatientSexNeutered": ("ALTERED", "UNALTERED"),
    "SmokingStatus": ("YES", "NO", "UNKNOWN"),
    "PregnancyStatus": (1, 2, 3, 4),
    "LossyImageCompression": ("00", "01"),
}
#: Value representations that may contain line breaks, tabs and form feeds.
_MULTILINE = {VR.LT, VR.ST, VR.UT}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LINES = re.compile(r"[^\t\n\f\r -~\xa0-\U0010ffff]")
#: Replacement character of bytes that are invalid in the character set.
_REPLACEMENT_CHARACTER = "\ufffd"
#: Maximum number of parts of a person's name in each of its three groups.
_NAME_PARTS = 5
_UID = re.compile(r"[0-9.]{1,64}")


def copy_valid(header: Dataset, names: Iterable[str]) -> tuple[Dataset, list[str]]:
    """Copy those of some elements of a header that are valid, in UTF-8.

    An element is valid if the standard allows its value: length, characters, number of values, existing
    calendar dates, and text in the character set that the header names. An invalid sequence is left out as a
    whole. Private elements of its items are never copied.

    Args:
        header: as read from a file; its elements may be damaged.
        names: keywords of the elements.

    Returns:
        A data set of the valid elements, and the keywords of invalid ones.
    """
    valid, invalid = Dataset(), []
    with quiet_pydicom():
        for name in names:
            tag = tag_for_keyword(name)
            assert tag is not None, name
            try:
                if tag in header:
                    element = _valid_element(header, tag, _declares_characters(header, False))
                    _check_writable(element)
                    if not element.is_empty:
                        valid.add(element)
            except Exception:  # pydicom decodes elements on access and raises many types of error
                invalid.append(name)
    return valid, invalid


def uid_in(header: Dataset, name: str) -> str:
    """Return a UID of a header that results can refer to, else an empty text.

    Leading zeros and empty components, which the standard does not allow, are kept: an archive that stores
    the series identifies it by that UID.
    """
    try:
        with quiet_pydicom():
            value = str(header.get(name) or "")
    except Exception:  # pydicom decodes elements on access and raises many types of error
        return ""
    return value if _UID.fullmatch(value) else ""


def _valid_element(dataset: Dataset, tag: int, declared: bool) -> DataElement:
    """Return a new, valid copy of an element.

    Args:
        dataset: contains the element.
        tag: of the element.
        declared: the data set names a character set beyond ASCII.

    Raises:
        Exception: the element is not valid.
    """
    vr, many = dictionary_VR(tag), dictionary_VM(tag) != "1"
    value: Any = dataset[tag].value
    if isinstance(value, Items) != (vr == VR.SQ):
        raise ValueError("another kind of element")
    if vr == VR.SQ:
        return DataElement(tag, vr, [_valid_item(item, declared) for item in value])
    if value is None or (isinstance(value, str | bytes | list | PersonName) and not value):
        return DataElement(tag, vr, None)
    values = list(value) if isinstance(value, pydicom.multival.MultiValue | list) else [value]
    if len(values) > 1 and not many:
        raise ValueError("several values")
    if vr in STR_VR:
        values = [_valid_text(vr, one, declared) for one in values]
    for one in values:
        validate_value(vr, one, RAISE)
    allowed = _ENUMERATED.get(keyword_for_tag(tag))
    if allowed and any(one not in allowed for one in values):
        raise ValueError("not an allowed value")
    return DataElement(tag, vr, values if len(values) > 1 else values[0], validation_mode=RAISE)


def _valid_item(item: Dataset, declared: bool) -> Dataset:
    declared, valid = _declares_characters(item, declared), Dataset()
    for tag in sorted(item.keys()):
        if not tag.is_private and keyword_for_tag(tag) != "SpecificCharacterSet":
            valid.add(_valid_element(item, tag, declared))
    return valid


def _valid_text(vr: str, value: Any, declared: bool) -> str:
    text = value.decode("ascii") if isinstance(value, bytes) else str(value)
    if not text.isascii() and not (declared and vr in CUSTOMIZABLE_CHARSET_VR):
        raise ValueError("no character set")
    if _REPLACEMENT_CHARACTER in text or (_CONTROL_IN_LINES if vr in _MULTILINE else _CONTROL).search(text):
        raise ValueError("not of the character set")
    if vr == VR.PN and any(group.count("^") >= _NAME_PARTS for group in text.split("=")):
        raise ValueError("too many parts of a name")
    if vr == VR.DA and not (len(text) == 8 and DA(text)):
        raise ValueError("no date")
    if vr == VR.TM and not ("-" not in text and TM(text)):
        raise ValueError("no time")
    if vr == VR.DT and not DT(text):
        raise ValueError("no date and time")
    return text


def _declares_characters(dataset: Dataset, inherited: bool) -> bool:
    """Return whether the character set is known and larger than ASCII."""
    try:
        value = dataset.get("SpecificCharacterSet")
    except Exception:  # pydicom decodes elements on access and raises many types of error
        return False
    if value is None:
        return inherited
    terms = [value] if isinstance(value, str) else list(value)
    beyond = [term for term in terms if term not in ("", "ISO_IR 6", "ISO 2022 IR 6")]
    return bool(beyond) and all(term in python_encoding for term in beyond)


def _check_writable(element: DataElement) -> None:
    """Write the element to memory, to raise any error that writing it raises."""
    alone = Dataset()
    alone.SpecificCharacterSet = CHARACTER_SET
    alone.add(element)
    pydicom.dcmwrite(BytesIO(), alone, implicit_vr=False, little_endian=True, enforce_file_format=False)
