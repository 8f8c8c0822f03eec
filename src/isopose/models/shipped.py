"""What comes with the package, made of phantoms only by ``phantom/roll``: roll network and reference."""

from dataclasses import dataclass
from importlib.resources import as_file, files

from safetensors.torch import load_file
from torch import Tensor

from isopose.files import hash_of, sha256
from isopose.models.roll import RollNetwork

#: The network's weights, float16 to keep the package small; the reference's outline.
WEIGHTS, REFERENCE = "roll.safetensors", "reference.safetensors"


@dataclass(frozen=True)
class ShippedReference:
    """The outline that scans are brought to where no model names another: a child of two years.

    Args:
        mask: ``(1, 1, S, S)`` float32 in [0, 1], upright, centered.
        side_mm: side of the square that it is seen in.
    """

    mask: Tensor
    side_mm: float


def compact(network: RollNetwork) -> dict[str, Tensor]:
    """A network's tensors as they are shipped: weights as float16, statistics and calibration whole."""
    return {
        name: (value.half() if name in dict(network.named_parameters()) else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }


def load_shipped(network: RollNetwork) -> RollNetwork:
    """Give a network the shipped weights."""
    tensors = _tensors(WEIGHTS)
    network.load_state_dict(
        {name: value.to(network.state_dict()[name].dtype) for name, value in tensors.items()}
    )
    return network


def load_reference() -> ShippedReference:
    """The shipped reference."""
    tensors = _tensors(REFERENCE)
    return ShippedReference(tensors["mask"].float(), float(tensors["side_mm"]))


def shipped_sha256() -> str:
    """Identity of all that is shipped, in what is made with it."""
    hashes = []
    for name in (WEIGHTS, REFERENCE):
        with as_file(files("isopose.models") / name) as path:
            hashes.append(sha256(path))
    return hash_of(hashes)


def _tensors(name: str) -> dict[str, Tensor]:
    with as_file(files("isopose.models") / name) as path:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
