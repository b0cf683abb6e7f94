"""SAM-DETR where no reference numbers are: against plain loops written from the paper, and what its options promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import boxquery as bq
from boxquery.models.sam_detr import locate, refine
from boxquery.official import sam_detr as authors
from boxquery.parts.attention.semantic_aligned import SemanticAlignedAttention, crop
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.heads import Head
from boxquery.parts.layers import reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.positions import SinePosition, SingleSinePosition
from boxquery.parts.state import QueryState
from boxquery.parts.trace import LayerTrace
from tests.models.builders import batch, create, shaken

DIM, HEADS, QUERIES = 16, 4, 5
#: cells (h, w) of three levels; in the second image the last column and row of the coarsest is padding, and as much of the others
SHAPES = ((12, 16), (6, 8), (3, 4))


def memory(levels: int) -> Memory:
    shapes = SHAPES[-levels:]
    masks = []
    for h, w in shapes:
        mask = torch.zeros(2, h, w, dtype=torch.bool)
        mask[1, :, w * 3 // 4 :] = True
        mask[1, h * 2 // 3 :] = True
        masks.append(mask.flatten(1))
    size = sum(h * w for h, w in shapes)
    generator = torch.Generator().manual_seed(0)
    tokens, position = (torch.randn(2, size, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    ratios = torch.tensor([[1.0, 1.0], [3 / 4, 2 / 3]], dtype=torch.float64)[:, None].expand(-1, levels, -1)
    return Memory(tokens, position, torch.cat(masks, 1), shapes, ratios, torch.tensor([[128.0, 96.0], [96.0, 64.0]]).double())


def some_queries(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Content [2, Q, D] and boxes [2, Q, 4]: small, large, and over the image's edge."""
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(2, QUERIES, DIM, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, QUERIES, 4, generator=generator, dtype=torch.float64)
    boxes[0, 0] = torch.tensor([0.5, 0.5, 0.01, 0.02])
    boxes[1, 1] = torch.tensor([0.02, 0.97, 0.9, 0.8])
    return content, boxes


def part(**options) -> SemanticAlignedAttention:
    torch.manual_seed(2)
    module = SemanticAlignedAttention(DIM, HEADS, **options)
    reset_transformer(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.double().eval()


def bilinear_inside(cells: Tensor, y: float, x: float) -> Tensor:
    """RoIAlign's sample of [h, w, D] at cell indices: held at the border for up to a cell outside, nothing beyond."""
    h, w, dim = cells.shape
    if y < -1 or y > h or x < -1 or x > w:
        return torch.zeros(dim, dtype=cells.dtype)
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
    below, right = min(top + 1, h - 1), min(left + 1, w - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * cells[top, left] + dx * cells[top, right]
    lower = (1 - dx) * cells[below, left] + dx * cells[below, right]
    return (1 - dy) * upper + dy * lower


def slow_crop(cells: Tensor, box: list[float], ratio: list[float]) -> Tensor:
    """[h, w, D] under a cxcywh box of the unpadded extent -> [7, 7, D]: each a mean over a grid of samples, one for a cell of its size."""
    h, w, dim = cells.shape
    across, down = w * ratio[0], h * ratio[1]
    left, top = (box[0] - box[2] / 2) * across - 0.5, (box[1] - box[3] / 2) * down - 0.5
    width, height = box[2] * across / 7, box[3] * down / 7
    columns, rows = math.ceil(width), math.ceil(height)
    out = torch.zeros(7, 7, dim, dtype=cells.dtype)
    for i in range(7):
        for j in range(7):
            for row in range(rows):
                for column in range(columns):
                    y, x = top + (i + (row + 0.5) / rows) * height, left + (j + (column + 0.5) / columns) * width
                    out[i, j] += bilinear_inside(cells, y, x) / (rows * columns)
    return out


def bilinear_zeros(crops: Tensor, x: float, y: float) -> Tensor:
    """[7, 7, D] at (x, y) in [-1, 1] of its extent, zeros outside."""
    x, y = (x + 1) / 2 * 7 - 0.5, (y + 1) / 2 * 7 - 0.5
    out = torch.zeros(crops.shape[-1], dtype=crops.dtype)
    for row in range(7):
        for column in range(7):
            out += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row)) * crops[row, column]
    return out


def slow_sine(x: float, y: float) -> Tensor:
    half, out = DIM // 2, []
    for number in (y, x):
        for i in range(half):
            angle = 2 * math.pi * number / 10000 ** (2 * (i // 2) / half)
            out.append(math.cos(angle) if i % 2 else math.sin(angle))
    return torch.tensor(out, dtype=torch.float64)


def two_layers(mlp, x: Tensor) -> Tensor:
    first, second = mlp.layers
    return second.weight @ (first.weight @ x + first.bias).clamp(min=0) + second.bias


@torch.no_grad()
def slow_attention(
    module: SemanticAlignedAttention, content: Tensor, box: list[float], level: Memory, image: int
) -> tuple[Tensor, list[list[float]]]:
    """One query: [D] -> [D], and the salient point of each head in [0, 1]."""
    (h, w), ratio = level.shapes[0], level.valid_ratios[image, 0].tolist()
    crops = slow_crop(level.tokens[image].view(h, w, DIM), box, ratio)
    # one feature after the other, each with its 49 cells
    squeezed = torch.stack(
        [(module.squeeze.weight[:, :, 0, 0] @ crops[i, j] + module.squeeze.bias).clamp(min=0) for i in range(7) for j in range(7)]
    )
    found = squeezed.T.flatten()
    for step, layer in enumerate(layer for layer in module.points if hasattr(layer, "weight")):
        found = layer.weight @ (found.clamp(min=0) if step else found) + layer.bias
    size, out, points = DIM // HEADS, [], []
    for head in range(HEADS):
        x, y = (math.tanh(float(found[2 * head + i])) for i in range(2))
        point = [box[0] + 0.5 * box[2] * x, box[1] + 0.5 * box[3] * y]
        points.append(point)
        own, values = slice(head * DIM, (head + 1) * DIM), slice(head * size, (head + 1) * size)
        feature = bilinear_zeros(crops, x, y) * torch.sigmoid(
            module.feature_weights.weight[own] @ content + module.feature_weights.bias[own]
        )
        value = module.value.weight[values], module.value.bias[values]
        if not module.attention:
            out.append(value[0] @ feature + value[1])
            continue
        at = slow_sine(*point) * torch.sigmoid(module.position_weights.weight[own] @ content + module.position_weights.bias[own])
        q = module.query_content.weight @ feature + module.query_content.bias + two_layers(module.query_position, at)
        logits, read_here = [], []
        for cell in range(h * w):
            if bool(level.mask[image, cell]):
                continue
            token = level.tokens[image, cell]
            k = module.key_content.weight @ token + module.key_content.bias + two_layers(module.key_position, level.position[image, cell])
            logit = q @ k / math.sqrt(DIM)
            if module.gaussian:
                sx, sy = (float(found[2 * HEADS + 2 * head + i]) for i in range(2))
                dx = cell % w + 0.5 - point[0] * ratio[0] * w
                dy = cell // w + 0.5 - point[1] * ratio[1] * h
                logit = logit - (sx**2 * dx**2 + sy**2 * dy**2) / 8
            logits.append(logit)
            read_here.append(value[0] @ token + value[1])
        weights = torch.stack(logits).softmax(0)
        out.append(sum(a * v for a, v in zip(weights, read_here, strict=True)))
    return module.out_proj.weight @ torch.cat(out) + module.out_proj.bias, points


@pytest.mark.parametrize(
    ("options", "levels"),
    [({}, 1), ({"gaussian": True}, 1), ({"attention": False}, 1), ({"level": 1}, 3), ({"level": 2, "gaussian": True}, 3)],
    ids=["plain", "gaussian", "without-attention", "middle-level", "coarse-level-gaussian"],
)
@torch.no_grad()
def test_attention_is_the_slow_formula(options, levels):
    module, regions = part(**options), memory(levels)
    content, boxes = some_queries()
    trace = LayerTrace(memory=regions)
    ours = module(content, QueryGeometry(reference=boxes), regions, trace)
    level = regions.level(module.level)
    assert trace.memory.shapes == level.shapes
    for image in range(2):
        for query in range(QUERIES):
            slow, points = slow_attention(module, content[image, query], boxes[image, query].tolist(), level, image)
            torch.testing.assert_close(ours[image, query], slow, atol=1e-10, rtol=0)
            torch.testing.assert_close(trace.salient_points[image, query], torch.tensor(points).double(), atol=1e-6, rtol=0)


@torch.no_grad()
def test_other_levels_are_not_attended_to():
    regions, (content, boxes) = memory(3), some_queries()
    sizes = [h * w for h, w in SHAPES]
    for level in range(3):
        module = part(level=level)
        noise = [torch.zeros(2, n, DIM).double() if i == level else torch.randn(2, n, DIM).double() for i, n in enumerate(sizes)]
        other = regions.with_tokens(regions.tokens + torch.cat(noise, 1))
        assert torch.equal(module(content, QueryGeometry(reference=boxes), regions), module(content, QueryGeometry(reference=boxes), other))


@pytest.mark.parametrize(("layers", "levels"), [(6, [2, 2, 1, 1, 0, 0]), (3, [2, 1, 0]), (4, [2, 2, 1, 0]), (1, [2])])
def test_levels_from_coarse_to_fine(layers, levels):
    model = create("sam-detr", levels=3, dilation=False, decoder_layers=layers)
    assert [layer.read.level for layer in model.layers] == levels
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 128, 192), trace=True)
    assert [layer.memory.shapes for layer in out.trace.layers] == [((16 >> level, 24 >> level),) for level in levels]


@pytest.mark.parametrize(("options", "normed"), [({}, False), ({"neck_norm": True}, True), ({"levels": 3, "dilation": False}, True)])
def test_neck_norm(options, normed):
    model = create("sam-detr", **options)
    assert len(model.neck.projections) == options.get("levels", 1)
    assert all(any(isinstance(m, torch.nn.GroupNorm) for m in p) == normed for p in model.neck.projections)


def test_points_are_trained_through_features_alone():
    """Only the features (and the Gaussians) train the points, and nothing trains the boxes."""
    content, boxes = some_queries()
    boxes.requires_grad_()
    module, regions = part(), memory(1)
    torch.nn.init.zeros_(module.query_content.weight)
    module(content, QueryGeometry(reference=boxes), regions).sum().backward()
    assert boxes.grad is None
    assert module.position_weights.weight.grad.any()
    assert not module.points[-1].weight.grad.any()
    module = part(gaussian=True)
    torch.nn.init.zeros_(module.query_content.weight)
    module(content, QueryGeometry(reference=boxes), regions).sum().backward()
    assert (module.points[-1].weight.grad.abs().sum(1) > 0).all()


def test_published_sizes():
    """Parameters in millions (the authors' README); several levels have half as wide feed-forward networks in the encoder."""
    for options, millions in (({}, 58), ({"smca": True}, 58), ({"levels": 3}, 55)):
        with torch.device("meta"):
            model = bq.create_model("sam-detr", classes=91, **options)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_references_are_not_clamped():
    """Predictions are measured from within 1e-5 of the edges; the next reference is not."""
    head = shaken(Head(DIM, 3), 0.1).double()
    reference = torch.tensor([[[20.0, -20.0, 1.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    content = torch.randn(1, 1, DIM, dtype=torch.float64, requires_grad=True)
    state = QueryState(content=content, reference=reference, box_anchor=reference)
    moved = head.boxes(content)
    predicted = head.box(content, state.box_anchor)
    limit = math.log((1 - 1e-5) / 1e-5)
    torch.testing.assert_close(predicted - moved, torch.tensor([[[limit, -limit, 1.0, -1.0]]]).double(), atol=1e-4, rtol=0)
    after = refine(state, predicted, head)
    torch.testing.assert_close(after.reference, (reference + moved).detach(), atol=0, rtol=0)
    assert after.box_anchor is after.reference
    assert not after.reference.requires_grad


def test_queries_see_each_others_centres():
    """The sine of (y, x) alone: neither size nor gradient."""
    logits = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    state, geometry = locate(QueryState(content=torch.zeros(1, 2, DIM).double(), reference=logits), memory(1), 0)
    assert state.reference is logits
    for query in range(2):
        x, y = logits[0, query, :2].sigmoid().tolist()
        torch.testing.assert_close(geometry.self_position[0, query], slow_sine(x, y), atol=1e-12, rtol=0)
    assert not geometry.self_position.requires_grad


def test_positions():
    """On the image the table is Deformable DETR's to rounding; beyond it, the angle that float32 gives in the published order."""
    padding = torch.zeros(1, 5, 7, dtype=torch.bool)
    padding[:, :, 5:] = True
    padding[:, 4:] = True
    like = torch.zeros(1, dtype=torch.float64)
    ours, theirs = SingleSinePosition(32)(padding, like), SinePosition(32, offset=0.5)(padding, like)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours[:, :4, :5], theirs[:, :4, :5], atol=5e-6, rtol=0)
    one = np.float32
    beyond = one(0 - 0.5) / ((one(0 - 0.5) + one(1e-6)) + one(0.5)) * one(2 * math.pi)
    assert beyond < -3e6
    # y first: in a column of padding, the first frequency
    np.testing.assert_allclose(ours[0, 0, 6, :2], [math.sin(beyond), math.cos(beyond)], atol=1e-5)


@pytest.fixture(scope="module", params=[{}, {"smca": True}, {"cross_attention": False}, {"levels": 3, "dilation": False}])
def still(request) -> bq.models.base.DetectionTransformer:
    """A model whose boxes stay where its queries put them."""
    model = shaken(create("sam-detr", **request.param)).double().eval()
    for head in model.heads:
        torch.nn.init.zeros_(head.boxes.layers[-1].weight)
        torch.nn.init.zeros_(head.boxes.layers[-1].bias)
    return model


@torch.no_grad()
def logits(model, boxes: list[float], seed: int) -> Tensor:
    """Logits for the padded image, with noise under its padding and every query near the given cxcywh box."""
    images, mask = batch((256, 320), (160, 192), dtype=torch.float64)
    spread = torch.linspace(-0.05, 0.05, len(model.queries.anchors)).double()[:, None]
    model.queries.anchors.copy_(torch.tensor(boxes).double().logit() + spread)

    def under(module, given, maps):
        generator, out = torch.Generator().manual_seed(seed), []
        for features in maps:
            padding = F.interpolate(mask[:, None].double(), size=features.shape[-2:]).bool()
            out.append(torch.where(padding, torch.randn(features.shape, generator=generator).double(), features))
        return out

    hook = model.neck.register_forward_hook(under)
    out = model(images, mask).logits[:, 1]
    hook.remove()
    return out


def test_padding_counts_where_a_box_reaches_it(still):
    """The cause for its entry in ``AFFECTED_BY_PADDING``: RoIAlign averages whatever lies under the box; everything else is masked."""
    inside, over = [0.4, 0.4, 0.3, 0.3], [0.8, 0.8, 0.5, 0.5]
    torch.testing.assert_close(logits(still, inside, 3), logits(still, inside, 4), atol=1e-9, rtol=0)
    assert (logits(still, over, 3) - logits(still, over, 4)).abs().max() > 1e-4


@torch.no_grad()
def test_crop_of_a_box_without_area():
    regions = memory(1)
    boxes = torch.tensor([0.5, 0.5, 0.0, 0.0]).double().expand(2, 1, 4)
    assert bool(crop(regions, boxes).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_close(dtype):
    """The whole part in one precision; its output stays near float64's."""
    content, boxes = some_queries()
    regions = memory(1)
    wanted = part(gaussian=True)(content, QueryGeometry(reference=boxes), regions)
    low = replace(
        regions.with_tokens(regions.tokens.to(dtype)), position=regions.position.float(), valid_ratios=regions.valid_ratios.float()
    )
    ours = part(gaussian=True).to(dtype)(content.to(dtype), QueryGeometry(reference=boxes.float()), low)
    assert ours.dtype == dtype
    assert (ours.double() - wanted).abs().max() < (0.2 if dtype == torch.bfloat16 else 1e-4) * wanted.abs().max()


@torch.no_grad()
def test_trace():
    images, mask = batch((96, 128), (64, 80))
    for options in ({}, {"cross_attention": False}):
        model = shaken(create("sam-detr", **options)).eval()
        heads = model.config["options"]["heads"]
        for layer in model(images, mask, trace=True).trace.layers:
            assert layer.salient_points.shape == (*layer.reference.shape[:2], heads, 2)
            centre, size = layer.reference[:, :, None].chunk(2, -1)
            assert bool(((layer.salient_points - centre).abs() <= size / 2 + 1e-6).all())
            if options:
                assert layer.attention is None
                inside = layer.locations[:, :, :, 0, 0] / layer.memory.valid_ratios[:, :, None]
                torch.testing.assert_close(inside, layer.salient_points)
                assert bool((layer.weights == 1).all())
            else:
                assert layer.locations is None


@pytest.mark.parametrize("levels", [-1, 0, 2, 4])
def test_wrong_levels(levels):
    with pytest.raises(bq.UserError, match=rf"^sam-detr: levels={levels}: must be 1 .* or 3"):
        create("sam-detr", levels=levels)


@pytest.mark.parametrize(
    "options",
    [{}, {"smca": True}, {"neck_norm": True}, {"levels": 3, "neck_norm": True, "smca": True}],
    ids=lambda o: "-".join(o) or "paper",
)
def test_options_from_the_authors_tensors(options):
    """Sizes of all that tells the options apart, under the authors' names."""
    layers, heads = 2, 8
    levels = options.get("levels", 1)
    tensors = {f"transformer.{side}.layers.{layers - 1}.linear1.bias": torch.zeros(48) for side in ("encoder", "decoder")}
    tensors["transformer.encoder.layers.0.linear1.bias"] = torch.zeros(48 if levels == 1 else 24)
    tensors["transformer.decoder.layers.0.linear1.bias"] = torch.zeros(48)
    tensors["transformer.decoder.layers.0.linear1.weight"] = torch.zeros(48, 64)
    tensors["transformer.decoder.layers.0.point2.6.bias"] = torch.zeros(heads * (4 if options.get("smca") else 2))
    tensors |= {
        "class_embed.0.weight": torch.zeros(91, 64),
        "class_embed.0.bias": torch.zeros(91),
        "query_embed.weight": torch.zeros(30, 4),
    }
    if levels > 1:
        tensors["transformer.level_embed"] = torch.zeros(levels, 64)
    if options.get("neck_norm"):
        tensors["input_proj.0.1.weight"] = torch.zeros(64)
    classes, found = authors.options(tensors)
    wanted = {"levels": 1, "neck_norm": False, "smca": False, **options}
    sizes = {"encoder_layers": layers, "decoder_layers": layers, "ffn_dim": 48, "hidden_dim": 64, "num_queries": 30, "backbone": "resnet50"}
    assert (classes, found) == (91, wanted | sizes)
