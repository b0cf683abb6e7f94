"""The page of a comparison: one HTML file, made from ``collect``'s record and the pictures beside the runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from boxquery.compare.results import FOLDER
from boxquery.files import atomic_write
from boxquery.pages.charts import line_chart
from boxquery.pages.format import DASH, duration, number, three
from boxquery.pages.html import document, picture

#: colours that style.css has for lines; further ones are dashed
_COLOURS = 8
#: points of a curve that is drawn as the mean of several
_GRID = 60

_STYLE = """
.plot { overflow-x: auto; }
.plot svg.chart { min-width: 460px; }
.same { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 20px 16px; margin: 12px 0 36px; }
.same img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--track); }
.same figcaption { margin: 0 0 4px; overflow-wrap: anywhere; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; background: var(--this); }
td.words { font-size: 14px; overflow-wrap: anywhere; }
tbody th { min-width: 130px; }
td small { color: var(--soft); font-size: 12px; }
@media (max-width: 760px) { th, td { padding-right: 12px; } }
"""

Result = Mapping[str, Any]
Points = list[tuple[float, float]]


def write_report(path: Path, result: Result) -> Path:
    """Write the page; ``result`` is what ``collect`` gives. Replaced whole."""
    sections = (_head, _curves, _scores, _reached, _costs, _duplicates, _alignment, _pictures, _failures, _plan)
    body = "\n".join(text for section in sections if (text := section(result)))
    return atomic_write(path, document(_title(result), body, "Made by boxquery compare from the run folders.", _STYLE))


def _title(result: Result) -> str:
    plan = result["plan"]
    number = len(plan["entries"])
    return f"{number} model{'s' * (number > 1)} on {Path(plan['data']).name or plan['data']}"


def _section(name: str, title: str, hint: str, body: str) -> str:
    """``hint`` and ``body`` are HTML."""
    return f'<section id="{name}"><h2>{title}</h2><p class="hint">{hint}</p>{body}</section>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], wordy: Sequence[int] = ()) -> str:
    """Of HTML cells; the first names the row, those in ``wordy`` are words, the others numbers."""
    top = "".join(f'<th scope="col"{"" if place in (0, *wordy) else " class=n"}>{head}</th>' for place, head in enumerate(heads))
    lines = []
    for first, *rest in rows:
        cells = "".join(f'<td class="{"words" if place in wordy else "n"}">{cell}</td>' for place, cell in enumerate(rest, 1))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _kinds(result: Result) -> dict[str, str]:
    """Label -> CSS classes of its colour, the same in every chart and table."""
    labels = [entry["label"] for entry in result["entries"]]
    return {label: f"s{place % _COLOURS}{' again' if place >= _COLOURS else ''}" for place, label in enumerate(labels)}


def _key(result: Result, label: str) -> str:
    return f'<span class="key {_kinds(result)[label]}"></span>{escape(label)}'


def _head(result: Result) -> str:
    plan = result["plan"]
    seeds = f"{len(plan['seeds'])} seeds" if len(plan["seeds"]) > 1 else f"seed {plan['seeds'][0]}"
    by = [f"{plan['budget']} each", seeds, f"{plan['image_size']} px short side", f"batches of {plan['batch_size']}", plan["precision"]]
    by += ["backbone from trained weights" if plan["pretrained"] else "from random weights", str(plan["device"])]
    lead = " ".join(escape(sentence) for sentence in result["conclusion"])
    notes = "".join(f"<li>{escape(note)}</li>" for note in result["notes"])
    listed = f'<ul class="plain">{notes}</ul>' if notes else ""
    return (
        f'<header id="headline"><h1>{escape(_title(result))}</h1><p class="by">{escape(" · ".join(by))}</p>'
        f'<p class="lead">{lead}</p>{listed}</header>'
    )


def _runs(result: Result, label: str) -> list[Mapping[str, Any]]:
    return [run for run in result["runs"] if run["label"] == label and run["status"] == "finished"]


def mean_curve(curves: Sequence[Points]) -> tuple[Points, list[tuple[float, float, float]]]:
    """Of several curves, rising in x: their mean, and (x, lowest, highest), where all are known; points between are on straight lines.

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


def _chart(result: Result, axis: str, value: str, title: str, note: str, unit: str) -> str:
    lines, bands = {}, {}
    for entry in result["entries"]:
        curves = [[(p[axis], p[value]) for p in run["curve"] if axis in p and value in p] for run in _runs(result, entry["label"])]
        line, band = mean_curve(curves)
        if line:
            lines[entry["label"]] = line
            if len(curves) > 1:
                bands[entry["label"]] = band
    if not lines:
        return ""
    chart = line_chart(lines, title=f"{title} by {unit}", unit=unit, kinds=_kinds(result), bands=bands, last=False, width=520, height=320)
    shown = f" <span>{note}</span>" if note else ""
    return f'<figure class="wide"><figcaption>{title}{shown}</figcaption><div class="plot">{chart}</div></figure>'


def _curves(result: Result) -> str:
    time, unit = ("processor time", "s") if result["clock"] == "cpu_seconds" else ("time", "s")
    charts = [
        _chart(result, "images", "AP", "AP against images seen", "", "images"),
        _chart(result, result["clock"], "AP", f"AP against {time}", "evaluations included", unit),
        _chart(result, "step", "AP", "AP against steps", "", "steps"),
        _chart(result, "images", "AP50", "AP50 against images seen", "", "images"),
    ]
    if not any(charts):
        return ""
    several = max(len(entry["seeds"]) for entry in result["entries"]) > 1
    hint = "On the validation split, the model that the run would save then (its moving average)."
    hint += " A line is the mean over seeds, the area from the lowest to the highest seed." if several else ""
    return _section("curves", "How fast they learn", hint, f'<div class="charts">{"".join(charts)}</div>')


def _scores(result: Result) -> str:
    rows = []
    tested = any(entry["test"]["AP"] is not None for entry in result["entries"])
    for entry in result["entries"]:
        scores, bounds = entry["scores"], entry.get("interval")
        spread = f"{min(entry['AP']):.3f} – {max(entry['AP']):.3f}" if len(entry["AP"]) > 1 and scores["AP"] is not None else DASH
        cells = [three(scores["AP"]), _bounds(bounds), spread]
        cells += [_difference(result, entry["label"])]
        cells += [three(scores[key]) for key in ("AP50", "AP75", "APs", "APm", "APl")] + [str(len(entry["seeds"]))]
        rows.append([_key(result, entry["label"]), *cells, *([three(entry["test"]["AP"])] if tested else [])])
    if not rows:
        return ""
    heads = ["", "AP", "95 % interval", "lowest – highest seed", "below the best", "AP50", "AP75", "APs", "APm", "APl", "seeds"]
    hint = (
        "Each run's best model by validation AP, on the validation split. Intervals: images and seeds drawn again 1,000 times. "
        "Below the best: with an interval on the same images, widened for the number of comparisons; where it holds 0, no difference "
        "is shown."
    )
    return _section("scores", "How good they are", hint, _table([*heads, *(["AP on test"] if tested else [])], rows))


def _bounds(bounds: Sequence[float] | None) -> str:
    return DASH if bounds is None else f"{bounds[0]:z.3f} – {bounds[1]:z.3f}"


def _difference(result: Result, label: str) -> str:
    found = result["lower"].get(label)
    if found is None:
        return DASH
    return f"{found['by']:.3f} <small>{_bounds(found['interval'])}</small>"


def _reached(result: Result) -> str:
    if not result["levels"]:
        return ""
    rows = []
    for entry in result["entries"]:
        cells = [_where(entry["reached"][f"{level:g}"], result["clock"]) for level in result["levels"]]
        rows.append([_key(result, entry["label"]), *cells])
    hint = "Images seen and processor time until AP first is so high, between two evaluations by a straight line; mean over the seeds."
    hint = hint if result["clock"] == "cpu_seconds" else hint.replace("processor time", "time")
    heads = ["", *(f"AP {level:g}" for level in result["levels"])]
    return _section("reached", "When they got there", hint, _table(heads, rows))


def _where(found: Mapping[str, Sequence[float | None]], clock: str) -> str:
    images = [value for value in found["images"] if value is not None]
    seconds = [value for value in found[clock] if value is not None]
    if not images:
        return "not reached"
    if len(images) < len(found["images"]):
        return f"{len(images)} of {len(found['images'])} seeds"
    return f"{mean(images):,.0f} <small>{duration(mean(seconds)) if seconds else ''}</small>"


def _costs(result: Result) -> str:
    rows = []
    for entry in result["entries"]:
        memory = DASH if entry["memory"] is None else f"{entry['memory'] / 2**20:,.0f}"
        rate = DASH if entry["images_per_second"] is None else number(entry["images_per_second"])
        spent = DASH if entry[result["clock"]] is None else duration(entry[result["clock"]])
        seen = DASH if entry["images"] is None else f"{entry['images']:,.0f}"
        costs = [f"{entry['parameters'] / 1e6:.2f}", number(entry["gflops"]), f"{entry['milliseconds']:.1f}", rate, memory, spent, seen]
        rows.append([_key(result, entry["label"]), *costs])
    if not rows:
        return ""
    heads = ["", "M parameters", "GFLOPs", "ms an image", "training images a second", "MiB at the peak", "spent", "images seen"]
    clock = "processor time of one thread" if result["clock"] == "cpu_seconds" else "time on the wall"
    hint = (
        f"GFLOPs: multiply-adds of one image of {escape(result['entries'][0]['image'])}. ms an image: one at a time, "
        f"the model and its answers without reading the file, {clock}, median. Training images a second: over the whole run, "
        "evaluations included. Peak: of the training process, libraries included."
    )
    return _section("costs", "What they cost", hint, _table(heads, rows))


def _duplicates(result: Result) -> str:
    rows = []
    for entry in result["entries"]:
        plain = entry["scores"]
        cells = [_share(plain["duplicate_rate"]), three(plain["AP"]), three(plain["AP50"])]
        for metrics in entry["nms"].values():
            cells += [_share(metrics["duplicate_rate"]), three(metrics["AP"]), three(metrics["AP50"])]
        rows.append([_key(result, entry["label"]), *cells])
    if not rows:
        return ""
    heads = ["", "duplicates", "AP", "AP50"]
    for threshold in result["entries"][0]["nms"]:
        heads += ["never suppressed: duplicates" if threshold == "1" else f"with NMS at {threshold}: duplicates", "AP", "AP50"]
    hint = (
        "Duplicates: of the detections at the best threshold, those that overlap a better one of their class with IoU above 0.7. "
        "NMS takes away what overlaps a better detection of its class by more than its threshold, so at 0.7 or below no duplicate is "
        "left by definition; what it is worth is the change of AP. A model that answers without duplicates gains nothing. "
        "First stands what a model answers by itself: Faster R-CNN, RetinaNet and FCOS suppress at a threshold of their own, queries never."
    )
    return _section("duplicates", "Duplicates, with and without suppression", hint, _table(heads, rows))


def _share(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %"


def _alignment(result: Result) -> str:
    charts = [
        _chart(result, "images", "inside", "Read inside the object", "share of the last layer's attention", "images"),
        _chart(result, "images", "query_changes", "Objects that changed their query", "share since the epoch before", "images"),
    ]
    if not any(charts):
        return ""
    even = [point["inside_even"] for run in result["runs"] for point in run.get("curve", []) if "inside_even" in point]
    hint = "How each object's query read the image, on a few validation images; models without such queries are left out."
    hint += f" Attention spread evenly would be {mean(even):.3f} inside." if even else ""
    return _section("alignment", "How aligned their queries are", hint, f'<div class="charts">{"".join(charts)}</div>')


def _pictures(result: Result) -> str:
    shown = [(entry["label"], run) for entry in result["entries"] if (run := next(iter(_runs(result, entry["label"])), None))]
    parts = []
    for place in range(max((len(run.get("pictures") or []) for _, run in shown), default=0)):
        figures = []
        for label, run in shown:
            if place >= len(run["pictures"]):
                continue
            item, folder = run["pictures"][place], Path(run["folder"]) / FOLDER
            if not figures and (picture := _picture(folder / item["truth"], item, f"{item['title']}, truth")):
                figures.append(f"<figure><figcaption>truth</figcaption>{picture}</figure>")
            if picture := _picture(folder / item["prediction"], item, f"{item['title']}, {label}"):
                caption = f'{_key(result, label)} <span class="note">from {item["threshold"]:.2f}</span>'
                figures.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
        if figures:
            title = escape(str(shown[0][1]["pictures"][place]["title"]))
            parts.append(f'<h3>{title}</h3><div class="same">{"".join(figures)}</div>')
    if not parts:
        return ""
    hint = (
        "Validation images with few to many objects, chosen before any model looked at them. The first seed's model at its best threshold."
    )
    return _section("pictures", "The same images", hint, "".join(parts))


def _picture(file: Path, item: Mapping[str, Any], text: str) -> str:
    if not file.is_file():
        return ""
    return picture(file.read_bytes(), (item["width"], item["height"]), text)


def _failures(result: Result) -> str:
    rows = []
    for run in result["runs"]:
        if run["status"] != "finished":
            epoch = f"{run['epoch']} of {run['epochs']}" if run["epochs"] else DASH
            cells = [run["status"], escape(run["reason"]) or DASH, epoch, three(run["AP"])]
            rows.append([f"{escape(run['label'])}, seed {run['seed']}", *cells])
    if not rows:
        return ""
    hint = "They are in no figure above. The same command goes on with them, and tries again what failed."
    return _section("unfinished", "Not finished", hint, _table(["run", "", "why", "epoch", "last AP"], rows, wordy=(1, 2)))


def _plan(result: Result) -> str:
    plan = result["plan"]
    rows = []
    for label, entry in plan["entries"].items():
        options = ", ".join(f"{name}={value}" for name, value in entry["options"].items()) or DASH
        rows.append([escape(label), escape(entry["model"]), escape(entry["preset"]), f"{entry['lr']:g}", escape(options)])
    seeds = ", ".join(map(str, plan["seeds"]))
    clock = (
        "Minutes are the processor's: those that a run computes, which other work on the machine does not shorten."
        if result["clock"] == "cpu_seconds"
        else "On CUDA minutes are the wall's: the processor only waits there, and its time says nothing."
    )
    hint = (
        f"Data {escape(plan['data'])}; {escape(plan['budget'])} each; seeds {seeds}. Every run is a <code>boxquery train</code> with these "
        "settings: the same split, order of images, augmentation and evaluation for the same seed, and a learning rate schedule "
        f"of its own budget. {clock}"
    )
    return _section("plan", "What was compared", hint, _table(["", "model", "preset", "rate", "options"], rows, wordy=(1, 2, 4)))
