"""The results of a wrapped command for one scan, and their record."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isopose import outputs
from isopose.devices import one_thread
from isopose.errors import InputError
from isopose.files import hash_of, write_json
from isopose.geometry.volume import Volume
from isopose.homogenize.case import IMAGE_EXTENSION, HomogenizeSettings
from isopose.homogenize.command import Command
from isopose.homogenize.command_output import CommandOutput, RestoredOutput, restore_output
from isopose.homogenize.record import CaseRecord, read_record, record_path
from isopose.homogenize.restore import probability_path
from isopose.inference.files import PROBABILITIES, record_name
from isopose.io.cases import Case
from isopose.io.channels import hash_of_channels
from isopose.io.images import write_image
from isopose.io.results.formats import NIFTI, result_files, write_results
from isopose.io.sources import hash_of_source
from isopose.labels import Labels
from isopose.version import __version__

#: Folders in the output: the command's printed output; the maps of scans with more than one.
LOGS, MAPS = "logs", "maps"


@dataclass(frozen=True)
class WrapSettings:
    """Settings that all scans share; small and picklable, as they are sent to other processes.

    Args:
        output: folder of the results.
        command: to run on homogenized scans.
        labels: names of the label values that it writes; may be empty.
        formats: of the label maps.
        keep: keep homogenized scans and the command's files in the working folder.
        homogenizing: settings of pose and size, and the selected DICOM series; its root is the working
            folder.
        pose: settings of pose and size, and the origin of the poses, for the records.
    """

    output: Path
    command: Command
    labels: Labels
    formats: tuple[str, ...]
    keep: bool
    homogenizing: HomogenizeSettings
    pose: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Run:
    """One run of the command.

    Args:
        exit_code: of the program; results are made of a run with 0 only.
        seconds: its duration.
        scans: number of scans that it was run on.
        log: file of its printed output.
    """

    exit_code: int
    seconds: float
    scans: int
    log: Path


def wrap_provenance(settings: WrapSettings, image_sha256: str, mask_sha256: str | None) -> dict[str, Any]:
    """Return all inputs that determine the results of a scan, except the program itself."""
    return {
        "isopose": __version__,
        "command": list(settings.command.words),
        "settings_sha256": settings.homogenizing.sha256,
        "input_sha256": image_sha256,
        "labels": dict(settings.labels.values),
        "formats": list(settings.formats),
        "mask_sha256": mask_sha256,
    }


def complete_record(case: Case, settings: WrapSettings) -> dict[str, Any] | None:
    """Return a scan's record if its results are complete and made from the same inputs; else None.

    Raises:
        InputError: the scan, or the mask of its body, is missing.
    """
    record = outputs.earlier_record(settings.output / record_name(case.id)) or {}
    files = record.get("files")
    mask = None if case.mask is None else hash_of_source(case.mask)
    provenance = wrap_provenance(settings, hash_of_channels(case.images, settings.homogenizing.series), mask)
    if not isinstance(files, dict) or not outputs.made_from(record, provenance):
        return None
    return None if outputs.damaged(settings.output, files) else record


def remove_results(settings: WrapSettings, name: str) -> None:
    """Remove the record of a scan, if a wrapped command wrote it, and the files that it lists."""
    outputs.remove(_listed_results(settings, name))


def _listed_results(settings: WrapSettings, name: str) -> list[Path]:
    """Return the record of a scan, if a wrapped command wrote it, and the files that it lists."""
    path = settings.output / record_name(name)
    record = outputs.earlier_record(path)
    if record is None or "command" not in record:
        return []
    return [path, *(settings.output / file for file in sorted(outputs.listed(record)))]


@one_thread()
def write_restored(case: Case, output: CommandOutput, run: Run, settings: WrapSettings) -> dict[str, Any]:
    """Restore the command's files for a scan, write the results and, last, the record; return the record.

    Args:
        case: the scan.
        output: the files that the command wrote.
        run: the run of the command that wrote them.
        settings: of all scans.

    Raises:
        InputError: a map that cannot be restored, or none; a format for which there is no label map.
    """
    path = settings.output / record_name(case.id)
    homogenized = read_record(record_path(settings.homogenizing.root, case.id))
    sources, written = homogenized.sources, list[Path]()
    provenance = wrap_provenance(settings, sources["image"], sources.get("mask"))
    with outputs.replacing_results(path, written, _listed_results(settings, case.id)):
        restored = _write_maps(case, output, homogenized, settings, written)
        warnings = [*homogenized.warnings, *restored.warnings]
        warnings += _write_labels(case, output, restored, provenance, settings, written)
        record = {
            **provenance,
            "pose": dict(settings.pose),
            "roll_degrees": homogenized.roll_degrees,
            "roll_decision": homogenized.roll_decision and asdict(homogenized.roll_decision),
            "exit_code": run.exit_code,
            "command_seconds": run.seconds,
            "command_scans": run.scans,
            "volumes_ml": restored.volumes_ml,
            # Sorted so that the label map comes first.
            "files": outputs.hashes(settings.output, sorted(written, key=lambda path: len(path.parts))),
            "warnings": warnings,
        }
        write_json(path, record)
    return record


def _write_maps(
    case: Case, output: CommandOutput, homogenized: CaseRecord, settings: WrapSettings, written: list[Path]
) -> RestoredOutput:
    """Write a scan's restored maps, except a label map that is its only image."""

    def write(path: Path, volume: Volume) -> None:
        written.append(path)
        write_image(volume, path)

    def write_map(name: str, volume: Volume) -> None:
        if output.has_several_images:
            write(settings.output / MAPS / case.id / f"{name}{IMAGE_EXTENSION}", volume)
        else:
            write(settings.output / PROBABILITIES / f"{case.id}{IMAGE_EXTENSION}", volume)

    def write_class(name: str, volume: Volume) -> None:
        write(probability_path(settings.output, case.id, name), volume)

    return restore_output(output, homogenized.transform, settings.labels, write_map, write_class)


def _write_labels(
    case: Case,
    output: CommandOutput,
    restored: RestoredOutput,
    provenance: Mapping[str, Any],
    settings: WrapSettings,
    written: list[Path],
) -> Sequence[str]:
    """Write a scan's label map in each format; return warnings."""
    dicom_formats = tuple(name for name in settings.formats if name != NIFTI)
    # If there are several maps, they are already written.
    formats = dicom_formats if output.has_several_images else settings.formats
    if dicom_formats and restored.labels is None:
        raise InputError(
            f"--format {dicom_formats[0]}: expected one label map, the command wrote "
            f"{restored.label_map_count}; let it write one, or leave --format out"
        )
    if restored.labels is None or not formats:
        return ()
    files = result_files(settings.output, case.id, formats)
    written += files.values()
    return write_results(
        files,
        restored.labels,
        settings.labels,
        restored.volumes_ml,
        path=case.image,
        series=settings.homogenizing.series,
        made_from=[hash_of(dict(provenance))],
    )
