"""``isopose export --format monai``: a model as a MONAI bundle, for ``monai.bundle`` and MONAI Label.

The bundle holds the model's folder and runs isopose on it, so that it answers as ``isopose predict`` does;
isopose has to be installed where it runs.
"""

import shutil
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from isopose.api.bundle import ScanSegmenter
from isopose.files import output_folder, replacing, write_json, write_text
from isopose.models.card import CARD, model_card
from isopose.models.folder import Model, load_model
from isopose.version import __version__

#: Where the bundle keeps the model's folder.
MODEL = Path("models") / "isopose"


def export_bundle(source: Path, folder: Path) -> None:
    """Write ``configs/metadata.json``, ``configs/inference.json``, ``models`` and ``docs/README.md``.

    Args:
        source: folder of a trained model.
        folder: of the bundle; files of these names in it are replaced.

    Raises:
        InputError: no model, or the bundle's folder cannot be written.
    """
    model = load_model(source)
    output_folder(folder)
    # Last: where it lies, the rest is whole.
    (folder / "configs" / "metadata.json").unlink(missing_ok=True)
    for name in ("weights.safetensors", "model.json"):
        with replacing(folder / MODEL / name) as temporary:
            shutil.copyfile(source / name, temporary)
    # The specification asks for it, and tools load it over the weights that the network brings: the same.
    with replacing(folder / "models" / "model.pt") as temporary:
        torch.save(ScanSegmenter(folder / MODEL).state_dict(), temporary)
    card = source / CARD
    write_text(folder / "docs" / "README.md", card.read_text("utf-8") if card.exists() else model_card(model))
    write_json(folder / "configs" / "inference.json", inference())
    write_json(folder / "configs" / "metadata.json", metadata(model))


def inference() -> dict[str, Any]:
    """How ``monai.bundle run`` predicts the NIfTI files of a folder.

    Labels are written as numbers of the channels in ``metadata.json``, by which MONAI Label names them.
    """
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "isopose.api.bundle.ScanSegmenter",
            "model": f"$@bundle_root + '/{MODEL.as_posix()}'",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$numpy.uint8",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(model: Model) -> dict[str, Any]:
    """What MONAI's specification asks to be told of a model; names no patient."""
    names = ["background", *model.labels.names]
    marked = ", ".join(model.labels.names)
    grid = {"spatial_shape": ["*", "*", "*"], "dtype": "float32", "is_patch_data": False}
    return {
        "version": __version__,
        "changelog": {__version__: "exported by isopose"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"isopose": __version__},
        "name": f"isopose: {marked}",
        "task": "segmentation of CT",
        "description": f"Marks {marked} in CT, on each scan's own grid; see docs/README.md",
        "authorship": "see docs/README.md",
        "copyright": "see docs/README.md",
        "intended_use": "Research; no medical device. See docs/README.md",
        "model_sha256": model.weights_sha256,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "value_range": [-1024, 3071],
                    "channel_def": {"0": "image"},
                    **grid,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(names),
                    "value_range": [0, 1],
                    "channel_def": {str(number): name for number, name in enumerate(names)},
                    **grid,
                }
            },
        },
    }
