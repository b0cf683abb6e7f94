"""Losses that know how well a box fits, and the dense head's assignment, against plain loops and numbers worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from boxquery.matching.classification import Focal, MatchabilityAware, PositionSupervised, Varifocal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.dense import TaskAlignedLoss
from boxquery.matching.hungarian import pad_targets
from boxquery.parts.boxes import cxcywh_to_xyxy, giou
from boxquery.parts.output import DensePredictions, Matches

LAYERS, BATCH, QUERIES, CLASSES = 2, 3, 5, 4
#: (layer, image, query, target), its IoU
PAIRS = {(0, 0, 1, 0): 0.9, (0, 0, 4, 1): 0.3, (0, 2, 0, 0): 0.05, (1, 0, 2, 1): 0.6, (1, 0, 3, 0): 0.0, (1, 2, 4, 0): 1.0}
LABELS = [[2, 0], [], [3]]


def case() -> tuple[Tensor, object, Matches, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(LAYERS, BATCH, QUERIES, CLASSES, generator=generator, dtype=torch.float64)
    objects = [{"labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.full((len(labels), 4), 0.3)} for labels in LABELS]
    matches = Matches(*torch.tensor(list(PAIRS)).T, ((2, 0, 1), (2, 0, 1)))
    return logits.requires_grad_(), pad_targets(objects, logits, BATCH, CLASSES), matches, torch.tensor(list(PAIRS.values())).double()


def varifocal(x: float, u: float | None) -> float:
    p = 1 / (1 + math.exp(-x))
    return 0.75 * p**2 * -math.log(1 - p) if u is None else u * -(u * math.log(p) + (1 - u) * math.log(1 - p))


def matchability(x: float, u: float | None) -> float:
    p = 1 / (1 + math.exp(-x))
    return p**1.5 * -math.log(1 - p) if u is None else -(u**1.5 * math.log(p) + (1 - u**1.5) * math.log(1 - p))


def position(x: float, t: float | None) -> float:
    p = 1 / (1 + math.exp(-x))
    return 0.75 * p**2 * -math.log(1 - p) if t is None else 0.25 * (t - p) ** 2 * -(t * math.log(p) + (1 - t) * math.log(1 - p))


#: the square of the IoU, over the largest of its layer and image
POSITION_TARGETS = dict(zip(PAIRS, (1.0, 1 / 9, 1.0, 1.0, 0.0, 1.0), strict=True))


@pytest.mark.parametrize(
    ("loss", "slow", "targets"),
    [(Varifocal(), varifocal, PAIRS), (MatchabilityAware(), matchability, PAIRS), (PositionSupervised(), position, POSITION_TARGETS)],
    ids=["vfl", "mal", "position"],
)
def test_against_a_loop(loss, slow, targets):
    logits, objects, matches, quality = case()
    positive = {(i, b, q, LABELS[b][t]): targets[(i, b, q, t)] for i, b, q, t in PAIRS}
    expected = torch.zeros(LAYERS, dtype=torch.float64)
    for i, b, q, c in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
        expected[i] += slow(logits[i, b, q, c].item(), positive.get((i, b, q, c)))
    found = loss.loss(logits, objects, matches, torch.tensor(3.0).double(), lambda: quality)
    torch.testing.assert_close(found, expected / 3, rtol=1e-6, atol=0)


def test_gradients():
    """The weights of negatives, probabilities themselves, have none; where they do, numeric differentiation finds it."""
    logits, objects, matches, quality = case()
    one = torch.tensor(1.0).double()
    for kind, exponent, scale in ((Varifocal(), 2.0, 0.75), (MatchabilityAware(), 1.5, 1.0)):
        (found,) = torch.autograd.grad(kind.loss(logits, objects, matches, one, lambda: quality).sum(), logits)
        p = logits.detach().sigmoid()
        expected = scale * p**exponent * p
        where = (*matches.index, objects.labels[matches.image, matches.target])
        target = quality if isinstance(kind, MatchabilityAware) is False else quality**1.5
        weight = quality if isinstance(kind, MatchabilityAware) is False else 1.0
        expected[where] = weight * (p[where] - target)
        torch.testing.assert_close(found, expected)
    for kind in (Focal(), PositionSupervised()):
        assert torch.autograd.gradcheck(lambda x, kind=kind: kind.loss(x, objects, matches, one, lambda: quality), logits)


@pytest.mark.parametrize("kind", [Focal(), Varifocal(), MatchabilityAware(), PositionSupervised()], ids=lambda kind: type(kind).__name__)
def test_certain_logits_and_dropped_queries(kind):
    logits = torch.tensor([-torch.inf, -1e4, 0.0, 1e4]).repeat(CLASSES, 1).T[None, None].clone().requires_grad_()
    objects = pad_targets([{"labels": torch.tensor([1]), "boxes": torch.rand(1, 4)}], logits, 1, CLASSES)
    for matches, quality in (
        (Matches(*torch.tensor([[0], [0], [3], [0]]), ((1,),)), [0.5]),
        (Matches(*torch.zeros(4, 0).long(), ((0,),)), []),
    ):
        loss = kind.loss(logits, objects, matches, torch.tensor(1.0), lambda quality=quality: torch.tensor(quality))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


def test_the_position_modulated_cost():
    """p sqrt(v) in the focal cost, v = (GIoU + 1) / 2 over the largest of the image: here a pair with v = 0.8 and one with 0.2."""
    logits = torch.tensor([[[[0.0, -1.0], [2.0, 0.0]]]], dtype=torch.float64)
    objects = [{"labels": torch.tensor([0]), "boxes": torch.rand(1, 4)}, {"labels": torch.tensor([0, 0]), "boxes": torch.rand(2, 4)}]
    padded = pad_targets(objects, logits, 2, 2)
    overlap = torch.tensor([[[[0.6, 0.99], [-0.6, 0.99]], [[0.6, 0.6], [0.6, 0.6]]]], dtype=torch.float64)
    cost = PositionSupervised().match_cost(logits.expand(1, 2, -1, -1), padded, overlap)
    for query, (x, share) in enumerate(((0.0, 1.0), (2.0, 0.25))):
        p = math.sqrt(share) / (1 + math.exp(-x))
        assert cost[0, 0, query, 0].item() == pytest.approx(0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p), rel=1e-5)


def test_queries_that_know_their_object_have_a_plain_focal_loss():
    assert PositionSupervised().known == Focal(weight=1.0)
    assert SetCriterion(PositionSupervised()).weights["class"] == 6.0


# a row of six cells; object A, of class 0, is its left half, object B, of class 1, reaches from 0.3 to 0.7
A, B = (0.25, 0.5, 0.5, 1.0), (0.5, 0.5, 0.4, 1.0)


def row() -> tuple[DensePredictions, list[dict[str, Tensor]]]:
    """Cell 0 predicts A, 1 half of it (IoU 1/2), 2 predicts B (IoU with A 2/7), 3 half of B; 4 and 5 are in no object."""
    boxes = torch.tensor([A, (0.125, 0.5, 0.25, 1.0), B, (0.4, 0.5, 0.2, 1.0), A, B]).double()[None]
    p = torch.tensor([[0.5, 0.1], [0.8, 0.1], [0.5, 0.4], [0.1, 0.9], [0.9, 0.9], [0.9, 0.9]]).double()[None]
    centres = torch.stack(((torch.arange(6) + 0.5) / 6, torch.full((6,), 0.5)), -1).double()[None]
    cells = torch.tensor([1 / 6, 1.0]).double().expand(1, 6, 2)
    return DensePredictions(p.logit(), boxes, centres, cells), [{"labels": torch.tensor([0, 1]), "boxes": torch.tensor([A, B]).double()}]


def test_the_dense_assignment_by_hand():
    """Alignment is p IoU: of A .5, .4 and 1/7 (cells 0 to 2), of B .4 and .45 (2 and 3); the largest becomes the largest IoU, 1."""
    out, targets = row()
    padded = pad_targets(targets, out.boxes, 1, 2)
    for top in (2, 3):  # with three candidates A would have cell 2, which overlaps B more
        learned = TaskAlignedLoss(alpha=1, beta=1, top=top).assign(out, padded)
        assert learned.positive.tolist() == [[True] * 4 + [False] * 2]
        assert learned.target[0, :4].tolist() == [0, 0, 1, 1]
        torch.testing.assert_close(learned.quality, torch.tensor([[1.0, 0.8, 0.4 / 0.45, 1.0, 0.0, 0.0]]).double())
    best = TaskAlignedLoss(alpha=1, beta=1, top=1).assign(out, padded)
    assert best.positive.tolist() == [[True, False, False, True, False, False]]


def test_the_dense_loss_by_hand():
    out, targets = row()
    terms = TaskAlignedLoss(alpha=1, beta=1, top=2).terms(out, pad_targets(targets, out.boxes, 1, 2))
    quality = [1.0, 0.8, 0.4 / 0.45, 1.0, 0.0, 0.0]
    label, expected, boxes = [0, 0, 1, 1, 0, 0], 0.0, 0.0
    for cell in range(6):
        for column in range(2):
            p, wanted = out.logits[0, cell, column].sigmoid().item(), quality[cell] if label[cell] == column else 0.0
            expected -= (wanted - p) ** 2 * (wanted * math.log(p) + (1 - wanted) * math.log(1 - p))
        own = cxcywh_to_xyxy(torch.tensor([A, B][label[cell]]).double())
        boxes += quality[cell] * (1 - giou(cxcywh_to_xyxy(out.boxes[0, cell]), own).item())
    assert terms["class"].item() == pytest.approx(expected / sum(quality))
    assert terms["giou"].item() == pytest.approx(boxes / sum(quality))


def test_dense_cells_on_padding_learn_nothing():
    out, targets = row()
    mask = torch.tensor([[False, True, False, False, False, True]])
    out = DensePredictions(out.logits.requires_grad_(), out.boxes.requires_grad_(), out.centres, out.cells, mask)
    padded, loss = pad_targets(targets, out.boxes, 1, 2), TaskAlignedLoss(alpha=1, beta=1, top=2)
    assert loss.assign(out, padded).positive.tolist() == [[True, False, True, True, False, False]]
    sum(loss.terms(out, padded).values()).backward()
    for gradient in (out.logits.grad, out.boxes.grad):
        assert not gradient[mask].any()
        assert bool(gradient.isfinite().all())


def test_a_small_object_between_centres_is_learned_by_the_cell_around_it():
    out, _ = row()
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.28, 0.5, 0.02, 0.02]]).double()}]
    assert TaskAlignedLoss(top=3).assign(out, pad_targets(targets, out.boxes, 1, 2)).positive[0].tolist() == [False, True] + [False] * 4
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4).double()}]
    terms = TaskAlignedLoss().terms(out, pad_targets(nothing, out.boxes, 1, 2))
    assert terms["giou"].item() == 0
    assert terms["class"].item() > 0
