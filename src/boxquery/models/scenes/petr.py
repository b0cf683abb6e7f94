"""PETR: every cell of every camera says where in space it may be, and DETR's decoder does the rest.

Paper: Liu et al., "PETR: Position Embedding Transformation for Multi-View 3D Object Detection", ECCV 2022, arXiv:2203.05625
Year: 2022
Queries: learned points in space, content from zero
Encoder: none; one map per camera, with positions in space
Cross-attention: every cell of every camera, content and position added
Refinement: none: every layer measures from the first points
Matching: one to one; sigmoid focal, L1 on a code of ten numbers
Published: 31.7 mAP and 36.7 NDS on nuScenes val in 24 epochs at 1408 x 512 (PETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: learned points in space, whose sine an MLP makes the position of; with `two_stage`, boxes that cells propose
- encoder: none; the finest map of a pyramid, of all cameras at once; a cell's position is made of the points on its ray
- head: sigmoid focal classes without "no object", after two maps with layer norms; 3-D boxes, centres measured from the query's point
"""

from dataclasses import dataclass, replace

from torch import nn

from boxquery.models.builders import decoder, pyramid_body
from boxquery.models.options import check_least
from boxquery.models.scenes.base import RECIPE, SceneOptions, SceneTransformer, box_coder, criterion, head, no_encoder, presets, proposals
from boxquery.parts.attention.dense import DenseAttention, SelfAttention
from boxquery.parts.backbone import FeaturePyramid
from boxquery.parts.layers import reset_transformer
from boxquery.parts.queries import SpacePointQueries
from boxquery.parts.scene_tokens import RayPosition, SceneTokens
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class PETROptions(SceneOptions):
    """``levels``: of the pyramid, whose finest alone is attended to (2: stride 16, 3: stride 8).
    ``depths``: points on each cell's ray.
    ``token_norm``: a layer norm of what cells hold, before anything reads it; False: as published, for a backbone that starts from weights.
    ``qk_norm``: cross-attention compares queries and keys by the cosine between them, positions have layer norms; False: as published.
    ``cell_content``: with ``two_stage``, queries start with what their cells hold; False: with zeros, as published, so that what they know
        of their objects is what they read.
    """

    levels: int = 2
    depths: int = 64
    token_norm: bool = False
    qk_norm: bool = False
    cell_content: bool = True

    def check(self) -> None:
        super().check()
        check_least(1, depths=self.depths)


#: from random weights maps and the products of queries and keys grow without end unless they are normed, and queries that know their cell
#: need not read (docs/LOG.md)
PRESETS = presets(PETROptions(), replace(RECIPE, image_size=512), levels=3, depths=16, token_norm=True, qk_norm=True, cell_content=False)


def build(classes: int, options: PETROptions, weights: BackboneWeights | None) -> SceneTransformer:
    o, dim = options, options.hidden_dim
    # image: the finest map of a pyramid, one 1x1 convolution, positions from the cameras
    backbone = pyramid_body(o, weights, o.levels)
    neck = FeaturePyramid(backbone.channels, dim, finest=True)
    tokens = SceneTokens(RayPosition(dim, o.area, o.depths, o.qk_norm), nn.LayerNorm(dim) if o.token_norm else None)
    # cross-attention: every query attends to every cell of every camera
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), lambda layer: DenseAttention(dim, o.heads, o.dropout, o.qk_norm))
    reset_transformer(*layers)
    coder = box_coder(o)
    queries = proposals(o, classes, cell_content=o.cell_content, norm=o.qk_norm) if o.two_stage else SpacePointQueries(o.queries, dim)
    return SceneTransformer(
        image=(backbone, neck, tokens),
        encoder=no_encoder(),
        queries=queries,
        layers=layers,
        norm=nn.LayerNorm(dim),
        heads=[head(o, classes, coder)],
        criterion=criterion(coder),
        top_k=300,
    )
