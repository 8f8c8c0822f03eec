"""Load what ships with the package: the roll network's weights and a reference outline.

Both are made from phantoms only, by ``phantom/roll``.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

from safetensors.torch import load_file
from torch import Tensor

from isopose.files import hash_of, sha256
from isopose.models.roll import RollNetwork

#: Files of the network's weights (float16, to keep the package small) and of the reference's outline.
WEIGHTS, REFERENCE = "roll.safetensors", "reference.safetensors"


@dataclass(frozen=True)
class ShippedReference:
    """The outline to which scans are homogenized when no model brings its own: a child of two years.

    Args:
        mask: ``(1, 1, S, S)`` float32 in [0, 1], upright, centered.
        side_mm: side of the square image, mm.
    """

    mask: Tensor
    side_mm: float


def compact(network: RollNetwork) -> dict[str, Tensor]:
    """Return a network's state dict as it is shipped.

    Weights are rounded to float16; batch-norm statistics and the calibration keep their precision.
    """
    return {
        name: (value.half() if name in dict(network.named_parameters()) else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }


def load_shipped(network: RollNetwork) -> RollNetwork:
    """Load the shipped weights into a network, and return it."""
    tensors = _tensors(WEIGHTS)
    network.load_state_dict(
        {name: value.to(network.state_dict()[name].dtype) for name, value in tensors.items()}
    )
    return network


def load_reference() -> ShippedReference:
    """Return the shipped reference outline."""
    tensors = _tensors(REFERENCE)
    return ShippedReference(tensors["mask"].float(), float(tensors["side_mm"]))


def shipped_sha256() -> str:
    """Return a hash of all shipped files, which results record so that they can be traced."""
    hashes = []
    for name in (WEIGHTS, REFERENCE):
        with as_file(files("isopose.models") / name) as path:
            hashes.append(sha256(path))
    return hash_of(hashes)


def _tensors(name: str) -> dict[str, Tensor]:
    with as_file(files("isopose.models") / name) as path:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
