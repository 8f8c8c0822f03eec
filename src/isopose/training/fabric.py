"""Devices, processes and precision of a training."""

from lightning_fabric import Fabric

from isopose.config import Config
from isopose.devices import choose_device, choose_precision
from isopose.errors import InputError
from isopose.ranks import launched, strategy_for
from isopose.training.precision import precision_plugin


def fabric_for(config: Config) -> Fabric:
    """Return Fabric launched on the configured device, or as one of torchrun's processes.

    Raises:
        InputError: the device does not exist, or one GPU is named for several processes.
    """
    chosen = choose_device(config.train.device)
    device = chosen.type
    precision = choose_precision(config.train.precision, device)
    here, machines = launched()
    if chosen.index is not None and (here, machines) != (1, 1):
        raise InputError(
            f"train.device={chosen}: one GPU for {here * machines} processes of torchrun; expected "
            f"{device}, of which each process takes its own (CUDA_VISIBLE_DEVICES says of which)"
        )
    fabric = Fabric(
        accelerator=device,
        devices=here if chosen.index is None else [chosen.index],
        num_nodes=machines,
        strategy=strategy_for(device),
        plugins=precision_plugin(precision, device),
    )
    fabric.launch()
    return fabric
