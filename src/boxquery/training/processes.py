"""The processes of a run that torchrun has started, of which most runs have one: which this is, and what all of them know."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def rank() -> int:
    """The number of this process; 0 writes files and messages."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """How many of them are on this machine, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def attempt() -> int:
    """How often torchrun has started all of them again after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def join(device: str) -> None:
    """Meet the other processes.

    Not left to Lightning: torchrun keeps one store over restarts, where a process that comes early would find addresses of the dead.
    """
    if world_size() == 1 or torch.distributed.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, number, count = next(torch.distributed.rendezvous("env://"))
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=torch.distributed.PrefixStore(f"attempt {attempt()}", store),
        rank=number,
        world_size=count,
    )


def everywhere(value: T) -> list[T]:
    """The value of every process, by rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, value)
    return parts
