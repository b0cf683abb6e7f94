"""Gradient relevance, against scaling tokens by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

import boxquery as bq
from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.explain.relevance import relevance, relevances, token_relevance
from boxquery.parts.attention import dense as attention
from boxquery.parts.queries import ProposalQueries
from tests.models.builders import batch, create, shaken

STEP = 1e-6
#: options without what papers detach on purpose, beside one decoder layer: gradients do not see it, and scaling a token does
ATTACHED = {
    "deformable-detr": {"box_refine": False, "two_stage": False, "matching": "one-to-one"},
    "sam-detr": {"cross_attention": False},
}
NAMES = ["disc", "square", "triangle"]


def detector(name: str, seed: int = 0) -> Detector:
    return Detector(shaken(create(name, seed=seed)), NAMES, [1, 2, 3], Preprocessing(64))


@pytest.mark.parametrize("name", bq.list_models())
def test_is_what_happens_when_a_token_is_scaled(name):
    """The log-odds' change, by central differences through the model itself (its encoder is given other tokens)."""
    model = shaken(create(name, decoder_layers=1, **ATTACHED.get(name, {})), 0.1).double().eval()
    images, _ = batch((64, 96), dtype=torch.float64)
    query = 3
    with torch.no_grad():
        if isinstance(model.queries, ProposalQueries):  # always detached, so scaling a token must not see them either
            state = model.queries(model.encoder(model.embed_image(images)))
            model.queries.forward = lambda memory, targets=None: state
        logits = model(images).logits[-1, 0, query]
    label = int(model.criterion.classification.scores(logits).argmax())
    memory, found = token_relevance(model, images, [0, query])
    assert found.shape == (2, memory.tokens.shape[1])
    largest = int(found[1].abs().argmax())
    for token in (0, largest, memory.tokens.shape[1] - 1):
        low, high = (log_odds(model, images, token, 1 + a, query, label) for a in (-STEP, STEP))
        assert float(found[1, token]) == pytest.approx((high - low) / (2 * STEP), rel=1e-4, abs=1e-7)


@torch.no_grad()
def log_odds(model, images, token: int, factor: float, query: int, label: int) -> float:
    def scale(module, given):
        memory, *rest = given
        tokens = memory.tokens.clone()
        tokens[:, token] *= factor
        return (memory.with_tokens(tokens), *rest)

    hook = model.encoder.register_forward_pre_hook(scale)
    logits = model(images).logits[-1, 0, query]
    hook.remove()
    if model.criterion.classification.has_no_object:
        others = torch.cat((logits[:label], logits[label + 1 :]))
        return float(logits[label] - others.logsumexp(0))
    return float(logits[label])


@pytest.mark.parametrize("name", bq.list_models())
def test_map(name):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    seen = detector(name)
    many = relevances(seen, image, [4, 1], size=(7, 9))
    assert many.map.shape == (2, 7, 9)
    assert bool((many.map >= 0).all())
    torch.testing.assert_close(many.map.sum((-2, -1)), torch.ones(2))
    one = relevance(seen, image, 1, size=(7, 9))
    torch.testing.assert_close(one.map, many.map[1])
    assert one.lost == pytest.approx(0, abs=1e-9)
    assert relevance(seen, image, 1).map.shape == (70, 90)


def test_only_what_is_read_is_relevant(monkeypatch):
    """Every attention is held to one token: its cell has all relevance, and the map is that cell."""
    planted = 5
    seen = Detector(shaken(create("detr", encoder_layers=0), 0.1), NAMES, [1, 2, 3], Preprocessing(64))

    def only(look, memory):
        return torch.arange(memory.tokens.shape[1])[None, None, None] == planted

    monkeypatch.setattr(attention, "cross_attention_bias", only)
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    memory, change = token_relevance(seen.model.eval(), seen.transform(Image.fromarray(image))[None], range(4))
    ((h, w),) = memory.shapes
    assert change[:, planted].all()
    assert not change[:, [i for i in range(h * w) if i != planted]].any()
    query = int((change[:, planted] > 0).nonzero()[0])
    heat = relevance(seen, image, query, size=(2 * h, 2 * w)).map
    row, column = 2 * (planted // w), 2 * (planted % w)
    expected = torch.zeros(2 * h, 2 * w)
    expected[row : row + 2, column : column + 2] = 0.25
    torch.testing.assert_close(heat, expected)


def test_no_relevance():
    """A head that ignores its input: all zero, and all lost."""
    seen = detector("detr")
    with torch.no_grad():
        seen.model.head(0).classes.weight.zero_()
    heat = relevance(seen, np.zeros((64, 64, 3), np.uint8), 0)
    assert not heat.map.any()
    assert heat.lost == 1


def test_unnamed_columns_are_never_predicted():
    model = shaken(create("anchor-detr"), 0.1).eval()
    images, _ = batch((64, 64))
    best = int(model(images).logits[-1, 0, 0].argmax())
    _, every = token_relevance(model, images, [0])
    _, without = token_relevance(model, images, [0], unnamed=[best])
    assert not torch.allclose(every, without)


def test_leaves_the_model_alone():
    seen = detector("deformable-detr")
    relevance(seen, np.zeros((64, 64, 3), np.uint8), 0)
    assert all(p.grad is None for p in seen.model.parameters())


@pytest.mark.parametrize("query", [-1, 10_000])
def test_no_such_query(query):
    with pytest.raises(UserError, match=f"query {query}: the model has"):
        relevance(detector("detr"), np.zeros((64, 64, 3), np.uint8), query)
