"""The record of a prediction: hashes of its inputs, poses, confidence and warnings."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from isopose.devices import choose_precision
from isopose.files import hash_of
from isopose.geometry.frame import Frame
from isopose.geometry.pose import ANGLE, LOG_SCALE_X, LOG_SCALE_Y, LOG_SCALES
from isopose.geometry.volume import Volume
from isopose.inference.ensemble import Ensemble, ensemble_of
from isopose.inference.postprocess import Midline
from isopose.inference.predict import Prediction
from isopose.labels import Labels, voxels_of
from isopose.models.folder import Model
from isopose.scan.correction import Correction
from isopose.scan.pose import ScanPose
from isopose.version import __version__


def decisive_settings(model: Model | Ensemble) -> list[Any]:
    """Return everything but the scan that determines a result."""
    return [*provenance(ensemble_of(model), "").values()]


def provenance(
    ensemble: Ensemble, input_hash: str, correction: Correction | None = None, mask: str | None = None
) -> dict[str, Any]:
    """Return all inputs that determine a result; entries that do not apply are None.

    Args:
        ensemble: the models.
        input_hash: of the scan.
        correction: poses and crops set by hand.
        mask: hash of the user's own mask of the body.
    """
    members = [member.weights_sha256 for member in ensemble.members]
    configs = [
        hash_of([member.config.model_dump(mode="json"), member.fingerprint.to_json()])
        for member in ensemble.members
    ]
    several = len(members) > 1
    return {
        "isopose": __version__,
        "model_sha256": ensemble.weights_sha256,
        "members_sha256": members if several else None,
        "config_sha256": hash_of(configs) if several else configs[0],
        "input_sha256": input_hash,
        "labels": dict(ensemble.labels.values),
        "clean_up": [rule.to_json() for rule in ensemble.rules] or None,
        "correction_sha256": None if correction is None else correction.sha256,
        "mask_sha256": mask,
    }


def prediction_record(
    model: Model | Ensemble,
    prediction: Prediction,
    input_hash: str,
    correction: Correction | None = None,
    mask: str | None = None,
) -> dict[str, Any]:
    """Return a prediction's record as values for JSON; it contains no patient data.

    With several models, pose and crop are those of the first.
    """
    ensemble, scan, frame = ensemble_of(model), prediction.scan_pose, prediction.prepared.frame
    lead = ensemble.lead
    device = lead.pipeline.pose.reference_mask.device.type
    return {
        **{key: v for key, v in provenance(ensemble, input_hash, correction, mask).items() if v is not None},
        # Other devices give the same result up to rounding.
        "device": device,
        "precision": choose_precision(lead.config.predict.precision, device),
        "modality": lead.modality,
        "volumes_ml": volumes_ml(prediction.labels, ensemble.labels),
        **({"removed_ml": dict(prediction.removed_ml)} if ensemble.rules else {}),
        "warnings": list(prediction.warnings),
        "roll_degrees": math.degrees(scan.roll),
        "roll_decision": None if scan.decision is None else asdict(scan.decision),
        "frame": {"center_mm": list(frame.center_mm), "fov_mm": frame.fov_mm, "size": frame.size},
        **(_slice_entries(scan) if lead.config.dims == 2 else _volume_entries(lead, scan)),
    }


def _slice_entries(scan: ScanPose) -> dict[str, Any]:
    """Return pose and crop of each slice with a body."""
    return {
        "slices": [
            {
                "slice": int(z),
                "roll_degrees": float(np.degrees(scan.pose[z, ANGLE])),
                "scale_x": float(np.exp(scan.pose[z, LOG_SCALE_X])),
                "scale_y": float(np.exp(scan.pose[z, LOG_SCALE_Y])),
                **_row_entries(scan, int(z)),
            }
            for z in np.flatnonzero(scan.has_body)
        ]
    }


def _volume_entries(model: Model, scan: ScanPose) -> dict[str, Any]:
    """Return pose and crop of a volume."""
    _, pitch, yaw = (math.degrees(angle) for angle in scan.pose[0, :3])
    return {
        "pitch_degrees": pitch,
        "yaw_degrees": yaw,
        "scales": [math.exp(log_scale) for log_scale in scan.pose[0, LOG_SCALES]],
        "reach": float(model.pipeline.reach),
        **_row_entries(scan, 0),
    }


def _row_entries(scan: ScanPose, row: int) -> dict[str, Any]:
    """Return pose, crop and confidence of one row, a slice or the volume."""
    return {
        "pose": scan.pose[row].tolist(),
        "homogenized_from_crop": scan.theta2[row].tolist(),
        "agreement": float(scan.agreement[row]),
        "pose_from": scan.source_of(row),
        "confidence": float(scan.confidence[row]),
        "widened": bool(scan.widened[row]),
        "cut_off": bool(scan.cut_off[row]),
    }


def recorded_midline(record: Mapping[str, Any], reoriented: Volume, min_confidence: float) -> Midline | None:
    """Return the body's midline, from the poses in a record; None if no pose is reliable.

    Args:
        record: by :func:`prediction_record`.
        reoriented: the scan or its labels, reoriented to the patient's axes.
        min_confidence: confidence from which a pose is reliable.
    """
    rows = record.get("slices", [{**record, "slice": 0}])
    depth, height, width = reoriented.array.shape
    indices = [row["slice"] for row in rows]
    pose = np.full((depth if "slices" in record else 1, len(rows[0]["pose"])), np.nan, np.float32)
    confidence = np.full(len(pose), np.nan, np.float32)
    pose[indices], confidence[indices] = [row["pose"] for row in rows], [row["confidence"] for row in rows]
    frame = Frame(tuple(record["frame"]["center_mm"]), record["frame"]["fov_mm"], record["frame"]["size"])
    x, y, z = map(float, reoriented.spacing)
    return Midline.of(frame, (depth, height, width), (x, y, z), pose, confidence >= min_confidence)


def volumes_ml(label_map: Volume, labels: Labels) -> dict[str, float]:
    """Return the volume of each label and union in milliliters."""
    voxels, voxel_ml = voxels_of(label_map.array), label_map.voxel_ml
    return {name: float(voxels[list(values)].sum() * voxel_ml) for name, values in labels.targets().items()}
