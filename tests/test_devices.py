import pytest
import torch

from isopose import devices
from isopose.devices import autocast, choose_device, choose_precision
from isopose.errors import InputError


def test_an_unknown_device_is_one_line():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="device 'tpu' is not there; expected auto or one of cpu"):
        choose_device("tpu")


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
