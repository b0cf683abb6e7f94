"""A second opinion beside the attention: what a query's answer depends on, by gradient.

Gradient times input (Shrikumar et al. 2016, arXiv:1605.01713), taken at the tokens that the encoder is given: the last place where each
still belongs to its own piece of the image. Attention says what a query read in one layer; this says, to first order and through all
layers, how its answer would change if a token were scaled. It sees nothing of what the backbone does before, nor of what a paper keeps
gradients from: references passed from layer to layer, two-stage proposals and the places of salient points count as given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from boxquery.detector import Detector, ImageSource, to_pil
from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.parts.memory import Memory
from boxquery.parts.trace import Heatmap, LayerTrace


def relevance(detector: Detector, source: ImageSource, query: int, *, size: tuple[int, int] | None = None) -> Heatmap:
    """What speaks for the class that ``query`` answers with, as one map [h, w] over the image that sums to one.

    The relevance of a token is the positive part of the sum, over its features, of feature times the gradient of the class's log-odds
    (``token_relevance``); a token spreads it evenly over the pixels that it covers, as in ``LayerTrace.heatmap``. All zero, with ``lost``
    1, where nothing speaks for the class.

    Args:
        source: a path, PIL image or RGB uint8 array [H, W, 3].
        size: (height, width) of the map; None: the image's own.

    Raises ``UserError`` for an image that cannot be read and a query that the model does not have.
    """
    found = relevances(detector, source, [query], size=size)
    return Heatmap(found.map[0], float(found.lost))


def relevances(detector: Detector, source: ImageSource, queries: Sequence[int], *, size: tuple[int, int] | None = None) -> Heatmap:
    """The same for n queries: ``map`` [n, h, w] and ``lost`` [n]. One pass forward for all, one back for each."""
    image = to_pil(source)
    images = detector.transform(image)[None].to(detector.device)
    memory, change = token_relevance(detector.transformer.eval(), images, queries, detector.unnamed)
    share = change.clamp(min=0).double()
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    # one head, whose queries are those asked for
    read = LayerTrace(memory=memory, attention=tuple(level[None, None] for level in memory.maps(share)))
    return read.heatmaps(range(len(queries)), size or (image.height, image.width))


def token_relevance(
    model: DetectionTransformer, images: Tensor, queries: Sequence[int], unnamed: Sequence[int] = ()
) -> tuple[Memory, Tensor]:
    """Signed relevance [n, S] of the tokens that the encoder is given, for the best class of each query.

    Entry (i, s) is how fast the log-odds of that class would rise if token s were scaled up: their derivative by a, at 0, with (1 + a)
    times the token's features. Log-odds are the logit under a sigmoid, and the logit less the log-sum-exp of all others under a softmax.

    Args:
        images: [1, 3, H, W], normalised, without padding.
        unnamed: columns that are never an answer.

    Raises ``UserError`` for a query that the model does not have, or drops before the last layer.
    """
    with torch.no_grad():
        memory = model.embed_image(images)
    tokens = memory.tokens.detach().requires_grad_()
    with torch.enable_grad():
        out = model.forward_transformer(memory.with_tokens(tokens), last_only=True)
        logits = out.logits[-1, 0].double()
        if wrong := [q for q in queries if not 0 <= q < len(logits)]:
            raise UserError(f"query {wrong[0]}: the model has {len(logits)} queries, 0 to {len(logits) - 1}")
        if out.alive is not None and (gone := [q for q in queries if not out.alive[-1, 0, q]]):
            raise UserError(f"query {gone[0]} was dropped before the last layer: nothing speaks for its answer")
        scores = model.scores(logits[list(queries)])
        odds = scores.logit()
        allowed = scores.detach().clone()
        allowed[:, list(unnamed)] = -1
        best = odds.gather(1, allowed.argmax(1, keepdim=True))[:, 0]
    change = torch.zeros(len(best), tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
    for i, odd in enumerate(best):
        (gradient,) = torch.autograd.grad(odd, tokens, retain_graph=i < len(best) - 1)
        change[i] = (gradient[0] * memory.tokens[0]).sum(-1)
    return memory, change
