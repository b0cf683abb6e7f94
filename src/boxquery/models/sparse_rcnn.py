"""Sparse R-CNN: learned boxes read their own region of the image, by a convolution that each makes for itself.

Paper: Sun et al., "Sparse R-CNN: End-to-End Object Detection with Learnable Proposals", CVPR 2021, arXiv:2011.12450
Year: 2021
Queries: 4-d boxes, at first the whole image, with learned content
Encoder: none; a feature pyramid, 4 levels
Cross-attention: the box's region alone, 7 x 7 cells, by dynamic convolution; no softmax
Refinement: box by box, detached
Matching: one to one; sigmoid focal
Published: 42.8 AP in 36 epochs; 45.0 with 300 boxes and crops (SparseR-CNN README)
Licence: written from the paper; the authors' code (MIT) served as reference for numbers only

Differs from DETR in:
- queries: learned boxes, which start as the whole image, and a learned content for each
- encoder: none; strides 4 to 32, each level added to the next finer one
- locate: at the box; no positions, neither of queries nor of the image
- cross-attention: RoIAlign of the box at the level that fits its size; its 7 x 7 cells pass two linear maps that the content makes
- refine: each layer's box is the next layer's, however far it leaves the image; no gradient passes from layer to layer, except by content
- head: sigmoid focal classes without "no object"; boxes move by shares of their sides; towers with layer norms, one head per layer
"""

from dataclasses import dataclass

from boxquery.errors import UserError
from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, pyramid, refine_detached
from boxquery.models.options import Options, check_least
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.attention.regions import DynamicConvolution
from boxquery.parts.box_coder import DeltaBoxCoder
from boxquery.parts.box_locate import locate_at_box
from boxquery.parts.heads import TowerHead
from boxquery.parts.layers import reset_transformer
from boxquery.parts.queries import WholeImageQueries
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class SparseOptions(Options):
    """``levels``: the backbone's last maps as a pyramid (4: strides 4 to 32).
    ``dynamic_dim``: width between the two linear maps that a query makes.
    ``encoder_layers``: the paper has none; with some, ``position`` is that of the image's cells in them.
    """

    query_positions = ("none", "learned", "sine", "sine-mlp")
    encoder_layers: int = 0
    dropout: float = 0.0
    levels: int = 4
    dynamic_dim: int = 64

    def check(self) -> None:
        super().check()
        check_least(1, dynamic_dim=self.dynamic_dim)
        if not 1 <= self.levels <= 4:
            raise UserError(f"levels={self.levels}: must be 1 to 4, the backbone's last maps (4: strides 4 to 32)")
        if self.dilation and self.levels > 1:
            raise UserError("dilation=True: the pyramid fuses levels of halving size, from levels=2 on; needs dilation=False")
        if self.position != "paper" and not self.encoder_layers:
            raise UserError(f"position={self.position!r}: regions are read without positions, and no encoder has any; needs encoder_layers")


PRESETS = presets(
    SparseOptions(),
    Recipe(epochs=36, lr=2.5e-5, backbone_lr=2.5e-5, decay_at=7 / 9, warmup=1 / 270, clip=1.0),
    **{"dilation": False, "encoder_layers": 0, "heads": 4, "levels": 3, "dynamic_dim": 32},
)


def build(classes: int, options: SparseOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    parts, coder = pyramid(o, weights, o.levels), DeltaBoxCoder()
    regions = encoder(o)
    layers = decoder(
        o,
        lambda: SelfAttention(dim, o.heads, o.dropout),
        lambda layer: DynamicConvolution(dim, o.dynamic_dim, parts[0].strides),
    )
    heads = [TowerHead(dim, classes, coder) for _ in layers]
    reset_transformer(regions, *layers, *heads)
    return DetectionTransformer(
        image=parts,
        encoder=regions,
        queries=WholeImageQueries(o.queries, dim),
        locate=locate_at_box,
        layers=layers,
        refine=refine_detached,
        heads=heads,
        criterion=SetCriterion(Focal(), coder=coder),
        # as many detections as queries, of any classes
        top_k=0,
    )
