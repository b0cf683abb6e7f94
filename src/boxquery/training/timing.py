"""What a run costs on this machine, from a few timed steps and an evaluation of a few images."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from boxquery.errors import count
from boxquery.models.interface import Model
from boxquery.models.recipes import Recipe
from boxquery.optimization import Optimization
from boxquery.pages.format import duration
from boxquery.training.config import RunConfig
from boxquery.training.evaluator import Evaluator
from boxquery.training.processes import everywhere
from boxquery.training.run_length import Costs
from boxquery.training.task import D, Task

#: batches that are not timed (allocators, caches and workers start in them), and those that are, at most, each twice
WARM_UP, TIMED = 4, 12
#: CPU time decides between models, so it is measured longer
TIMED_CPU = 48
#: where the length is known: batches that are timed, each twice, and seconds after which timing stops
QUICK, QUICK_SECONDS = 4, 2.0
#: batches of a run below which timing would last as long as the run does, so that everything is timed once
FEW = 16
#: minutes of the shorter run that is offered where one takes more than twice as long
SHORTER = (30, 5)
#: seconds of an epoch above which the rest of its end is not worth measuring
SHORT_EPOCH = 20.0
#: share of the minutes after which timing stops, however few batches it saw; of CPU time, which timing does not spend
TIMING, TIMING_CPU = 0.03, 0.2


def counts_cpu(config: RunConfig) -> bool:
    """Whether the run's minutes are CPU time. On a GPU the CPU only waits, and they are wall time."""
    return config.length.clock == "cpu" and config.device == "cpu"


def clock(config: RunConfig) -> Callable[[], float]:
    """Seconds of the clock that the run's minutes are counted on."""
    return time.process_time if counts_cpu(config) else time.monotonic


class _Effort(NamedTuple):
    """How long to time: batches that are not timed and those that are, at most, in each pass; seconds of each pass; images to evaluate;
    passes, of which the last counts (of batches the first, too): the first is slower than all that follow."""

    warm_up: int
    batches: int
    seconds: float
    images: int
    passes: int


def _effort(config: RunConfig) -> _Effort:
    length = config.length
    if not length.needs_timing:  # nothing depends on it but what is said of the run
        passes = 1 if length.total_batches < FEW else 2
        return _Effort(1, min(QUICK, max(length.total_batches // 8, 1)), QUICK_SECONDS, 4, passes)
    batches, share = (TIMED_CPU, TIMING_CPU) if counts_cpu(config) else (TIMED, TIMING)
    return _Effort(WARM_UP, batches, (length.minutes or 0) * 60 * share / 2, evaluated_images(config), 2)


def measure_costs(config: RunConfig, recipe: Recipe, model: Model, loader: DataLoader, detector: D, task: Task[D]) -> Costs:
    """What a run costs here, from a few steps of a copy of its model; carefully where minutes become steps, quickly where a run's length is
    known. No random number of the run is drawn."""
    effort = _effort(config)
    with torch.random.fork_rng(devices=()):  # those of a GPU are seeded anew before every step
        copied = copy.deepcopy(model).to(config.device).train()
        average = copy.deepcopy(copied) if recipe.ema else None
        optimization = Optimization(
            copied, recipe, {0: TIMED_CPU}, average=average, precision=config.precision, accumulate=config.length.accumulate
        )
        first, later = _batch_seconds(config, optimization, loader, effort)
        evaluation = evaluation_seconds(config, detector, task, effort.images, passes=effort.passes)
        closing = 0.0
        if later * config.length.epoch_batches < SHORT_EPOCH:
            closing = _closing_seconds(config, optimization, Evaluator(config, detector, task, lambda line: None), effort.passes)
        detector.model = model
    return Costs(first, later, evaluation, closing)


def announcement(config: RunConfig, costs: Costs | None) -> Iterator[str]:
    """What will happen: how long the run is and how long that takes here, what a shorter one would be, and what may prolong it."""
    length, steps = config.length, count(config.length.total_steps, "step")
    size = f"{length} ({steps} in all), evaluated {'after every epoch' if length.val_every == 1 else f'every {length.val_every} epochs'}"
    if length.minutes is not None and (length.epochs is None or costs is None):
        yield f"{size}: about {length.minutes:g} min{' of CPU time' * counts_cpu(config)} on this machine"
    elif costs is not None:
        seconds = length.expected_seconds(costs)
        yield f"{size}: about {duration(seconds)} on this machine{_shorter(config, costs, seconds)}"
    if length.minutes is not None and (note := busy_note(config)):
        yield note


def _shorter(config: RunConfig, costs: Costs, seconds: float) -> str:
    """How to have a result sooner, of a run that takes long."""
    minutes = next((each for each in SHORTER if seconds > 2 * 60 * each), None)
    if minutes is None:
        return ""
    length = config.length.within(minutes, costs)
    if length.total_batches >= length.epoch_batches:
        return f"; --minutes {minutes} would be {count(length.total_batches // length.epoch_batches, 'epoch')}"
    smaller = {"tiny": None, "small": "tiny"}.get(config.preset, "small")
    return f"; --minutes {minutes} would be {count(length.total_steps, 'step')}" + (f", --preset {smaller} is faster" if smaller else "")


def busy_note(config: RunConfig) -> str:
    """A remark where other work on the machine shortens a run whose minutes are wall time; "" elsewhere."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if counts_cpu(config) or config.device != "cpu" or load <= cores + 0.5:
        return ""
    return (
        f"note: this machine has other work (load {load:.1f} on {cores} cores), so --minutes {config.length.minutes:g} is worth fewer "
        "steps than on a quiet one; --clock cpu counts only the time that this run computes"
    )


def _batch_seconds(config: RunConfig, optimization: Optimization, loader: DataLoader, effort: _Effort) -> tuple[float, float]:
    """Of a batch whose images are read for the first time, and of one with the same images again.

    All processes do as many steps as the first, since they meet in each loss.
    """
    now, means = clock(config), []
    for warm_up in (effort.warm_up, 0)[: effort.passes]:
        started, timed, over = now(), -warm_up, False
        while not over:
            for number, batch in enumerate(loader):
                optimization.step(batch.to(config.device), number)
                timed += 1
                if timed == 0:
                    started = now()
                over = everywhere(timed == effort.batches or (timed > 0 and now() - started > effort.seconds))[0]
                if over:
                    break
        means.append((now() - started) / timed)
    return means[0], means[-1]


def evaluated_images(config: RunConfig) -> int:
    """Images on which an evaluation is timed carefully."""
    return 2 * config.evaluation_batch


def _closing_seconds(config: RunConfig, optimization: Optimization, evaluator: Evaluator, passes: int) -> float:
    """What is done after every epoch besides evaluating: measuring the alignment, and writing the state."""
    now, model, average = clock(config), optimization.model, optimization.average
    state = {"state_dict": model.state_dict(), "average": {} if average is None else average.state_dict()}
    started = 0.0
    for _ in range(passes):
        started, file = now(), io.BytesIO()
        evaluator.alignment(model)
        torch.save({**state, "optimizer": optimization.optimizer.state_dict()}, file)
        hashlib.blake2b(file.getbuffer()).digest()
    return now() - started


def evaluation_seconds(config: RunConfig, detector: D, task: Task[D], images: int, cached: Any = None, passes: int = 2) -> float:
    """What an evaluation on all of val takes, from one on a few of its ``images`` (of ``cached``, where they are kept)."""
    few = range(min(len(task.val), images))
    detector.to(config.device)
    now, started = clock(config), 0.0
    for _ in range(passes):
        started = now()
        found = task.predict(detector, task.val, config, only=few, cached=cached, warn=lambda line: None)
        task.evaluate([task.val[i] for i in few], found, config)
    detector.model.train()
    return (now() - started) / len(few) * len(task.val)
