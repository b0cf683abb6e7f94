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


def seen_part(cell: int, side: float, pixels: int) -> float:
    """How long the part of a cell is that lies on the image; of one outside, how long it is."""
    inside = pixels - cell * side
    return inside if 1e-4 < inside < side - 1e-4 else side


def spread(seen: Memory, image: int, masses: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, float]:
    """Each cell's mass over the pixels that it covers, by area; what falls on a cell that is all outside is lost."""
    total = torch.zeros(size, dtype=torch.float64)
    for level, (h, w) in enumerate(seen.shapes):
        ratio_x, ratio_y = seen.valid_ratios[image, level].tolist()
        height, width = size[0] / (h * ratio_y), size[1] / (w * ratio_x)
        for row in range(h):
            for column in range(w):
                if not masses[level][row, column]:
                    continue
                for y in range(size[0]):
                    for x in range(size[1]):
                        area = overlap(row * height, (row + 1) * height, y) * overlap(column * width, (column + 1) * width, x)
                        total[y, x] += (
                            masses[level][row, column] * area / (seen_part(row, height, size[0]) * seen_part(column, width, size[1]))
                        )
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


def slow_masses(seen: Memory, locations: Tensor, weights: Tensor, image: int, query: int) -> list[Tensor]:
    """The weight of each head on each cell of every level, point by point: [heads, h, w]."""
    _, _, heads, _, points = weights.shape
    masses = [torch.zeros(heads, *shape, dtype=torch.float64) for shape in seen.shapes]
    for head in range(heads):
        for level, (h, w) in enumerate(seen.shapes):
            for point in range(points):
                x, y = (locations[image, query, head, level, point] * torch.tensor([w, h]) - 0.5).tolist()
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < h and 0 <= column < w:
                            share = (1 - abs(y - row)) * (1 - abs(x - column))
                            masses[level][head, row, column] += weights[image, query, head, level, point] * share
    return masses


def sampled() -> LayerTrace:
    """Points partly outside the map and on padding."""
    generator = torch.Generator().manual_seed(1)
    locations = torch.rand(2, QUERIES, HEADS, 2, POINTS, 2, dtype=torch.float64, generator=generator) * 1.2 - 0.1
    weights = torch.rand(2, QUERIES, HEADS, 2 * POINTS, dtype=torch.float64, generator=generator).softmax(-1).unflatten(-1, (2, POINTS))
    return LayerTrace(memory=memory(*SHAPES), locations=locations, weights=weights)


@pytest.mark.parametrize("size", [(8, 12), (5, 7)])
@pytest.mark.parametrize("image", [0, 1])
def test_sampled(image, size):
    """Points outside the map and on padding: their share is lost."""
    trace = sampled()
    masses = slow_masses(trace.memory, trace.locations, trace.weights, image, 2)
    expected, lost = spread(trace.memory, image, [m.mean(0) for m in masses], size)
    assert 0.01 < lost < 0.9
    close(trace.heatmap(2, size, image), expected, lost)


def row_column() -> LayerTrace:
    """One level; nothing falls on padding."""
    seen, generator = memory((4, 6)), torch.Generator().manual_seed(2)
    (mask,) = seen.maps(seen.mask)
    row, column = (torch.randn(2, HEADS, QUERIES, n, dtype=torch.float64, generator=generator) for n in (6, 4))
    row = row.masked_fill(mask[:, None, None, 0], -math.inf).softmax(-1)
    column = column.masked_fill(mask[:, None, None, :, 0], -math.inf).softmax(-1)
    return LayerTrace(memory=seen, attention=((row, column),))


@pytest.mark.parametrize("size", [(8, 12), (5, 7)])
@pytest.mark.parametrize("image", [0, 1])
def test_row_column(image, size):
    """A head's map is the outer product of its two factors; factors are multiplied first, then heads averaged."""
    trace = row_column()
    row, column = trace.attention[0]
    mass = torch.zeros(4, 6, dtype=torch.float64)
    for head in range(HEADS):
        for y in range(4):
            for x in range(6):
                mass[y, x] += column[image, head, 1, y] * row[image, head, 1, x] / HEADS
    close(trace.heatmap(1, size, image), *spread(trace.memory, image, [mass], size))


@pytest.mark.parametrize("image", [0, 1])
def test_masses_of_samples(image):
    """Head by head; what is missing to one fell outside the map."""
    trace = sampled()
    for query in range(QUERIES):
        slow = slow_masses(trace.memory, trace.locations, trace.weights, image, query)
        found = [trace.masses(level, [query], image)[0] for level in range(2)]
        for one, expected in zip(found, slow, strict=True):
            torch.testing.assert_close(one, expected)
        assert bool((sum(m.sum((-2, -1)) for m in found) < 1).all())


def test_masses_of_factors():
    """Exactly the product, in float64 though the factors are single, and one for every requested head and query."""
    trace = row_column()
    row, column = (factor.float() for factor in trace.attention[0])
    masses = LayerTrace(memory=trace.memory, attention=((row, column),)).masses(0, [2, 0], 1)
    assert masses.dtype == torch.float64
    assert masses.shape == (2, HEADS, 4, 6)
    torch.testing.assert_close(masses, torch.einsum("hqy,hqx->qhyx", column[1].double(), row[1].double())[[2, 0]], atol=0, rtol=0)
    torch.testing.assert_close(masses.sum((-2, -1)), torch.ones(2, HEADS, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [sampled, row_column])
@pytest.mark.parametrize("image", [0, 1])
def test_heads_and_several_queries(make, image):
    """Every head's map sums to one; weighed by what each kept they make the map of all, in the order of the given queries."""
    trace, size = make(), (5, 7)
    queries = [2, 0]
    heads = trace.heatmaps(queries, size, image, heads=True)
    together = trace.heatmaps(torch.tensor(queries), size, image)
    assert heads.map.shape == (2, HEADS, *size)
    assert heads.lost.shape == (2, HEADS)
    torch.testing.assert_close(heads.map.sum((-2, -1)), torch.ones(2, HEADS))
    kept = 1 - heads.lost
    mean = (heads.map * kept[..., None, None]).sum(1) / kept.sum(1)[:, None, None]
    torch.testing.assert_close(together.map.double(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.lost, heads.lost.mean(1))
    for i, query in enumerate(queries):
        one = trace.heatmap(query, size, image)
        torch.testing.assert_close(one.map, together.map[i])
        assert isinstance(one.lost, float)
        assert one.lost == pytest.approx(float(together.lost[i]))


def test_one_head_loses_all():
    """Its map is zero, and the map of all is the other head's."""
    trace = sampled()
    locations = trace.locations.clone()
    locations[:, :, 0] = 7.0
    trace = LayerTrace(memory=trace.memory, locations=locations, weights=trace.weights)
    heads = trace.heatmaps([1], (4, 6), heads=True)
    assert heads.lost[0, 0] == 1
    assert not heads.map[0, 0].any()
    torch.testing.assert_close(trace.heatmap(1, (4, 6)).map, heads.map[0, 1])


def test_all_is_lost():
    seen = memory(*SHAPES)
    locations = torch.full((2, 1, HEADS, 2, POINTS, 2), 7.0)
    weights = torch.full((2, 1, HEADS, 2, POINTS), 1 / (2 * POINTS))
    heat = LayerTrace(memory=seen, locations=locations, weights=weights).heatmap(0, (4, 6))
    assert heat.lost == 1
    assert not heat.map.any()
