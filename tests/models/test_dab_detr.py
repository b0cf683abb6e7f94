"""DAB-DETR's options that have no reference numbers, against formulas written out."""

import math

import pytest
import torch
from torch import Tensor

import boxquery as bq
from boxquery.parts.heads import Prediction
from boxquery.parts.state import QueryState
from tests.models.builders import batch, create, objects, shaken


def same_weights(target, source) -> None:
    """Everything that both have under one name and shape."""
    ours, theirs = target.state_dict(), source.state_dict()
    target.load_state_dict({k: theirs[k] if k in theirs and theirs[k].shape == v.shape else v for k, v in ours.items()})


@torch.no_grad()
def test_equal_patterns_are_the_same_queries_again():
    """With zero vectors as patterns every anchor stands there twice, and a softmax over twins is the softmax over one."""
    plain = shaken(create("dab-detr")).double().eval()
    double = create("dab-detr", patterns=2).double().eval()
    same_weights(double, plain)
    double.queries.content.zero_()
    images, mask = batch((96, 128), (64, 80), dtype=torch.float64)
    one, two = plain(images, mask), double(images, mask)
    for half in two.logits.chunk(2, 2):
        torch.testing.assert_close(half, one.logits)
    for half in two.boxes.chunk(2, 2):
        torch.testing.assert_close(half, one.boxes)


@torch.no_grad()
def test_patterns_come_one_after_the_other():
    model = create("dab-detr", patterns=3, num_queries=5)
    memory = model(*batch((64, 64)), trace=True).trace.layers[0].memory
    state = model.queries(memory, None)
    for pattern in range(3):
        for anchor in range(5):
            assert torch.equal(state.content[0, pattern * 5 + anchor], model.queries.content[pattern])
            assert torch.equal(state.reference[0, pattern * 5 + anchor], model.queries.anchors[anchor])


@pytest.mark.parametrize("name", ["dab-detr", "dab-deformable-detr"])
def test_fixed_centres(name):
    model = create(name, fixed_xy=True, num_queries=200)
    centres = model.queries.centres.sigmoid()
    assert 0.4 < centres.mean() < 0.6
    assert 0.25 < centres.std() < 0.33  # even over [0, 1): 0.289
    images, mask = batch((64, 96))
    targets = objects(3)
    model.loss(model(images, mask), targets)[0].backward()
    assert model.queries.anchors.shape == (200, 2)
    assert model.queries.anchors.grad.any()
    assert "queries.centres" not in dict(model.named_parameters())
    assert "queries.centres" in model.state_dict()
    learned = create(name, num_queries=200)
    same_weights(learned, model)
    with torch.no_grad():
        learned.queries.anchors.copy_(torch.cat((model.queries.centres, model.queries.anchors), -1))
        assert torch.equal(learned.eval()(images, mask).boxes, model.eval()(images, mask).boxes)


@pytest.mark.parametrize("name", ["dab-detr", "dab-deformable-detr", "sam-detr"])
def test_first_boxes(name):
    published = create(name, num_queries=2000, anchor_size=0.0).queries.anchors.detach()
    assert published.mean(0).abs().max() < 0.1
    assert (published.std(0) - 1).abs().max() < 0.1
    chosen = create(name, num_queries=2000, anchor_size=0.2).queries.anchors.detach().sigmoid()
    assert (chosen[:, :2].mean(0) - 0.5).abs().max() < 0.03
    assert (chosen[:, :2].std(0) - 0.289).abs().max() < 0.02  # even over [0, 1)
    assert (chosen[:, 2:].median(0).values - 0.2).abs().max() < 0.02
    assert chosen[:, 2:].max() < 0.5


def waves(value: float, features: int) -> list[float]:
    """Sine and cosine of one number in [0, 1], pair by pair."""
    out = []
    for pair in range(features // 2):
        angle = 2 * math.pi * value / 10000 ** (2 * pair / features)
        out += [math.sin(angle), math.cos(angle)]
    return out


def state_of(model, queries: int = 4) -> tuple[QueryState, Tensor]:
    generator = torch.Generator().manual_seed(5)
    dim = model.config["options"]["hidden_dim"]
    content = torch.randn(2, queries, dim, generator=generator, dtype=torch.float64)
    reference = torch.randn(2, queries, 4, generator=generator, dtype=torch.float64)
    return QueryState(content=content, reference=reference, box_anchor=reference), reference.sigmoid()


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_locate(layer):
    """Section 4.3: y comes first in the features, and each axis is scaled by the reference size over the box's own."""
    model = shaken(create("dab-detr")).double().eval()
    images, mask = batch((96, 128), (64, 80), dtype=torch.float64)
    memory = model(images, mask, trace=True).trace.layers[0].memory
    state, boxes = state_of(model)
    _, geometry = model.place(state, memory, layer)
    half = state.content.shape[-1] // 2
    for image in range(2):
        for query in range(4):
            x, y, w, h = boxes[image, query].tolist()
            content = state.content[image, query]
            wide, high = model.place.size(content).sigmoid().tolist()
            scale = model.place.scale(content).tolist() if layer else [1.0] * 2 * half
            wanted = [v * s * high / h for v, s in zip(waves(y, half), scale[:half], strict=True)]
            wanted += [v * s * wide / w for v, s in zip(waves(x, half), scale[half:], strict=True)]
            torch.testing.assert_close(geometry.position[image, query].tolist(), wanted)
            every = torch.tensor([v for number in (y, x, w, h) for v in waves(number, half)], dtype=torch.float64)
            torch.testing.assert_close(geometry.self_position[image, query], model.place.position(every))
    torch.testing.assert_close(geometry.reference, boxes)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_locate_on_deformable_attention(layer):
    """The box is in shares of the padded image of the finest level."""
    model = shaken(create("dab-deformable-detr")).double().eval()
    images, mask = batch((96, 128), (64, 80), dtype=torch.float64)
    memory = model(images, mask, trace=True).trace.layers[0].memory
    state, boxes = state_of(model)
    _, geometry = model.place(state, memory, layer)
    half = state.content.shape[-1] // 2
    for image, (width, height) in enumerate([(1.0, 1.0), (80 / 128, 64 / 96)]):
        for query in range(4):
            x, y, w, h = boxes[image, query].tolist()
            seen = [v for number in (y * height, x * width, w * width, h * height) for v in waves(number, half)]
            wanted = model.place.position(torch.tensor(seen, dtype=torch.float64))
            if layer:
                wanted = wanted * model.place.scale(state.content[image, query])
            torch.testing.assert_close(geometry.position[image, query], wanted)


def test_the_next_reference_carries_no_gradient_but_the_prediction_does():
    model = shaken(create("dab-detr")).double().eval()
    content = torch.randn(1, 3, model.config["options"]["hidden_dim"], dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)
    state = model.refine(
        QueryState(content=content, reference=logits, box_anchor=logits), Prediction(model.head(0), content, logits), model.head(0)
    )
    assert not state.reference.requires_grad
    assert state.box_anchor.requires_grad
    assert torch.equal(state.reference, state.box_anchor)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dab-detr", {"patterns": -1}, "patterns=-1: must be 0"),
        ("dab-detr", {"anchor_size": 1.0}, "anchor_size=1.0: must be a share"),
        ("sam-detr", {"anchor_size": -0.1}, "anchor_size=-0.1: must be a share"),
        ("dab-detr", {"levels": 3}, "unknown option 'levels'"),
        ("dab-deformable-detr", {"levels": 0}, "levels=0: must be at least 1"),
        ("dab-deformable-detr", {"hidden_dim": 40}, "hidden_dim=40: must be a multiple of 32"),
    ],
)
def test_wrong_options(name, options, said):
    with pytest.raises(bq.UserError, match=said):
        bq.create_model(name, classes=3, preset="tiny", **options)
