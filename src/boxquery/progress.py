"""What a command says on stderr: its notes, and how far it is, as a bar on a terminal and elsewhere as a line every 30 seconds."""

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


def stderr_console(quiet: bool = False) -> Console:
    """For notes: wrapped at words on a terminal, elsewhere a line each; nothing in them is coloured or replaced on its own."""
    console = Console(stderr=True, quiet=quiet, highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal
    return console


def note(line: str) -> None:
    """Say on stderr what was assumed or decided."""
    stderr_console().print(f"note: {line}", markup=False)


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} images/s," if task.speed else "")


class Progress:
    """Counts images; as a context manager it shows them.

    Args:
        what: what is done with them, the line's first word.
        total: how many there are; None: nobody knows, as of a camera.
    """

    def __init__(self, what: str, total: int | None):
        self.what, self.total, self.done = what, total, 0
        self.console = stderr_console()
        name, left = TextColumn("{task.description}", markup=False), TextColumn("left")
        shown = name, BarColumn(20), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), left
        self.bar = Bar(*shown, console=self.console, disable=not self.console.is_terminal, transient=True)
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
            of = "" if self.total is None else f" of {self.total:,}"
            self.warn(f"{self.what}: {self.done:,}{of} images, {self.rate:.3g} images/s")

    def warn(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(line, markup=False)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
