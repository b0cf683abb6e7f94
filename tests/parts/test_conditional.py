"""Attention with separate projections of content and position, against the paper's formulas written as loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from boxquery.parts.attention.conditional import ConditionalCrossAttention, ConditionalSelfAttention
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.trace import LayerTrace
from tests.parts.memories import DIM, memory

HEADS, QUERIES = 4, 3


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def prepared(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def one_head(query: Tensor, keys: list[Tensor], values: list[Tensor], seen: list[bool]) -> tuple[Tensor, list[float]]:
    """Softmax attention of a single query, one number at a time."""
    logits = [sum(float(a) * float(b) for a, b in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in keys]
    powers = [math.exp(logit) if ok else 0.0 for logit, ok in zip(logits, seen, strict=True)]
    weights = [power / sum(powers) for power in powers]
    return sum(w * value for w, value in zip(weights, values, strict=True)), weights


def split(row: Tensor) -> list[Tensor]:
    return list(row.view(HEADS, -1))


@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_cross_attention(first):
    seen, attention = memory((3, 4)), prepared(ConditionalCrossAttention(DIM, HEADS, first=first))
    content, place, position = (numbers(2, QUERIES, DIM, seed=s) for s in (1, 2, 3))
    trace = LayerTrace(memory=seen)
    out = attention(content, QueryGeometry(position=place, self_position=position), seen, trace)
    for image in range(2):
        keys, values = [], []
        for token, where in zip(seen.tokens[image], seen.position[image], strict=True):
            key, key_place = attention.key_content(token), attention.key_place(where)
            key = key + key_place if first else key
            keys.append([torch.cat(pair) for pair in zip(split(key), split(key_place), strict=True)])
            values.append(split(attention.value(token)))
        for query in range(QUERIES):
            projected = attention.query_content(content[image, query])
            if first:
                projected = projected + attention.query_position(position[image, query])
            heads = [torch.cat(pair) for pair in zip(split(projected), split(attention.query_place(place[image, query])), strict=True)]
            results = [one_head(heads[h], [k[h] for k in keys], [v[h] for v in values], (~seen.mask[image]).tolist()) for h in range(HEADS)]
            torch.testing.assert_close(out[image, query], attention.out_proj(torch.cat([a for a, _ in results])))
            for h, (_, weights) in enumerate(results):
                torch.testing.assert_close(trace.attention[0][image, h, query].flatten().tolist(), weights)


@torch.no_grad()
def test_self_attention():
    attention = prepared(ConditionalSelfAttention(DIM, HEADS))
    content, position = numbers(2, QUERIES, DIM, seed=1), numbers(2, QUERIES, DIM, seed=2)
    hidden = torch.zeros(QUERIES, QUERIES, dtype=torch.bool)
    hidden[0, 2] = True
    trace = LayerTrace(memory=memory((3, 4)))
    out = attention(content, QueryGeometry(position=numbers(2, QUERIES, DIM, seed=9), self_position=position, self_mask=hidden), trace)
    for image in range(2):
        rows = list(zip(content[image], position[image], strict=True))
        keys = [split(attention.key_content(c) + attention.key_position(p)) for c, p in rows]
        values = [split(attention.value(c)) for c, _ in rows]
        for query, (c, p) in enumerate(rows):
            projected = split(attention.query_content(c) + attention.query_position(p))
            seen = (~hidden[query]).tolist()
            results = [one_head(projected[h], [k[h] for k in keys], [v[h] for v in values], seen) for h in range(HEADS)]
            torch.testing.assert_close(out[image, query], attention.out_proj(torch.cat([a for a, _ in results])))
            for h, (_, weights) in enumerate(results):
                torch.testing.assert_close(trace.self_attention[image, h, query].tolist(), weights)
