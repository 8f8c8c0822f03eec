"""Types for values that several settings and functions share.

The values are those of the configuration and of the command line's options.
"""

from typing import Literal

#: Modality of a scan.
Modality = Literal["ct", "mr"]
#: Plane in which the slices of a scan were acquired and are processed one by one.
Plane = Literal["axial", "coronal", "sagittal"]
#: Input of a roll network: CT in a soft tissue window, or tissues of any brightness.
Contrast = Literal["ct", "any"]
#: How the values of a channel are normalized; see :mod:`isopose.data.normalization`.
Normalization = Literal["ct", "zscore", "raw"]
#: Meaning of slices without any label in a scan that has labels before and after such slices.
Undrawn = Literal["background", "ignore"]
#: Poses of a scan: one for all slices, one that varies smoothly along it, or one for each slice.
Per = Literal["volume", "smooth", "slice"]
#: Value of a setting that is chosen from the data, such as its labels or channels.
AUTO = "auto"
#: Pixels along a side of homogenized slices, unless another number is given.
HOMOGENIZED_SIZE = 384
