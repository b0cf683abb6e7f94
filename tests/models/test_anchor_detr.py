"""Anchor DETR against formulas written out in loops: rows and columns, positions, points and patterns, and what padding does."""

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import boxquery as bq
from boxquery.models.anchor_detr import PatternQueries, Positions
from boxquery.models.base import DetectionTransformer
from boxquery.official import authors_of, rename
from boxquery.parts.attention.rcda import RowColumnDecoupledAttention, at_axes, weigh_rows_and_columns
from boxquery.parts.geometry import QueryGeometry, locate_at_position
from boxquery.parts.heads import Head
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace
from tests.models.builders import batch, create, shaken
from tests.models.test_official import attention, both, mlp
from tests.models.test_sweep import SIZES, with_garbage
from tests.parts.memories import memory

DIM, HEADS, QUERIES = 16, 2, 5
SHAPES = [(4, 6), (6, 4), (5, 5), (1, 3), (3, 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_axes(*shape: int, padded: bool = True) -> Memory:
    """Two images, the second smaller; axes are random, since their meaning does not matter to the attention."""
    seen = memory((shape[0], shape[1]), padded=padded)
    across, down = (torch.randn(2, n, DIM, dtype=torch.float64, generator=seeded(n)) for n in (shape[1], shape[0]))
    return Memory(seen.tokens, None, seen.mask, seen.shapes, seen.valid_ratios, seen.extents, ((across, down),))


def slow_softmax(numbers: list[float]) -> list[float]:
    top = max(numbers)
    exp = [math.exp(n - top) for n in numbers]
    return [e / sum(exp) for e in exp]


def slow_factor(content, own_position, keys, position, weight, bias, rows: tuple[slice, slice], padding) -> Tensor:
    """[H, Q, n] of one image: content and own position [Q, D], keys [n, m, D] (m cells per line), position [n, D], padding [n]."""
    query, key = rows
    size = DIM // HEADS
    out = torch.zeros(HEADS, len(content), len(keys), dtype=torch.float64)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(content)):
            q = (weight[query] @ (content[i] + own_position[i]) + bias[query])[part]
            logits = []
            for line in range(len(keys)):
                # every cell is projected with its line's position, then the projections are averaged
                each = [(weight[key] @ (cell + position[line]) + bias[key])[part] for cell in keys[line]]
                mean = sum(each) / len(each)
                logits.append(-math.inf if padding[line] else float(q @ mean) / math.sqrt(size))
            out[head, i] = torch.tensor(slow_softmax(logits), dtype=torch.float64)
    return out


def slow_attention(module: RowColumnDecoupledAttention, content, axes, seen: Memory) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The attention's output [B, Q, D] in loops over images, heads, queries and cells, and each image's two factors."""
    (h, w), size = seen.shapes[0], DIM // HEADS
    weight, bias = module.in_proj.weight.detach(), module.in_proj.bias.detach()
    q_row, q_col, k_row, k_col, value = (slice(i * DIM, (i + 1) * DIM) for i in range(5))
    across, down = seen.axes[0]
    out, factors = torch.zeros_like(content), []
    for b in range(len(content)):
        cells = seen.tokens[b].view(h, w, DIM)
        mask = torch.zeros(h, w, dtype=torch.bool) if seen.mask is None else seen.mask[b].view(h, w)
        row = slow_factor(content[b], axes[0][b], cells.transpose(0, 1), across[b], weight, bias, (q_row, k_row), mask[0])
        column = slow_factor(content[b], axes[1][b], cells, down[b], weight, bias, (q_col, k_col), mask[:, 0])
        factors.append((row, column))
        for i in range(content.shape[1]):
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                for y in range(h):
                    for x in range(w):
                        v = (weight[value] @ cells[y, x] + bias[value])[part]
                        out[b, i, part] += row[head, i, x] * column[head, i, y] * v
        out[b] = out[b] @ module.out_proj.weight.detach().T + module.out_proj.bias.detach()
    return out, factors


def an_attention(dropout: float = 0.0) -> RowColumnDecoupledAttention:
    torch.manual_seed(0)
    module = RowColumnDecoupledAttention(DIM, HEADS, dropout).double()
    nn.init.normal_(module.in_proj.bias)
    nn.init.normal_(module.out_proj.bias)
    return module


def some_queries() -> tuple[Tensor, QueryGeometry]:
    content, across, down = torch.randn(3, 2, QUERIES, DIM, dtype=torch.float64, generator=seeded(7))
    return content, QueryGeometry(axes=(across, down))


class TestRowColumnRead:
    @torch.no_grad()
    @pytest.mark.parametrize("padded", [True, False])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_decoder(self, shape, padded):
        module, seen, (content, geometry) = an_attention(), with_axes(*shape, padded=padded), some_queries()
        trace = LayerTrace(memory=seen)
        out = module(content, geometry, seen, trace)
        expected, factors = slow_attention(module, content, geometry.axes, seen)
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
        ((row, column),) = trace.attention
        for b, (slow_row, slow_column) in enumerate(factors):
            torch.testing.assert_close(row[b], slow_row, atol=1e-12, rtol=0)
            torch.testing.assert_close(column[b], slow_column, atol=1e-12, rtol=0)
        assert torch.equal(module(content, geometry, seen), out)

    @torch.no_grad()
    @pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
    def test_encoder_asks_from_each_cells_own_column_and_row(self, shape):
        module, seen = an_attention(), with_axes(*shape)
        (across, down), (h, w) = seen.axes[0], seen.shapes[0]
        own = [torch.stack([line[:, x if line is across else y] for y in range(h) for x in range(w)], 1) for line in (across, down)]
        expected, _ = slow_attention(module, seen.tokens, own, seen)
        torch.testing.assert_close(module(seen.tokens, at_axes(seen), seen), expected, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("shape", [(3, 4), (4, 3)])
    def test_gradients(self, shape):
        h, w = shape
        row = torch.rand(2, 2, 3, w, dtype=torch.float64, generator=seeded()).requires_grad_()
        column = torch.rand(2, 2, 3, h, dtype=torch.float64, generator=seeded(1)).requires_grad_()
        value = torch.randn(2, h, w, 2, 2, dtype=torch.float64, generator=seeded(2)).requires_grad_()
        assert torch.autograd.gradcheck(weigh_rows_and_columns, (row, column, value))

    @torch.no_grad()
    @pytest.mark.parametrize("shape", [(7, 11), (11, 7)])
    def test_no_cell_has_a_weight_of_its_own(self, shape):
        """13 queries on 7 x 11 cells: nothing is as large as their attention [B, H, 13, 7, 11], and the longer side goes first."""
        module, seen = an_attention(), with_axes(*shape)
        content = torch.randn(2, 13, DIM, dtype=torch.float64, generator=seeded())
        with Sizes() as made:
            module(content, QueryGeometry(axes=(content, content)), seen)
        assert max(made.sizes) == 2 * 13 * 7 * DIM
        assert not any(13 in shape and (77 in shape or {7, 11} <= set(shape)) for shape in made.shapes)

    def test_dropout_is_on_the_weights(self):
        module, seen, (content, geometry) = an_attention(dropout=0.5), with_axes(4, 6), some_queries()
        torch.manual_seed(0)
        dropped = module(content, geometry, seen)
        assert not torch.allclose(dropped, module.eval()(content, geometry, seen))
        assert torch.equal(module(content, geometry, seen), an_attention().eval()(content, geometry, seen))

    def test_heatmap_is_the_mean_of_the_heads_products(self):
        module, seen, (content, geometry) = an_attention(), with_axes(4, 6), some_queries()
        trace = LayerTrace(memory=seen)
        module(content, geometry, seen, trace)
        ((row, column),) = trace.attention
        product = torch.einsum("bnqh,bnqw->bnqhw", column, row)
        for image in range(2):
            heat = trace.heatmap(3, (9, 7), image)
            expected = LayerTrace(memory=seen, attention=(product,)).heatmap(3, (9, 7), image)
            torch.testing.assert_close(heat.map, expected.map)
            assert heat.lost == pytest.approx(expected.lost, abs=1e-12)


class Sizes(TorchDispatchMode):
    """Shapes and sizes of everything that is computed."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.shapes.append(tuple(out.shape))
            self.sizes.append(out.numel())
        return out


def slow_sine(number: float, features: int) -> list[float]:
    out = []
    for i in range(features):
        angle = 2 * math.pi * number / 10000 ** (2 * (i // 2) / features)
        out.append(math.cos(angle) if i % 2 else math.sin(angle))
    return out


def slow_mlp(mlp: nn.Module, numbers: list[float]) -> Tensor:
    first, second = mlp.layers
    hidden = first.weight @ torch.tensor(numbers, dtype=torch.float64) + first.bias
    return second.weight @ hidden.clamp(min=0) + second.bias


PADDING = torch.tensor([[[0, 0, 0, 0]] * 3, [[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]], dtype=torch.bool)
#: valid columns and rows of each image
VALID = [(4, 3), (3, 2)]


def positions(axes: bool) -> Positions:
    torch.manual_seed(0)
    return Positions(DIM, axes).double()


class TestPositions:
    like = torch.zeros(1, dtype=torch.float64)

    @torch.no_grad()
    def test_columns_and_rows(self):
        part = positions(axes=True)
        across, down = part(PADDING, self.like)
        assert across.shape == (2, 4, DIM)
        assert down.shape == (2, 3, DIM)
        for image, (columns, rows) in enumerate(VALID):
            for line, count in ((across, columns), (down, rows)):
                for i in range(count):
                    torch.testing.assert_close(line[image, i], slow_mlp(part.axis, slow_sine((i + 0.5) / count, DIM)))

    @torch.no_grad()
    def test_cells(self):
        part = positions(axes=False)
        table = part(PADDING, self.like)
        assert table.shape == (2, 3, 4, DIM)
        for image, (columns, rows) in enumerate(VALID):
            for y in range(rows):
                for x in range(columns):
                    numbers = slow_sine((y + 0.5) / rows, DIM // 2) + slow_sine((x + 0.5) / columns, DIM // 2)
                    torch.testing.assert_close(table[image, y, x], slow_mlp(part.point, numbers))

    @torch.no_grad()
    @pytest.mark.parametrize("axes", [True, False])
    def test_locate(self, axes):
        part, seen = positions(axes), memory((4, 6), dim=DIM)
        torch.manual_seed(1)
        queries = PatternQueries(4, 3, DIM, part.of_points).double()
        state, geometry = locate_at_position(queries(seen, None), seen, 1)
        assert geometry.reference.shape == (2, 12, 2)
        for i in range(12):
            x, y = queries.points[i % 4].tolist()
            assert geometry.reference[1, i].tolist() == pytest.approx([x, y], abs=1e-12)
            numbers = slow_sine(y, DIM // 2) + slow_sine(x, DIM // 2)
            torch.testing.assert_close(geometry.position[0, i], slow_mlp(part.point, numbers))
            for line, number in zip(geometry.axes or (), (x, y), strict=False):
                torch.testing.assert_close(line[0, i], slow_mlp(part.axis, slow_sine(number, DIM)))
            assert torch.equal(state.content[1, i], queries.patterns[i // 4])
        assert (geometry.axes is None) != axes

    def test_one_set_of_parameters_for_image_and_queries(self):
        model = create("anchor-detr")
        names = [n for n in model.state_dict() if ".point.layers" in n or ".axis.layers" in n]
        assert names == [
            f"tokens.position.{part}.layers.{i}.{kind}" for part in ("point", "axis") for i in (0, 1) for kind in ("weight", "bias")
        ]
        assert len(list(model.parameters())) == len(list(model.named_parameters(remove_duplicate=False)))

    @torch.no_grad()
    def test_a_copy_encodes_with_its_own_parameters(self):
        """The moving average of training is a deep copy."""
        model = create("anchor-detr").eval()
        images, mask = batch(*SIZES)
        before = model(images, mask).boxes
        twin = shaken(copy.deepcopy(model), by=0.1)
        assert twin.queries.encode.__self__ is twin.tokens.position
        assert torch.equal(model(images, mask).boxes, before)
        assert not torch.allclose(twin(images, mask).boxes, before)


class TestQueries:
    @pytest.mark.parametrize(("count", "side"), [(300, 17), (40, 6), (42, 6), (43, 7), (9, 3), (1, 1), (2, 1)])
    def test_grid(self, count, side):
        state = PatternQueries(count, 2, DIM, positions(False).of_points, learned=False).double()(memory((2, 2), dim=DIM), None)
        expected = [[(i + 0.5) / side, (j + 0.5) / side] for i in range(side) for j in range(side)]
        torch.testing.assert_close(state.box_anchor[1].sigmoid(), torch.tensor(2 * expected, dtype=torch.float64), atol=1e-14, rtol=0)
        assert state.content.shape == (2, 2 * side * side, DIM)

    @pytest.mark.parametrize(("num_queries", "counts"), [(40, [36, 36, 36]), (43, [49, 49, 49]), ([40, 38, 20], [36, 36, 20])])
    def test_a_grid_has_its_own_number_of_queries(self, num_queries, counts):
        """It is the nearest square's, for everything that depends on the number."""
        options = {"spatial_prior": "grid", "patterns": 2, "query_position": "learned", "decoder_layers": 3, "num_queries": num_queries}
        model = create("anchor-detr", **options).eval()
        assert model.num_queries_per_layer == tuple(2 * count for count in counts)
        assert model(*batch((96, 128))).logits.shape[:3] == (3, 1, 2 * counts[0])

    def test_grid_is_not_trained(self):
        model = create("anchor-detr", spatial_prior="grid", patterns=2)
        assert not any("points" in key for key in model.state_dict())
        assert model(torch.zeros(1, 3, 64, 96)).boxes.shape[2] == 36 * 2

    def test_boxes_are_measured_from_the_points(self):
        """Centre = sigmoid(mlp + log(max(p, 1e-5) / max(1 - p, 1e-5))), p within [0, 1], also for points that training drove outside."""
        torch.manual_seed(0)
        queries, head = PatternQueries(8, 2, DIM, positions(False).of_points).double(), Head(DIM, 3, size_bias=-2.0).double()
        given = [0.0, 1.0, -0.2, 1.3, 1e-6, 1 - 1e-6, 0.3, 0.999]
        with torch.no_grad():
            queries.points[:, 0] = torch.tensor(given)
            nn.init.normal_(head.boxes.layers[-1].weight)
        state = queries(memory((2, 2), dim=DIM), None)
        boxes = head.box(state.content, state.box_anchor).sigmoid()
        raw = head.boxes(state.content)
        for i in range(16):
            p = min(max(queries.points[i % 8, 0].item(), 0), 1)
            expected = raw[0, i, 0] + math.log(max(p, 1e-5) / max(1 - p, 1e-5))
            assert boxes[0, i, 0].item() == pytest.approx(expected.sigmoid().item(), abs=1e-7)
            assert boxes[0, i, 2].item() == pytest.approx(raw[0, i, 2].sigmoid().item(), abs=1e-12)
        boxes.sum().backward()
        assert bool(queries.points.grad.isfinite().all())
        assert queries.points.grad[:4, 0].tolist() == [0, 0, 0, 0]
        assert bool((queries.points.grad[6:] != 0).all())

    def test_points_are_trained_by_boxes_and_by_positions(self):
        model = shaken(create("anchor-detr")).double()
        out = model(batch((64, 96), dtype=torch.float64)[0])
        (by_boxes,) = torch.autograd.grad(out.boxes[0].sum(), model.queries.points, retain_graph=True)
        (by_embeddings,) = torch.autograd.grad(out.logits.sum(), model.queries.points)
        assert by_boxes.norm() > 1e-6
        assert by_embeddings.norm() > 1e-6


@torch.no_grad()
def test_rows_and_columns_in_the_model():
    """The first encoder layer of a whole model: what each cell attended to, from the model's own tokens and mask, in loops."""
    model = shaken(create("anchor-detr", hidden_dim=32, heads=2)).double().eval()
    trace = model(*batch((64, 96), (48, 64), dtype=torch.float64), trace=True).trace.encoder[0]
    seen, module = trace.memory, model.encoder.layers[0].read
    (h, w), part = seen.shapes[0], model.tokens.position
    weight, bias = module.in_proj.weight, module.in_proj.bias
    ((row, column),) = trace.attention
    for b in range(2):
        cells, valid = seen.tokens[b].view(h, w, 32), ~seen.mask[b].view(h, w)
        columns, rows = int(valid[0].sum()), int(valid[:, 0].sum())
        for factor, start, count, lines in ((row, 0, columns, cells.transpose(0, 1)), (column, 1, rows, cells)):
            query, key = slice(32 * start, 32 * start + 32), slice(32 * (start + 2), 32 * (start + 3))
            places = torch.stack([slow_mlp(part.axis, slow_sine((i + 0.5) / count, 32)) for i in range(count)])
            keys = [(lines[i] + places[i]) @ weight[key].T + bias[key] for i in range(count)]
            for y in range(rows):
                for x in range(columns):
                    q = weight[query] @ (cells[y, x] + places[y if start else x]) + bias[query]
                    for head in range(2):
                        k = slice(16 * head, 16 * head + 16)
                        wanted = slow_softmax([float(q[k] @ key.mean(0)[k]) / 4 for key in keys])
                        ours = factor[b, head, y * w + x]
                        assert ours[:count].tolist() == pytest.approx(wanted, abs=1e-9)
                        assert not ours[count:].any()


@torch.no_grad()
def test_dense_attention_in_the_model():
    """The same with dense attention: queries and keys are token plus embedded point, in one softmax over the valid cells."""
    model = shaken(create("anchor-detr", hidden_dim=32, heads=2, attention="dense")).double().eval()
    trace = model(*batch((64, 96), (48, 64), dtype=torch.float64), trace=True).trace.encoder[0]
    seen, inner = trace.memory, model.encoder.layers[0].read.attention
    (h, w), part = seen.shapes[0], model.tokens.position
    weight, bias = inner.in_proj.weight, inner.in_proj.bias
    (attention,) = trace.attention
    for b in range(2):
        valid = ~seen.mask[b].view(h, w)
        columns, rows = int(valid[0].sum()), int(valid[:, 0].sum())
        placed = []
        for y in range(rows):
            for x in range(columns):
                numbers = slow_sine((y + 0.5) / rows, 16) + slow_sine((x + 0.5) / columns, 16)
                placed.append((y, x, seen.tokens[b, y * w + x] + slow_mlp(part.point, numbers)))
        for y, x, asking in placed:
            q = weight[:32] @ asking + bias[:32]
            for head in range(2):
                k = slice(16 * head, 16 * head + 16)
                wanted = slow_softmax([float(q[k] @ (weight[32:64] @ other + bias[32:64])[k]) / 4 for _, _, other in placed])
                ours = attention[b, head, y * w + x]
                assert ours[:rows, :columns].flatten().tolist() == pytest.approx(wanted, abs=1e-9)
                assert ours.sum().item() == pytest.approx(1, abs=1e-9)


@torch.no_grad()
def test_padding_affects_the_means_alone(monkeypatch):
    """Why the sweep excuses this model: with keys averaged over valid cells only, nothing depends on what lies under the padding."""
    model = shaken(create("anchor-detr")).double().eval()
    images, mask = batch(*SIZES, dtype=torch.float64)

    def logits(seed: int) -> Tensor:
        hook = model.neck.register_forward_hook(with_garbage(mask, seed))
        out = model(images, mask).logits
        hook.remove()
        return out

    assert (logits(3) - logits(4)).abs().max() > 1e-3

    def means_of_valid(self, memory: Memory) -> tuple[Tensor, Tensor]:
        ((cells,), (padding,)) = memory.maps(memory.tokens), memory.maps(memory.mask)
        valid = (~padding)[..., None].to(cells.dtype)
        return tuple((cells * valid).sum(side) / valid.sum(side).clamp(min=1) for side in (1, 2))

    monkeypatch.setattr(RowColumnDecoupledAttention, "means", means_of_valid)
    torch.testing.assert_close(logits(3), logits(4), atol=1e-9, rtol=0)


def test_start_values():
    """Packed in-projections are Xavier-uniform as one matrix, other linear maps keep torch's range; boxes start small."""
    torch.manual_seed(0)
    model = bq.create_model("anchor-detr", classes=3, backbone="resnet10t", encoder_layers=1, decoder_layers=1)
    layer, region = model.layers[0], model.encoder.layers[0]
    for linear, limit in (
        (region.read.in_proj, math.sqrt(6 / (256 + 5 * 256))),
        (layer.read.in_proj, math.sqrt(6 / (256 + 5 * 256))),
        (layer.self_attention.attention.in_proj, math.sqrt(6 / (256 + 3 * 256))),
        (layer.read.out_proj, 1 / 16),
        (layer.ffn.linear1, 1 / 16),
        (layer.ffn.linear2, 1 / 32),
        (model.tokens.position.point.layers[0], 1 / 16),
        (model.tokens.position.axis.layers[1], 1 / 16),
    ):
        assert linear.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
    assert not layer.read.in_proj.bias.any()
    assert not layer.read.out_proj.bias.any()
    assert bool(layer.ffn.linear1.bias.any())
    assert model.heads[0].boxes.layers[-1].bias.tolist() == [0, 0, -2, -2]
    assert bool(((model.queries.points >= 0) & (model.queries.points < 1)).all())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patterns": 0}, "patterns=0: must be at least 1"),
        ({"patterns": -1}, "patterns=-1"),
        ({"patterns": 1.5}, "patterns=1.5"),
        ({"hidden_dim": 48}, "hidden_dim=48: must be a multiple of 32"),
        ({"spatial_prior": "grids"}, "spatial_prior='grids': must be one of 'learned', 'grid'"),
        ({"attention": "RCDA"}, "attention='RCDA': must be one of 'rcda', 'dense'"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(bq.UserError) as raised:
        create("anchor-detr", **options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


SMALL: dict[str, Any] = {
    "backbone": "resnet10t", "hidden_dim": 32, "heads": 4, "ffn_dim": 48, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5,
}  # fmt: skip
OFFICIAL: dict[str, dict[str, Any]] = {"rcda": {}, "dense": {"attention": "dense"}, "grid": {"spatial_prior": "grid", "patterns": 2}}


def official_keys() -> list[str]:
    """As megvii-research/AnchorDETR names them (without the backbone); heads are listed once per layer."""
    encoder, decoder = "transformer.encoder_layers.0", [f"transformer.decoder_layers.{i}" for i in range(2)]
    keys = ["transformer.pattern.weight", "transformer.position.weight", *both("input_proj.0.0", "input_proj.0.1")]
    keys += both(*(f"transformer.adapt_pos{n}d.{i}" for n in (1, 2) for i in (0, 2)))
    for layer in (encoder, *decoder):
        keys += attention(f"{layer}.self_attn") + both(
            *(f"{layer}.{part}" for part in ("norm1", "ffn.linear1", "ffn.linear2", "ffn.norm2"))
        )
    for i, layer in enumerate(decoder):
        keys += attention(f"{layer}.cross_attn") + both(f"{layer}.norm2")
        keys += both(f"transformer.class_embed.{i}") + mlp(f"transformer.bbox_embed.{i}")
    return keys


def checkpoint(seed: int, **options: Any) -> tuple[DetectionTransformer, dict[str, Tensor]]:
    """A model of ours and the same weights under the authors' names."""
    torch.manual_seed(seed)
    model = bq.create_model("anchor-detr", classes=4, **SMALL, **options)
    rules = authors_of("anchor-detr").keys(model)
    own, tensors = model.state_dict(), {}
    for key in (*official_keys(), *(k for k in own if k.startswith("backbone."))):
        if (name := rename(key, rules)) in own:
            tensors[key] = own[name].clone()
        else:
            assert "adapt_pos1d" in key or "position" in key
    return model, tensors


@pytest.mark.parametrize("system", OFFICIAL)
class TestOfficial:
    def test_every_tensor_is_used(self, system):
        source, tensors = checkpoint(1, **OFFICIAL[system])
        if system == "dense":
            # the authors make this MLP in any case
            tensors["transformer.adapt_pos1d.0.weight"] = torch.zeros(32, 32)
        model, _ = checkpoint(2, **OFFICIAL[system])
        report = bq.load_official(model, tensors)
        assert report["constants"] == (["transformer.adapt_pos1d.0.weight"] if system == "dense" else [])
        aliases = set(tensors) - set(report["used"]) - set(report["constants"])
        assert aliases == {key for key in tensors if "_embed.1." in key}
        ours = model.state_dict()
        for key, value in source.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(value, ours[key]), key

    @pytest.mark.parametrize(
        "key", ["transformer.pattern.weight", "transformer.adapt_pos2d.2.bias", "transformer.decoder_layers.1.cross_attn.in_proj_weight"]
    )
    def test_missing(self, system, key):
        _, tensors = checkpoint(1, **OFFICIAL[system])
        del tensors[key]
        with pytest.raises(bq.UserError, match="missing: " + re.escape(key)):
            bq.load_official(checkpoint(2, **OFFICIAL[system])[0], tensors)

    def test_unknown(self, system):
        _, tensors = checkpoint(1, **OFFICIAL[system])
        tensors["transformer.decoder_layers.2.norm2.bias"] = torch.zeros(32)
        with pytest.raises(bq.UserError, match=r"not understood: transformer\.decoder_layers\.2\.norm2\.bias"):
            bq.load_official(checkpoint(2, **OFFICIAL[system])[0], tensors)


@pytest.mark.parametrize("attention", ["rcda", "dense"])
def test_options_from_the_tensors(attention):
    _, tensors = checkpoint(1, attention=attention, patterns=2)
    classes, options = authors_of("anchor-detr").options(tensors)
    assert classes == 4
    expected = {k: v for k, v in SMALL.items() if k not in ("backbone", "heads")}
    assert options == {**expected, "backbone": "resnet50", "attention": attention, "patterns": 2}
