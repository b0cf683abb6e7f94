"""Options that any model takes, a paper's or one of your own, laid over what its file has built."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.models.options import Options
from boxquery.parts.geometry import OtherPosition, RelativeBias
from boxquery.parts.heads import Head
from boxquery.parts.state import QueryState


def apply(model: DetectionTransformer, options: Options) -> None:
    """Numbers of queries per layer, the queries' position and the bias from box to pixel; what the defaults leave as the paper has it.

    (The image's position, the encoder and its feed-forward networks are made where papers make them, in ``usual``.)

    Raises ``UserError`` where the model's reads cannot use a bias.
    """
    o = options
    model.num_queries_per_layer = tuple(o.num_queries_per_layer())
    if o.query_position not in ("paper", o.query_positions[0]):
        model.place = OtherPosition(model.place, o.query_position, o.hidden_dim, model.num_queries_per_layer[0])
    if o.relative_bias:
        unfit = {type(layer.read).__name__ for layer in model.layers if not getattr(layer.read, "takes_bias", False)}
        if unfit:
            raise UserError(
                f"relative_bias=True adds to the logit of every cell, and {', '.join(unfit)} has none to add to; possible for DETR, "
                "Conditional DETR, SMCA, DAB-DETR and Anchor DETR with attention='dense'"
            )
        model.place = RelativeBias(model.place, o.hidden_dim, o.heads, o.decoder_layers)
        if model.refine is None:
            model.refine = remember


def remember(state: QueryState, box_logits: Tensor, head: Head) -> QueryState:
    """References stay, but the next layer knows what this one predicted."""
    return replace(state, predicted=box_logits.detach())
