"""Options that any model takes, a paper's or your own, applied to what its file has built."""

from __future__ import annotations

from torch import nn

from boxquery.errors import UserError
from boxquery.matching.classification import Focal, MatchabilityAware, PositionSupervised, Varifocal
from boxquery.matching.dense import DenseHead
from boxquery.matching.groups import FurtherQueries
from boxquery.matching.one_to_many import OneToMany
from boxquery.models.base import QueryTransformer, keep_reference
from boxquery.models.builders import denoising, keep_prediction
from boxquery.models.options import Options
from boxquery.parts.geometry import OtherPosition, RelativeBias
from boxquery.parts.heads import MLP
from boxquery.parts.layers import DecoderLayer
from boxquery.parts.pruning import TopKPruning
from boxquery.parts.queries import Queries, ReferencePointQueries

CLASS_LOSSES = {"focal": Focal(), "vfl": Varifocal(), "mal": MatchabilityAware(), "position": PositionSupervised()}


def apply(model: QueryTransformer, options: Options, classes: int) -> None:
    """Queries per layer, their position, the bias from box to pixel, and what ``teach`` adds; the defaults change nothing.

    (``position``, ``encoder`` and ``encoder_ffn`` are applied in ``builders``.)

    Raises ``UserError`` where the model's attention cannot use a bias, or its queries denoising.
    """
    o = options
    counts = tuple(o.num_queries_per_layer())
    model.inference_layers = o.inference_layers or o.decoder_layers
    model.num_queries_per_layer = counts[: model.inference_layers]
    if counts[-1] < counts[0]:
        model.prune = TopKPruning(counts, model.criterion.classification.scores)
    if o.query_position not in ("paper", o.query_positions[0]):
        model.place = OtherPosition(model.place, o.query_position, o.hidden_dim, counts[0])
    if o.relative_bias:
        unfit = {type(layer.read).__name__ for layer in model.layers if not getattr(layer.read, "takes_bias", False)}
        if unfit:
            raise UserError(
                f"relative_bias=True adds to the logit of every cell, and {', '.join(unfit)} has none to add to; possible for DETR, "
                "Conditional DETR, SMCA, DAB-DETR and Anchor DETR with attention='dense'"
            )
        model.place = RelativeBias(model.place, o.hidden_dim, o.heads, o.decoder_layers)
        if model.refine is keep_reference:
            model.refine = keep_prediction
    teach(model, o, classes)


def teach(model: QueryTransformer, o: Options, classes: int) -> None:
    """What training has beside the paper's model: the strategies of ``matching``, and another class loss."""
    if "denoising" in o.strategies and getattr(model.queries, "denoising", None) is None:
        if not isinstance(model.queries, Queries):
            raise UserError(f"matching={o.matching!r}: the queries must be a boxquery.parts.queries.Queries, which adds the noised ones")
        learned = isinstance(model.queries, ReferencePointQueries)
        position = MLP(o.hidden_dim, o.hidden_dim, o.hidden_dim, 2) if learned else None
        model.queries.denoising = denoising(classes, o, position)
    if added := o.strategies & {"group", "hybrid"}:
        model.queries.further = further(model.queries, min(added), o)
    if "one-to-many" in o.strategies:
        if not all(isinstance(layer, DecoderLayer) for layer in model.layers):
            raise UserError(f"matching={o.matching!r}: one-to-many needs decoder layers that are a boxquery.parts.layers.DecoderLayer")
        model.one_to_many = OneToMany()
    if o.class_loss != "paper":
        if model.criterion.classification.has_no_object:
            raise UserError(f"class_loss={o.class_loss!r}: this model scores classes by a softmax with \"no object\"; leave it at 'paper'")
        model.criterion.classification = CLASS_LOSSES[o.class_loss]
        model.criterion.weights["class"] = model.criterion.classification.weight
    if "dense" in o.strategies:
        model.dense = DenseHead(o.hidden_dim, classes)


def further(queries: nn.Module, name: str, o: Options) -> FurtherQueries:
    """Rows of further queries, as the ordinary ones start."""
    if not isinstance(queries, Queries) or type(queries).draw is Queries.draw:
        raise UserError(
            f"matching={o.matching!r}: {name} needs queries that are a boxquery.parts.queries.Queries with draw and make (docs/mixing.md)"
        )
    if name == "group":
        count = o.queries * (o.groups - 1)
        return FurtherQueries(name, count, queries.draw(count), peers=o.groups - 1)
    count = o.queries * o.hybrid_queries
    return FurtherQueries(name, count, queries.draw(count), repeats=o.hybrid_repeats)
