"""Training-only queries: a model of one's own with a group, denoising for every model that has references, and what heads compute."""

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import boxquery as bq
from boxquery import models
from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.hungarian import pad_targets
from boxquery.models.base import DetectionTransformer, keep_reference
from boxquery.models.builders import decoder, encoder, focal, image, refine_detached
from boxquery.models.options import Options
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.dense import DenseAttention, SelfAttention
from boxquery.parts.box_locate import BoxLocate
from boxquery.parts.heads import Head
from boxquery.parts.layers import reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.output import LayerPredictions, Matches, Output, QueryGroup
from boxquery.parts.positions import SinePosition
from boxquery.parts.queries import BoxQueries
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights
from tests.models.builders import NARROW, batch, create, objects, shaken, systems
from tests.models.builders import presets as presets_of
from tests.models.test_overfit import learned

SIZES = ((64, 96), (48, 64))
DENOISED = {
    system: (name, options | {"matching": "denoising", "denoising": 20})
    for system, (name, options) in systems().items()
    if name not in ("detr", "smca-detr") and options.get("matching") != "denoising"
}


# a model of one's own, as a module would have it: in training, a query at each object's shrunken box has to find that object


@dataclass(frozen=True)
class ToyOptions(Options):
    query_positions = ("sine-mlp",)


class HintedQueries(BoxQueries):
    """Anchor boxes, and in training a group of one query per object, which starts at half the object's size."""

    def __init__(self, count: int, dim: int, classes: int):
        super().__init__(count, dim, size=0.2)
        self.classes, self.hint = classes, nn.Parameter(torch.zeros(dim))

    def forward(self, memory: Memory, targets: list[dict] | None = None) -> QueryState:
        state = self.ordinary(memory)
        if targets is None:
            return state
        objects = pad_targets(targets, state.reference, len(memory.tokens), self.classes)
        valid = torch.arange(objects.labels.shape[1]) < torch.tensor(objects.counts)[:, None]
        image, query = valid.nonzero().unbind(-1)
        matches = Matches(torch.zeros_like(image), image, query, query, (objects.counts,))
        group = QueryGroup("hints", valid.shape[1], matches, valid=valid)
        boxes = torch.cat((objects.boxes[..., :2], objects.boxes[..., 2:] / 2), -1)
        return state.with_group(group, self.hint.expand(*valid.shape, -1), boxes.logit(1e-3))


def build(classes: int, options: ToyOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    layers = decoder(o, lambda: SelfAttention(dim, o.heads), lambda layer: DenseAttention(dim, o.heads))
    regions, locate = encoder(o), BoxLocate(dim)
    reset_transformer(regions, locate, *layers)
    return DetectionTransformer(
        image=image(o, weights, SinePosition(dim)),
        encoder=regions,
        queries=HintedQueries(o.queries, dim, classes),
        locate=locate,
        layers=layers,
        refine=refine_detached,
        heads=[Head(dim, classes) for _ in range(o.decoder_layers)],
        criterion=focal(),
    )


PRESETS = presets(ToyOptions(), Recipe())


@pytest.fixture
def toy(monkeypatch) -> DetectionTransformer:
    monkeypatch.setattr(models, "_own", {})
    models.register("toy", sys.modules[__name__])
    torch.manual_seed(0)
    return bq.create_model("toy", classes=3, preset="tiny", **NARROW)


@pytest.mark.slow
def test_a_group_of_ones_own_overfits_one_scene(toy):
    assert learned(toy.train()) == pytest.approx(1.0)


def test_a_group_of_ones_own_is_trained_and_does_not_leak(toy):
    (images, mask), targets = batch(*SIZES), objects(3, 1)
    out = toy(images, mask, targets=targets)
    assert out.extra["hints"].logits.shape[2] == 3
    assert torch.isneginf(out.extra["hints"].logits[:, 1, 1:]).all()
    loss, terms = toy.loss(out, targets)
    assert {"hints.class", "hints.l1", "hints.giou"} <= terms.keys()
    (gradient,) = torch.autograd.grad(loss, toy.queries.hint, retain_graph=True)
    assert bool(gradient.any())
    (leak,) = torch.autograd.grad(out.logits.sum() + out.boxes.sum(), toy.queries.hint, allow_unused=True)
    assert leak is None or not leak.any()


@pytest.mark.parametrize("system", DENOISED)
def test_denoising_works_wherever_queries_have_references(system):
    """Ordinary queries predict as without it, every parameter of it is trained, and a batch without objects has the same gradients."""
    name, options = DENOISED[system]
    model = shaken(create(name, **options)).double().eval()
    images, mask = batch(*SIZES, dtype=torch.float64)
    targets = objects(3, 0, dtype=torch.float64)
    out, plain = model(images, mask, targets=targets), model(images, mask)
    assert plain.extra == {}
    assert out.extra["denoising"].repeats >= 1
    torch.testing.assert_close(out.logits, plain.logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(out.boxes, plain.boxes, atol=1e-9, rtol=0)
    model.loss(out, targets)[0].backward()
    parameters = dict(model.queries.denoising.named_parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in parameters.values())
    own = torch.autograd.grad(model(images, mask, targets=targets).logits.sum(), list(parameters.values()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in own)
    model.zero_grad()
    nothing = objects(0, 0, dtype=torch.float64)
    model.loss(model(images, mask, targets=nothing), nothing)[0].backward()
    assert all(p.grad is not None for p in parameters.values())


@pytest.mark.parametrize("name", ["detr", "smca-detr"])
def test_denoising_without_references_is_refused(name):
    with pytest.raises(bq.UserError, match="denoising needs queries whose reference can be a noised box, which this model lacks"):
        create(name, matching="denoising")


@pytest.mark.parametrize("name", bq.list_models())
def test_a_number_of_noised_queries_needs_denoising(name):
    """What switched it on until matching did must not go unnoticed."""
    options = {"matching": "one-to-one", "denoising": 60}
    assert create(name, **options).config["options"]["denoising"] == 60
    if "denoising" in presets_of(name)["tiny"].options.strategies:
        assert create(name, denoising=7).queries.denoising.queries == 7
    else:
        with pytest.raises(bq.UserError, match="denoising=60 is a number of noised queries, of which matching has none"):
            create(name, denoising=60)


def test_denoising_and_a_learned_position_are_refused():
    with pytest.raises(bq.UserError, match="query_position='learned' needs matching without denoising"):
        create("dab-detr", matching="denoising", query_position="learned")


@pytest.mark.parametrize("system", systems())
def test_last_only_computes_what_is_needed(system):
    """Class logits once; a box per layer only where the next layer is located by it."""
    name, options = systems()[system]
    model = create(name, **options).eval()
    calls = {"classes": 0, "boxes": 0}
    for head in model.heads:
        for part in calls:
            getattr(head, part).register_forward_hook(lambda *_, part=part: calls.__setitem__(part, calls[part] + 1))
    with torch.no_grad():
        model(*batch(*SIZES), last_only=True)
    refined = model.refine is not keep_reference
    assert calls == {"classes": 1, "boxes": len(model.layers) if refined else 1}


@pytest.mark.parametrize("name", bq.list_models())
def test_post_processing_can_be_exported(name):
    model, sizes = create(name).eval(), torch.tensor([(64, 96), (48, 64)])
    out = model(*batch(*SIZES))
    given = (out.logits[-1].detach(), out.boxes[-1].detach(), sizes)
    exported = torch.export.export(model.postprocessor, given).module()
    for ours, theirs in zip(model.postprocessor(*given), exported(*given), strict=True):
        assert torch.equal(ours, theirs)


def predictions() -> tuple[Output, list[dict]]:
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 2, 6, 3), 0.2 + 0.3 * torch.rand(2, 2, 6, 4)
    return Output(logits, boxes, proposals=LayerPredictions(logits[:1], boxes[:1])), objects(2, 3)


def test_a_class_loss_can_ask_for_the_quality_of_a_pair():
    calls = []

    class Aware(Focal):
        def loss(self, logits, targets, matches, normalizer, quality=None) -> Tensor:
            calls.append((matches, quality()))
            return super().loss(logits, targets, matches, normalizer)

    out, targets = predictions()
    SetCriterion(Aware())(out, targets)
    matches, quality = calls[0]
    assert quality.shape == (10,)
    for at, (layer, number, query, target) in enumerate(zip(*(v.tolist() for v in (*matches.index, matches.target)), strict=True)):
        a, b = out.boxes[layer, number, query], targets[number]["boxes"][target]
        low, high = torch.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2), torch.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
        shared = (high - low).clamp(min=0).prod()
        torch.testing.assert_close(quality[at], shared / (a[2:].prod() + b[2:].prod() - shared))


def test_proposals_can_be_class_aware():
    out, targets = predictions()
    _, agnostic = SetCriterion(Focal())(out, targets)
    _, aware = SetCriterion(Focal(), class_agnostic_proposals=False)(out, targets)
    torch.testing.assert_close(aware["proposals.class"], aware["class"][0])
    assert not torch.isclose(agnostic["proposals.class"], aware["proposals.class"])
