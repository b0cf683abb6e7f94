"""The files of a comparison, read into one record: ``results.json``. Imports no torch.

DIR holds ``compare.yaml`` (the plan), ``runs/NAME`` (run folders as ``train`` writes them, with the measurements of a finished run in
``compare/``), ``state/`` (locks, what was printed, how it ended), ``results.json`` and ``report.html``.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from boxquery.compare.plan import ComparisonPlan, Entry, PlannedRun
from boxquery.compare.statistics import against_best, conclusion
from boxquery.evaluation.bootstrap import interval, resample_seeds
from boxquery.evaluation.metric_names import MetricNames
from boxquery.files import read_mapping, write_json
from boxquery.locks import RUN_LOCK, is_locked
from boxquery.report.run_files import RunFiles, read_run
from boxquery.training.config import FILE, RunConfig

RESULTS = "results.json"
#: in a run folder: the measurements of the finished run
FOLDER, MEASURED = "compare", "measured.json"
#: IoU thresholds of NMS: none, what ``duplicate_rate`` counts, and what most detectors use
NMS = (1.0, 0.7, 0.5)
#: of AP or mAP, for which the report says when they were reached
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)
_SHOWN_LEVELS = 4
_AXES = ("epoch", "step", "images", "seconds", "cpu_seconds")
_COSTS = ("parameters", "gflops", "milliseconds", "memory", "images_per_second", "images", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        status: "waiting", "training", "measuring", "stopped" (begun, and no process works on it), "failed" or "finished".
        epoch, epochs: finished and planned; 0 if not yet known.
        scores: those metrics of the last evaluation that are shown, as far as they are known.
        left: seconds, from the first epoch on.
        reason: of a failure.
    """

    planned: PlannedRun
    status: str
    epoch: int = 0
    epochs: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    left: float | None = None
    reason: str = ""


def run_folder(folder: Path, planned: PlannedRun) -> Path:
    return folder / "runs" / planned.name


def state_file(folder: Path, planned: PlannedRun, ending: str) -> Path:
    """``ending``: ".lock", ".log" or ".json"."""
    return folder / "state" / f"{planned.name}{ending}"


def finished(folder: Path, planned: PlannedRun) -> bool:
    """Trained and measured."""
    return (run_folder(folder, planned) / FOLDER / MEASURED).is_file()


def is_trained(run: Path) -> bool:
    """Whether ``train`` finished there: its report is written last."""
    return all((run / name).is_file() for name in ("report.html", "evaluation.json", "metrics.csv")) and (run / "model").is_dir()


def is_worked_on(folder: Path, planned: PlannedRun) -> bool:
    """Whether a living process trains or measures it."""
    return is_locked(state_file(folder, planned, ".lock")) or is_locked(run_folder(folder, planned) / RUN_LOCK)


def read_ending(folder: Path, planned: PlannedRun) -> dict[str, Any]:
    """``reason`` of a failure, ``memory`` (peak of the training process in bytes); unknown ones are missing."""
    return read_mapping(state_file(folder, planned, ".json"))


def write_ending(folder: Path, planned: PlannedRun, *, reason: str | None = None, memory: int | None = None) -> None:
    """Record how a process ended: a new reason replaces the old one, and the most memory counts."""
    known = read_ending(folder, planned)
    most = max(known.get("memory") or 0, memory or 0)
    found = ({"reason": reason} if reason else {}) | ({"memory": most} if most else {})
    if found != known:
        write_json(state_file(folder, planned, ".json"), found)


def progress_of(folder: Path, planned: PlannedRun) -> Progress:
    """How far a run is, from its files."""
    run = run_folder(folder, planned)
    reason = read_ending(folder, planned).get("reason", "")
    working = is_worked_on(folder, planned)
    if not (run / FILE).is_file():
        return Progress(planned, "training" if working else "failed" if reason else "waiting", reason=reason)
    config, rows = RunConfig.read(run), read_run(run).epochs
    evaluated = [scores for row in rows if (scores := {name: row[name] for name in planned.entry.metrics.shown if name in row})]
    status = "training" if working else "failed" if reason else "stopped"
    status = "measuring" if working and is_trained(run) else "finished" if finished(folder, planned) else status
    left = None
    if rows and status == "training" and (run / "metrics.csv").is_file():
        since = time.time() - (run / "metrics.csv").stat().st_mtime
        left = max(rows[-1].get("seconds", 0) / len(rows) * (config.length.total_epochs - len(rows)) - since, 0)
    return Progress(planned, status, len(rows), config.length.total_epochs, evaluated[-1] if evaluated else {}, left, reason)


def read_plan(folders: Sequence[Path]) -> ComparisonPlan:
    """The plan of several parts of one comparison. Raises ``UserError`` where they contradict each other."""
    plan = ComparisonPlan.read(folders[0])
    for folder in folders[1:]:
        other = ComparisonPlan.read(folder)
        if Path(other.data).name == Path(plan.data).name:  # on another machine; whether images are the same is what ``val`` says
            other = replace(other, data=plan.data)
        plan = plan.merge(other, folders[0])
    return plan


def furthest(folders: Sequence[Path], planned: PlannedRun) -> Path:
    """The part in which a run is furthest."""
    done = [folder for folder in folders if finished(folder, planned)]
    begun = [folder for folder in folders if run_folder(folder, planned).is_dir() or state_file(folder, planned, ".json").is_file()]
    return (done or begun or list(folders))[0]


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """The results of a comparison, in one or several parts, as plain values.

    - ``unit``: "image", or "scene" of several cameras. The metrics are those of ``boxquery.evaluation.metric_names``; what is counted in
      ``images`` are scenes there, and nothing is said of duplicates.
    - ``plan``: as in ``compare.yaml``. ``clock``: the column of time that counts, "cpu_seconds" ("seconds" on a GPU).
    - ``runs``: ``label``, ``seed``, ``status``, ``reason``, ``folder`` of every planned run; of a finished one also ``curve`` (a row per
      evaluation), ``scores`` (val, its best model), ``test`` (if the data has a test split), ``nms`` and costs.
    - ``entries``: those with a finished run, best first: means over seeds, ``interval`` (95 %), ``reached`` (level of AP -> where on
      each axis every seed reached it, or None; ``at_first``: whether one had at its first evaluation, so that it may have been before).
    - ``best``, ``lower``: the best entry and how much lower each other one is, with an interval.
    - ``conclusion``: two sentences. ``notes``: caveats.
    """
    plan = read_plan(folders)
    clock, metrics = "cpu_seconds" if plan.device == "cpu" else "seconds", plan.metrics
    runs = [_run(furthest(folders, planned), planned) for planned in plan.runs()]
    done = [run for run in runs if run["status"] == "finished"]
    levels = _levels(done, metrics.better)
    own = [(entry, [run for run in done if run["label"] == entry.label]) for entry in plan.entries]
    entries = [_entry(entry, theirs, levels, (clock, "images")) for entry, theirs in own if theirs]
    entries.sort(key=lambda entry: -(entry["scores"][metrics.better] or 0))
    result = {"unit": metrics.unit, "plan": {**plan.values(), "budget": plan.budget()}, "clock": clock, "levels": levels}
    result |= {"runs": runs, "entries": entries}
    result |= _conclusion(plan, entries, done) | {"notes": _notes(plan, clock, entries, runs, done)}
    for run in runs:
        run.pop("resampled", None)
    return result


def _run(folder: Path, planned: PlannedRun) -> dict[str, Any]:
    progress = progress_of(folder, planned)
    place, metrics = run_folder(folder, planned), planned.entry.metrics
    found: dict[str, Any] = {"label": planned.entry.label, "seed": planned.seed, "status": progress.status, "reason": progress.reason}
    found |= {"folder": str(place), "epoch": progress.epoch, "epochs": progress.epochs}
    found |= {name: progress.scores.get(name) for name in metrics.shown}
    if progress.status != "finished":
        return found
    run, measured = read_run(place), read_mapping(place / FOLDER / MEASURED)
    found["curve"] = _curve(run, metrics)
    last = run.epochs[-1] if run.epochs else {}
    seconds = last.get("cpu_seconds", 0)
    found |= {key: last.get(key) for key in ("images", "seconds", "cpu_seconds")}
    found["images_per_second"] = last["images"] / seconds if seconds and "images" in last else None
    for split, name in (("val", "scores"), ("test", "test")):
        if known := run.evaluation.get(split):
            found[name] = {key: known.get(key) for key in (*_accuracy(metrics), "best_threshold", f"{metrics.unit}s", "objects")}
    found["memory"] = read_ending(folder, planned).get("memory")
    return found | measured


def _accuracy(metrics: MetricNames) -> tuple[str, ...]:
    return (*metrics.shown, *metrics.others, *["duplicate_rate"] * metrics.duplicates)


def _curve(run: RunFiles, metrics: MetricNames) -> list[dict[str, float]]:
    """A row per evaluation: epoch, step, images and time, the metrics shown, and the alignment of the last layer."""
    layers = [int(name[7:]) for row in run.epochs for name in row if name.startswith("inside_") and name[7:].isdigit()]
    rows = []
    for row in run.epochs:
        if metrics.better in row:
            kept = {key: row[key] for key in (*_AXES, *metrics.shown, "query_changes", "inside_even") if key in row}
            if layers and f"inside_{max(layers)}" in row:
                kept["inside"] = row[f"inside_{max(layers)}"]
            rows.append(kept)
    return rows


def reached(curve: Sequence[Mapping[str, float]], axis: str, level: float, metric: str) -> float | None:
    """Where on the axis the metric first is ``level``, interpolated linearly between two evaluations; None if nowhere.

    What is reached at the first evaluation was reached there or before: nobody measured where, and it counts as there.
    """
    before: Mapping[str, float] | None = None
    for point in curve:
        if axis not in point:
            return None
        if point[metric] >= level:
            if before is None:
                return point[axis]
            return before[axis] + (point[axis] - before[axis]) * (level - before[metric]) / (point[metric] - before[metric])
        before = point
    return None


def _levels(runs: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """A few of ``LEVELS`` that some run reached: the highest, and some below it."""
    most = max((point[metric] for run in runs for point in run["curve"]), default=0.0)
    known = [level for level in LEVELS if level <= most]
    known = known[len(known) // 3 :]
    picked = sorted({round(place) for place in np.linspace(0, len(known) - 1, min(_SHOWN_LEVELS, len(known)))}) if known else []
    return [known[place] for place in picked]


def _entry(entry: Entry, runs: Sequence[dict[str, Any]], levels: Sequence[float], axes: Sequence[str]) -> dict[str, Any]:
    metrics, better = entry.metrics, entry.metrics.better
    found: dict[str, Any] = {"label": entry.label, **entry.settings(), "seeds": [run["seed"] for run in runs]}
    found[better] = [run["scores"][better] for run in runs]
    found["scores"] = {key: _mean(run["scores"][key] for run in runs) for key in _accuracy(metrics)}
    found["test"] = {key: _mean((run.get("test") or {}).get(key) for run in runs) for key in metrics.shown}
    if metrics.duplicates:
        found["nms"] = {
            f"{threshold:g}": {
                key: _mean(run["nms"].get(f"{threshold:g}", {}).get(key) for run in runs) for key in (*metrics.shown, "duplicate_rate")
            }
            for threshold in NMS
        }
    found |= {key: _mean(run.get(key) for run in runs) for key in _COSTS} | {"image": runs[0]["image"]}
    found["reached"] = {
        f"{level:g}": {axis: [reached(run["curve"], axis, level, better) for run in runs] for axis in axes}
        | {"at_first": any(run["curve"] and run["curve"][0][better] >= level for run in runs)}
        for level in levels
    }
    if len({run["val"] for run in runs}) == 1:
        found["interval"] = interval(_resampled_means(entry.label, runs, better))
    return found


def _mean(values: Any) -> float | None:
    """None if one of them is unknown."""
    known = list(values)
    return mean(known) if known and all(value is not None and math.isfinite(value) for value in known) else None


def _resampled_means(label: str, runs: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    """Resampled means over seeds [R]; seeds are resampled by label, so that entries are independent."""
    values = np.array([run["resampled"][metric] for run in runs], dtype=float)
    return resample_seeds(values, zlib.crc32(label.encode()))


def _conclusion(plan: ComparisonPlan, entries: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metrics = plan.metrics
    means = {entry["label"]: entry["scores"][metrics.better] for entry in entries}
    nothing = (
        "No run is finished yet." if not entries
        else "The validation split has no objects." if None in means.values()
        else f"The runs were not measured on the same validation {metrics.unit}s." if len({run["val"] for run in runs}) > 1
        else None
    )  # fmt: skip
    if nothing:
        return {"best": None, "lower": {}, "conclusion": [nothing, "There is no conclusion."]}
    own = {label: [run for run in runs if run["label"] == label] for label in means}
    resampled = {label: _resampled_means(label, own[label], metrics.better) for label in means}
    best, lower = against_best(means, resampled)
    seeds = {entry["label"]: len(entry["seeds"]) for entry in entries}
    sentences = conclusion(means, resampled, seeds, plan.budget(), metrics, runs[0]["images_measured"])
    differences = {name: {"by": by, "interval": interval} for name, (by, interval) in lower.items()}
    return {"best": best, "lower": differences, "conclusion": sentences}


def _notes(
    plan: ComparisonPlan,
    clock: str,
    entries: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    done: Sequence[Mapping[str, Any]],
) -> list[str]:
    notes = []
    if missing := len(runs) - len(done):
        failed = sum(run["status"] == "failed" for run in runs)
        notes.append(f"{missing} of {len(runs)} runs are not finished" + (f", {failed} of them failed." if failed else "."))
    if elsewhere := sum(run["status"] in ("training", "measuring") for run in runs):
        notes.append(f"A process still works on {elsewhere} of them; the same command goes on with what is left when it has ended.")
    few = min((len(entry["seeds"]) for entry in entries), default=0)
    if few == 1:
        notes.append("Where an entry has one seed, its interval holds for that trained model only: another seed may reverse a difference.")
    elif 1 < few < 5:
        notes.append(f"With {few} seeds the intervals are rough: the spread between seeds is estimated from {few} values.")
    spent = [entry[clock] for entry in entries if entry.get(clock)]
    if plan.minutes is not None and spent and max(spent) > 1.02 * min(spent):
        notes.append(
            f"The time spent differs by {100 * (max(spent) / min(spent) - 1):.0f} %: {min(spent):,.0f} to {max(spent):,.0f} seconds."
        )
    busy = [run["load"] for run in done if run.get("load") is not None and run.get("cores") and run["load"] > 0.5 + run["cores"] / 2]
    if busy and plan.device == "cpu":
        notes.append(
            f"Inference was timed on a machine with other load ({min(busy):.1f} to {max(busy):.1f} on {done[0]['cores']} cores): "
            "CPU time does not count waiting, but shared caches and cores still make it longer."
        )
    return notes
