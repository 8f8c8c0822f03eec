"""The modality of a dataset or model, and the body mask that depends on it."""

from collections.abc import Sequence

import numpy as np

from isopose.choices import AUTO, Modality
from isopose.config import Config
from isopose.data.body import body_mask
from isopose.data.body_mr import mr_body_mask
from isopose.data.normalization import pose_channel_of
from isopose.errors import InputError
from isopose.geometry.volume import Volume
from isopose.io.cases import Dataset
from isopose.io.sizes import size_warnings
from isopose.settings import DataConfig


def modality_of(config: DataConfig, channels: Sequence[str]) -> Modality:
    """Return the modality of scans: as ``data.modality`` says, or by the channel that shows the pose.

    Args:
        config: the setting, and which channel shows the pose.
        channels: names of all channels; ``CT`` is CT, all others are MR.

    Raises:
        InputError: the channel that shows the pose does not exist.
    """
    if config.modality != AUTO:
        return config.modality  # type: ignore[return-value]  # the other values are those of Modality
    return "ct" if channels[pose_channel_of(config, channels)].casefold() == "ct" else "mr"


def modality_warnings(config: DataConfig, dataset: Dataset, setting: str) -> tuple[str, ...]:
    """Return a warning if a setting contradicts the modality that a dataset's description states.

    It is no error: the name of a channel is free text, such as the phase of a CT. A DICOM series of another
    modality is refused when it is read.

    Args:
        config: the setting, and which channel shows the pose.
        dataset: the dataset; only ``dataset.json`` states a modality.
        setting: how the user set it, for the message, e.g. ``--modality``.

    Raises:
        InputError: the channel that shows the pose does not exist.
    """
    if config.modality == AUTO or dataset.layout not in ("nnunet", "decathlon"):
        return ()
    stated = modality_of(config.model_copy(update={"modality": AUTO}), dataset.channels)
    if stated == config.modality:
        return ()
    channel = dataset.channels[pose_channel_of(config, dataset.channels)]
    return (
        f"dataset.json names the channel {channel}, which means {stated.upper()}, but {setting} says "
        f"{config.modality.upper()}, which is used; leave {setting} out unless it is right",
    )


def with_poses_of(config: Config, channels: Sequence[str]) -> Config:
    """Return the configuration with the pose that fits the scans.

    In MR the roll network is that of any contrast. For coronal and sagittal slices no network estimates the
    roll, which is then the header's.

    Args:
        config: as given.
        channels: names of the dataset's channels.
    """
    pose = config.pose.in_plane(config.data.plane)
    if modality_of(config.data, channels) == "mr":
        pose = pose.model_copy(update={"contrast": "any"})
    return config if pose == config.pose else config.model_copy(update={"pose": pose})


def find_body(volume: Volume, config: DataConfig, modality: Modality) -> np.ndarray:
    """Return the trunk's mask ``(z, y, x)`` of a scan, not empty.

    Args:
        volume: the scan, reoriented to the patient's axes.
        config: the body's threshold in CT.
        modality: of the scan.

    Raises:
        InputError: no body; where the field of view is too small for one, the message says so.
    """
    try:
        return body_mask(volume, config.body_threshold_hu) if modality == "ct" else mr_body_mask(volume)
    except InputError as error:
        raise InputError("; ".join([str(error), *size_warnings(volume)])) from None
