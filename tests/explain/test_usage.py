"""Wins, places, inequality and duplicates of queries, against slow formulas and planted models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.detector import Detector
from boxquery.evaluation.metrics import evaluate
from boxquery.explain.inference import without_self_attention
from boxquery.explain.usage import Usage, colours, gini, most_used, position_map, quality, usage
from tests.explain.planted import NAMES, record, scenes
from tests.models.builders import batch, create, shaken, systems

SCENES = shapes_data(train=1, val=6, test=1, size=64)


def tiny(name: str, threshold: float = 0.1, **options) -> Detector:
    model = shaken(create(name, classes=len(SCENES.names), **options))
    return Detector(model, SCENES.names, SCENES.ids, Preprocessing(64), threshold)


def test_gini_of_equal_wins_and_of_one_winner():
    assert gini(np.full(7, 3)) == 0
    assert gini(np.array([0, 0, 5, 0])) == pytest.approx(3 / 4)
    assert gini(np.zeros(4, np.int64)) is None
    wins = np.random.default_rng(0).integers(0, 20, 30)
    slow = sum(abs(int(a) - int(b)) for a in wins for b in wins) / (2 * len(wins) ** 2 * wins.mean())
    assert gini(wins) == pytest.approx(slow)


@pytest.mark.parametrize("system", [*systems(), "first layers"])
def test_without_self_attention_every_query_attends_to_itself_alone(system):
    name, options = (systems() | {"first layers": ("deformable-detr", {"inference_layers": 1})})[system]
    model = shaken(create(name, **options)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, mask = batch((96, 128), (64, 80))
    with torch.no_grad():
        usual = model(images, mask)
        alone = without_self_attention(model)(images, mask, trace=True)
        again = model(images, mask)
    for layer in alone.trace.layers:
        queries = layer.self_attention.shape[-1]
        assert torch.equal(layer.self_attention, torch.eye(queries).expand_as(layer.self_attention))
    assert len(alone.logits) == len(usual.logits)
    assert not torch.allclose(alone.logits[-1], usual.logits[-1], atol=1e-4)
    assert torch.equal(again.logits, usual.logits)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_self_attention_a_query_predicts_the_same_whatever_the_others():
    model = shaken(create("detr")).eval()
    images, mask = batch((64, 64))
    with torch.no_grad():
        alone = without_self_attention(model)(images, mask)
        table = next(p for n, p in model.queries.named_parameters() if p.dim() == 2)
        table[1:] = torch.randn_like(table[1:])
        other = without_self_attention(model)(images, mask)
        mixed = model(images, mask)
    assert torch.allclose(alone.logits[:, :, 0], other.logits[:, :, 0], atol=1e-5)
    assert not torch.allclose(alone.logits[:, :, 1], other.logits[:, :, 1], atol=1e-3)
    assert not torch.allclose(alone.logits[:, :, 0], mixed.logits[:, :, 0], atol=1e-4)


def test_identical_queries_are_all_duplicates_but_one():
    detector = tiny("detr", threshold=0.0)
    with torch.no_grad():
        for parameter in detector.model.queries.parameters():
            parameter[:] = parameter[:1]
    result = usage(detector, SCENES)
    images, queries = result.scores.shape
    assert result.with_self_attention.detections == images * queries
    assert result.with_self_attention.duplicate_rate == pytest.approx((queries - 1) / queries)
    assert result.without_self_attention.duplicate_rate == pytest.approx((queries - 1) / queries)
    assert gini(result.detections) == 0
    assert result.dead == []


def test_numbers_are_those_of_slow_loops_over_predict():
    detector = tiny("smca-detr")
    detector.threshold = float(np.median(usage(detector, SCENES, threshold=0.0).scores))
    result = usage(detector, SCENES)
    split = SCENES.splits["val"]
    predicted = [detector.predict(split.read(i)) for i in range(len(split))]
    assert result.with_self_attention.detections == sum(len(one) for one in predicted) == result.detections.sum()
    assert [query for query in range(result.scores.shape[1]) if not (result.scores[:, query] >= result.threshold).any()] == result.dead
    assert result.matched.sum() == result.objects == sum(len(record.boxes) for record in split)
    with torch.no_grad():
        one = detector.model(detector.transform(split.read(2))[None])
    assert np.allclose(result.boxes[2], one.boxes[-1, 0].numpy(), atol=1e-4)
    assert np.allclose(result.mean, sum(result.boxes.astype(np.float64)) / len(split))
    assert np.allclose(result.spread, np.std(result.boxes.astype(np.float64), 0))
    assert result.equal_count.detections == result.with_self_attention.detections
    assert most_used(result, 3)[0] == int(np.lexsort((-result.matched, -result.detections))[0])


def test_rates_are_those_of_evaluation():
    """At evaluation's threshold, of predictions with one label per query."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 30, (20, 4, 2))
    records = [
        record(str(i), np.concatenate([c, c + 20], 1).tolist(), rng.integers(0, 3, 4).tolist(), [False] * 3 + [True])
        for i, c in enumerate(truth)
    ]
    found = {}
    for i, scene in enumerate(records):
        picked = rng.integers(0, 4, 12)
        boxes = scene.boxes[picked] + rng.normal(0, 2, (12, 1))
        found[i] = boxes, rng.random(12), np.where(rng.random(12) < 0.8, scene.labels[picked], rng.integers(0, 3, 12))
    expected = evaluate(records, found, NAMES, [1, 2, 3])
    got = quality(scenes(records).splits["val"], found, 3, expected["best_threshold"])
    assert got.duplicate_rate == pytest.approx(expected["duplicate_rate"])
    assert got.duplicate_rate > 0
    assert (got.precision, got.recall) == pytest.approx((expected["precision"], expected["recall"]))


def test_two_stage_models_are_counted_by_rank(tmp_path, capsys):
    result = usage(tiny("deformable-detr", two_stage=True, box_refine=True), SCENES)
    assert result.summary()["by"] == "rank"
    result.show()
    assert "rank of the proposal" in " ".join(capsys.readouterr().out.split())
    assert "rank of the proposal" in result.write(tmp_path).read_text(encoding="utf-8")
    assert usage(tiny("deformable-detr", two_stage=False, matching="one-to-one"), SCENES).summary()["by"] == "query"


def test_colours_say_size_and_shape():
    small, wide, tall, square = colours(np.array([[0.05, 0.05], [0.9, 0.2], [0.2, 0.9], [0.5, 0.5]])).tolist()
    assert max(small) == small[1]
    assert max(wide) == wide[0]
    assert max(tall) == tall[2]
    assert square[1] < min(square[0], square[2])


def test_a_map_has_a_dot_where_the_centre_is():
    picture = np.asarray(position_map(np.array([[0.25, 0.75, 0.1, 0.1], [1.4, 0.5, 0.1, 0.1]]), 100))
    y, x = np.nonzero(picture[..., 3])
    assert (x.mean(), y.mean()) == pytest.approx((24.5, 74.5), abs=1)


def test_page_and_figure_need_nothing_else(tmp_path):
    result = usage(tiny("detr", threshold=0.9999), SCENES)
    assert isinstance(result, Usage)
    assert result.dead == list(range(result.scores.shape[1]))
    assert result.with_self_attention.duplicate_rate is None
    assert result.summary()["gini_detections"] is None
    json.dumps(result.summary(), allow_nan=False)
    result.show()
    page = result.write(tmp_path).read_text(encoding="utf-8")
    assert "://" not in page
    assert "<script" not in page
    assert page.count("<img") == min(20, result.scores.shape[1])
    assert Image.open(tmp_path / "usage.png").size[0] > 1000
