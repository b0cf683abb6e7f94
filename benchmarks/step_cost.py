"""What a training step of each matching strategy costs beside one-to-one alone, on the models of docs/experiments/matching.md and
matching-dab.md.

    python benchmarks/step_cost.py [--repetitions 15]

Forward, loss, backward and update of the entries of benchmarks/experiments.py's "matching" and "matching-dab", on batches of four built-in
scenes of 128 pixels, one thread, float32, from random weights with nothing frozen. The strategies of a model take turns on the same batch
and are timed as CPU time of this process; the ratio is the median over these turns. A model is kept in
docs/experiments/results/step-cost.json when all of its strategies are measured; models that are there are not repeated, unless ``--again``
is given.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import boxquery as bq
import experiments
from boxquery.data.loading import Batch, DetectionDataset, collate
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.data.transforms import EvalTransform
from boxquery.files import write_json
from boxquery.models import preset
from boxquery.optimization import Optimization

SIDE, BATCH, BATCHES, WARM = 128, 4, 5, 2


def batches() -> list[Batch]:
    dataset = DetectionDataset(shapes_data(size=SIDE).splits["train"], EvalTransform(Preprocessing(SIDE)))
    return [collate([dataset[BATCH * i + k] for k in range(BATCH)]) for i in range(BATCHES)]


def optimization(entry: Mapping[str, Any], classes: int) -> Optimization:
    torch.manual_seed(0)
    model = bq.create_model(entry["model"], classes=classes, preset="tiny", **entry["options"]).train()
    return Optimization(model, preset(entry["model"], "tiny").recipe, {0: 1000})


def measure(entries: Mapping[str, Mapping[str, Any]], repetitions: int) -> dict[str, dict[str, float]]:
    """By label the milliseconds of a step (median), and its ratio to that of the first entry with quartiles."""
    data = batches()
    steps = {label: optimization(entry, len(shapes_data().names)) for label, entry in entries.items()}
    times: dict[str, list[float]] = {label: [] for label in entries}
    gc.disable()
    for turn in range(WARM + repetitions):
        first = turn % len(steps)
        for label in [*steps][first:] + [*steps][:first]:  # or the one after the collection would always be the same
            start = time.process_time()
            steps[label].step(data[turn % BATCHES], turn)
            times[label].append(time.process_time() - start)
        gc.collect()
    gc.enable()
    plain, found = next(iter(times.values()))[WARM:], {}
    for label, every in times.items():
        ratios = [own / other for own, other in zip(every[WARM:], plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1000 * statistics.median(every[WARM:])
        found[label] = {"ms": round(milliseconds, 1), "ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step of each matching strategy costs beside one-to-one alone.")
    parser.add_argument("--repetitions", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = experiments.DOCS / "results" / "step-cost.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not args.again else {}
    entries = experiments.matching("scenes") | experiments.matching_dab("scenes")
    for model in dict.fromkeys(entry["model"] for entry in entries.values()):
        own = {label: entry for label, entry in entries.items() if entry["model"] == model}
        if own.keys() - known.keys():
            known |= measure(own, args.repetitions)
            path.parent.mkdir(exist_ok=True)
            write_json(path, known)
        for label in own:
            print(label, known[label])
    for name in experiments.WITH_COSTS:
        experiments.show(name)


if __name__ == "__main__":
    main()
