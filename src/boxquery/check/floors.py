"""How many steps each model needed on the built-in scenes, as measured by ``benchmarks/floors.py``. Imports nothing heavy."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("floors.json")


@lru_cache(1)
def everything() -> dict[str, Any]:
    """The whole file: ``protocol`` (how it was measured) and ``models``."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"protocol": {}, "models": {}}


def measured(model: str) -> dict[str, Any]:
    """What was measured for a model; {} where nothing was.

    ``learn_steps``: the most steps that it may take to overfit four images; ``floor`` by start ("random", "trained" backbone): ``left``,
    the steps after which it was above AP 0 (or None), and ``not_within``, steps that were not enough.
    """
    return everything()["models"].get(model, {})
