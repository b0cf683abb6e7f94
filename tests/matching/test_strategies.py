"""Strategies of matching on cases worked by hand: who learns what, and how losses are averaged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from boxquery.errors import UserError
from boxquery.matching.classification import Focal, Softmax
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.hungarian import Hungarian, Problem, assign, pad_targets
from boxquery.matching.one_to_many import OneToMany
from boxquery.parts.output import LayerPredictions, Matches, Output, QueryGroup


def listed(matches: Matches) -> list[tuple[int, ...]]:
    """(layer, image, query, target) of every pair."""
    return list(zip(*(v.tolist() for v in (matches.layer, matches.image, matches.query, matches.target)), strict=True))


def test_each_part_learns_every_object():
    """Group DETR: two groups of two queries, two objects in the first image and one in the second."""
    cost = torch.tensor([[[[0.0, 5.0], [5.0, 0.0], [9.0, 1.0], [1.0, 9.0]], [[3.0, 7.0], [2.0, 7.0], [4.0, 7.0], [6.0, 7.0]]]])
    (matches,) = assign([Problem(Hungarian(parts=2), cost)], (2, 1))
    assert listed(matches) == [(0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 2, 1), (0, 0, 3, 0), (0, 1, 1, 0), (0, 1, 2, 0)]
    assert matches.counts == ((4, 2),)


def test_each_object_teaches_several_queries():
    """H-DETR: five queries, two objects twice each; the fifth query is the worst for both."""
    cost = torch.tensor([[[[0.0, 4.0], [1.0, 4.0], [8.0, 8.0], [4.0, 1.0], [2.0, 2.0]]]]).expand(2, 3, -1, -1)
    (matches,) = assign([Problem(Hungarian(repeats=2), cost)], (2, 0, 1))
    layer = [(0, 0, 0), (0, 1, 0), (0, 3, 1), (0, 4, 1), (2, 0, 0), (2, 1, 0)]
    assert listed(matches) == [(i, *pair) for i in range(2) for pair in layer]
    assert matches.counts == ((4, 0, 2),) * 2


def test_fewer_queries_than_repeated_objects():
    cost = torch.tensor([[[[0.0, 4.0], [4.0, 0.0], [1.0, 2.0]]]])
    (matches,) = assign([Problem(Hungarian(repeats=6), cost)], (2,))
    assert listed(matches) == [(0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 2, 0)]


def test_slots_that_may_not_be_matched_are_not():
    """In each part separately."""
    cost, alive = torch.zeros(1, 1, 4, 1), torch.tensor([[[False, True, False, False]]])
    first, second = assign([Problem(Hungarian(parts=2), cost, alive), Problem(Hungarian(), cost)], (1,))
    assert listed(first) == [(0, 0, 1, 0)]
    assert listed(second) == [(0, 0, 0, 0)]


# quality of 16 queries for two objects: at most 4 of them may be positive
QUALITY = np.zeros((1, 1, 16, 2), np.float32)
QUALITY[0, 0, :5] = [[0.9, 0.1], [0.5, 0.45], [0.39, 0.2], [0.1, 0.3], [0.2, 0.25]]


@pytest.mark.parametrize(
    ("counts", "most", "wanted"),
    [
        # 0 and 1 are above .4 for the first object, of which 1 would be so for the second, too; 1 is also the second's best
        ((2,), 6, {(0, 0), (1, 0)}),
        # one per object: the better one
        ((2,), 1, {(0, 0)}),
        ((1,), 6, {(0, 0), (1, 0)}),
        ((0,), 6, set()),
    ],
)
def test_queries_of_sufficient_quality_learn_the_object_they_are_best_for(counts, most, wanted):
    pairs, found = OneToMany(most=most)(QUALITY, counts, None)
    assert set(zip(*pairs[2:].tolist(), strict=True)) == wanted
    assert found == ((len(wanted),),)


def test_the_best_query_of_an_object_learns_it_however_bad_it_is():
    quality = QUALITY.copy()
    quality[0, 0, :3, 1] = 0.0
    pairs, _ = OneToMany()(quality, (2,), None)
    assert set(zip(*pairs[2:].tolist(), strict=True)) == {(0, 0), (1, 0), (3, 1)}
    alive = np.ones((1, 1, 16), bool)
    alive[0, 0, [0, 3]] = False
    pairs, _ = OneToMany()(quality, (2,), alive)
    assert set(zip(*pairs[2:].tolist(), strict=True)) == {(1, 0), (4, 1)}


def test_at_most_a_quarter_of_the_queries_is_taught_and_chance_says_which():
    quality = np.full((3, 2, 16, 1), 0.5, np.float32)
    torch.manual_seed(0)
    pairs, found = OneToMany()(quality, (1, 1), None)
    assert found == ((4, 4),) * 3
    order = [tuple(pair) for pair in pairs[:3].T.tolist()]
    assert order == sorted(set(order))
    torch.manual_seed(0)
    np.testing.assert_array_equal(OneToMany()(quality, (1, 1), None)[0], pairs)
    assert not np.array_equal(OneToMany()(quality, (1, 1), None)[0], pairs)


def test_a_quality_that_is_not_finite_is_refused():
    quality = QUALITY.copy()
    quality[0, 0, 7, 1] = np.nan
    with pytest.raises(UserError, match="the quality of decoder layer 0, image 0 of the batch is NaN or inf"):
        OneToMany()(quality, (2,), None)
    OneToMany()(quality, (1,), None)  # beyond the image's objects


def test_quality_is_seven_tenths_iou_and_three_tenths_probability():
    logits = torch.tensor([[[[0.0, -9.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4]]]])
    targets = pad_targets([{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}], boxes, 1, 2)
    found = OneToMany().measure(SetCriterion(Focal()), LayerPredictions(logits, boxes), targets)
    torch.testing.assert_close(found, torch.tensor([[[[0.7 * 0.5 + 0.3 * 0.5]]]]))


def random(queries: int, seed: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2, queries, columns, generator=generator, dtype=torch.float64)
    return logits, 0.2 + 0.3 * torch.rand(2, 2, queries, 4, generator=generator, dtype=torch.float64)


def wanted(*counts: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    return [
        {
            "labels": torch.randint(3, (n,), generator=generator),
            "boxes": 0.2 + 0.3 * torch.rand(n, 4, generator=generator, dtype=torch.float64),
        }
        for n in counts
    ]


def group(name: str, predictions: tuple[Tensor, Tensor], **settings) -> dict:
    own = QueryGroup(name, predictions[0].shape[2], **settings)
    return {name: own.output(LayerPredictions(*predictions))}


CASES = pytest.mark.parametrize("classification", [Softmax(), Focal()], ids=["softmax", "focal"])


@CASES
def test_the_loss_of_groups_is_their_mean(classification):
    """The ordinary one included; more objects than queries in one image, none in the other."""
    columns, targets, criterion = 3 + classification.has_no_object, wanted(8, 0), SetCriterion(classification)
    parts = [random(5, seed, columns) for seed in range(3)]
    others = tuple(torch.cat(values, 2) for values in zip(*parts[1:], strict=True))
    extra = group("group", others, matcher=Hungarian(parts=2), repeats=2, peers=2)
    total, terms = criterion(Output(*parts[0], extra=extra), targets)
    alone = [criterion(Output(*part), targets) for part in parts]
    torch.testing.assert_close(total, sum(loss for loss, _ in alone) / 3)
    for name in ("l1", "giou"):
        torch.testing.assert_close(terms[f"group.{name}"], (alone[1][1][name] + alone[2][1][name]) / 2)
    for name in ("class", "l1", "giou"):
        torch.testing.assert_close(terms[name], alone[0][1][name])


@CASES
def test_the_hybrid_branch_learns_objects_that_are_repeated(classification):
    columns, targets, criterion = 3 + classification.has_no_object, wanted(2, 1), SetCriterion(classification)
    ordinary, more = random(5, 0, columns), random(20, 1, columns)
    extra = group("hybrid", more, matcher=Hungarian(repeats=6), repeats=6)
    total, terms = criterion(Output(*ordinary, extra=extra), targets)
    repeated = [{name: torch.cat([values] * 6) for name, values in target.items()} for target in targets]
    first, second = criterion(Output(*ordinary), targets), criterion(Output(*more), repeated)
    torch.testing.assert_close(total, first[0] + second[0])
    for name, term in second[1].items():
        torch.testing.assert_close(terms[f"hybrid.{name}"], term)


def test_the_one_to_many_loss_is_added_and_divided_by_the_number_of_objects():
    targets, criterion = wanted(1, 1), SetCriterion(Focal())
    ordinary, early = random(8, 0, 3), random(8, 1, 3)
    early[1][:] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    for image, target in enumerate(targets):
        early[1][:, image, [2, 5]] = target["boxes"]
    extra = group("one-to-many", early, matcher=OneToMany(score=0.0))
    total, terms = criterion(Output(*ordinary, extra=extra), targets)
    assert terms["one-to-many.l1"].tolist() == [0.0, 0.0]
    onehot = torch.zeros_like(early[0])
    for image, target in enumerate(targets):
        onehot[:, image, [2, 5], target["labels"]] = 1
    p, x = early[0].sigmoid(), early[0]
    slow = onehot * 0.25 * (1 - p) ** 2 * -p.log() + (1 - onehot) * 0.75 * p**2 * -(-x).sigmoid().log()
    torch.testing.assert_close(terms["one-to-many.class"], slow.sum((1, 2, 3)) / 2)
    torch.testing.assert_close(total, criterion(Output(*ordinary), targets)[0] + 2 * terms["one-to-many.class"].sum())


def test_padding_of_a_group_is_neither_matched_nor_background():
    targets, criterion = wanted(2, 2), SetCriterion(Focal())
    ordinary, more = random(5, 0, 3), random(6, 1, 3)
    valid = torch.tensor([True, True, False, True, False, True]).expand(2, -1)
    extra = group("hybrid", more, matcher=Hungarian(repeats=2), repeats=2, valid=valid)
    total, terms = criterion(Output(*ordinary, extra=extra), targets)
    small = tuple(values[:, :, valid[0]] for values in more)
    extra = group("hybrid", small, matcher=Hungarian(repeats=2), repeats=2)
    expected, slow = criterion(Output(*ordinary, extra=extra), targets)
    torch.testing.assert_close(total, expected)
    assert terms.keys() == slow.keys()


def test_one_copy_to_the_host_for_all_strategies(monkeypatch):
    calls = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: calls.append(self.shape) or original(self))
    ordinary, more = random(5, 0, 3), random(10, 1, 3)
    valid = torch.ones(2, 10, dtype=torch.bool)
    extra = group("group", more, matcher=Hungarian(parts=2), repeats=2, peers=2, valid=valid)
    extra |= group("one-to-many", ordinary, matcher=OneToMany())
    alive = torch.ones(2, 2, 5, dtype=torch.bool)
    SetCriterion(Focal())(replace(Output(*ordinary, extra=extra), alive=alive), wanted(2, 1))
    assert len(calls) == 1
