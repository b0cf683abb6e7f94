"""All checks of a data set for a plan, as values: what the data is, what was found, the preview. ``train`` starts with them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.check.box_contrast import check_fit, measure_fit, sample_images
from boxquery.check.duplicates import check_duplicates, equal_images
from boxquery.check.feasibility import FeasibilityPlan, check_objects, check_steps
from boxquery.check.findings import Finding
from boxquery.check.preview import draw_preview
from boxquery.check.splits import check_colours, check_counts, check_labels
from boxquery.data.dataset import Data
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import Augment
from boxquery.errors import CheckFailed
from boxquery.files import atomic_write, write_json
from boxquery.report.run_files import data_facts

FILE, PREVIEW = "check.json", "check.png"
_ORDER = {"error": 0, "warning": 1, "note": 2}
#: findings that only follow from boxes read in a wrong format
_WRONG_FORMAT = {"boxes-of-another-format", "boxes-normalised", "boxes-normalised-twice", "boxes-in-pixels"}
_FOLLOWING = {"boxes-moved", "images-do-not-belong", "objects-below-a-cell"}


@dataclass
class CheckResult:
    """The result of a check.

    Attributes:
        facts: ``data``: ``data_facts``; ``feasibility``: sizes and numbers of objects at the training resolution; ``equal_images``: counts;
            ``box_contrast``: by split.
        findings: errors first.
        preview: images with boxes, if it was drawn.
        seconds: how long it took.
        overfit: the result of ``--overfit``, if it was asked for.
    """

    facts: dict[str, Any]
    findings: list[Finding]
    preview: Image.Image | None
    seconds: float
    overfit: dict[str, Any] | None = None

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def status(self) -> int:
        """The command's exit status."""
        return 1 if self.errors else 0

    def add(self, findings: Iterable[Finding]) -> None:
        self.findings = sorted([*self.findings, *findings], key=lambda finding: _ORDER[finding.level])

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": self.status, **self.facts, "findings": [finding.values() for finding in self.findings],
            "overfit": self.overfit, "seconds": round(self.seconds, 2), "picture": PREVIEW if self.preview is not None else None,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """``check.json``, and ``check.png`` with the preview."""
        if self.preview is not None:
            stream = io.BytesIO()
            self.preview.save(stream, "PNG")
            atomic_write(folder / PREVIEW, stream.getvalue())
        write_json(folder / FILE, self.values())

    def raise_if_failed(self) -> None:
        """Raises ``CheckFailed`` with every error."""
        if self.errors:
            reasons = " ".join(f"{finding.text} {finding.remedy}".strip() for finding in self.errors)
            raise CheckFailed(f"check failed: {reasons} (--force trains anyway)")


def run_checks(
    data: Data, findings: Sequence[Finding], plan: FeasibilityPlan, augment: Augment, *,
    seed: int = 0, preview: bool = True, progress: Callable[[str, int, int], None] = lambda *_: None,
) -> CheckResult:  # fmt: skip
    """Check a data set for a plan; nothing is written.

    Args:
        findings: from ``open_checked``: what the raw files showed.
        plan: without ``steps`` what depends on them is left to ``check_steps``.
        augment, seed: of the run, for the preview.
        preview: whether to draw it.
        progress: gets what is being done, how much is done and how much there is.
    """
    started = time.monotonic()
    progress("boxes", 0, 1)
    facts = data_facts(data)
    per_image = {name: np.array([int((~record.ignore).sum()) for record in split]) for name, split in data.splits.items()}
    feasibility, more = check_objects(data, plan)
    findings = [*findings, *more, *check_counts(facts, per_image), *(check_steps(plan) if plan.steps else ())]
    progress("equal images", 0, 1)
    equal, more = check_duplicates(data, equal_images(data, lambda done, total: progress("equal images", done, total)))
    findings += more
    samples, fits, found = {}, {}, []
    for number, (name, split) in enumerate(data.splits.items()):
        progress("pixels", number, len(data.splits))
        samples[name] = sample_images(split)
        if (fit := measure_fit(samples[name])) is not None:
            fits[name] = asdict(fit)
            found.append(check_fit(name, fit))
    for name, sample in samples.items():
        if name != "train" and sample and samples["train"]:
            found += [check_labels(samples["train"], sample, name, data.names), check_colours(samples["train"], sample, name)]
    findings += [finding for finding in found if finding is not None]
    if _WRONG_FORMAT & {finding.name for finding in findings}:
        findings = [finding for finding in findings if finding.name not in _FOLLOWING]
    drawn = draw_preview(data, Preprocessing(plan.image_size), augment, seed) if preview else None
    result = CheckResult({"data": facts, "feasibility": feasibility, "equal_images": equal, "box_contrast": fits}, [], drawn, 0.0)
    result.add(findings)
    result.seconds = time.monotonic() - started
    return result
