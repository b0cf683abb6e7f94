"""What every model records about where its queries attended."""

import pytest
import torch

from boxquery.models.base import DetectionTransformer
from boxquery.parts.attention.regions import DynamicConvolution
from boxquery.parts.hybrid import HybridEncoder
from boxquery.parts.output import Output
from boxquery.parts.trace import LayerTrace
from tests.models.builders import batch, create, shaken, systems
from tests.models.test_sweep import beyond_image

SYSTEMS = systems()
SIZES = ((96, 128), (64, 80))


@pytest.fixture(scope="module", params=SYSTEMS)
def traced(request) -> tuple[DetectionTransformer, Output]:
    name, options = SYSTEMS[request.param]
    model = shaken(create(name, **options)).double().eval()
    images, mask = batch(*SIZES, dtype=torch.float64)
    with torch.no_grad():
        return model, model(images, mask, trace=True)


@torch.no_grad()
def test_off_by_default(traced):
    model, with_trace = traced
    images, mask = batch(*SIZES, dtype=torch.float64)
    out = model(images, mask)
    assert out.trace is None
    assert torch.equal(out.logits, with_trace.logits)
    assert torch.equal(out.boxes, with_trace.boxes)


@torch.no_grad()
def test_last_only_keeps_every_layer_of_the_trace(traced):
    model, every = traced
    out = model(*batch(*SIZES, dtype=torch.float64), trace=True, last_only=True)
    assert len(out.logits) == 1
    assert len(out.trace.layers) == len(every.trace.layers)
    assert torch.equal(out.trace.layers[0].boxes, every.boxes[0])


@torch.no_grad()
def test_without_the_encoder(traced):
    model, every = traced
    trace = model(*batch(*SIZES, dtype=torch.float64), trace="decoder").trace
    assert trace.encoder == []
    for ours, theirs in zip(trace.layers, every.trace.layers, strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.masses(0, [1]), theirs.masses(0, [1]))


def test_layers(traced):
    model, out = traced
    _, batch_size, queries, _ = out.logits.shape
    heads = model.config["options"]["heads"]
    assert len(out.trace.layers) == len(out.logits)
    for i, layer in enumerate(out.trace.layers):
        assert torch.equal(layer.boxes, out.boxes[i])
        best = model.criterion.classification.scores(out.logits[i]).amax(-1)
        torch.testing.assert_close(layer.scores, best)
        if model.config["name"] == "detr":
            assert layer.reference is None
        else:
            assert layer.reference.shape in ((batch_size, queries, 2), (batch_size, queries, 4))
            beyond = beyond_image(model)
            assert bool(((layer.reference >= -beyond) & (layer.reference <= 1 + beyond)).all())
        assert layer.self_attention.shape == (batch_size, heads, queries, queries)
        sums_to_one(layer.self_attention.sum(-1))
        check_attention(layer, batch_size, queries, 1 if isinstance(model.layers[i].read, DynamicConvolution) else heads)
        if model.config["name"] == "smca-detr" or model.config["options"].get("smca"):
            assert [g.shape for g in layer.gaussian] == [a.shape for a in layer.attention]
            assert all(bool(((g >= 0) & (g <= 1)).all()) for g in layer.gaussian)
        else:
            assert layer.gaussian is None


def test_encoder(traced):
    model, out = traced
    hybrid = isinstance(model.encoder, HybridEncoder)  # most of its tokens attend to nothing
    assert len(out.trace.encoder) == (0 if hybrid else model.config["options"]["encoder_layers"])
    for layer in out.trace.encoder:
        tokens = layer.memory.tokens.shape[1]
        assert layer.boxes is None
        assert layer.scores is None
        check_attention(layer, len(SIZES), tokens, model.config["options"]["heads"])
        heat = layer.heatmap(0, (24, 32))
        assert heat.map.sum().item() == pytest.approx(1, abs=1e-5)


def check_attention(layer: LayerTrace, batch_size: int, queries: int, heads: int) -> None:
    levels = layer.memory.shapes
    if layer.attention is not None:
        dense = [outer(*a) if isinstance(a, tuple) else a for a in layer.attention]
        assert [tuple(a.shape) for a in dense] == [(batch_size, heads, queries, h, w) for h, w in levels]
        sums_to_one(sum(a.sum((-2, -1)) for a in dense))
        for attention, mask in zip(dense, layer.memory.maps(layer.memory.mask), strict=True):
            assert not attention.masked_select(mask[:, None, None]).any()
    else:
        assert layer.weights.shape[:4] == (batch_size, queries, heads, len(levels))
        assert layer.locations.shape == (*layer.weights.shape, 2)
        sums_to_one(layer.weights.sum((-2, -1)))


def outer(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The two factors of row-column attention, [..., w] and [..., h], each of them weights -> [..., h, w]."""
    sums_to_one(row.sum(-1))
    sums_to_one(column.sum(-1))
    return column[..., :, None] * row[..., None, :]


def sums_to_one(total: torch.Tensor) -> None:
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(48, 64), (7, 5), (1, 1)])
def test_heatmaps(traced, size):
    _, out = traced
    for layer in out.trace.layers:
        for image in range(len(SIZES)):
            heat = layer.heatmap(3, size, image)
            assert heat.map.shape == size
            assert bool((heat.map >= 0).all())
            assert 0 <= heat.lost <= 1
            if heat.lost < 1:
                assert heat.map.sum().item() == pytest.approx(1, abs=1e-5)
            else:
                assert not heat.map.any()
