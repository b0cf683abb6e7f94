"""Matrix products in float32 by the faster of the two libraries that PyTorch has for them on a CPU."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: multiply-adds from which oneDNN is called: for fewer what it saves is less than what it costs to write a gradient in Python
LEAST = 2**21
#: how ``torch.utils.flop_counter.FlopCounterMode`` counts oneDNN's product (``custom_mapping``)
COUNTED: dict[Any, Any] = {}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    COUNTED[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]


class Linear(nn.Linear):
    """``nn.Linear``, by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``. Large products in float32 go to oneDNN where MKL is slow, which rounds differently."""
    if is_slow_in_mkl(x, weight):
        return _Product.apply(x, weight, bias, False)
    return F.linear(x, weight, bias)


def linear_on_maps(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` of every cell of maps [B, K, h, w] in the memory format ``channels_last``, where ``is_slow_in_mkl``; weight [N, K]."""
    return _Product.apply(x, weight, bias, True)


def is_slow_in_mkl(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes half the time of MKL for ``x`` times a weight [N, ...]: large products in float32 on AMD CPUs that compute
    AVX-512 at its full width, of which MKL uses half (docs/speed.md). False where a graph is made, under autocast, and without
    ``torch.backends.mkldnn``."""
    if x.device.type != "cpu" or not _has_slow_mkl() or not x.dtype == weight.dtype == torch.float32:
        return False
    if not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.numel() * len(weight) >= LEAST


@cache
def _has_slow_mkl() -> bool:
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    slow = bool(known.get("avx512_vp2intersect")) and "AMD" in known.get("cpu_name", "")  # Zen 5; Zen 4 computes AVX-512 in halves
    return slow and torch.backends.mkldnn.is_available() and bool(COUNTED)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # of an expanded tensor, as a query's content that starts from zeros, oneDNN's product takes a hundred times as long
    x, weight = (t.contiguous() if 0 in t.stride() else t for t in (x, weight))
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """x [..., K] or, ``on_maps``, [B, K, h, w]; weight [N, K], bias [N] or None -> the same with N in place of K."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, on_maps: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.on_maps = on_maps
        cells = x.permute(0, 2, 3, 1) if on_maps else x
        out = _product(cells.flatten(0, -2), weight, bias)
        shaped = out.unflatten(0, cells.shape[:-1])
        shaped = shaped.permute(0, 3, 1, 2) if on_maps else shaped
        # the same memory, but no view: to change one in place, as ReLU does, costs copies in the backward pass
        return out.new_empty(0).set_(out.untyped_storage(), 0, shaped.shape, shaped.stride())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.on_maps:
            x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        rows, grad_x, grad_weight = grad.reshape(-1, grad.shape[-1]), None, None
        if to_x:
            grad_x = _product(rows, weight.t()).unflatten(0, x.shape[:-1])
            grad_x = grad_x.permute(0, 3, 1, 2) if ctx.on_maps else grad_x
        if to_weight:  # the first of a product is copied where it is transposed: the narrower one
            inputs = x.reshape(-1, x.shape[-1])
            narrow = rows.shape[1] <= inputs.shape[1]
            grad_weight = _product(rows.t(), inputs.t()) if narrow else _product(inputs.t(), rows.t()).t()
        return grad_x, grad_weight, rows.sum(0) if to_bias else None, None
