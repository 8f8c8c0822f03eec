"""Homogenizing, restoring and segmenting from Python, on images as other libraries hold them."""

from isopose.api.homogenizer import Homogenized, Homogenizer
from isopose.api.pipeline import Pipeline, Result

__all__ = ["Homogenized", "Homogenizer", "Pipeline", "Result"]
