"""Every strategy of matching with every model: inference is bit-equal, nothing leaks into the ordinary queries, all of it learns."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.parts.state import QueryState
from tests.models.builders import batch, create, objects, shaken, systems

SIZES = ((48, 64), (32, 48))
#: half as wide as ``tiny``, with a layer less
SMALL = {"hidden_dim": 64, "ffn_dim": 128, "decoder_layers": 2, "num_queries": 6, "groups": 3, "hybrid_queries": 2, "denoising": 8}
#: those whose queries are made in another way
KINDS = (
    "anchor-detr", "anchor-detr-grid", "conditional-detr", "dab-deformable-detr", "dab-deformable-detr-fixed", "dab-detr-patterns",
    "d-fine", "deformable-detr-points", "deformable-detr-two-stage", "detr", "dino-detr", "dn-detr", "rt-detr",
    "rt-detr-v2", "sam-detr", "smca-detr", "sparse-rcnn",
)  # fmt: skip
STRATEGIES = ("group", "hybrid", "one-to-many", "denoising", "dense")


def build(system: str, matching: str, **options) -> DetectionTransformer:
    name, own = systems()[system]
    return create(name, **{**own, **SMALL, **options, "matching": matching})


def fits(system: str, matching: str) -> bool:
    return "denoising" not in matching or system not in ("detr", "smca-detr")


def cases(*matchings: str):
    return pytest.mark.parametrize(("system", "matching"), [(s, m) for s in KINDS for m in matchings if fits(s, m)])


def with_contents(model: DetectionTransformer) -> list[QueryState]:
    """From now on the queries' first contents are leaves, whose gradients say what depends on them."""
    states, original = [], model.queries.forward

    def forward(memory, targets=None) -> QueryState:
        state = original(memory, targets)
        states.append(replace(state, content=state.content.detach().requires_grad_()))
        return states[-1]

    model.queries.forward = forward
    return states


def test_every_model_is_covered():
    assert {systems()[system][0] for system in KINDS} == set(bq.list_models())


@torch.no_grad()
@cases("group+one-to-many+dense", "hybrid+denoising+one-to-many+dense")
def test_inference_is_bit_equal(system, matching):
    """With the same weights; those of training are further ones under names of their own."""
    rich, plain = build(system, matching).eval(), build(system, "one-to-one").eval()
    missing, more = plain.load_state_dict(rich.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith(("queries.further.", "queries.denoising.", "dense.")) for name in more)
    images, mask = batch(*SIZES)
    found, expected = rich(images, mask), plain(images, mask)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes, expected.boxes)
    assert found.extra == {}
    assert found.dense is None
    assert sum(p.numel() for p in rich.parameters()) > sum(p.numel() for p in plain.parameters()) or "group" not in matching


@cases("group", "hybrid", "denoising")
def test_training_only_queries_cannot_leak_into_ordinary_ones(system, matching):
    """Neither values nor gradients; those of groups see no ordinary query, nor another group's."""
    model = shaken(build(system, matching)).double().eval()
    (images, mask), targets = batch(*SIZES, dtype=torch.float64), objects(2, 1, dtype=torch.float64)
    plain = model(images, mask)
    states = with_contents(model)
    out = model(images, mask, targets=targets)
    torch.testing.assert_close(out.logits, plain.logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(out.boxes, plain.boxes, atol=1e-9, rtol=0)
    content, first, group = states[0].content, states[0].training_only(), out.extra[matching]
    assert content.shape[1] > first > 0

    def touched(logits: Tensor, boxes: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(logits.sum() + boxes.sum(), content, retain_graph=True)
        return gradient.ne(0).any(-1)

    ordinary = touched(out.logits, out.boxes)
    assert not ordinary[:, :first].any()
    assert ordinary[:, first:].any()
    alive = slice(None) if group.alive is None else group.alive[0]
    logits = group.logits if group.alive is None else group.logits.masked_fill(~group.alive[..., None], 0.0)
    assert touched(logits, group.boxes)[:, :first][alive].any()
    if matching != "denoising":
        assert not touched(logits, group.boxes)[:, first:].any()
    if matching == "group":
        half = first // 2
        assert not touched(logits[:, :, :half], group.boxes[:, :, :half])[:, half:].any()


#: every strategy with every model in a batch without objects, and each with a few of the models in others
STEPS = [
    (system, matching, counts)
    for i, system in enumerate(KINDS)
    for j, matching in enumerate(STRATEGIES)
    for counts in ((0, 0), (0, 3), (30, 1))
    if fits(system, matching) and (counts == (0, 0) or i % len(STRATEGIES) == j)
]


@pytest.mark.parametrize(("system", "matching", "counts"), STEPS)
def test_a_step(system, matching, counts):
    """Finite, and with a gradient for every parameter, also of a process whose batch is empty."""
    model = build(system, matching).train()
    (images, mask), targets = batch(*SIZES), objects(*counts)
    model.backbone.eval()
    out = model(images, mask, targets=targets)
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert all(bool(t.isfinite().all()) for t in (loss, *terms.values()))
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    if matching in ("group", "hybrid", "one-to-many"):
        assert terms[f"{matching}.class"].shape == (len(model.layers),)
        assert out.extra[matching].logits.shape[2] == out.logits.shape[2] * {"one-to-many": 1}.get(matching, 2)
        if any(counts):
            further = [p for n, p in model.named_parameters() if "further" in n]
            assert all(bool(p.grad.any()) for p in further)
    if not any(counts):
        assert not any(bool(term.any()) for name, term in terms.items() if name.endswith(("l1", "giou")))


@pytest.mark.parametrize("system", ["deformable-detr-two-stage", "dab-detr-patterns"])
def test_bfloat16_and_everything_together(system):
    model, targets = build(system, "hybrid+denoising+one-to-many+dense", class_loss="position"), objects(2, 1)
    images, mask = batch(*SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, mask, targets=targets)
        loss, terms = model.loss(out, targets)
    loss.backward()
    assert {t.dtype for t in (loss, *terms.values())} == {torch.float32}
    assert set(out.extra) == {"hybrid", "denoising", "one-to-many"}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("system", ["deformable-detr-two-stage", "detr"])
def test_pruned_queries(system):
    """A pruned query learns nothing in later layers, one to many either; further queries stay."""
    model = build(system, "hybrid+one-to-many", num_queries=[6, 4, 3], decoder_layers=3).train()
    model.backbone.eval()
    (images, mask), targets = batch(*SIZES), objects(2, 1)
    out = model(images, mask, targets=targets)
    early = out.extra["one-to-many"]
    assert out.alive.sum(-1).tolist() == early.alive.sum(-1).tolist() == [[6, 6], [4, 4], [3, 3]]
    assert torch.equal(early.logits.isneginf().all(-1), ~early.alive)
    assert out.extra["hybrid"].logits.shape[:3] == (3, 2, 12)
    loss, _ = model.loss(out, targets)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_proposals_for_groups_are_the_next_best_dealt_out():
    model = build("deformable-detr-two-stage", "group", valid_ratios="paper").eval()
    memory = model.encoder(model.embed_image(*batch(*SIZES)))
    state = model.queries(memory, objects(1, 1))
    scores, boxes = state.proposals.logits[0, ..., 0], state.proposals.boxes[0]
    order = scores.argsort(descending=True, stable=True)
    reference = state.reference.sigmoid()
    for image in range(2):
        best = boxes[image, order[image]]
        torch.testing.assert_close(reference[image, 12:], best[:6])
        torch.testing.assert_close(reference[image, :6], best[6:18:2])
        torch.testing.assert_close(reference[image, 6:12], best[7:18:2])


def test_fewer_proposals_than_further_queries():
    """As many as there are, and none that lies on padding learns."""
    for matching, size in (("hybrid", 500), ("group", None)):
        model = build("deformable-detr-two-stage", matching, **({"hybrid_queries": size} if size else {"groups": 2000}))
        out = model(*batch(*SIZES), targets=objects(2, 1))
        if size:
            assert out.extra["hybrid"].logits.shape[2] == out.proposals.logits.shape[2] - 6
            assert not out.extra["hybrid"].alive.all()
        else:
            assert out.extra == {}
        assert bool(model.loss(out, objects(2, 1))[0].isfinite())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "group+hybrid"}, "group and hybrid are two ways of having more queries; choose one"),
        ({"matching": "group", "num_queries": [6, 5, 4]}, "all groups have the same number of queries: give num_queries one number"),
        ({"matching": "hybrid", "query_position": "learned"}, "query_position='learned' needs matching without hybrid"),
        ({"matching": "group", "groups": 1}, "groups=1: must be at least 2"),
        ({"matching": "hybrid", "hybrid_repeats": 0}, "hybrid_repeats=0: must be at least 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_makes_no_sense_together_is_refused(options, message):
    with pytest.raises(bq.UserError, match=message) as raised:
        create("dab-detr", **options)
    assert "\n" not in str(raised.value)


def test_configuration_builds_the_model_again():
    model = build("anchor-detr", "group+one-to-many+dense")
    config = json.loads(json.dumps(model.config))
    again = bq.create_model(config["name"], classes=config["classes"], preset=config["preset"], **config["options"])
    again.load_state_dict(model.state_dict())
    assert len(model.query_parameters()) == len(build("anchor-detr", "one-to-one").query_parameters()) + 1
