"""Plans with which nnU-Net does not clip fat, so that the body's outline can be found."""

import copy
import os
from pathlib import Path
from typing import Any

from isopose.errors import InputError
from isopose.files import read_json, write_json

#: Highest lower bound for clipping, in HU. Fat is near -100; if it is clipped, the outline is lost.
LOWEST_HU = -200.0
#: Suffix of the plans' name.
SUFFIX = "Isopose"
#: Key of nnU-Net's original lower bound, to which the wrapped network's input is still clipped.
SEEN_FROM_KEY = "isopose_seen_from"


def write_plans(dataset: str, name: str = "nnUNetPlans") -> Path:
    """Write plans that keep fat beside nnU-Net's own, which are not changed.

    Args:
        dataset: number or name of a dataset that nnU-Net has planned.
        name: of its plans.

    Returns:
        The file that was written.

    Raises:
        InputError: nnU-Net's folder is not set in the environment, or the dataset is not planned or no CT.
    """
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 (its name)
    if not root:
        raise InputError("nnUNet_preprocessed: expected the environment to name nnU-Net's folder; export it")
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdecimal() else dataset
    folders = sorted(folder for folder in Path(root).glob(pattern) if (folder / f"{name}.json").is_file())
    if len(folders) != 1:
        raise InputError(
            f"{root}: expected one dataset {dataset} with {name}.json, found {len(folders)}; plan it first: "
            f"nnUNetv2_plan_and_preprocess -d {dataset} --no_pp"
        )
    plans = read_json(folders[0] / f"{name}.json")
    try:
        new_plans = keeping_fat(plans)
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            f"{folders[0] / name}.json: expected nnU-Net's plans of a CT; plan it again"
        ) from None
    path = folders[0] / f"{new_plans['plans_name']}.json"
    write_json(path, new_plans)
    return path


def keeping_fat(plans: dict[str, Any]) -> dict[str, Any]:
    """Return plans under another name, with another folder of preprocessed data, that do not clip fat.

    Fat is only used for the pose: the input of nnU-Net's network is clipped as before, to the lower bound
    under :data:`SEEN_FROM_KEY`.
    """
    new_plans = copy.deepcopy(plans)
    name = plans["plans_name"]
    new_plans["plans_name"] = name + SUFFIX
    intensities = new_plans["foreground_intensity_properties_per_channel"]["0"]
    intensities[SEEN_FROM_KEY] = intensities["percentile_00_5"]
    intensities["percentile_00_5"] = min(intensities["percentile_00_5"], LOWEST_HU)
    for configuration in new_plans["configurations"].values():
        # Configurations that inherit from others have no identifier of their own.
        if "data_identifier" in configuration:
            rest = configuration["data_identifier"].removeprefix(name)
            configuration["data_identifier"] = new_plans["plans_name"] + rest
    return new_plans
