"""Convolutions of a backbone: 1 x 1 ones as matrix products, and fixed norms as a part of the convolution before them."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from boxquery.parts.linear import is_slow_in_mkl, linear_on_maps


class Convolution(nn.Conv2d):
    """``nn.Conv2d``; as a matrix product where that is faster, and with a fixed norm that ``fold_norms`` gave it."""

    #: in a tuple, so that it stays a part of the model only where it was
    norm: tuple[FoldedNorm, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        for norm in self.norm:
            weight, bias = norm.folded(weight, bias)
        if self.is_product() and is_slow_in_mkl(input, weight) and input.is_contiguous(memory_format=torch.channels_last):
            return linear_on_maps(input, weight.flatten(1), bias)
        return self._conv_forward(input, weight, bias)

    def is_product(self) -> bool:
        """Whether every cell's result depends on that cell alone."""
        return self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1


class FoldedNorm(FrozenBatchNorm2d):
    """A fixed norm that the convolution before it applies."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution with this norm after it."""
        scale = cast(Tensor, self.weight) * (cast(Tensor, self.running_var) + self.eps).rsqrt()
        shift = cast(Tensor, self.bias) - cast(Tensor, self.running_mean) * scale
        return weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale


def as_convolutions(body: nn.Module) -> None:
    """Make every ``nn.Conv2d`` of a backbone a ``Convolution`` with the same parameters."""
    for module in body.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Convolution


@torch.no_grad()
def fold_norms(body: nn.Module) -> None:
    """Let convolutions apply the fixed norms that their output goes to, which a small image shows."""
    norms = [module for module in body.modules() if type(module) is FrozenBatchNorm2d]
    convolutions = [module for module in body.modules() if isinstance(module, Convolution) and not module.norm]
    made: list[tuple[Tensor, Convolution]] = []
    pairs: list[tuple[Convolution, nn.Module]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        made.append((output, cast(Convolution, module)))

    def find(module: nn.Module, inputs: tuple[Tensor]) -> None:
        pairs.extend((convolution, module) for output, convolution in made if output is inputs[0])

    hooks = [convolution.register_forward_hook(note) for convolution in convolutions]
    hooks += [norm.register_forward_pre_hook(find) for norm in norms]
    training, like = body.training, next(body.parameters())
    if norms:
        body.eval()(like.new_zeros(1, 3, 64, 64))
    body.train(training)
    for hook in hooks:
        hook.remove()
    calls = Counter(id(module) for _, module in made) + Counter(id(norm) for _, norm in pairs)
    for convolution, norm in pairs:
        if calls[id(convolution)] == calls[id(norm)] == 1:
            norm.__class__ = FoldedNorm
            convolution.norm = (cast(FoldedNorm, norm),)
