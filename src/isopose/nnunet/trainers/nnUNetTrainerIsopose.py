"""nnU-Net v2's trainer with pose and size normalized inside its network; for 2D configurations of CT.

nnU-Net finds it where ``nnUNet_extTrainer`` names this folder, see docs/nnunet.md.
"""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from isopose.nnunet.network import PosedNetwork
from isopose.nnunet.plans import LOWEST_HU, SEEN


class nnUNetTrainerIsopose(nnUNetTrainer):  # nnU-Net asks for this name
    """nnU-Net's own, whose network sees every slice upright and in one size."""

    # nnU-Net reads the parameters' names.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        name = type(self).__name__
        if len(self.configuration_manager.patch_size) != 2:
            raise RuntimeError(f"{name}: expected a 2D configuration, got {configuration}; train with 2d")
        schemes = self.configuration_manager.normalization_schemes
        if schemes[0] != "CTNormalization":
            raise RuntimeError(f"{name}: expected CT in its first channel, got {schemes[0]}")
        low = self.plans_manager.foreground_intensity_properties_per_channel["0"]["percentile_00_5"]
        if low > LOWEST_HU:
            raise RuntimeError(
                f"{name}: expected plans that keep fat, got intensities clipped at {low:g} HU; make them "
                "with python -m isopose.nnunet, and preprocess and train with them (-p nnUNetPlansIsopose)"
            )
        if self.label_manager.has_regions:
            raise RuntimeError(f"{name}: expected labels, got regions, for which nothing is missing mass")

    def _do_i_compile(self) -> bool:
        """No: how far a slice is blurred before it shrinks follows from its pose."""
        return False

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network, for training and prediction alike, within the one that homogenizes."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        intensities = plans_manager.foreground_intensity_properties_per_channel["0"]
        return PosedNetwork(
            network,
            mean=intensities["mean"],
            sd=max(intensities["std"], 1e-8),
            low=intensities["percentile_00_5"],
            seen_from=intensities.get(SEEN),
        )
