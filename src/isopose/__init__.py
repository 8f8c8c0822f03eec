"""isopose: pose and size homogenisation for CT segmentation (La Barbera et al., ISBI 2021)."""

__version__ = "0.1.0"
