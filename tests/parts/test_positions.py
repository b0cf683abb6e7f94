"""Sine and learned tables, against the papers' formulas written out."""

import math

import pytest
import torch

from boxquery.parts.memory import Tokens
from boxquery.parts.positions import CellSinePosition, LearnedPosition, SinePosition, sine
from tests.parts.memories import memory, pixel_mask


@pytest.mark.parametrize("temperature", [20.0, 10000.0])
def test_sine(temperature):
    numbers = torch.tensor([[0.1, 0.7, 0.25], [1.0, 0.0, 0.5]], dtype=torch.float64)
    features = 8
    out = sine(numbers, features, temperature)
    assert out.shape == (2, 24)
    for row, values in enumerate(numbers.tolist()):
        for block, value in enumerate(values):
            for i in range(features // 2):
                angle = 2 * math.pi * value / temperature ** (2 * i / features)
                assert out[row, block * features + 2 * i].item() == pytest.approx(math.sin(angle))
                assert out[row, block * features + 2 * i + 1].item() == pytest.approx(math.cos(angle))


@pytest.mark.parametrize("offset", [0.0, 0.5], ids=["detr", "deformable"])
def test_sine_table(offset):
    """Cell (row, column) of an image with h x w valid cells: y half, then x half, of (number from 1 - offset) / size."""
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, 3:] = True
    padding[1, :, 4:] = True
    table = SinePosition(8, offset=offset)(padding, torch.zeros(1, dtype=torch.float64))
    assert table.shape == (2, 4, 6, 8)
    for image, (h, w) in enumerate(((4, 6), (3, 4))):
        for row in range(h):
            for column in range(w):
                y, x = (row + 1 - offset) / (h + 1e-6), (column + 1 - offset) / (w + 1e-6)
                expected = sine(torch.tensor([y, x], dtype=torch.float64), 4)
                torch.testing.assert_close(table[image, row, column], expected)


def test_sine_table_of_cell_numbers():
    """Row and column from 0, not divided by the size; sines, then cosines, of y, then of x."""
    table = CellSinePosition(8)(torch.zeros(3, 4, 6, dtype=torch.bool), torch.zeros(1, dtype=torch.float64))
    assert table.shape == (1, 4, 6, 8)
    for row in range(4):
        for column in range(6):
            expected = [f(n / 100**i) for n in (row, column) for f in (math.sin, math.cos) for i in range(2)]
            assert table[0, row, column].tolist() == pytest.approx(expected)


def test_tables_are_float32_at_least():
    padding = torch.zeros(1, 2, 2, dtype=torch.bool)
    for position in (SinePosition(8), CellSinePosition(8), LearnedPosition(8)):
        for given, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
            assert position(padding, torch.zeros(1, dtype=given)).dtype == expected


def test_learned_table():
    """The column's vector first, then the row's."""
    position = LearnedPosition(8)
    table = position(torch.zeros(3, 4, 6, dtype=torch.bool), torch.zeros(1))
    assert table.shape == (1, 4, 6, 8)
    assert torch.equal(table[0, 2, 5], torch.cat((position.column[5], position.row[2])))
    assert bool(((position.column >= 0) & (position.column < 1)).all())


def test_learned_table_beyond_its_end():
    """60 cells out of 50: first and last stand, the rest lies between its neighbours."""
    position = LearnedPosition(8)
    with torch.no_grad():
        position.column.copy_(torch.arange(50.0)[:, None].expand(-1, 4))
    table = position(torch.zeros(1, 2, 60, dtype=torch.bool), torch.zeros(1))
    torch.testing.assert_close(table[0, 0, :, 0], torch.linspace(0, 49, 60))
    assert torch.equal(table[0, 1, 0, 4:], position.row[1])


def test_mask_goes_to_each_level_by_nearest_neighbour():
    seen = memory((8, 12), (3, 5), (1, 1))
    mask = pixel_mask()
    for ours, (h, w) in zip(seen.maps(seen.mask), seen.shapes, strict=True):
        for row in range(h):
            for column in range(w):
                assert torch.equal(ours[:, row, column], mask[:, row * 64 // h, column * 96 // w])


def test_valid_ratios():
    seen = memory((8, 12), (4, 6))
    torch.testing.assert_close(seen.valid_ratios[0], torch.ones(2, 2, dtype=torch.float64))
    # (width, height): 8 of 12 and 5 of 8 cells; 4 of 6 and, by nearest neighbour, 3 of 4
    torch.testing.assert_close(seen.valid_ratios[1], torch.tensor([[8 / 12, 5 / 8], [4 / 6, 3 / 4]], dtype=torch.float64))


def test_centres():
    """Of every cell, in the unpadded extent: 0.5 / valid cells, 1.5 / valid cells, ... and above 1 on padding."""
    seen = memory((8, 12), (4, 6))
    valid = [[(8, 12), (4, 6)], [(5, 8), (3, 4)]]
    for image in range(2):
        for level, centres in enumerate(seen.maps(seen.centres())):
            h, w = valid[image][level]
            for row in range(seen.shapes[level][0]):
                for column in range(seen.shapes[level][1]):
                    expected = torch.tensor([(column + 0.5) / w, (row + 0.5) / h], dtype=torch.float64)
                    torch.testing.assert_close(centres[image, row, column], expected)
    inside = (seen.centres() < 1).all(-1)
    assert torch.equal(inside, ~seen.mask)


def test_maps_are_views_in_reading_order():
    seen = memory((4, 6), (2, 3))
    maps = seen.maps(seen.tokens)
    assert [tuple(m.shape) for m in maps] == [(2, 4, 6, 16), (2, 2, 3, 16)]
    assert torch.equal(maps[1][1, 1, 2], seen.tokens[1, 24 + 1 * 3 + 2])
    assert maps[0].data_ptr() == seen.tokens.data_ptr()


def test_no_mask():
    seen = memory((4, 6), padded=False)
    assert seen.mask is None
    assert len(seen.position) == 1
    assert seen.valid_ratios.shape == (2, 1, 2)
    assert bool((seen.valid_ratios == 1).all())


def test_level_embedding_tells_levels_apart():
    tokens = Tokens(SinePosition(8), 8, 2, level_embedding=True)
    maps = [torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 2, 2)]
    first, second = tokens(maps, None, (16, 16)).position.chunk(2, 1)
    difference = (second - first)[0]
    torch.testing.assert_close(difference, (tokens.level_embedding[1] - tokens.level_embedding[0]).expand(4, -1))


@pytest.mark.parametrize("padded", [False, True])
def test_exact_ratios_place_every_cell_at_its_pixels(padded):
    """An image of 50 x 70 pixels has 7 x 9 cells of 8 pixels and 4 x 5 of 16, of which the last are in part outside."""
    height, width = (64, 96) if padded else (50, 70)
    strides, mask = (8, 16), None
    if padded:
        mask = torch.ones(1, height, width, dtype=torch.bool)
        mask[:, :50, :70] = False
    maps = [torch.zeros(1, 8, -(-height // stride), -(-width // stride)) for stride in strides]
    seen = Tokens(SinePosition(8), 8, 2, strides=strides)(maps, mask, (height, width))
    pixels = [
        torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) * stride for n in shape), indexing="ij")[::-1], -1).flatten(0, 1)
        for stride, shape in zip(strides, seen.shapes, strict=True)
    ]
    torch.testing.assert_close(seen.centres()[0] * torch.tensor([70.0, 50.0]), torch.cat(pixels))
    sides = torch.cat([torch.full((len(part), 2), float(stride)) for stride, part in zip(strides, pixels, strict=True)])
    torch.testing.assert_close(seen.cells()[0] * torch.tensor([70.0, 50.0]), sides)


def test_exact_ratios_are_the_published_ones_where_sides_are_multiples():
    maps = [torch.zeros(2, 8, 8, 12), torch.zeros(2, 8, 4, 6)]
    exact, published = (
        Tokens(SinePosition(8), 8, 2, strides=strides)(maps, pixel_mask()[:, :, :], (64, 96)) for strides in ((8, 16), None)
    )
    multiples = torch.tensor([[True, True], [True, False]])  # by image and level; 40 rows are 2.5 cells of 16
    assert torch.equal(exact.valid_ratios[multiples], published.valid_ratios[multiples])
    assert not torch.equal(exact.valid_ratios[1, 1], published.valid_ratios[1, 1])
