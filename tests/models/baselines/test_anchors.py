"""Anchors: torchvision's where nothing is known, the objects' own where they are, and at the same pixels however much is padded."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from boxquery.models.baselines.anchors import GridAnchors, default_sizes, measured_ratios, measured_sizes
from tests.models.baselines.builders import create

STRIDES = [8, 16, 32]


def squares(*sides: float) -> np.ndarray:
    return np.stack((sides, sides), 1).astype(np.float64)


def test_defaults_are_the_papers_on_the_papers_strides():
    assert default_sizes([4, 8, 16, 32, 64], 8, 1) == [[32], [64], [128], [256], [512]]
    retina = default_sizes([8, 16, 32, 64, 128], 4, 3)
    assert [int(size) for size in retina[0]] == [32, 40, 50]
    assert retina[4][0] == 512
    assert default_sizes([2, 4], 8, 1) == [[16], [32]]


def test_a_level_takes_the_middles_of_equal_shares_of_its_own_objects():
    low = np.linspace(10, 40, 301)  # below 4 x 16: the finest level
    high = np.linspace(64, 124, 301)  # from 4 x 16 to 4 x 32: the second
    sizes = measured_sizes(squares(*low, *high), STRIDES, 4, 3)
    assert sizes[0] == pytest.approx([15, 25, 35])
    assert sizes[1] == pytest.approx([74, 94, 114])
    assert sizes[2] == default_sizes(STRIDES, 4, 3)[2]  # no object: its default
    assert measured_sizes(squares(*[20.0] * 9), STRIDES, 4, 1) == default_sizes(STRIDES, 4, 1)  # too few to measure
    assert measured_sizes(squares(*[20.0] * 9, 7.0, 7.0), STRIDES, 4, 1)[0] == [20]
    assert measured_sizes(squares(*[1000.0] * 10), STRIDES, 4, 1)[2] == [1000]


def test_ratios_are_height_over_width():
    tall = np.array([[10.0, 20.0]] * 30)
    assert measured_ratios(tall) == [2, 2, 2]
    assert measured_ratios(tall[:3]) == [0.5, 1, 2]
    mixed = np.concatenate((tall, tall[:, ::-1], squares(*[5.0] * 30)))
    assert measured_ratios(mixed) == [0.5, 1, 2]


def test_measured_anchors_fit_small_objects_better_than_the_defaults():
    generator = np.random.default_rng(0)
    objects = np.exp(generator.normal(np.log([12.0, 24.0]), 0.2, (200, 2)))

    def fit(sizes: list, ratios: list) -> float:
        cells = torch.cat(GridAnchors(sizes, ratios, STRIDES).cell_anchors)
        w, h = (cells[:, 2:] - cells[:, :2]).T.numpy()
        shared = np.minimum(objects[:, :1], w) * np.minimum(objects[:, 1:], h)
        return float((shared / (objects.prod(1)[:, None] + w * h - shared)).max(1).mean())

    usual = fit(default_sizes(STRIDES, 4, 3), [0.5, 1.0, 2.0])
    own = fit(measured_sizes(objects, STRIDES, 4, 3), measured_ratios(objects))
    assert own > 0.75 > usual + 0.2


def grid(anchors: AnchorGenerator, *sizes: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Level by level for an image of that (height, width), as [h, w, each, 4]."""
    out = []
    for height, width in sizes:
        maps = [torch.zeros(1, 1, -(-height // s), -(-width // s), dtype=dtype) for s in STRIDES]
        (every,) = anchors(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)
        levels = every.split([m.shape[-2] * m.shape[-1] * 2 for m in maps])
        out.append([a.view(*m.shape[-2:], 2, 4) for a, m in zip(levels, maps, strict=True)])
    return out


def test_padding_moves_no_anchor():
    anchors = GridAnchors([[20], [40], [80]], [0.5, 2.0], STRIDES)
    alone, padded = grid(anchors, (72, 100), (90, 130))
    for small, large in zip(alone, padded, strict=True):
        assert small.equal(large[: small.shape[0], : small.shape[1]])
    centre = alone[1][2, 3].view(2, 2, 2).mean(1)
    assert centre.tolist() == [[48, 32], [48, 32]]  # column 3 and row 2 of stride 16


def test_they_are_torchvisions_where_its_strides_are_exact():
    sizes, ratios = ((20,), (40,), (80,)), ((0.5, 2.0),) * 3
    ours, theirs = (grid(kind, (64, 96))[0] for kind in (GridAnchors(sizes, ratios[0], STRIDES), AnchorGenerator(sizes, ratios)))
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


def test_bf16_maps_have_exact_anchors():
    anchors = GridAnchors([[20], [40], [80]], [0.5, 2.0], STRIDES)
    (exact,), (half,) = grid(anchors, (400, 700)), grid(anchors, (400, 700), dtype=torch.bfloat16)
    assert all(a.equal(b) for a, b in zip(exact, half, strict=True))


@pytest.mark.parametrize(("name", "per_stride"), [("retinanet", 4), ("faster-rcnn", 8)])
def test_a_model_without_data_has_torchvisions_anchors_on_its_strides(name, per_stride):
    model = create(name)
    assert [level[0] for level in model.anchors().sizes] == [per_stride * stride for stride in model.strides]
    assert model.fit_to_data(squares(*[30.0] * 20), squares(0.1)).keys() == {"anchor_sizes", "anchor_ratios"}
    assert model.config["options"]["anchor_sizes"][0] == [30, 30, 30]
    assert model.fit_to_data(squares(*[90.0] * 20), squares(0.3)) == {}  # they stay what they are


def test_given_anchors_are_kept():
    sizes = [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0], [70.0, 80.0], [90.0, 99.0]]
    model = create("retinanet", anchor_sizes=sizes)
    assert model.fit_to_data(squares(*[30.0] * 20), squares(0.1)) == {"anchor_ratios": [1.0, 1.0, 1.0]}
    assert model.net.anchor_generator.sizes == tuple(map(tuple, sizes))
    assert model.fit_to_data(squares(*[30.0] * 20), squares(0.1)) == {}


def test_fcos_measures_nothing():
    model = create("fcos")
    assert model.fit_to_data(squares(*[30.0] * 20), squares(0.1)) == {}
    assert model.anchors().sizes == ((8,), (16,), (32,), (64,), (128,))
