"""The runs of a comparison on the machines of a Ray cluster, all of which see its folder. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from boxquery.cluster import ray_cluster, resources, without_stdout
from boxquery.compare.plan import ComparisonPlan
from boxquery.compare.results import Progress, finished, progress_of
from boxquery.compare.runner import GRACE, Runner, stopping
from boxquery.compare.table import live_table
from boxquery.errors import UserError

#: seconds from one look at the files to the next, and those beyond ``GRACE`` that a stopped worker has to end
_POLL, _MARGIN = 1.0, 5.0
_LINES = {"training": "started", "finished": "done", "failed": "failed: "}


def run_by_ray(plan: ComparisonPlan, folder: Path, jobs: int | None, console: Console) -> None:
    """Train and measure the runs that are left: each worker does what the command does in a further shell, and locks divide the work.

    Args:
        jobs: runs at a time; None: as many as the cluster has GPUs for a plan on CUDA, or else cores.

    Raises ``UserError`` where a machine does not see the folder, or no cluster is there.
    """
    left = [planned for planned in plan.runs() if not finished(folder, planned)]
    if not left:
        return
    with without_stdout(), ray_cluster(jobs) as ray, stopping():
        most, each = resources(ray, plan.device)
        shell = ray.remote(**each)(_work)
        shells = [shell.remote(os.getcwd(), str(folder)) for _ in range(min(jobs or most, len(left)))]
        try:
            _watch(ray, shells, plan, folder, console)
        finally:
            for each_shell in shells:
                ray.cancel(each_shell)
            ray.wait(shells, num_returns=len(shells), timeout=GRACE + _MARGIN)


def _watch(ray: Any, shells: list[Any], plan: ComparisonPlan, folder: Path, console: Console) -> None:
    """Print what happens until all workers have ended."""

    def look() -> list[Progress]:
        return [progress_of(folder, planned) for planned in plan.runs()]

    table = Live(console=console, refresh_per_second=0.5, get_renderable=lambda: live_table(look())) if console.is_terminal else None
    known: dict[str, str] = {}
    with table or contextlib.nullcontext():
        while True:
            ended, shells = ray.wait(shells, timeout=_POLL)
            for progress in () if table else look():
                before = known.get(progress.planned.name)
                known[progress.planned.name] = progress.status
                if progress.status != before and progress.status in _LINES and (before or progress.status == "training"):
                    console.print(f"{progress.planned.name}: {_LINES[progress.status]}{progress.reason}", markup=False, highlight=False)
            try:
                ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from error
                raise
            if not shells:
                return


def _work(place: str, folder: str) -> None:
    """In a worker: take runs until none is left.

    Args:
        place: working directory of the command, which the paths of the plan may be relative to.
    """
    if not Path(place, folder).is_dir():
        raise UserError(
            f"{Path(place, folder)}: {socket.gethostname()} does not see this folder; share it with all machines of the cluster"
        )
    os.chdir(place)
    Runner(ComparisonPlan.read(Path(folder)), Path(folder), 1, Console(quiet=True)).run()
