"""Box arithmetic, against torchvision and the papers' formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou

from boxquery.parts.boxes import at_least_float32, clamp_logits, cxcywh_to_xyxy, giou, nms_per_class
from boxquery.parts.heads import Head


def boxes(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, 4, dtype=torch.float64, generator=generator) * 0.8 + 0.05


def test_corners():
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.2, 0.6, 0.6])


def test_giou_of_all_pairs():
    a, b = cxcywh_to_xyxy(boxes(3, 7, seed=0)), cxcywh_to_xyxy(boxes(3, 5, seed=1))
    ours = giou(a[:, :, None], b[:, None])
    for image in range(3):
        torch.testing.assert_close(ours[image], generalized_box_iou(a[image], b[image]))


def test_giou_of_pairs():
    a, b = cxcywh_to_xyxy(boxes(6, seed=2)), cxcywh_to_xyxy(boxes(6, seed=3))
    torch.testing.assert_close(giou(a, b), generalized_box_iou(a, b).diagonal())
    torch.testing.assert_close(giou(a, a), torch.ones(6, dtype=torch.float64))


def test_giou_gradients():
    a, b = (cxcywh_to_xyxy(boxes(6, seed=s)).requires_grad_() for s in (4, 5))
    assert torch.autograd.gradcheck(giou, (a, b))


def test_giou_of_boxes_apart_and_without_area():
    apart = giou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 0, 4, 1]))
    assert apart.item() == pytest.approx(0 - (4 - 2) / 4)
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert giou(point, point).isnan()


def inverse_sigmoid(p: torch.Tensor, eps: float) -> torch.Tensor:
    """As the papers' code has it."""
    p = p.clamp(0, 1)
    return (p.clamp(min=eps) / (1 - p).clamp(min=eps)).log()


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_clamp_logits(eps):
    logits = torch.cat((torch.linspace(-30, 30, 241, dtype=torch.float64), torch.tensor([-1e4, 1e4], dtype=torch.float64))).requires_grad_()
    ours = clamp_logits(logits, eps)
    theirs = inverse_sigmoid(logits.sigmoid(), eps)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-8)
    gradients = [torch.autograd.grad(t.sum(), logits)[0] for t in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)


@given(st.floats(-11, 11))
@settings(max_examples=50, deadline=None)
def test_clamp_logits_changes_nothing_inside(logit):
    assert clamp_logits(torch.tensor(logit, dtype=torch.float64)).item() == pytest.approx(logit, abs=1e-9)


def test_clamp_logits_of_infinity():
    """Invalid proposals of two-stage models: p = 1, as 1 / eps."""
    logits = torch.tensor([torch.inf, -torch.inf], requires_grad=True)
    out = clamp_logits(logits)
    torch.testing.assert_close(out, torch.tensor([11.512925, -11.512925]))
    out.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_at_least_float32():
    given = [torch.zeros(1, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    assert [t.dtype for t in at_least_float32(*given)] == [torch.float32, torch.float32, torch.float32, torch.float64]


class TestHead:
    """Where a box is measured from."""

    def head(self, **options) -> Head:
        torch.manual_seed(0)
        return Head(8, 3, **options).double()

    def test_starts_at_its_anchor(self):
        content, box_anchor = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(self.head().box(content, box_anchor), box_anchor)

    def test_a_point_moves_the_centre_alone(self):
        content, box_anchor = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
        out = self.head(size_bias=-2.0).box(content, box_anchor)
        torch.testing.assert_close(out[..., :2], box_anchor)
        assert bool((out[..., 2:] == -2).all())

    def test_without_an_anchor(self):
        head, content = self.head(zero_boxes=False), torch.randn(2, 5, 8, dtype=torch.float64)
        torch.testing.assert_close(head.box(content, None), head.boxes(content))

    def test_classes_start_at_one_percent(self):
        head = self.head()
        assert head.classes.bias.sigmoid().mean().item() == pytest.approx(0.01)
        assert self.head(focal=False).classes.bias.abs().max() < 1

    @pytest.mark.parametrize("eps", [1e-5, 1e-3])
    def test_an_anchor_at_the_border_is_kept_from_it(self, eps):
        box_anchor = torch.tensor([[torch.inf, -torch.inf, 20.0, 1.0]], dtype=torch.float64)
        limit = math.log((1 - eps) / eps)
        out = self.head(eps=eps).box(torch.zeros(1, 8, dtype=torch.float64), box_anchor)
        assert out[0].tolist() == pytest.approx([limit, -limit, limit, 1.0], abs=2 * eps)

    def test_boxes_are_float32_under_autocast(self):
        head = Head(8, 3)
        with torch.autocast("cpu", torch.bfloat16):
            assert head.box(torch.zeros(1, 8), None).dtype == torch.float32
            assert head.box(torch.zeros(1, 8), torch.zeros(1, 2)).dtype == torch.float32


def test_nms_per_class_keeps_the_better_of_a_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60]])  # the first two overlap by 9/11
    answer = {"scores": torch.tensor([0.5, 0.9, 0.4, 0.3]), "labels": torch.tensor([0, 0, 1, 0]), "boxes": boxes}
    kept = nms_per_class(answer, 0.5)
    assert kept["scores"].tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert kept["labels"].tolist() == [0, 1, 0]
    assert kept["boxes"].equal(boxes[[1, 2, 3]])
    assert len(nms_per_class(answer, 0.9)["scores"]) == len(nms_per_class(answer, 1.0)["scores"]) == 4
