"""isopose: pose and size homogenization for CT segmentation (La Barbera et al., ISBI 2021)."""

from typing import TYPE_CHECKING, Any

from isopose.version import __version__

if TYPE_CHECKING:
    from isopose.api import Homogenized, Homogenizer, Pipeline, Result, wrap

__all__ = ["Homogenized", "Homogenizer", "Pipeline", "Result", "__version__", "wrap"]


def __getattr__(name: str) -> Any:
    """Load the Python API on first use, so that the command line starts without PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module 'isopose' has no attribute {name!r}")
    from isopose import api

    return getattr(api, name)
