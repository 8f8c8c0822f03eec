"""Homogenize, restore and segment from Python, with images of other libraries."""

from isopose.api.homogenizer import Homogenized, Homogenizer
from isopose.api.pipeline import Pipeline, Result
from isopose.api.wrapping import wrap

__all__ = ["Homogenized", "Homogenizer", "Pipeline", "Result", "wrap"]
