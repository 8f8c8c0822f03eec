"""Simple drawings of parts of the body that the cohorts' phantoms do not show: chest, pelvis, head, limbs.

Only the roll network is trained on them; no study or demo uses them.
"""

from isopose.phantom.levels.draw import sample_level_slab

__all__ = ["sample_level_slab"]
