"""The numbers of an evaluation as tables for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Cells = list[Sequence[Any]]


def tables(metrics: dict[str, Any], analysis: dict[str, Any]) -> dict[str, Cells]:
    """``per_class``, ``confusion``, ``curves`` and ``errors``: rows of cells, the first the names of the columns; None is no value."""
    columns = ["name", "id", "AP", "AP50", "precision", "recall", "objects"]
    names, curves = analysis["confusion"]["names"], analysis["curves"]
    rows = zip([*names, "background"], analysis["confusion"]["matrix"], strict=True)
    recall = [round(step / 100, 2) for step in range(101)]
    return {
        "per_class": [columns, *([row[column] for column in columns] for row in metrics["per_class"])],
        "confusion": [["object", *names, "not found"], *([name, *counts] for name, counts in rows)],
        "curves": [["recall", *(curve["name"] for curve in curves)], *zip(recall, *(curve["precision"] for curve in curves), strict=True)],
        "errors": [["type", "AP50_gain", "count"], *(list(row.values()) for row in analysis["tide"])],
    }
