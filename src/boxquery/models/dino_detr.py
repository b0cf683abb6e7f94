"""DINO: learned content at the encoder's best boxes, trained beside noised objects, of which half are to be rejected.

Paper: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection", ICLR 2023, arXiv:2203.03605
Year: 2023
Queries: learned content at the boxes of the encoder's proposals
Encoder: as Deformable DETR
Cross-attention: as Deformable DETR, around the box
Refinement: box by box; look forward twice
Matching: one to one, and contrastive denoising; sigmoid focal
Published: 49.0 AP in 12 epochs, 50.4 in 24, 50.9 in 36, with 4 scales (DINO README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: the boxes of the encoder's best proposals, by their best class; content is learned, a vector per rank (mixed query selection);
  in training also noised objects: those with little noise are to be restored, those with more to be rejected (contrastive denoising)
- encoder: multi-scale, each cell samples a few points around itself on every level (from Deformable DETR); temperature 20
- locate: an MLP of the box's sine, recomputed in every layer (from DAB-DETR)
- cross-attention: a few bilinear samples inside and around the box instead of every cell (from Deformable DETR)
- refine: each layer updates the box; the next prediction is measured from it and its loss reaches the update (look forward twice)
- head: sigmoid focal classes without "no object"; boxes measured from the refined anchor; proposals have a head of their own
"""

from dataclasses import dataclass

from torch import nn

from boxquery.errors import UserError
from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.groups import Noise
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, image, look_forward_twice, proposals
from boxquery.models.options import Options, check_least, check_normed
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.box_locate import BoxLocate
from boxquery.parts.boxes import EPS_OF_ANCHORS
from boxquery.parts.heads import Head
from boxquery.parts.layers import at_centres, reset_transformer
from boxquery.parts.positions import SinePosition
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DINOOptions(Options):
    """``levels``: the backbone's last maps and one strided convolution more (4: strides 8 to 64; 5: 4 to 64), or its last 1 to 3 alone.
    ``points``: samples per head and level. ``denoising``: twice the authors' ``dn_number``, which counts positives.
    """

    query_positions = ("sine-mlp", "sine", "none")
    num_queries: int | list[int] = 900
    dropout: float = 0.0
    levels: int = 4
    points: int = 4
    matching: str = "denoising"
    denoising: int = 200

    def check(self) -> None:
        if self.query_position == "learned":
            raise UserError("query_position='learned': proposals of each image have no learned position")
        super().check()
        check_least(1, levels=self.levels, points=self.points)
        check_normed(self.hidden_dim)


PRESETS = presets(
    DINOOptions(),
    Recipe(epochs=12, decay_at=11 / 12),
    **{"dilation": False, "encoder_layers": 1, "heads": 4, "levels": 3, "points": 2, "valid_ratios": "exact"},
    **{"denoising": 60, "class_loss": "mal"},
)

#: as the published models were trained, whose scripts override the configuration's 0.4; empty slots are background in the middle
NOISE = Noise(box=1.0, slots=0.0, background=True)


def build(classes: int, options: DINOOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim

    def cross_attn(layer: int = 0) -> DeformableAttention:
        return DeformableAttention(dim, o.heads, o.levels, o.points)

    regions, locate = encoder(o, cross_attn, locate=at_centres), BoxLocate(dim, scaled=False)
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), cross_attn)
    reset_transformer(regions, locate, *layers)
    return DetectionTransformer(
        image=image(o, weights, SinePosition(dim, temperature=20), o.levels, max(o.levels - 1, 3), norm="group", level_embedding=True),
        encoder=regions,
        queries=proposals(classes, o, "learned", NOISE),
        locate=locate,
        layers=layers,
        refine=look_forward_twice,
        norm=nn.LayerNorm(dim),
        heads=[Head(dim, classes, eps=EPS_OF_ANCHORS)],
        criterion=SetCriterion(Focal(weight=1.0), class_agnostic_proposals=False),
        top_k=300,
    )
