"""What a person sees while a model trains, on stderr: one live line on a terminal; elsewhere one per epoch and half minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from boxquery.pages.format import duration, of_planned
from boxquery.training.run_length import RunLength
from boxquery.training.task import Task

#: seconds after which a run that is not watched on a terminal says how far it is
QUIET = 30.0
#: seconds between two looks at the loss, on a terminal and elsewhere: reading a number from a GPU waits for it
WATCHED, UNWATCHED = 0.5, 5.0


class Heartbeat:
    """Off a terminal, prints what is being done where nothing else was printed for half a minute.

    A thread does it: neither a slow step nor a long evaluation is silent. What takes longer is "still" being done.

    Attributes:
        doing: words, or a function that returns them.
    """

    def __init__(self, console: Console, every: float = QUIET):
        self.console, self.every, self.doing = console, every, "reading the data"
        self.doing: str | Callable[[], str]
        self._due, self._ended = time.monotonic() + every, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if not (self.console.is_terminal or self.console.quiet):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def postpone(self) -> None:
        """Something else was printed."""
        self._due = time.monotonic() + self.every

    def _run(self) -> None:
        before = ""
        while not self._ended.wait(max(self._due - time.monotonic(), 0.01)):
            if time.monotonic() >= self._due:
                self.postpone()
                words = self.doing if isinstance(self.doing, str) else self.doing()
                self.console.print("still " * (words == before) + words, markup=False, highlight=False)
                before = words


class LiveBar(L.Callback):
    """Loss, metric, pace and time left of the whole run.

    Args:
        length: of the run, as planned.
        heartbeat: prints the same where no terminal shows it.
        task: what is counted, and which metrics are shown.
    """

    def __init__(self, console: Console, length: RunLength, heartbeat: Heartbeat, task: Task):
        self.console, self.length, self.heartbeat, self.task = console, length, heartbeat, task
        self.score, self.loss, self.looked = "", "", 0.0
        #: which time is shown, where the run's minutes are those of another clock
        self.wall = " (wall time)" if length.minutes is not None and length.clock == "cpu" else ""
        #: in all, as shown: within an epoch it stays, however often the run is planned anew
        self.epochs = length.total_epochs
        #: batches done in all, and before this process began; when it and its epoch did; images per second
        self.done, self.before, self.started, self.epoch_started, self.pace = 0, 0, 0.0, 0.0, 0.0
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
        shown = TextColumn("{task.description}", table_column=Column(no_wrap=True)), bar, TextColumn("{task.fields[pace]}")
        self.progress = Progress(*shown, console=console, disable=not console.is_terminal, expand=True)
        self.shown = self.progress.add_task("training", total=length.total_batches, pace="")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.done = self.before = trainer.current_epoch * self.length.epoch_batches
        self.started = time.monotonic()
        if trainer.should_stop or self.done >= self.length.total_batches:
            self.console.print("the run was already complete: its model is evaluated and its report is written again")
        elif trainer.current_epoch:
            self.console.print(f"resuming after epoch {self._of(trainer.current_epoch)}", highlight=False)
        self.progress.update(self.shown, completed=self.done)
        self.progress.start()
        self.heartbeat.doing = self.state

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epoch_started, self.looked, self.loss = time.monotonic(), 0.0, ""
        self.epochs = self.length.total_epochs
        self.heartbeat.doing = self.state

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1
        self.progress.advance(self.shown)
        now = time.monotonic()
        if now - self.looked > (WATCHED if self.console.is_terminal else UNWATCHED):
            self.looked, self.loss = now, f"  loss {float(pl_module.sums['loss']) / (batch_idx + 1):.3g}"
            self.pace = (batch_idx + 1) * self.length.batch_images / max(now - self.epoch_started, 1e-9)
            description = f"epoch {self._of(trainer.current_epoch + 1)}{self.loss}{self.score}"
            pace = f"{self.pace:.3g} {self.task.unit}s/s, {self._left()}"
            self.progress.update(self.shown, total=self.length.total_batches, description=description, pace=pace)

    def state(self) -> str:
        """How far the run is, in a line."""
        length, epoch = self.length, self._of(self.done // self.length.epoch_batches + 1)
        step = of_planned(length.steps_after(self.done), length.total_steps, ",")
        line = f"epoch {epoch}  step {step}{self.loss}"
        return f"{line}  {self.pace:.3g} {self.task.unit}s/s  {self._left()}" if self.pace else line

    def _left(self) -> str:
        """Until the last step, at the pace of this process, evaluations included."""
        if self.done > self.length.total_batches:
            return "until its CPU time is spent"
        each = (time.monotonic() - self.started) / max(self.done - self.before, 1)
        return f"{duration(each * max(self.length.total_batches - self.done, 0))} left{self.wall}"

    def _of(self, epoch: int) -> str:
        return of_planned(epoch, self.epochs)

    def report(self, row: dict[str, Any]) -> None:
        """Print a finished epoch."""
        better, *others = (f"  {name} {row[name]:.3f}" if row.get(name) is not None else "" for name in self.task.shown)
        self.score = better or self.score
        found = better + "".join(others)
        # its terms, which are those of the last layer and do not add up to it, are in metrics.csv
        loss = f"  loss {row['loss']:.2f}" if "loss" in row else ""
        self.console.print(f"epoch {self._of(row['epoch'])}{loss}{found}  {duration(row['seconds'])} so far{self.wall}", highlight=False)
        self.heartbeat.postpone()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.progress.stop()
