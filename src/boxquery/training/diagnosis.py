"""What a running training says of itself: each thing once, in words, with the likely cause and the command that tests it.

Nothing here asks the device for a number while an epoch runs: losses and norms of gradients stay where they are until its end,
answers are those that the evaluation had anyway, and times are the host's.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from boxquery.check.findings import Finding
from boxquery.check.floors import measured
from boxquery.errors import UserError
from boxquery.evaluation.predictions import DetectionsByImage
from boxquery.files import write_json
from boxquery.training.config import RunConfig

if TYPE_CHECKING:
    from boxquery.data.dataset import Split
    from boxquery.parts.output import Output

FILE = "diagnosis.json"
#: AP50 that is none; "left AP 0" in the measured floors is twice this
NOTHING = 0.01
#: steps before anything is said of answers, where the model's own floor was not measured
UNMEASURED = 2000
#: the gradient's norm (median over the epoch against that of the first steps), and the loss likewise
EXPLODING, VANISHING, DEAD, RISING = 50.0, 1e-3, 1e-8, 1.5
#: steps that "the first steps" are, and the fewest from which an epoch is judged
FIRST, FEWEST = 3, 40
#: mean deviation of the answered boxes, in shares of the image: below it they are one box
ONE_BOX = 0.02
#: best score of an image below which it holds nothing
SILENT = 0.05
#: share of images that must show it
MOST = 0.9
#: share of an epoch that may pass in waiting for images
STARVING = 0.5


class NotFinite(UserError):
    """The loss, a gradient or the answers are no longer numbers. ``finding`` is what the run folder keeps of it."""

    def __init__(self, text: str, remedy: str):
        super().__init__(f"{text} {remedy}")
        self.finding = Finding("loss-not-finite", "error", text, remedy)


@dataclass
class Step:
    """What is needed to name a step should it have broken the run. What is on the device stays there until it is asked for.

    Attributes:
        epoch, batch: counted from 0.
        images: ids.
        size: height and width of the batch in pixels.
        rate: of its update.
        loss: []; terms: name -> [L] or []; norm: [] of its gradient; each None, or nothing, until it is known.
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

    def broken(self) -> bool:
        """Whether it left weights that are no numbers. Waits for the device."""
        return not all(bool(torch.isfinite(value)) for value in (self.loss, self.norm) if value is not None)


class Diagnosis:
    """The findings of one run, kept with its state and in ``diagnosis.json``.

    ``{"findings": [{"name", "level", "text", "remedy", "epoch"}]}``
    """

    def __init__(self, folder: Path, config: RunConfig, val: Split):
        self.folder, self.config = folder, config
        self.sizes = np.array([(r.width, r.height, r.width, r.height) for r in val], dtype=np.float64)
        self.said: list[dict[str, Any]] = []
        #: medians over the first steps of the run: loss, norm of the gradient
        self.first: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"said": self.said, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.said, self.first = state_dict["said"], state_dict["first"]

    def add(self, findings: Sequence[Finding], epoch: int) -> list[Finding]:
        """Those that were not said before, which are now."""
        known = {entry["name"] for entry in self.said}
        new = [finding for finding in findings if finding.name not in known]
        self.said += [{**finding.values(), "epoch": epoch} for finding in new]
        return new

    def write(self) -> None:
        if self.said:
            write_json(self.folder / FILE, {"findings": self.said})

    def after_epoch(
        self, row: dict[str, Any], losses: Sequence[float], norms: Sequence[float], waiting: float, judge: bool
    ) -> list[Finding]:
        """What an epoch shows: ``row`` of metrics.csv so far, its losses and norms by step, the share of it spent waiting for images.

        ``judge``: whether waiting counts (the first epoch of a process reads what later ones find in memory).
        """
        found = []
        if not self.first and losses:
            self.first = {"loss": statistics.median(losses[:FIRST]), "norm": statistics.median(norms[:FIRST] or [0.0])}
        if row["step"] >= FEWEST and losses and norms:
            found += self._gradients(statistics.median(losses), statistics.median(norms))
        if judge and waiting > STARVING:
            found.append(self._starving(waiting))
        return found

    def _gradients(self, loss: float, norm: float) -> list[Finding]:
        found = []
        if loss > RISING * self.first["loss"]:
            found.append(
                Finding(
                    "loss-rising", "warning",
                    f"The loss rose: {loss:.3g} is the median of this epoch, {self.first['loss']:.3g} that of the first {FIRST} steps.",
                    f"The rate ({self.config.lr:g}) is too high: try --lr {self.config.lr / 10:g}.",
                )
            )  # fmt: skip
        if norm > EXPLODING * self.first["norm"]:
            found.append(
                Finding(
                    "gradients-exploding", "warning",
                    f"Gradients explode: their norm is {norm:.3g}, in the first steps it was {self.first['norm']:.3g}.",
                    f"The rate ({self.config.lr:g}) is too high: try --lr {self.config.lr / 10:g}.",
                )
            )  # fmt: skip
        if norm < max(VANISHING * self.first["norm"], DEAD):
            found.append(
                Finding(
                    "gradients-vanishing", "warning",
                    f"Gradients vanish: their norm is {norm:.2g}, in the first steps it was {self.first['norm']:.2g}; nothing is learned.",
                    f"Too high a rate kills units ({self.config.lr:g} now); test what the model can learn: {self._test()}.",
                )
            )  # fmt: skip
        return found

    def _starving(self, waiting: float) -> Finding:
        more = max(2 * self.config.workers, 2)
        return Finding(
            "loader-starving", "warning",
            f"{waiting:.0%} of the time passes in waiting for images ({self.config.workers} workers).",
            f"Try --workers {more}, or store the images nearer to {self.config.image_size} pixels.",
        )  # fmt: skip

    def after_evaluation(self, row: dict[str, Any], metrics: dict[str, Any], found: DetectionsByImage) -> list[Finding]:
        """What the answers on val show once the model's floor of steps is behind: AP 0 with its likely cause."""
        if metrics["AP50"] is None or metrics["AP50"] >= NOTHING or row["step"] < self._floor():
            return []
        causes = [cause for cause in (self._one_box(found), self.is_dropped(found)) if cause is not None]
        likely = (
            " ".join(cause.text for cause in causes) if causes
            else "It answers boxes, but at wrong places or with wrong classes: look at the picture grid in report.html."
        )  # fmt: skip
        zero = Finding(
            "ap-zero", "warning", f"AP is still 0 after {row['step']} steps ({self._expected()}). {likely}", f"Test it: {self._test()}."
        )
        return [zero, *causes]

    def _measured(self) -> dict[str, Any]:
        """The floor of this model from where it starts; {} where there is none, as for one that starts from a trained model."""
        if self.config.start_from:
            return {}
        return measured(self.config.model).get("floor", {}).get("trained" if self.config.pretrained else "random", {})

    def _floor(self) -> int:
        """Steps after which AP 0 means something."""
        floor = self._measured()
        return floor.get("left") or 2 * floor.get("not_within", 0) or UNMEASURED

    def _expected(self) -> str:
        floor = self._measured()
        if floor.get("left"):
            return f"on the built-in scenes {self.config.model} leaves it within {floor['left']}"
        return f"for {self.config.model} no floor was measured" + (f" within {floor['not_within']}" if floor.get("not_within") else "")

    def _one_box(self, found: DetectionsByImage) -> Finding | None:
        """All answers of an image are one box."""
        spread = [float((boxes / self.sizes[i]).std(0).mean()) for i, (boxes, _, _) in found.items() if len(boxes) > 1]
        if not spread or np.mean(np.array(spread) < ONE_BOX) < MOST:
            return None
        return Finding(
            "one-box", "warning", f"Queries collapsed onto one box (they differ by {np.median(spread):.1%} of the image).",
            f"Usual in the first steps, later a sign of a rate too high or of too few steps; test it: {self._test()}.",
        )  # fmt: skip

    def is_dropped(self, found: DetectionsByImage) -> Finding | None:
        """No answer is sure of anything."""
        best = np.array([scores.max() if len(scores) else 0.0 for _, scores, _ in found.values()])
        if not len(best) or (best < SILENT).mean() < MOST:
            return None
        return Finding(
            "all-background", "warning", f"Everything is called background: the best score of an image is {np.median(best):.3f}.",
            f"Labels may be missing or boxes may not belong to their images: {self._test()} looks at both.",
        )  # fmt: skip

    def _test(self) -> str:
        return shlex.join(["boxquery", "check", self.config.data, "--model", self.config.model, "--overfit"])


def not_finite(step: Step, error: str, out: Output | None, model: nn.Module, kept: str) -> NotFinite:
    """Why there is no number any more: a step's loss or gradients, if they are none already, else its answers.

    Args:
        error: what was said of the answers.
        out: the answers.
        kept: what state can be gone on from.
    """
    if step.loss is not None and not bool(torch.isfinite(step.loss)):
        said = f"the loss was not finite ({_broken_terms(step.terms)})"
    elif step.norm is not None and not bool(torch.isfinite(step.norm)):
        said = f"the loss was finite, its gradients were not finite ({_broken_gradients(model)})"
    else:
        said = f"{error}{_broken_answers(out)}"
    return NotFinite(f"{step}: {said}.", f"A lower --lr or --precision float32 may help; {kept}")


def _broken_terms(terms: dict[str, Tensor]) -> str:
    said = []
    for name, value in terms.items():
        bad = (~torch.isfinite(value.detach().reshape(-1))).nonzero().flatten().tolist()
        if bad:
            said.append(f"term {name}" + (f" of decoder layer {', '.join(map(str, bad))}" if value.dim() else ""))
    return "; ".join(said) or "a sum of finite terms"


def _broken_gradients(model: nn.Module) -> str:
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    return f"first in {bad[0]}, {len(bad)} parameters in all" if bad else "clipped away since"


def _broken_answers(out: Output | None) -> str:
    if out is None:
        return ""
    for name, value in (("boxes", out.boxes), ("class scores", out.logits)):
        layers = (~torch.isfinite(value.detach()).flatten(1).all(1)).nonzero().flatten().tolist()
        if layers:
            return f" ({name} are none from decoder layer {layers[0]} on)"
    return ""
