"""What a person sees while a model trains: one live line on a terminal, one line per epoch elsewhere; always on stderr."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from boxquery.training.run_length import RunLength


class LiveBar(L.Callback):
    """Losses, AP and time left of the whole run.

    Args:
        length: of the run, as planned.
    """

    def __init__(self, console: Console, length: RunLength):
        self.console, self.length, self.score, self.refreshed = console, length, "", 0.0
        done, left = (MofNCompleteColumn(), TimeElapsedColumn()), (TextColumn("left"), TimeRemainingColumn())
        shown = TextColumn("{task.description}"), BarColumn(), *done, *left
        self.progress = Progress(*shown, console=console, disable=not console.is_terminal)
        self.task = self.progress.add_task("training", total=length.total_batches)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.update(self.task, completed=trainer.current_epoch * self.length.epoch_batches)
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.progress.advance(self.task)
        # reading a number from the device waits for it: twice a second is enough to watch
        if self.console.is_terminal and time.monotonic() - self.refreshed > 0.5:
            self.refreshed = time.monotonic()
            means = "  ".join(f"{k} {float(v) / (batch_idx + 1):.3g}" for k, v in pl_module.sums.items() if "." not in k)
            description = f"epoch {self._of(trainer.current_epoch + 1)}  {means}{self.score}"
            self.progress.update(self.task, total=self.length.total_batches, description=description)

    def _of(self, epoch: int) -> str:
        return f"{epoch}/{max(self.length.total_epochs, epoch)}"

    def report(self, row: dict[str, Any]) -> None:
        """Print a finished epoch."""
        found = f"  AP {row['AP']:.3f}" if row.get("AP") is not None else ""
        self.score = found or self.score
        found += f"  AP50 {row['AP50']:.3f}" if found else ""
        terms = "  ".join(f"{k} {row[k]:.3f}" for k in ("loss", "class", "l1", "giou") if k in row)
        self.console.print(f"epoch {self._of(row['epoch'])}  {terms}{found}  {row['seconds']:.0f} s", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.progress.stop()
