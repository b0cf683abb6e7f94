"""Encoder and decoder layers: attention and feed-forward networks between norms and residuals.

Layers keep their cross-attention as ``read``, and the encoder its ``locate`` as ``place``: the names of their weights in checkpoints.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace, NoTrace, Trace


class FeedForward(nn.Module):
    """Two linear maps around an activation, on each token separately."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float = 0.0, activation: Callable[[], nn.Module] = nn.ReLU):
        super().__init__()
        self.linear1 = Linear(dim, ffn_dim)
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.linear2 = Linear(ffn_dim, dim)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """[B, N, D]; ``memory``, in the encoder, has the layout of the tokens, which subclasses may use."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class ConvolutionalFeedForward(FeedForward):
    """A depthwise 3 x 3 convolution over each level's map between the linear maps (PVTv2, Wang et al. 2022, arXiv:2106.13797, section 3.2).

    Padding is zero before it, as beyond the map's edge, so that a cell's result does not depend on the batch. It starts as the
    identity, which makes it a ``FeedForward``.
    """

    def __init__(self, dim: int, ffn_dim: int, dropout: float = 0.0, activation: Callable[[], nn.Module] = nn.ReLU):
        super().__init__(dim, ffn_dim, dropout, activation)
        self.mix = nn.Conv2d(ffn_dim, ffn_dim, 3, padding=1, groups=ffn_dim)
        with torch.no_grad():
            self.init_weights()

    def init_weights(self) -> None:
        nn.init.dirac_(self.mix.weight, groups=self.mix.groups)
        assert self.mix.bias is not None
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        assert memory is not None
        x = self.linear1(x)
        if memory.mask is not None:
            x = x.masked_fill(memory.mask[..., None], 0.0)
        mixed = [self.mix(cells.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2) for cells in memory.maps(x)]
        return self.linear2(self.dropout(self.activation(torch.cat(mixed, 1))))


class Residual(nn.Module):
    """x + dropout(change), normed after it (DETR) or before it (pre-norm)."""

    def __init__(self, dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(change(self.norm(x)))
        return self.norm(x + self.dropout(change(x)))


class Gate(nn.Module):
    """In place of ``Residual``: content and change are weighed, feature by feature, by gates made of both (D-FINE)."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.gates = Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.init_weights()

    def init_weights(self) -> None:
        """Both weigh one half."""
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)

    def forward(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        changed = self.dropout(change(x))
        keep, take = self.gates(torch.cat((x, changed), -1)).sigmoid().chunk(2, -1)
        return self.norm(keep * x + take * changed)


class EncoderLayer(nn.Module):
    """Region-region: self-attention of the memory, then a feed-forward network on each token."""

    def __init__(self, self_attn: nn.Module, ffn: FeedForward, dim: int, dropout: float = 0.0, pre_norm: bool = False):
        super().__init__()
        self.read, self.ffn = self_attn, ffn
        self.read_residual = Residual(dim, dropout, pre_norm)
        self.ffn_residual = Residual(dim, dropout, pre_norm)

    def forward(self, memory: Memory, geometry: QueryGeometry, trace: LayerTrace | None = None) -> Memory:
        tokens = self.read_residual(memory.tokens, lambda x: self.read(x, geometry, memory.with_tokens(x), trace))
        return memory.with_tokens(self.ffn_residual(tokens, lambda x: self.ffn(x, memory)))


def at_position(memory: Memory) -> QueryGeometry:
    """Tokens have the positions of the memory."""
    return QueryGeometry(position=memory.position)


def at_centres(memory: Memory) -> QueryGeometry:
    """Tokens attend around the centre of their own cell, on every level (Deformable DETR, section 4.1)."""
    return QueryGeometry(position=memory.position, reference=memory.centres())


class Encoder(nn.Module):
    """Layers one after the other, and a final norm for pre-norm layers.

    ``locate(memory)`` gives the tokens' geometry before every layer.
    """

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None = None, locate: Callable[[Memory], QueryGeometry] = at_position):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.Identity() if norm is None else norm
        self.place = locate

    def forward(self, memory: Memory, trace: Trace = NoTrace()) -> Memory:  # noqa: B008
        for layer in self.layers:
            memory = layer(memory, self.place(memory), trace.encoder_layer(memory))
        return memory.with_tokens(self.norm(memory.tokens))


class DecoderLayer(nn.Module):
    """Object-object, then region-object, then each object alone."""

    def __init__(
        self, self_attn: nn.Module, cross_attn: nn.Module, ffn: FeedForward, dim: int, dropout: float = 0.0, pre_norm: bool = False
    ):
        super().__init__()
        self.self_attention, self.read, self.ffn = self_attn, cross_attn, ffn
        self.self_residual = Residual(dim, dropout, pre_norm)
        self.read_residual: Residual | Gate = Residual(dim, dropout, pre_norm)
        self.ffn_residual = Residual(dim, dropout, pre_norm)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        return self.feed(self.attend(content, geometry, memory, trace))

    def attend(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        """Both attentions, without the feed-forward network."""
        content = self.self_residual(content, lambda x: self.self_attention(x, geometry, trace))
        return self.read_residual(content, lambda x: self.read(x, geometry, memory, trace))

    def feed(self, content: Tensor) -> Tensor:
        """The feed-forward network on what ``attend`` returns."""
        return self.ffn_residual(content, self.ffn)


@torch.no_grad()
def reset_transformer(*modules: nn.Module) -> None:
    """Initialisation of the family: every matrix Xavier-uniform (a packed in-projection as one), then parts with ``init_weights``."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for part in module.modules():
            if isinstance(part, HasInitWeights):
                part.init_weights()


@runtime_checkable
class HasInitWeights(Protocol):
    """A part with an initialisation of its own."""

    def init_weights(self) -> None: ...
