"""Synthetic pediatric abdominal CT with renal tumors: birth to 16 years, any pose, true labels.

It is there so that the software can be tried and tested where no patient data are; results on it say nothing
about patients. ``docs/phantom.md`` names the sources of every size.
"""

from isopose.phantom.case import PhantomCase, sample_case, texture_generator, truth
from isopose.phantom.cohort import write_cohort
from isopose.phantom.render import render

__all__ = ["PhantomCase", "render", "sample_case", "texture_generator", "truth", "write_cohort"]
