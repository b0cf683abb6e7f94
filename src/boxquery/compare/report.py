"""The values that the page of a comparison shows; ``pages/templates/comparison.html`` says how. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from markupsafe import Markup

from boxquery.compare.results import FOLDER
from boxquery.errors import count
from boxquery.evaluation.metric_names import BY_UNIT, MetricNames
from boxquery.files import atomic_write
from boxquery.pages.charts import line_chart
from boxquery.pages.format import DASH, bounds, duration, number, of_planned, percent, three
from boxquery.pages.html import render

#: colours that style.css has for lines; further ones are dashed
_COLOURS = 8
#: points of a curve that is the mean of several with other x
_GRID = 60
#: further metrics that have room beside the main ones; more have a table of their own
_BESIDE = 4
_ERRORS = {
    "mATE": "of the place in metres",
    "mASE": "of the size (1 - IoU)",
    "mAOE": "of the heading in radians",
    "mAVE": "of the velocity in m/s",
    "mAAE": "of attributes (share)",
}

Result = Mapping[str, Any]
Points = list[tuple[float, float]]
Table = tuple[list[str], list[list[str]]]  # columns and rows


def write_report(path: Path, result: Result) -> Path:
    """Write the page of ``collect``'s record, with the pictures beside the runs; replaced whole."""
    plan, clock, metrics = result["plan"], result["clock"], BY_UNIT[result["unit"]]
    labels = [entry["label"] for entry in result["entries"]]
    kinds = {label: f"s{place % _COLOURS}{' again' if place >= _COLOURS else ''}" for place, label in enumerate(labels)}
    time = "CPU time" if clock == "cpu_seconds" else "time"
    (better, second), units = metrics.shown, f"{metrics.unit}s"
    curves = (
        ("images", better, f"{better} against {units} seen", "", units),
        (clock, better, f"{better} against {time}", "evaluations included", "s"),
        ("step", better, f"{better} against steps", "", "steps"),
        ("images", second, f"{second} against {units} seen", "", units),
    )
    alignment = (
        ("images", "inside", "Attention inside the object", "share of the last layer's", units),
        ("images", "query_changes", "Objects that changed their query", "share since the epoch before", units),
    )
    page = render(
        "comparison.html",
        styles=("style.css", "dataset.css"),
        title=f"{count(len(plan['entries']), 'model')} on {Path(plan['data']).name or plan['data']}",
        result=result,
        metrics=metrics,
        time=time,
        kinds=kinds,
        curves=list(_charts(result, kinds, curves)),
        alignment=list(_charts(result, kinds, alignment)),
        even=[point["inside_even"] for run in result["runs"] for point in run.get("curve", []) if "inside_even" in point],
        scores=_scores(result, metrics),
        errors=", ".join(f"{key} {_ERRORS[key]}" for key in _measured(result, metrics) if key in _ERRORS),
        levels=_levels(result, better),
        costs=_costs(result, metrics.unit),
        duplicates=_duplicates(result) if metrics.duplicates else None,
        pictures=_pictures(result),
        unfinished=_unfinished(result, better),
        planned=_planned(result),
    )
    return atomic_write(path, page)


def _finished(result: Result, label: str) -> list[Mapping[str, Any]]:
    return [run for run in result["runs"] if run["label"] == label and run["status"] == "finished"]


def mean_curve(curves: Sequence[Points]) -> tuple[Points, list[tuple[float, float, float]]]:
    """The mean of curves that rise in x, and (x, lowest, highest), over the x that all of them cover, interpolated linearly.

    Curves with the same x keep them; others get a common grid.
    """
    curves = [curve for curve in curves if curve]
    if not curves:
        return [], []
    columns = {tuple(x for x, _ in curve) for curve in curves}
    if len(columns) == 1:
        xs = np.array(columns.pop())
    else:
        xs = np.linspace(max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves), _GRID)
        if xs[-1] < xs[0]:
            return [], []
    table = np.array([np.interp(xs, [x for x, _ in curve], [y for _, y in curve]) for curve in curves])
    line = list(zip(xs.tolist(), table.mean(axis=0).tolist(), strict=True))
    return line, list(zip(xs.tolist(), table.min(axis=0).tolist(), table.max(axis=0).tolist(), strict=True))


def _charts(
    result: Result, kinds: Mapping[str, str], charts: Sequence[tuple[str, str, str, str, str]]
) -> Iterator[tuple[Markup, str, str]]:
    """Chart, title and note of those charts (axis, value, title, note, unit) for which anything was measured."""
    for axis, value, title, note, unit in charts:
        lines, bands = {}, {}
        for label in kinds:
            curves = [[(p[axis], p[value]) for p in run["curve"] if axis in p and value in p] for run in _finished(result, label)]
            lines[label], band = mean_curve(curves)
            if len(curves) > 1:
                bands[label] = band
        if any(lines.values()):
            yield line_chart(lines, title=f"{title} by {unit}", unit=unit, kinds=kinds, bands=bands, last=False, height=280), title, note


def _measured(result: Result, metrics: MetricNames) -> list[str]:
    """Further metrics; what no model has a value of, the data do not measure."""
    return [key for key in metrics.others if any(entry["scores"][key] is not None for entry in result["entries"])]


def _scores(result: Result, metrics: MetricNames) -> list[Table]:
    """The main metrics with their intervals, and the others beside them or in a table of their own."""
    better, second = metrics.shown
    others = _measured(result, metrics)
    keys = [second, *(others if len(others) <= _BESIDE else ())]
    tested = any(entry["test"][better] is not None for entry in result["entries"])
    columns = ["", better, "95 % interval", "range over seeds", "below the best", "95 % interval", *keys, "seeds"]
    columns += [f"{better} on test"] * tested
    rows = []
    for entry in result["entries"]:
        scores, lower = entry["scores"], result["lower"].get(entry["label"], {})
        spread = (min(entry[better]), max(entry[better])) if len(entry[better]) > 1 and scores[better] is not None else None
        difference = [three(lower.get("by")), bounds(lower.get("interval"))]
        row = [entry["label"], three(scores[better]), bounds(entry.get("interval")), bounds(spread), *difference]
        rows.append([*row, *(three(scores[key]) for key in keys), str(len(entry["seeds"])), *[three(entry["test"][better])] * tested])
    further = [[entry["label"], *(three(entry["scores"][key]) for key in others)] for entry in result["entries"]]
    return [(columns, rows), *[(["", *others], further)] * (len(others) > _BESIDE)]


def _levels(result: Result, metric: str) -> Table:
    rows = [[entry["label"], *(_reached(found, result["clock"]) for found in entry["reached"].values())] for entry in result["entries"]]
    return ["", *(f"{metric} {level:g}" for level in result["levels"])], rows


def _reached(found: Mapping[str, Any], clock: str) -> str:
    """Images or scenes, and time, until a level was reached, means over seeds; "by" where it was before anything was measured."""
    images = [value for value in found["images"] if value is not None]
    seconds = [value for value in found[clock] if value is not None]
    if not images:
        return "not reached"
    if len(images) < len(found["images"]):
        return f"{len(images)} of {len(found['images'])} seeds"
    return "by " * found["at_first"] + f"{mean(images):,.0f}" + (f" ({duration(mean(seconds))})" if seconds else "")


def _costs(result: Result, unit: str) -> Table:
    rows = []
    for entry in result["entries"]:
        size = [f"{entry['parameters'] / 1e6:.2f}", number(entry["gflops"]), f"{entry['milliseconds']:.1f}"]
        memory, spent = entry["memory"], entry[result["clock"]]
        run = [number(entry["images_per_second"]), number(memory and memory / 2**20), duration(spent), number(entry["images"])]
        rows.append([entry["label"], *size, *run])
    size = ["M parameters", "GFLOPs", f"ms per {unit}"]
    return ["", *size, f"training {unit}s per second", "MiB of memory", "spent", f"{unit}s seen"], rows


def _duplicates(result: Result) -> Table:
    columns = ["", "duplicates", "AP", "AP50"]
    for threshold in result["entries"][0]["nms"] if result["entries"] else ():
        columns += ["without NMS: duplicates" if threshold == "1" else f"with NMS at {threshold}: duplicates", "AP", "AP50"]
    rows = []
    for entry in result["entries"]:
        row = [entry["label"]]
        for scores in (entry["scores"], *entry["nms"].values()):
            row += [percent(scores["duplicate_rate"]), three(scores["AP"]), three(scores["AP50"])]
        rows.append(row)
    return columns, rows


def _pictures(result: Result) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Per image or scene its annotations, and the detections of every entry's first seed; pictures that are not there are left out."""
    images: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for label in (entry["label"] for entry in result["entries"]):
        run = _finished(result, label)[0]
        for place, item in enumerate(run.get("pictures") or []):
            figures = images.setdefault((place, item["title"]), [])
            for caption, file in (("truth", item["truth"]), (label, item["prediction"])):
                if (path := Path(run["folder"]) / FOLDER / file).is_file() and (caption == label or not figures):
                    figures.append({**item, "caption": caption, "data": path.read_bytes()})
    return images


def _unfinished(result: Result, metric: str) -> Table:
    rows = []
    for run in result["runs"]:
        if run["status"] != "finished":
            epoch = of_planned(run["epoch"], run["epochs"]) if run["epochs"] else str(run["epoch"])
            rows.append([f"{run['label']}, seed {run['seed']}", run["status"], run["reason"] or DASH, epoch, three(run[metric])])
    return ["run", "status", "reason", "epoch", f"last {metric}"], rows


def _planned(result: Result) -> Table:
    return ["", "model", "preset", "learning rate", "options"], [
        [label, entry["model"], entry["preset"], f"{entry['lr']:g}", ", ".join(f"{k}={v}" for k, v in entry["options"].items()) or DASH]
        for label, entry in result["plan"]["entries"].items()
    ]
