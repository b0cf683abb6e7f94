"""How far a command is with its images, on stderr: a bar on a terminal, elsewhere a line every 30 seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

#: seconds between two lines where there is no terminal
INTERVAL = 30.0


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} per s" if task.speed else "")


class Progress:
    """Counts images; as a context manager it shows them.

    Args:
        what: what is done with them, the line's first word.
        total: how many there are.
    """

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self.console = Console(stderr=True, highlight=False)
        shown = (TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn(), _Rate(), TextColumn("left"))
        self.bar = Bar(*shown, TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task(what, total=total)
        self.started = self.said = time.monotonic()

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def advance(self, count: int = 1) -> None:
        """So many more images are done."""
        self.done += count
        self.bar.advance(self.task, count)
        if not self.console.is_terminal and time.monotonic() - self.said > INTERVAL:
            self.said = time.monotonic()
            self.warn(f"{self.what}: {self.done:,} of {self.total:,} images, {self.rate:.1f} per s")

    def warn(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(line, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
