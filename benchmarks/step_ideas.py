"""Two ideas for faster training steps that are not in the library: `torch.compile`, and one projection of values for all decoder layers.

    python benchmarks/step_ideas.py projection              # seconds
    python benchmarks/step_ideas.py compile --parts backbone layers        # minutes, most of them in the compiler

Milliseconds are the median CPU time of this process on one thread; ``compile`` also has the CPU time until the first compiled steps are
done, the C++ compiler's included, and the number of steps after which it is earned.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share with this file
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tests.models.builders import batch, objects
from torch import Tensor, nn

from boxquery.models import create_model

LAYERS, DIM = 6, 256


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        times.append(1000 * (time.process_time() - started))
    return statistics.median(times)


def project(tokens: int, rounds: int) -> None:
    """Values of two images for all decoder layers, forward and backward: by a projection per layer, and by one."""
    memory = torch.randn(2, tokens, DIM, requires_grad=True)
    several = [nn.Linear(DIM, DIM) for _ in range(LAYERS)]
    one = nn.Linear(DIM, LAYERS * DIM)
    into = [torch.randn(2, tokens, DIM) for _ in range(LAYERS)]

    def backward(values: list[Tensor]) -> None:
        torch.autograd.backward(values, [gradient.to(value.dtype) for gradient, value in zip(into, values, strict=True)])

    for bf16 in (False, True):

        def apart(bf16: bool = bf16) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                values = [layer(memory) for layer in several]
            backward(values)

        def together(bf16: bool = bf16) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                values = list(one(memory).split(DIM, -1))
            backward(values)

        figures = " | ".join(f"{milliseconds(call, rounds):.1f}" for call in (apart, together))
        print(f"| {tokens:,} tokens, {'bf16' if bf16 else 'float32'} | {figures} |", flush=True)


def compiled(name: str, part: str, bf16: bool, rounds: int) -> None:
    """A training step of ``tiny`` before and after a part is compiled: backbone, encoder or decoder layers."""
    torch.manual_seed(0)
    model = create_model(name, preset="tiny", classes=3).train()
    images = batch((160, 160), (160, 160))[0].repeat(2, 1, 1, 1)
    targets = objects(3, 5, 3, 5, classes=3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(model(images, None, targets=targets), targets)[0]
        loss.backward()
        optimizer.step()

    step()
    eager, started = milliseconds(step, rounds), cpu_seconds()
    for each in model.layers if part == "layers" else [getattr(model, part)]:
        each.compile()
    step()
    step()
    spent = cpu_seconds() - started
    faster = milliseconds(step, rounds)
    earned = f"{1000 * spent / (eager - faster):,.0f}" if faster < eager else "never"
    print(f"| {name}, {part}, {'bf16' if bf16 else 'float32'} | {eager:.0f} | {faster:.0f} | {spent:.0f} | {earned} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idea", choices=["projection", "compile"])
    parser.add_argument("--model", default="deformable-detr", help="(default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=["backbone", "encoder", "layers"], default=["backbone", "encoder", "layers"])
    parser.add_argument("--precision", choices=["float32", "bf16"], default="bf16", help="of compile (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.idea == "projection":
        print("| values of six layers | a projection each, ms | one, ms |\n|---|--:|--:|")
        for tokens in (525, 2100):
            project(tokens, args.rounds)
        return
    print("| compiled | eager, ms | compiled, ms | CPU s until then | steps to earn it |\n|---|--:|--:|--:|--:|")
    for part in args.parts:
        compiled(args.model, part, args.precision == "bf16", args.rounds)


if __name__ == "__main__":
    main()
