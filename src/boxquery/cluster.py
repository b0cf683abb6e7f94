"""Ray, joined or started without a word of its own on the terminal. Imports it only where it is used."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from boxquery.errors import UserError, first_line
from boxquery.locks import Lock, is_locked

#: where work runs: in this process (or processes of this machine), or in the workers of a Ray cluster
Engine = Literal["local", "ray"]
#: how Ray is kept quiet: no statistics to its makers, no messages of its C++ side, no bars and tips
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: beginning of the name of a started cluster's folder, and of its path the characters that leave room for the names of sockets
_FOLDER, _LONGEST = "boxquery-ray-", 40
#: seconds after which a folder that nobody has locked was left by a process that died
_LEFT = 60.0
#: seconds that a cluster has to answer
_ANSWER = 5.0
#: bytes of shared memory beside what is to be sent; Ray asks for 75 MB at least
_MEMORY = 80_000_000


@contextmanager
def ray_cluster(workers: int | None, send: int = 0) -> Iterator[Any]:
    """The module ``ray``, connected: to the cluster that ``RAY_ADDRESS`` names, else to one of this machine that ends with the context.

    Args:
        workers: CPUs of a cluster that is started; None: those of this machine.
        send: bytes that all workers get.

    Raises ``UserError`` where Ray is not installed or nobody answers at the address.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS", "")
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address:
        try:
            host, colon, port = address.rpartition(":")
            if colon and port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), _ANSWER).close()
            with _without_stderr():
                ray.init(address, **quiet)
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster can be joined there ({first_line(error)[:120]}); "
                "start one (ray start --head), or unset it to use this machine alone"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    with _folder() as folder:
        store = _MEMORY + 2 * send
        with _without_stderr(), _temporary_files_in(folder):
            ray.init(
                "local", num_cpus=workers or cores(), include_dashboard=False, object_store_memory=store, _temp_dir=str(folder), **quiet
            )  # fmt: skip
        try:
            yield ray
        finally:
            ray.shutdown()


def resources(ray: Any, device: str) -> tuple[int, dict[str, int]]:
    """How many workers fit into a cluster, and what each takes: a GPU and a core where there are GPUs, else a core.

    Raises ``UserError`` where the device is CUDA and no machine of the cluster has one.
    """
    there = ray.cluster_resources()
    if device in ("auto", "cuda") and there.get("GPU", 0) >= 1:
        return int(there["GPU"]), {"num_cpus": 1, "num_gpus": 1}
    if device == "cuda":
        raise UserError("--device cuda: no machine of the Ray cluster has a GPU")
    return max(int(there.get("CPU", 1)), 1), {"num_cpus": 1}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import_ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray needs the package ray ({first_line(error)}): pip install 'boxquery[ray]'") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


@contextmanager
def without_stdout() -> Iterator[None]:
    """What Ray says there of workers that died is lost; what is ours is printed afterwards, or on stderr."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's C++ side says there which environment variable keeps it quiet."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Processes that are started in this context have their temporary files there, so that what killed ones leave goes with the folder."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        os.environ.update({} if before is None else {"TMPDIR": before})


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a cluster's sockets and logs, which is removed with it; what processes that were killed have left goes as well."""
    place = Path(tempfile.gettempdir())
    if len(str(place / _FOLDER)) > _LONGEST and os.name == "posix":
        place = Path("/tmp")
    for left in place.glob(f"{_FOLDER}*"):
        if time.time() - left.stat().st_mtime > _LEFT and not is_locked(left / ".lock"):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=place))
    lock = Lock.take(folder / ".lock")
    try:
        yield folder
    finally:
        if lock is not None:
            lock.release()
        shutil.rmtree(folder, ignore_errors=True)
