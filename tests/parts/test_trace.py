"""Heatmaps, against a loop over pixels and cells."""

import math

import pytest
import torch
from torch import Tensor

from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace
from tests.parts.memories import memory

SHAPES = ((4, 6), (2, 3))
HEADS, QUERIES, POINTS = 2, 3, 4


def overlap(low: float, high: float, pixel: int) -> float:
    return max(min(high, pixel + 1) - max(low, pixel), 0.0)


def spread(seen: Memory, image: int, masses: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, float]:
    """Each cell's mass over the pixels that it covers, by area; what falls outside is lost."""
    total = torch.zeros(size, dtype=torch.float64)
    for level, (h, w) in enumerate(seen.shapes):
        ratio_x, ratio_y = seen.valid_ratios[image, level].tolist()
        height, width = size[0] / (h * ratio_y), size[1] / (w * ratio_x)
        for row in range(h):
            for column in range(w):
                for y in range(size[0]):
                    for x in range(size[1]):
                        area = overlap(row * height, (row + 1) * height, y) * overlap(column * width, (column + 1) * width, x)
                        total[y, x] += masses[level][row, column] * area / (height * width)
    kept = total.sum().item()
    return total / kept, 1 - kept


def close(heat, expected: Tensor, lost: float) -> None:
    torch.testing.assert_close(heat.map.double(), expected, atol=1e-6, rtol=0)
    assert heat.lost == pytest.approx(lost, abs=1e-9)


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (3, 2)])
@pytest.mark.parametrize("image", [0, 1])
def test_dense(image, size):
    seen = memory(*SHAPES)
    tokens = seen.tokens.shape[1]
    weights = torch.randn(2, HEADS, QUERIES, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = weights.masked_fill(seen.mask[:, None, None], -math.inf).softmax(-1)
    attention = tuple(m.permute(0, 3, 4, 1, 2) for m in seen.maps(weights.permute(0, 3, 1, 2)))
    trace = LayerTrace(memory=seen, attention=attention)
    masses = [a[image, :, 1].mean(0) for a in attention]
    expected, lost = spread(seen, image, masses, size)
    assert lost == pytest.approx(0, abs=1e-9)
    close(trace.heatmap(1, size, image), expected, lost)


def slow_mass(seen: Memory, locations: Tensor, weights: Tensor, image: int, query: int) -> list[Tensor]:
    masses = [torch.zeros(shape, dtype=torch.float64) for shape in seen.shapes]
    for head in range(HEADS):
        for level, (h, w) in enumerate(seen.shapes):
            for point in range(POINTS):
                x, y = (locations[image, query, head, level, point] * torch.tensor([w, h]) - 0.5).tolist()
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < h and 0 <= column < w:
                            share = (1 - abs(y - row)) * (1 - abs(x - column))
                            masses[level][row, column] += weights[image, query, head, level, point] * share / HEADS
    return masses


@pytest.mark.parametrize("size", [(8, 12), (5, 7)])
@pytest.mark.parametrize("image", [0, 1])
def test_sampled(image, size):
    """Points partly outside the map and on padding: their share is lost."""
    seen = memory(*SHAPES)
    generator = torch.Generator().manual_seed(1)
    locations = torch.rand(2, QUERIES, HEADS, 2, POINTS, 2, dtype=torch.float64, generator=generator) * 1.2 - 0.1
    weights = torch.rand(2, QUERIES, HEADS, 2 * POINTS, dtype=torch.float64, generator=generator).softmax(-1).unflatten(-1, (2, POINTS))
    trace = LayerTrace(memory=seen, locations=locations, weights=weights)
    expected, lost = spread(seen, image, slow_mass(seen, locations, weights, image, 2), size)
    assert 0.01 < lost < 0.9
    close(trace.heatmap(2, size, image), expected, lost)


def test_all_is_lost():
    seen = memory(*SHAPES)
    locations = torch.full((2, 1, HEADS, 2, POINTS, 2), 7.0)
    weights = torch.full((2, 1, HEADS, 2, POINTS), 1 / (2 * POINTS))
    heat = LayerTrace(memory=seen, locations=locations, weights=weights).heatmap(0, (4, 6))
    assert heat.lost == 1
    assert not heat.map.any()
