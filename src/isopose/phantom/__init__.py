"""Synthetic pediatric abdominal CT with renal tumors: birth to 16 years, any pose, true labels.

It serves to try and test the software without patient data; results on it say nothing about patients.
``docs/phantom.md`` lists the source of every size.
"""

from isopose.phantom.case import PhantomCase, sample_case, texture_generator, truth
from isopose.phantom.cohort import write_cohort
from isopose.phantom.render import render

__all__ = ["PhantomCase", "render", "sample_case", "texture_generator", "truth", "write_cohort"]
