"""The record of a homogenized case: its transform, the hashes of its inputs, and its warnings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from isopose.errors import InputError
from isopose.files import hash_of, read_json, write_json
from isopose.geometry.pose import ANGLE
from isopose.homogenize.reference import ReferenceSource
from isopose.homogenize.scan import HomogenizedScan
from isopose.homogenize.transform import Transform
from isopose.outputs import hashes
from isopose.renamed import CASE_RECORD, with_present_names
from isopose.scan.pose import RollDecision
from isopose.strict import STRICT, Hash, first_problem
from isopose.version import __version__

#: Increases with every change of the layout or of the result of
#: :func:`~isopose.homogenize.scan.homogenize_scan`.
FORMAT: Literal[3] = 3
#: Formats that can be read; 2 has no reference and no scale along z.
READABLE_FORMATS = (2, FORMAT)
#: Folder of the cases' records in a homogenized dataset, and the file that describes all of it.
FOLDER, HEAD = "transforms", "homogenize.json"


@dataclass(frozen=True)
class SliceRecord:
    """The estimated pose of one reoriented slice; a slice without a body has only a roll.

    Args:
        roll_degrees: corrected roll, positive from +x to +y.
        pose_from: ``anatomy``, ``learned``, ``moments`` or ``identity``.
        agreement: of the outline with the reference's, Eq. 1.
        confidence: probability that the roll is right within 6 degrees, or the agreement if a model does
            not use the roll network.
    """

    roll_degrees: float
    pose_from: str | None
    agreement: float | None
    confidence: float | None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class CaseRecord:
    """One homogenized case. Only its id may identify a patient.

    Args:
        format: of this record.
        isopose: version.
        case: id.
        part: ``Tr`` or ``Ts``, the suffix of its folders.
        settings_sha256: of network, reference, settings and label values.
        sources: SHA-256 of the scan and, if there is one, of its label file.
        files: SHA-256 of each written file, by path in the dataset.
        warnings: one line each.
        roll_degrees: circular median of the slices' corrected roll.
        slices: from the feet.
        transform: to the homogenized grid and back.
        roll_decision: whether the slices' roll overrides the header; None where it was not estimated.
        reference: source of the reference; None in format 2.
    """

    format: Literal[2, 3]
    isopose: str
    case: str
    part: Literal["Tr", "Ts"]
    settings_sha256: Hash
    sources: dict[str, Hash]
    files: dict[str, Hash]
    warnings: tuple[str, ...]
    roll_degrees: float
    slices: tuple[SliceRecord, ...]
    transform: Transform
    roll_decision: RollDecision | None = None
    reference: ReferenceSource | None = None
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def to_json(self) -> dict[str, Any]:
        """Return the record as values that JSON represents exactly."""
        return CASE_RECORD_ADAPTER.dump_python(self, mode="json")


CASE_RECORD_ADAPTER = TypeAdapter(CaseRecord)


def record_path(root: Path, case: str) -> Path:
    """Return the path of a case's record in a homogenized dataset."""
    return root / FOLDER / f"{case}.json"


def write_record(
    root: Path,
    case: str,
    part: Literal["Tr", "Ts"],
    scan: HomogenizedScan,
    reference: ReferenceSource,
    settings_sha256: str,
    sources: dict[str, str],
    files: list[Path],
) -> CaseRecord:
    """Write a case's record, after its files."""
    poses = scan.poses
    record = CaseRecord(
        format=FORMAT,
        isopose=__version__,
        case=case,
        part=part,
        settings_sha256=settings_sha256,
        sources=sources,
        files=hashes(root, files),
        warnings=scan.warnings,
        roll_degrees=float(np.degrees(poses.roll)),
        slices=tuple(
            SliceRecord(
                roll_degrees=float(np.degrees(poses.pose[z, ANGLE])),
                pose_from=poses.source_of(z),
                agreement=float(poses.agreement[z]) if has_body else None,
                confidence=float(poses.confidence[z]) if has_body else None,
            )
            for z, has_body in enumerate(poses.has_body)
        ),
        transform=scan.transform,
        roll_decision=poses.decision,
        reference=reference,
    )
    values = record.to_json()
    # The hash detects changes: a changed digit would silently move the restored labels.
    write_json(record_path(root, case), {**values, "sha256": hash_of(values)})
    return record


def read_record(path: Path) -> CaseRecord:
    """Read a case's record.

    Raises:
        InputError: missing, changed since it was written, or of another version.
    """
    values = read_json(path)
    version = values.get("format") if isinstance(values, dict) else None
    if version not in READABLE_FORMATS:
        raise InputError(f"{path}: expected format {FORMAT}, got {version}; homogenize the case again")
    stored_hash = values.pop("sha256", None)
    try:
        if stored_hash != hash_of(values):
            raise InputError(f"{path}: was changed since it was written; homogenize the case again")
        # After the hash check: the hash covers the keys under their former names.
        return CASE_RECORD_ADAPTER.validate_json(json.dumps(with_present_names(values, CASE_RECORD)))
    except ValueError as error:
        # Not a ValidationError if the file holds a number that JSON does not have, such as NaN.
        problem = first_problem(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{path}: {problem}; homogenize the case again") from None
