"""The assignment, against every permutation."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.matching.classification import Focal, Softmax
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.hungarian import Hungarian, Problem, assign, pad_targets
from boxquery.parts.output import LayerPredictions, Matches, Output


def hungarian(costs: list[torch.Tensor], counts: tuple[int, ...], **options) -> list[Matches]:
    return assign([Problem(Hungarian(**options), cost) for cost in costs], counts)


def cheapest(cost: np.ndarray) -> float:
    """Over all ways to pair rows and columns one to one."""
    rows, columns = cost.shape
    if rows < columns:
        return cheapest(cost.T)
    return min(sum(cost[r, c] for c, r in enumerate(chosen)) for chosen in permutations(range(rows), columns))


@pytest.mark.parametrize("queries", [1, 3, 6])
def test_cheapest_of_all(queries):
    """Three layers; images with no object, some, and more than there are queries."""
    counts = (0, 2, 5, 1)
    costs = torch.randn(3, 4, queries, max(counts), generator=torch.Generator().manual_seed(queries))
    (matches,) = hungarian([costs], counts)
    pairs = matches.pairs()
    assert len(pairs) == 3
    for layer, images in enumerate(pairs):
        assert len(images) == 4
        for image, (query, target) in enumerate(images):
            assert query.dtype == target.dtype == torch.int64
            assert query.tolist() == sorted(set(query.tolist()))
            assert len(query) == len(set(target.tolist())) == min(counts[image], queries)
            assert target.tolist() == [t for t in target.tolist() if t < counts[image]]
            cost = costs[layer, image, :, : counts[image]].numpy()
            assert costs[layer, image, query, target].sum().item() == pytest.approx(cheapest(cost) if counts[image] else 0, abs=1e-5)


def test_matches_are_flat_by_image():
    (matches,) = hungarian([torch.randn(2, 3, 4, 3)], (2, 0, 3))
    assert matches.layer.tolist() == [0] * 5 + [1] * 5
    assert matches.image.tolist() == [0, 0, 2, 2, 2] * 2
    assert matches.query.shape == matches.target.shape == (10,)
    assert matches.counts == ((2, 0, 3), (2, 0, 3))


def test_several_cost_tensors_side_by_side():
    """Decoder and proposals: other layers and queries, the same objects; each as if alone."""
    first, second = torch.randn(3, 2, 5, 4), torch.randn(1, 2, 30, 4)
    together = hungarian([first, second], (4, 1))
    for cost, matches in zip((first, second), together, strict=True):
        (alone,) = hungarian([cost], (4, 1))
        assert torch.equal(matches.query, alone.query)
        assert torch.equal(matches.target, alone.target)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_cost_that_is_no_number_stops(wrong):
    costs = torch.zeros(3, 2, 4, 2)
    costs[2, 1, 3, 0] = wrong
    with pytest.raises(bq.UserError, match=r"layer 2, image 1"):
        hungarian([costs], (1, 2))


def test_columns_beyond_the_count_are_ignored():
    costs = torch.zeros(1, 2, 4, 2)
    costs[0, 0, :, 1] = torch.nan
    hungarian([costs], (1, 2))


def test_pad_targets():
    targets = [
        {"labels": torch.tensor([2, 1]), "boxes": torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.1, 0.1]])},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        rectangle = pad_targets(targets, torch.zeros(1, dtype=dtype), len(targets), 3)
        assert rectangle.boxes.dtype == expected
    assert rectangle.labels.tolist() == [[2, 1], [0, 0]]
    assert rectangle.counts == (2, 0)
    assert rectangle.total == 2
    torch.testing.assert_close(rectangle.boxes[0], targets[0]["boxes"].double())


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 3], "the label 3: labels of 3 classes go from 0 to 2"), ([-1, 2], "the label -1: labels of 3")]
)
def test_a_label_without_a_class_is_named(labels, message):
    targets = [
        {"labels": torch.tensor(labels), "boxes": torch.full((2, 4), 0.5)},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    with pytest.raises(bq.UserError, match=message):
        pad_targets(targets, torch.zeros(1), 2, 3)
    elsewhere = [{"labels": t["labels"].to("meta"), "boxes": t["boxes"].to("meta")} for t in targets]
    pad_targets(elsewhere, torch.zeros(1, device="meta"), 2, 3)  # checking there would wait


def predictions(layers: int, queries: int, columns: int) -> LayerPredictions:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, 2, queries, columns, generator=generator)
    return LayerPredictions(logits, 0.1 + 0.8 * torch.rand(layers, 2, queries, 4, generator=generator))


@pytest.mark.parametrize("classification", [Softmax(), Focal()], ids=["softmax", "focal"])
def test_one_transfer_to_the_host(monkeypatch, classification):
    """However many layers and images, proposals included: a GPU waits once."""
    calls = SimpleNamespace(cpu=0, blocking=0)

    def counted(name: str, kind: str) -> None:
        original = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            setattr(calls, kind, getattr(calls, kind) + 1)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, method)

    counted("cpu", "cpu")
    for name in ("item", "tolist", "nonzero", "__bool__", "__float__", "__int__"):
        counted(name, "blocking")
    columns = 3 + classification.has_no_object
    decoder, proposals = predictions(6, 10, columns), predictions(1, 40, columns)
    out = Output(decoder.logits, decoder.boxes, proposals=proposals)
    targets = [{"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.4, 0.4, 0.2, 0.2], [0.6, 0.6, 0.3, 0.2]])}] * 2
    SetCriterion(classification)(out, targets)
    assert calls.cpu == 1
    assert calls.blocking == 0
