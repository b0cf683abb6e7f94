"""What a strategy of matching costs: CPU time of a training step.

    python benchmarks/matching.py [MODEL ...] [--rounds 5] [--objects 5]

Preset ``tiny``, four images of 160 x 208 pixels with as many objects each, random weights, one thread. Strategies take turns, so that
other load on the machine meets all alike: the median of CPU milliseconds per step, and of the ratio to one-to-one in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import boxquery as bq
from boxquery.data.loading import Batch
from boxquery.models import preset
from boxquery.optimization import Optimization

#: of each row the options
STRATEGIES: dict[str, dict[str, Any]] = {
    "one-to-one": {},
    "denoising": {"denoising": 60},
    "denoising, without negatives": {"contrastive": False},
    "group": {},
    "group, groups=4": {"groups": 4},
    "hybrid": {},
    "one-to-many": {},
    "dense": {},
    "denoising+dense": {"denoising": 60},
}


def batch(objects: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(4):
        centre, size = 0.3 + 0.4 * torch.rand(objects, 2, generator=generator), 0.1 + 0.3 * torch.rand(objects, 2, generator=generator)
        targets.append({"labels": torch.randint(3, (objects,), generator=generator), "boxes": torch.cat((centre, size), -1)})
    images = torch.randn(4, 3, 160, 208, generator=generator)
    return Batch(images, torch.zeros(4, 160, 208, dtype=torch.bool), targets, [0] * 4, [])


def trainer(model: str, row: str) -> Optimization:
    torch.manual_seed(0)
    built = bq.create_model(model, classes=3, preset="tiny", matching=row.partition(",")[0], **STRATEGIES[row]).train()
    return Optimization(built, preset(model, "tiny").recipe, {0: 1000})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["deformable-detr", "dab-detr"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--objects", type=int, default=5)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    images = batch(flags.objects)
    for name in flags.models:
        trainers = {matching: trainer(name, matching) for matching in STRATEGIES}
        spent: dict[str, list[float]] = {matching: [] for matching in STRATEGIES}
        for number in range(flags.rounds + 1):
            for matching, optimization in trainers.items():
                start = time.process_time()
                optimization.step(images, number)
                spent[matching].append(1000 * (time.process_time() - start))
        print(f"| {name} | ms | ratio |\n|---|---|---|")
        usual = spent["one-to-one"][1:]
        for matching, values in spent.items():
            ratio = statistics.median(a / b for a, b in zip(values[1:], usual, strict=True))
            print(f"| {matching} | {statistics.median(values[1:]):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
