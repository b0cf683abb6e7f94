"""What the cells of every view learn that propose boxes in space: which cell learns which object, and the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from boxquery.matching.dense import mean_over_processes
from boxquery.matching.hungarian import PaddedTargets
from boxquery.parts.box_coder_3d import Box3DCoder
from boxquery.parts.boxes import at_least_float32
from boxquery.parts.output import PerspectivePredictions


@dataclass(frozen=True)
class PerspectiveTargets:
    """Cells that learn an object, P of them: ``scene``, ``cell`` and ``target`` (within its scene) int64 [P]; where the middle of its lower
    face is in the cell's view, ``places`` [P, 2] in [0, 1] of it and ``depths`` [P] in metres; how ``tall`` it looks there, [P] in cells.
    """

    scene: Tensor
    cell: Tensor
    target: Tensor
    places: Tensor
    depths: Tensor
    tall: Tensor


@dataclass(frozen=True)
class PerspectiveLoss:
    """A cell learns an object whose centre its view shows at most ``reach`` cells from the cell's own, to the right or left and above or
    below; of several the nearest, which hides the others (FCOS3D, section 3.2).

    Boxes learn by the place of their foot in cells, the log of its depth, and what the code has besides its centre. Classes learn how good
    the cell's own box is: their target is ``certain`` and, of what is left to 1, exp(-distance / ``near``).

    Args:
        coder: of the boxes.
        reach: cells.
        alpha, gamma: of the focal loss.
        certain: 0 to 1; near: metres on the plane.
        weight: of the class term, beside those of the decoder; place, depth, box: of the others.
    """

    coder: Box3DCoder
    reach: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0
    certain: float = 0.3
    near: float = 3.0
    weight: float = 2.0
    place: float = 3.0
    depth: float = 3.0
    box: float = 0.5

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms in the whole loss."""
        return {"class": self.weight, "place": self.place, "depth": self.depth, "box": self.box}

    @torch.no_grad()
    def assign(self, out: PerspectivePredictions, targets: PaddedTargets) -> PerspectiveTargets:
        """Which cells learn which objects."""
        boxes, (h, w), cameras = targets.boxes, out.cells, out.cameras
        size = boxes.new_tensor((w, h))
        present = torch.arange(boxes.shape[1]) < torch.tensor(targets.counts)[:, None]
        centre, visible = cameras.project(boxes[..., :3])
        feet, depths = cameras.seen(torch.cat((boxes[..., :2], boxes[..., 2:3] - boxes[..., 5:6] / 2), -1))
        visible = visible & present.to(boxes.device, non_blocking=True)[:, None]
        column, row = (centre * size).split(1, -1)
        # [B, V, N, w] and [B, V, N, h]
        beside = (torch.arange(w, device=boxes.device) + 0.5 - column).abs() <= self.reach
        above = (torch.arange(h, device=boxes.device) + 0.5 - row).abs() <= self.reach
        near = above[..., :, None] & beside[..., None, :] & visible[..., None, None]
        nearest, target = torch.where(near, depths[..., None, None], torch.inf).min(2)
        scene, view, y, x = nearest.isfinite().nonzero().unbind(1)
        target = target[scene, view, y, x]
        found = scene, view, target
        tall = 2 * ((feet - centre)[found] * size).norm(dim=-1)
        return PerspectiveTargets(scene, (view * h + y) * w + x, target, feet[found], depths[found], tall)

    def terms(self, out: PerspectivePredictions, targets: PaddedTargets) -> dict[str, Tensor]:
        """``class``, ``place``, ``depth`` and ``box``, unweighted, [] each, divided by the number of cells that learn an object."""
        logits, codes = at_least_float32(out.logits, out.codes)
        negative = (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)
        if not targets.labels.shape[1]:
            nothing = (out.places.sum() + out.depths.sum() + codes.sum()) * 0
            return {"class": negative.sum(), "place": nothing, "depth": nothing, "box": nothing}
        own = self.assign(out, targets)
        count = mean_over_processes(logits.new_tensor(float(len(own.cell))))
        index = own.scene, own.cell
        where = (*index, targets.labels[own.scene, own.target])
        x, boxes = logits[where], targets.boxes[own.scene, own.target]
        error = (codes[index][:, :2].detach() - boxes[:, :2]).norm(dim=-1)
        wanted = self.certain + (1 - self.certain) * (-error / self.near).exp()
        positive = self.alpha * (wanted - x.sigmoid()).abs() ** self.gamma * (F.softplus(x) - wanted * x)
        cells = out.places.new_tensor(out.cells[::-1])
        # of what is larger than a cell as a share of its height
        place = (out.places[index] - own.places).abs() * cells / own.tall.clamp(min=1)[:, None]
        # an object that the image cuts off may stand far below it
        depth = (out.depths[index].clamp(min=0.1).log() - own.depths.clamp(min=0.1).log()).abs()
        box = self.coder.terms(codes[index], boxes)["l1"]
        return {
            "class": (negative.sum() + (positive - negative[where]).sum()) / count,
            "place": place.sum() / count,
            "depth": depth.sum() / count,
            "box": (box.sum() - box[:, (0, 1, 4)].sum()) / count,
        }
