"""Decide whether a model mirrors: no structure of one side of the body may be shown on the other.

The names of two labels may tell their sides (:func:`isopose.labels.mirrored_classes`). Where they do not, the
training patients tell whether a structure lies on one side of the body.
"""

import numpy as np

from isopose.choices import AUTO
from isopose.config import MIRRORED, Config
from isopose.data.samples import Slices
from isopose.errors import InputError
from isopose.labels import Labels, mirrored_classes
from isopose.progress import Reporter

#: A structure belongs to one side of the body if at least this fraction of its pixels lies there, in at least
#: this fraction of the patients.
MIN_PIXEL_SHARE, MIN_PATIENT_SHARE = 0.75, 0.8
#: Largest number of labeled slices that are examined.
MAX_SLICES = 1000


def check_mirroring(config: Config, labels: Labels) -> None:
    """Refuse mirroring that was asked for with labels that have a side but no counterpart.

    Raises:
        InputError: ``unet.mirror`` or ``predict.mirror`` is set, and a name has a side but not exactly one
            partner.
    """
    for setting, off, value in (
        ("unet.mirror", "unet.mirror=0", config.unet.mirror),
        ("predict.mirror", "predict.mirror=false", config.predict.mirror),
    ):
        if not value or value == AUTO:
            continue
        try:
            mirrored_classes(labels.names)
        except InputError as error:
            raise InputError(f"{setting}: {error}; set {off}") from None


def decide_mirroring(config: Config, labels: Labels, slices: Slices, reporter: Reporter) -> Config:
    """Return a configuration whose ``unet.mirror`` and ``predict.mirror`` are not ``auto``.

    Args:
        config: with either of them ``auto``, or set.
        labels: of the dataset.
        slices: of the training patients.
        reporter: gets a note that names a label because of which nothing is mirrored.
    """
    fraction = config.mirrored
    if config.unet.mirror == AUTO:
        # nnU-Net's augmentation mirrors by itself.
        baseline = config.unet.augmentation == "nnunet"
        reason = "" if baseline else _why_not_mirrored(labels, slices)
        if config.data.plane == "sagittal" and not baseline:
            reason = "mirrored sagittal slices have front and back swapped"
        fraction = 0.0 if reason or baseline else MIRRORED
        if reason:
            reporter.say(f"note: nothing is mirrored (unet.mirror): {reason}")
    averaged = fraction > 0.0 if config.predict.mirror == AUTO else config.averaged
    return config.model_copy(
        update={
            "unet": config.unet.model_copy(update={"mirror": fraction}),
            "predict": config.predict.model_copy(update={"mirror": averaged}),
        }
    )


def _why_not_mirrored(labels: Labels, slices: Slices) -> str:
    """Return why labels cannot be mirrored; an empty string where they can."""
    try:
        partners = mirrored_classes(labels.names)
    except InputError as error:
        return str(error)
    sides = one_sided(slices)
    unpaired = [
        name for index, name in enumerate(labels.names) if partners[index + 1] == index + 1 and sides[index]
    ]
    return f"{unpaired[0]!r} lies on one side of the body, but its name contains no side" if unpaired else ""


def one_sided(slices: Slices) -> list[bool]:
    """Return for each label, in class order, whether it lies on the same side of the body in most patients.

    A slice is divided at the mean x of its mask's pixels, in the axes of the header.
    """
    sampled = slices.labeled().spread(MAX_SLICES)
    count = slices.presence.shape[1]
    counts: dict[str, np.ndarray] = {}
    patient_of = sampled.patients
    for batch in sampled.batches(16):
        mask, labels = batch.mask[:, 0].numpy() > 0, batch.labels.numpy()
        x = np.arange(mask.shape[2])
        area = mask.sum(axis=(1, 2))
        middle = (mask.sum(axis=1) * x).sum(axis=1) / np.maximum(area, 1)
        for row, slice_labels, center in zip(batch.rows.tolist(), labels, middle, strict=True):
            columns = np.stack([(slice_labels == index).sum(axis=0) for index in range(1, count + 1)])
            sums = counts.setdefault(patient_of[row], np.zeros((2, count)))
            sums += [columns[:, x < center].sum(axis=1), columns[:, x > center].sum(axis=1)]
    result = []
    for index in range(count):
        left_right = [sums[:, index] / total for sums in counts.values() if (total := sums[:, index].sum())]
        patients = [sum(shares[side] >= MIN_PIXEL_SHARE for shares in left_right) for side in (0, 1)]
        result.append(bool(left_right) and max(patients) >= MIN_PATIENT_SHARE * len(left_right))
    return result
