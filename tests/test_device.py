"""The choice of a device; what it decides for is not needed to test it."""

import pytest
import torch

import boxquery as bq
from boxquery.device import choose_device, choose_precision, default_workers


def machine(monkeypatch, *devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in devices)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in devices)


@pytest.mark.parametrize(("devices", "chosen"), [((), "cpu"), (("mps",), "mps"), (("cuda",), "cuda"), (("mps", "cuda"), "cuda")])
def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch, devices, chosen):
    machine(monkeypatch, *devices)
    assert choose_device("auto") == chosen
    assert [choose_device(name) for name in (*devices, "cpu")] == [*devices, "cpu"]


def test_a_device_that_is_not_there_names_those_that_are(monkeypatch):
    machine(monkeypatch, "mps")
    with pytest.raises(bq.UserError, match=r"device='cuda': this PyTorch sees no CUDA device; use mps or cpu"):
        choose_device("cuda")
    machine(monkeypatch)
    with pytest.raises(bq.UserError, match=r"device='mps': this PyTorch sees no MPS device; use cpu"):
        choose_device("mps")
    with pytest.raises(bq.UserError, match="choose auto, cpu, cuda, mps"):
        choose_device("tpu")


def test_mps_trains_in_float32_unless_it_is_asked_for_bf16():
    assert choose_precision("auto", "mps") == "float32"
    assert choose_precision("bf16", "mps") == "bf16"
    assert default_workers("mps") == 0
