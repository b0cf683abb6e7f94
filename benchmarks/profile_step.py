"""Where the time of a training step goes, by kind of operation, for every model.

    python benchmarks/profile_step.py [--only detr,d-fine] [--presets tiny,paper] [--steps 3] [--precision float32] [--as NAME]

Whole steps as training makes them (forward, matching, loss, backward, clipping, AdamW, moving average) from random weights, on one thread
of the CPU: "tiny" with its recipe's image size in batches of four, "paper" as published (stem, first stage and batch norm frozen) on two
squares of 320 pixels. torch's profiler gives the time of every operation without those that it calls, forward and backward added up; what
no operation accounts for is "Python and dispatch", which the profiler itself makes longer: the step without it is measured beside.

Results are kept in docs/speed/profile.json under the name given with ``--as``, with the machine's measured peak (a product of two square
matrices of 2,048); docs/speed.md shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share with this file
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tests.models.builders import batch, objects
from torch.profiler import ProfilerActivity, profile, record_function

import boxquery.matching.criterion as criterion
import boxquery.optimization as optimization
from boxquery.data.loading import Batch
from boxquery.files import write_json
from boxquery.models import create_model, list_models, preset

RESULTS = Path(__file__).parents[1] / "docs" / "speed" / "profile.json"
CLASSES = 80
#: kind -> parts of the names of its operations, the first that fits; what is left is "other"
KINDS = {
    "convolutions": ("convolution", "slow_conv", "conv_depthwise"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": ("addmm", "::mm", "bmm", "baddbmm", "linear", "matmul", "Product"),
    "sampling": ("grid_sampler", "embedding_bag", "roi_align", "Sample"),
    "norms": ("batch_norm", "group_norm", "layer_norm", "GroupNorm", "BatchNorm", "LayerNorm"),
    "copies": (
        "copy_", "clone", "::cat", "index", "gather", "scatter", "contiguous", "_pad", "pad_", "stack", "fill_", "zero_", "to_copy",
        "upsample", "repeat", "masked", "where", "empty",
    ),
    "activations": ("relu", "threshold", "sigmoid", "silu", "gelu", "softmax", "dropout", "max_pool", "avg_pool", "bernoulli"),
    "sums": ("::sum", "::mean", "cumsum", "amax", "::max", "topk", "sort", "norm"),
    "arithmetic": (
        "::add", "::mul", "::div", "::sub", "::neg", "::pow", "::sin", "::cos", "::exp", "::log", "clamp", "minimum", "maximum", "sqrt",
        "::lt", "::gt", "::ge", "::le", "::eq", "::abs", "sgn", "reciprocal", "binary_cross", "addcmul", "lerp", "bitwise", "logical",
    ),
}  # fmt: skip
#: the whole, whose own time is that of no operation
STEP = "whole step"
#: the steps of training that are one kind each, whatever they call
RANGES = ("matching", "loss", "optimizer", "clipping", "average")


def peaks() -> dict[str, float]:
    """GFLOP/s of a matrix product, counting multiplication and addition, by precision and library."""
    a = {dtype: torch.randn(2048, 2048, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    one = torch.ops.mkldnn._linear_pointwise
    runs = {
        "float32 (torch.mm)": lambda: a[torch.float32] @ a[torch.float32],
        "float32 (oneDNN)": lambda: one(a[torch.float32], a[torch.float32], None, "none", [], ""),
        "bfloat16 (torch.mm)": lambda: a[torch.bfloat16] @ a[torch.bfloat16],
    }
    return {name: round(2 * 2048**3 / min(seconds(run) for _ in range(3)) / 1e9, 1) for name, run in runs.items()}


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def stepper(name: str, size: str, precision: str) -> Callable[[], Any]:
    """A training step on a batch that stays."""
    torch.manual_seed(0)
    model, recipe = create_model(name, classes=CLASSES, preset=size), preset(name, size).recipe
    side = 320 if size == "paper" else recipe.image_size
    if size == "paper":
        model.freeze()
    average = create_model(name, classes=CLASSES, preset=size).requires_grad_(False) if recipe.ema else None
    made = optimization.Optimization(model.train(), recipe, {0: 1000}, average=average, precision=precision)
    images, _ = batch(*[(side, side)] * (2 if size == "paper" else 4))
    drawn = Batch(images, None, objects(*(7, 12) if size == "paper" else (7, 3, 5, 2), classes=CLASSES), [0, 1])
    return lambda: made.step(drawn, 0)


@contextmanager
def named_ranges() -> Iterator[None]:
    """Matching, loss, clipping and the moving average under their names in the profile."""
    places = [(criterion, "solve", "matching"), (criterion.SetCriterion, "__call__", "loss")]
    places += [(optimization, "clip_gradients", "clipping"), (optimization, "update_average", "average")]
    kept = [getattr(where, name) for where, name, _ in places]

    def ranged(call: Callable[..., Any], title: str) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            with record_function(title):
                return call(*args, **kwargs)

        return inner

    for (where, name, title), call in zip(places, kept, strict=True):
        setattr(where, name, ranged(call, title))
    try:
        yield
    finally:
        for (where, name, _), call in zip(places, kept, strict=True):
            setattr(where, name, call)


def kind_of(event: Any) -> str:
    parent = event
    while parent is not None:
        if parent.name in RANGES:
            return parent.name
        if parent.name.startswith("Optimizer."):
            return "optimizer"
        parent = parent.cpu_parent
    if event.name == STEP or event.name.startswith("autograd::engine"):
        return "Python and dispatch"
    return next((kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)), "other")


def measure(name: str, size: str, steps: int, precision: str) -> dict[str, Any]:
    """Milliseconds of a step, and its parts in percent of the profiled time."""
    step = stepper(name, size, precision)
    step()
    plain = 1000 * statistics.median(seconds(step) for _ in range(steps))
    with named_ranges(), profile(activities=[ProfilerActivity.CPU]) as profiled, record_function(STEP):
        step()
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.events() or ():
        spent[kind_of(event)] += event.self_cpu_time_total
    parts = {kind: round(100 * value / sum(spent.values()), 1) for kind, value in sorted(spent.items(), key=lambda pair: -pair[1])}
    return {"ms": round(plain, 1), "percent": {kind: value for kind, value in parts.items() if value >= 0.1}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="models, separated by commas (default: all)")
    parser.add_argument("--presets", default="tiny,paper", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--precision", default="float32", help="float32 or bf16 (default: %(default)s)")
    parser.add_argument("--as", dest="title", default="", help="keep the results under this name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"peak GFLOP/s": peaks()}
    print(json.dumps(found))
    for size in filter(None, args.presets.split(",")):
        for name in args.only.split(",") if args.only else list_models():
            row = found[f"{name} {size} {args.precision}"] = measure(name, size, args.steps, args.precision)
            print(f"{name} {size} {args.precision}: {row['ms']} ms;", ", ".join(f"{k} {v}" for k, v in row["percent"].items()), flush=True)
    if args.title:
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, known | {args.title: known.get(args.title, {}) | found})


if __name__ == "__main__":
    main()
