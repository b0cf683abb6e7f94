"""Every term, against torchvision, PyTorch and plain loops."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from boxquery.errors import UserError
from boxquery.matching.classification import Focal, Softmax
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.hungarian import pad_targets
from boxquery.models.postprocess import PostProcess
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.output import LayerPredictions, Matches, Output

LAYERS, QUERIES, CLASSES = 3, 7, 4


def predictions(
    columns: int, layers: int = LAYERS, queries: int = QUERIES, seed: int = 0, dtype: torch.dtype = torch.float64
) -> LayerPredictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, 3, queries, columns, dtype=torch.float64, generator=generator)
    boxes = 0.1 + 0.8 * torch.rand(layers, 3, queries, 4, dtype=torch.float64, generator=generator)
    return LayerPredictions(logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_())


def wanted(counts: tuple[int, ...] = (2, 0, 9), dtype: torch.dtype = torch.float64, classes: int = CLASSES) -> list[dict[str, Tensor]]:
    """No object in one image, more than queries in another."""
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "labels": torch.randint(classes, (n,), generator=generator),
            "boxes": (0.1 + 0.6 * torch.rand(n, 4, dtype=torch.float64, generator=generator)).to(dtype),
        }
        for n in counts
    ]


CASES = pytest.mark.parametrize("classification", [Softmax(), Focal()], ids=["softmax", "focal"])


def slow_terms(
    criterion: SetCriterion, given: LayerPredictions, targets: list[dict], pairs: list[list[tuple[Tensor, Tensor]]]
) -> dict[str, Tensor]:
    """One layer, image and pair at a time."""
    objects = max(sum(len(t["labels"]) for t in targets), 1)
    columns = given.logits.shape[-1]
    terms: dict[str, list[Tensor]] = {"class": [], "l1": [], "giou": []}
    for layer, images in enumerate(pairs):
        labels = torch.full(given.logits.shape[1:3], columns - 1)
        onehot = torch.zeros_like(given.logits[layer])
        l1 = giou = torch.zeros((), dtype=given.boxes.dtype)
        for image, (queries, objects_here) in enumerate(images):
            for q, t in zip(queries.tolist(), objects_here.tolist(), strict=True):
                target, box = targets[image], given.boxes[layer, image, q]
                labels[image, q] = target["labels"][t]
                onehot[image, q, target["labels"][t]] = 1
                l1 = l1 + (box - target["boxes"][t]).abs().sum()
                giou = giou + 1 - generalized_box_iou(cxcywh_to_xyxy(box)[None], cxcywh_to_xyxy(target["boxes"][t])[None])[0, 0]
        if isinstance(criterion.classification, Softmax):
            weights = torch.ones(columns, dtype=given.logits.dtype)
            weights[-1] = 0.1
            terms["class"].append(F.cross_entropy(given.logits[layer].flatten(0, 1), labels.flatten(), weight=weights))
        else:
            terms["class"].append(sigmoid_focal_loss(given.logits[layer], onehot, 0.25, 2.0, reduction="sum") / objects)
        terms["l1"].append(l1 / objects)
        terms["giou"].append(giou / objects)
    return {k: torch.stack(v) for k, v in terms.items()}


@CASES
@pytest.mark.parametrize("counts", [(2, 0, 9), (1, 1, 1), (0, 0, 0)], ids=str)
def test_terms_are_their_definition(classification, counts):
    criterion = SetCriterion(classification)
    given, targets = predictions(CLASSES + classification.has_no_object), wanted(counts)
    total, terms = criterion(Output(given.logits, given.boxes), targets)
    expected = slow_terms(criterion, given, targets, criterion.pairs(given.logits, given.boxes, targets))
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert term.shape == (LAYERS,)
        torch.testing.assert_close(term, expected[name])
    weights = {"class": classification.weight, "l1": 5.0, "giou": 2.0}
    torch.testing.assert_close(total, sum(weights[k] * v.sum() for k, v in expected.items()))
    ours = torch.autograd.grad(total, (given.logits, given.boxes), allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(sum(weights[k] * v.sum() for k, v in expected.items()), (given.logits, given.boxes), allow_unused=True)
    for a, b, like in zip(ours, theirs, (given.logits, given.boxes), strict=True):
        zero = torch.zeros_like(like)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b)


@CASES
def test_costs_are_their_definition(classification):
    """Class, 5 x L1, 2 x (-GIoU), as the papers' matchers."""
    given, targets = predictions(CLASSES + classification.has_no_object), wanted()
    cost = SetCriterion(classification).cost(given.logits, given.boxes, pad_targets(targets, given.boxes, len(targets), CLASSES))
    assert cost.shape == (LAYERS, 3, QUERIES, 9)
    assert not cost.requires_grad
    for layer in range(LAYERS):
        for image, target in enumerate(targets):
            logits, boxes, n = given.logits[layer, image], given.boxes[layer, image], len(target["labels"])
            if isinstance(classification, Softmax):
                said = -logits.softmax(-1)[:, target["labels"]]
            else:
                p = logits.sigmoid()
                said = 2 * (0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())[:, target["labels"]]
            l1 = (boxes[:, None] - target["boxes"][None]).abs().sum(-1)
            overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target["boxes"]))
            torch.testing.assert_close(cost[layer, image, :, :n], (said + 5 * l1 - 2 * overlap).detach())


def test_focal_loss_of_certain_logits():
    """No overflow where a sigmoid is 0 or 1 in floating point."""
    logits = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4]).repeat(2, 1)[None, None].requires_grad_()
    nothing = Matches(*torch.tensor([[0], [0], [1], [0]]), ((1,),))
    targets = pad_targets([{"labels": torch.tensor([0]), "boxes": torch.rand(1, 4)}], logits, 1, 5)
    loss = Focal().loss(logits, targets, nothing, torch.tensor(1.0))
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(logits.grad.isfinite().all())


@CASES
def test_a_label_must_have_a_column(classification):
    """A softmax has a column for "no object", which is no class."""
    given = predictions(CLASSES + classification.has_no_object)
    targets = wanted()
    targets[2]["labels"][4] = CLASSES
    for call in (
        lambda: SetCriterion(classification)(Output(given.logits, given.boxes), targets),
        lambda: SetCriterion(classification).pairs(given.logits, given.boxes, targets),
    ):
        with pytest.raises(UserError, match=f"the label {CLASSES}: labels of {CLASSES} classes go from 0 to {CLASSES - 1}"):
            call()


def test_every_object_is_class_0_for_proposals():
    criterion = SetCriterion(Focal())
    given, proposals, targets = predictions(CLASSES), predictions(CLASSES, layers=1, queries=20, seed=3), wanted()
    _, terms = criterion(Output(given.logits, given.boxes, proposals=proposals), targets)
    anything = [{"labels": torch.zeros_like(t["labels"]), "boxes": t["boxes"]} for t in targets]
    expected = slow_terms(criterion, proposals, anything, criterion.pairs(proposals.logits, proposals.boxes, anything))
    for name, term in expected.items():
        assert terms[f"proposals.{name}"].shape == ()
        torch.testing.assert_close(terms[f"proposals.{name}"], term[0])
    assert terms["class"].shape == (LAYERS,)


@CASES
@pytest.mark.parametrize("given_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_precision(classification, given_dtype):
    """float32 at least, also under autocast; float64 stays."""
    expected = torch.promote_types(given_dtype, torch.float32)
    given = predictions(CLASSES + classification.has_no_object, dtype=given_dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=given_dtype == torch.bfloat16):
        total, terms = SetCriterion(classification)(Output(given.logits, given.boxes), wanted(dtype=torch.float32))
    assert {t.dtype for t in (total, *terms.values())} == {expected}


def detections(classification, logits: Tensor, boxes: Tensor, sizes: list[tuple[int, int]], **options) -> list[dict[str, Tensor]]:
    found = PostProcess(classification, top_k=5)(logits, boxes, torch.tensor(sizes), **options)
    return [dict(zip(("scores", "labels", "boxes"), image[:3], strict=True)) for image in zip(*found, strict=True)]


@CASES
def test_detections(classification):
    """Best first, in pixels of the original, unclipped."""
    given = predictions(CLASSES + classification.has_no_object)
    logits, boxes = given.logits[-1], given.boxes[-1]
    sizes = [(100, 200), (50, 30), (10, 10)]
    scores = classification.scores(logits)
    for image, found in enumerate(detections(classification, logits, boxes, sizes)):
        listed = [(scores[image, q, c].item(), c, q) for q in range(QUERIES) for c in range(CLASSES)]
        if classification.has_no_object:
            listed = [max(o for o in listed if o[2] == q) for q in range(QUERIES)]
        listed = sorted(listed, reverse=True)[: QUERIES if classification.has_no_object else 5]
        assert found["scores"].tolist() == pytest.approx([s for s, _, _ in listed])
        assert found["labels"].tolist() == [c for _, c, _ in listed]
        h, w = sizes[image]
        for box, (_, _, q) in zip(found["boxes"].tolist(), listed, strict=True):
            cx, cy, bw, bh = boxes[image, q].tolist()
            assert box == pytest.approx([(cx - bw / 2) * w, (cy - bh / 2) * h, (cx + bw / 2) * w, (cy + bh / 2) * h])


@CASES
def test_one_label_a_query(classification):
    given = predictions(CLASSES + classification.has_no_object)
    (first, *_) = detections(classification, given.logits[-1], given.boxes[-1], [(10, 10)] * 3, top_k=3, one_label=True)
    assert len(first["scores"]) == 3
    best = classification.scores(given.logits[-1, 0]).amax(-1).sort(descending=True).values[:3]
    torch.testing.assert_close(first["scores"], best)
