"""How many steps each model needed on the built-in scenes, as ``benchmarks/floors.py`` measured it. Imports nothing heavy."""

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
    """What is known of a model; {} where nothing was measured.

    ``learn_steps``: at most so many to learn four images by heart; ``floor`` by start ("random", "trained" backbone): the steps in which it
    left AP 0, or ``None`` with ``not_within``, the steps in which it did not.
    """
    return everything()["models"].get(model, {})
