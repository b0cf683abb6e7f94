"""From a query's content to classes and a box."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from boxquery.parts.box_coder import BoxCoder, SigmoidBoxCoder
from boxquery.parts.boxes import chosen_rows
from boxquery.parts.linear import Linear
from boxquery.parts.state import QueryState


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Head(nn.Module):
    """Class logits by one linear map; box offsets by a 3-layer MLP, measured from the query's anchor where it has one.

    Args:
        dim: features of the content.
        columns: class logits.
        focal: start every class at probability 0.01 (focal loss, RetinaNet section 4.1).
        zero_boxes: start the last layer of the box MLP at zero, so that boxes begin at their anchor.
        size_bias: initial width and height logits then.
        eps: see ``SigmoidBoxCoder``.
        coder: how boxes are made of the MLP's numbers; None: ``SigmoidBoxCoder``.
    """

    def __init__(
        self,
        dim: int,
        columns: int,
        focal: bool = True,
        zero_boxes: bool = True,
        size_bias: float = 0.0,
        eps: float = 1e-5,
        coder: BoxCoder | None = None,
    ):
        super().__init__()
        self.coder = SigmoidBoxCoder(eps) if coder is None else coder
        self.classes = Linear(dim, columns)
        self.boxes = MLP(dim, dim, self.coder.size, 3)
        last = self.boxes.layers[-1]
        assert isinstance(last, nn.Linear)
        if focal:
            nn.init.constant_(self.classes.bias, -math.log(99))
        if zero_boxes:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                last.bias[2:] = size_bias

    def forward(self, content: Tensor, state: QueryState) -> Prediction:
        """``content`` [B, Q, D] after the final norm; ``state`` has the anchors."""
        return Prediction(self, content, state.box_anchor)

    def logits(self, content: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        return self.classes(content)

    def box(self, content: Tensor, anchor: Tensor | None) -> Tensor:
        """[..., D] and an anchor [..., 2 or 4] -> a box in the coder's space (mostly logits of cxcywh)."""
        return self.coder.decode(self.boxes(content), anchor)


class TowerHead(Head):
    """Class logits after linear maps with layer norms, box numbers after others, instead of one linear map and an MLP (Sparse R-CNN).

    Args:
        coder: how boxes are made of four numbers.
        class_layers, box_layers: maps before the last one.
    """

    def __init__(self, dim: int, columns: int, coder: BoxCoder, class_layers: int = 1, box_layers: int = 3):
        nn.Module.__init__(self)
        self.coder = coder
        self.class_tower, self.classes = _tower(dim, class_layers), Linear(dim, columns)
        self.boxes = nn.Sequential(*_tower(dim, box_layers), Linear(dim, coder.size))

    def init_weights(self) -> None:
        """Every class starts at probability 0.01, all else as ``reset_transformer`` has it."""
        nn.init.constant_(self.classes.bias, -math.log(99))

    def logits(self, content: Tensor) -> Tensor:
        return self.classes(self.class_tower(content))


class ClassTowerHead(Head):
    """Class logits after two linear maps with layer norms; a box of the coder's by a 3-layer MLP (DETR3D, PETR)."""

    def __init__(self, dim: int, columns: int, coder: BoxCoder, zero_boxes: bool = False):
        super().__init__(dim, columns, zero_boxes=zero_boxes, coder=coder)
        self.class_tower = _tower(dim, 2, bias=True)

    def logits(self, content: Tensor) -> Tensor:
        return self.classes(self.class_tower(content))


def _tower(dim: int, layers: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(*(part for _ in range(layers) for part in (Linear(dim, dim, bias=bias), nn.LayerNorm(dim), nn.ReLU())))


class Prediction:
    """Class logits and boxes of the queries of one layer, each computed when first used.

    Attributes:
        content: [B, Q, D] from which they are computed.
        anchor: from which boxes are measured; None: they are absolute.
        initial: of a further head on the same content, which learns like a layer of its own.
    """

    #: whether the loss needs the numbers from which boxes are decoded
    keeps_raw: ClassVar[bool] = False

    def __init__(self, head: Head, content: Tensor, anchor: Tensor | None, initial: Prediction | None = None):
        self.head, self.content, self.anchor, self.initial = head, content, anchor, initial

    @cached_property
    def raw(self) -> Tensor:
        """[B, Q, numbers per box], from which the box is decoded."""
        return self.head.boxes(self.content)

    @cached_property
    def box(self) -> Tensor:
        """[B, Q, 4] in the space of the head's box coder, which ``refine`` passes on."""
        return self.head.coder.decode(self.raw, self.anchor)

    @cached_property
    def boxes(self) -> Tensor:
        """[B, Q, 4] cxcywh in [0, 1] of the unpadded extent."""
        return self.head.coder.boxes(self.box)

    @cached_property
    def logits(self) -> Tensor:
        """[B, Q, C]."""
        return self.head.logits(self.content)

    def computed(self) -> Prediction:
        """The same with boxes and logits computed now: gradients are summed in the order in which tensors were used."""
        _ = self.box, self.logits
        return self

    def only(self, chosen: Tensor) -> Prediction:
        """The queries ``chosen`` [B, K] alone, in that order."""
        kept = Prediction(self.head, chosen_rows(self.content, chosen), None if self.anchor is None else chosen_rows(self.anchor, chosen))
        kept.box = chosen_rows(self.box, chosen)
        return kept
