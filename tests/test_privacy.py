"""Names, identifiers and dates of DICOM files reach nothing but DICOM objects, no file and no terminal."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from io_helpers import write_series
from isopose.io.images import read_volume, write_labels

PLANTED = {
    "PatientName": "Zzyzx^Quentin",
    "PatientID": "PID-90210",
    "PatientBirthDate": "19870623",
    "StudyDate": "20211105",
    "AccessionNumber": "ACC-31337",
    "InstitutionName": "Hopital Xanadu",
    "ReferringPhysicianName": "Grommit^Doktor",
    "StudyDescription": "Nephroblastoma of Quentin",
    "SeriesDescription": "Abdomen Quentin 2021",
    "StudyInstanceUID": "1.2.826.0.1.7777.1",
    "FrameOfReferenceUID": "1.2.826.0.1.7777.3",
}
SECRETS = (
    *("Zzyzx", "Quentin", "PID-90210", "19870623", "1987-06-23", "20211105", "2021-11-05", "ACC-31337"),
    *("Xanadu", "Grommit", "Nephroblastoma", "1.2.826.0.1.7777"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three patients' series, their labels, and a manifest that names them by numbers."""
    root = tmp_path_factory.mktemp("secret")
    rows = ["case,image,label,patient"]
    y, x = np.meshgrid(*[(np.arange(64) - 31.5) * 4.0] * 2, indexing="ij")
    body = np.hypot(x / 100, y / 72) < 1
    for number in range(3):
        mass = np.hypot(x - 40 + 5 * number, y) < 24
        hu = np.repeat(np.where(mass, 200, np.where(body, 40, -1000))[None], 5, 0)
        raw = (hu + 1024 + np.random.default_rng(number).integers(0, 20, hu.shape)).astype(np.uint16)
        folder = root / f"c{number}"
        write_series(
            folder,
            raw,
            step=(0.0, 0.0, 5.0),
            series=f"1.2.826.0.1.7777.2.{number}",
            PixelSpacing=[4.0, 4.0],
            RescaleIntercept=-1024,
            RescaleSlope=1,
            **PLANTED,
        )
        volume = read_volume(folder)
        write_labels(
            volume.with_array(np.repeat(mass[None], 5, 0).astype(np.uint8)), root / f"c{number}.nii.gz"
        )
        rows.append(f"c{number},c{number},c{number}.nii.gz,p{number}")
    (root / "cases.csv").write_text("\n".join(rows) + "\n")
    damaged = root / "damaged"
    damaged.mkdir()
    for file in sorted((root / "c0").iterdir())[:4]:
        (damaged / file.name).write_bytes(file.read_bytes()[:-700])
    return root


def run(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "isopose", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == code, told
    return told


@pytest.mark.slow
def test_nothing_planted_in_dicom_is_written_or_told(data, tmp_path):
    manifest, label = data / "cases.csv", ("--label", "mass=1")
    small = "data.size=64 unet.base_features=2 unet.optimiser.epochs=1 unet.optimiser.iterations=2 "
    small += "crop.optimiser.epochs=1 crop.optimiser.iterations=2"
    settings = [part for setting in small.split() for part in ("--set", setting)]
    model, predicted, upright = tmp_path / "model", tmp_path / "predicted", tmp_path / "upright"
    heard = [
        run("check", manifest, *label),
        run("fit", manifest, *label, "--model", model, "--fold", "all", *settings),
        run("predict", model, data / "c0", "--output", predicted, "--steps", "--probabilities"),
        run("homogenize", manifest, upright, *label, "--size", "128"),
        run("restore", upright / "labelsTr", "--homogenized", upright, "--output", tmp_path / "back"),
        run("evaluate", tmp_path / "back", manifest, *label, "--output", tmp_path / "scores"),
        run("predict", model, data / "damaged", "--output", predicted, code=2),
        run("predict", model, data / "c0", "--output", predicted, "--series", "99", code=2),
    ]
    seen = 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            seen += 1
            contents = path.read_bytes()
            contents = gzip.decompress(contents) if contents[:2] == b"\x1f\x8b" else contents
            for secret in SECRETS:
                assert secret.encode() not in contents, f"{path.name} holds {secret}"
                assert secret not in path.name
    assert seen > 40
    for text in heard:
        for secret in SECRETS:
            assert secret not in text


def test_the_planted_words_are_in_the_files(data):
    """So that the search can find them."""
    whole = b"".join(path.read_bytes() for path in (data / "c0").iterdir())
    for secret in SECRETS:
        if "-" not in secret or secret.startswith(("PID", "ACC")):
            assert secret.encode() in whole
