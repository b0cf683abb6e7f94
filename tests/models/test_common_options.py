"""Positions, the bias from box to pixel and convolutions, as options of every model: each learns, pads exactly, and comes back."""

import json
import re

import pytest
import torch

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.parts.geometry import OtherPosition, RelativeBias
from boxquery.parts.positions import NoPosition, SinePosition
from tests.models import test_sweep as sweep
from tests.models.builders import batch, create, has_option, objects, shaken

SIZES = ((64, 96), (48, 64))
SMALL = {"hidden_dim": 32, "ffn_dim": 32}
DENSE = ["detr", "conditional-detr", "smca-detr", "dab-detr", "dn-detr", "anchor-detr-dense"]
LEVELS = [name for name in bq.list_models() if has_option(name, "levels")]

#: system -> what the model needs beside the option
NEEDS = {
    "anchor-detr-dense": {"attention": "dense"},
    "deformable-detr-points": {"box_refine": False, "two_stage": False, "matching": "one-to-one"},
    "sparse-rcnn-encoder": {"encoder_layers": 1},
}
MODELS = [*bq.list_models(), *NEEDS]
#: those whose encoder has cells with positions and feed-forward networks
ENCODERS = [system for system in MODELS if system != "sparse-rcnn"]


def possible(name: str) -> tuple[str, ...]:
    """What ``query_position`` changes in a model: all but its own."""
    tiny = sweep.presets(model_of(name))["tiny"].options
    found, denoised = type(tiny).query_positions[1:], "denoising" in NEEDS.get(name, {}).get("matching", tiny.matching)
    return tuple(kind for kind in found if not (denoised and kind == "learned"))


def model_of(system: str) -> str:
    return system if system in bq.list_models() else system.rsplit("-", 1)[0]


def build(system: str, **options) -> DetectionTransformer:
    return create(model_of(system), **SMALL, **NEEDS.get(system, {}), **options)


CASES = [
    *((system, {"position": "learned"}) for system in ENCODERS if system != "anchor-detr"),
    *((system, {"query_position": kind}) for system in MODELS for kind in possible(system)),
    *((system, {"relative_bias": True}) for system in DENSE),
    ("smca-detr", {"relative_bias": True, "levels": 3, "dilation": False, "centre_stride": 32}),
    *((system, {"encoder_ffn": "convolutional"}) for system in ENCODERS),
    *((name, {"encoder": "hybrid", "levels": 3, "dilation": False}) for name in LEVELS),
    ("deformable-detr", {"encoder": "hybrid", "levels": 4, "encoder_ffn": "convolutional", "num_queries": [12, 7, 4]}),
    ("dab-detr", {"relative_bias": True, "query_position": "learned", "position": "none", "num_queries": [12, 7, 4]}),
    ("conditional-detr", {"relative_bias": True, "query_position": "sine-mlp", "num_queries": [12, 7, 4]}),
]


def name_of(value) -> str:
    return value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items())


@pytest.mark.parametrize(("system", "options"), CASES, ids=name_of)
def test_learns_pads_exactly_and_comes_back(system, options):
    model = shaken(build(system, **options)).double()
    images, mask = batch(*SIZES, dtype=torch.float64)
    targets = objects(3, 2, dtype=torch.float64)
    out = model(images, mask, targets=targets)
    loss, _ = model.loss(out, targets)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())] == []
    known = set(build(system).state_dict())
    # a locate that wraps the paper's has the paper's under one more name
    new = {n: p for n, p in model.named_parameters() if n.replace("place.place.", "place.").replace("place.place.", "place.") not in known}
    # boxes of these images are read at the finest level
    idle = r".*key_place\.bias" if model_of(system) != "sparse-rcnn" else r"encoder\.(shrink|bottom_up)\..+"
    assert [n for n, p in new.items() if not p.grad.any() and not re.fullmatch(idle, n)] == []

    config = json.loads(json.dumps(model.config))
    again = bq.create_model(config["name"], classes=config["classes"], preset=config["preset"], **config["options"]).double()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model.eval()(images, mask)
        assert torch.equal(again.eval()(images, mask).logits, expected.logits)
        alone = model(images[1:], mask[1:])
    torch.testing.assert_close(alone.logits[:, 0], expected.logits[:, 1], atol=1e-8, rtol=0)
    if set(options) - {"query_position"}:
        sweep.test_padding_changes_nothing(system if system in sweep.AFFECTED_BY_PADDING and "encoder" not in options else "", model)
    if "encoder" in options:
        traced = model(images, mask, trace=True).trace
        assert len(traced.layers) == 3
        assert not traced.encoder


@pytest.mark.parametrize(
    ("system", "options"), [("dab-detr", {"relative_bias": True}), ("deformable-detr", {"encoder": "hybrid", "levels": 3})], ids=name_of
)
def test_bfloat16(system, options):
    model, targets = build(system, encoder_ffn="convolutional", query_position="none", **options), objects(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.loss(model(*batch(*SIZES), targets=targets), targets)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("system", MODELS)
def test_the_defaults_are_the_paper(system):
    """Nothing is laid over a model, and no name of a weight changes."""
    model = build(system)
    own = {"query_position": type(sweep.presets(model_of(system))["paper"].options).query_positions[0]}
    if system == "deformable-detr":  # which is two-stage here
        own = {}
    said = build(system, encoder=model.config["options"]["encoder"], encoder_ffn="linear", relative_bias=False, **own)
    assert not any(isinstance(part, OtherPosition | RelativeBias) for m in (model, said) for part in m.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), said.state_dict().values(), strict=True))
    assert list(model.state_dict()) == list(said.state_dict())


@pytest.mark.parametrize("system", [s for s in ENCODERS if s != "anchor-detr"])
@pytest.mark.parametrize(("kind", "part"), [("sine", SinePosition), ("none", NoPosition)])
def test_positions_of_the_image(system, kind, part):
    model = build(system, position=kind)
    assert type(model.tokens.position) is part
    if model.tokens.level_embedding is not None:
        torch.nn.init.zeros_(model.tokens.level_embedding)
    images, mask = batch(*SIZES)
    assert bool(model.embed_image(images, mask).position.any()) == (kind != "none")
    loss, _ = model.loss(model(images, mask), objects(3, 2))
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("system", ["detr", "conditional-detr", "smca-detr", "dab-detr"])
def test_a_bias_is_zero_at_first_and_then_moves_the_attention(system):
    """A large bias for cells right of a box's left side and left of its right side draws the attention into the box before."""
    plain, model = build(system).eval(), build(system, relative_bias=True).eval()
    weights = {k.removeprefix("place.") if k.startswith("place.place.") else k: v for k, v in model.state_dict().items()}
    plain.load_state_dict({k: v for k, v in weights.items() if k in plain.state_dict()})
    images, mask = batch(*SIZES)
    torch.testing.assert_close(model(images, mask).logits, plain(images, mask).logits, atol=1e-5, rtol=0)
    for mlp in (*model.place.across, *model.place.down):
        first, last = mlp.layers
        first.weight.zero_()
        first.bias.zero_()
        last.weight.zero_()
        # relu(-d) of either side, against it
        first.weight[0, 0] = first.weight[1, 1] = -1
        last.weight[:, :2] = -1000.0
    out = model(images, mask, trace=True)
    for image, (h, w) in enumerate(SIZES):
        for i, layer in enumerate(out.trace.layers):
            reference = layer.reference
            for query in range(3):
                if reference is not None and reference.shape[-1] == 4:
                    box = reference[image, query]
                elif i == 0:
                    box = torch.tensor([0.5, 0.5, 1, 1]) if reference is None else torch.cat((reference[image, query], torch.zeros(2)))
                else:
                    box = out.boxes[i - 1, image, query]
                rows, columns = (torch.arange(-(-n // 16)) for n in (h, w))
                x, y = (columns + 0.5) * 16 / w, (rows + 0.5) * 16 / h
                across = ((x - box[0]).abs() - box[2] / 2).clamp(min=0)
                down = ((y - box[1]).abs() - box[3] / 2).clamp(min=0)
                away = down[:, None] + across
                weights = layer.attention[0][image, :, query, : len(rows), : len(columns)]
                torch.testing.assert_close(weights.sum((1, 2)), torch.ones(len(weights)), atol=1e-4, rtol=0)
                assert float((weights * (away > away.min() + 0.02)).sum()) < 1e-3


def test_the_last_prediction_teaches_nothing_through_the_bias():
    """The box that the bias is measured from is detached: earlier boxes get no gradient from the last layer's predictions."""
    model = shaken(build("detr", relative_bias=True))
    out = model(*batch(*SIZES))
    (gradient,) = torch.autograd.grad(out.logits[-1].sum(), model.heads[0].boxes.layers[0].weight, allow_unused=True)
    assert gradient is None


@torch.no_grad()
def test_positions_of_queries():
    """Positions of each kind: the same for equal references, nothing for none, its own row for learned, also after some were dropped."""
    images, mask = batch(*SIZES)
    for kind in ("learned", "sine", "sine-mlp", "none"):
        model = build("dab-detr", query_position=kind, num_queries=[12, 7, 4]).eval()
        records, inner = [], model.place

        class Watched(torch.nn.Module):
            def forward(self, state, memory, layer, inner=inner, records=records):
                state, geometry = inner(state, memory, layer)
                records.append((state, geometry))
                return state, geometry

        model.place = Watched()
        model(images, mask)
        for state, geometry in records:
            position = geometry.self_position.expand(2, state.content.shape[1], -1)
            assert geometry.position is not geometry.self_position  # the position that is compared with the image's stays
            if kind == "none":
                assert not position.any()
            elif kind == "learned":
                rows = torch.arange(12).expand(2, -1) if state.query_index is None else state.query_index
                assert torch.equal(position, inner.table[rows])
            else:
                assert not torch.equal(position[:, 0], position[:, 1])
        if kind == "learned":
            assert [geometry.self_position.shape[1] for _, geometry in records] == [12, 7, 4]
