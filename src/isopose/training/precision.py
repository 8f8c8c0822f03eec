"""Mixed precision that rounds what the networks compute, and nothing that they are given."""

from typing import Any, Literal, cast

from lightning_fabric.plugins.precision import MixedPrecision, Precision


class Autocast(MixedPrecision):
    """Fabric's mixed precision without its rounding of inputs.

    Fabric turns every number that a module is given into 16 bits, theta1 and theta2 among them: in bfloat16
    a shift is then wrong by up to an eighth of a pixel of 256, in training alone. Autocast rounds only what
    convolutions see.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the data as they are."""
        return data


def precision_plugin(name: str, device: str) -> Precision:
    """What Fabric is given for ``32-true``, ``bf16-mixed`` or ``16-mixed`` on a type of device."""
    if name == "32-true":
        return Precision()
    # A CPU has no fast float16; Fabric takes bfloat16 there as well.
    mixed = "bf16-mixed" if device == "cpu" else name
    return Autocast(cast(Literal["16-mixed", "bf16-mixed"], mixed), device)
