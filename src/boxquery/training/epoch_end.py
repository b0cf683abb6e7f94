"""What Lightning calls: when a run is over, and what happens after an epoch: evaluate, keep the best model, write the row and the state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L

from boxquery.data.loading import Batch, EpochSampler
from boxquery.data.validation import fail_if_too_many
from boxquery.errors import count
from boxquery.report.page import write_report
from boxquery.training.best_model import BestModel
from boxquery.training.clock import Clock
from boxquery.training.config import RunConfig
from boxquery.training.diagnosis import Diagnosis, NotFinite
from boxquery.training.evaluator import Evaluator
from boxquery.training.metrics_table import MetricsTable
from boxquery.training.module import Training
from boxquery.training.progress import LiveBar
from boxquery.training.run_length import PLANNED, RunLength
from boxquery.training.state import LAST
from boxquery.training.task import D, Task
from boxquery.training.timing import counts_cpu

#: factor by which the steps must differ from those last said for the new plan to be said
NOTEWORTHY = 1.25


class EpochEnd(L.Callback):
    """Composes the parts that act at the end of an epoch; their states are in the checkpoint.

    Args:
        sampler: of the training images.

    Attributes:
        unreadable: images whose pixels could not be read, a line each, by split.
    """

    def __init__(self, folder: Path, config: RunConfig, detector: D, task: Task[D], bar: LiveBar, sampler: EpochSampler):
        self.folder, self.config, self.task, self.bar, self.sampler = folder, config, task, bar, sampler
        self.clock = Clock(config.length, counts_cpu(config))
        self.evaluator = Evaluator(config, detector, task, lambda line: self.skipped("val", line))
        self.best = BestModel(folder / "model", detector, task, config.patience)
        self.table = MetricsTable(folder / "metrics.csv")
        self.diagnosis = Diagnosis(folder, config, task)
        self.unreadable: dict[str, list[str]] = {"train": [], "val": []}
        #: epochs that this process has seen end
        self.seen = 0
        #: steps in all as last said, and the seconds of a batch then
        self.announced = config.length.total_steps, 0.0

    @property
    def parts(self) -> dict[str, Any]:
        return {"clock": self.clock, "evaluator": self.evaluator, "best": self.best, "table": self.table, "diagnosis": self.diagnosis}

    def state_dict(self) -> dict[str, Any]:
        return {"unreadable": self.unreadable, **{name: part.state_dict() for name, part in self.parts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.unreadable = state_dict["unreadable"]
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # workers read ahead before Lightning names the epoch: a resumed run would begin with the images of another
        self.sampler.set_epoch(len(self.table.rows))

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.clock.start(trainer.current_epoch)
        self.announced = self.clock.length.total_steps, self.clock.per_batch
        trainer.should_stop |= self.clock.over or self.best.exhausted  # it may have died after it had decided to stop

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        for line in batch.unreadable:
            self.skipped("train", line)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        planned = self.clock.length
        trainer.should_stop |= self.clock.after_batch(trainer.current_epoch, batch_idx + 1)
        if self.clock.length != planned:
            pl_module.schedule.update(self.clock.length.schedule_steps)
            self._write_length(trainer)
            self._announce(self.clock.length)

    def _announce(self, length: RunLength) -> None:
        """Say that the run became longer or shorter than it was last said to be, and why."""
        steps, before = self.announced
        if max(steps, length.total_steps) < NOTEWORTHY * min(steps, length.total_steps):
            return
        self.announced = length.total_steps, self.clock.per_batch
        now, then = (f"{seconds * length.accumulate:.2g} s" for seconds in (self.clock.per_batch, before))
        instead = f" instead of {then}" if before and then != now else ""
        fit = f"{count(length.total_steps, 'step')} in all fit into the {length.minutes:g} min"
        self.bar.console.print(f"a step takes {now}{instead}: {fit}", highlight=False)

    def _say_end(self) -> None:
        """Say that the CPU's clock ended the run, where that was not after the steps that were planned."""
        length, (planned, _) = self.clock.length, self.announced
        if self.clock.over and length.ends_by_clock and length.total_steps != planned:
            spent = f"{100 * PLANNED:.0f} % of its {length.minutes:g} min of CPU time"
            ended = f"the run ended after {count(length.total_steps, 'step')}, when {spent} was spent; {planned:,} were planned"
            self.bar.console.print(ended, highlight=False)

    def _write_length(self, trainer: L.Trainer) -> None:
        """Into ``config.yaml``, which then repeats the run."""
        self.config = self.config.with_length(self.clock.length)
        self.bar.length = self.clock.length
        if trainer.is_global_zero:
            self.config.write(self.folder)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, Training)
        epoch, began, first = trainer.current_epoch + 1, self.clock.seconds(), trainer.is_global_zero
        pl_module.stop_if_broken()
        if self.clock.after_epoch(trainer.current_epoch, len(pl_module.losses)) and self.clock.length.ends_by_clock:
            self._write_length(trainer)
        batches = trainer.current_epoch * self.clock.length.epoch_batches + len(pl_module.losses)
        row = {"epoch": epoch, "step": pl_module.optimization.steps, "images": batches * self.clock.length.batch_images}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], **pl_module.epoch_means()}
        findings = list(self.diagnosis.after_epoch(row, *pl_module.epoch_summary(), judge=self.seen > 0))
        self.seen, evaluation = self.seen + 1, 0.0
        if self.clock.is_due(epoch):
            start = self.clock.seconds()
            self.bar.heartbeat.doing = f"epoch {epoch}: evaluating on {count(len(self.task.val), f'val {self.task.unit}')}"
            metrics, found = self.evaluator.evaluate(pl_module.best_guess)
            self.clock.evaluation = evaluation = self.clock.seconds() - start
            findings += self.diagnosis.after_evaluation(row, metrics, found)
            row |= {name: metrics[name] for name in self.task.columns}
            self.best.update(epoch, metrics, pl_module.best_guess, write=first)
        if first:  # no part of it waits for other processes
            row |= self.evaluator.alignment(pl_module.best_guess)
        pl_module.model.train()  # without an average it is what was evaluated
        row["waiting_seconds"] = round(pl_module.waited, 2)
        row["seconds"], row["cpu_seconds"] = (round(seconds, 1) for seconds in self.clock.spent())
        self.clock.paused += self.clock.seconds() - began
        self.clock.closing = self.clock.seconds() - began - evaluation
        self.table.add(row, write=first)
        new = self.diagnosis.add(findings, epoch)
        if first:
            self.bar.report(row)
            self._say_end()
            self.diagnosis.write()
        for finding in new:
            self.bar.console.print(finding.line(), style="yellow", markup=False, highlight=False)
        trainer.should_stop |= self.clock.over or self.best.exhausted
        self.keep(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """A run whose loss became NaN or inf leaves a report that says so."""
        if isinstance(exception, NotFinite) and trainer.is_global_zero:
            self.diagnosis.add([exception.finding], trainer.current_epoch + 1)
            self.diagnosis.write()
            write_report(self.folder)

    def keep(self, trainer: L.Trainer) -> None:
        """The state that a run is resumed from."""
        trainer.save_checkpoint(self.folder / LAST)

    def skipped(self, split: str, line: str) -> None:
        """Name an image that cannot be read, once."""
        known = self.unreadable[split]
        if line not in known:
            known.append(line)
            print(f"skipped: {line}", file=sys.stderr)  # by whichever process met it
            if split == "train":
                fail_if_too_many(len(known), self.sampler.n, f"training {self.task.unit}s cannot be read")
