import json

import pytest

from bright import bright_model, make_scene
from isopose.io.images import write_image, write_labels
from isopose.models.folder import save_model


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three small cases in nnU-Net's layout, the last one for testing."""
    root = tmp_path_factory.mktemp("data") / "Dataset001_Bright"
    for number, part in enumerate(("Tr", "Tr", "Ts")):
        scene = make_scene(slices=4, roll=0.1 * number)
        write_image(scene.volume, root / f"images{part}" / f"case_{number}_0000.nii.gz")
        write_labels(scene.volume.with_array(scene.truth), root / f"labels{part}" / f"case_{number}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumor": 7},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, bright_model({"data": {"size": 64}}, real_unet=True))
    return folder
