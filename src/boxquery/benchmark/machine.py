"""What a measurement ran on, without which its numbers say nothing. Imports no torch."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any


def processor() -> dict[str, Any]:
    """Name, logical cores that this process may use, and their physical cores as far as the system says.

    Family and model follow the name where the system has them: virtual machines give processors of several generations one name.
    """
    name, *numbers = (_of_cpuinfo(key) for key in ("model name", "cpu family", "model"))
    known = ", ".join(f"{word} {number}" for word, number in zip(("family", "model"), numbers, strict=True) if number)
    return {
        "name": (name or platform.processor() or platform.machine()) + f" ({known})" * bool(known),
        "cores": cores(),
        "physical_cores": physical_cores(),
    }


def cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """As many, but of those that share a physical core one; where the system does not say, ``cores``."""
    places = set(re.findall(r"^physical id\s*:\s*(\d+)$.*?^core id\s*:\s*(\d+)$", _cpuinfo(), re.MULTILINE | re.DOTALL))
    return min(len(places) or cores(), cores())


def load() -> float | None:
    """Processes that wait for a core, as a mean of the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    return {"boxquery": metadata.version("boxquery"), "python": platform.python_version(), "system": platform.platform(terse=True)}


def _of_cpuinfo(key: str) -> str | None:
    found = re.search(rf"^{key}[ \t]*:[ \t]*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1] if found else None


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
