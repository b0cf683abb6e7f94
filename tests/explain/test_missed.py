"""Every reason is found for its planted case, and only there."""

import json
from dataclasses import replace

import numpy as np
import pytest

import boxquery as bq
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.coco_matching import coco_match, flatten_detections, iou
from boxquery.explain.missed import REASONS, SIZES, explain_misses, missed
from tests.explain.planted import NAMES, reader, record, scenes

TRUTH = (10, 10, 30, 30)
FAR = (50, 50, 60, 60)
THRESHOLD = 0.5


def predictions(*queries):
    """(box, {class: score}) per query -> boxes [1, Q, 4] and scores [1, Q, 3]; of all layers, where a query is a list."""
    layers = max(len(query) if isinstance(query, list) else 1 for query in queries)
    layered = [query if isinstance(query, list) else [query] * layers for query in queries]
    boxes = np.array([[query[layer][0] for query in layered] for layer in range(layers)], np.float64)
    scores = np.array([[[query[layer][1].get(c, 0.01) for c in range(3)] for query in layered] for layer in range(layers)], np.float32)
    return boxes, scores


def reasons(scene, *queries):
    found = explain_misses(scene, 0, *predictions(*queries), NAMES, THRESHOLD)
    return {miss.object: miss for miss in found}


ONE = record("a", [TRUTH], [0])
PAIR = record("a", [TRUTH, (12, 10, 32, 30)], [0, 0])


def test_found_is_not_missed():
    assert reasons(ONE, (TRUTH, {0: 0.9})) == {}


@pytest.mark.parametrize(
    ("reason", "queries", "words"),
    [
        ("never proposed", [(FAR, {0: 0.9})], "no query's box overlaps it; the nearest is that of query 0 (disc 0.90)"),
        ("never proposed", [((10, 10, 30, 18), {0: 0.2})], "IoU of 0.40"),
        ("wrong class", [(TRUTH, {2: 0.8, 0: 0.3})], "predicts star 0.80, and disc 0.30; IoU 1.00"),
        ("below threshold", [(TRUTH, {0: 0.3})], "predicts disc 0.30, the threshold is 0.50"),
        ("below threshold", [(TRUTH, {0: 0.3, 1: 0.4})], "its best class is square 0.40"),
        ("badly localised", [((10, 10, 30, 18), {0: 0.9})], "IoU of 0.400"),
        ("wrong class", [(TRUTH, {1: 0.8}), ((10, 10, 30, 18), {0: 0.9}), (TRUTH, {0: 0.4})], "query 0 predicts square"),
        ("badly localised", [((10, 10, 30, 18), {0: 0.9}), (TRUTH, {0: 0.4})], "query 0 predicts disc"),
    ],
)
def test_each_reason(reason, queries, words):
    miss = reasons(ONE, *queries)[0]
    assert miss.reason == reason
    assert words in miss.details
    assert miss.name == "disc"
    assert miss.size == "small"


def test_taken_over_by_a_neighbour():
    found = reasons(PAIR, ((12, 10, 32, 30), {0: 0.9}), (FAR, {0: 0.1}))
    assert [(number, miss.reason, miss.query) for number, miss in found.items()] == [(0, "taken over", 0)]
    assert "found a disc beside it: IoU 1.00 there, 0.82 here" in found[0].details


def test_a_silenced_query_of_its_own_is_below_threshold_and_one_of_the_neighbour_is_not():
    winner = ((12, 10, 32, 30), {0: 0.9})
    assert reasons(PAIR, winner, (TRUTH, {0: 0.4}))[0].reason == "below threshold"
    assert reasons(PAIR, winner, ((12, 10, 32, 30), {0: 0.4}))[0].reason == "taken over"


def test_taken_over_between_layers():
    scene = record("a", [TRUTH, FAR], [0, 1])
    moved = [(TRUTH, {0: 0.8}), (FAR, {1: 0.9})]
    miss = reasons(scene, moved)[0]
    assert (miss.reason, miss.query) == ("taken over", 0)
    assert miss.details == "query 0 had found it in layer 1 and then moved to a square"
    weak = [(TRUTH, {0: 0.3}), (FAR, {1: 0.9})]
    assert reasons(scene, weak)[0].reason == "never proposed"


def test_a_query_that_found_a_neighbour_of_another_class_is_no_wrong_class():
    scene = record("a", [TRUTH, (12, 10, 32, 30)], [0, 1])
    assert reasons(scene, (TRUTH, {1: 0.9}))[0].reason == "taken over"


def test_ignored_objects_are_neither_missed_nor_anyone():
    scene = record("a", [TRUTH, TRUTH], [0, 0], [True, False])
    assert list(reasons(scene, (FAR, {0: 0.9}))) == [1]
    crowd = record("a", [TRUTH, (8, 8, 32, 32)], [0, 1], [False, True])
    miss = reasons(crowd, (TRUTH, {1: 0.9}))[0]
    assert miss.reason == "taken over"
    assert "is in an ignored region of its class" in miss.details


def test_every_missed_object_has_one_reason_that_the_slow_rules_give():
    """Random scenes against the docstring's rules, written as loops."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        corner = rng.uniform(0, 40, (5, 2))
        scene = record("a", np.concatenate([corner, corner + rng.uniform(6, 24, (5, 2))], 1).tolist(), rng.integers(0, 3, 5).tolist())
        base = scene.boxes[rng.integers(0, 5, 8)] + rng.normal(0, 3, (2, 8, 4))
        boxes = np.concatenate([np.minimum(base[..., :2], base[..., 2:]), np.maximum(base[..., :2], base[..., 2:])], -1)
        scores = rng.beta(1, 2, (2, 8, 3)).astype(np.float32)
        best, labels = scores[-1].max(-1), scores[-1].argmax(-1)
        shown = np.flatnonzero(best >= THRESHOLD)
        table = flatten_detections([scene], {0: (boxes[-1, shown], best[shown], labels[shown])}, 3, 100)
        _, found = coco_match([scene], table, 0.5)
        rows = [int(shown[np.flatnonzero(best[shown] == score)[0]]) for score in table.scores.astype(np.float32)]
        object_of = dict(zip(rows, found.tolist(), strict=True))
        got = {miss.object: miss.reason for miss in explain_misses(scene, 0, boxes, scores, NAMES, THRESHOLD)}
        assert set(got) == set(range(5)) - set(found.tolist())
        for number, reason in got.items():
            assert reason == _slow(scene, boxes, scores, object_of, number)
            seen.add(reason)
    assert seen == set(REASONS)


def _slow(scene, boxes, scores, object_of, number):
    last = scores[-1]
    overlap, before = iou(boxes[-1], scene.boxes.astype(np.float64)), iou(boxes[0], scene.boxes.astype(np.float64))
    free = [q for q in range(8) if object_of.get(q, -1) < 0]
    own = [q for q in free if overlap[q, number] == overlap[q].max()]
    if any(overlap[q, number] >= 0.5 and q in object_of for q in own):
        return "wrong class"
    if any(overlap[q, number] >= 0.1 and q in object_of and last[q].argmax() == scene.labels[number] for q in own):
        return "badly localised"
    if any(overlap[q, number] >= 0.5 for q in own):
        return "below threshold"
    for q in range(8):
        had = before[q, number] >= 0.5 and scores[0, q].argmax() == scene.labels[number] and scores[0, q].max() >= THRESHOLD
        if overlap[q, number] >= 0.5 or (had and q not in free):
            return "taken over"
    return "never proposed"


SCENE = [
    record("a", [(4, 4, 20, 20), (30, 8, 60, 38), (6, 40, 26, 60)], [0, 1, 2]),
    record("b", [(8, 8, 24, 30), (40, 40, 60, 60)], [0, 1]),
]


def test_a_perfect_detector_misses_nothing():
    result = missed(reader([0, 1, 2], [0.9, 0.9, 0.9]), scenes(SCENE))
    assert result.items == []
    assert result.total()["objects"] == 5
    assert result.summary()["by_class"]["disc"] == {"objects": 2, "missed": 0, **dict.fromkeys(REASONS, 0)}


def test_an_erased_object_is_never_proposed_and_no_other_is_missed(tmp_path):
    result = missed(reader([0, 1, 2], [0.9, 0.9, 0.9]), scenes(SCENE, erased=[("a", 1)]))
    assert [(miss.image, miss.object, miss.name, miss.reason) for miss in result.items] == [("a", 1, "square", "never proposed")]
    page = result.write(tmp_path / "new").read_text(encoding="utf-8")
    assert page.count("<img") == 1
    assert "://" not in page
    assert "<script" not in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["missed.html"]


def test_counts_limit_and_threshold():
    detector = reader([0, 2, 2], [0.9, 0.9, 0.3])
    result = missed(detector, scenes(SCENE))
    assert [(miss.image, miss.reason) for miss in result.items] == [("a", "wrong class"), ("a", "below threshold"), ("b", "wrong class")]
    assert result.counts("name")["square"] == {"objects": 2, "missed": 2, **dict.fromkeys(REASONS, 0), "wrong class": 2}
    assert sum(row["missed"] for row in result.counts("size").values()) == 3
    assert list(result.counts("size")) == list(SIZES)
    assert missed(detector, scenes(SCENE), limit=1).images == 1
    assert len(missed(detector, scenes(SCENE), threshold=0.2).items) == 2
    json.dumps(result.summary(), allow_nan=False)
    result.show()


def test_classes_are_matched_by_name_and_errors_say_what_to_do():
    detector = reader([0, 1, 2], [0.9, 0.9, 0.9])
    data = scenes(SCENE)
    data.names[:] = ["square", "disc", "star"]  # label 0 is a square now, which the detector takes for a disc
    assert {miss.name: miss.predicted for miss in missed(detector, data).items} == {"square": "disc", "disc": "square"}
    for wrong in ({"split": "test"}, {"limit": 0}, {"threshold": 1.5}):
        with pytest.raises(UserError):
            missed(detector, data, **wrong)
    data.names[2] = "moon"
    with pytest.raises(UserError, match="does not know moon"):
        missed(detector, data)


def test_names_that_look_like_marks_are_shown_as_they_are(capsys):
    data = scenes(SCENE)
    data.names[:] = ["[/b]", "[bold]", "star"]
    detector = reader([0, 1, 2], [0.1, 0.9, 0.9])
    detector.classes = data.names
    result = missed(detector, replace(data, source="a[/i]"))
    result.show()
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*data.names, "a[/i]"))


@pytest.mark.parametrize("name", ["detr", "deformable-detr"])
def test_on_a_model_of_the_family_every_object_is_found_or_explained(name):
    """An untrained model, a softmax and a two-stage one; columns without a name are never predicted."""
    model = bq.create_model(name, classes=6, preset="tiny")
    data = shapes_data(train=1, val=3, test=1, size=64)
    detector = Detector(model, [*data.names, None], list(range(6)), Preprocessing(64), threshold=0.1)
    result = missed(detector, data)
    assert 0 < result.total()["missed"] <= result.total()["objects"]
    assert {miss.predicted for miss in result.items} <= set(data.names)
