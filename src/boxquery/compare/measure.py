"""Measurements of a finished run, in a process of its own: ``python -m boxquery.compare.measure RUN``.

Its best model predicts the validation split once more. ``RUN/compare/measured.json`` then holds size, cost and speed, AP (mAP of scenes) on
resampled images, and AP after NMS; beside it are pictures of a few images, the same for every run on these data.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from boxquery.compare.results import FOLDER, MEASURED, NMS
from boxquery.data.dataset import AnySplit
from boxquery.data.transforms import normalize
from boxquery.errors import UserError
from boxquery.evaluation.bootstrap import image_weights
from boxquery.evaluation.predictions import drop_unreadable, warn_skipped
from boxquery.files import atomic_write, write_json
from boxquery.models.interface import Model
from boxquery.pages.images import encode_within
from boxquery.parts.linear import COUNTED
from boxquery.training.config import RunConfig
from boxquery.training.fit import open_task
from boxquery.training.task import Task

#: images or scenes that are timed, and those before them that warm up
TIMED, WARM = 30, 4
#: images or scenes that are drawn, and bytes of a picture per pixel at most
PICTURES, PICTURE_BYTES = 4, 1 / 3


def measure_run(run: Path) -> Path:
    """Write the measurements of a finished run; returns the JSON file. Raises ``UserError``."""
    config = RunConfig.read(run)
    task, _ = open_task(config.data, config)
    detector = task.load(run).to(config.device)
    val, found = drop_unreadable(task.val, task.predict(detector, task.val, config, strict=config.strict, warn=warn_skipped))
    weights = image_weights(len(val))
    single = partial(_single, task, detector, task.val_dataset(detector, config.strict))
    images, context = single(0)
    return write_json(
        run / FOLDER / MEASURED,
        {
            "val": _digest(val, weights),
            "images_measured": len(val),
            "parameters": sum(p.numel() for p in detector.model.parameters()),
            "gflops": round(gflops(detector.model, images, context), 3),
            "image": " x ".join(map(str, (*images.shape[1:-3], *images.shape[-2:]))),
            "milliseconds": round(1000 * _seconds(detector.model, task.val, single), 2),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "cores": os.cpu_count(),
            "resampled": {task.better: _rounded(task.resampled(val, found, weights, config))},
            "pictures": _draw(run / FOLDER, task, val, found, detector.threshold),
        }
        | ({"nms": _after_nms(task, detector, val, found, config)} if task.duplicates else {}),
    )


def _after_nms(
    task: Task[Any], detector: Any, val: AnySplit[Any, Any], found: Mapping[int, Any], config: RunConfig
) -> dict[str, dict[str, Any]]:
    """Metrics and duplicates after NMS, by its threshold."""
    after = {threshold: task.evaluate(val, task.with_nms(detector, val, found, threshold, config), config) for threshold in NMS}
    return {f"{threshold:g}": {key: metrics[key] for key in (*task.shown, "duplicate_rate")} for threshold, metrics in after.items()}


@torch.no_grad()
def gflops(model: Model, images: Tensor, context: Tensor | None) -> float:
    """Multiply-adds of one forward pass in billions, counted as in models/sizes.json."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)  # the counter fails on some gradients
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as flops, sdpa_kernel(SDPBackend.MATH):
        copied(images, context, last_only=True)
    return flops.get_total_flops() / 2e9


def _single(task: Task[Any], detector: Any, dataset: Dataset[Any], position: int) -> tuple[Tensor, Tensor | None]:
    """What the model is called with for one item alone."""
    images, context = task.collate([dataset[position]]).to(detector.device).inputs
    return normalize(images, detector.preprocessing), context


@torch.inference_mode()
def _seconds(model: Model, val: AnySplit[Any, Any], single: Callable[[int], tuple[Tensor, Tensor | None]]) -> float:
    """Median time of a forward pass with post-processing, one item at a time: CPU time of this process, on a GPU wall time."""
    gpu = next(model.parameters()).device.type != "cpu"
    clock = time.perf_counter if gpu else time.process_time
    model.eval()
    seconds = []
    for number in range(WARM + TIMED):
        inputs = single(number % len(val))
        height, width = inputs[0].shape[-2:]
        started = clock()
        model.postprocess(model(*inputs, last_only=True), [(height, width)])
        if gpu:
            torch.accelerator.synchronize()
        seconds.append(clock() - started)
    return median(seconds[WARM:])


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def _digest(val: AnySplit[Any, Any], weights: np.ndarray) -> str:
    """Equal for two runs that were measured on the same items and the same resamples of them."""
    digest = hashlib.sha256(np.ascontiguousarray(weights[0]).astype(np.int64).tobytes())
    for record in val:
        digest.update(f"{record.id} {record.labels.tolist()} {np.round(record.boxes, 2).tolist()}".encode())
    return digest.hexdigest()[:16]


def _chosen(val: AnySplit[Any, Any]) -> list[int]:
    """Items with few to many objects, chosen independently of any model."""
    order = sorted((i for i in range(len(val)) if (~val[i].ignore).any()), key=lambda i: (len(val[i].boxes), i))
    return list(dict.fromkeys(order[round(share * (len(order) - 1))] for share in np.linspace(0.2, 0.95, PICTURES))) if order else []


def _draw(folder: Path, task: Task[Any], val: AnySplit[Any, Any], found: Mapping[int, Any], threshold: float) -> list[dict[str, Any]]:
    entries = []
    for number, position in enumerate(_chosen(val), 1):
        record, pictures = val[position], task.draw(val, position, found, threshold)
        files = {side: f"{side}-{number}.jpg" for side in ("truth", "prediction")}
        for file, picture in zip(files.values(), pictures, strict=True):
            atomic_write(folder / file, encode_within(picture, round(PICTURE_BYTES * picture.width * picture.height)))
        title = record.path.name if getattr(record, "path", None) else f"{task.unit} {record.id}"
        entries.append({"title": title, "width": pictures[0].width, "height": pictures[0].height, "threshold": threshold, **files})
    return entries


if __name__ == "__main__":
    try:
        measure_run(Path(sys.argv[1]))
    except UserError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
