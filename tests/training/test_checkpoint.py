"""Checkpoints of a stage are written and read completely or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from isopose.errors import InputError, IsoposeError, RunError
from isopose.training.checkpoint import StageProgress, load_checkpoint, save_checkpoint

PROGRESS = StageProgress(3, False, 0.1 + 0.2, 0.7, 2, [{"stage": "unet", "epoch": 1, "loss": 1.0 / 3.0}])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1))


def optimizer_of(module: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(module.parameters(), lr=0.1)
    return torch.optim.SGD(
        module.parameters(), lr=0.1, momentum=0.9 if name == "momentum" else 0.0, nesterov=name == "momentum"
    )


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        loss = module(torch.randn(4, 1, 4, 4, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "momentum", "plain"])
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path, name: str) -> None:
    straight = network(0)
    optimizer = optimizer_of(straight, name)
    steps(straight, optimizer, 3)
    best = {key: value + 1 for key, value in straight.state_dict().items()}
    path = tmp_path / "checkpoints" / "unet.safetensors"
    save_checkpoint(path, PROGRESS, straight.state_dict(), best, optimizer)

    resumed = network(1)
    other = optimizer_of(resumed, name)
    progress, last, loaded_best = load_checkpoint(path, other)
    resumed.load_state_dict(last)
    assert progress == PROGRESS
    assert loaded_best.keys() == best.keys()
    assert all(torch.equal(loaded_best[key], value) for key, value in best.items())
    steps(straight, optimizer, 4)
    steps(resumed, other, 4)
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_shared_and_strided_tensors_are_saved_with_their_own_values(tmp_path: Path) -> None:
    """Tensors with shared memory or another memory format are saved by value."""
    weights = {"w": torch.arange(16.0).reshape(1, 2, 2, 4).to(memory_format=torch.channels_last)}
    path = tmp_path / "pose.safetensors"
    module = network(0)
    save_checkpoint(path, StageProgress(), weights, weights, optimizer_of(module, "plain"))
    expected = weights["w"].clone()
    weights["w"].zero_()
    _, last, best = load_checkpoint(path, optimizer_of(module, "plain"))
    assert torch.equal(last["w"], expected)
    assert torch.equal(best["w"], expected)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["best.w", "last.w"]


def channels_last(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    module(torch.randn(2, 3, 6, 6, generator=generator)).square().mean().backward()
    optimizer.step()
    return module, optimizer


def test_saving_does_not_copy_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With optimizer state, a copy would take three times the network's memory, more than a small step."""
    module, optimizer = channels_last(0)
    best = {name: value.clone() for name, value in module.state_dict().items()}
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr("isopose.training.checkpoint.write_tensors", lambda _, whole, __: seen.update(whole))
    save_checkpoint(tmp_path / "unet.safetensors", PROGRESS, module.state_dict(), best, optimizer)
    [weight, bias] = module.parameters()
    held = {"last.weight": weight, "best.weight": best["weight"], "last.bias": bias}
    held |= {f"optimizer.0.{name}": optimizer.state[weight][name] for name in ("exp_avg", "exp_avg_sq")}
    for name, value in held.items():
        assert seen[name].data_ptr() == value.data_ptr(), name


def test_loading_keeps_the_memory_format_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    module, optimizer = channels_last(0)
    save_checkpoint(path, PROGRESS, module.state_dict(), module.state_dict(), optimizer)
    other, resumed = channels_last(1)
    _, last, best = load_checkpoint(path, resumed)
    other.load_state_dict(last)
    [weight, _], [expected, _] = other.parameters(), module.parameters()
    assert torch.equal(weight, expected)
    assert torch.equal(best["weight"], expected)
    for name in ("exp_avg", "exp_avg_sq"):
        state = resumed.state[weight][name]
        assert torch.equal(state, optimizer.state[expected][name])
        assert state.stride() == optimizer.state[expected][name].stride() == weight.stride()


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    """Earlier checkpoints have no entry for the memory format."""
    path = tmp_path / "unet.safetensors"
    module, optimizer = channels_last(0)
    save_checkpoint(path, PROGRESS, module.state_dict(), module.state_dict(), optimizer)
    with safe_open(path, framework="pt") as file:
        about = {"progress": file.metadata()["progress"]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    plain = {n: (v.movedim(-1, 1).contiguous() if v.ndim == 4 else v) for n, v in tensors.items()}
    save_file(plain, path, metadata=about)
    _, last, _ = load_checkpoint(path, optimizer)
    assert torch.equal(last["weight"], module.state_dict()["weight"])


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no progress", "another progress"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "unet.safetensors"
    module = network(0)
    save_checkpoint(path, PROGRESS, module.state_dict(), module.state_dict(), optimizer_of(module, "plain"))
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a checkpoint, but long enough to hold a header's length")
    else:
        metadata = {"progress": '{"epochs": 3}'} if damage == "another progress" else None
        save_file({"last.w": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(InputError, match="damaged checkpoint") as error:
        load_checkpoint(path, optimizer_of(module, "plain"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_write_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "unet.safetensors"
    module = network(0)
    optimizer = optimizer_of(module, "plain")
    save_checkpoint(path, PROGRESS, module.state_dict(), module.state_dict(), optimizer)
    before = path.read_bytes()

    def full(tensors, filename, metadata) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isopose.tensors.save_file", full)
    with pytest.raises(RunError, match="No space left on device; nothing was left half-written"):
        save_checkpoint(path, StageProgress(), module.state_dict(), module.state_dict(), optimizer)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["unet.safetensors"]


def test_a_full_disk_gives_one_line(tmp_path: Path, monkeypatch) -> None:
    module = network(0)

    def full(*_args, **_kwargs) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("isopose.tensors.save_file", full)
    path, optimizer = tmp_path / "unet.safetensors", optimizer_of(module, "plain")
    with pytest.raises(IsoposeError, match=r"unet\.safetensors: cannot be written .*No space"):
        save_checkpoint(path, PROGRESS, module.state_dict(), module.state_dict(), optimizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["optimizer.1&momentum.exp_avg", "optimizer.x.y", "color.a"])
def test_unknown_tensor_names_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / "unet.safetensors"
    save_file({name: torch.ones(2)}, path, metadata={"progress": "{}"})
    with pytest.raises(InputError, match="damaged checkpoint"):
        load_checkpoint(path, torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1))
