"""The overfit test of scenes: a model is trained on two of them alone, until AP within 4 m on these two is above ``GOAL``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from boxquery.check.findings import Finding
from boxquery.check.overfit import FELL, GOAL, LR, PRESET, SECONDS, UNMEASURED
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.loading import SceneBatch, SceneDataset, SceneTransform, collate_scenes
from boxquery.data.scenes.records import SceneData, SceneDetections, SceneRecord, SceneSplit
from boxquery.evaluation.nuscenes import evaluate_scenes
from boxquery.models import create_model
from boxquery.models.interface import Model
from boxquery.optimization import training_step

SIDE, SCENES, EVERY = 96, 2, 20


@dataclass(frozen=True)
class SceneOverfitResult:
    """What came of the overfit test.

    Attributes:
        model, preset, steps, seconds: what was trained, how long; ``planned``: the most steps that it could take.
        scenes: ids of the scenes.
        AP: within 4 m on them, mean over the classes that they have, with the weights after the last step.
        loss: the first and the last; None if it was not finite.
        reached: AP above ``GOAL``.
    """

    model: str
    preset: str
    steps: int
    planned: int
    seconds: float
    scenes: list[str]
    AP: float
    loss: tuple[float | None, float | None]
    reached: bool

    def values(self) -> dict[str, Any]:
        return asdict(self)

    def finding(self) -> Finding:
        what = f"scenes {', '.join(self.scenes)} in {self.steps} steps"
        if self.reached:
            return Finding("learns", "note", f"{self.model} ({self.preset}) overfitted {what}: AP within 4 m {self.AP:.2f}.")
        first, last = self.loss
        fell = first is not None and last is not None and last < FELL * first
        text = f"{self.model} ({self.preset}) could not overfit {what}: AP within 4 m {self.AP:.2f}, loss {first} to {last}."
        if self.steps < self.planned and fell:
            return Finding("not-proven", "warning", text, f"The time was up; a machine as slow as this may need all {self.planned} steps.")
        return Finding("does-not-learn", "error", text, "Do boxes and calibration fit in the picture that --out writes?")


def overfit_scenes(
    data: SceneData, name: str, options: dict[str, Any], *, steps: int = UNMEASURED, seconds: float = SECONDS, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SceneOverfitResult:  # fmt: skip
    """Train a model on two training scenes, at preset tiny, until AP within 4 m on them is above ``GOAL``, or steps or time are up."""
    torch.manual_seed(seed)
    split = choose_scenes(data.splits["train"])
    width, height = split[0].sizes[0].tolist()
    transform = SceneTransform(Preprocessing(SIDE), height, width, data.area)
    batch = collate_scenes([SceneDataset(split, transform)[i] for i in range(len(split))])
    model = create_model(name, classes=len(data.names), preset=PRESET, **{"area": list(data.area), **options}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    started, losses, step, best = time.monotonic(), [], 0, 0.0
    while step < steps and best <= GOAL and time.monotonic() - started < seconds:
        step += 1
        loss, _, norm = training_step(model, batch, optimizer, clip=1.0)
        losses.append(float(loss))
        if norm is None or not torch.isfinite(loss + norm):
            break
        schedule.step()
        if step % EVERY == 0 or step == steps:
            best = _measure(model, batch, split, data)
            if progress is not None:
                progress(step, steps)
    finite = [value if np.isfinite(value) else None for value in (losses[0], losses[-1])]
    spent = round(time.monotonic() - started, 1)
    return SceneOverfitResult(name, PRESET, step, steps, spent, [r.id for r in split], best, (finite[0], finite[1]), best > GOAL)


def choose_scenes(split: SceneSplit) -> SceneSplit:
    """Of the first 200 the two with the fewest objects, near ones first: those that are easiest to overfit."""

    def difficulty(record: SceneRecord) -> tuple[int, float]:
        kept = record.boxes[~record.ignore]
        return len(kept), float(np.hypot(kept[:, 0], kept[:, 1]).mean())

    known = [i for i in range(min(len(split), 200)) if (~split[i].ignore).any()]
    return SceneSplit(split.name, [split[i] for i in sorted(known, key=lambda i: difficulty(split[i]))[:SCENES]], split.reader)


@torch.no_grad()
def _measure(model: Model, batch: SceneBatch, split: SceneSplit, data: SceneData) -> float:
    """AP within 4 m, the mean over the classes that are there."""
    model.eval()
    results = model.postprocess(model(*batch.inputs, last_only=True), [])
    model.train()
    columns = [[result[name].numpy() for name in ("boxes", "scores", "labels")] for result in results]
    found = {i: SceneDetections(*own) for i, own in enumerate(columns)}
    rows = evaluate_scenes(split, found, data.protocol)["classes"]
    return float(np.mean([row["AP@4"] for row in rows if row["objects"]] or [0.0]))
