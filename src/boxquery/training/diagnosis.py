"""What goes wrong while a model trains: each problem is reported once, with its likely cause and the command that tests it.

Nothing here reads a number from the device while an epoch runs: losses and gradient norms stay there until its end, detections are those of
the evaluation, and times are the host's.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boxquery.check.findings import Finding
from boxquery.check.floors import measured
from boxquery.errors import UserError
from boxquery.files import write_json
from boxquery.parts.output import Output
from boxquery.training.config import RunConfig
from boxquery.training.task import Found, Task

FILE = "diagnosis.json"
#: AP50 below which it counts as 0; "left AP 0" in the measured floors is twice this
ZERO = 0.01
#: steps before AP 0 is reported, where the model's own floor was not measured
UNMEASURED = 2000
#: median gradient norm of an epoch relative to that of the first steps, and absolute; and the median loss likewise
EXPLODING, VANISHING, DEAD, RISING = 50.0, 1e-3, 1e-8, 1.5
#: how many steps "the first steps" are, and the least after which an epoch is judged
FIRST, LEAST = 3, 40
#: mean deviation of an image's boxes, as a share of the image, below which they are one box
ONE_BOX = 0.02
#: best score of an image below which everything in it is background
BACKGROUND = 0.05
#: share of images that must show it
MOST = 0.9
#: share of an epoch spent waiting for images
STARVING = 0.5


class NotFinite(UserError):
    """The loss, a gradient or the predictions became NaN or inf. ``finding`` is what the run folder keeps of it."""

    def __init__(self, text: str, remedy: str):
        super().__init__(f"{text} {remedy}")
        self.finding = Finding("loss-not-finite", "error", text, remedy)


@dataclass
class Step:
    """What is needed to name a step if it breaks the run. What is on the device stays there until it is needed.

    Attributes:
        epoch, batch: counted from 0.
        images: ids.
        size: height and width of the batch in pixels.
        rate: learning rate.
        loss: []; terms: name -> [L] or []; norm: [] of the gradient; None or empty until known.
    """

    epoch: int
    batch: int
    images: Sequence[int | str]
    size: Sequence[int]
    rate: float
    loss: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    norm: Tensor | None = None

    def __str__(self) -> str:
        names, (height, width) = ", ".join(map(str, self.images)), self.size
        return f"epoch {self.epoch}, batch {self.batch} (images {names}; rate {self.rate:.2g}; scale {width} x {height} pixels)"

    def is_broken(self) -> bool:
        """Whether it left weights that are NaN or inf. Waits for the device."""
        return not all(_is_finite(value) for value in (self.loss, self.norm) if value is not None)


class Diagnosis:
    """The findings of one run, kept with its state and in ``diagnosis.json``.

    ``{"findings": [{"name", "level", "text", "remedy", "epoch"}]}``
    """

    def __init__(self, folder: Path, config: RunConfig, task: Task):
        self.folder, self.config, self.task = folder, config, task
        self.findings: list[dict[str, Any]] = []
        #: medians over the first steps of the run: loss, norm of the gradient
        self.first: dict[str, float] = {}
        self.test = shlex.join(task.test(config))

    def state_dict(self) -> dict[str, Any]:
        return {"findings": self.findings, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.findings, self.first = state_dict["findings"], state_dict["first"]

    def add(self, findings: Iterable[Finding], epoch: int) -> list[Finding]:
        """Returns those that are new."""
        known = {entry["name"] for entry in self.findings}
        new = [finding for finding in findings if finding.name not in known]
        self.findings += [{**finding.values(), "epoch": epoch} for finding in new]
        return new

    def write(self) -> None:
        if self.findings:
            write_json(self.folder / FILE, {"findings": self.findings})

    def after_epoch(
        self, row: dict[str, Any], losses: Sequence[float], norms: Sequence[float], waiting: float, judge: bool
    ) -> Iterator[Finding]:
        """Problems of an epoch: ``row`` of metrics.csv so far, its losses and norms by step, the share of it spent waiting for images.

        ``judge``: whether waiting counts (the first epoch of a process reads what later ones find in memory).
        """
        if not self.first and losses:
            self.first = {"loss": median(losses[:FIRST]), "norm": median(norms[:FIRST] or [0.0])}
        if row["step"] >= LEAST and losses and norms:
            yield from self._learning(median(losses), median(norms))
        if judge and waiting > STARVING:
            yield _warning(
                "loader-starving", f"{waiting:.0%} of the time passes in waiting for images ({self.config.workers} workers).",
                f"Try --workers {max(2 * self.config.workers, 2)}, or store the images nearer to {self.config.image_size} pixels.",
            )  # fmt: skip

    def _learning(self, loss: float, norm: float) -> Iterator[Finding]:
        first, lr = self.first, self.config.lr
        lower = f"The learning rate ({lr:g}) is too high: try --lr {lr / 10:g}."
        if loss > RISING * first["loss"]:
            text = f"The loss rose: {loss:.3g} is the median of this epoch, {first['loss']:.3g} that of the first {FIRST} steps."
            yield _warning("loss-rising", text, lower)
        if norm > EXPLODING * first["norm"]:
            text = f"Gradients explode: their norm is {norm:.3g}, in the first steps it was {first['norm']:.3g}."
            yield _warning("gradients-exploding", text, lower)
        if norm < max(VANISHING * first["norm"], DEAD):
            text = f"Gradients vanish: their norm is {norm:.2g}, in the first steps it was {first['norm']:.2g}; nothing is learned."
            remedy = f"Too high a learning rate kills units ({lr:g} now); test what the model can learn: {self.test}."
            yield _warning("gradients-vanishing", text, remedy)

    def after_evaluation(self, row: dict[str, Any], metrics: dict[str, Any], found: Found) -> list[Finding]:
        """AP 0 with its likely cause, once the model has had the steps that it needs to leave it."""
        floor = {} if self.config.start_from else measured(self.config.model).get("floor", {})
        floor = floor.get("trained" if self.config.pretrained else "random", {})
        left, within = floor.get("left"), floor.get("not_within", 0)
        if (zero := metrics[self.task.zero]) is None or zero >= ZERO or row["step"] < (left or 2 * within or UNMEASURED):
            return []
        name, causes = self.config.model, list(self._causes(found))
        expected = f"on the built-in scenes {name} leaves it within {left}" if left else f"for {name} no floor was measured"
        expected += f" within {within}" * bool(within and not left)
        likely = " ".join(cause.text for cause in causes)
        likely = likely or "Boxes are predicted, but at wrong places or with wrong classes: look at the images in report.html."
        text = f"{self.task.better} is still 0 after {row['step']} steps ({expected}). {likely}"
        return [_warning("ap-zero", text, f"Test it: {self.test}."), *causes]

    def _causes(self, found: Found) -> Iterator[Finding]:
        spread = self.task.spreads(found)
        if len(spread) and (spread < ONE_BOX).mean() >= MOST:
            text = f"Queries collapsed onto one box (they differ by {np.median(spread):.1%} of the {self.task.unit})."
            remedy = f"Usual in the first steps, later a sign of too high a learning rate or too few steps; test it: {self.test}."
            yield _warning("one-box", text, remedy)
        best = self.task.scores(found)
        if len(best) and (best < BACKGROUND).mean() >= MOST:
            text = f"Everything is classified as background: the best score of one {self.task.unit} is {np.median(best):.3f}."
            remedy = f"Labels may be missing or boxes may not belong to their images: {self.test} looks at both."
            yield _warning("all-background", text, remedy)


def _warning(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, "warning", text, remedy)


def not_finite(step: Step, error: str, out: Output | None, model: nn.Module, kept: str) -> NotFinite:
    """Why something is NaN or inf: a step's loss or gradients, if they are already, else its predictions.

    Args:
        error: what the loss said of the predictions.
        out: the predictions.
        kept: which state the run can be resumed from.
    """
    if step.loss is not None and not _is_finite(step.loss):
        reason = f"the loss was not finite ({_broken_terms(step.terms)})"
    elif step.norm is not None and not _is_finite(step.norm):
        reason = f"the loss was finite, its gradients were not finite ({_broken_gradients(model)})"
    else:
        reason = f"{error}{_broken_predictions(out)}"
    return NotFinite(f"{step}: {reason}.", f"A lower --lr or --precision float32 may help; {kept}")


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _broken_terms(terms: dict[str, Tensor]) -> str:
    bad = {name: (~torch.isfinite(value.reshape(-1))).nonzero().flatten().tolist() for name, value in terms.items()}
    layers = {name: f" of decoder layer {', '.join(map(str, bad[name]))}" if value.dim() else "" for name, value in terms.items()}
    return "; ".join(f"term {name}{layers[name]}" for name in terms if bad[name]) or "a sum of finite terms"


def _broken_gradients(model: nn.Module) -> str:
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    return f"first in {bad[0]}, {len(bad)} parameters in all" if bad else "clipped away since"


def _broken_predictions(out: Output | None) -> str:
    for name, value in (("boxes", out.boxes), ("class scores", out.logits)) if out is not None else ():
        for layer, part in enumerate(value):
            if not _is_finite(part):
                return f" ({name} are NaN or inf from decoder layer {layer} on)"
    return ""
