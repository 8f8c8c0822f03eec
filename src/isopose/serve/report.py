"""Report on one scan: one HTML file that opens without a server and names no patient."""

from pathlib import Path
from typing import Any

from isopose.geometry.volume import Volume
from isopose.inference.predict import Prediction
from isopose.models.folder import Model
from isopose.report.figure import steps_png
from isopose.report.html import LIMITS, Picture, ReportSection, write_report
from isopose.report.steps import steps_of
from isopose.report.tables import Column, Table
from isopose.version import __version__


def write_scan_report(
    path: Path,
    model: Model,
    volume: Volume,
    prediction: Prediction,
    record: dict[str, Any],
) -> None:
    """Write volumes, warnings, pose and a picture of the steps.

    Args:
        path: HTML file.
        model: model that predicted; of several the first.
        volume: scan as read.
        prediction: prediction of the scan.
        record: record of the prediction.
    """
    size = " × ".join(str(n) for n in volume.array.shape[::-1])
    spacing = " × ".join(f"{value:.2f}" for value in volume.spacing)
    facts = {
        "Scan": f"{size} voxels of {spacing} mm",
        "Roll": f"{record['roll_degrees']:+.1f}°",
        "Confidence in the pose": _format_confidence(record),
        "isopose": __version__,
        "Model": record["model_sha256"][:12],
    }
    if "correction_sha256" in record:
        facts["Set by hand"] = "pose or crop"
    volumes = Table(
        "Volumes",
        (Column("Structure", text=True), Column("Volume, ml", digits=1)),
        tuple(record["volumes_ml"].items()),
    )
    pictures: tuple[Picture, ...] = ()
    if model.config.dims == 2:
        steps = steps_of(model, volume, prediction)
        text = (
            "Input, homogenized, cropped, predicted in the crop, and restored, for some slices of the scan."
        )
        pictures = (Picture(steps_png(steps, model.labels.names), text, text),) if steps else ()
    write_report(
        path,
        title="Segmentation of one scan",
        lead="What isopose segmented in this scan, and its warnings.",
        facts=facts,
        sections=[
            ReportSection(
                "Result",
                tables=(volumes,),
                notices=tuple(record["warnings"]),
                text=() if record["warnings"] else ("No warnings.",),
            ),
            *([ReportSection("Step by step", pictures=pictures)] if pictures else []),
            ReportSection("Limits", text=LIMITS),
        ],
    )


def _format_confidence(record: dict[str, Any]) -> str:
    slices = record.get("slices")
    values = [one["confidence"] for one in slices] if slices is not None else [record["confidence"]]
    return f"{min(values):.2f}" if values else "no body"
