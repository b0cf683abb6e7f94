"""How a head's raw outputs become boxes, and how boxes are compared with the objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from boxquery.parts.boxes import at_least_float32, clamp_logits, cxcywh_to_xyxy, giou, iou


class BoxCoder:
    """How boxes are made of a head's numbers, and compared with the objects: by L1 and GIoU."""

    #: numbers per box
    size: int = 4

    def decode(self, raw: Tensor, anchor: Tensor | None) -> Tensor:
        """Raw numbers [..., size] and an anchor [..., 2 or 4] -> [..., 4] in a space of the coder's own, float32 at least."""
        raise NotImplementedError

    def boxes(self, decoded: Tensor) -> Tensor:
        """What ``decode`` returns -> cxcywh in [0, 1] of the unpadded extent."""
        raise NotImplementedError

    def compared(self, boxes: Tensor) -> Tensor:
        """cxcywh [..., 4] -> the numbers [..., 4] whose L1 distance counts: the same."""
        return boxes

    def costs(self, boxes: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Of every query with every object, [L, B, Q, 4] and [L, B, N, 4] -> [L, B, Q, N] by name; low for a good pair."""
        overlap = giou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(targets)[..., None, :, :])
        return {"l1": torch.cdist(self.compared(boxes), self.compared(targets), p=1), "giou": -overlap}

    def terms(self, boxes: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of matched pairs, [P, 4] and [P, 4] -> [P] or [P, 4] by name."""
        overlap = giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
        return {"l1": (self.compared(boxes) - self.compared(targets)).abs(), "giou": 1 - overlap}

    def quality(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """IoU of matched pairs, [P, 4] and [P, 4] -> [P] in [0, 1]."""
        return iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))[0]


@dataclass(frozen=True)
class SigmoidBoxCoder(BoxCoder):
    """Boxes are sigmoids of logits, to which the head adds offsets (Deformable DETR, appendix A.3).

    Args:
        eps: how far from 0 and 1 an anchor is kept (see ``clamp_logits``); 0: no clamp.
    """

    eps: float = 1e-5

    def decode(self, raw: Tensor, anchor: Tensor | None) -> Tensor:
        """Offsets [..., 4] from an anchor [..., 2 or 4] of logits -> [..., 4] logits of cxcywh, float32 at least; a point moves only the
        centre."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if anchor is None:
            return raw
        anchor = clamp_logits(anchor, self.eps) if self.eps else anchor
        if anchor.shape[-1] == 4:
            return raw + anchor
        return torch.cat((raw[..., :2] + anchor, raw[..., 2:]), -1)

    def boxes(self, decoded: Tensor) -> Tensor:
        """Logits [..., 4] -> cxcywh in [0, 1]."""
        return decoded.sigmoid()


#: largest factor by which ``DeltaBoxCoder`` scales a side (detectron2)
LARGEST_SCALE = 100_000 / 16


@dataclass(frozen=True)
class DeltaBoxCoder(BoxCoder):
    """A box moves by shares of its sides, which are multiplied by exponentials (R-CNN, appendix C); corners are compared.

    Boxes are cxcywh in [0, 1] of the unpadded extent in every space, and may leave it.

    Args:
        share: of its side by which the number 1 moves a box's centre; a half in Sparse R-CNN.
    """

    share: float = 0.5

    def decode(self, raw: Tensor, anchor: Tensor | None) -> Tensor:
        """Numbers [..., 4] and the box [..., 4] that they move -> [..., 4] cxcywh, float32 at least."""
        assert anchor is not None
        raw, anchor = at_least_float32(raw, anchor)
        size = anchor[..., 2:]
        factor = raw[..., 2:].clamp(max=math.log(LARGEST_SCALE)).exp()
        return torch.cat((anchor[..., :2] + self.share * raw[..., :2] * size, size * factor), -1)

    def boxes(self, decoded: Tensor) -> Tensor:
        return decoded

    def compared(self, boxes: Tensor) -> Tensor:
        return cxcywh_to_xyxy(boxes)
