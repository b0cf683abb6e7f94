"""Alignment against planted attention, whose numbers are known, and against a loop over cells for every model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.data.loading import DetectionDataset
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.data.transforms import ResizeTransform
from boxquery.detector import Detector
from boxquery.evaluation.alignment import measure_batch, measure_split, with_objects
from boxquery.parts.memory import Memory
from boxquery.parts.output import Output
from boxquery.parts.trace import LayerTrace, Trace
from tests.models.builders import batch, create, objects, shaken, systems
from tests.parts.memories import memory

HEADS, QUERIES = 2, 3
#: of the second image of ``memory``, of which 5/8 of the height and 2/3 of the width are no padding
BOX = [0.4, 0.45, 0.3, 0.5]
TARGETS = [{"boxes": torch.zeros(0, 4)}, {"boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0], BOX])}]
#: object 1 is found by query 2, object 0 by query 0
MATCHES = [(torch.zeros(0, dtype=torch.int64),) * 2, (torch.tensor([0, 2]), torch.tensor([0, 1]))]


def measured(*layers: LayerTrace):
    boxes = torch.zeros(1, 2, QUERIES, 4)
    return measure_batch(Output(boxes, boxes, trace=Trace(layers=list(layers))), TARGETS, MATCHES)


def dense(seen: Memory, weights: Tensor) -> LayerTrace:
    """weights [B, heads, Q, S]."""
    return LayerTrace(memory=seen, attention=tuple(m.permute(0, 3, 4, 1, 2) for m in seen.maps(weights.permute(0, 3, 1, 2))))


def even(seen: Memory) -> Tensor:
    assert seen.mask is not None
    shown = (~seen.mask).double()
    return (shown / shown.sum(1, keepdim=True))[:, None, None].expand(-1, HEADS, QUERIES, -1)


@pytest.mark.parametrize("shapes", [((8, 12),), ((16, 24), (8, 12), (8, 3))])
def test_even_attention(shapes):
    seen = memory(*shapes)
    found = measured(dense(seen, even(seen)))
    assert found.even == pytest.approx([1, 0.3 * 0.5])
    assert found.inside[0] == pytest.approx(found.even, abs=1e-12)
    assert found.entropy[0] == pytest.approx([1, 1], abs=1e-12)
    assert np.isnan(found.distance).all()
    assert found.query.tolist() == [0, 2]


def test_all_in_one_cell():
    """5 of 8 rows and 8 of 12 columns are image. The box reaches from 0.25 to 0.55 across: columns 2 to 4.4; from 0.2 to 0.7 down: rows 1
    to 3.5."""
    seen = memory((8, 12))
    for (row, column), inside in {(2, 3): 1.0, (0, 3): 0.0, (2, 4): 0.4, (3, 3): 0.5, (3, 4): 0.2}.items():
        weights = torch.zeros(2, HEADS, QUERIES, 8, 12, dtype=torch.float64)
        weights[..., row, column] = 1
        found = measured(dense(seen, weights.flatten(-2)))
        assert found.inside[0] == pytest.approx([1, inside], abs=1e-6)
        assert found.entropy[0] == pytest.approx([0, 0], abs=1e-12)


def test_heads_count_alike_and_levels_together():
    """One head reads a cell inside the box on the first level, the other two cells outside on the second."""
    seen = memory((8, 12), (8, 12))
    weights = torch.zeros(2, HEADS, QUERIES, 2, 8, 12, dtype=torch.float64)
    weights[:, 0, :, 0, 2, 3] = 1
    weights[:, 1, :, 1, 0, 0] = weights[:, 1, :, 1, 4, 7] = 0.5
    found = measured(dense(seen, weights.flatten(3)))
    assert found.inside[0] == pytest.approx([1, 0.5])
    assert found.entropy[0] == pytest.approx(1.5 * math.log(2) / math.log(2 * 40))


def test_row_and_column_are_multiplied():
    seen = memory((8, 12))
    row, column = torch.zeros(2, HEADS, QUERIES, 12).double(), torch.zeros(2, HEADS, QUERIES, 8).double()
    row[..., 3] = row[..., 5] = 0.5
    column[..., 1] = column[..., 0] = 0.5
    found = measured(LayerTrace(memory=seen, attention=((row, column),)))
    assert found.inside[0] == pytest.approx([1, 0.25])
    assert found.entropy[0] == pytest.approx(2 * math.log(2) / math.log(40))
    row, column = torch.zeros_like(row), torch.zeros_like(column)
    row[..., :8], column[..., :5] = 1 / 8, 1 / 5
    found = measured(LayerTrace(memory=seen, attention=((row, column),)))
    assert found.inside[0] == pytest.approx(found.even, abs=1e-12)
    assert found.entropy[0] == pytest.approx(1)


def test_points_count_through_the_cells_they_came_from():
    """A point between the centres of two cells reads both; one beyond the edge is not inside, also of a box that is the whole image."""
    seen = memory((8, 12))
    at = torch.tensor([[4.0 / 12, 2.5 / 8], [3.0, 3.0]], dtype=torch.float64)  # between columns 3 and 4, in row 2
    for weights, inside, whole in (((1.0, 0.0), 0.7, 1.0), ((0.5, 0.5), 0.35, 0.5)):
        layer = LayerTrace(
            memory=seen,
            locations=at.expand(2, QUERIES, HEADS, 1, 2, 2),
            weights=torch.tensor(weights, dtype=torch.float64).expand(2, QUERIES, HEADS, 1, 2),
        )
        found = measured(layer)
        assert found.inside[0] == pytest.approx([whole, inside], abs=1e-6)
        assert found.entropy[0] == pytest.approx(math.log(2) / math.log(40))
    lost = replace(layer, weights=torch.tensor([0.0, 1.0], dtype=torch.float64).expand(2, QUERIES, HEADS, 1, 2))
    found = measured(lost)
    assert found.inside.tolist() == [[0, 0]]
    assert np.isnan(found.entropy).all()
    assert not any(name.startswith("entropy") for name in found.columns())


def test_distance_is_in_diagonals_of_the_unpadded_image():
    """The second image is 64 x 40 pixels."""
    seen = memory((8, 12))
    place = torch.zeros(2, QUERIES, 4, dtype=torch.float64)
    place[1, 0, :2] = torch.tensor([0.5, 0.5])
    place[1, 2, :2] = torch.tensor([0.4 + 3 / 64, 0.45 - 4 / 40])
    found = measured(replace(dense(seen, even(seen)), reference=place), replace(dense(seen, even(seen)), reference=place[..., :2]))
    for row in found.distance:
        assert row == pytest.approx([0, 5 / math.hypot(64, 40)], abs=1e-6)
    assert found.columns()["distance_2"] == pytest.approx(2.5 / math.hypot(64, 40))


def test_objects_without_a_query_have_no_alignment():
    seen = memory((8, 12))
    one = [MATCHES[0], (torch.tensor([2]), torch.tensor([1]))]
    boxes = torch.zeros(1, 2, QUERIES, 4)
    found = measure_batch(Output(boxes, boxes, trace=Trace(layers=[dense(seen, even(seen))])), TARGETS, one)
    assert found.query.tolist() == [-1, 2]
    assert np.isnan(found.inside[:, 0]).all()
    assert np.isnan(found.even[0])
    assert found.columns() == pytest.approx({"inside_1": 0.15, "inside_even": 0.15, "entropy_1": 1.0})
    assert found.changes([5, 2]) == 0.5  # who had one and lost it counts
    assert found.changes([-1, 2]) == 0
    assert found.changes([-1, 7]) == 1
    assert found.changes([]) is None
    assert replace(found, query=np.array([-1, -1])).changes([-1, -1]) is None


SYSTEMS = systems()


@pytest.mark.parametrize("system", SYSTEMS)
@torch.no_grad()
def test_every_model_against_a_loop(system):
    name, options = SYSTEMS[system]
    model = shaken(create(name, **options)).double().eval()
    images, mask = batch((96, 128), (64, 80), (64, 64), dtype=torch.float64)
    targets = objects(2, 3, 0, dtype=torch.float64)
    out = model(images, mask, trace=True)
    matches = model.match(out, targets)[-1]
    found = measure_batch(out, targets, matches)
    assert out.trace is not None
    assert found.inside.shape == found.entropy.shape == found.distance.shape == (len(out.trace.layers), 5)
    assert np.isnan(found.distance).all() == (name == "detr")
    for i, layer in enumerate(out.trace.layers):
        place = 0
        for image, target in enumerate(targets):
            query = dict(zip(matches[image][1].tolist(), matches[image][0].tolist(), strict=True))
            for position, box in enumerate(target["boxes"].tolist()):
                assert found.query[place] == query[position]
                inside, entropy = slow(layer, image, query[position], box)
                assert found.inside[i, place] == pytest.approx(inside, abs=1e-9)
                assert found.entropy[i, place] == pytest.approx(entropy, abs=1e-9)
                assert found.even[place] == pytest.approx(box[2] * box[3])
                if layer.reference is not None:
                    height, width = ((96, 128), (64, 80))[image]
                    x, y = layer.reference[image, query[position], :2].tolist()
                    pixels = math.hypot((x - box[0]) * width, (y - box[1]) * height)
                    assert found.distance[i, place] == pytest.approx(pixels / math.hypot(width, height), abs=1e-9)
                place += 1


def slow(layer: LayerTrace, image: int, query: int, box: list[float]) -> tuple[float, float]:
    x1, x2, y1, y2 = box[0] - box[2] / 2, box[0] + box[2] / 2, box[1] - box[3] / 2, box[1] + box[3] / 2
    inside, masses = 0.0, []
    for level, (h, w) in enumerate(layer.memory.shapes):
        ratio_x, ratio_y = layer.memory.valid_ratios[image, level].tolist()
        high, wide = (n if abs(n - round(n)) > 1e-4 else round(n) for n in (h * ratio_y, w * ratio_x))  # of the image, in cells
        rows, columns, height, width = math.ceil(high), math.ceil(wide), 1 / high, 1 / wide
        mass = cells(layer, level, image, query)
        for row in range(rows):
            for column in range(columns):
                across = max(min(x2, (column + 1) * width) - max(x1, column * width), 0) / width
                down = max(min(y2, (row + 1) * height) - max(y1, row * height), 0) / height
                inside += mass[row][column] * across * down
                masses.append(mass[row][column])
    kept = sum(masses)
    return inside, -sum(m / kept * math.log(m / kept) for m in masses if m > 0) / math.log(len(masses))


def cells(layer: LayerTrace, level: int, image: int, query: int) -> list[list[float]]:
    """What each cell of a level gave, the mean of the heads."""
    h, w = layer.memory.shapes[level]
    mass = [[0.0] * w for _ in range(h)]
    if layer.attention is not None:
        weights = layer.attention[level]
        if isinstance(weights, tuple):
            weights = torch.einsum("bnqw,bnqh->bnqhw", *weights)
        return weights[image, :, query].mean(0).tolist()
    assert layer.locations is not None
    assert layer.weights is not None
    heads, points = layer.weights.shape[2], layer.weights.shape[4]
    for head in range(heads):
        for point in range(points):
            x, y = layer.locations[image, query, head, level, point].tolist()
            x, y = x * w - 0.5, y * h - 0.5
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < h and 0 <= column < w:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        mass[row][column] += layer.weights[image, query, head, level, point].item() * share / heads
    return mass


@pytest.mark.parametrize("name", bq.list_models())
def test_over_a_split(name):
    """Image by image it is what one batch gives without padding; no chance is drawn, and the model stays in its mode."""
    data = shapes_data(train=2, val=5, test=2, size=64)
    split = data.splits["val"]
    detector = Detector(create(name, classes=len(data.names)).train(), data.names, data.ids, Preprocessing(64))
    chance = torch.get_rng_state()
    found = measure_split(detector, split, only=[3, 1])
    assert torch.equal(chance, torch.get_rng_state())
    assert detector.model.training
    cached = DetectionDataset(split, ResizeTransform(detector.resize), cache=True)
    samples = [cached[i] for i in (3, 1)]
    targets = [sample["target"] for sample in samples]
    with torch.no_grad():
        out = detector.model.eval()(detector.inputs(torch.stack([sample["image"] for sample in samples])), None, trace=True)
    together = measure_batch(out, targets, detector.model.match(out, targets)[-1])
    for one, other in ((found.inside, together.inside), (found.entropy, together.entropy), (found.distance, together.distance)):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert found.query.tolist() == together.query.tolist()
    assert len(found.query) == len(split[3].boxes) + len(split[1].boxes)
    again = measure_split(detector, split, only=[3, 1], cached=cached)
    assert again.columns() == found.columns()
    assert again.changes(found.query.tolist()) == 0
    nothing = measure_split(detector, split, only=[])
    assert nothing.columns() == {}
    assert nothing.changes([]) is None


def test_a_model_that_infers_with_its_first_layers_has_their_alignment():
    data = shapes_data(train=2, val=4, test=2, size=64)
    detector = Detector(create("deformable-detr", len(data.names), inference_layers=1), data.names, data.ids, Preprocessing(64))
    assert len(detector.transformer.layers) > 1
    assert len(measure_split(detector, data.splits["val"]).inside) == 1


def test_the_sample_is_spread_over_the_images_with_objects():
    split = shapes_data(train=2, val=40, test=2, size=64).splits["val"]
    bare = [replace(r, boxes=r.boxes[:0], labels=r.labels[:0], ignore=r.ignore[:0], areas=r.areas[:0]) for r in split]
    ignored = [replace(r, ignore=np.ones_like(r.ignore)) for r in split]
    mixed = replace(split, records=[bare[i] if i % 2 else ignored[i] if i % 4 else split[i] for i in range(40)])
    full = [i for i in range(0, 40, 4) if len(split[i].boxes)]
    assert with_objects(mixed, 99) == full
    few = with_objects(mixed, 3)
    assert len(set(few)) == 3
    assert set(few) <= set(full)
    assert few[0] < 14 < few[1] < 26 < few[2]
    assert with_objects(replace(split, records=bare), 5) == []
