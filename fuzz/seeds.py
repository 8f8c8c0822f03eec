"""Sound files of every kind that isopose reads, small, from which damaged ones are made."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from isopose.data.fingerprint import Fingerprint, fingerprint_of
from isopose.data.normalization import Channel, Intensity
from isopose.data.store import write_store
from isopose.files import write_json
from isopose.homogenize.dataset import homogenize
from isopose.io.datasets import open_dataset
from isopose.labels import Labels
from isopose.models.folder import Model, save_model
from isopose.models.info import ModelInfo, ReferenceInfo, TrainingInfo
from isopose.models.pipeline import Networks
from isopose.presets import homogenize_config, load_config
from isopose.progress import Silent
from isopose.training.checkpoint import StageProgress, save_checkpoint

LABELS = Labels.create({"kidney": 1, "tumor": 2})
SHAPE, SPACING = (6, 40, 40), (8.0, 8.0, 10.0)


def body() -> np.ndarray:
    """An ellipse of water in air with something bright in it, HU, ``(z, y, x)``."""
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    hu = np.where((x / 14) ** 2 + (y / 10) ** 2 < 1, 40.0, -1000.0)
    hu[(np.hypot(x - 6, y) < 3) & (abs(z) < 2)] = 200.0
    return (hu + np.random.default_rng(0).normal(0, 8, SHAPE)).clip(-1024, 3000)


def write_seeds(root: Path) -> None:
    """One folder a target; see ``targets.py``."""
    image = sitk.GetImageFromArray(body().astype(np.int16))
    image.SetSpacing(SPACING)
    image.SetOrigin((-150.0, -160.0, 30.0))
    marks = sitk.GetImageFromArray(((body() > 150).astype(np.uint8) + (body() > 190)).astype(np.uint8))
    marks.CopyInformation(image)

    nifti = root / "nifti"
    nifti.mkdir(parents=True)
    sitk.WriteImage(image, nifti / "int16.nii.gz")
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32), nifti / "float32.nii")
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat64), nifti / "float64.nii.gz")
    sitk.WriteImage(marks, nifti / "labels.nii.gz")
    for name in ("plain.mha", "header.mhd", "plain.nrrd", "header.nhdr"):
        other = root / "itk" / name.split(".")[0]
        other.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, other / name, useCompression=name.startswith("plain"))
    _write_dicom(root / "dicom" / "series")
    with zipfile.ZipFile(root / "dicom" / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((root / "dicom" / "series").iterdir()):
            archive.write(file, file.name)
    _write_datasets(root / "dataset", image, marks)
    (root / "config").mkdir()
    (root / "config" / "run.json").write_text(json.dumps(load_config("paper").model_dump(mode="json")))
    (root / "config" / "run.toml").write_text(
        'preset = "paper"\n[data]\nsize = 64\nwindow = [-200.0, 300.0]\n[pose]\nstart = "moments"\n[unet]\n'
        "base_features = 8\ninput = 64\n[unet.optimizer]\nepochs = 3\nlearning_rate = 0.01\n"
        '[train]\nfold = 1\noversample = { kidney = 0.5 }\ndevice = "cpu"\n'
    )
    _write_model(root / "model" / "model")
    homogenize(
        open_dataset(root / "dataset" / "nnunet"),
        root / "record" / "homogenized",
        homogenize_config(),
        reporter=Silent(),
    )
    _write_store(root / "store", root / "dataset" / "nnunet")
    (root / "checkpoint").mkdir()
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    weights = dict(layer.state_dict())
    row = {"stage": "unet", "epoch": 1, "loss": 0.5}
    save_checkpoint(
        root / "checkpoint" / "unet.safetensors", StageProgress(1, history=[row]), weights, weights, optimizer
    )


def _write_dicom(folder: Path) -> None:
    folder.mkdir(parents=True)
    series, study, frame = (generate_uid(entropy_srcs=[name]) for name in ("series", "study", "frame"))
    for number, pixels in enumerate(body()):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(number)])
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PatientName, data.PatientID = "Secret^Name", "SECRET-ID"
        data.Modality, data.SeriesNumber, data.InstanceNumber = "CT", 3, number + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.ImagePositionPatient = [-150.0, -160.0, 30.0 + 10.0 * number]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [8.0, 8.0], 10.0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (pixels + 1024).astype("<u2").tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{number}.dcm", data, enforce_file_format=True)


def _write_datasets(root: Path, image: sitk.Image, marks: sitk.Image) -> None:
    for layout, images, labels, described in (
        (
            "nnunet",
            "imagesTr/a_0000.nii.gz",
            "labelsTr/a.nii.gz",
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "kidney": 1, "tumor": 2},
                "numTraining": 1,
                "file_ending": ".nii.gz",
            },
        ),
        (
            "decathlon",
            "imagesTr/a.nii.gz",
            "labelsTr/a.nii.gz",
            {
                "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "kidney", "2": "tumor"},
                "numTraining": 1,
                "numTest": 0,
                "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
                "test": [],
            },
        ),
        ("manifest", "a.nii.gz", "a-labels.nii.gz", None),
        ("kits", "data/case_00000/imaging.nii.gz", "data/case_00000/segmentation.nii.gz", None),
    ):
        folder = root / layout
        for name, what in ((images, image), (labels, marks)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(what, folder / name)
        if described:
            write_json(folder / "dataset.json", described)
    (root / "nnunet" / "patients.csv").write_text("case,patient,age_years\na,p1,3.5\n")
    (root / "manifest" / "cases.csv").write_text(
        "case,image,label,patient,age_years,split\na,a.nii.gz,a-labels.nii.gz,p1,3.5,train\n"
    )
    write_json(root / "kits" / "data" / "kits.json", [{"case_id": "case_00000", "age_at_nephrectomy": 40}])


def _write_store(folder: Path, dataset: Path) -> None:
    opened, config = open_dataset(dataset), load_config("default", None, ["data.size=64"]).data
    write_store(folder, opened.cases, fingerprint_of(opened.cases, LABELS, config), LABELS, config)


def _write_model(folder: Path) -> None:
    settings = ["data.size=64", "unet.base_features=4", "unet.max_features=8", "crop.size=32"]
    config = load_config("default", None, settings)
    intensity = Intensity((0.5, 99.5), -80.0, 100.0, 400.0, 95.0, 75.0, -200.0, 900.0)
    channels = (Channel("CT", intensity),)
    fingerprint = Fingerprint(
        1, 1, SPACING, SPACING, SPACING, 6.0, 6, 6, channels, (224.0, 160.0), (224.0, 160.0), 260.0, ()
    )
    reference = torch.zeros(1, 1, 32, 32)
    reference[..., 8:24, 6:26] = 1.0
    pipeline = Networks(config, LABELS.classes, reference, -3.0, 4.0)
    info = ModelInfo(
        TrainingInfo(("0" * 64,), cases=1, patients=1), ReferenceInfo(image_sha256="0" * 64, slice=2)
    )
    folder.mkdir(parents=True)
    save_model(folder, Model(pipeline, config, LABELS, fingerprint, info))
