"""Where a model runs and how precisely it calculates: the device, bf16, processes that read images."""

from __future__ import annotations

import os
from typing import NamedTuple, Self, get_args

import torch

from boxquery.errors import UserError
from boxquery.flags import Device, Precision


class Processor(NamedTuple):
    """What a model runs on: the device, the CPU cores that PyTorch uses, and the memory of the GPU in GB (0 without CUDA)."""

    device: str
    cores: int
    memory: float = 0.0

    @classmethod
    def of(cls, device: str) -> Self:
        """This machine's, from a device of ``choose_device``."""
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9 if device == "cuda" else 0.0
        return cls(device, torch.get_num_threads(), memory)


def choose_device(device: str) -> str:
    """ "auto" -> the first of "cuda", "mps" and "cpu" that there is. Raises ``UserError`` for a device that is not there."""
    if device not in get_args(Device):
        raise UserError(f"device={device!r}: choose {', '.join(get_args(Device))}")
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in found.items() if there)
    if not found[device]:
        others = " or ".join(name for name, there in found.items() if there)
        raise UserError(f"device={device!r}: this PyTorch sees no {device.upper()} device; use {others}")
    return device


def choose_precision(precision: str, device: str) -> str:
    """ "auto", "float32" or "bf16" -> "float32" or "bf16"; "auto" is bf16 where the device is fast at it. Raises ``UserError``."""
    if precision not in get_args(Precision):
        raise UserError(f"precision={precision!r}: choose {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "float32"
    return precision


def has_fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies bf16 natively; elsewhere it is emulated and slower than float32. Not asked of MPS, whose autocast is
    young."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    if device == "mps":
        return False
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def default_workers(device: str) -> int:
    """Processes that read images: for CUDA all cores but one, at most eight. None on a CPU, whose cores the model needs, and none on a Mac,
    where each would start Python anew and decode for itself."""
    return min(8, max((os.cpu_count() or 1) - 1, 0)) if device == "cuda" else 0
