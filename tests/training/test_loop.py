"""The training loop on a linear model: schedule, early stopping, best weights, failures, resuming."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from isopose.data.samples import Batch
from isopose.errors import IsoposeError
from isopose.progress import Silent
from isopose.settings import OptimizerConfig
from isopose.training.checkpoint import StageProgress
from isopose.training.loop import Stage, train_stage

ROWS = 24


class Table:
    """Numbers in place of slices: the image holds x, the mask y = 3 x - 1."""

    def __init__(self) -> None:
        self.presence = np.arange(ROWS)[:, None] % 4 == 0
        self.drawn: list[list[int]] = []
        x = torch.linspace(-1, 1, ROWS)
        self.x, self.y = (values.view(ROWS, 1, 1, 1) for values in (x, 3 * x - 1))

    def __len__(self) -> int:
        return ROWS

    def read(self, index: np.ndarray) -> Batch:
        self.drawn.append(index.tolist())
        rows = torch.from_numpy(index)
        return Batch(rows, self.x[rows], self.y[rows], rows)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterable[Batch]:
        batches = np.array_split(np.arange(ROWS), ROWS // batch_size)[rank::world_size]
        return (self.read(rows) for rows in batches)


class Line(nn.Module):
    """Linear regression with batch statistics; judged by given scores, or by its own error."""

    def __init__(self, scores: list[float] | None = None, disturbed: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.scores, self.disturbed = scores, disturbed
        self.losses = self.judged = 0
        self.explode_at: int | None = None
        self.gradient_only = False
        self.seen: list[dict[str, torch.Tensor]] = []

    def forward(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        assert self.training
        assert noise.shape == (len(batch.rows), 9)
        assert noise.abs().max() <= 1.0
        self.losses += 1
        x = batch.image.flatten(1) + self.disturbed * noise[:, :1]
        loss = (self.linear(x) + 0.1 * self.norm(x) - batch.mask.flatten(1)).square().mean()
        if self.losses != self.explode_at:
            return loss
        # A finite loss may have a gradient that is not: here a root at zero.
        return loss + (loss - loss.detach()).sqrt() if self.gradient_only else loss * float("nan")

    def validate(self, slices: Any, batches: Iterable[Batch]) -> dict[str, float]:
        assert not self.training
        self.seen.append({name: value.clone() for name, value in self.state_dict().items()})
        self.judged += 1
        if self.scores is not None:
            return {"score": self.scores[self.judged - 1]}
        errors = [(self.linear(b.image.flatten(1)) - b.mask.flatten(1)).abs() for b in batches]
        return {"score": -float(torch.cat(errors).mean())}


class Interrupted(Exception):
    pass


class StopAfter(Silent):
    """Stops the run after a number of batches, as a kill would."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted


def settings(**changed: Any) -> OptimizerConfig:
    usual = {"name": "sgd", "learning_rate": 0.1, "epochs": 6, "min_epochs": 1, "patience": 6}
    return OptimizerConfig.model_validate(usual | {"iterations": 3, "batch_size": 4} | changed)


@pytest.fixture(autouse=True)
def curves_are_kept_in_a_list(monkeypatch) -> list[dict[str, Any]]:
    """Replace TensorBoard, which takes seconds to import and is tested with a whole run, by a list."""
    from contextlib import contextmanager

    drawn: list[dict[str, Any]] = []

    @contextmanager
    def curves(folder: Path, done: int):
        yield drawn.append

    monkeypatch.setattr("isopose.training.loop.curves", curves)
    return drawn


def run(
    objective: Line,
    work: Path,
    config: OptimizerConfig,
    *,
    judged: bool = True,
    least: dict[int, float] | None = None,
    training: Table | None = None,
    reporter: Silent | None = None,
    precision: Any = "32-true",
) -> StageProgress:
    table: Any = training or Table()
    stage = Stage("unet", objective, config, table, table if judged else None, least or {}, (0, 2))
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    return train_stage(stage, fabric, work, reporter or Silent())


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name, value in a.items() if not torch.equal(value, b[name])] == []


def history(progress: StageProgress) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.endswith("seconds")}
        for row in progress.history
    ]


def test_training_lowers_the_loss(tmp_path: Path, curves_are_kept_in_a_list) -> None:
    objective = Line()
    progress = run(objective, tmp_path, settings(epochs=30, iterations=6, patience=30))
    losses = [row["loss"] for row in progress.history]
    assert losses[-1] < 0.05 * losses[0]
    assert objective.linear.weight.item() == pytest.approx(3.0, abs=0.3)
    assert curves_are_kept_in_a_list == progress.history
    assert not objective.training
    assert not any(parameter.requires_grad for parameter in objective.parameters())


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_learning_rate_falls_by_epoch(tmp_path: Path, schedule: str) -> None:
    progress = run(Line(), tmp_path, settings(epochs=5, schedule=schedule, learning_rate=0.02))
    rates = [row["learning_rate"] for row in progress.history]
    # Worked out by hand: 0.02 (1 - e / 5) ** 0.9.
    poly = [0.02, 0.016361, 0.012629, 0.008768, 0.004699]
    assert rates == pytest.approx(poly if schedule == "poly" else [0.02] * 5, abs=1e-6)


def test_the_learning_rate_reported_is_the_one_used(tmp_path: Path) -> None:
    """Plain SGD on one batch an epoch: the weights move by rate times gradient."""
    objective = Line()
    before = weights(objective)
    table = Table()
    progress = run(objective, tmp_path, settings(epochs=4, iterations=1, batch_size=8), training=table)
    first, second = objective.seen[0], objective.seen[1]
    for start, end, row, rows in (
        (before, first, progress.history[0], table.drawn[0]),
        (first, second, progress.history[1], table.drawn[4]),
    ):
        copy = Line()
        copy.load_state_dict(start)
        x, y = table.x[rows].flatten(1), table.y[rows].flatten(1)
        loss = (copy.linear(x) + 0.1 * copy.norm(x) - y).square().mean()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in copy.parameters()]).norm()
        assert norm < 12.0
        assert loss.item() == pytest.approx(row["loss"], rel=1e-5)
        moved = start["linear.weight"] - row["learning_rate"] * copy.linear.weight.grad
        assert torch.allclose(end["linear.weight"], moved, atol=1e-6)


@pytest.mark.parametrize("max_norm", [12.0, 3.0])
def test_large_gradients_are_clipped(tmp_path: Path, max_norm: float) -> None:
    objective = Line()
    table = Table()
    table.y = table.y * 1e4
    before = weights(objective)
    changed = {} if max_norm == 12.0 else {"max_norm": max_norm}
    once = settings(epochs=1, iterations=1, learning_rate=0.1, **changed)
    run(objective, tmp_path, once, training=table)
    steps = torch.stack([(before[n] - p).norm() for n, p in objective.named_parameters()])
    assert steps.norm().item() == pytest.approx(0.1 * max_norm, rel=1e-3)


def test_smoothed_score_decides_when_to_stop(tmp_path: Path) -> None:
    """One lucky epoch does not count as the best for ever: 0.5, 0.6, 0.7 smoothed, then it sinks."""
    scores = [0.5, 1.0, 1.0, 0.0, 0.9, 0.5, 0.1, 0.1]
    smoothed = [scores[0]]
    for score in scores[1:]:
        smoothed.append(0.8 * smoothed[-1] + 0.2 * score)
    assert int(np.argmax(smoothed)) == 2
    objective = Line(scores)
    progress = run(objective, tmp_path, settings(epochs=8, patience=3))
    assert (progress.epoch, progress.best_epoch, progress.finished) == (6, 3, True)
    assert progress.best == pytest.approx(smoothed[2])
    assert progress.smoothed == pytest.approx(smoothed[5])
    plain = run(Line(scores), tmp_path / "plain", settings(epochs=8, patience=3, smoothing=0.0))
    assert (plain.epoch, plain.best_epoch, plain.best) == (5, 2, 1.0)
    # The weights are those of epoch 3, not the last ones.
    assert_same(weights(objective), objective.seen[2])
    with pytest.raises(AssertionError):
        assert_same(weights(objective), objective.seen[5])


def test_no_early_stop_before_the_minimum_of_epochs(tmp_path: Path) -> None:
    objective = Line([0.9] + [0.1] * 9)
    progress = run(objective, tmp_path, settings(epochs=10, min_epochs=7, patience=2))
    assert (progress.epoch, progress.best_epoch) == (7, 1)
    assert_same(weights(objective), objective.seen[0])


def test_training_runs_to_the_last_epoch_while_it_improves(tmp_path: Path) -> None:
    progress = run(Line([0.1 * n for n in range(6)]), tmp_path, settings(patience=1))
    assert (progress.epoch, progress.best_epoch) == (6, 6)


def test_without_validation_all_epochs_run_and_the_last_weights_are_kept(tmp_path: Path) -> None:
    objective = Line()
    progress = run(objective, tmp_path, settings(patience=1, epochs=4), judged=False)
    assert (progress.epoch, progress.best_epoch, progress.best, objective.judged) == (4, 4, None, 0)
    assert [sorted(row) for row in progress.history] == [
        ["cpu_seconds", "epoch", "learning_rate", "loss", "seconds", "stage", "validation_seconds"]
    ] * 4
    assert objective.losses == 12
    untrained = Line()
    with pytest.raises(AssertionError):
        assert_same(weights(objective), weights(untrained))


def test_oversampling_reaches_the_batches(tmp_path: Path) -> None:
    table = Table()
    run(Line(), tmp_path, settings(epochs=2), judged=False, least={0: 0.75}, training=table)
    for epoch in range(2):
        rows = np.concatenate(table.drawn[3 * epoch : 3 * epoch + 3])
        assert table.presence[rows, 0].sum() >= 9
    assert table.drawn[:3] != table.drawn[3:]


def test_a_transform_that_is_not_finite_ends_the_stage_with_the_same_message(tmp_path: Path) -> None:
    class Lost(Line):
        def forward(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
            raise FloatingPointError("a pose or crop is not finite")

    with pytest.raises(IsoposeError, match=r"stage unet: a pose or crop is not finite; .*learning_rate"):
        run(Lost(), tmp_path, settings())


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_loss_that_is_not_finite_ends_the_stage(tmp_path: Path, epoch: int) -> None:
    objective = Line()
    objective.explode_at = 3 * (epoch - 1) + 2
    with pytest.raises(IsoposeError, match=rf"stage unet: loss nan in epoch {epoch}; .*learning_rate") as e:
        run(objective, tmp_path, settings())
    assert e.value.exit_code == 1
    checkpoint = tmp_path / "checkpoints" / "unet.safetensors"
    assert checkpoint.exists() == (epoch > 1)
    if epoch > 1:
        # The checkpoint is the last good epoch's: from there the run goes on as if nothing had happened.
        resumed, straight = Line(), Line()
        progress = run(resumed, tmp_path, settings())
        other = run(straight, tmp_path / "straight", settings())
        assert_same(weights(resumed), weights(straight))
        assert history(progress) == history(other)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    """In an epoch's last batch: its loss is still finite, only the weights are not."""
    objective = Line()
    objective.explode_at, objective.gradient_only = 6, True
    with pytest.raises(IsoposeError, match=r"stage unet: weights that are not finite in epoch 2; "):
        run(objective, tmp_path, settings())
    resumed = Line()
    assert run(resumed, tmp_path, settings()).epoch == 6
    assert torch.isfinite(resumed.linear.weight).all()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("batches", [7, 10])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path, name: str, batches: int) -> None:
    config = settings(name=name, momentum=0.9, weight_decay=0.01, epochs=5, learning_rate=0.05)
    straight = Line(disturbed=0.3)
    expected = run(straight, tmp_path / "straight", config, least={0: 0.5})

    with pytest.raises(Interrupted):
        run(Line(disturbed=0.3), tmp_path / "cut", config, least={0: 0.5}, reporter=StopAfter(batches))
    torch.manual_seed(99)  # whatever else drew random numbers in between
    resumed = Line(disturbed=0.3)
    nn.init.constant_(resumed.linear.weight, 7.0)
    progress = run(resumed, tmp_path / "cut", config, least={0: 0.5})
    # Only the epochs that were not finished are done.
    assert resumed.losses == 15 - 3 * (batches // 3)
    assert_same(weights(resumed), weights(straight))
    assert history(progress) == history(expected)
    assert (progress.best, progress.best_epoch, progress.smoothed) == (
        expected.best,
        expected.best_epoch,
        expected.smoothed,
    )


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    scores = [0.5, 0.9, 0.1, 0.1, 0.1, 0.1]
    objective = Line(scores)
    expected = run(objective, tmp_path, settings())
    again = Line(scores)
    progress = run(again, tmp_path, settings())
    assert again.losses == again.judged == 0
    assert progress == expected
    assert_same(weights(again), objective.seen[1])


def test_scores_that_are_not_finite_never_reach_the_history(tmp_path: Path) -> None:
    """A validation without slices has no score; NaN cannot be stored in the model's JSON."""

    class Blind(Line):
        def validate(self, slices: Any, batches: Iterable[Batch]) -> dict[str, float]:
            self.judged += 1
            return {}

    objective = Blind()
    progress = run(objective, tmp_path, settings(patience=1, epochs=3))
    assert (progress.epoch, progress.best) == (3, None)
    json.dumps(progress.history, allow_nan=False)


def test_mixed_precision_keeps_the_weights_in_float32(tmp_path: Path) -> None:
    objective = Line()
    run(objective, tmp_path, settings(), precision="bf16-mixed")
    assert all(p.dtype == torch.float32 for p in objective.parameters())
    assert objective.linear.weight.item() > 1.0


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_gradient_accumulation_equals_the_whole_batch(tmp_path: Path, parts: int) -> None:
    """Without batch statistics, the mean over a batch is the weighted mean over its parts."""
    results = []
    for count in (1, parts):
        objective = Line(disturbed=0.3)
        objective.norm = nn.Identity()
        progress = run(objective, tmp_path / str(count), settings(parts=count))
        results.append((weights(objective), [row["loss"] for row in progress.history]))
        assert objective.losses == 18 * count
    (whole, losses), (in_parts, same_losses) = results
    assert losses == pytest.approx(same_losses, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-5, atol=1e-6)
    assert whole["linear.weight"].item() > 1.0


def test_more_parts_than_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="parts is 5, expected at most batch_size, 4"):
        settings(parts=5)
