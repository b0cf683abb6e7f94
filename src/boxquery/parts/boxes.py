"""Box arithmetic that torchvision has for lists of boxes only; here it broadcasts over layers and images."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_convert


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] centre and size -> [..., 4] corners."""
    return box_convert(boxes, "cxcywh", "xyxy")


def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU in [0, 1] and union of xyxy boxes that broadcast against each other: [..., 4], [..., 4] -> [...] twice."""
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = area_a + area_b - intersection
    return intersection / union, union


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1], as ``iou``.

    Pairs come from ``giou(a[..., :, None, :], b[..., None, :, :])``. A union or hull without area gives NaN, as it should: boxes are
    validated where data enters.
    """
    overlap, union = iou(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return overlap - (hull - union) / hull


def nms_per_class(detections: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Non-maximum suppression within each class of one image: of two boxes with an IoU above ``threshold`` the one with the higher
    score is kept.

    ``detections`` has ``scores`` [K], ``labels`` [K] and ``boxes`` [K, 4] xyxy; the result is sorted, best first.
    """
    keep = batched_nms(detections["boxes"], detections["scores"], detections["labels"], threshold)
    return {name: values[keep] for name, values in detections.items()}


#: how far DAB-DETR and all that build on it keep an anchor box from 0 and 1
EPS_OF_ANCHORS = 1e-3


def inverse_sigmoid(numbers: Tensor, eps: float) -> Tensor:
    """Logits of numbers in [0, 1], which are kept at least ``eps`` from 0 and from 1 separately, as all of the family do."""
    return (numbers.clamp(min=eps) / (1 - numbers).clamp(min=eps)).log()


def clamp_logits(logits: Tensor, eps: float = 1e-5) -> Tensor:
    """What ``inverse_sigmoid(sigmoid(logits))`` of the papers gives when it clamps both p and 1 - p to at least ``eps``."""
    low = math.log(eps)
    return F.logsigmoid(logits).clamp(min=low) - F.logsigmoid(-logits).clamp(min=low)


def chosen_rows(values: Tensor, chosen: Tensor) -> Tensor:
    """[B or 1, Q, D] at the indices [B, K] -> [B, K, D]."""
    return values.expand(chosen.shape[0], -1, -1).gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """bf16 and half become float32; float64 stays, so that gradients can be checked."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)
