"""Export a model as a MONAI bundle, for ``monai.bundle`` and MONAI Label.

The bundle contains the model's folder and runs isopose on it, so its results are those of ``isopose
predict``; isopose must be installed where it runs.
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

#: Path of the model's folder in the bundle.
MODEL = Path("models") / "isopose"


def export_bundle(source: Path, folder: Path) -> None:
    """Write ``configs/metadata.json``, ``configs/inference.json``, ``models`` and ``docs/README.md``.

    Raises:
        InputError: no model, or the bundle's folder cannot be written.
    """
    model = load_model(source)
    output_folder(folder)
    # metadata.json is written last: if it exists, the bundle is complete.
    (folder / "configs" / "metadata.json").unlink(missing_ok=True)
    for name in ("weights.safetensors", "model.json"):
        with replacing(folder / MODEL / name) as temporary:
            shutil.copyfile(source / name, temporary)
    # The specification requires model.pt; tools load it over the network's weights, which are the same.
    with replacing(folder / "models" / "model.pt") as temporary:
        torch.save(ScanSegmenter(folder / MODEL).state_dict(), temporary)
    card = source / CARD
    write_text(folder / "docs" / "README.md", card.read_text("utf-8") if card.exists() else model_card(model))
    write_json(folder / "configs" / "inference.json", inference())
    write_json(folder / "configs" / "metadata.json", metadata(model))


def inference() -> dict[str, Any]:
    """Return the configuration with which ``monai.bundle run`` predicts the NIfTI files of a folder.

    Label values are the indices of the channels in ``metadata.json``, from which MONAI Label takes the names.
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
    """Return the metadata that MONAI's bundle specification requires; it identifies no patient."""
    classes, is_ct = ["background", *model.labels.names], model.modality == "ct"
    label_names, channel_names = ", ".join(model.labels.names), " and ".join(model.channels)
    channels = model.channels if len(model.channels) > 1 else ("image",)
    grid = {"spatial_shape": ["*", "*", "*"], "dtype": "float32", "is_patch_data": False}
    return {
        "version": __version__,
        "changelog": {__version__: "exported by isopose"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"isopose": __version__},
        "name": f"isopose: {label_names}",
        "task": f"segmentation of {channel_names}",
        "description": f"Segments {label_names} in {channel_names}, on each scan's own grid; see "
        "docs/README.md",
        "authorship": "see docs/README.md",
        "copyright": "see docs/README.md",
        "intended_use": "For research only, not a medical device. See docs/README.md",
        "model_sha256": model.weights_sha256,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if is_ct else "magnitude",
                    "modality": channel_names,
                    "num_channels": len(model.channels),
                    "value_range": [-1024, 3071] if is_ct else [0, 32767],
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                    **grid,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(classes),
                    "value_range": [0, 1],
                    "channel_def": {str(number): name for number, name in enumerate(classes)},
                    **grid,
                }
            },
        },
    }
