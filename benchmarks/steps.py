"""A training step of our published models beside those of `transformers`: CPU time, loss and peak memory, in float32 and bf16.

    python benchmarks/steps.py                    # each model that transformers has; resumable
    python benchmarks/steps.py --only detr        # one
    python benchmarks/steps.py --show             # only the table

The same random weights on both sides, one thread, two images of 320 x 416 pixels and less, padded (real-time models: 320 x 320):
forward, matching, loss of every decoder layer, backward and one fused AdamW step; dropout and, where there are any, noised queries on both
sides. The three take turns, in another order every round; milliseconds are the median CPU time, ratios the median over rounds to those of
transformers in float32. bf16 is autocast, as in training. Losses are those without dropout and noised queries, and `memory` is how far a
step's peak lies above what the process held before (Linux). Results are in docs/experiments/results/steps.json, the table in docs/speed.md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share with this file
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tests.models.builders import batch, objects
from tests.models.transformers_weights import labels

from boxquery.benchmark.machine import processor
from boxquery.files import write_json
from cells import DOCS, put_into_page
from exported import CLASSES, PEERS, REAL_TIME, ours_of, peer_of

RESULTS = DOCS / "experiments" / "results" / "steps.json"
SIZE, SQUARE = (320, 416), (320, 320)
OURS, OURS_BF16, THEIRS = "boxquery, float32", "boxquery, bf16", "transformers, float32"


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds, ratios, losses and megabytes of one model."""
    peer = peer_of(name)
    model = ours_of(peer)
    peer.config.auxiliary_loss = True
    height, width = SQUARE if name in REAL_TIME else SIZE
    images, mask = batch((height, width), (height, width) if name in REAL_TIME else (height * 3 // 4, width * 7 // 8))
    mask = None if name in REAL_TIME else mask
    targets = objects(7, 12, classes=CLASSES)
    seen = None if mask is None else (~mask).long()

    def loss(side: str) -> torch.Tensor:
        if side == THEIRS:
            return peer(pixel_values=images, pixel_mask=seen, labels=labels(targets)).loss
        with torch.autocast("cpu", torch.bfloat16) if side == OURS_BF16 else nullcontext():
            return model.loss(model(images, mask, targets=targets if model.training else None), targets)[0]

    def step(side: str) -> None:
        optimizer = optimizers[side]
        optimizer.zero_grad()
        loss(side).backward()
        optimizer.step()

    sides = (OURS, OURS_BF16, THEIRS)
    for each in (model, peer):
        each.eval()
    with torch.no_grad():
        losses = {side: float(loss(side)) for side in sides}
    for each in (model, peer):
        each.train()
    optimizers = {
        side: torch.optim.AdamW([p for p in (peer if side == THEIRS else model).parameters() if p.requires_grad], lr=1e-9, fused=True)
        for side in sides
    }
    memory = {side: peak(lambda side=side: step(side)) for side in sides}  # which warms up, too
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides[turn % 3 :] + sides[: turn % 3]:
            started = time.process_time()
            step(side)
            times[side].append(1000 * (time.process_time() - started))
        gc.collect()
    return {
        side: {
            "ms": round(statistics.median(times[side])),
            "ratio": round(statistics.median(own / base for own, base in zip(times[side], times[THEIRS], strict=True)), 3),
            "loss": round(losses[side], 4),
            "memory": memory[side],
        }
        for side in sides
    }


def peak(run: Callable[[], None]) -> int:
    """Megabytes by which a call's peak lies above what the process held before; the first call of a side includes its optimizer's state."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, or it would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return round((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")).split()[1])


def table(models: Mapping[str, Any]) -> str:
    heads = ["ours, ms", "transformers, ms", "float32", "bf16", "bf16's loss differs by", "MB: ours", "bf16", "transformers"]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in PEERS:
        if (found := models.get(name)) is None:
            lines.append(f"| {name} | not measured{' |' * len(heads)}")
            continue
        own, half, peer = (found[side] for side in (OURS, OURS_BF16, THEIRS))
        apart = abs(half["loss"] / own["loss"] - 1)
        memory = " | ".join(str(each["memory"]) for each in (own, half, peer))
        lines.append(f"| {name} | {own['ms']:,} | {peer['ms']:,} | {own['ratio']:.3f} | {half['ratio']:.3f} | {apart:.2%} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(PEERS), help="one model")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--show", action="store_true", help="only print what is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    for name in PEERS:
        if args.only in (None, name) and not args.show and (args.again or name not in known["models"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known["models"][name] = measure(name, args.rounds)
            print(name, known["models"][name], flush=True)
            write_json(RESULTS, {"conditions": conditions(args.rounds), "models": known["models"]})
    if known["models"]:
        print(text := table(known["models"]))
        put_into_page(DOCS / "speed.md", text, "steps")


def conditions(rounds: int) -> dict[str, Any]:
    versions = {package: metadata.version(package) for package in ("torch", "transformers")}
    return {"processor": processor()["name"], "threads": 1, "images": 2, "rounds": rounds, "versions": versions}


if __name__ == "__main__":
    main()
