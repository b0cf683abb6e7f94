"""The proof that a pipeline can learn: four of the images are learned by heart, from their boxes to AP50 on the same four.

It shows that pictures, boxes, labels, loss, matching and answers fit together for this model. It does not show that the labels are right: a
model learns four wrong ones by heart as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from boxquery.check.findings import Finding
from boxquery.check.floors import measured
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.loading import Batch, DetectionDataset, collate
from boxquery.data.preprocessing import Preprocessing, object_sizes
from boxquery.data.transforms import EvalTransform
from boxquery.evaluation.coco_matching import RIGHT, ImageDetections, coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_MISPLACED, find_duplicates
from boxquery.evaluation.metrics import evaluate
from boxquery.models import create_model
from boxquery.models.interface import Model

SIDE, IMAGES, GOAL = 160, 4, 0.9
#: the preset that is taught whatever is trained later: the published sizes do not learn anything in a minute on a processor
PRESET = "tiny"
RATE = 5e-4
#: steps where the model's own number was not measured, and between two looks at AP50
UNMEASURED, LOOK = 600, 20
SECONDS = 60.0
#: a loss above this share of the first did not fall
FELL = 0.7
#: shortest side in pixels, at ``SIDE``, of objects that the proof prefers, and how many an image
_VISIBLE, _FEW = 10.0, 8


@dataclass(frozen=True)
class Proof:
    """What came of it.

    Attributes:
        model, preset, steps, seconds: what was taught, how long; ``planned``: the steps that it might have taken.
        images: ids of the images.
        AP50: on them, with the weights after the last step.
        AP50_any_class: with all classes taken for one.
        near: share of objects with a detection of their class at IoU 0.1.
        duplicates: share of the boxes at the best threshold that repeat a better one.
        loss: the first and the last; NaN where it or its gradient was no number.
        reached: AP50 above ``GOAL``.
        verdict: what failed, in words; "" if nothing did.
    """

    model: str
    preset: str
    steps: int
    planned: int
    seconds: float
    images: list[int | str]
    AP50: float
    AP50_any_class: float
    near: float
    duplicates: float
    loss: tuple[float, float]
    reached: bool
    verdict: str

    def values(self) -> dict[str, Any]:
        return {**asdict(self), "loss": [value if np.isfinite(value) else None for value in self.loss]}

    def finding(self) -> Finding:
        shown = ", ".join(map(str, self.images))
        if self.reached:
            text = f"{self.model} ({self.preset}) learned images {shown} by heart in {self.steps} steps: AP50 {self.AP50:.2f}."
            return Finding("learns", "note", text)
        text = (
            f"{self.model} ({self.preset}) did not learn images {shown} by heart in {self.steps} steps: {self.verdict} "
            f"(AP50 {self.AP50:.2f}, without classes {self.AP50_any_class:.2f}, loss {self.loss[0]:.3g} to {self.loss[1]:.3g})."
        )
        if self.steps < self.planned and self.loss[1] < FELL * self.loss[0]:
            return Finding(
                "not-proven", "warning", text, f"Time was over; {self.planned} steps may be needed on a machine as slow as this."
            )
        return Finding("does-not-learn", "doomed", text, "Look at the picture grid first, then try --model deformable-detr.")


def prove(
    data: Data, name: str, options: dict[str, Any], *, steps: int | None = None, seconds: float = SECONDS, seed: int = 0,
    device: str = "cpu", told: Callable[[int, int], None] | None = None,
) -> Proof:  # fmt: skip
    """Teach the model four training images until AP50 on them is above ``GOAL``, or steps or seconds are over.

    Args:
        data: with at least one training image that has objects.
        name, options: the model; of preset ``PRESET``, with as many queries as the images need.
        steps: at most so many; None: the measured number of this model.
        seconds: at most so long.
        told: called with steps done and planned.
    """
    torch.manual_seed(seed)
    split = chosen(data.splits["train"])
    most = max(int((~record.ignore).sum()) for record in split)
    model = create_model(name, classes=len(data.names), preset=PRESET, **{**options, **_queries(name, options, most)})
    model.fit_to_data(np.concatenate(object_sizes(split, Preprocessing(SIDE))))
    batch = collate([DetectionDataset(split, EvalTransform(Preprocessing(SIDE)))[i] for i in range(len(split))]).to(device)
    model.to(device).train()
    planned = measured(name).get("learn_steps") or UNMEASURED if steps is None else steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, planned)
    started, losses, found, reached = time.monotonic(), [], {}, False
    step = 0
    while step < planned and not reached and time.monotonic() - started < seconds:
        step += 1
        loss, _ = model.loss(model(batch.images, batch.mask, targets=batch.targets), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(loss.detach() + norm):  # a step would leave weights that are no numbers
            losses.append(math.nan)
            found = {}
            break
        losses.append(float(loss.detach()))
        optimizer.step()
        schedule.step()
        if step % LOOK == 0 or step == planned:
            found = _answers(model, batch, split)
            reached = (evaluate(split, found, data.names, data.ids)["AP50"] or 0.0) > GOAL
            if told is not None:
                told(step, planned)
    if not found and np.isfinite(losses[-1]):
        found = _answers(model, batch, split)
    return _judged(name, (step, planned), time.monotonic() - started, split, found, losses, data)


def chosen(split: Split) -> Split:
    """Four images: objects that can be seen at ``SIDE``, few of them, of different classes; where there are none such, the next best."""

    def badness(record: Record) -> float:
        boxes = record.boxes[~record.ignore]
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1) * SIDE / min(record.width, record.height)
        return float((sides < _VISIBLE).mean() + max(len(boxes) - _FEW, 0) / _FEW)

    candidates = [i for i in range(min(len(split), 2000)) if (~split[i].ignore).any()]
    candidates.sort(key=lambda i: badness(split[i]))
    taken, known = [], set()
    for i in candidates[: max(len(candidates) // 4, IMAGES)]:
        classes = set(split[i].labels[~split[i].ignore].tolist())
        if classes - known and len(taken) < IMAGES:
            taken.append(i)
            known |= classes
    taken += [i for i in candidates if i not in taken][: IMAGES - len(taken)]
    return Split(split.name, [split[i] for i in taken], split.reader)


def _queries(name: str, options: dict[str, Any], most: int) -> dict[str, int]:
    """More queries than the preset has, where the images need them."""
    from boxquery.models import preset

    own = vars(preset(name, PRESET).options).get("num_queries", most)  # a reference has none, and answers with enough
    return {"num_queries": most} if most > own and "num_queries" not in options else {}


@torch.no_grad()
def _answers(model: Model, batch: Batch, split: Split) -> dict[int, ImageDetections]:
    """By position; an image whose answers are no numbers has none."""
    model.eval()
    out = model(batch.images, batch.mask, last_only=True)
    model.train()
    answers = model.postprocess(out, [(record.height, record.width) for record in split])
    found = {i: tuple(answer[k].cpu().numpy() for k in ("boxes", "scores", "labels")) for i, answer in enumerate(answers)}
    return {i: own for i, own in found.items() if np.isfinite(own[0]).all() and np.isfinite(own[1]).all()}  # pyright: ignore[reportReturnType]


def _judged(
    name: str, steps: tuple[int, int], seconds: float, split: Split, found: dict[int, ImageDetections], losses: list[float], data: Data
) -> Proof:
    result = evaluate(split, found, data.names, data.ids)
    blind = [replace(record, labels=record.labels * 0) for record in split]
    alike = {i: (boxes, scores, labels * 0) for i, (boxes, scores, labels) in found.items()}
    any_class = evaluate(blind, alike, ["object"], [0])["AP50"] or 0.0
    detections = flatten_detections(split, found, len(data.names), 100)
    near = float((coco_match(split, detections, IOU_MISPLACED)[0] == RIGHT).sum() / result["objects"])
    shown = detections.scores >= (result["best_threshold"] or 0.5)
    repeated = float(find_duplicates(detections, shown)[shown].mean()) if shown.any() else 0.0
    best = result["AP50"] or 0.0
    return Proof(
        name, PRESET, *steps, round(seconds, 1), [r.id for r in split], best, any_class, near, repeated, (losses[0], losses[-1]),
        best > GOAL, "" if best > GOAL else _verdict(losses, any_class, near, repeated),
    )  # fmt: skip


def _verdict(losses: list[float], any_class: float, near: float, repeated: float) -> str:
    if not np.isfinite(losses[-1]):
        return f"the loss or its gradient stopped being a number at step {len(losses)}"
    if losses[-1] > FELL * losses[0]:
        return "the loss did not fall"
    if any_class > GOAL:
        return "boxes are right, classes are wrong: do equal-looking objects carry different labels?"
    if near > GOAL and repeated < 0.2:
        return "classes are right, boxes are off"
    if repeated >= 0.2:
        return f"the same objects are answered several times ({repeated:.0%} duplicates)"
    if near > 0.5:
        return "the loss fell and most objects are answered near their place, but boxes are not right yet: it needs more steps"
    return "the loss fell, but objects are still missed: it needs more steps"
