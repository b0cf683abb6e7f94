"""Runtimes timed in turn, so that a machine that slows down for a while slows down all of them, and what the times come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boxquery.benchmark.process import PARTS, Job, Memory, Ready, Timing, Worker
from boxquery.errors import UserError

#: predictions that are timed of each runtime, however short the time is
LEAST_RUNS = 3


@dataclass
class Measured:
    """A runtime's measurement.

    Attributes:
        timings: one per prediction.
        memory: its peak; None where it did not get that far.
        failed: why it could not be measured to the end; "" where it was.
    """

    job: Job
    ready: Ready | None = None
    timings: list[Timing] = field(default_factory=list)
    memory: Memory | None = None
    failed: str = ""

    def row(self) -> dict[str, Any]:
        """Milliseconds, images (or scenes) per second and megabytes: plain values. The parts and CPU time are medians."""
        wall, cpu = (1000 * np.array([getattr(timing, clock) for timing in self.timings]) for clock in ("wall", "cpu"))
        memory = self.memory or Memory(None, None)
        total = wall.sum(1)
        return {
            "runtime": self.job.runtime,
            "precision": self.job.precision,
            "device": self.job.device,
            "runs": len(wall),
            "latency_ms": {"median": _ms(np.median(total)), "p95": _ms(np.percentile(total, 95))},
            f"{'scenes' if self.job.scenes else 'images'}_per_second": round(1000 * self.job.batch_size / float(np.median(total)), 3),
            "parts_ms": {part: _ms(value) for part, value in zip(PARTS, np.median(wall, 0), strict=True)},
            "cpu_ms": {"all": _ms(np.median(cpu.sum(1)))} | {p: _ms(v) for p, v in zip(PARTS, np.median(cpu, 0), strict=True)},
            "memory_mb": None if memory.process is None else round(memory.process / 1e6, 1),
            "gpu_memory_mb": None if memory.gpu is None else round(memory.gpu / 1e6, 1),
        }


def _ms(value: float) -> float:
    return round(float(value), 3)


def measure(jobs: Sequence[Job], runs: int | None, seconds: float | None, progress: Callable[[str], None]) -> list[Measured]:
    """Start a process per job, one after the other, and let them predict in turn; a job whose process fails is given up.

    Args:
        runs: predictions of each; None: any number.
        seconds: after which none begins if each has had ``LEAST_RUNS``; None: no limit. One of the two is given.
        progress: is called with what begins.
    """
    found = [Measured(job) for job in jobs]
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for i, each in enumerate(found):
            progress(f"{each.job}: loading and warming up")
            worker = stack.enter_context(Worker(each.job))
            try:
                each.ready = worker.ready()
                workers[i] = worker
            except UserError as error:
                each.failed = error.line()
        progress(f"timing {len(workers)} of {len(jobs)} in turn")
        started, number = time.monotonic(), 0
        while workers and (runs is None or number < runs):
            if seconds is not None and number >= LEAST_RUNS and time.monotonic() - started > seconds:
                break
            turn = list(workers)
            for i in turn[number % len(turn) :] + turn[: number % len(turn)]:  # each follows another one in the next round
                try:
                    found[i].timings.append(workers[i].run(number))
                except UserError as error:
                    found[i].failed = error.line()
                    del workers[i]
            number += 1
        for i, worker in workers.items():
            try:
                found[i].memory = worker.finish()
            except UserError as error:
                found[i].failed = error.line()
    return found
