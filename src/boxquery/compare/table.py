"""Tables for a terminal: how far every run is, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from boxquery.compare.results import Progress
from boxquery.evaluation.metric_names import BY_UNIT
from boxquery.pages.format import bounds, duration, of_planned, percent, three

_STYLES = {"training": "bold", "measuring": "bold", "finished": "green", "failed": "red"}


def live_table(runs: Sequence[Progress]) -> Table:
    """A row per run: status, epoch, the metrics of its last evaluation, and the time that is left."""
    shown = runs[0].planned.entry.metrics.shown
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("", "epoch", *shown, "left"):
        table.add_column(name, justify="right" if name else "left")
    for run in runs:
        epoch = of_planned(run.epoch, run.epochs) if run.epochs else ""
        status = f"[{_STYLES[run.status]}]{run.status}" if run.status in _STYLES else run.status
        table.add_row(run.planned.name, status, epoch, *(three(run.scores.get(name)) for name in shown), duration(run.left))
    return table


def result_table(result: Mapping[str, Any]) -> Table:
    """A row per entry, best first."""
    table = Table(title=f"after {result['plan']['budget']}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold")
    metrics = BY_UNIT[result["unit"]]
    better, second = metrics.shown
    for name in (better, "95 % interval", second, *["duplicates"] * metrics.duplicates, f"ms/{metrics.unit}", "seeds"):
        table.add_column(name, justify="right")
    for entry in result["entries"]:
        scores, seeds = entry["scores"], str(len(entry["seeds"]))
        accuracy = [three(scores[better]), bounds(entry.get("interval")), three(scores[second])]
        if metrics.duplicates:
            accuracy.append(percent(scores["duplicate_rate"]))
        table.add_row(entry["label"], *accuracy, f"{entry['milliseconds']:.1f}", seeds)
    return table
