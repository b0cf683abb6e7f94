"""Matching of classes by name, wherever a model meets data or another model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from boxquery.data.dataset import Data, Record, Split
from boxquery.errors import UserError, some


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


def map_labels(data: Data, split: str, classes: Sequence[str | None], only: Sequence[int] | None = None) -> Split:
    """A split of the data with labels that are indices of a detector's classes.

    Args:
        only: labels of the detector whose objects are kept; None: all.

    Raises ``UserError`` where the data has no such split, or, without ``only``, objects of a class that the detector does not know.
    """
    records = data.split(split)
    table = np.array(match_names(data.names, classes), dtype=np.int64)
    if only is not None:
        table[~np.isin(table, only)] = -1
        records = replace(records, records=[_keep(record, table[record.labels] >= 0) for record in records])
    used = np.unique(np.concatenate([record.labels for record in records]))
    if unknown := sorted(data.names[i] for i in used if table[i] < 0):
        known = [name for name in classes if name is not None]
        listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        shared = sorted({str(classes[label]) for label in table if label >= 0})
        hint = f"; --classes {','.join(shared[:10])} evaluates what both know" if shared else ""
        raise UserError(f"{data.source}: the detector does not know {', '.join(unknown)}; it knows {listed}{hint}")
    if table.tolist() == list(range(len(table))):
        return records
    return replace(records, records=[replace(record, labels=table[record.labels]) for record in records])


def _keep(record: Record, kept: np.ndarray) -> Record:
    columns = {name: getattr(record, name)[kept] for name in ("boxes", "labels", "ignore", "areas")}
    return replace(record, **columns)


def matching_notes(data: Data, classes: Sequence[str | None]) -> list[str]:
    """What is not said by equal names: those matched loosely, and the detector's classes that the data does not list."""
    labels = match_names(data.names, classes)
    loose = [f"{name} is {classes[label]}" for name, label in zip(data.names, labels, strict=True) if label >= 0 and classes[label] != name]
    notes = [f"class names are matched without case, space, hyphen and underscore: {some(loose, 8)}"] if loose else []
    others = [name for label, name in enumerate(classes) if name is not None and label not in labels]
    if others:
        one = len(others) == 1
        said = (
            f"{len(others)} class{'' if one else 'es'} that the detector knows and the data does not list {'is' if one else 'are'} left out"
        )
        notes.append(f"{said}, predictions too: {some(others, 8)}")
    return notes
