"""What finds the poses: the network and reference that ship with the package, or a trained model's."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isopose.config import DataConfig, HomogenizeConfig, Per, PoseConfig, PredictConfig
from isopose.data.fingerprint import Scale, Window
from isopose.data.preprocess import usual_fov
from isopose.errors import InputError
from isopose.files import hash_of
from isopose.models.folder import Model, load_model
from isopose.models.pipeline import Networks
from isopose.models.pose import PoseTransformer
from isopose.models.roll import SOFT_TISSUE_HU
from isopose.models.shipped import load_reference, load_shipped, shipped_sha256


@dataclass(frozen=True)
class PoseEstimator:
    """All that decides a homogenized case besides the scan itself.

    Args:
        transformer: finds poses.
        per: which slices of a scan share a pose.
        joint: a model's networks where one of them goes on from those poses (``stn=joint``), else none.
        crop: a model's networks whose crop is cut, else none.
        scale: of the values that it sees.
        fov_mm: side of the square that it sees, where the body fits into that; none: each body's own.
        data: how a scan becomes what it sees.
        predict: when its poses are doubted.
        size: pixels along a side of the reference's frame in what is written.
        side_mm: side of the reference's frame.
        tilted: whether a scan's pose has pitch and yaw.
        origin: whose network and reference these are.
        sha256: of network, reference and settings.
    """

    transformer: PoseTransformer
    per: Per
    joint: Networks | None
    crop: Networks | None
    scale: Scale
    fov_mm: float | None
    data: DataConfig
    predict: PredictConfig
    size: int
    side_mm: float
    tilted: bool
    origin: Literal["shipped", "model"]
    sha256: str

    @property
    def pixel_mm(self) -> float:
        """Side of a homogenized pixel, as large as it is in the reference patient."""
        return self.side_mm / self.size


def open_estimator(model: Path | None, config: HomogenizeConfig) -> PoseEstimator:
    """The shipped network and reference, or those of a model folder.

    Raises:
        InputError: no such model, or one that estimates no pose, or no crop where that is asked for.
    """
    if config.crop and model is None:
        raise InputError("--crop: what is cropped is what a model's STN2 found; name the model (--model)")
    if model is None:
        return shipped_estimator(config)
    return estimator_from_model(load_model(model), config)


def shipped_estimator(config: HomogenizeConfig) -> PoseEstimator:
    """What needs no training: the roll network and the reference outline that ship with the package."""
    reference, window = load_reference(), Window(*SOFT_TISSUE_HU)
    per = _in_plane(config)
    pose = PoseConfig(per=per)
    transformer = PoseTransformer(pose, reference.mask, window.air, window.top)
    assert transformer.roll is not None
    load_shipped(transformer.roll)
    transformer.eval().requires_grad_(False)
    data, predict = DataConfig(), PredictConfig()
    settings = (part.model_dump(mode="json") for part in (pose, data, predict))
    made_of = [shipped_sha256(), config.per, *settings]
    return PoseEstimator(
        transformer,
        per,
        None,
        None,
        window,
        None,
        data,
        predict,
        config.size,
        reference.side_mm,
        config.per == "tilted",
        "shipped",
        hash_of(made_of),
    )


def estimator_from_model(model: Model, config: HomogenizeConfig) -> PoseEstimator:
    """A model's pose part, reference and fingerprint; the model stays as it is.

    Raises:
        InputError: the model takes every slice as it lies, so it has no pose to bring a scan to; or its crop
            is asked for and it has none.
    """
    if config.per == "tilted" and (config.crop or model.pipeline.joint is not None):
        raise InputError(
            "--per tilted: has no crop and takes no model with stn=joint, both of which are of slices; "
            "choose another --per"
        )
    if config.crop and not model.config.crop.enabled:
        raise InputError("--crop: the model crops nothing (crop.enabled=false); leave --crop out")
    if config.crop and model.config.dims == 3:
        raise InputError("--crop: cuts slices, and the model crops volumes (dims=3); leave --crop out")
    if not model.config.pose_estimated:
        raise InputError(
            "the model takes every slice as it lies (pose.start=identity, pose.learned=false), so nothing "
            "would be homogenized; leave --model out, or name one that estimates poses"
        )
    networks = model.pipeline
    area_cm2 = model.info.reference.area_cm2
    if area_cm2 is None:
        raise InputError(
            "the model does not say how large its reference is (info.reference.area_cm2); train again"
        )
    # The reference's body is known in cm², and what part of its frame it fills.
    side_mm = 10.0 * math.sqrt(area_cm2 / float(networks.pose.reference_mask.mean()))
    made_of = [
        model.weights_sha256,
        model.config.model_dump(mode="json"),
        model.fingerprint.to_json(),
        config.per,
    ]
    return PoseEstimator(
        networks.pose,
        _in_plane(config),
        networks if networks.joint is not None else None,
        networks if config.crop else None,
        model.fingerprint.intensity,
        usual_fov(model.fingerprint, model.config.data),
        model.config.data,
        model.config.predict,
        config.size,
        side_mm,
        config.per == "tilted",
        "model",
        hash_of(made_of),
    )


def _in_plane(config: HomogenizeConfig) -> Per:
    """Which slices share a pose in plane; a tilted scan's do."""
    return "volume" if config.per == "tilted" else config.per
