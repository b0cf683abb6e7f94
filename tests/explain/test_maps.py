"""Heat maps of every model are what its queries attend to: against slow loops, against plain formulas, and with known patterns planted."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.explain.explanation import explain
from boxquery.models.base import DetectionTransformer
from boxquery.parts.attention import dense as attention
from boxquery.parts.attention.conditional import ConditionalCrossAttention
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import DenseAttention, attend
from boxquery.parts.attention.rcda import RowColumnDecoupledAttention
from boxquery.parts.attention.scales import IntraScaleAttention, ScaleSelectionAttention
from boxquery.parts.attention.semantic_aligned import SemanticAlignedAttention
from boxquery.parts.geometry import QueryGeometry, with_pos
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace
from tests.models.builders import batch, create, shaken, systems
from tests.parts.test_trace import slow_masses, spread

#: tests/models/test_sparse_rcnn.py compares the samples of regions with a slow loop
SYSTEMS = {name: each for name, each in systems().items() if not name.startswith("sparse-rcnn")}
SIZES = ((96, 128), (64, 80))
SMALL = (5, 7)
QUERIES = [3, 0]


@dataclass
class Reading:
    """One call of a cross-attention: its input, its trace and its output."""

    read: nn.Module
    content: Tensor
    look: QueryGeometry
    memory: Memory
    trace: LayerTrace
    out: Tensor


@dataclass
class Watched:
    encoder: list[Reading]
    decoder: list[Reading]


@pytest.fixture(scope="module", params=SYSTEMS)
def watched(request) -> Watched:
    """A small model in double precision that looks at two unequal images, the second padded."""
    name, options = SYSTEMS[request.param]
    model = shaken(create(name, **options), 0.05).double().eval()
    seen = Watched([], [])
    for layers, readings in ((model.encoder.layers, seen.encoder), (model.layers, seen.decoder)):
        for layer in layers:
            layer.read.register_forward_hook(partial(remember, readings))
    with torch.no_grad():
        out = model(*batch(*SIZES, dtype=torch.float64), trace=True)
    assert [r.trace for r in seen.decoder] == out.trace.layers
    seen.encoder[:] = [reading for reading in seen.encoder if reading.trace is not None]  # a hybrid encoder keeps none
    assert [r.trace for r in seen.encoder] == out.trace.encoder
    return seen


def remember(readings: list[Reading], read: nn.Module, given: tuple, out: Tensor) -> None:
    readings.append(Reading(read, *given, out))


def test_sum_to_one(watched):
    for reading in watched.decoder:
        for image in range(len(SIZES)):
            for heads in (False, True):
                heat = reading.trace.heatmaps(QUERIES, SMALL, image, heads=heads)
                total = heat.map.double().sum((-2, -1))
                assert total.shape == heat.lost.shape
                assert bool((heat.map >= 0).all())
                torch.testing.assert_close(total, (heat.lost < 1).double(), atol=1e-5, rtol=0)


def test_heads_make_the_map(watched):
    """Each head's map counts as much as that head kept."""
    for reading in watched.decoder:
        for image in range(len(SIZES)):
            heads = reading.trace.heatmaps(QUERIES, SMALL, image, heads=True)
            kept = 1 - heads.lost
            mean = (heads.map * kept[..., None, None]).sum(1) / kept.sum(1).clamp(min=1e-300)[:, None, None]
            for i, query in enumerate(QUERIES):
                heat = reading.trace.heatmap(query, SMALL, image)
                torch.testing.assert_close(heat.map.double(), mean[i], atol=1e-6, rtol=0)
                assert heat.lost == pytest.approx(float(heads.lost[i].mean()), abs=1e-9)


def test_slow_loop(watched):
    """Cell by cell or point by point, head by head, pixel by pixel."""
    for reading in watched.decoder:
        trace, query = reading.trace, QUERIES[0]
        for image in range(len(SIZES)):
            masses = by_head(trace, image, query)
            for level, mass in enumerate(masses):
                torch.testing.assert_close(trace.masses(level, [query], image)[0], mass)
            heat = trace.heatmap(query, SMALL, image)
            if heat.lost < 1:
                expected, lost = spread(trace.memory, image, [m.mean(0) for m in masses], SMALL)
                torch.testing.assert_close(heat.map.double(), expected, atol=1e-6, rtol=0)
                assert heat.lost == pytest.approx(lost, abs=1e-9)


def by_head(trace: LayerTrace, image: int, query: int) -> list[Tensor]:
    """[heads, h, w] of every level, by loops."""
    if trace.locations is not None:
        return slow_masses(trace.memory, trace.locations, trace.weights, image, query)
    out = []
    for weights, (h, w) in zip(trace.attention, trace.memory.shapes, strict=True):
        heads = (weights if isinstance(weights, Tensor) else weights[0]).shape[1]
        mass = torch.zeros(heads, h, w, dtype=torch.float64)
        for head in range(heads):
            for y in range(h):
                for x in range(w):
                    if isinstance(weights, Tensor):
                        mass[head, y, x] = weights[image, head, query, y, x]
                    else:
                        mass[head, y, x] = weights[0][image, head, query, x] * weights[1][image, head, query, y]
        out.append(mass)
    return out


@torch.no_grad()
def test_masses_make_the_output(watched):
    """Each head's masses times the values of the cells, through the last linear map, is what the query was given: nothing else was read."""
    for reading in (*watched.encoder, *watched.decoder):
        if isinstance(reading.read, SemanticAlignedAttention) and not reading.read.attention:
            continue  # it has no values of cells: its samples were averaged and weighted before (test_salient_points)
        values, last = values_of(reading)
        heads, size = reading.trace.masses(0, [0]).shape[1], values.shape[-1]
        values = values.unflatten(-1, (heads, size // heads))
        for image in range(len(SIZES)):
            levels = range(len(reading.trace.memory.shapes))
            every = range(reading.out.shape[1])
            mass = torch.cat([reading.trace.masses(level, every, image).flatten(2) for level in levels], -1)
            read = torch.einsum("qhs,shk->qhk", mass, values[image]).flatten(1)
            torch.testing.assert_close(last(read), reading.out[image], atol=1e-9, rtol=0)


def values_of(reading: Reading) -> tuple[Tensor, nn.Module]:
    """What can be read of every cell, [B, S, D], and the map that all that was read goes through."""
    read, memory = reading.read, reading.memory
    read = read.read if isinstance(read, IntraScaleAttention) else read
    if isinstance(read, DenseAttention):
        packed = read.attention
        return F.linear(memory.tokens, packed.in_proj.weight.chunk(3)[-1], packed.in_proj.bias.chunk(3)[-1]), packed.out_proj
    if isinstance(read, RowColumnDecoupledAttention):
        return F.linear(memory.tokens, read.in_proj.weight.chunk(5)[-1], read.in_proj.bias.chunk(5)[-1]), read.out_proj
    if isinstance(read, ScaleSelectionAttention):
        levels = [value(memory.level(i).tokens) for i, value in enumerate(read.values)]
        return torch.cat(levels, 1), read.out_proj
    if isinstance(read, DeformableAttention):
        return read.value_proj(memory.tokens).masked_fill(memory.mask[..., None], 0.0), read.out_proj
    assert isinstance(read, ConditionalCrossAttention | SemanticAlignedAttention)
    return read.value((memory.level(read.level) if isinstance(read, SemanticAlignedAttention) else memory).tokens), read.out_proj


def test_salient_points(watched):
    """Where the features that ask were taken: inside the box; without attention, the map is these points alone."""
    for reading in watched.decoder:
        if not isinstance(reading.read, SemanticAlignedAttention):
            continue
        points, box = reading.trace.salient_points, reading.look.reference
        assert points.shape == (*box.shape[:2], reading.read.heads, 2)
        assert bool(((points - box[:, :, None, :2]).abs() <= box[:, :, None, 2:] / 2 + 1e-9).all())
        if not reading.read.attention:
            ratio = reading.trace.memory.valid_ratios[:, :1, None]
            torch.testing.assert_close(reading.trace.locations[:, :, :, 0, 0], points * ratio)
            assert bool((reading.trace.weights == 1).all())


@torch.no_grad()
def test_plain_formula(watched):
    """Dense attention as PyTorch's own function and as the papers' equations give it, from the layers' weights and inputs."""
    for reading in (*watched.encoder, *watched.decoder):
        if formula := FORMULAS.get(type(reading.read)):
            expected = formula(reading)
            for image in range(len(SIZES)):
                masses = torch.cat([m.flatten(2) for m in levels_of(reading.trace, image)], -1)
                torch.testing.assert_close(masses.transpose(0, 1), expected[image], atol=1e-9, rtol=0)


def levels_of(trace: LayerTrace, image: int) -> list[Tensor]:
    queries = range((trace.attention[0] if isinstance(trace.attention[0], Tensor) else trace.attention[0][0]).shape[2])
    return [trace.masses(level, queries, image) for level in range(len(trace.memory.shapes))]


def torchs(reading: Reading) -> Tensor:
    """[B, H, Q, S] by ``torch.nn.functional.multi_head_attention_forward``, which DETR's authors used."""
    content, look, memory, packed = reading.content, reading.look, reading.memory, reading.read.attention
    query = with_pos(content, look.position)
    key = query if content is memory.tokens else with_pos(memory.tokens, memory.position)
    bias = None if look.bias is None else look.bias.expand(-1, packed.heads, -1, -1).flatten(0, 1)
    padding = torch.zeros_like(memory.mask, dtype=query.dtype).masked_fill(memory.mask, -math.inf)
    query, key, value = (t.transpose(0, 1) for t in (query, key, memory.tokens))
    out, weights = F.multi_head_attention_forward(
        query, key, value, query.shape[-1], packed.heads, packed.in_proj.weight, packed.in_proj.bias, None, None, False, 0.0,
        packed.out_proj.weight, packed.out_proj.bias, training=False, key_padding_mask=padding, attn_mask=bias, average_attn_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(out.transpose(0, 1), reading.out, atol=1e-9, rtol=0)
    return weights


def by_equation_2(reading: Reading) -> Tensor:
    """Conditional DETR, eq. 2: content with content and place with place, one head and image at a time."""
    read, look, memory = reading.read, reading.look, reading.memory
    place = read.key_place(memory.position).expand_as(memory.tokens)
    keys, queries = read.key_content(memory.tokens), read.query_content(reading.content)
    if read.query_position is not None:
        keys, queries = keys + place, queries + read.query_position(look.self_position)
    asked = read.query_place(look.position).expand_as(queries)
    size = keys.shape[-1] // read.heads
    out = torch.zeros(len(keys), read.heads, queries.shape[1], keys.shape[1], dtype=keys.dtype)
    for image in range(len(keys)):
        for head in range(read.heads):
            own = slice(head * size, (head + 1) * size)
            logits = queries[image, :, own] @ keys[image, :, own].T + asked[image, :, own] @ place[image, :, own].T
            logits = logits / math.sqrt(2 * size) + (0 if look.bias is None else look.bias[image, head])
            logits[:, memory.mask[image]] = -math.inf
            out[image, head] = logits.softmax(-1)
    return out


def by_rows_and_columns(reading: Reading) -> Tensor:
    """Anchor DETR: a softmax over columns and one over rows, each from means over the other side, times each other in every cell."""
    read, look, memory = reading.read, reading.look, reading.memory
    (cells,), (mask,), ((across, down),) = memory.maps(memory.tokens), memory.maps(memory.mask), memory.axes
    weight, bias = read.in_proj.weight.chunk(5), read.in_proj.bias.chunk(5)
    size = cells.shape[-1] // read.heads
    out = []
    for image in range(len(cells)):
        factors = []
        for axis, mean, place, padding in ((0, cells.mean(1), across, mask[:, 0]), (1, cells.mean(2), down, mask[:, :, 0])):
            where = look.axes[axis].expand(len(cells), -1, -1)[image]
            query = F.linear(reading.content[image] + where, weight[axis], bias[axis]).unflatten(-1, (read.heads, size))
            key = F.linear(mean[image] + place.expand(len(cells), -1, -1)[image], weight[2 + axis], bias[2 + axis])
            logits = torch.einsum("qhk,nhk->hqn", query, key.unflatten(-1, (read.heads, size))) / math.sqrt(size)
            factors.append(logits.masked_fill(padding[image], -math.inf).softmax(-1))
        out.append(torch.einsum("hqx,hqy->hqyx", *factors).flatten(2))
    return torch.stack(out)


FORMULAS: dict[type, Callable[[Reading], Tensor]] = {
    DenseAttention: torchs,
    ConditionalCrossAttention: by_equation_2,
    RowColumnDecoupledAttention: by_rows_and_columns,
}

# -- planted -----------------------------------------------------------------------------------------------------------------------

#: rows and columns of the cells, of the only or first level, that queries with even and odd numbers read
ROWS, COLUMNS = (1, 0), (2, 1)
WIDTHS = {SIZES[0][1] // stride for stride in (8, 16, 32)}


def plant(model: DetectionTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head of every decoder layer attends to its query's cell, whatever the weights."""
    monkeypatch.setattr(attention, "cross_attention_bias", only_the_cell)
    monkeypatch.setattr(attention, "attend", by_turns)
    monkeypatch.setattr(RowColumnDecoupledAttention, "_weights", only_its_line)
    for layer in model.layers:
        read = layer.read
        if isinstance(read, DeformableAttention | SemanticAlignedAttention):
            read.register_forward_pre_hook(at_the_cell)
        with torch.no_grad():
            if isinstance(read, DeformableAttention):
                read.sampling_offsets.weight.zero_()
                read.sampling_offsets.bias.zero_()
                read.attention_weights.weight.zero_()
                read.attention_weights.bias.view(read.heads, -1)[:, : read.points[0]] = 1e3
            if isinstance(read, ScaleSelectionAttention):
                read.selection.weight.zero_()
                read.selection.bias[0] = 1e3
            if isinstance(read, SemanticAlignedAttention):
                read.points[-1].weight.zero_()
                read.points[-1].bias.zero_()


def alternating(values: tuple[int, int], queries: int) -> Tensor:
    return torch.tensor(values)[torch.arange(queries) % 2]


def only_the_cell(look: QueryGeometry, memory: Memory) -> Tensor:
    """[1, 1, 2, S], for queries with even and with odd numbers. Of a level that is too small to have the cell, some other."""
    cells = memory.tokens.shape[1]
    wanted = (torch.tensor(ROWS) * memory.shapes[0][1] + torch.tensor(COLUMNS)).clamp(max=cells - 1)
    return (torch.arange(cells) == wanted[:, None])[None, None]


def by_turns(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *others: float) -> tuple[Tensor, Tensor | None]:
    """Attention in which the two rows of such a bias are those of all queries."""
    if bias is not None and bias.shape[-2] == 2:
        bias = bias[:, :, torch.arange(q.shape[-2]) % 2]
    return attend(q, k, v, bias, *others)


def only_its_line(read: RowColumnDecoupledAttention, query: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
    line = F.one_hot(alternating(COLUMNS if key.shape[1] in WIDTHS else ROWS, query.shape[1]), key.shape[1]).to(query)
    return line.expand(len(query), read.heads, -1, -1)


def at_the_cell(read: nn.Module, given: tuple) -> tuple:
    """The same with references that are the cell's centre, or a box around it; the corner where the nearest whole number is read."""
    content, look, memory, trace = given
    level = read.level if isinstance(read, SemanticAlignedAttention) else 0
    h, w = memory.shapes[level]
    middle = 0.0 if getattr(read, "discrete", False) else 0.5
    cells = (alternating(COLUMNS, content.shape[1]) + middle) / w, (alternating(ROWS, content.shape[1]) + middle) / h
    centre = torch.stack(cells, -1)
    centre = centre / memory.valid_ratios[:, level, None]
    reference = torch.cat((centre, look.reference[..., 2:].expand(len(centre), -1, -1)), -1)
    return content, replace(look, reference=reference), memory, trace


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_planted_pattern_comes_back(system, monkeypatch):
    """In the trace of a padded batch: each query's cell, evenly over the pixels that it covers."""
    name, options = SYSTEMS[system]
    model = shaken(create(name, **options), 0.05).eval()
    plant(model, monkeypatch)
    with torch.no_grad():
        trace = model(*batch(*SIZES), trace=True).trace
    for layer in trace.layers:
        for image in range(len(SIZES)):
            heat = layer.heatmaps(QUERIES, SMALL, image, heads=True)
            for i, query in enumerate(QUERIES):
                expected, lost = planted(layer, image, query)
                torch.testing.assert_close(heat.map[i].double(), expected.expand_as(heat.map[i]), atol=1e-4, rtol=0)
                torch.testing.assert_close(heat.lost[i], torch.full_like(heat.lost[i], lost), atol=1e-4, rtol=0)
        if layer.salient_points is not None:
            ratio, (h, w) = layer.memory.valid_ratios[:, 0], layer.memory.shapes[0]
            points = layer.salient_points * ratio[:, None, None]
            for query in QUERIES:
                cell = [(COLUMNS[query % 2] + 0.5) / w, (ROWS[query % 2] + 0.5) / h]
                assert points[:, query].flatten(0, 1).amax(0).tolist() == pytest.approx(cell, abs=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_explain_gives_the_planted_pattern(system, monkeypatch):
    """One image, float32, at the map's size and at the image's own."""
    name, options = SYSTEMS[system]
    model = shaken(create(name, **options), 0.05).eval()
    plant(model, monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZES[0], 3), dtype=np.uint8)
    explanation = explain(Detector(model, ["disc", "square", "triangle"], [1, 2, 3], Preprocessing(SIZES[0][0])), Image.fromarray(pixels))
    for i, layer in enumerate(explanation.trace.layers):
        for query in QUERIES:
            expected, _ = planted(layer, 0, query)
            torch.testing.assert_close(explanation.heatmap(query, i, SMALL).map.double(), expected, atol=1e-4, rtol=0)
            (h, w), row, column = layer.memory.shapes[0], ROWS[query % 2], COLUMNS[query % 2]
            y, x = (explanation.heatmap(query, i).map > 1e-6).nonzero(as_tuple=True)
            assert [int(y.min()), int(y.max()) + 1] == [row * SIZES[0][0] // h, (row + 1) * SIZES[0][0] // h]
            assert [int(x.min()), int(x.max()) + 1] == [column * SIZES[0][1] // w, (column + 1) * SIZES[0][1] // w]


def planted(layer: LayerTrace, image: int, query: int) -> tuple[Tensor, float]:
    masses = [torch.zeros(shape, dtype=torch.float64) for shape in layer.memory.shapes]
    masses[0][ROWS[query % 2], COLUMNS[query % 2]] = 1
    return spread(layer.memory, image, masses, SMALL)
