"""What happens after every epoch, in this order: evaluate, write the row, keep the best model, keep the state to go on from."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from boxquery.check.findings import Finding
from boxquery.data.dataset import Split
from boxquery.data.loading import Batch, DetectionDataset
from boxquery.data.validation import fail_if_too_many
from boxquery.detector import Detector
from boxquery.evaluation.alignment import measure_split, with_objects
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import DetectionsByImage, drop_unreadable, predict_split
from boxquery.files import atomic_write
from boxquery.model_folder import save
from boxquery.report.page import write_report
from boxquery.training.budget import allowed, computing, evaluation_seconds
from boxquery.training.config import RunConfig
from boxquery.training.diagnosis import Diagnosis, NotFinite
from boxquery.training.module import Training
from boxquery.training.processes import everywhere
from boxquery.training.progress import LiveBar
from boxquery.training.state import LAST

#: one image in so many of an epoch is looked at again for the alignment; a traced forward pass and its measurement cost 0.3 to 0.75 of an
#: image's training step, so this is 0.6 to 1.5 % of the steps. Of an epoch of fewer images it is the one that there must be
SAMPLED, SAMPLED_AT_MOST = 50, 32
#: share of the time allowed for which no other epoch is begun
CRUMB = 0.005


class Keeper(L.Callback):
    """Evaluates the moving average, measures its alignment, writes ``metrics.csv``, ``model/`` (best by AP) and ``last.ckpt``.

    Its state (rows so far, best AP, who found what last, which images could not be read) is in the checkpoint, and ``metrics.csv`` is
    written from it: after a resume the file holds what an uninterrupted run would have written.

    It also ends the run within an epoch: after the last batch of one that is cut short, or when the clock's time is spent but for a last
    evaluation.

    Args:
        count: training images.
    """

    def __init__(self, folder: Path, config: RunConfig, detector: Detector, val: Split, bar: LiveBar, count: int):
        self.count = count
        #: seconds that an evaluation and the rest of an epoch's end took last, and whether the clock has ended the run
        self.look, self.closing, self.over = 0.0, 0.0, False
        self.folder, self.config, self.detector, self.val, self.bar = folder, config, detector, val, bar
        self.rows: list[dict[str, Any]] = []
        self.best, self.waited = -1.0, 0
        self.started, self.before = _clocks(), (0.0, 0.0)
        self.images = DetectionDataset(val, detector.transform, cache=True, strict=config.strict)
        #: images whose pixels could not be read, a line each, by split
        self.unreadable: dict[str, list[str]] = {"train": [], "val": []}
        seen = config.batches * config.batch_size
        #: none of a model that has no queries to measure
        self.sample = with_objects(val, min(max(seen // SAMPLED, 1), SAMPLED_AT_MOST)) if detector.model.has_queries else []
        #: the query of each of their objects after the last epoch
        self.finders: list[int] = []
        self.diagnosis = Diagnosis(folder, config, val)
        #: epochs that this process has seen end
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        state = {"rows": self.rows, "best": self.best, "waited": self.waited, "finders": self.finders, "unreadable": self.unreadable}
        state |= {"look": self.look, "closing": self.closing, "over": self.over}
        return {**state, "diagnosis": self.diagnosis.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best, self.waited = state_dict["rows"], state_dict["best"], state_dict["waited"]
        self.finders = state_dict.get("finders", [])  # none in checkpoints from before it was measured
        self.unreadable = state_dict.get("unreadable", self.unreadable)  # likewise
        self.look, self.closing, self.over = (state_dict.get(name, getattr(self, name)) for name in ("look", "closing", "over"))
        if "diagnosis" in state_dict:
            self.diagnosis.load_state_dict(state_dict["diagnosis"])
        self.before = (self.rows[-1]["seconds"], self.rows[-1]["processor_seconds"]) if self.rows else (0.0, 0.0)

    def prepare(self) -> None:
        """Before a clock that ends the run begins: read the images of evaluations, where they can be kept, and see what one takes.

        Otherwise the first evaluation would be the slowest, and in a short run it is the only one.
        """
        if self.images.cache is not None:
            for place in range(len(self.val)):
                self.images[place]
        self.look = evaluation_seconds(self.config, self.detector, self.val, self.images)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.started = _clocks()
        self._stop_if_waited(trainer)  # it may have died after it had decided to stop
        trainer.should_stop |= self.over

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        for line in batch.unreadable:
            self._skipped("train", line)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        done = batch_idx + 1
        if self.config.by_clock:
            self.over = done % self.config.accumulate == 0 and self._left() <= 0
            trainer.should_stop |= self.over
        elif done == self.config.last and trainer.current_epoch + 1 == self.config.epochs:
            trainer.should_stop = True

    def _spent(self) -> tuple[float, float]:
        """Seconds of the run so far, also before it was resumed: on the wall, and of the processor."""
        wall, processor = (before + now - start for before, now, start in zip(self.before, _clocks(), self.started, strict=True))
        return wall, processor

    def _seconds(self) -> float:
        """Those of the clock that the run's minutes are counted on."""
        return self._spent()[computing(self.config)]

    def _left(self) -> float:
        """Seconds that are left for steps if this epoch is the last one."""
        return allowed(self.config) - self._seconds() - self.look - self.closing

    def _skipped(self, split: str, line: str) -> None:
        """Name an image that cannot be read, once."""
        known = self.unreadable[split]
        if line not in known:
            known.append(line)
            print(f"skipped: {line}", file=sys.stderr)  # by whichever process met it
            if split == "train":
                fail_if_too_many(len(known), self.count, "training images cannot be read")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, Training)
        epoch, begun, looked = trainer.current_epoch + 1, self._seconds(), 0.0
        pl_module.stop_if_broken()
        self._end_by_clock(trainer, len(pl_module.losses))
        row = self._row(trainer, pl_module, epoch)
        findings = self._judge(pl_module, row)
        if self._due(epoch):
            looked = self._seconds()
            metrics, found = self._evaluate(trainer, pl_module)
            self.look = looked = self._seconds() - looked
            findings += self.diagnosis.after_evaluation(row, metrics, found)
            row |= {k: metrics[k] for k in ("AP", "AP50", "AP75", "APs", "APm", "APl", "duplicate_rate", "best_threshold")}
            self._compare(trainer, metrics)
        if trainer.is_global_zero:
            row |= self._alignment(trainer, pl_module)
        row["seconds"], row["processor_seconds"] = (round(seconds, 1) for seconds in self._spent())
        self.closing = self._seconds() - begun - looked
        self.rows.append(row)
        if trainer.is_global_zero:
            atomic_write(self.folder / "metrics.csv", _table(self.rows))
            self.bar.told(row)
        self._say(self.diagnosis.add(findings, epoch))
        if trainer.is_global_zero:
            self.diagnosis.write()
        self._keep(trainer)

    def _end_by_clock(self, trainer: L.Trainer, batches: int) -> None:
        """At the end of an epoch of so many batches: what the run came to, if its clock has ended it or leaves nothing to speak of."""
        c = self.config
        if not c.by_clock:
            return
        self.over |= self._left() < CRUMB * allowed(c)
        trainer.should_stop |= self.over
        if self.over:
            self.config = c.lasting(trainer.current_epoch * c.batches + batches)
            if trainer.is_global_zero:
                self.config.write(self.folder)

    def _due(self, epoch: int) -> bool:
        """Whether to evaluate after this epoch. Where the clock leaves no time for it and the last one, that is the one."""
        if not self.config.by_clock:
            return epoch % self.config.val_every == 0 or epoch == self.config.epochs
        return self.over or (epoch % self.config.val_every == 0 and self._left() > self.look)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """A run that stopped being numbers leaves a report that says so."""
        if isinstance(exception, NotFinite) and trainer.is_global_zero:
            self.diagnosis.add([exception.finding], trainer.current_epoch + 1)
            self.diagnosis.write()
            write_report(self.folder)

    def _judge(self, module: Training, row: dict[str, Any]) -> list[Finding]:
        """What losses, gradients and clocks of the epoch show."""
        self.seen += 1
        numbers = torch.stack([*module.losses, *module.norms]).float().tolist()
        losses, norms = numbers[: len(module.losses)], numbers[len(module.losses) :]
        waiting = module.waited / max(module.ended - module.began, 1e-9)
        return self.diagnosis.after_epoch(row, losses, norms, waiting, self.seen > 1)

    def _say(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.bar.console.print(finding.line(), style="yellow", markup=False, highlight=False)

    def _row(self, trainer: L.Trainer, module: Training, epoch: int) -> dict[str, Any]:
        batches = len(module.losses)
        images = ((epoch - 1) * self.config.batches + batches) * self.config.batch_size * self.config.world
        # a process whose batches held no object at all lacks the terms of denoising
        names = list(dict.fromkeys(name for part in everywhere(list(module.sums)) for name in part))
        nothing = torch.zeros((), device=module.device)
        sums = torch.stack([module.sums.get(name, nothing).float() for name in names])
        means = (trainer.strategy.reduce(sums, reduce_op="mean") / batches).tolist()
        named = dict(zip(names, means, strict=True))
        rates = {f"lr_{g['name']}": g["lr"] for g in trainer.optimizers[0].param_groups}
        return {"epoch": epoch, "step": trainer.global_step, "images": images, "lr": next(iter(rates.values()))} | named

    def _evaluate(self, trainer: L.Trainer, module: Training) -> tuple[dict[str, Any], DetectionsByImage]:
        self.detector.model = module.best_guess
        share = range(trainer.global_rank, len(self.val), trainer.world_size)
        with trainer.strategy.precision_plugin.val_step_context():
            found = predict_split(
                self.detector, self.val, batch_size=max(self.config.batch_size, 4), only=share, cached=self.images,
                warn=lambda line: self._skipped("val", line),
            )  # fmt: skip
        found = gathered(found)
        val, kept = drop_unreadable(self.val, found)
        self.detector.model = module.model.train()  # without an average it is the one that was just switched to answer
        return evaluate(val, kept, [str(n) for n in self.detector.classes], self.detector.ids), found

    def _alignment(self, trainer: L.Trainer, module: Training) -> dict[str, Any]:
        """Of the same few images after every epoch, by one process: it has no part that waits for others."""
        if not self.sample:
            return {}
        self.detector.model = module.best_guess
        with trainer.strategy.precision_plugin.val_step_context():
            found = measure_split(self.detector, self.val, only=self.sample, cached=self.images)
        self.detector.model = module.model
        changes, self.finders = found.changes(self.finders), found.query.tolist()
        return {**found.columns(), "query_changes": changes}

    def _compare(self, trainer: L.Trainer, metrics: dict[str, Any]) -> None:
        score = metrics["AP"] if metrics["AP"] is not None else 0.0
        if score > self.best:
            self.best, self.waited = score, 0
            self.detector.threshold = metrics["best_threshold"] if metrics["best_threshold"] is not None else 0.5
            if trainer.is_global_zero:
                module = trainer.lightning_module
                assert isinstance(module, Training)
                best = Detector(
                    module.best_guess, self.detector.classes, self.detector.ids, self.detector.preprocessing, self.detector.threshold
                )
                save(best, self.folder / "model")
        else:
            self.waited += 1
            self._stop_if_waited(trainer)

    def _stop_if_waited(self, trainer: L.Trainer) -> None:
        if self.config.patience and self.waited >= self.config.patience:
            trainer.should_stop = True

    def _keep(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)


def _clocks() -> tuple[float, float]:
    """Seconds on the wall, and of the processor in this process."""
    return time.monotonic(), time.process_time()


def gathered(found: DetectionsByImage) -> DetectionsByImage:
    """Every process's predictions; what two of them predicted is one entry, since positions are the keys."""
    return {k: v for part in everywhere(found) for k, v in part.items()}


def _table(rows: list[dict[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else v for k, v in row.items()})
    return text.getvalue().encode()
