"""Minutes or images into epochs of so many steps: of minutes a few timed steps tell how many fit."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from boxquery.data.dataset import Split
from boxquery.detector import Detector
from boxquery.evaluation.predictions import predict_split
from boxquery.models.model import Model
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


def within(config: RunConfig, model: Model, loader: DataLoader, detector: Detector, val: Split) -> RunConfig:
    """``config`` with the epochs, batches an epoch and evaluations that fit into its ``minutes``; the model itself is not changed.

    Epochs that ``config`` has already (0: none) are a limit.
    """
    assert config.minutes is not None
    (first, later), look = _step_seconds(config, copy.deepcopy(model), loader), _evaluation_seconds(config, detector, val)
    seconds = config.minutes * 60 * PLANNED - (look if config.clock == "wall" else 0)  # on the wall the best model's last look counts, too
    looks = max(int(seconds * EVALUATING / look), 1)
    # the first pass over the images reads them, later ones may find them in memory
    whole = config.batches * first
    for _ in range(2):  # what evaluations leave is for training: how many there are follows from the epochs, and these from what is left
        training = seconds - looks * look
        fitting = max(int(training / first if training < whole else config.batches + (training - whole) / later), 1)
        limited = 0 < config.epochs * config.batches <= fitting
        epochs, batches = (config.epochs, config.batches) if limited else fitted(fitting, config.batches)
        val_every = config.val_every or -(-epochs // looks)
        looks = -(-epochs // val_every)
    return replace(config, epochs=epochs, batches=batches, val_every=val_every)


def fitted(steps: int, whole: int) -> tuple[int, int]:
    """(epochs, steps an epoch) of about so many steps, where an epoch has at most ``whole``.

    Epochs are shortened a little rather than dropped, and data too large for one pass gets one short one. The result is the longest epochs
    whose sum is within 1 % of ``steps``, or where there are none (a few steps of a few an epoch) the nearest sum.
    """
    least = max(math.ceil(0.99 * steps / whole), 1)
    choices = [(epochs, min(max(round(steps / epochs), 1), whole)) for epochs in range(least, 2 * least + 1)]
    off = {choice: abs(choice[0] * choice[1] - steps) for choice in choices}
    return next((choice for choice in choices if off[choice] <= steps / 100), min(choices, key=off.__getitem__))


def busy(config: RunConfig) -> str:
    """What to say where other work shortens the run: minutes on the wall are planned from steps that shared the machine; "" elsewhere."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if config.clock == "processor" or config.device != "cpu" or load <= cores + 0.5:
        return ""
    return (
        f"note: this machine has other work (load {load:.1f} on {cores} cores), so {config.minutes:g} minutes are worth fewer steps than "
        "on a quiet one; --clock processor counts only the time that this run computes"
    )


def clock(config: RunConfig) -> Callable[[], float]:
    """Seconds of the clock that the run's minutes are counted on."""
    return time.process_time if config.clock == "processor" else time.monotonic


def _step_seconds(config: RunConfig, model: Model, loader: DataLoader) -> tuple[float, float]:
    """Of a step whose images are read for the first time, and of one with the same images again."""
    assert config.minutes is not None
    model.to(config.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-8)
    enough = config.minutes * 60 * (TIMING_PROCESSOR if config.clock == "processor" else TIMING) / 2
    now, most, means = clock(config), TIMED_PROCESSOR if config.clock == "processor" else TIMED, []
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


def _evaluation_seconds(config: RunConfig, detector: Detector, val: Split) -> float:
    few = range(min(len(val), 2 * max(config.batch_size, 4)))
    detector.to(config.device)
    for _ in range(2):  # the first pass is slower than all that follow
        started = clock(config)()
        predict_split(detector, val, batch_size=max(config.batch_size, 4), only=few)
    detector.model.train()
    return (clock(config)() - started) / len(few) * len(val)
