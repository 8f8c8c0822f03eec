"""Choose what estimates the poses: the network and reference of the package, or those of a trained model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from isopose.choices import AUTO, Modality, Per
from isopose.config import HomogenizeConfig
from isopose.data.normalization import ByScan, Scale
from isopose.data.preprocess import common_fov
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.homogenize.reference import (
    ReferenceOutline,
    ReferenceSource,
    find_reference,
    outline_of_model,
    shipped_outline,
    shipped_pose_config,
    shipped_scale,
)
from isopose.models.folder import Model, load_model
from isopose.models.pipeline import Networks
from isopose.models.pose import PoseTransformer
from isopose.models.shipped import WEIGHTS, shipped_sha256, shipped_transformer
from isopose.settings import DataConfig, PredictConfig


@dataclass(frozen=True)
class PoseEstimator:
    """Everything besides the scan that determines its homogenized image.

    Args:
        config: one pose for a scan or several, and the size.
        transformer: estimates poses (STN1).
        joint: a model's networks if one of them refines these poses (``stn=joint``), else None.
        crop: a model's networks if the scan is cropped, else None.
        scale: normalization of the transformer's input.
        fov_mm: side of the frame, if the body fits into it; None: determined by each body.
        data: settings of the preprocessing.
        modality: of the scans.
        predict: thresholds of the warnings about poses.
        side_mm: side of the reference's frame, mm.
        origin: ``shipped`` with the package, or of a ``model``.
        reference: source of the reference.
        sha256: hash of network, reference and settings.
    """

    config: HomogenizeConfig
    transformer: PoseTransformer
    joint: Networks | None
    crop: Networks | None
    scale: Scale | ByScan
    fov_mm: float | None
    data: DataConfig
    modality: Modality
    predict: PredictConfig
    side_mm: float
    origin: Literal["shipped", "model"]
    reference: ReferenceSource
    sha256: str

    @property
    def pixel_mm(self) -> float:
        """Side of a homogenized pixel in mm, measured in the reference patient."""
        return self.side_mm / self.config.size

    @property
    def per(self) -> Per:
        """Which slices of a scan share an in-plane pose; with ``tilted`` all of them."""
        return _in_plane_per(self.config)


def open_estimator(
    model: Path | None, config: HomogenizeConfig, reference: ReferenceOutline | None = None
) -> PoseEstimator:
    """Return the shipped network and a reference, or the network and reference of a model folder.

    Args:
        model: folder of the model whose pose networks are used; None: the shipped network.
        config: one pose for a scan or several, the size, and the reference.
        reference: the reference, if already loaded; None: load the one that the configuration names.

    Raises:
        InputError: no such model or reference; the model estimates no pose; or ``config.crop`` is set and
            there is no model, or one without a crop.
    """
    if config.crop and model is None:
        raise InputError("--crop: the crop is found by a model's STN2; name the model (--model)")
    _check_plane(config)
    reference = reference or find_reference(config, model)
    if model is None:
        return shipped_estimator(config, reference)
    return estimator_from_model(load_model(model), config)


def shipped_estimator(config: HomogenizeConfig, reference: ReferenceOutline | None = None) -> PoseEstimator:
    """Return an estimator without training: the roll network that ships with the package, and a reference.

    Args:
        config: one pose for a scan or several, and the size.
        reference: whose pose and size scans get; None: the shipped child.
    """
    modality, plane, per = config.scan_modality, config.scan_plane, _in_plane_per(config)
    reference, scale = reference or shipped_outline(plane=plane), shipped_scale(modality)
    pose, data, predict = shipped_pose_config(modality, per, plane), DataConfig(plane=plane), PredictConfig()
    settings = (section.model_dump(mode="json") for section in (pose, data, predict))
    return PoseEstimator(
        config=config,
        transformer=shipped_transformer(pose, reference.tensor, scale.air, scale.top, plane),
        joint=None,
        crop=None,
        scale=scale,
        fov_mm=None,
        data=data,
        modality=modality,
        predict=predict,
        side_mm=reference.side_mm,
        origin="shipped",
        reference=reference.source,
        sha256=hash_of(
            [shipped_sha256(WEIGHTS[pose.contrast]), asdict(reference.source), config.per, *settings]
        ),
    )


def estimator_from_model(model: Model, config: HomogenizeConfig) -> PoseEstimator:
    """Return an estimator with a model's pose networks, reference and fingerprint; the model is not changed.

    Raises:
        InputError: the model estimates no poses; ``config.crop`` is set and the model has no crop of slices;
            or the scans are of another modality or plane.
    """
    if config.modality not in (AUTO, model.modality):
        raise InputError(
            f"the scans are {config.modality.upper()}, the model is of {model.modality.upper()}; leave "
            "--model out, or give a model of the scans' modality"
        )
    if config.plane not in (None, model.config.data.plane):
        raise InputError(
            f"--plane {config.plane}: the model is of {model.config.data.plane} slices; leave --model out, "
            "or give a model of the scans' plane"
        )
    _check_plane(config.model_copy(update={"plane": model.config.data.plane}))
    if config.per == "tilted" and (config.crop or model.pipeline.joint is not None):
        raise InputError(
            "--per tilted: supports neither --crop nor a model with stn=joint, because both work slice by "
            "slice; choose another --per"
        )
    if config.crop and not model.config.crop.enabled:
        raise InputError("--crop: the model has no crop (crop.enabled=false); leave --crop out")
    if config.crop and model.config.dims == 3:
        raise InputError("--crop: cuts slices, and the model crops volumes (dims=3); leave --crop out")
    if not model.config.pose_estimated:
        raise InputError(
            "the model does not estimate poses (pose.start=identity, pose.learned=false), so nothing would "
            "be homogenized; leave --model out, or name one that estimates poses"
        )
    networks, reference = model.pipeline, outline_of_model(model)
    return PoseEstimator(
        config=config,
        transformer=networks.pose,
        joint=networks if networks.joint is not None else None,
        crop=networks if config.crop else None,
        scale=model.fingerprint.pose_scale(model.config.data),
        fov_mm=common_fov(model.fingerprint, model.config.data),
        data=model.config.data,
        modality=model.modality,
        predict=model.config.predict,
        side_mm=reference.side_mm,
        origin="model",
        reference=reference.source,
        sha256=hash_of(
            [
                model.weights_sha256,
                model.config.model_dump(mode="json"),
                model.fingerprint.to_json(),
                config.per,
            ]
        ),
    )


def _check_plane(config: HomogenizeConfig) -> None:
    """Raise an InputError for ``per="tilted"`` (pitch and yaw) with coronal or sagittal slices."""
    if config.per == "tilted" and config.plane in ("coronal", "sagittal"):
        raise InputError(
            f"--per tilted: brings axial slices to one pose, these are {config.plane}; choose another --per"
        )


def _in_plane_per(config: HomogenizeConfig) -> Per:
    """Return which slices share an in-plane pose; with ``tilted`` all of them."""
    return "volume" if config.per == "tilted" else config.per
