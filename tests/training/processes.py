"""Work in processes of their own, forked from one that has imported everything: importing costs more than a run of these tests."""

import multiprocessing
import os
import runpy
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: ``FRESH.Process`` is forked from a server that no test has touched
FRESH = multiprocessing.get_context("forkserver")
FORK = multiprocessing.get_context("fork")
FRESH.set_forkserver_preload(["boxquery.training.fit", "torch.distributed.launcher.api", "pytest"])


def apart(log: Path, function: Callable[..., Any], *arguments: Any) -> str:
    """Call a module's function in a fresh process -> what it printed, which is in ``log`` too. It must end well."""
    process = FRESH.Process(target=_redirected, args=(log, function, arguments))
    process.start()
    process.join(300)
    process.kill()
    message = log.read_text()
    assert process.exitcode == 0, message[-3000:]
    return message


def _redirected(log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*arguments)


def script(path: Path, *words: str) -> None:
    """What ``python PATH WORDS`` does."""
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def in_two(restarts: int, function: Callable[..., Any], *arguments: Any) -> None:
    """What ``torchrun --standalone --nproc-per-node 2 --max-restarts N`` does: call the function in two ranks; a dead one restarts both."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1", max_restarts=restarts, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, function)(*arguments)
