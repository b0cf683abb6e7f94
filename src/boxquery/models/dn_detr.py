"""DN-DETR: DAB-DETR that also learns to restore noised objects, which need no matching.

Paper: Li et al., "DN-DETR: Accelerate DETR Training by Introducing Query DeNoising", CVPR 2022, arXiv:2203.01305
Year: 2022
Queries: 4-d anchor boxes; the embedding of an unknown class
Encoder: as DAB-DETR
Cross-attention: as DAB-DETR
Refinement: box by box; references detached, predictions not
Matching: one to one, and denoising in five groups; sigmoid focal
Published: 44.4 AP in 50 epochs; 46.3 with DC5 (DN-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: learned 4-d anchor boxes (from DAB-DETR); content is a class embedding and an indicator: "unknown" and 0 for all of them, and in
  training also noised objects with their classes and 1, which are to be restored (denoising)
- encoder: positions are scaled by each cell's content; PReLU; temperature 20
- locate: an MLP of the box's sine for self-attention; for cross-attention its centre's sine, scaled by content and modulated by width
  and height (from DAB-DETR)
- cross-attention: content and position are concatenated in queries and keys (from Conditional DETR)
- refine: each layer updates the box; the update carries no gradient into the next layer's reference (from DAB-DETR)
- head: sigmoid focal classes without "no object"; boxes measured from the refined anchor
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from boxquery.matching.groups import Denoising, Noise
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import dab_model, denoising
from boxquery.models.options import Options, check_share
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.memory import Memory
from boxquery.parts.queries import BoxQueries
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DNOptions(Options):
    """``contrastive``: also objects with more noise, which are to be rejected; the number of groups then depends on ``denoising``.
    ``anchor_size``: initial boxes evenly spread, about this share of the image wide; 0: as published.
    """

    query_positions = ("sine-mlp", "learned", "sine", "none")
    num_queries: int | list[int] = 300
    dropout: float = 0.0
    matching: str = "denoising"
    contrastive: bool = False
    anchor_size: float = 0.0

    def check(self) -> None:
        super().check()
        check_share(anchor_size=self.anchor_size)


PRESETS = presets(DNOptions(), Recipe(epochs=50, decay_at=0.8), anchor_size=0.15)


class UnknownClassQueries(BoxQueries):
    """Anchor boxes whose content is one learned vector, the embedding of an unknown class, and a last channel of 0 (section 4.3)."""

    def __init__(self, count: int, dim: int, size: float, denoising: Denoising | None):
        super().__init__(count, dim - 1, content=1, size=size)
        self.denoising = denoising

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        state = super().make(memory, rows, parts)
        content: Tensor = F.pad(state.content, (0, 1))
        return state.with_content(content)


def build(classes: int, options: DNOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o = options
    noise = Noise(slots=0.0, indicator=True)
    queries = partial(UnknownClassQueries, o.queries, o.hidden_dim, o.anchor_size, denoising(classes, o, noise=noise))
    return dab_model(classes, o, weights, queries)
