"""The whole check of a data set for a plan, as values: what it is, what was found, the picture. ``train`` begins with it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.check import box_contrast, splits
from boxquery.check.duplicates import copies, equal_images
from boxquery.check.feasibility import Plan, objects_ahead, steps_ahead
from boxquery.check.findings import Finding
from boxquery.check.preview import grid
from boxquery.data.dataset import Data
from boxquery.data.transforms import Augment
from boxquery.errors import CheckFailed
from boxquery.files import atomic_write, write_json
from boxquery.report.run_files import data_facts

FILE, PICTURE = "check.json", "check.png"
_ORDER = {"doomed": 0, "warning": 1, "note": 2}


@dataclass
class Checkup:
    """What came of a check.

    Attributes:
        facts: ``data_facts`` of the data, ``ahead`` (sizes and objects at the training resolution), ``copies``, ``fit`` (by split).
        findings: the gravest first.
        picture: the grid.
        seconds: how long it took.
        proof: of ``--learn``, where it was asked for.
    """

    facts: dict[str, Any]
    findings: list[Finding]
    picture: Image.Image | None
    seconds: float
    proof: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def doomed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "doomed"]

    @property
    def status(self) -> int:
        """The command's exit status."""
        return 1 if self.doomed else 0

    def add(self, findings: Sequence[Finding]) -> None:
        self.findings = sorted([*self.findings, *findings], key=lambda finding: _ORDER[finding.level])

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": self.status, **self.facts, "findings": [finding.values() for finding in self.findings],
            "learn": self.proof, "seconds": round(self.seconds, 2), **self.files,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """``check.json``, and ``check.png`` with the picture."""
        if self.picture is not None:
            stream = io.BytesIO()
            self.picture.save(stream, "PNG")
            atomic_write(folder / PICTURE, stream.getvalue())
            self.files["picture"] = PICTURE
        write_json(folder / FILE, self.values())

    def stop_if_doomed(self) -> None:
        """Raises ``CheckFailed`` with every reason."""
        if self.doomed:
            reasons = " ".join(f"{finding.text} {finding.remedy}".strip() for finding in self.doomed)
            raise CheckFailed(f"this run is doomed: {reasons} (--force goes on in spite of it)")


def examine(
    data: Data, evidence: Sequence[Finding], plan: Plan, augment: Augment, *,
    seed: int = 0, picture: bool = True, told: Callable[[str, int, int], None] | None = None,
) -> Checkup:  # fmt: skip
    """Look at a data set with the eyes of a plan; nothing is written.

    Args:
        evidence: from ``open_with_evidence``: what the raw files showed.
        plan: ``steps`` 0 where they are not known yet (see ``ahead.steps_ahead``).
        augment, seed: of the run, for the picture.
        picture: whether to draw it.
        told: called with what is being done, how much is done and how much there is.
    """
    started = time.monotonic()
    say = told or (lambda *_: None)
    say("boxes", 0, 1)
    facts = data_facts(data)
    per_image = {name: np.array([int((~record.ignore).sum()) for record in split]) for name, split in data.splits.items()}
    ahead, findings = objects_ahead(data, plan)
    findings = [*evidence, *findings, *splits.counts(facts, per_image)]
    if plan.steps:
        findings += steps_ahead(plan)
    say("copies", 0, 1)
    shared, more = copies(data, equal_images(data, lambda done, total: say("copies", done, total)))
    findings += more
    looks: dict[str, list[box_contrast.Look]] = {}
    fits: dict[str, Any] = {}
    for number, (name, split) in enumerate(data.splits.items()):
        say("pictures", number, len(data.splits))
        looks[name] = box_contrast.sample(split)
        found = box_contrast.fit(looks[name])
        if found is not None:
            fits[name] = asdict(found)
            findings += [finding] if (finding := box_contrast.fits(name, found)) else []
    for name in data.splits:
        if name != "train" and looks[name] and looks["train"]:
            pair = (looks["train"], looks[name], name)
            findings += [f for f in (splits.labels_permuted(*pair, data.names), splits.colours_swapped(*pair)) if f is not None]
    drawn = grid(data, plan.image_size, augment, seed) if picture else None
    checkup = Checkup({"data": facts, "ahead": ahead, "copies": shared, "fit": fits}, [], drawn, 0.0)
    checkup.add(_once(findings))
    checkup.seconds = time.monotonic() - started
    return checkup


def _once(findings: list[Finding]) -> list[Finding]:
    """What explains a fault is said, what follows from it is not: images of another split cannot fit their boxes either."""
    names = {finding.name for finding in findings}
    if names & {"boxes-of-another-format", "boxes-normalised", "boxes-normalised-twice", "boxes-in-pixels"}:
        findings = [f for f in findings if f.name not in ("boxes-moved", "images-do-not-belong", "objects-below-a-cell")]
    return findings
