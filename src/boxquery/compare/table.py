"""Tables for a terminal: how far every run is, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from boxquery.compare.results import Progress
from boxquery.pages.format import duration

_STYLES = {"training": "bold", "measuring": "bold", "finished": "green", "failed": "red"}


def live_table(runs: Sequence[Progress]) -> Table:
    """A row a run: how far it is, AP, AP50, and the time that is left."""
    table = Table()
    table.add_column("run", overflow="fold")
    for name in ("", "epoch", "AP", "AP50", "left"):
        table.add_column(name, justify="right" if name else "left")
    for run in runs:
        epoch = f"{run.epoch}/{run.epochs}" if run.epochs else ""
        left = "" if run.left is None else duration(run.left)
        table.add_row(run.task.name, f"[{_STYLES.get(run.status, '')}]{run.status}" if run.status in _STYLES else run.status, epoch,
                      _three(run.AP), _three(run.AP50), left)  # fmt: skip
    return table


def result_table(result: Mapping[str, Any]) -> Table:
    """A row an entry, best first."""
    table = Table(title=f"after {result['plan']['budget']}", title_justify="left")
    table.add_column("", overflow="fold")
    for name in ("AP", "95 % interval", "AP50", "duplicates", "ms an image", "seeds"):
        table.add_column(name, justify="right")
    for entry in result["entries"]:
        bounds = entry.get("interval")
        scores = entry["scores"]
        shown = "" if bounds is None else f"{bounds[0]:.3f} - {bounds[1]:.3f}"
        rate = "" if scores["duplicate_rate"] is None else f"{100 * scores['duplicate_rate']:.1f} %"
        table.add_row(
            entry["label"],
            _three(scores["AP"]),
            shown,
            _three(scores["AP50"]),
            rate,
            f"{entry['milliseconds']:.1f}",
            str(len(entry["seeds"])),
        )
    return table


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
