"""What the public surface promises of a model, held for every name, preset and variant there is."""

import json
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from tests.models.builders import CLASSES, batch, create, has_option, objects, options_of, presets, shaken, systems, tiny_width

SIZES = ((96, 128), (64, 80))

KEY_BIAS = {
    r"layers\.\d\.(self_attention|read)\.key_\w+\.bias": "a query's logits all move alike: a softmax takes it out",
}
ZERO_CONTENT = {
    r"layers\.0\.self_attention\.(query|key)_\w+\.(weight|bias)": "content is zero: every value is the bias, whatever is attended to",
    r"layers\.0\.self_attention\.value\.weight": "it maps content, which is still zero",
}
KEY_POSITION_BIAS = {r"layers\.\d\.read\.key_position\.layers\.1\.bias": "the same: the last bias of the keys' positions"}
PACKED_ZERO_CONTENT = {
    r"layers\.0\.self_attention\.attention\.in_proj\.weight": "content is zero: every value is the bias, whatever is attended to",
}
#: Parameters (as patterns) whose gradient is zero for every input, and why; by the name of the system in this sweep.
BEFORE_BATCH_NORM = "a constant, which batch norm behind the next 1 x 1 convolution takes out"
NO_GRADIENT: dict[str, dict[str, str]] = {
    "conditional-detr": KEY_BIAS | ZERO_CONTENT,
    "dab-detr": KEY_BIAS | ZERO_CONTENT,
    "rt-detr-published": {r"neck\.projections\.[01]\.1\.bias|encoder\.layers\.0\.ffn_residual\.norm\.bias": BEFORE_BATCH_NORM},
    "dn-detr": KEY_BIAS,
    "dn-detr-one-to-one": {
        **KEY_BIAS,
        r"layers\.0\.self_attention\.(query|key)_\w+\.(weight|bias)": "all queries have one content: whatever is attended to, it is that",
    },
    "dab-detr-patterns": {
        **KEY_BIAS,
        r"layers\.0\.self_attention\.key_position\.weight": "values differ by pattern alone, and every pattern stands at every anchor",
    },
    "detr": {
        r"layers\.0\.self_attention\.attention\.in_proj\.weight": "content is zero: every value is the bias, whatever is attended to",
    },
    "detr-pre-norm": {
        r"layers\.0\.self_residual\.norm\.weight": "it scales content, which is still zero",
    },
    **dict.fromkeys(("sam-detr", "sam-detr-gaussian", "sam-detr-levels"), KEY_BIAS | KEY_POSITION_BIAS | ZERO_CONTENT),
    "sam-detr-resampled": KEY_BIAS | ZERO_CONTENT,
    "d-fine-published": {
        r"(neck\.projections\.[01]|encoder\.shrink\.\d\.halve)\.1\.bias|encoder\.layers\.0\.ffn_residual\.norm\.bias": (BEFORE_BATCH_NORM),
    },
    "smca-detr": PACKED_ZERO_CONTENT,
    "smca-detr-type1": PACKED_ZERO_CONTENT,
    "smca-detr-type2": PACKED_ZERO_CONTENT,
    "smca-detr-type4": PACKED_ZERO_CONTENT,
    "smca-detr-levels": PACKED_ZERO_CONTENT,
}

#: Systems whose paper uses what lies under the padding, and why; the cause has a test of its own where it is named.
AFFECTED_BY_PADDING: dict[str, str] = dict.fromkeys(
    ("anchor-detr", "anchor-detr-grid"), "keys of rows and columns are means over all cells, padded or not (test_anchor_detr.py)"
)
AFFECTED_BY_PADDING |= dict.fromkeys(
    ("sam-detr", "sam-detr-gaussian", "sam-detr-resampled", "sam-detr-levels"), "RoIAlign averages all under a box (test_sam_detr.py)"
)
AFFECTED_BY_PADDING |= dict.fromkeys(("sparse-rcnn", "sparse-rcnn-encoder"), "boxes that leave the image read what is there, as published")


SYSTEMS = systems()
#: than ``tiny`` has
FEWER = {"decoder_layers": 2, "num_queries": 20}


@pytest.fixture(params=SYSTEMS)
def system(request) -> str:
    return request.param


@pytest.fixture
def model(system) -> DetectionTransformer:
    """Small, double precision, without dropout, every parameter away from its start value."""
    return shaken(build(system)).double().eval()


def build(system: str, **more) -> DetectionTransformer:
    name, options = SYSTEMS[system]
    # some of its first boxes have to be of every level's size
    size = tiny_width(name) if system == "sparse-rcnn" else FEWER
    return create(name, **(size | options | more))


def double_batch() -> tuple[Tensor, Tensor]:
    return batch(*SIZES, dtype=torch.float64)


def finite_gradients(model: DetectionTransformer) -> bool:
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in bq.list_models() for preset in presets(name)])
def test_every_preset_learns(name, preset):
    torch.manual_seed(0)
    model = bq.create_model(name, classes=CLASSES, preset=preset)
    images, mask = batch((64, 64))
    out = model(images, mask)
    queries = out.logits.shape[2]
    layers = presets(name)[preset].options.decoder_layers
    columns = CLASSES + model.criterion.classification.has_no_object
    assert out.logits.shape == (layers, 1, queries, columns)
    assert out.boxes.shape == (layers, 1, queries, 4)
    assert out.extra == {}
    loss, terms = model.loss(out, objects(2))
    loss.backward()
    assert bool(loss.isfinite())
    assert finite_gradients(model)
    assert {"class", "l1", "giou"} <= set(terms)
    assert all(terms[k].shape == (layers,) for k in ("class", "l1", "giou"))


def test_every_parameter_is_trained(system, model):
    model.train()
    images, mask = batch((128, 128), (96, 112), dtype=torch.float64)
    torch.manual_seed(0)
    targets = objects(3, 2, dtype=torch.float64)
    model.loss(model(images, mask, targets=targets), targets)[0].backward()
    norms = {n: None if p.grad is None else p.grad.norm().item() for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, norm in norms.items() if norm is None] == []
    least = 1e-10 * max(norms.values())
    idle = {n for n, norm in norms.items() if norm < least}
    excused = {pattern: {n for n in norms if re.fullmatch(pattern, n)} for pattern in NO_GRADIENT.get(system, {})}
    assert idle == set().union(*excused.values())
    assert all(excused.values())


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 0), (30, 2)], ids=["none", "one-image-without", "one", "more-than-queries"])
def test_any_number_of_objects(system, counts):
    model = build(system, num_queries=8)
    images, mask = batch(*SIZES)
    targets = objects(*counts)
    out = model(images, mask, targets=targets)
    assert out.logits.shape[2] == model(images, mask).logits.shape[2]
    loss, terms = model.loss(out, targets)
    loss.backward()
    assert all(bool(t.isfinite().all()) for t in (loss, *terms.values()))
    assert finite_gradients(model)
    if not any(counts):
        assert not terms["l1"].any()
        assert not terms["giou"].any()
    for image, count in enumerate(counts):
        for query, target in (images[image] for images in model.match(out, targets)):
            assert query.dtype == target.dtype == torch.int64
            assert len(query) == len(target) == min(count, out.logits.shape[2]) == len(set(query.tolist())) == len(set(target.tolist()))


def with_garbage(mask: Tensor, seed: int) -> Callable:
    """A hook on the neck: what lies under the padding becomes noise, on every level."""

    def replace(module, given, maps: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        out = []
        for features in maps:
            padding = F.interpolate(mask[:, None].double(), size=features.shape[-2:]).bool()
            noise = 10 * torch.randn(features.shape, generator=generator, dtype=features.dtype)
            out.append(torch.where(padding, noise, features))
        return out

    return replace


@torch.no_grad()
def test_padding_changes_nothing(system, model):
    images, mask = double_batch()
    outputs = []
    for seed in (3, 4):
        hook = model.neck.register_forward_hook(with_garbage(mask, seed))
        outputs.append(model(images, mask))
        hook.remove()
    if system in AFFECTED_BY_PADDING:
        assert not torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-6, rtol=0)
        return
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(outputs[0].boxes, outputs[1].boxes, atol=1e-6, rtol=0)
    if outputs[0].proposals is not None:
        torch.testing.assert_close(outputs[0].proposals.logits, outputs[1].proposals.logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(outputs[0].proposals.boxes, outputs[1].proposals.boxes, atol=1e-6, rtol=0)


@torch.no_grad()
def test_no_mask_is_a_mask_of_nothing(model):
    images, _ = double_batch()
    nothing, none = model(images, torch.zeros_like(images[:, 0], dtype=torch.bool)), model(images)
    torch.testing.assert_close(none.logits, nothing.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(none.boxes, nothing.boxes, atol=1e-6, rtol=0)


@torch.no_grad()
def test_images_do_not_see_each_other(model):
    images, mask = double_batch()
    together = model(images, mask)
    for i in range(len(images)):
        alone = model(images[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(together.logits[:, i], alone.logits[:, 0], atol=1e-9, rtol=0)
        torch.testing.assert_close(together.boxes[:, i], alone.boxes[:, 0], atol=1e-9, rtol=0)


@torch.no_grad()
def test_last_only(model):
    images, mask = double_batch()
    every, last = model(images, mask), model(images, mask, last_only=True)
    assert len(last.logits) == len(last.boxes) == 1
    assert torch.equal(last.logits[0], every.logits[-1])
    assert torch.equal(last.boxes[0], every.boxes[-1])


def beyond_image(model: DetectionTransformer) -> float:
    """How far boxes may lie outside: those whose sides are measured from another box, and those that move by shares of their own."""
    return {"SigmoidBoxCoder": 0.0, "DistributionBoxCoder": 0.5, "DeltaBoxCoder": math.inf}[type(model.criterion.coder).__name__]


def test_boxes_and_detections(model):
    images, mask = double_batch()
    out = model(images, mask)
    beyond = beyond_image(model)
    assert bool(((out.boxes >= -beyond) & (out.boxes <= 1 + beyond)).all())
    sizes = list(SIZES)
    for i, found in enumerate(model.postprocess(out, sizes)):
        assert set(found) == {"scores", "labels", "boxes"}
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert found["labels"].dtype == torch.int64
        assert bool(((found["labels"] >= 0) & (found["labels"] < out.logits.shape[-1])).all())
        assert found["boxes"].shape == (len(found["scores"]), 4)
        h, w = sizes[i]
        assert bool((found["boxes"].abs() <= (1.5 + beyond) * torch.tensor([w, h, w, h])).all())
    assert [len(a["scores"]) for a in model.postprocess(out, sizes, top_k=5)] == [5, 5]
    for found in model.postprocess(out, sizes, one_label=True):
        assert len(found["scores"]) == out.logits.shape[2]


def test_double_precision(model):
    images, mask = double_batch()
    targets = objects(2, 1, dtype=torch.float64)
    out = model(images, mask, targets=targets)
    loss, terms = model.loss(out, targets)
    assert {t.dtype for t in (out.logits, out.boxes, loss, *terms.values())} == {torch.float64}


def test_bfloat16(system):
    model, targets = build(system), objects(2, 1)
    images, mask = batch(*SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, mask, targets=targets)
        loss, terms = model.loss(out, targets)
    loss.backward()
    assert {t.dtype for t in (loss, *terms.values())} == {torch.float32}
    assert bool(loss.isfinite())
    assert finite_gradients(model)


def test_configuration_builds_the_model_again(system):
    model = build(system)
    config = json.loads(json.dumps(model.config))
    again = bq.create_model(config["name"], classes=config["classes"], preset=config["preset"], **config["options"])
    ours, theirs = model.state_dict(), again.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    again.load_state_dict(ours)


@pytest.mark.parametrize("name", bq.list_models())
def test_paper_options_are_the_defaults(name):
    assert options_of(name) == type(options_of(name))()
    assert has_option(name, "backbone", "num_queries", "hidden_dim")


@pytest.mark.parametrize("name", bq.list_models())
def test_freezing(name):
    """Stem, first stage and batch norm stand still; all else learns."""
    model = bq.create_model(name, classes=CLASSES, backbone="resnet10t", decoder_layers=1, encoder_layers=1)
    model.freeze()
    still = {n for n, p in model.backbone.named_parameters() if not p.requires_grad}
    moving = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert any("conv1" in n for n in still)
    assert any("layer1" in n for n in still)
    assert moving
    assert all(n.startswith(("body.layer2", "body.layer3", "body.layer4")) for n in moving)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.backbone.modules())
    assert model.config["frozen"] is True
