"""``metrics.csv``: a row per epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from boxquery.files import atomic_write


class MetricsTable:
    """The rows of all epochs. They are a part of the run's state, and the file is written from them: after a resume it holds what an
    uninterrupted run would have written."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []

    def add(self, row: dict[str, Any], write: bool) -> None:
        """A finished epoch."""
        self.rows.append(row)
        if write:
            atomic_write(self.path, self._csv())

    def _csv(self) -> str:
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
