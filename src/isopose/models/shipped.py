"""Load what ships with the package: the weights of two roll networks and two reference outlines.

All are made from phantoms only, by ``phantom/roll``.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Final

from safetensors.torch import load_file
from torch import Tensor

from isopose.choices import Contrast, Plane
from isopose.files import sha256
from isopose.models.pose import PoseTransformer
from isopose.models.roll import RollNetwork
from isopose.settings import PoseConfig

#: Files of the networks' weights (float16, to keep the package small) by ``pose.contrast``, and of the
#: references' outlines.
WEIGHTS: Final[dict[Contrast, str]] = {"ct": "roll.safetensors", "any": "roll-any.safetensors"}
REFERENCES: Final = {"child": "reference-child.safetensors", "adult": "reference-adult.safetensors"}
#: The reference where none is named.
DEFAULT_REFERENCE: Final = "child"


@dataclass(frozen=True)
class ShippedReference:
    """The outline of a median phantom to which scans are homogenized: a child of two years, or an adult.

    Args:
        mask: ``(1, 1, S, S)`` float32 in [0, 1], upright, centered.
        side_mm: side of the square image, mm.
    """

    mask: Tensor
    side_mm: float


def compact_state(network: RollNetwork) -> dict[str, Tensor]:
    """Return a network's state dict as it is shipped.

    Weights are rounded to float16; batch-norm statistics and the calibration keep their precision.
    """
    return {
        name: (value.half() if name in dict(network.named_parameters()) else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }


def load_shipped(network: RollNetwork, contrast: Contrast = "ct") -> RollNetwork:
    """Load shipped weights into a network, and return it.

    Args:
        network: is changed.
        contrast: ``pose.contrast``, the input that the network was trained on.
    """
    tensors = _load(WEIGHTS[contrast])
    network.load_state_dict(
        {name: value.to(network.state_dict()[name].dtype) for name, value in tensors.items()}
    )
    return network


def shipped_transformer(
    config: PoseConfig, reference_mask: Tensor, air: float, top: float, plane: Plane = "axial"
) -> PoseTransformer:
    """Return STN1 with the shipped weights, for estimation only.

    Args:
        config: with ``start="anatomy"``, or ``"header"``, which needs no weights.
        reference_mask: ``(1, 1, S, S)`` in [0, 1], the reference's foreground in the homogenized frame.
        air: value of air in the normalized images.
        top: largest value of the normalized images.
        plane: of the slices.
    """
    transformer = PoseTransformer(config, reference_mask, air, top, plane=plane)
    if transformer.roll is not None:
        load_shipped(transformer.roll, config.contrast)
    return transformer.eval().requires_grad_(False)


def load_reference(name: str = DEFAULT_REFERENCE) -> ShippedReference:
    """Return a shipped reference outline.

    Args:
        name: of :data:`REFERENCES`.
    """
    tensors = _load(REFERENCES[name])
    return ShippedReference(tensors["mask"].float(), float(tensors["side_mm"]))


def shipped_sha256(file: str) -> str:
    """Return the hash of a shipped file, which results record so that they can be traced.

    Args:
        file: a value of :data:`WEIGHTS` or :data:`REFERENCES`.
    """
    with as_file(files("isopose.models") / file) as path:
        return sha256(path)


def _load(name: str) -> dict[str, Tensor]:
    with as_file(files("isopose.models") / name) as path:
        return load_file(path)
