"""Relevance by gradients, beside attention: which parts of the image a query's prediction depends on.

Gradient times input (Shrikumar et al. 2016, arXiv:1605.01713), taken at the encoder's input tokens, the last place where each still belongs
to its own part of the image. Attention is what a query attends to in one layer; relevance is, to first order and through all layers, how
its prediction changes if a token is scaled. It does not include the backbone, nor what a paper detaches from gradients: references passed
from layer to layer, two-stage proposals and the positions of salient points are constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.parts.memory import Memory
from boxquery.parts.trace import Heatmap, LayerTrace
from boxquery.runtime.predictor import ImageSource, to_pil


def relevance(detector: Detector, source: ImageSource, query: int, *, size: tuple[int, int] | None = None) -> Heatmap:
    """What counts for the class that ``query`` predicts, as one map [h, w] over the image that sums to one.

    The relevance of a token is the positive part of ``token_relevance``, spread evenly over the pixels that the token covers, as in
    ``LayerTrace.heatmap``. If no token has any, the map is zero and ``lost`` is 1.

    Args:
        source: a path, PIL image or RGB uint8 array [H, W, 3].
        size: (height, width) of the map; default: the image's own.

    Raises ``UserError`` for an image that cannot be read, and for a query that does not exist or is pruned before the last layer.
    """
    found = relevances(detector, source, [query], size=size)
    return Heatmap(found.map[0], float(found.lost))


def relevances(detector: Detector, source: ImageSource, queries: Sequence[int], *, size: tuple[int, int] | None = None) -> Heatmap:
    """The same for n queries: ``map`` [n, h, w] and ``lost`` [n]. One forward pass, and one backward pass per query."""
    image = to_pil(source)
    images = detector.transform(image)[None].to(detector.device)
    memory, change = token_relevance(detector.transformer.eval(), images, queries, detector.unnamed)
    share = change.clamp(min=0).cpu().double()  # MPS has no float64
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    # as one head, with these as its queries
    record = LayerTrace(memory=memory, attention=tuple(level[None, None] for level in memory.maps(share)))
    return record.heatmaps(range(len(queries)), size or (image.height, image.width))


def token_relevance(
    model: DetectionTransformer, images: Tensor, queries: Sequence[int], unnamed: Sequence[int] = ()
) -> tuple[Memory, Tensor]:
    """The memory, and the signed relevance [n, S] of the encoder's input tokens for the best class of each query.

    It is the sum over a token's features of feature times gradient of the class's log-odds: the derivative of the log-odds by a, at 0, if
    the features are scaled by 1 + a. Log-odds are the logit under a sigmoid, or the logit minus the log-sum-exp of all others under a
    softmax.

    Args:
        images: [1, 3, H, W], normalised, without padding.
        unnamed: columns that are never predicted.

    Raises ``UserError`` for a query that does not exist or is pruned before the last layer.
    """
    with torch.no_grad():
        memory = model.embed_image(images)
    tokens = memory.tokens.detach().requires_grad_()
    with torch.enable_grad():
        out = model.forward_transformer(memory.with_tokens(tokens), last_only=True)
        logits = out.logits[-1, 0].cpu().double()
        if wrong := [q for q in queries if not 0 <= q < len(logits)]:
            raise UserError(f"query {wrong[0]}: the model has {len(logits)} queries, 0 to {len(logits) - 1}")
        if out.alive is not None and (pruned := [q for q in queries if not out.alive[-1, 0, q]]):
            raise UserError(f"query {pruned[0]} was pruned before the last layer, so it predicts nothing")
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
