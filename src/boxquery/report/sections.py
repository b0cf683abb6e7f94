"""The values that a run's report shows; ``pages/templates/report.html`` says how."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from boxquery.pages.charts import Point, line_chart
from boxquery.pages.format import DASH, class_name, duration, number, split_title, three
from boxquery.pages.images import encode
from boxquery.report.run_files import RunFiles

_CURVES = (
    ("Accuracy", "on the validation split; the ring marks the best", ("AP", "AP50", "AP75", "mAP", "NDS")),
    ("Loss", "weighted sum of all terms", ("loss", "val_loss")),
    ("Terms of the loss", "not weighted", ("class", "l1", "giou")),
    ("Learning rate", "", ("lr",)),
    ("Duplicate rate", "", ("duplicate_rate",)),
    ("Patches found", "mean IoU of each patch with the box that its queries are most sure of", ("iou",)),
    ("Features", "distance of reconstructed features from those of patches, last layer", ("feature",)),
    ("AP by distance", "between the centres, in metres", ("AP@0.5", "AP@1", "AP@2", "AP@4")),
    ("Errors of what was found", "1 where nothing is", ("mATE", "mASE", "mAOE", "mAVE", "mAAE")),
)
_ALIGNMENT = (
    ("inside", "Attention inside the object", "share of it; dashed: if it were even", {"even": "inside_even"}),
    ("entropy", "Spread of the attention", "1: even, 0: a single cell", {}),
    ("distance", "From reference to object", "to its centre, in diagonals of the image", {}),
)
_SHADES = 6  # style.css has k0 to k5 for the lines of layers
_SCORES = (
    ("AP", "AP", "average precision, mean over IoU 0.50 to 0.95: COCO's main metric"),
    ("AP50", "AP50", "average precision where a box is correct if its IoU is at least 0.50"),
    ("AP75", "AP75", "the same with an IoU of at least 0.75: how well boxes fit"),
    ("APs", "APs", "objects smaller than 32² pixels"),
    ("APm", "APm", "objects from 32² to 96² pixels"),
    ("APl", "APl", "objects larger than 96² pixels"),
)
_SCENE_SCORES = (
    ("mAP", "mAP", "average precision by the distance of centres, mean over classes and 0.5, 1, 2 and 4 m: nuScenes' main metric"),
    ("NDS", "NDS", "nuScenes' score: mAP five times, and 1 - each error below (at least 0) once"),
    *(
        (f"AP@{d}", f"AP at {d} m", f"average precision where centres are less than {d} m apart, mean over classes")
        for d in ("0.5", 1, 2, 4)
    ),
    ("mATE", "ATE", "metres from centre to centre, of what is found within 2 m"),
    ("mASE", "ASE", "1 - IoU of the sizes, of the same"),
    ("mAOE", "AOE", "radians between the headings, of the same"),
    ("mAVE", "AVE", "m/s between the velocities, of the same"),
    ("mAAE", "AAE", "share with a wrong attribute, of the same"),
)
_SCENE_THRESHOLD = (
    ("best_threshold", "Best threshold", "the score at which F1 is highest (within 2 m, all classes)"),
    ("f1", "F1", "at that threshold: harmonic mean of precision and recall"),
    ("precision", "Precision", "at that threshold: share of the boxes that are right"),
    ("recall", "Recall", "at that threshold: share of the objects that are found"),
)
_CLASS_ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
_FIXED_BOXES = "for each class the boxes that most training scenes hold, in every scene: a model below this has not learned to look"
_MEDIAN_BOX = "the training images' median box of each class in every image: a model below this has not learned to look"
_AT_THRESHOLD = (
    ("best_threshold", "Best threshold", "the score at which F1 is highest (IoU 0.5, all classes)"),
    ("threshold", "Threshold given", "minimum score of the boxes that count below, in place of the best threshold"),
    ("f1", "F1", "at that threshold: harmonic mean of precision and recall"),
    ("precision", "Precision", "at that threshold: share of the boxes that are right"),
    ("recall", "Recall", "at that threshold: share of the objects that are found"),
    ("duplicate_rate", "Duplicates", "at that threshold: share of boxes that overlap a better one of their class with IoU above 0.7"),
    ("false_positives_per_empty_image", "False per empty image", "at that threshold: boxes per image without objects"),
)
_TIDE = {
    "wrong class": "on an object of another class (IoU of at least 0.5)",
    "misplaced": "on an object of its class, but with an IoU between 0.1 and 0.5",
    "wrong class and misplaced": "both",
    "duplicate": "on an object that a better-scored box has found",
    "background": "on no object (IoU below 0.1)",
    "missed": "objects that no box explains",
}
_MATRIX, _CONFUSED, _CURVES_SHOWN = 20, 25, 7  # most classes of a matrix, rows of confusions, and classes in a chart
_OUTCOMES = ("right", "missed", "false", "wrong class", "misplaced", "duplicate")

Rows = list[list[Any]]
Figure = tuple[Markup, str, str]
"""A chart, its title and a note."""


def values(run: RunFiles) -> dict[str, Any]:
    """All sections by name; empty where the run has nothing to show."""
    sections = (origin, facts, curves, alignment, log, scores, classes, errors, pictures, transfer, dataset, check, settings)
    return {section.__name__: section(run) for section in sections}


def origin(run: RunFiles) -> list[str]:
    """Preset, backbone and seed, as far as they are known."""
    options = run.config.get("options") or {}
    parts = {"preset ": run.config.get("preset"), "": options.get("backbone"), "seed ": run.config.get("seed")}
    return [f"{word}{value}" for word, value in parts.items() if value is not None]


def facts(run: RunFiles) -> list[tuple[str, str, str]]:
    """The main numbers: name, value, unit."""
    facts = []
    if run.result:
        shown = ("mAP", "NDS", "AP@2", "AP@4") if run.of_scenes else ("AP", "AP50", "AP75")
        facts += [(key, three(run.result.get(key)), "") for key in shown]
        if not run.of_scenes:
            rate = run.result.get("duplicate_rate")
            facts.append(("Duplicates", DASH, "") if rate is None else ("Duplicates", f"{100 * rate:.1f}", "%"))
    if run.epochs:
        last, planned = run.epochs[-1], run.config.get("epochs")
        done = f"{last.get('epoch', len(run.epochs)):g}"
        facts.append(("Epochs", done, f"of {planned}" if planned and str(planned) != done else ""))
        if "seconds" in last:
            facts.append(("Training time", duration(last["seconds"]), ""))
    if train := run.data.get("splits", {}).get("train"):
        facts.append(("Trained on", f"{train['images']:,}", f"{run.unit}s"))
    return facts


def curves(run: RunFiles) -> list[list[Figure]]:
    """Metrics, losses and learning rate by epoch: the large charts, and the small ones."""
    charts = ((title, note, {column: column for column in columns}) for title, note, columns in _CURVES)
    return [_figures(run, islice(charts, 2), 420, 235), _figures(run, charts, 340, 215)]


def alignment(run: RunFiles) -> list[Figure]:
    """What the queries that found the objects attended to, by layer and epoch, if it was measured."""
    layers = sorted({int(found[1]) for row in run.epochs for name in row if (found := re.fullmatch(r"inside_(\d+)", name))})
    kinds = {f"layer {n}": f"k{round(i * (_SHADES - 1) / max(len(layers) - 1, 1))}" for i, n in enumerate(layers)}
    charts = [(title, note, {f"layer {n}": f"{key}_{n}" for n in layers} | even) for key, title, note, even in _ALIGNMENT]
    charts.append(("Objects that changed their query", "share since the epoch before", {"changes": "query_changes"}))
    kinds |= {"even": "even", "changes": "s0"}
    figures = _figures(run, charts, 420, 250, kinds)
    return _figures(run, charts, 340, 235, kinds) if len(figures) == 3 else figures  # three stand in one row


def _figures(
    run: RunFiles, charts: Iterable[tuple[str, str, Mapping[str, str]]], width: int, height: int, kinds: Mapping[str, str] | None = None
) -> list[Figure]:
    """Charts of (title, note, line -> column) by epoch, without those that have no line of two points."""
    figures = []
    for title, note, columns in charts:
        lines = {name: points for name, column in columns.items() if len(points := _points(run, column)) > 1}
        if lines:
            svg = line_chart(
                lines, title=f"{title} by epoch", best="mAP" if "mAP" in lines else "AP", kinds=kinds, width=width, height=height
            )
            figures.append((svg, title, note))
    return figures


def _points(run: RunFiles, column: str) -> list[Point]:
    """Its values by epoch; of rows that a resumed run wrote again, the later one counts."""
    return sorted({row.get("epoch", float(i)): row[column] for i, row in enumerate(run.epochs, 1) if column in row}.items())


def log(run: RunFiles) -> tuple[list[str], Rows]:
    """``metrics.csv`` as a table: its columns, and its rows."""
    columns = list(dict.fromkeys(["epoch", *(column for row in run.epochs for column in row)]))
    rows = [{"epoch": i} | row for i, row in enumerate(run.epochs, 1)]
    return columns, [[f"{row['epoch']:g}", *(number(row.get(column)) for column in columns[1:])] for row in rows]


def scores(run: RunFiles) -> Rows:
    """Name, value per split, meaning."""
    results = run.evaluation.values()
    if run.of_scenes:
        measured = [entry for entry in _SCENE_SCORES if any(entry[0] in result for result in results)]
        rows = [[name, *(three(result.get(key)) for result in results), meaning] for key, name, meaning in (*measured, *_SCENE_THRESHOLD)]
        fixed = [result.get("fixed_boxes") or {} for result in results]
        if any(fixed):
            rows[2:2] = [[f"{key} of fixed boxes", *(three(own.get(key)) for own in fixed), _FIXED_BOXES] for key in ("mAP", "NDS")]
        return rows
    limits = sorted({int(found[1]) for result in results for key in result if (found := re.fullmatch(r"AR(\d+)", key))})
    recalls = [(f"AR{n}", f"AR{n}", f"recall, mean over IoU, of the best {n} per image and class") for n in limits]
    given = any(result.get("threshold") != result["best_threshold"] for result in results if "threshold" in result)
    entries = (*_SCORES, *recalls, *(entry for entry in _AT_THRESHOLD if given or entry[0] != "threshold"))
    rows = [[name, *(three(result.get(key)) for result in results), meaning] for key, name, meaning in entries]
    fixed = [result.get("median_box") or {} for result in results]
    if any(fixed):
        rows[len(_SCORES) : len(_SCORES)] = [
            [f"{key} of median boxes", *(three(own.get(key)) for own in fixed), _MEDIAN_BOX] for key in ("AP", "AP50")
        ]
    return rows


def classes(run: RunFiles) -> dict[str, Any]:
    """Columns, and as rows the best first: name, AP, AP as a bar, AP50, precision, recall (of scenes the errors in place of these), boxes
    and, if known, training boxes of every class."""
    found = run.result.get("classes" if run.of_scenes else "per_class", [])
    trained = run.data.get("splits", {}).get("train", {}).get("per_class", [])
    measured = ["AP@2", *(e for e in _CLASS_ERRORS if any(e in row for row in found))] if run.of_scenes else ["AP50", "precision", "recall"]
    rows = []
    for i, item in enumerate(found):
        counts = [item["objects"], *(trained[i : i + 1] if len(trained) == len(found) else [])]
        if not any(counts) and item.get("precision") is None and not run.of_scenes:
            continue  # the data does not list it
        rates = [three(item.get(key)) for key in measured]
        rows.append([class_name(item["name"]), three(item["AP"]), item["AP"], *rates, *map(number, counts)])
    columns = ["class", "AP", "", *measured, f"{split_title(run.split)} boxes", *["training boxes"] * (len(trained) == len(found))]
    return {"columns": columns, "rows": sorted(rows, key=lambda row: -1 if row[2] is None else row[2], reverse=True)} if rows else {}


def errors(run: RunFiles) -> dict[str, Any]:
    """``analysis.json`` of the split: the confusion matrix in shades, or the most frequent confusions of many classes; curves; TIDE."""
    found = run.analysis.get(run.split)
    if not found or not found["curves"]:
        return {}
    names, matrix = [*map(class_name, found["confusion"]["names"]), "background"], found["confusion"]["matrix"]
    shown: dict[str, Any] = {"threshold": found["threshold"], "matrix": [], "confused": []}
    if found["threshold"] is not None and len(names) <= _MATRIX + 1:
        shown["columns"] = [*names[:-1], "not found"]
        shown["matrix"] = [(name, [(n, _shade(n, row)) for n in row]) for name, row in zip(names, matrix, strict=True)]
    elif found["threshold"] is not None:
        pairs = [(n, i, j) for i, row in enumerate(matrix[:-1]) for j, n in enumerate(row[:-1]) if n and i != j]
        shown["confused"] = [[names[i], names[j], number(n)] for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:_CONFUSED]]
    gains = sorted(found["tide"], key=lambda row: -row["AP50_gain"])
    shown["tide"] = [[row["type"], three(row["AP50_gain"]), row["AP50_gain"], number(row["count"]), _TIDE[row["type"]]] for row in gains]
    shown["charts"] = [_precision_by_recall(found["curves"])]
    return shown


def _shade(count: int, row: Sequence[int]) -> int:
    """0 to 4: how large a share of its row."""
    return -(-4 * count // max(sum(row), 1))


def _precision_by_recall(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Of the mean and of each class, where they are few, else of the best and the worst."""
    lines = {class_name(curve["name"]): curve["precision"] for curve in sorted(curves, key=lambda curve: -curve["AP50"])}
    mean = [sum(column) / len(column) for column in zip(*lines.values(), strict=True)]
    few = list(lines.items()) if len(lines) <= _CURVES_SHOWN else [*lines.items()][:3] + [*lines.items()][-3:]
    drawn = {"mean": mean, **dict(few)} if len(lines) > 1 else dict(few)
    points = {name: [(float(x), y) for x, y in enumerate(line) if not x or line[x - 1] > 0] for name, line in drawn.items()}
    note = "IoU 0.5, interpolated as in COCO" + ("; mean, three best and three worst classes" if len(lines) > _CURVES_SHOWN else "")
    return (
        line_chart(points, title="Precision by recall", unit="recall %", x_range=(0, 100), last=False, width=560, height=300),
        "Precision by recall",
        note,
    )


def transfer(run: RunFiles) -> dict[str, Any]:
    """What was taken over from a trained model, part by part and class by class."""
    found = run.transfer
    if not found:
        return {}
    keys = ("kept", "moved", "new")
    parts = [[part["name"], *(number(part[key] or None) for key in keys), "; ".join(part["how"])] for part in found["groups"]]
    origins = {class_name(name): None if origin is None else class_name(origin) for name, origin in found["classes"].items()}
    known = [name if name == origin else f"{name} (from {origin})" for name, origin in origins.items() if origin]
    return {**found, "parts": parts, "known": known, "new": [name for name, origin in origins.items() if not origin]}


def pictures(run: RunFiles) -> dict[str, list[dict[str, Any]]]:
    """Kind -> ground truth and predictions of its images, and what was right and wrong; images whose files are missing are left out."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in run.pictures.get("pictures", []):
        objects = Counter(class_name(item["name"]) for item in entry["truth"] if not item["ignore"])
        texts = {
            "truth": ", ".join(f"{count} {name}" for name, count in objects.items()) or "no objects",
            "prediction": ", ".join(f"{class_name(p['name'])} {p['score']:.2f}" for p in entry["predictions"][:12]) or "nothing",
        }
        files = {side: run.folder / entry[f"{side}_file"] for side in texts}
        if all(map(Path.is_file, files.values())):
            sides = [(side, files[side].read_bytes(), text) for side, text in texts.items()]
            kinds.setdefault(entry["kind"], []).append({**entry, "sides": sides, "verdict": _verdict(entry)})
    return kinds


def _verdict(entry: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Outcome, how often, and the names of the classes."""
    found = {outcome: Counter() for outcome in (*_OUTCOMES, "ignored")}
    found["missed"].update(class_name(item["name"]) for item in entry["truth"] if item["missed"])
    for item in entry["predictions"]:
        name = class_name(item["name"])
        if item["outcome"] == "wrong class":
            name = f"{class_name(entry['truth'][item['object']]['name'])} taken for {name}"
        found[item["outcome"]][name] += 1
    texts = {o: ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in found[o].items()) for o in _OUTCOMES}
    return [(outcome, found[outcome].total(), text) for outcome, text in texts.items() if text]


def dataset(run: RunFiles) -> dict[str, Any]:
    """``data.json``, with its counts as rows."""
    keys = ("images", "empty_images", "objects", "ignored")
    rows = [[split_title(name), *(number(split[key]) for key in keys)] for name, split in run.data.get("splits", {}).items()]
    return {**run.data, "rows": rows, "unit": run.unit} if run.data else {}


def check(run: RunFiles) -> dict[str, Any]:
    """``check.json``, with its picture."""
    picture = run.folder / str(run.check.get("picture"))
    if not picture.is_file():
        return {**run.check, "image": None} if run.check else {}
    with Image.open(picture) as image:
        return {**run.check, "image": encode(image), "width": image.width, "height": image.height}


def settings(run: RunFiles) -> Rows:
    """``config.yaml`` as dotted names and text."""
    return [[key, _setting(value)] for key, value in flatten(run.config) if key not in ("command", "command_by_minutes")]


def flatten(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names, in their order; an empty mapping is left out."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item


def _setting(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
