"""Findings of the check or of a running training: one sentence with its evidence, and what to do about it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        name: the kind of finding, for programs: lower case, joined by hyphens.
        level: "error": training or its evaluation would be pointless; "warning": probably a mistake or a loss; "note": good to know.
        text: what was found, with the numbers that show it.
        remedy: what to do, or the command that tests it; "" for a note that needs no action.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""

    def line(self) -> str:
        return f"{'check failed' if self.level == 'error' else self.level}: {self.text} {self.remedy}".rstrip()

    def values(self) -> dict[str, Any]:
        return asdict(self)
