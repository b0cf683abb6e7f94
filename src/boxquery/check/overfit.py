"""The overfit test: the model is trained on four of the images alone, until AP50 on these four is above ``GOAL``.

It shows that images, boxes, labels, loss, matching and predictions fit together for this model. It does not show that the labels are right:
four wrong ones can be overfitted as well.
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
from boxquery.data.preprocessing import Preprocessing, object_shares, object_sizes
from boxquery.data.transforms import EvalTransform
from boxquery.evaluation.coco_matching import RIGHT, ImageDetections, coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_MISPLACED
from boxquery.evaluation.metrics import evaluate
from boxquery.models import create_model, preset
from boxquery.models.interface import Model
from boxquery.optimization import training_step

SIDE, IMAGES, GOAL = 160, 4, 0.9
#: the preset that is trained here, whatever is trained later: the published sizes overfit nothing within a minute on a CPU
PRESET = "tiny"
LR = 5e-4
#: steps where the model's own number was not measured, and between two evaluations
UNMEASURED, EVERY = 600, 20
SECONDS = 60.0
#: a loss above this share of the first did not fall
FELL = 0.7
#: shortest side in pixels, at ``SIDE``, of objects that are preferred, and how many per image
_VISIBLE, _FEW = 10.0, 8


@dataclass(frozen=True)
class OverfitResult:
    """What came of the overfit test.

    Attributes:
        model, preset, steps, seconds: what was trained, how long; ``planned``: the most steps that it could take.
        images: ids of the images.
        AP50: on them, with the weights after the last step.
        AP50_any_class: with all classes merged into one.
        near: share of objects with a detection of their class at IoU 0.1.
        duplicates: duplicate rate of ``evaluate``.
        loss: the first and the last; NaN if it or its gradient was not finite.
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
        what = f"images {', '.join(map(str, self.images))} in {self.steps} steps"
        if self.reached:
            return Finding("learns", "note", f"{self.model} ({self.preset}) overfitted {what}: AP50 {self.AP50:.2f}.")
        text = (
            f"{self.model} ({self.preset}) could not overfit {what}: {self.verdict} "
            f"(AP50 {self.AP50:.2f}, ignoring classes {self.AP50_any_class:.2f}, loss {self.loss[0]:.3g} to {self.loss[1]:.3g})."
        )
        if self.steps < self.planned and self.loss[1] < FELL * self.loss[0]:
            remedy = f"The time was up; a machine as slow as this may need all {self.planned} steps."
            return Finding("not-proven", "warning", text, remedy)
        return Finding(
            "does-not-learn", "error", text, "If boxes and names fit in the picture that --out writes, try --model deformable-detr."
        )


def overfit_batch(
    data: Data, name: str, options: dict[str, Any], *, steps: int | None = None, seconds: float = SECONDS, seed: int = 0,
    device: str = "cpu", progress: Callable[[int, int], None] | None = None,
) -> OverfitResult:  # fmt: skip
    """Train a model on four training images until AP50 on them is above ``GOAL``, or steps or time are up.

    Args:
        data: with at least one training image that has objects.
        name, options: the model, at preset ``PRESET``, with as many queries as the images need.
        steps: at most so many; None: the number measured for this model.
        seconds: at most so long.
        progress: gets the numbers of steps done and planned.
    """
    torch.manual_seed(seed)
    split = choose_images(data.splits["train"])
    most = max(int((~record.ignore).sum()) for record in split)
    if "num_queries" not in options and most > vars(preset(name, PRESET).options).get("num_queries", most):  # a baseline has none to set
        options = {**options, "num_queries": most}
    model = create_model(name, classes=len(data.names), preset=PRESET, **options)
    model.fit_to_data(np.concatenate(object_sizes(split, Preprocessing(SIDE))), np.concatenate(object_shares(split)))
    batch = collate([DetectionDataset(split, EvalTransform(Preprocessing(SIDE)))[i] for i in range(len(split))]).to(device)
    model.to(device).train()
    planned = measured(name).get("learn_steps") or UNMEASURED if steps is None else steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, planned)
    started, losses, step, reached = time.monotonic(), [], 0, False
    found: dict[int, ImageDetections] | None = None  # with the weights as they are
    while step < planned and not reached and time.monotonic() - started < seconds:
        step, found = step + 1, None
        loss, _, norm = training_step(model, batch, optimizer, clip=1.0)
        if norm is None or not torch.isfinite(loss + norm):
            losses.append(math.nan)
            found = {}
            break
        losses.append(float(loss))
        schedule.step()
        if step % EVERY == 0 or step == planned:
            found = _predict(model, batch, split)
            reached = (evaluate(split, found, data.names, data.ids)["AP50"] or 0.0) > GOAL
            if progress is not None:
                progress(step, planned)
    if found is None:
        found = _predict(model, batch, split)
    return _result(name, (step, planned), time.monotonic() - started, split, found, losses, data)


def choose_images(split: Split) -> Split:
    """Four images whose objects are visible at ``SIDE``, few, and of different classes; where there are none such, the next best."""

    def badness(record: Record) -> float:
        boxes = record.boxes[~record.ignore]
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1) * SIDE / min(record.width, record.height)
        return float((sides < _VISIBLE).mean() + max(len(boxes) - _FEW, 0) / _FEW)

    candidates = [i for i in range(min(len(split), 2000)) if (~split[i].ignore).any()]
    candidates.sort(key=lambda i: badness(split[i]))
    chosen, known = [], set()
    for i in candidates[: max(len(candidates) // 4, IMAGES)]:
        classes = set(split[i].labels[~split[i].ignore].tolist())
        if classes - known and len(chosen) < IMAGES:
            chosen.append(i)
            known |= classes
    chosen += [i for i in candidates if i not in chosen][: IMAGES - len(chosen)]
    return Split(split.name, [split[i] for i in chosen], split.reader)


@torch.no_grad()
def _predict(model: Model, batch: Batch, split: Split) -> dict[int, ImageDetections]:
    """By index; an image whose predictions are not finite has none."""
    model.eval()
    out = model(batch.images, batch.mask, last_only=True)
    model.train()
    results = model.postprocess(out, [(record.height, record.width) for record in split])
    found = {i: tuple(result[k].cpu().numpy() for k in ("boxes", "scores", "labels")) for i, result in enumerate(results)}
    return {i: own for i, own in found.items() if np.isfinite(own[0]).all() and np.isfinite(own[1]).all()}  # pyright: ignore[reportReturnType]


def _result(
    name: str, steps: tuple[int, int], seconds: float, split: Split, found: dict[int, ImageDetections], losses: list[float], data: Data
) -> OverfitResult:
    metrics = evaluate(split, found, data.names, data.ids)
    merged = [replace(record, labels=record.labels * 0) for record in split]
    alike = {i: (boxes, scores, labels * 0) for i, (boxes, scores, labels) in found.items()}
    any_class = evaluate(merged, alike, ["object"], [0])["AP50"] or 0.0
    detections = flatten_detections(split, found, len(data.names), 100)
    near = float((coco_match(split, detections, IOU_MISPLACED)[0] == RIGHT).sum() / metrics["objects"])
    repeated, best = metrics["duplicate_rate"] or 0.0, metrics["AP50"] or 0.0
    return OverfitResult(
        name, PRESET, *steps, round(seconds, 1), [r.id for r in split], best, any_class, near, repeated, (losses[0], losses[-1]),
        best > GOAL, "" if best > GOAL else _verdict(losses, any_class, near, repeated),
    )  # fmt: skip


def _verdict(losses: list[float], any_class: float, near: float, repeated: float) -> str:
    if not np.isfinite(losses[-1]):
        return f"the loss or its gradient became NaN or inf at step {len(losses)}"
    if losses[-1] > FELL * losses[0]:
        return "the loss did not fall"
    if any_class > GOAL:
        return "boxes are right, classes are wrong: do objects that look the same carry different labels?"
    if near > GOAL and repeated < 0.2:
        return "classes are right, boxes are off"
    if repeated >= 0.2:
        return f"the same objects are detected several times ({repeated:.0%} duplicates)"
    if near > 0.5:
        return "the loss fell and most objects are detected near their place, but boxes are not right yet: it needs more steps"
    return "the loss fell, but objects are still missed: it needs more steps"
