"""3-D boxes as a code of ten numbers (DETR3D, and all models from several cameras since).

The code is x, y, log w, log l, z, log h, sin yaw, cos yaw, vx, vy in metres and m/s, of boxes as ``boxquery.boxes3d`` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxquery.parts.box_coder import BoxCoder
from boxquery.parts.boxes import at_least_float32, clamp_logits, inverse_sigmoid
from boxquery.parts.cameras import limits

#: the columns of x, y and z in the code
CENTRE = (0, 1, 4)
#: those of the velocity; they come last
VELOCITY = slice(8, 10)


@dataclass(frozen=True)
class Box3DCoder(BoxCoder):
    """Centres are sigmoids of logits, which the head's numbers move, in an area; the other numbers are the head's own. Compared by L1.

    Args:
        area: x, y, z at least and at most.
        eps: how far from 0 and 1 an anchor is kept (see ``clamp_logits``).
        velocity: weight of the two numbers of the velocity in the loss; they do not count in matching.
        near: metres between centres at which the quality of a box is 1 / e.
    """

    area: Sequence[float]
    eps: float = 1e-5
    velocity: float = 0.2
    near: float = 4.0
    size = 10

    def decode(self, raw: Tensor, anchor: Tensor | None) -> Tensor:
        """Numbers [..., 10] and the logits [..., 3] of a point -> [..., 10], a code with logits in place of x, y and z."""
        assert anchor is not None
        raw, anchor = at_least_float32(raw, anchor)
        x, y, z = clamp_logits(anchor, self.eps).unbind(-1)
        nothing = torch.zeros_like(x)
        return raw + torch.stack((x, y, nothing, nothing, z, *[nothing] * 5), -1)

    def boxes(self, decoded: Tensor) -> Tensor:
        """What ``decode`` returns -> codes [..., 10]."""
        low, high = limits(self.area, decoded)
        x, y, z = (decoded[..., CENTRE].sigmoid() * (high - low) + low).unbind(-1)
        return torch.cat((torch.stack((x, y), -1), decoded[..., 2:4], z[..., None], decoded[..., 5:]), -1)

    def compared(self, boxes: Tensor) -> Tensor:
        """Boxes [..., 9] -> codes [..., 10]."""
        x, y, z, w, l, h, yaw, vx, vy = boxes.unbind(-1)  # noqa: E741
        return torch.stack((x, y, w.log(), l.log(), z, h.log(), yaw.sin(), yaw.cos(), vx, vy), -1)

    def costs(self, boxes: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Codes [L, B, Q, 10] and boxes [L, B, N, 9]; velocities are left out."""
        return {"l1": torch.cdist(boxes[..., :8], self.compared(targets)[..., :8], p=1)}

    def terms(self, boxes: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Codes [P, 10] and boxes [P, 9] -> [P, 10]; zero where a velocity is not known."""
        wanted = self.compared(targets)
        distance = (boxes - torch.where(wanted.isnan(), boxes, wanted)).abs()
        return {"l1": torch.cat((distance[..., :8], self.velocity * distance[..., VELOCITY]), -1)}

    def quality(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Of matched pairs, [P, 10] and [P, 9] -> [P] in [0, 1]: how near the centres are on the plane, which is what detection counts."""
        return (-(boxes[..., :2] - targets[..., :2]).norm(dim=-1) / self.near).exp()


@dataclass(frozen=True)
class PolarBox3DCoder(Box3DCoder):
    """The head's numbers are as seen from the vehicle, so that they are what an image shows, in whichever direction it was taken: a centre
    moves along the line from the vehicle, by a share of its distance, and to the left of it; heading and velocity are measured against it.

    Args:
        step: by what share of its distance, and by how many metres upwards, the number 1 moves a centre.
        unit: share of an object's distance that counts as much as a metre does in ``Box3DCoder``.
    """

    step: float = 0.1
    unit: float = 0.1

    def decode(self, raw: Tensor, anchor: Tensor | None) -> Tensor:
        """As ``Box3DCoder.decode``."""
        assert anchor is not None
        raw, anchor = at_least_float32(raw, anchor)
        low, high = limits(self.area, raw)
        point = anchor.sigmoid() * (high - low) + low
        distance = point[..., :2].norm(dim=-1, keepdim=True).clamp(min=1.0)
        along = point[..., :2] / distance
        move = self.step * raw[..., CENTRE]
        centre = torch.cat((point[..., :2] + turned(move[..., :2], along) * distance, point[..., 2:] + move[..., 2:]), -1)
        x, y, z = inverse_sigmoid((centre - low) / (high - low), self.eps).unbind(-1)
        heading = turned(raw[..., 6:8].flip(-1), along).flip(-1)
        velocity = turned(raw[..., VELOCITY], along)
        return torch.cat((torch.stack((x, y), -1), raw[..., 2:4], z[..., None], raw[..., 5:6], heading, velocity), -1)

    def costs(self, boxes: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """As ``Box3DCoder.costs``, in shares of the objects' distances."""
        apart = (boxes[..., :, None, :8] - self.compared(targets)[..., None, :, :8]).abs()
        return {"l1": (apart * self.shares(targets)[..., None, :, :8]).sum(-1)}

    def terms(self, boxes: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """As ``Box3DCoder.terms``, in shares of the objects' distances."""
        return {"l1": super().terms(boxes, targets)["l1"] * self.shares(targets)}

    def shares(self, targets: Tensor) -> Tensor:
        """Boxes [..., 9] -> [..., 10], 1 but for x and y: there ``unit`` of an object's distance from the vehicle counts 1."""
        share = 1 / (self.unit * targets[..., :2].norm(dim=-1, keepdim=True).clamp(min=1.0))
        one = torch.ones_like(share)
        return torch.cat((share, share, one.expand(*share.shape[:-1], 8)), -1)


def turned(pair: Tensor, along: Tensor) -> Tensor:
    """(x, y) [..., 2] in a frame whose x axis is ``along`` [..., 2] -> in the frame that ``along`` is in."""
    (x, y), (cosine, sine) = pair.unbind(-1), along.unbind(-1)
    return torch.stack((cosine * x - sine * y, sine * x + cosine * y), -1)


def to_boxes(codes: Tensor) -> Tensor:
    """Codes [..., 10] -> boxes [..., 9]."""
    x, y, w, l, z, h, sine, cosine, vx, vy = codes.unbind(-1)  # noqa: E741
    return torch.stack((x, y, z, w.exp(), l.exp(), h.exp(), torch.atan2(sine, cosine), vx, vy), -1)
