"""Segment a CT with an exported model by ONNX Runtime, SimpleITK and NumPy alone.

    isopose export MODEL --output EXPORT
    python examples/onnx_without_torch.py EXPORT SCAN RESULT

Its body mask is simpler than that of isopose predict (a table that touches the patient stays), and no crop is
widened: a start for one's own program, not a replacement.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import SimpleITK as sitk

export, source, result = map(Path, sys.argv[1:])
told = json.loads((export / "export.json").read_text())
size, intensity = told["frame"]["size"], told["intensity"]
scan = sitk.ReadImage(str(source))
lps = sitk.DICOMOrient(scan, "LPS")

# The body: the largest of what is dense and not thin, with all that it encloses in each slice.
dense = sitk.BinaryMorphologicalOpening(lps > told["frame"]["body_threshold_hu"], [2, 2, 0])
body = sitk.RelabelComponent(sitk.ConnectedComponent(dense)) == 1
body = sitk.JoinSeries([sitk.BinaryFillhole(body[:, :, z]) for z in range(lps.GetDepth())])
body.CopyInformation(lps)

# The frame: a square around the body's box, of the side that the model was trained with or the body needs.
box = sitk.LabelShapeStatisticsImageFilter()
box.Execute(body)
first, count = np.split(np.array(box.GetBoundingBox(1), float), 2)
first[2], count[2] = 0, lps.GetDepth()
spacing = np.array(lps.GetSpacing())
side = max(told["frame"]["fov_mm"], *(count * spacing)[:2])
step = np.array([side / size, side / size, spacing[2]])
corner = first + (count - 1) / 2 - (np.array([size, size, count[2]]) - 1) / 2 * step / spacing
frame = sitk.Image(size, size, lps.GetDepth(), sitk.sitkUInt8)
frame.SetOrigin(lps.TransformContinuousIndexToPhysicalPoint(corner))
frame.SetSpacing(step)
frame.SetDirection(lps.GetDirection())

image = sitk.GetArrayFromImage(sitk.Resample(lps, frame, sitk.Transform(), sitk.sitkLinear, -1024.0))
mask = sitk.GetArrayFromImage(sitk.Resample(body, frame)) > 0
shown = mask.any(axis=(1, 2))
image = np.clip(image, intensity["low"], intensity["high"]) - intensity["mean"]
image = (image / intensity["sd"]).astype(np.float32)[shown, None]
inputs = {"image": image, "mask": mask[shown, None].astype(np.float32)}
z_mm = (np.flatnonzero(shown) * spacing[2]).astype(np.float32)

poses, segment = (onnxruntime.InferenceSession(export / f"{name}.onnx") for name in ("poses", "segment"))
theta, confidence = poses.run(None, {**inputs, "z_mm": z_mm})
classes = np.zeros(mask.shape, np.uint8)
for rows in np.array_split(np.arange(len(image)), max(1, len(image) // 16)):
    [found] = segment.run(None, {"image": image[rows], "frame_from_crop": theta[rows]})
    classes[np.flatnonzero(shown)[rows]] = found.argmax(axis=1)

values = np.array([0, *(told["labels"][name] for name in told["classes"][1:])], np.uint8)
labels = sitk.GetImageFromArray(values[classes])
labels.CopyInformation(frame)
# Nearest in the frame's pixels; isopose predict restores the probabilities themselves, which is smoother.
sitk.WriteImage(sitk.Resample(labels, scan, sitk.Transform(), sitk.sitkNearestNeighbor), str(result))
print(f"least confidence in a pose: {confidence.min():.2f}")
