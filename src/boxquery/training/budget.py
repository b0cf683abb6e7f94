"""Minutes into epochs of so many steps: a few timed steps tell how many fit."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from boxquery.data.dataset import Split
from boxquery.data.loading import DetectionDataset
from boxquery.detector import Detector
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import predict_split
from boxquery.models.interface import Model
from boxquery.training.config import RunConfig

#: share of the minutes that is planned; the rest is for reading data, the last evaluation, the report, and a machine that slows down
PLANNED = 0.9
#: share of the planned time that evaluations may take
EVALUATING = 0.08
#: steps that are not timed (allocators, caches and workers start in them), and those that are, at most, each twice
WARM, TIMED = 4, 12
#: the processor's clock decides between models, so it is read longer
TIMED_PROCESSOR = 48
#: share of the minutes after which timing stops, however few steps it saw; of the processor's, which timing does not spend
TIMING, TIMING_PROCESSOR = 0.03, 0.2


class Costs(NamedTuple):
    """Seconds of the run's clock: a step whose images are read for the first time, one with the same images again, an evaluation."""

    first: float
    later: float
    look: float


def timed(config: RunConfig, model: Model, loader: DataLoader, detector: Detector, val: Split) -> Costs:
    """What a run costs here, from a few steps of a copy of its model."""
    return Costs(*_step_seconds(config, copy.deepcopy(model), loader), evaluation_seconds(config, detector, val))


def within(config: RunConfig, costs: Costs) -> RunConfig:
    """``config`` with the epochs, steps and evaluations that fit into its ``minutes``.

    Epochs that ``config`` has already (0: none) are a limit.
    """
    first, later, look = costs
    seconds = allowed(config) - (0 if config.by_clock else look)  # after the last epoch the best model is looked at once more
    looks = max(int(seconds * EVALUATING / look), 1)
    # the first pass over the images reads them, later ones may find them in memory
    whole = config.batches * first
    for _ in range(3):  # what evaluations leave is for training: how many there are follows from the epochs, and these from what is left
        training = seconds - looks * look
        fitting = max(int(training / first if training < whole else config.batches + (training - whole) / later), 1)
        asked = config.epochs * config.batches
        planned = config.lasting(asked if 0 < asked <= fitting else fitting)
        val_every = config.val_every or -(-planned.epochs // looks)
        looks = -(-planned.epochs // val_every)
    return replace(planned, val_every=val_every)


def allowed(config: RunConfig) -> float:
    """Seconds of its clock that a run of so many minutes has for its steps and what stands between them."""
    assert config.minutes is not None
    return config.minutes * 60 * PLANNED


def busy(config: RunConfig) -> str:
    """What to say where other work shortens the run: minutes on the wall are planned from steps that shared the machine; "" elsewhere."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if computing(config) or config.device != "cpu" or load <= cores + 0.5:
        return ""
    return (
        f"note: this machine has other work (load {load:.1f} on {cores} cores), so {config.minutes:g} minutes are worth fewer steps than "
        "on a quiet one; --clock processor counts only the time that this run computes"
    )


def computing(config: RunConfig) -> bool:
    """Whether the run's minutes are those that its process computes. On CUDA it only waits."""
    return config.clock == "processor" and config.device != "cuda"


def clock(config: RunConfig) -> Callable[[], float]:
    """Seconds of the clock that the run's minutes are counted on."""
    return time.process_time if computing(config) else time.monotonic


def _step_seconds(config: RunConfig, model: Model, loader: DataLoader) -> tuple[float, float]:
    """Of a step whose images are read for the first time, and of one with the same images again."""
    assert config.minutes is not None
    model.to(config.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-8)
    enough = config.minutes * 60 * (TIMING_PROCESSOR if computing(config) else TIMING) / 2
    now, most, means = clock(config), TIMED_PROCESSOR if computing(config) else TIMED, []
    for warm in (WARM, 0):
        started, timed = now(), -warm
        while timed < most and (timed <= 0 or now() - started < enough):
            for batch in loader:
                if timed == 0:
                    started = now()
                batch = batch.to(config.device)
                with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16"):
                    loss, _ = model.loss(model(batch.images, batch.mask, targets=batch.targets), batch.targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                timed += 1
                if timed == most or (timed > 0 and now() - started > enough):
                    break
        means.append((now() - started) / timed)
    return means[0], means[1]


def evaluation_seconds(config: RunConfig, detector: Detector, val: Split, images: DetectionDataset | None = None) -> float:
    """What a look at all of ``val`` takes, from one at a few of its images (of ``images``, where they are kept)."""
    few = range(min(len(val), 2 * max(config.batch_size, 4)))
    detector.to(config.device)
    for _ in range(2):  # the first pass is slower than all that follow
        started = clock(config)()
        with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16"):
            found = predict_split(detector, val, batch_size=max(config.batch_size, 4), only=few, cached=images)
        evaluate([val[i] for i in few], found, [str(name) for name in detector.classes], detector.ids)
    detector.model.train()
    return (clock(config)() - started) / len(few) * len(val)
