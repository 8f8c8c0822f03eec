"""The roll network that comes with the package, trained on randomised phantoms only: ``training/roll``."""

from importlib.resources import as_file, files

from safetensors.torch import load_file
from torch import Tensor

from isopose.models.roll import RollNetwork

#: Its weights, float16 to keep the package small.
WEIGHTS = "roll.safetensors"


def compact(network: RollNetwork) -> dict[str, Tensor]:
    """A network's tensors as they are shipped: weights as float16, statistics and calibration whole."""
    return {
        name: (value.half() if name in dict(network.named_parameters()) else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }


def load_shipped(network: RollNetwork) -> RollNetwork:
    """Give a network the shipped weights."""
    with as_file(files("isopose.models") / WEIGHTS) as path:
        tensors = load_file(path)
    network.load_state_dict(
        {name: value.to(network.state_dict()[name].dtype) for name, value in tensors.items()}
    )
    return network
