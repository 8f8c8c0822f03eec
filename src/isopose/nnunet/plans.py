"""Plans by which nnU-Net keeps fat when it clips intensities, so that a body can be told from air."""

import copy
import os
from pathlib import Path
from typing import Any

from isopose.errors import InputError
from isopose.files import read_json, write_json

#: What slices may be clipped to from below, in HU. Fat lies near -100; where it is lost, so is the outline.
LOWEST_HU = -200.0
#: What the name of nnU-Net's plans is lengthened by.
SUFFIX = "Isopose"
#: Where the plans keep what nnU-Net would have clipped to, which its network is still shown.
SEEN = "isopose_seen_from"


def write_plans(dataset: str, name: str = "nnUNetPlans") -> Path:
    """Put plans that keep fat beside nnU-Net's own, which stay.

    Args:
        dataset: number or name of a dataset that nnU-Net has planned.
        name: of its plans.

    Returns:
        The file, named as the plans are.

    Raises:
        InputError: nnU-Net's folders are not named, or the dataset is not planned or no CT.
    """
    known = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 (its name)
    if not known:
        raise InputError("nnUNet_preprocessed: expected the environment to name nnU-Net's folder; export it")
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdecimal() else dataset
    found = sorted(folder for folder in Path(known).glob(pattern) if (folder / f"{name}.json").is_file())
    if len(found) != 1:
        raise InputError(
            f"{known}: expected one dataset {dataset} with {name}.json, found {len(found)}; plan it first: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} --no_pp"
        )
    plans = read_json(found[0] / f"{name}.json")
    try:
        kept = keeping_fat(plans)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{found[0] / name}.json: expected nnU-Net's plans of a CT; plan it again") from None
    path = found[0] / f"{kept['plans_name']}.json"
    write_json(path, kept)
    return path


def keeping_fat(plans: dict[str, Any]) -> dict[str, Any]:
    """The same plans under another name, with another folder of preprocessed data, which clip no fat.

    nnU-Net's network is shown what it would have been shown (:data:`SEEN`): the fat is for the pose alone.
    """
    kept = copy.deepcopy(plans)
    name = plans["plans_name"]
    kept["plans_name"] = name + SUFFIX
    intensities = kept["foreground_intensity_properties_per_channel"]["0"]
    intensities[SEEN] = intensities["percentile_00_5"]
    intensities["percentile_00_5"] = min(intensities["percentile_00_5"], LOWEST_HU)
    for configuration in kept["configurations"].values():
        # Those that inherit have none of their own.
        if "data_identifier" in configuration:
            rest = configuration["data_identifier"].removeprefix(name)
            configuration["data_identifier"] = kept["plans_name"] + rest
    return kept
