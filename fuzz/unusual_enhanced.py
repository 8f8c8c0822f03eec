"""The slices of a series as enhanced CT: one file of many frames, or some that share them."""

from random import Random
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, generate_uid
from unusual_body import maybe

#: Where in an enhanced file the elements of a slice may stand.
_MACROS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
}


def as_enhanced(slices: list[Dataset], kinds: list[str], draw: Random) -> list[Dataset]:
    """One or two files that hold the frames in any order, each element where it may stand."""
    frames = list(slices)
    if maybe(draw, 0.5):
        draw.shuffle(frames)
    kinds.append("enhanced")
    cut = len(frames)
    if maybe(draw, 0.2):
        cut = draw.randrange(1, len(frames))
        kinds.append("enhanced in two files")
    return [_joined(part, kinds, draw) for part in (frames[:cut], frames[cut:]) if part]


def _joined(frames: list[Dataset], kinds: list[str], draw: Random) -> Dataset:
    one = Dataset()
    one.update({element.tag: element for element in frames[0]})
    moved = [name for names in _MACROS.values() for name in names]
    for name in (*moved, "SliceLocation"):
        if name in one:
            delattr(one, name)
    one.SOPClassUID = EnhancedMRImageStorage if one.Modality == "MR" else EnhancedCTImageStorage
    one.SOPInstanceUID = generate_uid(entropy_srcs=[str(frames[0].SOPInstanceUID), "enhanced"])
    one.ImageType, one.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], len(frames)
    shared, each = Dataset(), [Dataset() for _ in frames]
    for macro, names in _MACROS.items():
        items = [_item(frame, names) for frame in frames]
        if not any(len(item) for item in items):
            continue
        alike = all(item == items[0] for item in items)
        if alike and maybe(draw, 0.6):
            setattr(shared, macro, [items[0]])
        else:
            for group, item in zip(each, items, strict=True):
                setattr(group, macro, [item])
            if macro == "PixelValueTransformationSequence":
                kinds.append("rescale: by frame")
                if maybe(draw, 0.2):
                    setattr(shared, macro, [_pair(2.0, -500.0)])
                    kinds[-1] = "rescale: by frame and shared"
    if "RescaleSlope" in frames[0] and maybe(draw, 0.1):
        # Some exporters leave the elements of a classic file at the top.
        one.RescaleSlope, one.RescaleIntercept = 3, 7
        kinds.append("rescale: also at the top")
    for k, group in enumerate(each):
        content = Dataset()
        content.StackID, content.InStackPositionNumber = "1", k + 1
        group.FrameContentSequence = [content]
    if len(shared):
        one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = each
    one.stored = np.stack([np.asarray(frame.stored) for frame in frames])
    return one


def _item(frame: Dataset, names: tuple[str, ...]) -> Dataset:
    item = Dataset()
    for name in names:
        if name in frame:
            item.add(frame[name])
    return item


def _pair(slope: float, intercept: float) -> Dataset:
    item: Any = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "HU"
    return item
