"""A stand-in for a third-party segmentation program, which reads and writes files without isopose.

    python segmenters.py HOW IN OUT

IN and OUT are files, or folders with ``CASE_0000.nii.gz`` in and ``CASE.nii.gz`` out. HOW is what it does, or
``name``: what the scan's name begins with.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

#: HU from which it marks the body, and bone.
BODY, BONE = -300, 200


def write(array: np.ndarray, like: sitk.Image, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(like)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def sides(image: sitk.Image) -> np.ndarray:
    """Label the body: 1 on the patient's left (x > 0), 2 on the right."""
    array = sitk.GetArrayFromImage(image)
    x = image.GetOrigin()[0] + image.GetSpacing()[0] * np.arange(array.shape[2])
    return np.where(array > BODY, np.where(x > 0, 1, 2), 0).astype(np.uint8)


def probabilities(image: sitk.Image) -> np.ndarray:
    """Return probabilities ``(3, z, y, x)`` of background and both sides: 0.8 for the own class, else 0.1."""
    marked = sides(image)
    return np.stack([np.where(marked == value, 0.8, 0.1) for value in range(3)]).astype(np.float32)


def segment(how: str, source: Path, target: Path) -> None:
    image = sitk.ReadImage(str(source))
    array = sitk.GetArrayFromImage(image)
    print("segmented", source.name)
    match how:
        case "body" | "bone":
            write((array > {"body": BODY, "bone": BONE}[how]).astype(np.uint8), image, target)
        case "sides":
            write(sides(image), image, target)
        case "float":  # as some libraries store label maps
            write(sides(image).astype(np.float32), image, target)
        case "soft":
            write(probabilities(image)[1], image, target)
        case "organs":
            for value, name in ((1, "left half"), (2, "right half")):
                write((sides(image) == value).astype(np.uint8), image, target / f"{name}.nii.gz")
            (target / "notes.txt").write_text("none")
        case "npz" | "npz-turned" | "npz-other" | "npz-regions":
            write(sides(image), image, target)
            values = probabilities(image)
            if how == "npz-turned":  # as nnU-Net's readers do that turn images to nibabel's axes
                values = values[:, :, ::-1, ::-1]
            elif how == "npz-other":
                values = values[[0, 2, 1]]
            elif how == "npz-regions":
                values = values + 0.3
            np.savez_compressed(str(target).replace(".nii.gz", ".npz"), probabilities=values)
        case "empty" | "empty-planned":  # nothing is marked, so that the label map shows no order of the axes
            write(np.zeros(array.shape, np.uint8), image, target)
            values = np.where(np.array([True, False, False])[:, None, None, None], 0.6, 0.2)
            values = np.broadcast_to(values, (3, *array.shape)) + probabilities(image) * 0.0
            values[1:] += np.where(sides(image) == np.array([1, 2])[:, None, None, None], 0.1, -0.1)
            np.savez_compressed(str(target).replace(".nii.gz", ".npz"), softmax=values / values.sum(axis=0))
            if how == "empty-planned":
                target.with_name("plans.json").write_text('{"image_reader_writer": "SimpleITKIO"}')
        case "in-place":  # overwrites what it was given
            write(sides(image), image, target)
            source.write_bytes(b"overwritten")
        case "npz-unfinished":  # a second map, which cannot be read, fails the scan after the probabilities
            segment("npz", source, target)
            target.with_name("z.nii.gz").write_bytes(b"no image")
        case "nothing":
            pass
        case "fails":
            print("out of luck", file=sys.stderr)
            sys.exit(3)
        case "late":
            write(sides(image), image, target)
            sys.exit(4)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "grid":
            write(np.ones((2, 5, 5), np.uint8), sitk.GetImageFromArray(np.ones((2, 5, 5))), target)
        case "nan":
            write(np.full(array.shape, np.nan, np.float32), image, target)
        case "logits":
            write(np.full(array.shape, -4.5, np.float32), image, target)
        case "broken":
            target.write_bytes(b"no image")
        case "text":
            target.with_name("answer.txt").write_text("kidney")
        case _:
            raise SystemExit(f"unknown: {how}")


if __name__ == "__main__":
    how, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if source.is_dir():
        for path in sorted(source.iterdir()):
            name = path.name.removesuffix("_0000.nii.gz")
            segment(name.split(" ")[0] if how == "name" else how, path, target / f"{name}.nii.gz")
    else:
        segment(source.name.split(".")[0].split(" ")[0] if how == "name" else how, source, target)
