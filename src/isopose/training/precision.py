"""Mixed precision that keeps the networks' inputs in float32."""

from typing import Any, Literal, cast

from lightning_fabric.plugins.precision import MixedPrecision, Precision


class Autocast(MixedPrecision):
    """Fabric's mixed precision without rounding of inputs.

    Fabric converts all inputs of a module to 16 bits, including theta1 and theta2: in bfloat16 a translation
    is then wrong by up to an eighth of a pixel of 256. Autocast rounds only the inputs of convolutions.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the data as they are."""
        return data


def precision_plugin(name: str, device: str) -> Precision:
    """Return Fabric's plugin for ``32-true``, ``bf16-mixed`` or ``16-mixed`` on a device type."""
    if name == "32-true":
        return Precision()
    # A CPU has no fast float16; Fabric takes bfloat16 there as well.
    mixed = "bf16-mixed" if device == "cpu" else name
    return Autocast(cast(Literal["16-mixed", "bf16-mixed"], mixed), device)
