"""Faithfulness, on a detector whose dependence on pixels is known, and against loops over pixels."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import boxquery as bq
from boxquery.data.open import open_data
from boxquery.data.preprocessing import MEAN, STD, Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.data.shapes.silhouettes import NAMES
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.explain.explanation import Explanation, explain
from boxquery.explain.faithfulness import ORDERS, Procedure, faithfulness, faithfulness_over, pointing_game, ranks
from boxquery.explain.relevance import relevances
from boxquery.matching.classification import Focal
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.memory import Memory
from boxquery.parts.output import Output
from boxquery.parts.trace import LayerTrace, Trace
from tests.data import writers
from tests.models.builders import create, shaken

SIDE = 64
#: what the planted detector sees: rows and columns, and the box around them in pixels
REGION = (slice(8, 24), slice(32, 56))
BOX = np.array([32.0, 8.0, 56.0, 24.0], np.float32)
SCORE = 0.8


class Planted(nn.Module):
    """Its one detection of class 1 is as sure as many pixels of the region are sharp: the image is a chessboard, and blurred it is even.

    Args:
        moves: how far, in shares of the image, the box moves to the right while pixels are missing.
        other: query 1's score for class 1, with the same box, as long as query 0's is below it; it is also always sure of class 0.
    """

    has_queries = True

    def __init__(self, moves: float = 0.0, other: float = 0.0):
        super().__init__()
        self.moves, self.other = moves, other
        self.config = {"name": "planted", "classes": 2}
        self.still = nn.Parameter(torch.zeros(1))
        self.criterion = SimpleNamespace(classification=Focal())
        self.seen = 0

    def scores(self, logits: Tensor) -> Tensor:
        return self.criterion.classification.scores(logits)

    def forward(self, images: Tensor, mask: Tensor | None = None, *, last_only: bool = False, trace: bool = False) -> Output:
        self.seen = max(self.seen, len(images))
        grey = (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])[:, 0]
        sharp = ((grey - 0.5).abs() > 0.25).float()[:, *REGION].mean((1, 2))
        scores = torch.zeros(1, len(images), 2, 2)
        scores[0, :, 0, 1], scores[0, :, 1, 1], scores[0, :, 1, 0] = SCORE * sharp, self.other, 0.99
        x1, y1, x2, y2 = BOX / SIDE
        box = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]).repeat(1, len(images), 2, 1)
        box[0, :, :, 0] += (self.moves * (1 - sharp))[:, None]
        return Output(scores.logit(eps=1e-6), box)


def chessboard() -> Image.Image:
    y, x = np.indices((SIDE, SIDE))
    return Image.fromarray(np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, 2))


def planted(heat: np.ndarray, **options: float) -> tuple[Detector, Explanation]:
    """The detector and what it would say of itself, were its query's attention the map [h, w]."""
    detector = Detector(Planted(**options), ["disc", "square"], [1, 2], Preprocessing(SIDE))  # pyright: ignore[reportArgumentType]
    weights = torch.from_numpy(heat / heat.sum())[None, None, None]
    h, w = heat.shape
    memory = Memory(torch.zeros(1, h * w, 1), None, None, ((h, w),), torch.ones(1, 1, 2), torch.tensor([[SIDE, SIDE]]))
    trace = Trace([LayerTrace(memory=memory, attention=(weights,))])
    boxes, none = np.stack((BOX, BOX))[None], np.zeros((1, 2), np.float32)
    scores, labels = none + np.array([SCORE, 0.1], np.float32), np.array([[1, 0]])
    return detector, Explanation(chessboard(), "planted", ["disc", "square"], 0.5, boxes, scores, labels, None, [0], trace)


def indicator(*where: slice, size: int = SIDE) -> np.ndarray:
    heat = np.zeros((size, size))
    heat[where] = 1
    return heat


def test_the_right_map():
    """Its curves are those of the loop over pixels; it is as good as the box, which is the region, and better than chance."""
    detector, explanation = planted(indicator(*REGION))
    found = faithfulness(detector, explanation, truth=(BOX[None], np.array([1])), procedure=Procedure(steps=12, seeds=4))
    (one,) = found.detections
    share = 16 * 24 / SIDE**2
    assert found.fractions.tolist() == [(k / 12) ** 2 for k in range(13)]
    expected = [max(1 - round(f * SIDE**2) / (share * SIDE**2), 0) for f in found.fractions]
    for order in ("map", "box"):
        assert one.deletion[order] == pytest.approx(expected, abs=1e-4)
        assert one.insertion[order] == pytest.approx([1 - e for e in expected], abs=1e-4)
    areas = found.areas()
    assert areas["deletion"]["map"][0] < areas["deletion"]["random"][0] - 0.1
    assert areas["insertion"]["map"][0] > areas["insertion"]["random"][0] + 0.1
    assert found.pointing.queries == found.pointing.objects == [0]
    assert found.pointing.hits.tolist() == [1]
    assert found.pointing.chance.tolist() == pytest.approx([share])
    assert (one.query, one.name, one.score) == (0, "square", pytest.approx(SCORE))


def test_the_wrong_map():
    """It points where the object is not: the region goes last, the maximum misses, and the box does better."""
    elsewhere = np.ones((SIDE, SIDE))
    elsewhere[REGION] = 0
    elsewhere[-1, 0] = 2
    detector, explanation = planted(elsewhere)
    found = faithfulness(detector, explanation, truth=(BOX[None], np.array([1])), procedure=Procedure(steps=10))
    (one,) = found.detections
    free = found.fractions <= 1 - 16 * 24 / SIDE**2
    assert one.deletion["map"][free].tolist() == pytest.approx([1] * free.sum())
    assert one.insertion["map"][free].tolist() == pytest.approx([0] * free.sum(), abs=1e-4)
    assert found.pointing.hits.tolist() == [0]
    areas = found.areas()
    assert areas["deletion"]["map"] > areas["deletion"]["random"]
    assert areas["insertion"]["map"] < areas["insertion"]["random"] < areas["insertion"]["box"]


def test_any_map_against_a_loop():
    """Pixels in the order of the map, one after the other; the random control is the same order moved."""
    heat = np.random.default_rng(0).random((SIDE, SIDE))
    detector, explanation = planted(heat)
    found = faithfulness(detector, explanation, procedure=Procedure(steps=6, seeds=1))
    region = indicator(*REGION) > 0
    counts = [round(f * SIDE**2) for f in found.fractions]
    order = sorted(((y, x) for y in range(SIDE) for x in range(SIDE)), key=lambda p: -heat[p])
    assert found.detections[0].deletion["map"] == pytest.approx([1 - hit(region, order[:n]) for n in counts], abs=1e-3)
    move = np.random.default_rng([0, 0]).integers((SIDE, SIDE))
    there = np.roll(heat, move, (0, 1))
    order = sorted(((y, x) for y in range(SIDE) for x in range(SIDE)), key=lambda p: -there[p])
    assert found.detections[0].insertion["random"] == pytest.approx([hit(region, order[:n]) for n in counts], abs=1e-3)


def hit(region: np.ndarray, pixels: list[tuple[int, int]]) -> float:
    return sum(region[p] for p in pixels) / region.sum()


def test_followed_is_score_times_overlap():
    """The box moves away as pixels go: half a width at IoU 1/3 counts nothing."""
    detector, explanation = planted(indicator(*REGION), moves=24 / SIDE)
    (one,) = faithfulness(detector, explanation, procedure=Procedure(steps=40)).detections
    for left, taken in zip(one.deletion["map"], (np.arange(41) / 40) ** 2, strict=True):
        missing = min(round(taken * SIDE**2) / (16 * 24), 1)
        overlap = (1 - missing) / (1 + missing)
        assert left == pytest.approx((1 - missing) * overlap if overlap >= 0.5 else 0, abs=1e-3)


def test_another_query_may_take_over():
    """Query 1 predicts the same with 0.2; its higher score for another class does not count."""
    detector, explanation = planted(indicator(*REGION), other=0.2)
    (one,) = faithfulness(detector, explanation).detections
    assert one.deletion["map"][-1] == pytest.approx(0.2 / SCORE, abs=1e-3)
    assert one.deletion["map"][0] == pytest.approx(1)


def test_batches_change_nothing():
    detector, explanation = planted(np.random.default_rng(1).random((8, 8)))
    small, large = (faithfulness(detector, explanation, procedure=Procedure(steps=5, batch_size=n)) for n in (3, 100))
    for what in ("deletion", "insertion"):
        assert small.summary()[what] == pytest.approx(large.summary()[what], abs=1e-6)
    assert detector.model.seen == 2 * (2 + 3) * 4
    faithfulness(fresh := planted(np.ones((8, 8)))[0], explanation, procedure=Procedure(steps=5, batch_size=3))
    assert fresh.model.seen == 3


def test_ranks():
    """A permutation that never rises; of the pixels of a cell those near a higher cell go first."""
    heat = np.kron(np.array([[0.1, 0.2, 0.3], [0.0, 0.1, 0.3]], np.float32), np.ones((6, 6), np.float32))
    rank = ranks(heat)
    assert sorted(rank.ravel().tolist()) == list(range(heat.size))
    assert (np.diff(heat.ravel()[rank.ravel().argsort()]) <= 0).all()
    assert rank[3, 11] < rank[3, 6]
    assert (ranks(heat * 7) == rank).all()


@pytest.mark.parametrize(("tolerance", "hits"), [(0.0, 0), (4.0, 0), (6.0, 1)])
def test_tolerance(tolerance, hits):
    """The maximum's centre, (60.5, 10.5), is 4.5 pixels to the right of the box."""
    heat = np.zeros((1, SIDE, SIDE), np.float32)
    heat[0, 10, 60] = 1
    _, explanation = planted(heat[0])
    found = pointing_game(explanation, [0], heat, BOX[None], np.array([1]), tolerance=tolerance)
    assert found.hits.tolist() == [hits]
    grown = (24 + 2 * tolerance) * (16 + 2 * tolerance)
    assert found.chance.tolist() == pytest.approx([grown / SIDE**2])


def test_pointing_with_ties_and_other_sizes():
    """An even map gets what chance gets; half a cell inside is half a hit."""
    _, explanation = planted(np.ones((8, 8)))
    even = pointing_game(explanation, [0], np.ones((1, 32, 32), np.float32), BOX[None], np.array([1]))
    assert even.hits.tolist() == even.chance.tolist() == pytest.approx([16 * 24 / SIDE**2])
    half = np.zeros((1, 32, 32), np.float32)
    half[0, 10:14, 20] = 0.25
    assert pointing_game(explanation, [0], half, BOX[None], np.array([1])).hits.tolist() == [0.5]
    lost = pointing_game(explanation, [0], np.zeros((1, 32, 32), np.float32), BOX[None], np.array([1]))
    assert lost.hits.tolist() == lost.chance.tolist()


def test_who_plays():
    """Detections that found an object of their class; among several the one that overlaps most."""
    heat = indicator(*REGION).astype(np.float32)[None]
    _, explanation = planted(heat[0])
    near = BOX + np.array([0, 0, 6, 0], np.float32)
    found = pointing_game(explanation, [0, 1], heat.repeat(2, 0), np.stack((near, BOX)), np.array([1, 1]))
    assert (found.queries, found.objects) == ([0], [1])
    for boxes, labels in ((BOX[None], [0]), (BOX[None] + 20, [1]), (np.zeros((0, 4)), [])):
        nobody = pointing_game(explanation, [0], heat, boxes, np.array(labels, np.int64))
        assert nobody.queries == nobody.hits.tolist() == []


@pytest.mark.parametrize("name", bq.list_models())
def test_every_model(name):
    """Curves begin and end where they must, and a summary can be written."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    detector = Detector(shaken(create(name)), ["a", "b", "c"], [1, 2, 3], Preprocessing(64))
    explanation = explain(detector, pixels)
    found = faithfulness(detector, explanation, [2], procedure=Procedure(steps=3, seeds=1, layer=0))
    (one,) = found.detections
    for order in ORDERS:
        assert one.deletion[order][0] == one.insertion[order][-1] == 1
        assert one.deletion[order][-1] == one.insertion[order][0]
        assert np.isfinite(one.deletion[order]).all()
        assert (one.deletion[order] >= 0).all()
    summary = json.loads(json.dumps(found.summary()))
    assert set(summary) == {"kind", "layer", "detections", "deletion", "insertion", "pointing"}
    assert summary["pointing"] is None
    assert summary["layer"] == 0


def test_relevance_is_judged_alike():
    """The other kind of map goes the same way: the order is the one of ``relevances``."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    detector = Detector(shaken(create("detr")), ["a", "b", "c"], [1, 2, 3], Preprocessing(64))
    explanation = explain(detector, pixels)
    truth = explanation.boxes[-1, :1], explanation.labels[-1, :1]
    procedure = Procedure(kind="relevance", steps=2, seeds=1)
    found = faithfulness(detector, explanation, [0], truth, procedure)
    maps = relevances(detector, pixels, [0], size=(64, 64)).map.numpy()
    assert found.pointing.hits == pytest.approx(pointing_game(explanation, [0], maps, *truth).hits)
    assert found.summary()["layer"] is None


def test_over_a_data_set():
    """All detections of the first images; intervals hold the mean; the differences are of the same detections."""
    torch.manual_seed(0)
    detector = Detector(shaken(create("detr", classes=5, num_queries=4), 0.05), list(NAMES), list(range(5)), Preprocessing(64))
    found = faithfulness_over(
        detector, shapes_data(val=5, size=64), limit=3, threshold=0.0, procedure=Procedure(steps=2, seeds=1, batch_size=50)
    )
    assert len(found.found) == 3
    summary = json.loads(json.dumps(found.summary()))
    assert (summary["images"], summary["detections"]) == (3, 12)
    for what in ("deletion", "insertion"):
        each = np.concatenate([one.areas()[what]["map"] - one.areas()[what]["box"] for one in found.found])
        assert summary[what]["map - box"]["mean"] == pytest.approx(each.mean())
        for value in summary[what].values():
            assert value["low"] <= value["mean"] <= value["high"]
    assert summary["pointing"]["detections"] == sum(len(one.pointing.hits) for one in found.found)


def test_an_image_that_cannot_be_read_is_left_out_by_name(tmp_path, capsys):
    data = open_data(writers.write_voc(tmp_path / "photos", writers.pictures(36)))
    broken = data.splits["val"][1].path
    content = bytearray(broken.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)  # its header and its end are whole
    broken.write_bytes(content)
    detector = Detector(shaken(create("detr", classes=len(data.names), num_queries=2)), data.names, data.ids, Preprocessing(64))

    def judge(limit, strict=False):
        procedure = Procedure(steps=2, seeds=1)
        return faithfulness_over(detector, data, limit=limit, threshold=0.0, procedure=procedure, strict=strict)

    found = judge(3)
    assert capsys.readouterr().err.count(f"skipped: {broken}: cannot be read") == 1
    assert (found.images, len(found.found), len(found.summary()["skipped"])) == (2, 2, 1)
    with pytest.raises(UserError, match="cannot be read"):
        judge(3, strict=True)
    data.splits["val"].records.insert(0, data.splits["val"].records.pop(1))
    with pytest.raises(UserError, match=r"none of the first 1 images of val can be read: .*cannot be read"):
        judge(1)


def test_the_same_detector():
    """Boxes are compared in pixels of the image, whatever its shape."""
    detector = Detector(shaken(create("conditional-detr")), ["a", "b", "c"], [1, 2, 3], Preprocessing(64))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    explanation = explain(detector, pixels)
    with torch.no_grad():
        out = detector.model(detector.transform(explanation.image)[None])
    boxes = cxcywh_to_xyxy(out.boxes[-1, 0]) * torch.tensor([90, 40, 90, 40])
    assert np.allclose(boxes.numpy(), explanation.boxes[-1], atol=1e-2)
    moved = replace(explanation, boxes=explanation.boxes + 500)
    with pytest.raises(UserError, match="query 0: the detector does not predict this detection"):
        faithfulness(detector, moved, [0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "gradcam"}, 'must be "attention" or "relevance"'),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"seeds": 0}, "seeds=0: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"tolerance": -1.0}, "tolerance=-1.0: must be a number of pixels"),
        ({"tolerance": float("nan")}, "tolerance=nan: must be a number of pixels"),
    ],
)
def test_wrong_procedures(wrong, message):
    with pytest.raises(UserError, match=message):
        Procedure(**wrong)


def test_wrong_questions():
    detector, explanation = planted(np.ones((8, 8)))
    with pytest.raises(UserError, match=r"no query reaches the threshold 0\.5"):
        faithfulness(detector, replace(explanation, found=[]))
    with pytest.raises(UserError, match="query 7: the model has 2 queries"):
        faithfulness(detector, explanation, [7])
    with pytest.raises(UserError, match="layer=1: the model has 1 decoder layers"):
        faithfulness(detector, explanation, procedure=Procedure(layer=1))


def test_wrong_data():
    detector = Detector(create("detr", classes=5), list(NAMES), list(range(5)), Preprocessing(64))
    data = shapes_data(val=2, size=64)
    with pytest.raises(UserError, match="limit=0: must be at least 1"):
        faithfulness_over(detector, data, limit=0)
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        faithfulness_over(detector, data, split="dev")
    with pytest.raises(UserError, match="nothing reaches the threshold 1 in 2 images of val"):
        faithfulness_over(detector, data, threshold=1.0)
