import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from isopose.models.planner import plan_unet
from isopose.models.unet import UNet
from isopose.presets import load_config


def planned(size: int, *settings: str) -> tuple:
    config = load_config(settings=[f"data.size={size}", "unet.input=full", *settings])
    return plan_unet(config.unet_size, config.unet_levels, config.unet), config


@pytest.mark.parametrize(
    ("size", "sizes", "features", "supervised"),
    [
        (128, (128, 64, 32, 16, 8), (32, 64, 128, 256, 512), (0, 1, 2)),
        (512, (512, 256, 128, 64, 32, 16, 8), (32, 64, 128, 256, 512, 512, 512), (0, 1, 2, 3, 4)),
        (96, (96, 48, 24, 12), (32, 64, 128, 256), (0, 1)),
    ],
)
def test_levels_and_features_follow_the_paper(size, sizes, features, supervised):
    """8 x 8 (or just above) at the bottom, features doubled up to 512, skips down to 32 x 32."""
    plan, _ = planned(size)
    assert (plan.sizes, plan.features, plan.supervised) == (sizes, features, supervised)


def test_flops_of_the_default_network():
    """4.5 GFLOP for a forward pass of one slice of 128 x 128 pixels."""
    plan, _ = planned(128)
    net = UNet(plan, 3).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 128, 128))
    assert counter.get_total_flops() / 1e9 == pytest.approx(4.5, rel=0.05)


def test_context_adds_channels_to_the_first_layer_alone():
    few = "unet.base_features=4"
    alone, beside = (UNet(planned(64, few, f"unet.context={n}")[0], 3).state_dict() for n in (0, 2))
    other = [name for name in alone if alone[name].shape != beside[name].shape]
    assert other == ["first.0.0.weight"]
    assert (alone[other[0]].shape[1], beside[other[0]].shape[1]) == (1, 5)


def test_outputs_by_level_finest_first():
    plan, _ = planned(64, "unet.base_features=4", "unet.smallest_skip=16")
    net = UNet(plan, 3).eval()
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        deep, shallow = net(image, deep=True), net(image)
    assert [tuple(x.shape) for x in deep] == [(2, 3, 64, 64), (2, 3, 32, 32), (2, 3, 16, 16)]
    assert len(shallow) == 1
    assert torch.equal(shallow[0], deep[0])


def test_no_skip_connection_below_32_pixels():
    """With the path through the bottleneck cut, only levels with a skip connection depend on the image."""
    plan, _ = planned(64, "unet.base_features=4")
    net = UNet(plan, 2).eval()
    a, b = torch.randn(2, 1, 1, 64, 64)
    nn.init.zeros_(net.up[1][0].weight)
    with torch.no_grad():
        through = [net(x, deep=True)[1] for x in (a, b)]
        level_of_no_skip = [net.decode[2](net.up[2](torch.zeros(1, plan.features[3], 8, 8))) for _ in (a, b)]
    assert not torch.equal(*through)  # 32 x 32 still has its skip
    assert torch.equal(*level_of_no_skip)
    assert plan.skips == (True, True, False, False)


def test_logits_shift_with_the_image():
    """The net is convolutional: a shift by the whole stride shifts the logits, away from the border."""
    torch.manual_seed(0)
    plan, _ = planned(64, "unet.base_features=2", "unet.bottleneck=16", "unet.smallest_skip=16")
    net = UNet(plan, 2).eval()
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 24:32, 28:36] = torch.randn(8, 8)
    with torch.no_grad():
        out, moved = net(image)[0], net(image.roll(4, dims=3))[0]
    inner = slice(16, 48)
    assert torch.allclose(out[..., inner, 16:44], moved[..., inner, 20:48], atol=1e-5)


def test_normalization_of_the_output_is_optional():
    plan, config = planned(64, "unet.output_norm=true")
    assert any(
        isinstance(m, nn.BatchNorm2d) for m in UNet(plan, 2, config.unet.output_norm).outputs.modules()
    )
    assert not any(isinstance(m, nn.BatchNorm2d) for m in UNet(plan, 2).outputs.modules())


@pytest.mark.parametrize("dims", [2, 3])
def test_activation_checkpointing_gives_the_same_gradients(dims):
    """Loss, gradients and running statistics are identical, and far fewer activations are kept."""
    settings = ["unet.base_features=4", "unet.smallest_skip=16", f"dims={dims}", "unet.depth=8"]
    config = load_config(settings=["data.size=64", "unet.input=full", *settings])
    plan = plan_unet(config.unet_size, config.unet_levels, config.unet, dims=dims)
    image = torch.randn(2, 1, *plan.depths[:1], 64, 64)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = UNet(plan, 3, recompute=recompute).train()
        kept: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor
        ):
            loss = sum(level.square().mean() for level in net(image, deep=True))
        loss.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        results.append(([loss.detach(), *gradients, *net.buffers()], sum(t.nbytes for t in kept.values())))
    (plain, whole), (again, less) = results
    assert len(plain) == len(again) > 20
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert less < 0.6 * whole


def test_checkpointing_keeps_the_statistics_of_frozen_levels():
    plan, _ = planned(64, "unet.base_features=4")
    net = UNet(plan, 3, recompute=True)
    net.freeze("decoder")
    net.train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    sum(level.square().mean() for level in net(torch.randn(2, 1, 64, 64), deep=True)).backward()
    after = dict(net.named_buffers())
    of_encoder = [name for name in before if name.startswith(("first", "down"))]
    assert of_encoder
    assert all(torch.equal(before[name], after[name]) for name in of_encoder)
    counted = [value for name, value in after.items() if name.startswith("up") and name.endswith("tracked")]
    assert counted
    assert all(value == 1 for value in counted)


def test_nothing_is_recomputed_without_gradients():
    plan, _ = planned(64, "unet.base_features=4")
    net = UNet(plan, 3, recompute=True).eval()
    with torch.inference_mode():
        [logits] = net(torch.randn(1, 1, 64, 64))
    assert logits.isfinite().all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_fused_network_gives_the_same_logits(dims):
    config = load_config(settings=["data.size=64", "unet.input=full", "unet.base_features=4", f"dims={dims}"])
    plan = plan_unet(config.unet_size, config.unet_levels, config.unet, dims=dims)
    net = UNet(plan, 3, output_norm=dims == 2).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fused = net.fused()
    assert fused.fused() is fused
    image = torch.randn(2, 1, *plan.depths[:1], 64, 64)
    with torch.inference_mode():
        [expected], [result] = net(image), fused(image)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    norms = [m for block in (*fused.first, *fused.up) for m in block if isinstance(m, nn.BatchNorm2d)]
    assert not norms
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
