"""Sums, shares and batch norm of several training processes; whole trainings are tested in training/."""

import subprocess
import sys

import pytest
import torch

from isopose.models.norm import BatchNorm2d
from isopose.ranks import gathered, is_lost_rank, launched, ranks, shares_of_rank, strategy_for, summed

#: What each of two processes does: its half of a batch through batch norm and a loss of the whole batch.
HALVES = """
import sys, torch
import torch.distributed as dist
from isopose.models.norm import BatchNorm2d
from isopose.ranks import gathered, shares_of_rank, rank, ranks, summed
from isopose.training.losses import crop_loss, segmentation_loss
from isopose.settings import CropConfig

dist.init_process_group("gloo")
torch.set_num_threads(1)
values = torch.load(sys.argv[1], weights_only=True)
(places,) = shares_of_rank(len(values["image"]))
norm = BatchNorm2d(values["image"].shape[1])
norm.load_state_dict(values["norm"])
image = values["image"][places].clone().requires_grad_()
loss = segmentation_loss(norm(image).softmax(dim=1), values["target"][places])
loss.backward()
theta = values["theta"].clone().requires_grad_()
# The first process has none of the slices that show a label.
found = torch.tensor([], dtype=torch.long) if rank() == 0 else torch.arange(len(theta))
pixels = values["pixels"][found]
crop = crop_loss(theta[found].sum((1, 2)).reshape(-1, 1, 1, 1) * pixels, pixels,
                 theta[found], values["goal"][found], CropConfig())
crop.backward()
nothing = crop_loss(values["pixels"][:0], values["pixels"][:0], theta[:0], values["goal"][:0], CropConfig())
out = {
    "loss": loss.detach(),
    # Entropies are of each process's own slices; DDP takes the mean of what they ask of the weights.
    "image": gathered([image.grad]),
    "weight": summed(norm.weight.grad) / ranks(),
    "bias": summed(norm.bias.grad) / ranks(),
    "mean": norm.running_mean, "var": norm.running_var, "seen": norm.num_batches_tracked,
    "crop": crop.detach(), "theta": summed(theta.grad) / ranks(), "nothing": nothing.detach(),
    "order": gathered([torch.tensor([number]) for number in range(5)[rank()::ranks()]]),
}
dist.barrier()
if rank() == 0:
    torch.save(out, sys.argv[2])
dist.destroy_process_group()
"""


def torchrun(*command: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    return subprocess.run(
        [*launcher, *map(str, command)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The inputs, and the outputs of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    draw = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    norm = BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(normal(3))
        norm.bias.copy_(normal(3))
    values = {
        "image": normal(8, 3, 6, 5) * 2.0 + 3.0,
        "target": normal(8, 3, 6, 5).softmax(dim=1),
        "norm": {name: value.clone() for name, value in norm.state_dict().items()},
        "theta": normal(4, 3, 3),
        "goal": normal(4, 3, 3),
        "pixels": normal(4, 1, 7, 7),
    }
    torch.save(values, folder / "in.pt")
    (folder / "halves.py").write_text(HALVES)
    process = torchrun(folder / "halves.py", folder / "in.pt", folder / "out.pt")
    # PyTorch may abort a process that ends, when its work is done (its issue 190489).
    if "terminate called without an active exception" in process.stderr:
        process = torchrun(folder / "halves.py", folder / "in.pt", folder / "out.pt")
    assert process.returncode == 0, process.stderr[-3000:]
    return values, torch.load(folder / "out.pt", weights_only=True)


def test_batch_norm_and_loss_equal_those_of_the_whole_batch(two):
    from isopose.training.losses import segmentation_loss

    values, out = two
    norm = torch.nn.BatchNorm2d(3)
    norm.load_state_dict(values["norm"])
    image = values["image"].clone().requires_grad_()
    loss = segmentation_loss(norm(image).softmax(dim=1), values["target"])
    loss.backward()
    assert image.grad is not None
    # Two processes' gradients are averaged, so each asks twice of its own half.
    torch.testing.assert_close(out["image"] / 2.0, image.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(out["weight"], norm.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out["bias"], norm.bias.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out["mean"], norm.running_mean)
    torch.testing.assert_close(out["var"], norm.running_var)
    assert out["seen"] == 1


def test_a_process_without_a_label_takes_part_in_the_crop_s_loss(two):
    from isopose.settings import CropConfig
    from isopose.training.losses import crop_loss

    values, out = two
    theta = values["theta"].clone().requires_grad_()
    pixels = values["pixels"]
    crop = theta.sum((1, 2)).reshape(-1, 1, 1, 1) * pixels
    loss = crop_loss(crop, pixels, theta, values["goal"], CropConfig())
    loss.backward()
    torch.testing.assert_close(out["crop"], loss.detach())
    torch.testing.assert_close(out["theta"], theta.grad, rtol=1e-4, atol=1e-6)
    assert out["nothing"] == 0


def test_gathered_results_keep_the_order_of_the_batches(two):
    assert two[1]["order"].tolist() == [0, 1, 2, 3, 4]


def test_rank_and_world_size_of_a_single_process(monkeypatch):
    assert ranks() == 1
    assert [part.tolist() for part in shares_of_rank(5, 2)] == [[0, 1, 2], [3, 4]]
    one = torch.ones(3)
    assert summed(one) is one
    assert gathered([one, one]).tolist() == [1.0] * 6
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launched() == (1, 1)
    assert strategy_for("cpu") == "auto"


def test_world_size_comes_from_torchruns_environment(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == (4, 2)


def test_shares_of_a_part_add_up_to_the_part(monkeypatch):
    """For any number of ranks, the shares of the first part together are the first part."""
    shares = []
    for number in range(2):
        monkeypatch.setattr("isopose.ranks.ranks", lambda: 2)
        monkeypatch.setattr("isopose.ranks.rank", lambda number=number: number)
        shares.append([part.tolist() for part in shares_of_rank(8, 2)])
    assert shares == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_which_errors_are_of_a_lost_rank():
    assert is_lost_rank(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert is_lost_rank(torch.distributed.DistNetworkError("timeout"))
    assert not is_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
