"""From a query's content to classes and a box."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from boxquery.parts.boxes import clamp_logits


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int):
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Head(nn.Module):
    """Class logits by one linear map; box logits by a 3-layer MLP, measured from ``base`` where there is one.

    Args:
        dim: features of the content.
        columns: class logits.
        focal: start every class at probability 0.01 (focal loss, RetinaNet section 4.1).
        zero_boxes: start the last layer of the box MLP at zero, so that boxes begin at their base.
        size_bias: start value of the width and height logits then.
        eps: how far from 0 and 1 a base is kept (see ``clamp_logits``); 0: it is taken as it is.
    """

    def __init__(self, dim: int, columns: int, focal: bool = True, zero_boxes: bool = True, size_bias: float = 0.0, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.classes = nn.Linear(dim, columns)
        self.boxes = MLP(dim, dim, 4, 3)
        last = self.boxes.layers[-1]
        assert isinstance(last, nn.Linear)
        if focal:
            nn.init.constant_(self.classes.bias, -math.log(99))
        if zero_boxes:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                last.bias[2:] = size_bias

    def box(self, content: Tensor, box_anchor: Tensor | None) -> Tensor:
        """[..., D] and a base [..., 2 or 4] of logits -> [..., 4] logits of cxcywh; a point moves the centre alone."""
        out = self.boxes(content)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        if box_anchor is None:
            return out
        box_anchor = clamp_logits(box_anchor, self.eps) if self.eps else box_anchor
        if box_anchor.shape[-1] == 4:
            return out + box_anchor
        return torch.cat((out[..., :2] + box_anchor, out[..., 2:]), -1)
