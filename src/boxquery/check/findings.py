"""Findings of the check or of a running training: one sentence with its evidence, and what to do about it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
Evidence = Literal["", "weak", "strong"]
ImageRef = tuple[str, int]
"""Split and index."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        name: the kind of finding, for programs: lower case, joined by hyphens.
        level: "error": training cannot work, which is a fact; "warning": probably a mistake or a loss; "note": good to know.
        text: what was found, with the numbers that show it.
        remedy: what to do, or what would settle it; "" for a note that needs no action.
        evidence: "" for a fact; of a guess, "strong" where it lies far beyond anything that data without the fault showed when the
            threshold was set, "weak" where it is just beyond, or where harmless causes look alike.
        images: what to look at: the check draws them into its picture.
        undo: a move of ``boxquery.check.box_fit.MOVES``, drawn undone as well.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""
    evidence: Evidence = ""
    images: tuple[ImageRef, ...] = ()
    undo: str = ""

    def line(self, picture: Path | None = None) -> str:
        """In one line. ``picture``: where its images were drawn."""
        kind = "check failed" if self.level == "error" else self.level
        look = f"Look at {picture}." if self.images and picture is not None else ""
        return " ".join(filter(None, (f"{kind}{f' ({self.evidence} evidence)' * bool(self.evidence)}:", self.text, look, self.remedy)))

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "level": self.level, "text": self.text, "remedy": self.remedy, "evidence": self.evidence}
