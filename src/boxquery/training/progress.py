"""What a person sees while it trains: one live line on a terminal, one line per epoch elsewhere; always on stderr."""

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
        self.console, self.length = console, length
        self.progress: Progress | None = None
        self.task: Any = None
        self.score = ""
        self.refreshed = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.console.is_terminal:
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self.progress = Progress(*columns, console=self.console)
        self.progress.start()
        self.task = self.progress.add_task(
            "training", total=self.length.total_batches, completed=trainer.current_epoch * self.length.epoch_batches
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.progress is None:
            return
        self.progress.advance(self.task)
        # reading a number from the device waits for it: twice a second is enough to watch
        if time.monotonic() - self.refreshed > 0.5:
            self.refreshed = time.monotonic()
            means = {k: float(v) / (batch_idx + 1) for k, v in pl_module.sums.items() if "." not in k}
            shown = "  ".join(f"{k} {v:.3g}" for k, v in means.items())
            self.progress.update(
                self.task, total=self.length.total_batches, description=f"epoch {self._of(trainer.current_epoch + 1)}  {shown}{self.score}"
            )

    def _of(self, epoch: int) -> str:
        return f"{epoch}/{max(self.length.total_epochs, epoch)}"

    def report(self, row: dict[str, Any]) -> None:
        """A finished epoch."""
        if row.get("AP") is not None:
            self.score = f"  AP {row['AP']:.3f}"
        found = f"  AP {row['AP']:.3f}  AP50 {row['AP50']:.3f}" if row.get("AP") is not None else ""
        terms = "  ".join(f"{k} {row[k]:.3f}" for k in ("loss", "class", "l1", "giou") if k in row)
        self.console.print(f"epoch {self._of(row['epoch'])}  {terms}{found}  {row['seconds']:.0f} s", highlight=False)

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stop()
