"""SMCA-DETR where no reference numbers are: against plain loops written from the paper, and what its options promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.models.smca_detr import SMCAOptions, steps
from boxquery.official import smca_detr as authors
from boxquery.parts.attention.dense import DenseAttention
from boxquery.parts.attention.gaussian import GaussianLocate
from boxquery.parts.attention.scales import IntraScaleAttention, ScaleSelectionAttention
from boxquery.parts.backbone import Backbone
from boxquery.parts.geometry import QueryGeometry, locate_at_position
from boxquery.parts.heads import Head
from boxquery.parts.queries import ReferencePointQueries
from boxquery.parts.state import QueryState
from boxquery.parts.trace import LayerTrace
from tests.models.builders import batch, create, has_option, objects, presets, shaken
from tests.models.test_official import SMALL, checkpoint
from tests.parts.memories import DIM, memory

HEADS, QUERIES = 4, 5
#: maps of strides 16, 32 and 64
SHAPES = ((4, 6), (2, 3), (1, 2))
STEPS = (0.5, 1.0, 2.0)


def some_queries(seed: int = 1) -> QueryState:
    generator = torch.Generator().manual_seed(seed)
    content, position = (torch.randn(2, QUERIES, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    return QueryState(content=content, position=position)


def with_noise(module: nn.Module, seed: int = 2) -> nn.Module:
    """Double precision, and no parameter left at a start value."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return module


def linear(layer: nn.Module, x: Tensor) -> list[float]:
    """One vector through a linear map."""
    weight, bias = layer.weight, layer.bias
    return [sum(w * v for w, v in zip(row, x.tolist(), strict=True)) + b for row, b in zip(weight.tolist(), bias.tolist(), strict=True)]


def slow_gaussian(locate: GaussianLocate, query: Tensor, layer: int, centre: tuple[float, float], extent, levels) -> list[list[float]]:
    """Section 3.2 for one normed query [D]: per head, the exponent at every cell; ``levels`` are (step, h, w)."""
    offsets = linear(locate.offsets[layer], query)
    scales = linear(locate.scales[layer], query) if locate.kind != "type1" else []
    n = len(scales) // HEADS
    out = []
    for head in range(HEADS):
        cx = centre[0] * extent[0] / locate.stride + offsets[2 * head]
        cy = centre[1] * extent[1] / locate.stride + offsets[2 * head + 1]
        s = scales[n * head : n * (head + 1)]
        sx, sy, sxy = {0: (1, 1, 0), 1: (*s, *s, 0), 2: (*s, 0), 3: s}[n]
        row = []
        for step, h, w in levels:
            for i in range(h):
                for j in range(w):
                    dx, dy = j * step - cx, i * step - cy
                    row.append(-(sx**2 * dx**2 + sy**2 * dy**2 + sxy**2 * dx**2 * dy**2) / locate.smooth)
        out.append(row)
    return out


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["type1", "type2", "type3", "type4"])
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_gaussians(kind, layer, count):
    sizes, wide = (SHAPES[1:2], (1.0,)) if count == 1 else (SHAPES, STEPS)
    locate = with_noise(GaussianLocate(locate_at_position, DIM, HEADS, 2, kind=kind, smooth=3.0, stride=16, steps=wide))
    image, state = memory(*sizes), some_queries()
    given = torch.randn(2, QUERIES, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    after, geometry = locate(state if layer == 0 else replace(state, reference=given, box_anchor=given), image, layer)
    assert geometry.bias.shape == (2, HEADS, QUERIES, image.tokens.shape[1])
    norm = locate.norms[layer]
    for b, extent in enumerate(((96, 64), (64, 40))):
        for q in range(QUERIES):
            o = F.layer_norm(state.content[b, q] + state.position[b, q], (DIM,), norm.weight, norm.bias)
            logits = given[b, q]
            if layer == 0:
                hidden = o
                for i, map_ in enumerate(locate.centre.layers):
                    hidden = torch.tensor(linear(map_, hidden.relu() if i else hidden), dtype=torch.float64)
                logits = hidden
                torch.testing.assert_close(after.reference[b, q], logits)
            centre = [1 / (1 + math.exp(-v)) for v in logits.tolist()]
            torch.testing.assert_close(geometry.reference[b, q].tolist(), centre)
            levels = [(step, *shape) for step, shape in zip(wide, sizes, strict=True)]
            slow = slow_gaussian(locate, o, layer, tuple(centre), extent, levels)
            torch.testing.assert_close(geometry.bias[b, :, q], torch.tensor(slow, dtype=torch.float64))


def test_the_centre_is_predicted_once_and_keeps_its_gradient():
    locate, image = with_noise(GaussianLocate(locate_at_position, DIM, HEADS, 2)), memory((4, 6))
    first, _ = locate(some_queries(), image, 0)
    later, geometry = locate(replace(first, content=first.content + 1), image, 1)
    assert later.reference is first.reference
    assert later.box_anchor is first.box_anchor
    assert first.box_anchor is first.reference
    geometry.bias.sum().backward()
    assert all(p.grad.norm() > 0 for p in locate.centre.parameters())


@pytest.mark.parametrize("size", [2, 4])
def test_queries_with_a_reference_keep_it(size):
    locate, image = with_noise(GaussianLocate(locate_at_position, DIM, HEADS, 1, predicts=False)), memory((4, 6))
    assert not any(name.startswith("centre") for name, _ in locate.named_parameters())
    reference = torch.randn(2, QUERIES, size, dtype=torch.float64)
    state, geometry = locate(replace(some_queries(), reference=reference), image, 0)
    assert state.reference is reference
    assert state.box_anchor is None
    assert torch.equal(geometry.reference, reference.sigmoid())
    point = locate(replace(some_queries(), reference=reference[..., :2]), image, 0)[1]
    torch.testing.assert_close(geometry.bias, point.bias)


def test_gaussians_around_the_points_of_another_paper():
    """Conditional DETR's queries under SMCA's Gaussians: a mixture of parts, without a centre of their own to predict."""
    model = create("smca-detr")
    o = model.config["options"]
    model.queries = ReferencePointQueries(o["num_queries"], o["hidden_dim"])
    model.place = GaussianLocate(locate_at_position, o["hidden_dim"], o["heads"], o["decoder_layers"], stride=16, predicts=False)
    out = model(*batch((96, 128), (64, 80)), trace=True)
    points = model.queries.reference(model.queries.position).sigmoid().expand(2, -1, -1)
    torch.testing.assert_close(out.trace.layers[0].reference, points)
    model.loss(out, objects(2, 1))[0].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_scale_selection(padded):
    module, image, state = with_noise(ScaleSelectionAttention(DIM, HEADS, 3)), memory(*SHAPES, padded=padded), some_queries()
    bias = torch.randn(2, HEADS, QUERIES, image.tokens.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    trace = LayerTrace(memory=image)
    out = module(state.content, QueryGeometry(position=state.position, bias=bias), image, trace)
    each, ends = DIM // HEADS, [0, 24, 30, 32]
    for b in range(2):
        for q in range(QUERIES):
            query = state.content[b, q] + state.position[b, q]
            chosen = [math.exp(v) for v in linear(module.selection, query)]
            projected, mixed = linear(module.query, query), []
            for head in range(HEADS):
                part, total = slice(head * each, (head + 1) * each), torch.zeros(each, dtype=torch.float64)
                for level in range(3):
                    weights, values = [], []
                    for s in range(ends[level], ends[level + 1]):
                        if image.mask is not None and image.mask[b, s]:
                            continue
                        token = image.tokens[b, s]
                        key = (token + image.position[b % len(image.position), s]) @ module.keys[level].weight.T
                        logit = sum(x * y for x, y in zip(projected[part], key[part].tolist(), strict=True)) / math.sqrt(each)
                        weights.append(math.exp(logit + bias[b, head, q, s].item()))
                        values.append(torch.tensor(linear(module.values[level], token)[part], dtype=torch.float64))
                    share = chosen[level] / sum(chosen)
                    for weight, value in zip(weights, values, strict=True):
                        total += share * weight / sum(weights) * value
                    assert trace.attention[level][b, head, q].sum().item() == pytest.approx(share)
                mixed.append(total)
            torch.testing.assert_close(out[b, q].tolist(), linear(module.out_proj, torch.cat(mixed)))
    torch.testing.assert_close(torch.cat([g.flatten(-2) for g in trace.gaussian], -1), bias.exp())


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_level_by_level(padded):
    """The same as one dense attention in which other levels are forbidden."""
    dense, image = with_noise(DenseAttention(DIM, HEADS)), memory(*SHAPES, padded=padded)
    trace = LayerTrace(memory=image)
    out = IntraScaleAttention(dense)(image.tokens, QueryGeometry(position=image.position), image, trace)
    level = torch.tensor([0] * 24 + [1] * 6 + [2] * 2)
    hidden = level[:, None] != level
    at = (image.tokens + image.position).transpose(0, 1)
    (packed, last), values = (dense.attention.in_proj, dense.attention.out_proj), image.tokens.transpose(0, 1)
    slow, weights = F.multi_head_attention_forward(
        at, at, values, DIM, HEADS, packed.weight, packed.bias, None, None, False, 0.0, last.weight, last.bias,
        training=False, key_padding_mask=image.mask, attn_mask=hidden, average_attn_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(out, slow.transpose(0, 1))
    torch.testing.assert_close(torch.cat([a.flatten(-2) for a in trace.attention], -1), weights)


@pytest.mark.parametrize(("layers", "kinds"), [(5, "LLDLL"), (3, "LDL"), (2, "LD"), (1, "D"), (0, "")])
def test_the_middle_encoder_layer_attends_to_all_levels(layers, kinds):
    encoder = create("smca-detr", levels=3, encoder_layers=layers).encoder
    assert "".join("L" if isinstance(layer.read, IntraScaleAttention) else "D" for layer in encoder.layers) == kinds


def test_one_level_has_dense_attention():
    model = create("smca-detr")
    assert all(isinstance(layer.read, DenseAttention) for layer in (*model.encoder.layers, *model.layers))


@pytest.mark.parametrize(("levels", "dilation", "cells"), [(1, False, (1,)), (1, True, (1,)), (2, False, (0.5, 1)), (3, True, (1, 1, 2))])
def test_one_gaussian_serves_all_levels(levels, dilation, cells):
    assert steps(Backbone("resnet10t", min(levels, 2), dilation=dilation), levels) == cells


@torch.no_grad()
def test_levels_in_the_model():
    """Gaussians of all levels have the same centre in the image."""
    model = shaken(create("smca-detr", levels=3, dilation=False, centre_stride=32, dynamic_scale="type1")).double().eval()
    out = model(torch.zeros(1, 3, 256, 320, dtype=torch.float64), trace=True)
    fine, coarse, coarsest = out.trace.layers[-1].gaussian
    assert [g.shape[-2:] for g in (fine, coarse, coarsest)] == [(16, 20), (8, 10), (4, 5)]
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)
    torch.testing.assert_close(coarse[..., ::2, ::2], coarsest)


def test_start_values():
    torch.manual_seed(0)
    model = bq.create_model("smca-detr", classes=3, backbone="resnet10t", encoder_layers=1, decoder_layers=2)
    for layer in model.place.scales:
        assert not layer.weight.any()
        assert bool((layer.bias == 1).all())
    assert all(layer.weight.any() for layer in model.place.offsets)


def test_boxes_are_measured_from_the_centre_without_a_clamp():
    head = Head(DIM, 3, zero_boxes=False, eps=0.0)
    content, box_anchor = torch.randn(2, DIM), torch.tensor([[30.0, -40.0], [0.1, 0.2]])
    free, based = head.box(content, None), head.box(content, box_anchor)
    torch.testing.assert_close(based[:, :2], free[:, :2] + box_anchor)
    assert torch.equal(based[:, 2:], free[:, 2:])


def test_one_detection_per_query():
    model = create("smca-detr").eval()
    detections = model.postprocess(model(*batch((96, 128))), [(96, 128)])
    assert len(detections[0]["scores"]) == model.config["options"]["num_queries"]


def test_centre_stride_follows_the_last_map():
    assert has_option("smca-detr", "centre_stride")
    assert {name: p.options.centre_stride for name, p in presets("smca-detr").items()} == {"paper": 32, "small": 0, "tiny": 0}
    for options, stride in (({}, 16), ({"dilation": False}, 32), ({"levels": 3, "dilation": False}, 32), ({"centre_stride": 24}, 24)):
        assert create("smca-detr", **options).place.stride == stride


@pytest.mark.parametrize(
    "wrong", [{"levels": 0}, {"levels": -1}, {"centre_stride": -1}, {"gaussian_smooth": 0.0}, {"gaussian_smooth": -8.0}]
)
def test_wrong_options(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(bq.UserError, match=f"{name}={value}") as raised:
        replace(SMCAOptions(), **wrong).check()
    assert "\n" not in str(raised.value)


class TestSpareColumn:
    """The authors' head has a sigmoid more than there are ids."""

    COLUMNS = 4

    def build(self, classes: int) -> DetectionTransformer:
        return bq.create_model("smca-detr", classes=classes, **SMALL)

    def tensors(self) -> dict[str, Tensor]:
        return checkpoint("smca")[1]

    def test_dropped(self):
        tensors, model = self.tensors(), self.build(self.COLUMNS - 1)
        report = bq.load_official(model, tensors)
        assert report["dropped"] == ["class_embed.weight[3]", "class_embed.bias[3]"]
        assert set(report["used"]) == set(tensors)
        assert torch.equal(model.heads[0].classes.weight, tensors["class_embed.weight"][:3])
        assert torch.equal(model.heads[0].classes.bias, tensors["class_embed.bias"][:3])
        assert len(tensors["class_embed.bias"]) == self.COLUMNS

    def test_kept(self):
        tensors, model = self.tensors(), self.build(self.COLUMNS)
        assert bq.load_official(model, tensors)["dropped"] == []
        assert torch.equal(model.heads[0].classes.weight, tensors["class_embed.weight"])

    @pytest.mark.parametrize("classes", [2, 5])
    def test_other_counts(self, classes):
        with pytest.raises(bq.UserError, match=r"class_embed\.\w+' is \[4"):
            bq.load_official(self.build(classes), self.tensors())

    def test_no_head(self):
        tensors = {k: v for k, v in self.tensors().items() if not k.startswith("class_embed")}
        with pytest.raises(bq.UserError, match=r"missing: class_embed\."):
            bq.load_official(self.build(self.COLUMNS - 1), tensors)

    @pytest.mark.parametrize("kind", ["type1", "type2", "type3", "type4"])
    def test_options(self, kind):
        tensors, scales = self.tensors(), {"type1": 0, "type2": 1, "type3": 2, "type4": 3}[kind]
        for key in [k for k in tensors if "point3" in k]:
            tensors[key] = torch.zeros(scales * SMALL["heads"])
            if not scales:
                del tensors[key]
        classes, options = authors.options(tensors)
        assert classes == self.COLUMNS - 1
        expected = {k: SMALL[k] for k in ("encoder_layers", "decoder_layers", "ffn_dim", "num_queries", "hidden_dim")}
        assert {k: v for k, v in options.items() if k != "backbone"} == {**expected, "dynamic_scale": kind}
