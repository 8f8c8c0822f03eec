import pytest
import torch

from isopose import devices
from isopose.devices import autocast, choose_device, choose_precision
from isopose.errors import InputError
from isopose.presets import load_config
from isopose.training.fabric import fabric_for


def test_an_unknown_device_is_refused_in_one_line():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="device 'tpu' is not available; expected auto or one of cpu"):
        choose_device("tpu")


@pytest.fixture
def gpus(monkeypatch):
    """Simulate a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_selected_by_number():
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda") == torch.device("cuda")
    for number in (0, 1):
        assert choose_device(f"cuda:{number}") == torch.device("cuda", number)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("name", ["cuda:2", "cuda:-1", "cuda:x", "cuda:", "cuda:01", "CUDA:1", "cpu:1"])
def test_a_missing_gpu_is_refused_in_one_line(name):
    expected = f"device '{name}' is not available; expected auto or one of cpu, cuda, cuda:0, cuda:1"
    with pytest.raises(InputError) as refused:
        choose_device(name)
    assert str(refused.value) == expected


def test_without_a_gpu_a_numbered_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "cuda:1"):
        with pytest.raises(InputError, match=f"device '{name}' is not available; .* one of cpu$"):
            choose_device(name)
    with pytest.raises(InputError, match="device 'cuda:1' is not available"):
        fabric_for(load_config(settings=["train.device=cuda:1"]))


class Asked(Exception):
    """What Lightning Fabric was asked for."""


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("name", "devices"), [("cuda", 1), ("cuda:0", [0]), ("cuda:1", [1])])
def test_training_uses_the_named_gpu(monkeypatch, name, devices):
    def fabric(**given):
        raise Asked(given["accelerator"], given["devices"])

    monkeypatch.setattr("isopose.training.fabric.Fabric", fabric)
    with pytest.raises(Asked) as asked:
        fabric_for(load_config(settings=[f"train.device={name}", "train.precision=32-true"]))
    assert asked.value.args == ("cuda", devices)


@pytest.mark.usefixtures("gpus")
def test_a_numbered_gpu_is_refused_for_several_processes(monkeypatch):
    for key, value in {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(key, value)
    config = load_config(settings=["train.device=cuda:1", "train.precision=32-true"])
    with pytest.raises(InputError, match=r"train.device=cuda:1: one GPU for 4 processes of torchrun"):
        fabric_for(config)


@pytest.mark.parametrize(
    ("native", "device", "expected"),
    [(True, "cpu", "bf16-mixed"), (False, "cpu", "32-true"), (True, "cuda", "bf16-mixed"),
     (False, "cuda", "16-mixed"), (False, "mps", "32-true")],
)  # fmt: skip
def test_auto_precision_is_the_fast_one_of_the_device(monkeypatch, native, device, expected):
    monkeypatch.setattr(devices, "fast_bfloat16", lambda _: native)
    assert choose_precision("auto", device) == expected
    assert choose_precision("32-true", device) == "32-true"


def test_without_bfloat16_support_the_precision_is_32_bits(monkeypatch):
    for name in [name for name in dir(torch.cpu) if name.startswith("_is_")]:
        monkeypatch.delattr(torch.cpu, name)
    assert choose_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.bfloat16)],
)
def test_the_precision_of_a_cpu(precision, dtype):
    with autocast(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
