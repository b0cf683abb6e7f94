"""DETR3D: a query is a point in space, and reads where the cameras see it.

Paper: Wang et al., "DETR3D: 3D Object Detection from Multi-view Images via 3D-to-2D Queries", CoRL 2021, arXiv:2110.06922
Year: 2021
Queries: learned content and position, a reference point in space
Encoder: none; a pyramid per camera, 4 levels
Cross-attention: one sample per camera and level where the point is projected to; sigmoids, no softmax
Refinement: point by point, detached
Matching: one to one; sigmoid focal, L1 on a code of ten numbers
Published: 34.7 mAP and 42.2 NDS on nuScenes val in 24 epochs at 1600 x 900 (DETR3D README)
Licence: written from the paper; the authors' code (MIT) served as reference for numbers only

Differs from DETR in:
- queries: learned content as well as position; a point in space made from the position; with `two_stage`, boxes that cells propose
- encoder: none; strides 8 to 64 of every camera, each level added to the next finer one
- locate: at the reference point
- cross-attention: bilinear samples where cameras see the point, weighed by sigmoids; the point itself is added through a small network
- refine: each layer's centre is the next layer's point, detached
- head: sigmoid focal classes without "no object", after two maps with layer norms; 3-D boxes; one head per layer
"""

from dataclasses import dataclass, replace

from boxquery.models.builders import decoder, pyramid_body
from boxquery.models.options import check_least
from boxquery.models.scenes.base import RECIPE, SceneOptions, SceneTransformer, box_coder, criterion, head, no_encoder, presets, proposals
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.attention.projected import ProjectedAttention
from boxquery.parts.backbone import FeaturePyramid
from boxquery.parts.box_coder_3d import CENTRE
from boxquery.parts.heads import Head, Prediction
from boxquery.parts.layers import DecoderLayer, Residual, reset_transformer
from boxquery.parts.queries import ReferencePointQueries
from boxquery.parts.scene_tokens import SceneTokens
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DETR3DOptions(SceneOptions):
    """``levels``: of the pyramid; the backbone's last 1 to 3 maps, and strided convolutions for more (4: strides 8 to 64).
    ``cameras``: of each scene; the model has weights of its own for each.
    """

    ffn_dim: int = 512
    levels: int = 4
    cameras: int = 6

    def check(self) -> None:
        super().check()
        check_least(1, cameras=self.cameras)


PRESETS = presets(DETR3DOptions(), replace(RECIPE, image_size=900), levels=3)


def refine_centre(state: QueryState, prediction: Prediction, head: Head) -> QueryState:
    """The centre of this layer's box is the next one's point; no gradient passes from layer to layer."""
    reference = prediction.box[..., CENTRE].detach()
    return replace(state, reference=reference, box_anchor=reference)


def layers_of(o: DETR3DOptions) -> list[DecoderLayer]:
    """Decoder layers whose cross-attention drops out what it read, and not the point that it adds."""
    layers = decoder(
        o,
        lambda: SelfAttention(o.hidden_dim, o.heads, o.dropout),
        lambda layer: ProjectedAttention(o.hidden_dim, o.cameras, o.levels, o.dropout),
    )
    for layer in layers:
        layer.read_residual = Residual(o.hidden_dim, dropout=0.0, pre_norm=False)
    return layers


def build(classes: int, options: DETR3DOptions, weights: BackboneWeights | None) -> SceneTransformer:
    o, dim = options, options.hidden_dim
    backbone = pyramid_body(o, weights, min(o.levels, 3))
    neck = FeaturePyramid(backbone.channels, dim, coarser=max(o.levels - 3, 0))
    layers = layers_of(o)
    reset_transformer(*layers)
    coder = box_coder(o)
    return SceneTransformer(
        image=(backbone, neck, SceneTokens()),
        encoder=no_encoder(),
        # locate: at the point that is made from the position
        queries=proposals(o, classes) if o.two_stage else ReferencePointQueries(o.queries, dim, "learned", coordinates=3),
        layers=layers,
        refine=refine_centre,
        heads=[head(o, classes, coder) for _ in layers],
        criterion=criterion(coder),
        top_k=300,
    )
