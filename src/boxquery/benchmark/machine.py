"""What a measurement ran on, without which its numbers say nothing. Imports no torch."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any


def processor() -> dict[str, Any]:
    """Name, logical cores that this process may use, and their physical cores as far as the system says."""
    text = _cpuinfo()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {"name": name[1] if name else platform.processor() or platform.machine(), "cores": cores(), "physical_cores": physical_cores()}


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


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
