"""A number of queries for every decoder layer: what goes on, what is dropped, and that all else follows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.api import Detector, load
from boxquery.data.preprocessing import Preprocessing
from boxquery.explain.relevance import relevance
from boxquery.matching.classification import Focal, Softmax
from boxquery.models.base import DetectionTransformer
from boxquery.parts import linear
from boxquery.parts.output import LayerPredictions, Output
from boxquery.parts.state import QueryState
from tests.models.builders import batch, create, objects, shaken, systems, tiny_width

SIZES = ((64, 96), (48, 64))
NUMBERS = [12, 7, 4]
SYSTEMS = systems()
FEW = [s for s in SYSTEMS if s in bq.list_models() or s in ("deformable-detr-two-stage", "smca-detr-levels")]


@pytest.fixture(autouse=True)
def one_kind_of_product(monkeypatch):
    """Which queries are kept turns on scores that nearly tie, and large products, of a batch, round differently from those of one image."""
    monkeypatch.setattr(linear, "_has_slow_mkl", lambda: False)


def build(system: str, numbers: list[int] = NUMBERS) -> DetectionTransformer:
    """Double precision, without dropout, every parameter away from its start value.

    Narrower only behind the backbone: of fewer channels, as of less noise in D-FINE, queries tie to the last digit, and rounding says which
    are kept.
    """
    name, options = SYSTEMS[system]
    own = {**tiny_width(name), "hidden_dim": 32, "ffn_dim": 32}
    return shaken(create(name, **{**own, **options}, num_queries=numbers), 0.05 if name == "d-fine" else 0.02).double()


def slow(
    model: DetectionTransformer, images: Tensor, mask: Tensor, targets: list[dict] | None
) -> tuple[Tensor, Tensor, Tensor, QueryState]:
    """The same by hiding instead of dropping: every layer computes all queries, but none attends to those that were sorted out.

    Returns logits and boxes of all rows, training-only ones too, with whatever dropped rows come to; alive; and the first state.
    """
    memory = model.encoder(model.embed_image(images, mask))
    state = first = model.queries(memory, targets)
    extra, every = state.training_only(), state.content.shape[1]
    alive = torch.ones(len(images), every, dtype=torch.bool)
    logits, boxes, living = [], [], []
    for i, layer in enumerate(model.layers):
        state, geometry = model.place(state, memory, i)
        hidden = ~alive[:, None].expand(-1, every, -1)
        if geometry.self_mask is not None:
            hidden = hidden | geometry.self_mask
        state = replace(state, content=layer(state.content, replace(geometry, self_mask=hidden), memory))
        head = model.head(i)
        prediction = head(model.norm(state.content), state)
        logits.append(prediction.logits)
        boxes.append(prediction.boxes)
        living.append(alive)
        if i < len(model.layers) - 1:
            scores = logits[-1].sigmoid() if model.criterion.classification.has_no_object is False else logits[-1].softmax(-1)[..., :-1]
            alive = alive.clone()
            for image in range(len(images)):
                best = sorted((-scores[image, q].max().item(), q) for q in range(extra, every) if living[-1][image, q])
                for _, q in best[model.num_queries_per_layer[i + 1] :]:
                    alive[image, q] = False
            state = model.refine(state, prediction, head)
    return torch.stack(logits), torch.stack(boxes), torch.stack(living), first


def assert_same(model: DetectionTransformer, out: Output, expected: tuple[Tensor, Tensor, Tensor, QueryState]) -> None:
    logits, boxes, alive, state = expected
    extra = state.training_only()
    ordinary = alive[:, :, extra:]
    assert torch.equal(out.alive, ordinary)
    assert out.alive.sum(-1).tolist() == [[min(n, ordinary.shape[-1])] * len(SIZES) for n in model.num_queries_per_layer]
    torch.testing.assert_close(out.logits[ordinary], logits[:, :, extra:][ordinary], atol=1e-9, rtol=0)
    torch.testing.assert_close(out.boxes[ordinary], boxes[:, :, extra:][ordinary], atol=1e-9, rtol=0)
    assert bool((out.logits[~ordinary] == -torch.inf).all())
    for layer in (1, 2):
        gone = ~ordinary[layer]
        assert torch.equal(out.boxes[layer][gone], out.boxes[layer - 1][gone])


@pytest.fixture(params=FEW)
def system(request) -> str:
    return request.param


@pytest.mark.parametrize("system", SYSTEMS)
def test_as_if_nobody_saw_the_dropped(system):
    """Answers, every term of the loss, matches and every gradient."""
    model = build(system).eval()
    # losses that compare layers have tests of their own (tests/matching/test_fine_grained.py)
    model.criterion.joint, model.criterion.fine = False, None
    images, mask = batch(*SIZES, dtype=torch.float64)
    targets = objects(3, 2, dtype=torch.float64)
    out = replace(model(images, mask), initial=None)
    expected = slow(model, images, mask, None)
    assert_same(model, out, expected)

    loss, terms = model.loss(out, targets)
    loss.backward()
    ours = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    logits, boxes, alive, _ = expected
    total, pairs = loss.new_zeros(()), model.match(out, targets)
    for layer in range(3):
        kept = alive[layer].nonzero()[:, 1].view(len(images), -1)
        alone = [v[layer].gather(1, kept[..., None].expand(-1, -1, v.shape[-1]))[None] for v in (logits, boxes)]
        small = Output(*alone, proposals=expected[3].proposals if layer == 0 else None)
        part, found = model.loss(small, targets)
        total = total + part
        for name, term in found.items():
            torch.testing.assert_close(term, terms[name] if term.dim() == 0 else terms[name][layer : layer + 1], atol=1e-9, rtol=1e-9)
        for image, (query, target) in enumerate(model.match(small, targets)[0]):
            assert torch.equal(kept[image][query], pairs[layer][image][0])
            assert torch.equal(target, pairs[layer][image][1])
    total.backward()
    for name, parameter in model.named_parameters():
        if ours[name] is None or parameter.grad is None:
            assert ours[name] is parameter.grad, name
        else:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-8, rtol=1e-7, msg=name)


def test_training_only_queries_are_never_dropped():
    model = build("deformable-detr-denoising").train()
    images, mask = batch(*SIZES, dtype=torch.float64)
    targets = objects(3, 2, dtype=torch.float64)
    model.backbone.eval()
    torch.manual_seed(5)
    out = model(images, mask, targets=targets)
    torch.manual_seed(5)
    expected = slow(model, images, mask, targets)
    assert_same(model, out, expected)
    extra = expected[3].training_only()
    assert extra > 0
    group, alive = out.extra["denoising"], expected[3].groups[0].valid
    torch.testing.assert_close(group.boxes, expected[1][:, :, :extra], atol=1e-9, rtol=0)
    torch.testing.assert_close(group.logits[:, alive], expected[0][:, :, :extra][:, alive], atol=1e-9, rtol=0)
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert terms["denoising.class"].shape == (3,)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_rows_are_really_fewer(system):
    model, seen = build(system).eval(), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    images, mask = batch(*SIZES, dtype=torch.float64)
    with torch.no_grad():
        model(images, mask, last_only=True)
    patterns = max(SYSTEMS[system][1].get("patterns", model.config["options"].get("patterns", 1)), 1)
    assert seen == [12 * patterns, 7 * patterns, 4 * patterns]


@torch.no_grad()
def test_last_only_and_one_image_alone(system):
    model = build(system).eval()
    images, mask = batch(*SIZES, dtype=torch.float64)
    every, last = model(images, mask), model(images, mask, last_only=True)
    for a, b in ((every.logits, last.logits), (every.boxes, last.boxes), (every.alive, last.alive)):
        assert torch.equal(a[-1:], b)
    for i in range(len(images)):
        alone = model(images[i : i + 1], mask[i : i + 1])
        assert torch.equal(alone.alive[:, 0], every.alive[:, i])
        torch.testing.assert_close(alone.boxes[:, 0], every.boxes[:, i], atol=1e-9, rtol=0)


@torch.no_grad()
def test_equal_scores_keep_the_first():
    model = build("conditional-detr").eval()
    for parameter in model.heads[0].classes.parameters():
        parameter.zero_()
    out = model(*batch(*SIZES, dtype=torch.float64))
    assert out.alive[1].nonzero()[:, 1].tolist() == 2 * list(range(7))
    assert out.alive[2].nonzero()[:, 1].tolist() == 2 * list(range(4))


@torch.no_grad()
def test_equal_numbers_drop_nothing(system):
    name, options = SYSTEMS[system]
    images, mask = batch(*SIZES)
    one, many = (create(name, **options, num_queries=n).eval()(images, mask) for n in (8, [8, 8, 8]))
    assert one.alive is many.alive is None
    assert torch.equal(one.logits, many.logits)


@torch.no_grad()
def test_only_queries_alive_are_detections(system):
    model = build(system).eval()
    out = model(*batch(*SIZES, dtype=torch.float64))
    alive = int(out.alive[-1, 0].sum())
    assert [len(a["scores"]) for a in model.postprocess(out, list(SIZES), one_label=True)] == [alive, alive]
    for image, found in enumerate(model.postprocess(out, list(SIZES), top_k=10_000)):
        assert len(found["scores"]) == alive * (1 if model.criterion.classification.has_no_object else out.logits.shape[-1])
        assert bool((found["scores"] > 0).all())
        cx = out.boxes[-1, image, out.alive[-1, image], 0] * SIZES[image][1]
        found = (found["boxes"][:, 0] + found["boxes"][:, 2]) / 2
        assert bool(((found[:, None] - cx).abs().amin(1) < 1e-9).all())


@torch.no_grad()
def test_trace_keeps_the_numbers(system):
    """Row q of every layer's trace is query q; of one that is gone, boxes and reference are the last, all else is zero."""
    model = build(system).eval()
    images, mask = batch(*SIZES, dtype=torch.float64)
    out = model(images, mask, trace=True)
    for i, layer in enumerate(out.trace.layers):
        assert torch.equal(layer.boxes, out.boxes[i])
        if i == 0:
            assert layer.alive is None
            continue
        assert torch.equal(layer.alive, out.alive[i])
        for image in range(2):
            gone = (~layer.alive[image]).nonzero()[:, 0]
            here = layer.alive[image].nonzero()[:, 0]
            heatmaps = layer.heatmaps(range(layer.alive.shape[1]), (8, 8), image)
            assert not heatmaps.map[gone].any()
            assert heatmaps.lost[gone].tolist() == [1.0] * len(gone)
            seen = (
                torch.ones(len(here)) if not system.startswith("sparse-rcnn") else (heatmaps.lost[here] < 1).float()
            )  # boxes may be outside
            torch.testing.assert_close(heatmaps.map[here].sum((1, 2)), seen, atol=1e-4, rtol=0)
            sums = layer.self_attention[image].sum(-1)
            torch.testing.assert_close(sums[:, here], torch.ones_like(sums[:, here]), atol=1e-6, rtol=0)
            assert not layer.self_attention[image][:, gone].any()
            assert not layer.self_attention[image][..., gone].any()
            assert not layer.scores[image, gone].any()
            if layer.reference is not None:
                before = out.trace.layers[i - 1].reference[image, gone]
                assert torch.equal(layer.reference[image, gone][:, : before.shape[-1]], before)
            layer.heatmap(int(here[0]), (8, 8), image)
            with pytest.raises(bq.UserError, match=rf"query {int(gone[0])} was pruned before this layer"):
                layer.heatmap(int(gone[0]), (8, 8), image)


@torch.no_grad()
def test_trace_rows_are_those_of_the_hidden():
    """The kept queries attend as they do when the others are only hidden: no row is under another's number."""
    model = build("dab-detr").eval()
    images, mask = batch(*SIZES, dtype=torch.float64)
    out = model(images, mask, trace=True)
    memory = model.encoder(model.embed_image(images, mask))
    state = model.queries(memory, None)
    for i, layer in enumerate(model.layers):
        state, geometry = model.place(state, memory, i)
        hidden = ~out.alive[i][:, None].expand(-1, out.alive.shape[-1], -1)
        record = type(out.trace.layers[0])(memory=memory)
        state = replace(state, content=layer(state.content, replace(geometry, self_mask=hidden), memory, record))
        alive = out.alive[i][:, None, :, None, None].expand_as(record.attention[0])
        torch.testing.assert_close(out.trace.layers[i].attention[0][alive], record.attention[0][alive], atol=1e-9, rtol=0)
        head = model.head(i)
        state = model.refine(state, head(model.norm(state.content), state), head)


@pytest.mark.parametrize("classification", [Softmax(), Focal()])
def test_minus_infinity_costs_nothing(classification):
    """Rows of -inf give a score of zero, no loss and no gradient, and leave those of the others as they are."""
    criterion = type(create("detr").criterion)(classification)
    logits = torch.randn(1, 1, 5, 3 + classification.has_no_object, dtype=torch.float64).requires_grad_()
    boxes = (0.2 + 0.4 * torch.rand(1, 1, 5, 4, dtype=torch.float64)).requires_grad_()
    targets = objects(2, dtype=torch.float64)
    alone = criterion(Output(logits, boxes), targets)[0]
    wanted = torch.autograd.grad(alone, (logits, boxes))
    dropped = torch.full((1, 1, 2, logits.shape[-1]), -torch.inf, dtype=torch.float64).requires_grad_()
    more = LayerPredictions(
        torch.cat((dropped[:, :, :1], logits, dropped[:, :, 1:]), 2), torch.nn.functional.pad(boxes, (0, 0, 1, 1), value=0.5)
    )
    alive = torch.tensor([[[False, *[True] * 5, False]]])
    loss = criterion(Output(more.logits, more.boxes, alive=alive), targets)[0]
    torch.testing.assert_close(loss, alone)
    found = torch.autograd.grad(loss, (logits, boxes, dropped))
    torch.testing.assert_close(found[:2], wanted)
    assert not found[2].any()
    assert not classification.scores(dropped).any()
    assert {int(q) for q in criterion.pairs(more.logits, more.boxes, targets, alive)[0][0][0]} <= {1, 2, 3, 4, 5}


def test_more_objects_than_a_layer_keeps():
    model = build("detr").eval()
    out = model(*batch(*SIZES, dtype=torch.float64))
    with pytest.raises(bq.UserError, match="image 1 of the batch has 5 objects, but decoder layer 2 keeps 4 queries"):
        model.loss(out, objects(1, 5, dtype=torch.float64))


@pytest.mark.parametrize("system", ["detr", "anchor-detr", "deformable-detr-denoising", "sam-detr-levels"])
def test_bfloat16(system):
    name, options = SYSTEMS[system]
    model, targets = create(name, **options, num_queries=NUMBERS), objects(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*batch(*SIZES), targets=targets)
        loss, _ = model.loss(out, targets)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", bq.list_models())
def test_saved_loaded_and_explained(name, tmp_path):
    """Numbers per layer travel with the weights; an explanation keeps the numbers of the queries."""
    model = shaken(create(name, num_queries=NUMBERS), 0.05)
    assert json.loads(json.dumps(model.config))["options"]["num_queries"] == NUMBERS
    Detector(model, ["a", "b", "c"], [1, 2, 3], Preprocessing(64)).save(tmp_path / "model")
    detector = load(tmp_path / "model")
    assert detector.model.num_queries_per_layer == model.num_queries_per_layer
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    result, story = detector.predict(photo, threshold=0.0), detector.explain(photo, threshold=0.0)
    assert len(result) == model.num_queries_per_layer[-1] == len(story.found)
    np.testing.assert_allclose(result.scores, story.scores[-1, story.found], atol=1e-6)
    kept = story.found[0]
    gone = int(np.flatnonzero(story.scores[-1] == 0)[0])
    assert name == "sparse-rcnn" or story.heatmap(kept).lost < 1  # whose boxes may lie outside the image
    assert float(story.heatmap(kept).map.sum()) == pytest.approx(float(story.heatmap(kept).lost < 1), abs=1e-4)
    assert story.heatmap(gone, layer=0).map.shape == (64, 96)
    for wrong in (lambda: story.heatmap(gone), lambda: relevance(detector, photo, gone)):
        with pytest.raises(bq.UserError, match=f"query {gone} was pruned") as raised:
            wrong()
        assert "\n" not in str(raised.value)
    story.rivals(kept)
    assert len(json.dumps(story.summary())) > 100
