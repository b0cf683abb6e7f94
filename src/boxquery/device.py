"""Where a model runs and how precisely it calculates: the device, bf16, processes that read images."""

from __future__ import annotations

import os
from typing import get_args

import torch

from boxquery.errors import UserError
from boxquery.flags import Device, Precision


def choose_device(device: str) -> str:
    """ "auto", "cpu" or "cuda" -> "cpu" or "cuda". Raises ``UserError``."""
    if device not in get_args(Device):
        raise UserError(f"device={device!r}: choose {', '.join(get_args(Device))}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda': this PyTorch sees no CUDA device; use cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_precision(precision: str, device: str) -> str:
    """ "auto", "float32" or "bf16" -> "float32" or "bf16"; "auto" is bf16 where the device is fast at it. Raises ``UserError``."""
    if precision not in get_args(Precision):
        raise UserError(f"precision={precision!r}: choose {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "float32"
    return precision


def has_fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies bf16 natively; elsewhere it is emulated and slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def default_workers(device: str) -> int:
    """Processes that read images: none on a CPU, whose cores the model needs; for CUDA all cores but one, at most eight."""
    return min(8, max((os.cpu_count() or 1) - 1, 0)) if device == "cuda" else 0
