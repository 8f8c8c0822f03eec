"""Simple drawings of the levels that the cohorts' phantoms do not reach, and of bodies that are no trunk.

The roll network learns from them; no study or demo uses them.
"""

from isopose.phantom.levels.draw import sample_level_slab

__all__ = ["sample_level_slab"]
