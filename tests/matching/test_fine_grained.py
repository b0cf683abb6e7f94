"""D-FINE's losses against a slow transcription, from random predictions: values, and gradients of logits, boxes and distributions."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from boxquery.matching.classification import Varifocal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.fine_grained import FineGrainedLoss
from boxquery.matching.hungarian import Assignment
from boxquery.matching.union import union
from boxquery.parts.distributions import DistributionBoxCoder
from boxquery.parts.output import LayerPredictions, Matches, Output, TrainingGroupOutput
from tests.matching.slow_d_fine import Slow, slow_loss, total_of
from tests.models.builders import objects

LAYERS, BATCH, QUERIES, CLASSES = 3, 2, 6, 3


def leaf(*shape: int, seed: int, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def boxes_of(raw: Tensor) -> Tensor:
    return torch.cat((0.2 + 0.6 * raw[..., :2].sigmoid(), 0.1 + 0.4 * raw[..., 2:].sigmoid()), -1)


def predictions(coder: DistributionBoxCoder, queries: int, seed: int) -> tuple[list[Tensor], LayerPredictions]:
    """What is learned (logits, distributions, initial boxes), and predictions from it."""
    logits, raw = leaf(LAYERS + 1, BATCH, queries, CLASSES, seed=seed), leaf(LAYERS, BATCH, queries, coder.size, seed=seed + 1, spread=2)
    initial = leaf(BATCH, queries, 4, seed=seed + 2)
    anchor = boxes_of(initial).detach()
    first = LayerPredictions(logits[:1], boxes_of(initial)[None])
    decoded = coder.decode(raw, anchor)
    return [logits, raw, initial], LayerPredictions(logits[1:], decoded, raw=raw, anchor=anchor, initial=first)


def slow(p: LayerPredictions) -> Slow:
    return Slow(list(p.logits), list(p.boxes), [] if p.raw is None else list(p.raw), p.anchor)


def compare(terms: dict[str, Tensor], total: Tensor, expected: dict[str, Tensor], leaves: Sequence[Tensor]) -> None:
    assert set(terms) == set(expected)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(total, total_of(expected), rtol=1e-10, atol=0)
    found, slowly = (torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True) for loss in (total, total_of(expected)))
    for a, b in zip(found, slowly, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def criterion(coder: DistributionBoxCoder, joint: bool) -> SetCriterion:
    return SetCriterion(Varifocal(), coder=coder, fine=FineGrainedLoss(coder), joint=joint, class_agnostic_proposals=False)


@pytest.mark.parametrize("joint", [True, False], ids=["union", "own-pairs"])
@pytest.mark.parametrize(("counts", "scale"), [((3, 2), 4.0), ((0, 4), 8.0), ((0, 0), 4.0), ((9, 1), 4.0)], ids=str)
def test_every_term_and_gradient(counts, scale, joint):
    coder = DistributionBoxCoder(scale=scale)
    targets = objects(*counts, dtype=torch.float64)
    leaves, ordinary = predictions(coder, QUERIES, seed=0)
    logits, boxes = leaf(1, BATCH, QUERIES, CLASSES, seed=20), leaf(1, BATCH, QUERIES, 4, seed=21)
    proposals = LayerPredictions(logits, boxes_of(boxes))
    out = Output(ordinary.logits, ordinary.boxes, proposals, raw=ordinary.raw, anchor=ordinary.anchor, initial=ordinary.initial)
    total, terms = criterion(coder, joint)(out, targets)
    assert ordinary.initial is not None
    expected = slow_loss(slow(ordinary), targets, slow(ordinary.initial), slow(proposals), scale=scale, union=joint)
    compare(terms, total, expected, [*leaves, logits, boxes])


def test_denoising():
    """Noised queries have their own teacher, and weigh matched and other queries as there are ordinary ones."""
    coder, groups, size = DistributionBoxCoder(), 2, 3
    targets = objects(3, 2, dtype=torch.float64)
    leaves, ordinary = predictions(coder, QUERIES, seed=0)
    more, noised = predictions(coder, 2 * groups * size, seed=40)
    pairs = [[(2 * size * g + n, n) for g in range(groups) for n in range(len(t["labels"]))] for t in targets]
    flat = torch.tensor([(0, image, query, target) for image, own in enumerate(pairs) for query, target in own]).unbind(1)
    matches = Matches(*flat, counts=(tuple(map(len, pairs)),)).repeated(LAYERS)
    group = TrainingGroupOutput(
        noised.logits, noised.boxes, matches, repeats=groups, raw=noised.raw, anchor=noised.anchor, initial=noised.initial
    )
    out = Output(
        ordinary.logits, ordinary.boxes, extra={"denoising": group}, raw=ordinary.raw, anchor=ordinary.anchor, initial=ordinary.initial
    )
    total, terms = criterion(coder, joint=True)(out, targets)
    assert ordinary.initial is not None
    assert noised.initial is not None
    expected = slow_loss(slow(ordinary), targets, slow(ordinary.initial), None, slow(noised), slow(noised.initial), pairs, groups)
    compare(terms, total, expected, [*leaves, *more])


def test_targets_beyond_the_last_distance():
    """A side farther out than any distance belongs to the last bin, one farther in to the first."""
    coder = DistributionBoxCoder()
    anchor = torch.tensor([[0.5, 0.5, 0.1, 0.1]], dtype=torch.float64)
    below, share = coder.bins_of(torch.tensor([[0.5, 0.5, 1.0, 1.0]], dtype=torch.float64), anchor)
    assert below.tolist() == [[31] * 4]
    assert share.tolist() == [[1.0] * 4]
    below, share = coder.bins_of(torch.tensor([[0.7, 0.5, 0.01, 0.1]], dtype=torch.float64), anchor)
    assert (below + share)[0].tolist() == pytest.approx([0, 16, 32, 16])


def assignment(pairs: list[tuple[int, int, int, int]], layers: int, batch: int, alive: np.ndarray | None = None) -> Assignment:
    counts = np.zeros((layers, batch), np.int64)
    for layer, image, *_ in pairs:
        counts[layer, image] += 1
    return Assignment(np.array(pairs, np.int64).reshape(-1, 4).T, tuple(map(tuple, counts.tolist())), alive)


def test_union_keeps_the_most_frequent_object():
    layers = assignment([(0, 0, 4, 0), (0, 0, 5, 1), (1, 0, 4, 1), (1, 0, 6, 0), (1, 1, 2, 0), (2, 0, 4, 1), (2, 0, 5, 0)], 3, 2)
    proposals = assignment([(0, 0, 7, 2)], 1, 2)
    (ours, theirs), count = union([layers, proposals])
    wanted = [(0, 4, 1), (0, 5, 0), (0, 6, 0), (0, 7, 2), (1, 2, 0)]
    assert count == 5
    assert ours.pairs.T.tolist() == [[layer, *pair] for layer in range(3) for pair in wanted]
    assert ours.counts == ((4, 1),) * 3
    assert theirs.pairs.T.tolist() == [[0, *pair] for pair in wanted]


def test_union_leaves_out_pruned_queries():
    alive = np.ones((2, 1, 3), bool)
    alive[1, 0, 0] = False
    (found,), count = union([assignment([(0, 0, 0, 0), (1, 0, 1, 0)], 2, 1, alive)])
    assert found.pairs.T.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]]
    assert found.counts == ((2,), (1,))
    assert count == 2


def test_union_of_nothing():
    (found,), count = union([assignment([], 2, 3)])
    assert found.pairs.shape == (4, 0)
    assert found.counts == ((0, 0, 0),) * 2
    assert count == 0
