"""What several settings and functions choose from, under one name each.

The names are those of the configuration, and of the command line's options.
"""

from typing import Literal

#: What scans are of.
Modality = Literal["ct", "mr"]
#: In which plane the slices of a scan lie, and are processed one by one.
Plane = Literal["axial", "coronal", "sagittal"]
#: What a roll network knows: CT, or tissues of any brightness.
Contrast = Literal["ct", "any"]
#: How the values of a channel are normalized; see :mod:`isopose.data.normalization`.
Normalization = Literal["ct", "zscore", "raw"]
#: What slices without any label are in a scan that shows labels before and after such slices.
Undrawn = Literal["background", "ignore"]
#: Which slices of a scan share a pose: all of them, neighbors (smoothly), or none.
Per = Literal["volume", "smooth", "slice"]
#: Stands for a value that the data decide: its labels, its channels.
AUTO = "auto"
#: Pixels along a side of homogenized slices, unless another number is given.
HOMOGENIZED_SIZE = 384
