import pytest
import torch
from torch import nn

from isopose.models.localization import Localization
from isopose.models.planner import plan_unet
from isopose.models.unet import UNet
from isopose.presets import load_config


def planned(size: int, depth: int, *settings: str):
    config = load_config(
        settings=["dims=3", f"data.size={size}", f"unet.depth={depth}", "unet.input=full", *settings]
    )
    return plan_unet(config.unet_size, config.unet_levels, config.unet, dims=3)


@pytest.mark.parametrize(
    ("size", "depth", "sizes", "depths"),
    [
        (96, 32, (96, 48, 24, 12), (32, 32, 16, 8)),
        (128, 32, (128, 64, 32, 16, 8), (32, 32, 16, 8, 4)),
        (128, 128, (128, 64, 32, 16, 8), (128, 64, 32, 16, 8)),
        (64, 8, (64, 32, 16, 8), (8, 8, 8, 4)),
        (256, 32, (256, 128, 64, 32, 16, 8), (32, 32, 32, 16, 8, 4)),
    ],
)
def test_strides_make_voxels_nearly_isotropic(size, depth, sizes, depths):
    """z is halved at levels where it has at least half as many voxels as the sides, down to 4."""
    plan = planned(size, depth)
    assert (plan.sizes, plan.depths) == (sizes, depths)
    assert plan.strides(0) == (depths[0] // depths[1], 2, 2)


def test_outputs_by_level_finest_first():
    net = UNet(planned(64, 16, "unet.base_features=2"), 3).eval()
    volume = torch.randn(1, 1, 16, 64, 64)
    with torch.no_grad():
        deep, shallow = net(volume, deep=True), net(volume)
    assert [tuple(x.shape[1:]) for x in deep] == [(3, 16, 64, 64), (3, 16, 32, 32), (3, 8, 16, 16)]
    assert len(shallow) == 1
    assert torch.equal(shallow[0], deep[0])


def test_each_volume_is_normalized_by_itself():
    """The output does not depend on the rest of the batch, in training and in evaluation."""
    torch.manual_seed(0)
    net = UNet(planned(64, 8, "unet.base_features=2"), 2).train()
    volumes = torch.randn(2, 1, 8, 64, 64)
    with torch.no_grad():
        alone, together = net(volumes[:1])[0], net(torch.cat([volumes[:1], 50 + volumes[1:]]))[0]
        evaluated = net.eval()(volumes[:1])[0]
    assert torch.allclose(alone, together[:1], atol=1e-4)
    assert torch.allclose(alone, evaluated, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in net.modules())


def test_the_receptive_field_extends_along_z():
    torch.manual_seed(0)
    net = UNet(planned(64, 8, "unet.base_features=2"), 2).eval()
    volume = torch.randn(1, 1, 8, 64, 64, requires_grad=True)
    net(volume)[0][0, 1, 3, 32, 32].backward()
    assert (volume.grad[0, 0].abs().amax(dim=(1, 2)) > 0).all()


def test_localization_of_volumes_starts_at_zero_and_learns():
    net = Localization(32, 6, depth=8)
    image, mask = torch.randn(2, 1, 8, 32, 32), torch.ones(2, 1, 8, 32, 32)
    assert net(image, mask).tolist() == [[0.0] * 6] * 2
    net(image, mask).sum().backward()
    assert net.output.bias.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert net(image, mask).dtype == torch.float32
