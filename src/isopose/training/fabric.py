"""Devices, processes and precision of a training."""

import atexit
from typing import Any, Literal, cast

from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision

from isopose.config import Config
from isopose.devices import choose_device, choose_precision
from isopose.errors import InputError
from isopose.ranks import launched, leave, strategy_for


def fabric_for(config: Config) -> Fabric:
    """Return Fabric launched on the configured device, or as one of torchrun's processes.

    Raises:
        InputError: the device does not exist, or one GPU is named for several processes.
    """
    chosen = choose_device(config.train.device)
    device = chosen.type
    precision = choose_precision(config.train.precision, device)
    processes, machines = launched()
    if chosen.index is not None and (processes, machines) != (1, 1):
        raise InputError(
            f"train.device={chosen}: one GPU for {processes * machines} processes of torchrun; expected "
            f"{device}: each process then uses a GPU of its own (CUDA_VISIBLE_DEVICES selects the GPUs)"
        )
    fabric = Fabric(
        accelerator=device,
        devices=processes if chosen.index is None else [chosen.index],
        num_nodes=machines,
        strategy=strategy_for(device),
        plugins=precision_plugin(precision, device),
    )
    fabric.launch()
    atexit.register(leave)
    return fabric


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
