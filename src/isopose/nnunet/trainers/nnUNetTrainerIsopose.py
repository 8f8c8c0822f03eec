"""nnU-Net v2's trainer with homogenization inside its network, for 2D configurations of CT.

nnU-Net finds it if ``nnUNet_extTrainer`` is set to this folder, see docs/nnunet.md.
"""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from isopose.nnunet.network import PosedNetwork
from isopose.nnunet.plans import LOWEST_HU, SEEN_FROM_KEY


class nnUNetTrainerIsopose(nnUNetTrainer):  # nnU-Net requires a name of this form
    """nnU-Net's trainer, whose network gets every slice upright and in one size."""

    # nnU-Net inspects the names of these parameters.
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
            raise RuntimeError(
                f"{name}: expected labels, got regions, which have no background class; train without regions"
            )

    def _do_i_compile(self) -> bool:
        """Return False: the size of the prefilter's kernel depends on the pose."""
        return False

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build nnU-Net's network and wrap it in :class:`PosedNetwork`."""
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
            seen_from=intensities.get(SEEN_FROM_KEY),
        )
