"""Images per second of training in two processes on this machine, beside one process of one thread.

    python benchmarks/scaling.py [--model deformable-detr --preset small --image-size 192 --batch-size 4 --steps 15]

What ``torchrun --nproc-per-node 2 -m boxquery train shapes ...`` does, each process on a core of its own, with one thread and the batch
size of the single one. Of every step it notes wall time, CPU time of all threads of the process, and how long these threads waited for a
core that others had (Linux counts it). On a machine that does something else as well, wall time says little, so there are two figures:

- measured: images by wall time, medians of steps;
- undisturbed: a step takes as long as the CPU time of its slower process (exchange of gradients included: gloo's threads are counted, and
  they sleep while they wait), so images by the mean of that. It leaves out the latency of messages between two processes of one machine,
  which ``exchange`` shows: seconds of wall time of an exchange of all gradients alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import distributed
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from boxquery.data.shapes import shapes_data
from boxquery.training.module import Training
from boxquery.training.run import train

#: steps before those that count, and exchanges of gradients alone
WARM, EXCHANGES = 5, 10


class Enough(Exception):
    """All steps are measured."""


def waited_for_core() -> float:
    """Seconds that the threads of this process were ready to run and did not."""
    tasks = Path("/proc/self/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[1]) for task in tasks) / 1e9


def exchange_seconds(parameters: int) -> float:
    """Wall seconds of an exchange of so many gradients; 0 of a single process."""
    if not distributed.is_initialized():
        return 0.0
    gradients = torch.zeros(parameters)
    times = []
    for _ in range(EXCHANGES):
        distributed.barrier()
        start = time.monotonic()
        distributed.all_reduce(gradients)
        times.append(time.monotonic() - start)
    return statistics.median(times)


def measure(written: Path, given: argparse.Namespace) -> None:
    """Train for some steps, write what each took, and end the process without evaluation and report."""
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    clocks: list[tuple[float, float, float]] = []
    original = Training.on_train_batch_end

    def noted(self: Training, outputs, batch, batch_idx: int) -> None:
        original(self, outputs, batch, batch_idx)
        clocks.append((time.monotonic(), time.process_time(), waited_for_core()))
        if len(clocks) <= WARM + given.steps:
            return
        steps = [
            [after - before for before, after in zip(*pair, strict=True)] for pair in zip(clocks[WARM:-1], clocks[WARM + 1 :], strict=True)
        ]
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        found = {"steps": steps, "parameters": parameters, "exchange": exchange_seconds(parameters)}
        written.with_suffix(f".{rank}.json").write_text(json.dumps(found))
        raise Enough

    Training.on_train_batch_end = noted
    needed = (WARM + given.steps + 2) * given.batch_size * processes
    data = shapes_data(train=needed, val=2, test=2, size=given.image_size)
    with contextlib.suppress(Enough):
        train(
        data, out=written.parent / f"run-{processes}", model=given.model, preset=given.preset, image_size=given.image_size, epochs=1,
        batch_size=given.batch_size, pretrained=False, device="cpu", precision="float32", workers=0,
      )  # fmt: skip


def run(folder: Path, processes: int, given: argparse.Namespace) -> dict[str, Any]:
    """Figures of so many processes."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1", start_method="fork",
    )  # fmt: skip
    if processes > 1:
        elastic_launch(config, measure)(folder / f"of-{processes}", given)
    elif (child := os.fork()) == 0:
        measure(folder / "of-1", given)
        os._exit(0)
    else:
        os.waitpid(child, 0)
    ranks = [json.loads((folder / f"of-{processes}.{rank}.json").read_text()) for rank in range(processes)]
    steps = list(zip(*(rank["steps"] for rank in ranks), strict=True))
    wall, cpu, waited = ([max(rank[i] for rank in step) for step in steps] for i in range(3))
    images = given.batch_size * processes
    return {
        "processes": processes,
        "measured": images / statistics.median(wall),
        "undisturbed": images / statistics.mean(cpu),
        "milliseconds_cpu": 1000 * statistics.mean(cpu),
        "milliseconds_cpu_by_rank": [1000 * statistics.mean(step[1] for step in rank["steps"]) for rank in ranks],
        "milliseconds_waited_for_core": 1000 * statistics.mean(waited),
        "milliseconds_exchange": 1000 * ranks[0]["exchange"],
        "parameters": ranks[0]["parameters"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deformable-detr")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two = (run(Path(folder), processes, given) for processes in (1, 2))
    for found in (one, two):
        print(json.dumps(json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 2))))
    ratios = {name: round(two[name] / one[name], 2) for name in ("measured", "undisturbed")}
    print(json.dumps({"two_processes_to_one": ratios, "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
