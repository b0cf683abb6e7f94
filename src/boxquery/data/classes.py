"""Matching of classes by name, wherever a model meets data or another model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from boxquery.data.dataset import Data, Split
from boxquery.errors import UserError


def match_names(names: Sequence[str | None], known: Sequence[str | None]) -> list[int]:
    """Per name its index in ``known``, or -1. An exact match comes first, then one but for case, space, hyphen and underscore.

    None, the name of a class that has none, matches nothing.
    """
    exact: dict[str, int] = {}
    loose: dict[str, int] = {}
    for i, name in enumerate(known):
        if name is not None:
            exact.setdefault(name, i)
            loose.setdefault(_loose(name), i)
    return [-1 if name is None else exact.get(name, loose.get(_loose(name), -1)) for name in names]


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def map_labels(data: Data, split: str, classes: Sequence[str | None]) -> Split:
    """A split of the data with labels that are indices of a detector's classes.

    Raises ``UserError`` where the data has no such split, or objects of a class that the detector does not know.
    """
    records = data.split(split)
    table = np.array(match_names(data.names, classes), dtype=np.int64)
    used = np.unique(np.concatenate([record.labels for record in records]))
    if unknown := sorted(data.names[i] for i in used if table[i] < 0):
        known = ", ".join(name for name in classes if name is not None)
        raise UserError(f"{data.source}: the detector does not know {', '.join(unknown)}; it knows {known}")
    if table.tolist() == list(range(len(table))):
        return records
    return replace(records, records=[replace(record, labels=table[record.labels]) for record in records])
