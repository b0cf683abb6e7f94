"""The state that a run is resumed from, and who may write it: two generations, each with a digest, and a lock on the run folder."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from boxquery.errors import UserError
from boxquery.files import atomic_open, clear_leftovers
from boxquery.locks import RUN_LOCK, Lock, holder
from boxquery.model_folder import first_mismatch
from boxquery.training.migration import migrate_state

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
#: hexadecimal digits of the digest, which is the comment that ends the zip file that a checkpoint is
_DIGITS = 64
_PARTS = frozenset({"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"})


class StateFiles(CheckpointIO):
    """Writes ``last.ckpt`` atomically with a digest and keeps the one before it as ``previous.ckpt``; reads a state without executing code.

    Args:
        model: the run's own ``state_dict``; a state of other tensors is refused.
    """

    def __init__(self, model: Mapping[str, torch.Tensor]):
        self.model = model

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        with atomic_open(path) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # what torch's archive makes of a write that the operating system refused
                raise error.__context__ if isinstance(error.__context__, OSError) else error from error
            file.seek(-2, os.SEEK_END)
            file.write(struct.pack("<H", _DIGITS))  # the length of the comment
            file.flush()
            file.write(_digest(file, file.tell()))
            if path.exists():
                os.replace(path, path.with_name(PREVIOUS))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises ``UserError`` for a file that is not a state of this run; ``weights_only`` is always true."""
        try:
            state = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
            raise UserError(f"{path}: not a state, or one that would have to be executed; restore the run's own") from error
        if not isinstance(state, dict) or not state.keys() >= _PARTS or not state["callbacks"].keys() & {"EpochEnd", "Keeper"}:
            raise UserError(f"{path}: not the state of a run; restore the file that belongs here, or train again in another --out")
        if wrong := first_mismatch(state["state_dict"], self.model):
            raise UserError(f"{path}: the state of another model ({wrong}); restore the run's own")
        return migrate_state(state)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _digest(file: BinaryIO, end: int) -> bytes:
    """Of the first ``end`` bytes of an open file, which is left standing there."""
    hashed = hashlib.blake2b(digest_size=_DIGITS // 2)
    file.seek(0)
    while file.tell() < end and (block := file.read(min(end - file.tell(), 2**20))):
        hashed.update(block)
    return hashed.hexdigest().encode()


def damage(path: Path) -> str | None:
    """What is wrong with a state file, in a few words; None if it is intact."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _DIGITS
            file.seek(max(end - 2, 0))
            tail = file.read()
            if tail[:2] == struct.pack("<H", _DIGITS):
                return None if _digest(file, end) == tail[2:] else "is damaged: its digest is another"
            old = tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0"  # from before states had a digest
            return None if old else "is cut short"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def latest_checkpoint(folder: Path) -> tuple[Path | None, str]:
    """The newest intact state of a run, and a message about a newer one that is damaged.

    None where no epoch was finished yet. Raises ``UserError`` where states were lost.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            if (wrong := damage(path)) is None:
                return path, "; ".join([*damaged, f"resuming from {name}"]) if damaged or name == PREVIOUS else ""
            damaged.append(f"{path} {wrong}")
    rows = finished_epochs(folder)
    if damaged or rows > 1:  # the row of an epoch is written before its state
        what = "; ".join(damaged) or f"{folder / LAST} is missing, though {rows} epochs were finished"
        raise UserError(f"{what}; restore it from a copy, or train in another --out; model/ has the best")
    return None, "no epoch was finished: starting from the beginning"


def finished_epochs(folder: Path) -> int:
    """How many rows ``metrics.csv`` has. Raises ``UserError`` where it cannot be read."""
    try:
        return max(len((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()) - 1, 0)
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / 'metrics.csv'}: cannot be read ({error}); remove it, it is written again") from error


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep every other process from training in a folder, which is made where it is missing.

    What a dead process left half-written is removed; of folders that were made here, those that stay empty. Raises ``UserError`` where
    another process holds the folder, or nothing can be written there.
    """
    made = [folder, *itertools.takewhile(lambda parent: not parent.exists(), folder.parents)]
    try:
        lock = Lock.take(folder / RUN_LOCK)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from error
    if lock is None:
        raise UserError(f"{folder} is being trained by {holder(folder / RUN_LOCK)}; wait for it, or choose another --out")
    try:
        clear_leftovers(folder)
        yield
    finally:
        lock.release()
        with suppress(OSError):
            for empty in made:
                empty.rmdir()  # where nothing was written
