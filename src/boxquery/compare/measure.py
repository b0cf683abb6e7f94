"""Measurements of a finished run, in a process of its own: ``python -m boxquery.compare.measure RUN``.

Its best model predicts the validation split once more. ``RUN/compare/measured.json`` then holds size, cost and speed, AP after NMS, and AP
on resampled images; beside it are pictures of a few images, the same for every run on these data.
"""

from __future__ import annotations

import copy
import hashlib
import os
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from boxquery.compare.results import FOLDER, MEASURED, NMS
from boxquery.data.dataset import Split
from boxquery.data.loading import Batch, DetectionDataset, collate
from boxquery.data.open import open_data
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.bootstrap import image_weights, resampled_ap
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import DetectionsByImage, apply_nms, drop_unreadable, predict_split
from boxquery.files import atomic_write, write_json
from boxquery.model_folder import load
from boxquery.pages.drawing import draw
from boxquery.pages.images import encode_within, resize_to
from boxquery.parts.linear import COUNTED
from boxquery.training.config import RunConfig

#: images that are timed, and those before them that warm up
TIMED, WARM = 30, 4
PICTURES, PICTURE_SIDE, PICTURE_BYTES = 4, 400, 40_000


def measure_run(run: Path) -> Path:
    """Write the measurements of a finished run; returns the JSON file. Raises ``UserError``."""
    config = RunConfig.read(run)
    data = open_data(config.data, strict=config.strict, images=config.images, annotations=config.annotations)
    val = data.split("val")
    detector = load(run).to(config.device)
    limit = config.max_detections
    predict = partial(predict_split, detector, batch_size=config.evaluation_batch, max_detections=limit, strict=config.strict)
    val, found = drop_unreadable(val, predict(val))
    weights = image_weights(len(val))
    ap, ap50 = resampled_ap(val, found, len(data.names), weights, limit)
    after = {}
    for threshold in NMS:
        if detector.model.has_queries:  # a model with NMS of its own has to predict again
            suppressed = found if threshold == 1 else apply_nms(found, threshold)
        else:
            suppressed = predict(val, nms=threshold)
        metrics = evaluate(val, suppressed, data.names, data.ids, max_detections=limit)
        after[f"{threshold:g}"] = {key: metrics[key] for key in ("AP", "AP50", "duplicate_rate")}
    one = _single(detector, val, 0)
    return write_json(
        run / FOLDER / MEASURED,
        {
            "val": _digest(val, weights),
            "images_measured": len(val),
            "parameters": sum(p.numel() for p in detector.model.parameters()),
            "gflops": round(gflops(detector, one), 3),
            "image": f"{one.images.shape[-2]} x {one.images.shape[-1]}",
            "milliseconds": round(1000 * _seconds(detector, val), 2),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "cores": os.cpu_count(),
            "nms": after,
            "resampled": {"AP": _rounded(ap), "AP50": _rounded(ap50)},
            "pictures": _draw(run / FOLDER, val, found, data.names, detector.threshold),
        },
    )


@torch.no_grad()
def gflops(detector: Detector, batch: Batch) -> float:
    """Multiply-adds of one forward pass in billions, counted as in models/sizes.json."""
    model = copy.deepcopy(detector.model).eval().requires_grad_(False)  # the counter fails on some gradients
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as flops, sdpa_kernel(SDPBackend.MATH):
        model(batch.images, batch.mask, last_only=True)
    return flops.get_total_flops() / 2e9


def _single(detector: Detector, val: Split, position: int) -> Batch:
    return collate([DetectionDataset(val, detector.transform)[position]]).to(detector.device)


def _seconds(detector: Detector, val: Split) -> float:
    """Median time of a forward pass with post-processing, one image at a time: CPU time of this process, on a GPU wall time."""
    gpu = detector.device.type != "cpu"
    clock = time.perf_counter if gpu else time.process_time
    seconds = []
    for number in range(WARM + TIMED):
        position = number % len(val)
        batch, size = _single(detector, val, position), [(val[position].height, val[position].width)]
        started = clock()
        detector.predict_batch(batch.images, batch.mask, size)
        if gpu:
            torch.accelerator.synchronize()
        seconds.append(clock() - started)
    return median(seconds[WARM:])


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def _digest(val: Split, weights: np.ndarray) -> str:
    """Equal for two runs that were measured on the same images and the same resamples of them."""
    digest = hashlib.sha256(np.ascontiguousarray(weights[0]).astype(np.int64).tobytes())
    for record in val:
        digest.update(f"{record.id} {record.labels.tolist()} {np.round(record.boxes, 2).tolist()}".encode())
    return digest.hexdigest()[:16]


def _chosen(val: Split) -> list[int]:
    """Images with few to many objects, chosen independently of any model."""
    order = sorted((i for i in range(len(val)) if (~val[i].ignore).any()), key=lambda i: (len(val[i].boxes), i))
    return list(dict.fromkeys(order[round(share * (len(order) - 1))] for share in np.linspace(0.2, 0.95, PICTURES))) if order else []


def _draw(folder: Path, val: Split, found: DetectionsByImage, names: list[str], threshold: float) -> list[dict[str, Any]]:
    entries = []
    for number, position in enumerate(_chosen(val), 1):
        record = val[position]
        image, scale = resize_to(val.read(position), PICTURE_SIDE)
        boxes, scores, labels = found[position]
        kept = scores >= threshold
        sides = {
            "truth": draw(image, record.boxes[~record.ignore] * scale, record.labels[~record.ignore], names),
            "prediction": draw(image, boxes[kept] * scale, labels[kept], names, scores=scores[kept]),
        }
        files = {side: f"{side}-{number}.jpg" for side in sides}
        for side, picture in sides.items():
            atomic_write(folder / files[side], encode_within(picture, PICTURE_BYTES))
        title = record.path.name if record.path else f"image {record.id}"
        entries.append({"title": title, "width": image.width, "height": image.height, "threshold": threshold, **files})
    return entries


if __name__ == "__main__":
    try:
        measure_run(Path(sys.argv[1]))
    except UserError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
