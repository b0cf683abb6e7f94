"""The time that a run has spent, and whether it is over."""

from __future__ import annotations

import time
from typing import Any

from boxquery.training.processes import everywhere
from boxquery.training.run_length import RunLength

#: share of the time allowed for which no other epoch is begun
CRUMB = 0.005
#: batches after which ``minutes`` are planned anew for the first time; then each time after a quarter more, until half of the time is spent
REPLANNED = 16


class Clock:
    """Time on the wall and of the CPU, that before a resume included.

    Args:
        counts_cpu: whether the run's minutes are CPU time.

    Attributes:
        length: the run's; of a run that the clock ends, from its end on what it came to.
        evaluation, closing: seconds that the last evaluation took, and the rest of the last epoch's end.
        per_batch: seconds of a batch as last measured; 0: not yet.
        over: whether the run ends with this epoch.
    """

    def __init__(self, length: RunLength, counts_cpu: bool):
        self.length, self.counts_cpu = length, counts_cpu
        self.evaluation, self.closing, self.per_batch, self.over = 0.0, 0.0, 0.0, False
        self.before, self.started = (0.0, 0.0), _read()
        #: seconds of all epoch ends; the batches and seconds without them when the run was planned
        self.paused, self.planned, self.next_plan = 0.0, (0, 0.0), 0

    def start(self, epochs: int) -> None:
        """Begin to count, in a run that has finished so many epochs before."""
        self.started, batches = _read(), epochs * self.length.epoch_batches
        self.planned = batches, self.seconds() - self.paused
        self.next_plan = max(batches + batches // 4, REPLANNED)
        self.over |= self.length.finished(batches, 0.0)

    def spent(self) -> tuple[float, float]:
        """Seconds on the wall, and of the CPU."""
        wall, cpu = (before + now - start for before, now, start in zip(self.before, _read(), self.started, strict=True))
        return wall, cpu

    def seconds(self) -> float:
        """Those that the run's minutes are counted in."""
        return self.spent()[self.counts_cpu]

    def after_batch(self, epoch: int, done: int) -> bool:
        """Whether the run is over after so many batches of an epoch (counted from 0): never between two optimizer steps."""
        length, batches = self.length, epoch * self.length.epoch_batches + done
        if done % length.accumulate == 0 or done == length.epoch_batches:
            if batches >= self.next_plan and length.minutes is not None and not length.ends_by_clock:
                self._replan(batches)
            self.over = self.length.finished(batches, length.seconds - self._left())
        return self.over

    def _replan(self, batches: int) -> None:
        """The plan was made from a few steps, perhaps in a busy minute; what was measured since then is better."""
        length, training, (before, then) = self.length, self.seconds() - self.paused, self.planned
        self.planned, self.next_plan = (batches, training), batches + batches // 4
        self.per_batch = (training - then) / (batches - before)
        if self.seconds() < length.seconds / 2:
            left = length.seconds - self.seconds() - self.evaluation  # the best model is evaluated once more at the end
            per_epoch = self.evaluation / (length.val_every or 1) + self.closing
            length = length.replan(batches, left, self.per_batch, per_epoch)
        self.length = everywhere(length)[0]  # the first process's clock decides for all

    def after_epoch(self, epoch: int, done: int) -> bool:
        """Whether the run is over after an epoch of so many batches, since another would have no time to speak of."""
        if self.length.ends_by_clock:
            self.over |= self._left() < CRUMB * self.length.seconds
            if self.over:
                self.length = self.length.with_total_batches(epoch * self.length.epoch_batches + done)
        return self.over

    def is_due(self, epochs: int) -> bool:
        """Whether to evaluate after so many epochs. Where there is no time for this evaluation and the last one, the last is enough."""
        has_time = not self.length.ends_by_clock or self._left() > self.evaluation
        return self.over or (has_time and epochs % (self.length.val_every or 1) == 0)

    def _left(self) -> float:
        """Seconds that are left for steps if this epoch is the last one."""
        return self.length.seconds - self.seconds() - self.evaluation - self.closing

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent(), "paused": self.paused, "evaluation": self.evaluation, "closing": self.closing, "over": self.over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.started = tuple(state_dict["spent"]), _read()
        self.paused, self.evaluation = state_dict["paused"], state_dict["evaluation"]
        self.closing, self.over = state_dict["closing"], state_dict["over"]


def _read() -> tuple[float, float]:
    return time.monotonic(), time.process_time()
