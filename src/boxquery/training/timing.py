"""What a run costs on this machine, from a few timed steps and an evaluation of a few images."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable

from torch.utils.data import DataLoader

from boxquery.data.dataset import Split
from boxquery.data.loading import DetectionDataset
from boxquery.detector import Detector
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import predict_split
from boxquery.models.interface import Model
from boxquery.models.recipes import Recipe
from boxquery.optimization import Optimization
from boxquery.training.config import RunConfig
from boxquery.training.run_length import Costs

#: batches that are not timed (allocators, caches and workers start in them), and those that are, at most, each twice
WARM_UP, TIMED = 4, 12
#: CPU time decides between models, so it is measured longer
TIMED_CPU = 48
#: share of the minutes after which timing stops, however few batches it saw; of CPU time, which timing does not spend
TIMING, TIMING_CPU = 0.03, 0.2


def counts_cpu(config: RunConfig) -> bool:
    """Whether the run's minutes are CPU time. On a GPU the CPU only waits, and they are wall time."""
    return config.length.clock == "cpu" and config.device == "cpu"


def clock(config: RunConfig) -> Callable[[], float]:
    """Seconds of the clock that the run's minutes are counted on."""
    return time.process_time if counts_cpu(config) else time.monotonic


def measure_costs(config: RunConfig, recipe: Recipe, model: Model, loader: DataLoader, detector: Detector, val: Split) -> Costs:
    """What a run costs here, from a few steps of a copy of its model."""
    return Costs(*_batch_seconds(config, recipe, copy.deepcopy(model), loader), evaluation_seconds(config, detector, val))


def busy_note(config: RunConfig) -> str:
    """A remark where other work on the machine shortens a run whose minutes are wall time; "" elsewhere."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if counts_cpu(config) or config.device != "cpu" or load <= cores + 0.5:
        return ""
    return (
        f"note: this machine has other work (load {load:.1f} on {cores} cores), so {config.length.minutes:g} minutes are worth fewer steps "
        "than on a quiet one; --clock cpu counts only the time that this run computes"
    )


def _batch_seconds(config: RunConfig, recipe: Recipe, model: Model, loader: DataLoader) -> tuple[float, float]:
    """Of a batch whose images are read for the first time, and of one with the same images again."""
    average = copy.deepcopy(model).to(config.device) if recipe.ema else None
    optimization = Optimization(
        model.to(config.device).train(), recipe, {0: TIMED_CPU}, average=average, precision=config.precision,
        accumulate=config.length.accumulate,
    )  # fmt: skip
    limit = (config.length.minutes or 0) * 60 * (TIMING_CPU if counts_cpu(config) else TIMING) / 2
    now, most, means = clock(config), TIMED_CPU if counts_cpu(config) else TIMED, []
    for warm_up in (WARM_UP, 0):
        started, timed = now(), -warm_up
        while timed < most and (timed <= 0 or now() - started < limit):
            for number, batch in enumerate(loader):
                if timed == 0:
                    started = now()
                optimization.step(batch.to(config.device), number)
                timed += 1
                if timed == most or (timed > 0 and now() - started > limit):
                    break
        means.append((now() - started) / timed)
    return means[0], means[1]


def evaluation_seconds(config: RunConfig, detector: Detector, val: Split, images: DetectionDataset | None = None) -> float:
    """What an evaluation on all of ``val`` takes, from one on a few of its images (of ``images``, where they are kept)."""
    few = range(min(len(val), 2 * max(config.batch_size, 4)))
    detector.to(config.device)
    now, started = clock(config), 0.0
    for _ in range(2):  # the first pass is slower than all that follow
        started = now()
        found = predict_split(detector, val, batch_size=max(config.batch_size, 4), only=few, cached=images)
        evaluate([val[i] for i in few], found, [str(name) for name in detector.classes], detector.ids)
    detector.model.train()
    return (now() - started) / len(few) * len(val)
