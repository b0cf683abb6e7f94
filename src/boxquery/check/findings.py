"""What a check or a running training has to say: one sentence with its evidence, and what to do about it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["doomed", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    Attributes:
        name: of the kind of finding, for programs: lower case, joined by hyphens.
        level: "doomed": the run or its evaluation would be worth nothing; "warning": likely a mistake or a loss; "note": good to know.
        text: what, with the figures that show it.
        remedy: what to do, or the command that tests it; "" for a note that asks for nothing.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""

    def line(self) -> str:
        return f"{self.level}: {self.text}" + (f" {self.remedy}" if self.remedy else "")

    def values(self) -> dict[str, Any]:
        return asdict(self)
