"""Where queries with boxes as references are: positions made from the box in every layer (DAB-DETR, and what builds on it)."""

from __future__ import annotations

from torch import Tensor, nn

from boxquery.parts.geometry import QueryGeometry, require, require_boxes
from boxquery.parts.heads import MLP
from boxquery.parts.memory import Memory
from boxquery.parts.positions import box_sine
from boxquery.parts.state import QueryState


class ScaledPositions(nn.Module):
    """The image's positions, scaled before each encoder layer by an MLP of the tokens; one MLP for all layers."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = MLP(dim, dim, dim, 2)

    def forward(self, memory: Memory) -> QueryGeometry:
        return QueryGeometry(position=require(memory.position, "ScaledPositions", "Memory.position") * self.scale(memory.tokens))


class DABLocate(nn.Module):
    """Positions from the box, modulated by its size (section 4, "Width & height-modulated Gaussian kernel").

    In x the products of positions are multiplied by w_ref / w, in y by h_ref / h; the reference size is predicted from the content.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.position, self.scale, self.size = MLP(2 * dim, dim, dim, 2), MLP(dim, dim, dim, 2), MLP(dim, dim, 2, 2)

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        box = require_boxes(state.reference, "DABLocate", "QueryState.reference").sigmoid()
        features = box_sine(box, self.dim // 2)
        centre = features[..., : self.dim]
        if layer:
            centre = centre * self.scale(state.content)
        ratio = self.size(state.content).sigmoid() / box[..., 2:]
        # the first half of the features belongs to y
        centre = centre.unflatten(-1, (2, -1)) * ratio.flip(-1)[..., None]
        position = self.position(features)
        return state, QueryGeometry(position=centre.flatten(-2), self_position=position, reference=box, self_mask=state.self_mask)


class BoxLocate(nn.Module):
    """An MLP of the box's sine, the box in shares of the padded image.

    Args:
        scaled: the position is scaled from the second layer on by an MLP of the content (DAB-Deformable-DETR); False: never (DINO).
    """

    def __init__(self, dim: int, scaled: bool = True):
        super().__init__()
        self.dim = dim
        self.position, self.scale = MLP(2 * dim, dim, dim, 2), MLP(dim, dim, dim, 2) if scaled else None

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        box = require_boxes(state.reference, "BoxLocate", "QueryState.reference").sigmoid()
        position: Tensor = self.position(box_sine(box * memory.valid_ratios[:, :1].repeat(1, 1, 2), self.dim // 2))
        if layer and self.scale is not None:
            position = position * self.scale(state.content)
        return state, QueryGeometry(position=position, reference=box, self_mask=state.self_mask)


class PlainBoxLocate(nn.Module):
    """An MLP of the box's four numbers themselves (RT-DETR)."""

    def __init__(self, dim: int):
        super().__init__()
        self.position = MLP(4, 2 * dim, dim, 2)

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        box = require_boxes(state.reference, "PlainBoxLocate", "QueryState.reference").sigmoid()
        return state, QueryGeometry(position=self.position(box), reference=box, self_mask=state.self_mask)


def locate_at_box(state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
    """The box itself, which is no logit, and no position (Sparse R-CNN)."""
    box = require_boxes(state.reference, "locate_at_box", "QueryState.reference")
    return state, QueryGeometry(reference=box, self_mask=state.self_mask)
