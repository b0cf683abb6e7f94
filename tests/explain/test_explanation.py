"""Explanations: the same predictions as ``predict``, origins against a loop over cells, and rivals whose fate is planted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.detector import Detector
from boxquery.explain.explanation import Explanation
from boxquery.parts.trace import LayerTrace, Trace
from tests.explain.tiny import detector, photo
from tests.models.builders import systems

SYSTEMS = systems()


@pytest.fixture(scope="module", params=SYSTEMS)
def explained(request) -> tuple[Detector, Explanation]:
    name, options = SYSTEMS[request.param]
    each = detector(name, **options)
    return each, each.explain(photo())


def test_detections_are_those_of_predict(explained):
    each, explanation = explained
    wanted = each.predict(photo(), max_detections=explanation.scores.shape[1])
    assert len(explanation.found) == len(wanted) == explanation.scores.shape[1]
    np.testing.assert_allclose(explanation.scores[-1, explanation.found], wanted.scores, atol=1e-5)
    assert sorted(explanation.name(q) for q in explanation.found) == sorted(wanted.names)
    boxes = np.clip(explanation.boxes[-1, explanation.found], 0, [96, 72, 96, 72])
    places = [np.abs(wanted.boxes - box).max(1).min() for box in boxes]
    assert max(places) < 0.01
    best = float(np.median(explanation.scores[-1]))
    fewer = each.explain(photo(), threshold=best)
    assert fewer.found == [q for q in explanation.found if explanation.scores[-1, q] >= best]


def test_heatmaps_and_their_origin(explained):
    _, explanation = explained
    for layer in range(len(explanation.boxes)):
        heat, source = explanation.heatmap(2, layer), explanation.origin(2, layer)
        for each in (heat, source):
            assert each.map.shape == explanation.size
            assert float(each.map.sum()) == pytest.approx(1 if each.lost < 1 else 0, abs=1e-4)
        assert source.lost == pytest.approx(heat.lost, abs=1e-6)
        best = explanation.cells(2, layer, most=6)
        assert [cell.share for cell in best] == sorted((cell.share for cell in best), reverse=True)
        assert sum(cell.share for cell in explanation.cells(2, layer, most=10**6)) == pytest.approx(1 - heat.lost, abs=1e-4)


def test_cells_are_where_the_heatmap_is(explained):
    """A map that is made of the cells' boxes is the heat map."""
    _, explanation = explained
    size, image = (9, 12), torch.zeros(9, 12, dtype=torch.float64)
    for cell in explanation.cells(1, most=10**6):
        x1, y1, x2, y2 = (value / side * count for value, side, count in zip(cell.box, (96, 72) * 2, (12, 9) * 2, strict=True))
        for y in range(9):
            for x in range(12):
                part = max(min(x2, x + 1) - max(x1, x), 0) * max(min(y2, y + 1) - max(y1, y), 0)
                image[y, x] += cell.share * part / ((x2 - x1) * (y2 - y1))
    torch.testing.assert_close(explanation.heatmap(1, size=size).map.double(), image / image.sum(), atol=1e-5, rtol=0)


def slow_origin(trace: Trace, query: int, layer: int, size: tuple[int, int]) -> torch.Tensor:
    """Cell by cell, with the whole heat map of each cell's token."""
    read, last = trace.layers[layer], trace.encoder[-1]
    every = list(last.memory.shapes)
    total = torch.zeros(size, dtype=torch.float64)
    for level, (h, w) in enumerate(read.memory.shapes):
        mass = read.masses(level, [query])[0].mean(0)
        before = sum(a * b for a, b in every[: every.index((h, w))])
        for row in range(h):
            for column in range(w):
                total += mass[row, column] * last.heatmap(before + row * w + column, size).map.double()
    return total / total.sum()


def test_origins_against_a_loop(explained):
    _, explanation = explained
    size = (5, 7)
    if not explanation.trace.encoder:  # a hybrid encoder keeps no trace
        assert torch.equal(explanation.origin(3, 0, size).map, explanation.heatmap(3, 0, size).map)
        return
    expected = slow_origin(explanation.trace, 3, 0, size)
    torch.testing.assert_close(explanation.origin(3, 0, size).map.double(), expected, atol=1e-6, rtol=0)


def test_without_an_encoder_the_cells_are_the_origin():
    explanation = detector("detr", encoder_layers=0).explain(photo())
    assert torch.equal(explanation.origin(0).map, explanation.heatmap(0).map)
    with pytest.raises(bq.UserError, match="no encoder"):
        explanation.token_heatmap(0)


def test_a_planted_encoder_moves_the_region():
    """Every token attends to the first cell alone, so the rollout of every query is there."""
    explanation = detector("detr").explain(photo())
    last = explanation.trace.encoder[-1]
    ((h, w),) = last.memory.shapes
    planted = torch.zeros_like(last.attention[0])
    planted[..., 0, 0] = 1
    trace = Trace(explanation.trace.layers, [LayerTrace(memory=last.memory, attention=(planted,))])
    source = replace(explanation, trace=trace).origin(0, size=(h, w)).map
    assert float(source[0, 0]) == pytest.approx(1)
    token = replace(explanation, trace=trace).token_heatmap(h * w - 1, size=(h, w)).map
    assert torch.equal(source > 0.5, token > 0.5)


def planted(scores: list[list[float]], boxes: list[list[float]], labels: list[int], references=None) -> Explanation:
    """A explanation of our own: scores [L][Q], one box and label a query in all layers; query 0 is the winner, threshold 0.4."""
    explanation = detector("detr", decoder_layers=len(scores), num_queries=len(labels)).explain(photo(), threshold=0.4)
    layers, queries = len(scores), len(labels)
    every = np.repeat(np.array(boxes, np.float32)[None], layers, 0)
    found = [q for q in range(queries) if scores[-1][q] >= 0.4]
    for number, layer in enumerate(explanation.trace.layers):
        # query q attends to query k with weight k + 1 + the layer's number, not normalised, so that all differ
        weights = torch.arange(queries, dtype=torch.float32) + 1 + number
        layer.self_attention = weights.expand(1, 4, queries, queries) + 10 * torch.arange(queries, dtype=torch.float32)[:, None]
    return replace(
        explanation,
        boxes=every,
        scores=np.array(scores, np.float32),
        labels=np.array([labels] * layers),
        references=references,
        found=found,
    )


def test_rivals_and_what_became_of_them():
    there, near, far = [10, 10, 50, 50], [10, 10, 50, 46], [60, 40, 90, 70]
    explanation = planted(
        [[0.9, 0.7, 0.5, 0.5, 0.06, 0.3, 0.9, 0.20], [0.9, 0.1, 0.5, 0.6, 0.07, 0.3, 0.9, 0.02]],
        [there, near, near, there, near, near, far, near],
        [1, 1, 1, 2, 1, 1, 1, 1],
    )
    found = {rival.query: rival for rival in explanation.rivals(0)}
    assert list(found) == [1, 3, 2, 5, 7]  # by their best score while they competed; 4 never reached the share, 6 is elsewhere
    assert {q: r.fate for q, r in found.items()} == {
        1: "silenced", 2: "duplicate", 3: "other class", 5: "below threshold", 7: "silenced",
    }  # fmt: skip
    assert {q: r.silent_from for q, r in found.items()} == {1: 1, 2: None, 3: None, 5: 0, 7: 0}
    assert found[1].competed == [0, 1]
    assert found[7].competed == [0]
    assert found[1].overlaps == pytest.approx([0.9, 0.9])
    assert found[3].scores == pytest.approx([0.5, 0.6])
    assert found[3].attention_to_winner == [31.0, 32.0]  # rows attend to columns
    assert found[3].attention_from_winner == [4.0, 5.0]
    assert explanation.rivals(6) == []


def test_a_rival_by_its_reference_moved_away():
    points = np.array([[[70, 50], [30, 30], [60, 60]]] * 2, np.float32)
    boxes = [[10, 10, 50, 50], [60, 40, 90, 70], [60, 40, 90, 70]]
    explanation = planted([[0.9, 0.5, 0.5], [0.9, 0.6, 0.5]], boxes, [0, 0, 0], points)
    (rival,) = explanation.rivals(0)
    assert (rival.query, rival.fate, rival.competed) == (1, "moved away", [0, 1])
    around = np.concatenate([points - 5, points + 5], -1)
    assert [r.query for r in replace(explanation, references=around).rivals(0)] == [1]


def test_shares_of_a_box():
    explanation = planted([[0.9]], [[24, 18, 48, 72]], [0])
    assert explanation.share(0) == pytest.approx(0.25 * 0.75)
    for size in ((72, 96), (5, 7)):
        assert explanation.inside(0, torch.full(size, 1 / (size[0] * size[1]))) == pytest.approx(0.25 * 0.75)
    corner = torch.zeros(4, 4)
    corner[2, 1] = 1
    assert explanation.inside(0, corner) == pytest.approx(1)


def test_the_query_of_a_place_and_of_an_object():
    boxes = [[10, 10, 50, 50], [20, 20, 40, 42], [60, 40, 90, 70]]
    explanation = planted([[0.9, 0.1, 0.5]], boxes, [0, 0, 0])
    assert explanation.nearest(30, 31) == 1
    assert explanation.nearest(30, 30) == 0
    assert explanation.at(np.array([11, 11, 49, 51])) == 0
    assert explanation.at(np.array([26, 28, 34, 34])) == 1
    with pytest.raises(bq.UserError, match="96 x 72"):
        explanation.nearest(97, 5)
    for wrong in (-1, 3):
        with pytest.raises(bq.UserError, match="queries 0 to 2"):
            explanation.choose(wrong)
    assert explanation.shown == explanation.found == [0, 2]
    assert explanation.choose(1).shown == [1]
    assert replace(explanation, found=[]).shown == [0]


def test_summary_is_plain(explained, capsys):
    _, explanation = explained
    few = replace(explanation, found=explanation.found[:2], threshold=0.3)
    values = json.loads(json.dumps(few.summary(), allow_nan=False))
    assert [row["query"] for row in values["detections"]] == few.found
    for row in values["detections"]:
        assert len(row["layers"]) == len(explanation.boxes)
        assert row["box"] == row["layers"][-1]["box"] == explanation.boxes[-1, row["query"]].tolist()
        assert (row["layers"][0]["reference"] is None) == (explanation.model == "detr")
        assert {"share", "level", "row", "column", "token", "box"} == set(row["cells"][0])
    assert replace(few, found=[]).summary()["detections"] == []
    assert [row["query"] for row in few.choose(5).summary()["detections"]] == [5]
    few.show()
    assert "2 detections" in capsys.readouterr().out


def test_sources(tmp_path):
    each = detector("dab-detr")
    photo().save(tmp_path / "a.png")
    both = each.explain([tmp_path / "a.png", photo()])
    assert [explanation.path for explanation in both] == [str(tmp_path / "a.png"), None]
    np.testing.assert_array_equal(both[0].boxes, both[1].boxes)
    np.testing.assert_array_equal(each.explain(np.asarray(photo())).boxes, both[1].boxes)
    with pytest.raises(bq.UserError, match="no such file"):
        each.explain(tmp_path / "b.png")
    with pytest.raises(bq.UserError, match="threshold=2"):
        each.explain(photo(), threshold=2)


def test_a_column_without_a_name_is_never_predicted():
    each = detector("detr")
    with torch.no_grad():
        each.model.heads[0].classes.bias[1] = 50.0
    each.classes[1] = None
    explanation = each.explain(photo())
    assert 1 not in explanation.labels
    assert np.isfinite(explanation.scores).all()


def test_points_that_become_boxes_are_boxes_without_size_first():
    explanation = detector("deformable-detr", box_refine=True, two_stage=False, matching="one-to-one").explain(photo())
    assert explanation.trace.layers[0].reference.shape[-1] == 2
    assert explanation.trace.layers[1].reference.shape[-1] == 4
    first = explanation.trace.layers[0].reference[0].numpy() * [96, 72]
    np.testing.assert_allclose(explanation.references[0], np.concatenate([first, first], -1), rtol=1e-5)
    np.testing.assert_allclose(explanation.references[1], explanation.boxes[0], atol=0.01)
