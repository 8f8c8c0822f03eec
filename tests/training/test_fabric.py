"""Mixed precision does not round the networks' inputs, and a resumed run keeps the gradient scale."""

import pytest
import torch
from lightning_fabric import Fabric
from test_loop import Interrupted, Line, StopAfter, Table, assert_same, settings, weights

from isopose.data.samples import Batch
from isopose.progress import Silent
from isopose.training.fabric import Autocast, precision_plugin
from isopose.training.loop import Stage, train_stage


@pytest.fixture(autouse=True)
def no_curves(monkeypatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("isopose.training.loop.curves", lambda *_: nullcontext(lambda _: None))


def trained(objective: Line, work, plugin, reporter=None, **changed) -> Fabric:
    table = Table()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=plugin)
    stage = Stage("unet", objective, settings(**changed), table, table, {}, (0, 2))  # type: ignore[arg-type]
    train_stage(stage, fabric, work, reporter or Silent())
    return fabric


@pytest.mark.parametrize("name", ["32-true", "bf16-mixed", "16-mixed"])
def test_theta_and_images_reach_the_objective_in_float32(name: str, tmp_path) -> None:
    class Watching(Line):
        def forward(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
            assert batch.image.dtype == batch.mask.dtype == noise.dtype == torch.float32
            product = self.linear(batch.image.flatten(1))
            assert product.dtype == (torch.float32 if name == "32-true" else torch.bfloat16)
            return super().forward(batch, noise)

    trained(Watching(), tmp_path, precision_plugin(name, "cpu"), epochs=1)


def test_the_loss_scale_survives_an_interruption(tmp_path) -> None:
    """float16 as on a GPU: the scale moves every few steps, so that a lost one would show."""

    def half() -> Autocast:
        plugin = Autocast("16-mixed", "cpu")
        assert plugin.scaler is not None
        plugin.scaler.set_growth_interval(2)
        return plugin

    straight, resumed = Line(), Line()
    expected = trained(straight, tmp_path / "straight", half(), epochs=4, learning_rate=0.01)
    with pytest.raises(Interrupted):
        trained(Line(), tmp_path / "cut", half(), StopAfter(7), epochs=4, learning_rate=0.01)
    result = trained(resumed, tmp_path / "cut", half(), epochs=4, learning_rate=0.01)
    assert result.strategy.precision.state_dict() == expected.strategy.precision.state_dict()
    assert result.strategy.precision.state_dict()["scale"] != 65536.0
    assert_same(weights(resumed), weights(straight))
