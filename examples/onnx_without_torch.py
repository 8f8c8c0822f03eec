"""Segment a CT with an exported model by ONNX Runtime, SimpleITK and NumPy alone.

    isopose export MODEL --output EXPORT
    python examples/onnx_without_torch.py EXPORT SCAN RESULT

Its body mask is simpler than that of isopose predict (a table that touches the patient stays), it resamples
without a prefilter, and no crop is widened: a start for one's own program, not a replacement.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import SimpleITK as sitk

export, source, result = map(Path, sys.argv[1:])
frame = json.loads((export / "export.json").read_text())["frame"]
poses, segment = (onnxruntime.InferenceSession(export / f"{name}.onnx") for name in ("poses", "segment"))
scan = sitk.ReadImage(source)
lps = sitk.DICOMOrient(scan, "LPS")

# The body: the largest of what is dense and not thin. Of its box in the plane, the first and the last pixel.
dense = sitk.BinaryMorphologicalOpening(lps > frame["body_threshold_hu"], [2, 2, 0])
body = sitk.RelabelComponent(sitk.ConnectedComponent(dense)) == 1
first, last = np.percentile(np.argwhere(sitk.GetArrayViewFromImage(body).any(0))[:, ::-1], [0, 100], axis=0)

# The frame: a square around that box, of the side that the model was trained with or the body needs.
size, spacing = frame["size"], np.array(lps.GetSpacing())
step = max(frame["fov_mm"], *((last - first + 1) * spacing[:2])) / size
corner = [*(first + last - (size - 1) * step / spacing[:2]) / 2, 0.0]
grid = (lps.TransformContinuousIndexToPhysicalPoint(corner), [step, step, spacing[2]], lps.GetDirection())
way = ([size, size, lps.GetDepth()], sitk.Transform(), sitk.sitkLinear, *grid)
framed = [sitk.Resample(image, *way, outside) for image, outside in ((lps, -1024.0), (body, 0.0))]
# To the body belongs all that it encloses in a slice.
filled = sitk.JoinSeries([sitk.BinaryFillhole(framed[1][:, :, z]) for z in range(lps.GetDepth())])
hu, mask = (sitk.GetArrayFromImage(i)[:, None].astype(np.float32) for i in (framed[0], filled))

shown = np.flatnonzero(mask.any(axis=(1, 2, 3)))
theta, sure = poses.run(None, {"hu": hu[shown], "mask": mask[shown], "z_mm": np.float32(shown * spacing[2])})
labels = np.zeros((len(hu), size, size), np.uint8)
for at in np.array_split(np.arange(len(shown)), len(shown) // 16 + 1):
    labels[shown[at]] = segment.run(["labels"], {"hu": hu[shown[at]], "frame_from_crop": theta[at]})[0]
framed[1][:, :, :] = sitk.GetImageFromArray(labels)
# Nearest in the frame's pixels; isopose predict restores the probabilities themselves, which is smoother.
sitk.WriteImage(sitk.Resample(framed[1], scan, sitk.Transform(), sitk.sitkNearestNeighbor), result)
print(f"least confidence in a pose: {sure.min():.2f}")
