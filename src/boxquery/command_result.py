"""What a command returns: plain values for ``--json``, a table and text for people. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class CommandResult:
    """What a command prints: plain values with ``--json``, else a table and text."""

    values: dict[str, Any]
    table: Table | None = None
    text: str = ""

    def summary(self) -> dict[str, Any]:
        return self.values

    def show(self) -> None:
        console = Console(highlight=False)
        if self.table is not None:
            console.print(self.table)
        if self.text:
            console.print(self.text, markup=False, soft_wrap=not console.is_terminal)
