import pytest
import torch

from isopose import devices
from isopose.devices import autocast, choose_device, choose_precision
from isopose.errors import InputError
from isopose.presets import load_config
from isopose.training.fabric import fabric_for


def test_an_unknown_device_is_one_line():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="device 'tpu' is not available; expected auto or one of cpu"):
        choose_device("tpu")


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two of them, as PyTorch tells of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_taken_by_its_number():
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda") == torch.device("cuda")
    for number in (0, 1):
        assert choose_device(f"cuda:{number}") == torch.device("cuda", number)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("name", ["cuda:2", "cuda:-1", "cuda:x", "cuda:", "cuda:01", "CUDA:1", "cpu:1"])
def test_a_gpu_that_is_not_there_is_one_line(name):
    expected = f"device '{name}' is not available; expected auto or one of cpu, cuda, cuda:0, cuda:1"
    with pytest.raises(InputError) as refused:
        choose_device(name)
    assert str(refused.value) == expected


def test_without_a_gpu_no_number_of_one_is_known(monkeypatch):
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
def test_a_training_takes_the_gpu_that_is_named(monkeypatch, name, devices):
    def fabric(**given):
        raise Asked(given["accelerator"], given["devices"])

    monkeypatch.setattr("isopose.training.fabric.Fabric", fabric)
    with pytest.raises(Asked) as asked:
        fabric_for(load_config(settings=[f"train.device={name}", "train.precision=32-true"]))
    assert asked.value.args == ("cuda", devices)


@pytest.mark.usefixtures("gpus")
def test_one_gpu_is_not_named_for_several_processes(monkeypatch):
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
def test_auto_is_what_the_device_is_fast_in(monkeypatch, native, device, expected):
    monkeypatch.setattr(devices, "fast_bfloat16", lambda _: native)
    assert choose_precision("auto", device) == expected
    assert choose_precision("32-true", device) == "32-true"


def test_a_pytorch_that_does_not_tell_of_bfloat16_computes_in_32_bits(monkeypatch):
    for name in [name for name in dir(torch.cpu) if name.startswith("_is_")]:
        monkeypatch.delattr(torch.cpu, name)
    assert choose_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.bfloat16)],
)
def test_what_a_cpu_computes_in(precision, dtype):
    with autocast(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
