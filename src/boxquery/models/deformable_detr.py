"""Deformable DETR: a query reads a few sampled points around its reference, on every level of the image.

Paper: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, arXiv:2010.04159
Year: 2021
Queries: learned content and position, a reference point; or the encoder's proposals
Encoder: samples around each cell, 4 levels
Cross-attention: a few samples around the reference, 4 levels
Refinement: optional, box by box, detached
Matching: one to one; sigmoid focal
Published: 44.5 AP in 50 epochs; 46.2 refined, 46.9 two-stage (Deformable-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: learned content as well as position; a reference point made from the position; with `two_stage`, all from the best proposals
- encoder: multi-scale, each cell samples a few points around itself on every level
- place: queries stand at a reference point, or at a box once refined
- read: a few bilinear samples around the reference instead of every cell
- refine: with `box_refine`, each layer's box is the next layer's reference
- head: sigmoid focal classes without "no object"; boxes measured from the reference; one head a layer when refined
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from boxquery.errors import UserError
from boxquery.matching.groups import Denoising
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, focal, image, refine_detached
from boxquery.models.options import Options, Recipe, check_least, check_normed, presets
from boxquery.parts.attention.dense import DeformableAttention, SelfAttention
from boxquery.parts.heads import Head
from boxquery.parts.layers import at_centres, reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.output import LayerPredictions
from boxquery.parts.positions import SinePosition, sine
from boxquery.parts.state import QueryState


@dataclass(frozen=True)
class DeformableOptions(Options):
    """``levels``: the backbone's last 1 to 3 maps, and strided convolutions for more (4: strides 8 to 64, with ``dilation`` 8, 16, 16, 32).
    ``points``: samples of a head on a level.
    ``box_refine``: boxes are refined layer by layer; ``two_stage``: queries start from the encoder's proposals (needs ``box_refine``).
    ``denoising``: about how many noisy queries a training step adds (DINO, section 3.2; needs ``two_stage``); 0 is the paper.
    """

    num_queries: int | list[int] = 300
    ffn_dim: int = 1024
    levels: int = 4
    points: int = 4
    box_refine: bool = False
    two_stage: bool = False
    denoising: int = 0

    def check(self) -> None:
        super().check()
        if self.two_stage and not self.box_refine:
            raise UserError("two_stage=True needs box_refine=True: proposals are boxes, which only refinement carries on")
        if self.denoising < 0 or (self.denoising and not self.two_stage):
            raise UserError(f"denoising={self.denoising}: must be 0 or more, and 0 without two_stage, whose queries are made from boxes")
        if self.two_stage and self.query_position == "learned":
            raise UserError("query_position='learned' needs two_stage=False: queries made anew for every image have no place to learn")
        check_least(1, levels=self.levels, points=self.points)
        check_normed(self.hidden_dim)


PRESETS = presets(
    DeformableOptions(),
    Recipe(epochs=50, lr=2e-4, backbone_lr=2e-5, decay_at=0.8),
    **{"dilation": False, "encoder_layers": 1, "heads": 4, "levels": 3, "points": 2},
    **{"box_refine": True, "two_stage": True, "denoising": 60},
)


class PointQueries(nn.Module):
    """Queries: learned content and position, and a reference point that a linear map makes from the position (section 4.1)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(count, 2 * dim).normal_())
        self.reference_points = nn.Linear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory, targets: list[dict] | None) -> QueryState:
        position, content = self.embedding.expand(len(memory.tokens), -1, -1).chunk(2, -1)
        reference = self.reference_points(position)
        return QueryState(content=content, position=position, reference=reference, box_anchor=reference)


class ProposalQueries(nn.Module):
    """Queries from the encoder's best proposals: their boxes as sine features make position and content (section 4.2, appendix A.4)."""

    def __init__(self, count: int, dim: int, head: Head, denoising: Denoising | None = None):
        super().__init__()
        self.count, self.dim, self.head, self.denoising = count, dim, head, denoising
        self.memory_proj, self.memory_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.query_proj, self.query_norm = nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.query_proj.weight)

    def forward(self, memory: Memory, targets: list[dict] | None) -> QueryState:
        tokens, anchors = propose(memory)
        tokens = self.memory_norm(self.memory_proj(tokens))
        logits, boxes = self.head.classes(tokens), self.head.boxes(tokens) + anchors
        chosen = logits[..., 0].topk(min(self.count, logits.shape[1]), 1).indices[..., None]
        reference = boxes.detach().gather(1, chosen.expand(-1, -1, 4))
        noisy = self.denoising(targets, boxes) if self.denoising is not None and targets is not None else None
        if noisy is not None:
            reference = torch.cat((noisy.reference, reference), 1)
        position, content = self.query_norm(self.query_proj(sine(reference.sigmoid(), self.dim // 2))).chunk(2, -1)
        state = QueryState(
            content=content,
            position=position,
            reference=reference,
            box_anchor=reference,
            proposals=LayerPredictions(logits[None], boxes.sigmoid()[None]),
        )
        if noisy is not None:
            # told a class instead of being told a place
            content = torch.cat((noisy.content.to(content.dtype), content[:, -chosen.shape[1] :]), 1)
            return replace(state, content=content, self_mask=noisy.self_mask(chosen.shape[1]), groups={"denoising": noisy})
        if self.denoising is not None:
            # a process without an object in its batch must have the same gradients to share as the others
            return replace(state, content=content + 0 * self.denoising.labels.sum())
        return state


def propose(memory: Memory) -> tuple[Tensor, Tensor]:
    """Every cell proposes a box at its centre, 0.05 wide on the finest level and twice that on each next one.

    Returns tokens [B, S, D] and box logits [B, S, 4]; cells on padding or too near the edge (a number outside 0.01..0.99) have their
    token zeroed and infinite logits, by design: they must stay out of the best.
    """
    centres = memory.centres()
    sizes = torch.cat([centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)])
    boxes = torch.cat((centres, sizes[:, None].expand(len(centres), -1, 2)), -1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.mask is not None:
        valid = valid & ~memory.mask
    tokens = memory.tokens.masked_fill(~valid[..., None], 0.0)
    return tokens, boxes.logit().masked_fill(~valid[..., None], float("inf"))


def build(classes: int, options: DeformableOptions, pretrained: bool) -> DetectionTransformer:
    o, dim = options, options.hidden_dim

    def read(layer: int = 0) -> DeformableAttention:
        return DeformableAttention(dim, o.heads, o.levels, o.points)

    # queries
    queries = _proposing(classes, o) if o.two_stage else PointQueries(o.queries, dim)
    # encoder: every cell reads samples around itself
    regions = encoder(o, read, place=at_centres)
    # place: at the reference, asking with the position; read: samples around it
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), read)
    reset_transformer(regions, *layers)
    # head: boxes start small, at their reference; the first to answer says how small
    heads = [
        Head(dim, classes, size_bias=0.0 if layer or o.two_stage else -2.0) for layer in range(o.decoder_layers if o.box_refine else 1)
    ]
    return DetectionTransformer(
        # image: maps from stride 8 on, further levels by strided convolutions
        image=image(o, pretrained, SinePosition(dim, offset=0.5), o.levels, norm=True, level_embedding=True),
        encoder=regions,
        queries=queries,
        layers=layers,
        heads=heads,
        criterion=focal(),
        refine=refine_detached if o.box_refine else None,
        low_lr_patterns=("sampling_offsets", "reference_points"),
    )


def _proposing(classes: int, o: DeformableOptions) -> ProposalQueries:
    denoising = Denoising(classes, o.hidden_dim, o.denoising) if o.denoising else None
    return ProposalQueries(o.queries, o.hidden_dim, Head(o.hidden_dim, classes), denoising)
