"""Devices, processes and precision of a training."""

from lightning_fabric import Fabric

from isopose.config import Config
from isopose.devices import choose_device, choose_precision
from isopose.ranks import launched, strategy_for
from isopose.training.precision import precision_plugin


def fabric_for(config: Config) -> Fabric:
    """Launched with the devices that are there, or as one of the processes that torchrun or Slurm started."""
    device = choose_device(config.train.device).type
    precision = choose_precision(config.train.precision, device)
    here, machines = launched()
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=machines,
        strategy=strategy_for(device),
        plugins=precision_plugin(precision, device),
    )
    fabric.launch()
    return fabric
