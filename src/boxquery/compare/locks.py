"""Who does which run: an exclusive file each, so that processes, also on several machines that share the folder, never do the same."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import uuid
from pathlib import Path

#: seconds after which a claim that nobody renewed is stale, and from one renewal to the next
STALE, RENEWED = 300.0, 20.0


class Claim:
    """A claim that this process holds; ``take`` makes one."""

    def __init__(self, path: Path, token: str):
        self.path, self.token = path, token

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """The claim, or None where another living process has it. A stale one is taken over."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if (seen := _read(path)) is not None:
            if not _stale(path, seen):
                return None
            _remove(path, seen)
        claim = cls(path, uuid.uuid4().hex)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(claim._text(None))
        except FileExistsError:
            return None
        return claim

    def working(self, child: int) -> None:
        """The work is done by a child process now, which may outlive this one."""
        beside = self.path.with_suffix(f".{self.token}")
        beside.write_text(self._text(child), encoding="utf-8")
        beside.replace(self.path)

    def renew(self) -> bool:
        """Say that this process lives. False where another has taken the claim over, as after a long sleep."""
        if not self.held():
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)
        return True

    def held(self) -> bool:
        known = _read(self.path)
        return known is not None and known.get("token") == self.token

    def release(self) -> None:
        if self.held():
            self.path.unlink(missing_ok=True)

    def _text(self, child: int | None) -> str:
        return json.dumps({"token": self.token, "host": platform.node(), "process": os.getpid(), "child": child})


def claimed(path: Path) -> bool:
    """Whether a living process has it."""
    known = _read(path)
    return known is not None and not _stale(path, known)


def _read(path: Path) -> dict | None:
    """None where there is no claim; {} for one that is just being written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _stale(path: Path, known: dict) -> bool:
    here = known.get("host") == platform.node() and os.name == "posix"
    if here and _alive(known.get("child")):
        return False  # its child goes on writing, whoever started it
    if here and not _alive(known.get("process")):
        return True
    return _age(path) > STALE


def _age(path: Path) -> float:
    """Seconds since it was renewed, by the clock of the file system: those of two machines may differ."""
    probe = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _alive(process: object) -> bool:
    if not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path, seen: dict) -> None:
    """Take a stale claim away; one that somebody made in the meantime is put back."""
    aside = path.with_suffix(f".{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != seen:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
