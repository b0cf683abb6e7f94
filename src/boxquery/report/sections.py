"""The parts of the report that show results: curves, scores, classes, pictures. Each returns HTML, "" where there is nothing to show."""

from __future__ import annotations

import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from boxquery.pages.charts import bar, line_chart
from boxquery.pages.format import DASH, number, split_title, three
from boxquery.pages.html import picture
from boxquery.report.run_files import RunFiles

_LINES = 200  # of skipped input shown

_SCORES = (
    ("AP", "average precision, mean over IoU 0.50 to 0.95: COCO's main number"),
    ("AP50", "a box is right from IoU 0.50"),
    ("AP75", "a box is right from IoU 0.75: how well boxes fit"),
    ("APs", "objects smaller than 32² pixels"),
    ("APm", "objects from 32² to 96² pixels"),
    ("APl", "objects larger than 96² pixels"),
)
_AT_THRESHOLD = (
    ("best_threshold", "Best threshold", "the score at which F1 is highest (IoU 0.5, all classes)"),
    ("f1", "F1", "there: precision and recall in one number"),
    ("precision", "Precision", "there: the share of drawn boxes that are right"),
    ("recall", "Recall", "there: the share of objects that are found"),
    ("duplicate_rate", "Duplicates", "there: the share of boxes on an object that already has a better one"),
    ("false_positives_per_empty_image", "False per empty image", "there: boxes drawn per image that holds nothing"),
)


def name_of(name: object) -> str:
    """A class name, escaped; a slot without one says so."""
    return escape(_spoken(name))


def _spoken(name: object) -> str:
    return "(no name)" if name is None else str(name) or "(empty name)"


def _row(head: str, *cells: str) -> str:
    return f'<tr><th scope="row">{head}</th>{"".join(cells)}</tr>'


def _cell(text: str) -> str:
    return f'<td class="n">{text}</td>'


def _heads(*names: str) -> str:
    """Table headers: the first column is words, the others are numbers."""
    cells = [f'<th scope="col"{"" if place == 0 else " class=n"}>{name}</th>' for place, name in enumerate(names)]
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def curves(run: RunFiles) -> str:
    """Accuracy, loss, its terms, learning rate and duplicates by epoch; the numbers themselves folded below."""
    if not run.epochs:
        return ""
    charts = [
        _curve(run, "Accuracy", "on the validation split; the ring marks the best", ("AP", "AP50", "AP75"), best="AP"),
        _curve(run, "Loss", "weighted sum of all terms", ("loss", "val_loss")),
        _curve(run, "Terms of the loss", "not weighted", ("class", "l1", "giou")),
        _curve(run, "Learning rate", "", ("lr",)),
        _curve(run, "Duplicate rate", "", ("duplicate_rate",)),
    ]
    large, small = [chart for chart in charts[:2] if chart], [chart for chart in charts[2:] if chart]
    parts = []
    for group in (large, small):
        kind = {1: "full" if group is large else "wide", 2: "wide"}.get(len(group), "")
        parts += [f'<figure class="{kind}">{chart}</figure>' for chart in group]
    if parts:
        body = f'<p class="hint">One point per epoch.</p><div class="charts">{"".join(parts)}</div>{_log(run, False)}'
    else:
        body = f'<p class="hint">Curves appear from the second epoch on.</p>{_log(run, True)}'
    return f'<section id="curves"><h2>Training</h2>{body}</section>'


def _curve(run: RunFiles, title: str, note: str, columns: tuple[str, ...], best: str | None = None) -> str:
    series = _lines(run, {column: column for column in columns})
    if not series:
        return ""
    width, height = (420, 235) if best or "loss" in columns else (340, 215)
    chart = line_chart(series, title=f"{title} by epoch", best=best, width=width, height=height)
    return f"<figcaption>{title} <span>{note}</span></figcaption>{chart}"


def _lines(run: RunFiles, columns: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """Name of the line -> its column, as name -> points by epoch; columns with fewer than two are left out."""
    lines = {}
    for name, column in columns.items():
        points = {row.get("epoch", float(place)): row[column] for place, row in enumerate(run.epochs, 1) if column in row}
        if len(points) > 1:  # by epoch: of rows that a resumed run wrote again, the later one counts
            lines[name] = sorted(points.items())
    return lines


_ALIGNMENT = (
    ("inside", "Read inside the object", "share of the attention; dashed: even", "inside_even"),
    ("entropy", "Spread of the reading", "1: even, 0: one cell", None),
    ("distance", "From reference to object", "to its centre, in diagonals of the image", None),
)
_SHADES = 6  # of the lines of layers in style.css


def alignment(run: RunFiles) -> str:
    """What the queries that found the objects read, by layer and epoch, where it was measured."""
    layers = sorted({int(found[1]) for row in run.epochs for name in row if (found := re.fullmatch(r"inside_(\d+)", name))})
    shades = {f"layer {n}": f"k{round(i * (_SHADES - 1) / max(len(layers) - 1, 1))}" for i, n in enumerate(layers)}
    figures = []
    for measure, title, note, even in _ALIGNMENT:
        columns = {f"layer {n}": f"{measure}_{n}" for n in layers} | ({"even": even} if even else {})
        figures.append((title, note, _lines(run, columns), {**shades, "even": "even"}))
    figures.append(("Objects that changed their query", "share since the epoch before", _lines(run, {"changes": "query_changes"}), None))
    figures = [figure for figure in figures if figure[2]]
    if not figures:
        return ""
    kind, size = ("", (340, 235)) if len(figures) == 3 else ("wide", (420, 250))
    charts = "".join(
        f'<figure class="{kind}"><figcaption>{title} <span>{note}</span></figcaption>'
        + str(line_chart(series, title=f"{title} by epoch", kinds=kinds, width=size[0], height=size[1]))
        + "</figure>"
        for title, note, series, kinds in figures
    )
    hint = (
        "How each object's query read the image, measured after every epoch on a few validation images: a query that is aligned with its "
        "object reads inside its box far more than the dashed line, in few cells, and stays with that object from one epoch to the next."
    )
    return f'<section id="alignment"><h2>What queries read</h2><p class="hint">{hint}</p><div class="charts">{charts}</div></section>'


def _log(run: RunFiles, unfolded: bool) -> str:
    columns = list(dict.fromkeys(column for row in run.epochs for column in row))
    rows = []
    for place, row in enumerate(run.epochs, 1):
        head = f"{row.get('epoch', place):g}"
        rows.append(_row(head, *(_cell(number(row[name]) if name in row else DASH) for name in columns if name != "epoch")))
    heads = _heads("epoch", *(escape(name) for name in columns if name != "epoch"))
    table = f'<div class="scroll"><table class="log">{heads}<tbody>{"".join(rows)}</tbody></table></div>'
    return f"<details{' open' if unfolded else ''}><summary>All numbers by epoch</summary>{table}</details>"


def scores(run: RunFiles) -> str:
    """The table of summary numbers, a column per evaluated split."""
    if not run.evaluation:
        return ""
    splits = list(run.evaluation)
    results = list(run.evaluation.values())
    rows = []
    recalls = [(f"AR{limit}", f"recall, mean over IoU, of at most {limit} per image and class") for limit in _limits(results)]
    for key, meaning in (*_SCORES, *recalls):
        rows.append(_row(key, *(_cell(three(result.get(key))) for result in results), f'<td class="wordy wide-only">{meaning}</td>'))
    for key, title, meaning in _AT_THRESHOLD:
        rows.append(_row(title, *(_cell(three(result.get(key))) for result in results), f'<td class="wordy wide-only">{meaning}</td>'))
    heads = _heads("", *(escape(split_title(name)) for name in splits)).replace("</tr>", '<th scope="col" class="wide-only"></th></tr>')
    cut = sum(result.get("truncated") or 0 for result in results)
    note = f'<p class="note">{cut} detections beyond the limit per image and class were not counted.</p>' if cut else ""
    counts = "; ".join(
        f"{escape(split_title(name))}: {result.get('images', 0):,} images, {result.get('objects', 0):,} objects"
        + (f" and {result['ignored']:,} ignored" if result.get("ignored") else "")
        for name, result in run.evaluation.items()
    )
    caption = f"<caption>{counts}. {DASH} means there is nothing to measure it on.</caption>"
    table = f"<table>{caption}{heads}<tbody>{''.join(rows)}</tbody></table>"
    return f'<section id="scores"><h2>Scores</h2>{table}{note}</section>'


def _limits(results: list[dict[str, Any]]) -> list[int]:
    return sorted({int(key[2:]) for result in results for key in result if key.startswith("AR") and key[2:].isdigit()})


def classes(run: RunFiles) -> str:
    """Every class of the validation split (or the first one evaluated), the best first, beside its number of training boxes."""
    split, result = main_evaluation(run)
    table = (result or {}).get("per_class")
    if not table:
        return ""
    taught = (run.data.get("splits") or {}).get("train", {}).get("per_class") or []
    taught = taught if len(taught) == len(table) else []
    order = sorted(range(len(table)), key=lambda i: -1 if table[i]["AP"] is None else table[i]["AP"], reverse=True)
    rows = []
    for i in order:
        item = table[i]
        cells = [_cell(three(item["AP"])), f'<td class="b">{bar(item["AP"])}</td>', _cell(three(item["AP50"]))]
        counts = [item["objects"], *taught[i : i + 1]]
        rows.append(_row(name_of(item["name"]), *cells, *(_cell(f"{count:,}") for count in counts)))
    heads = _heads("class", "AP", "", "AP50", f"{escape(split_title(split))} boxes", *(["training boxes"] if taught else []))
    kind = "classtable dense" if len(table) > 20 else "classtable"
    body = f'<div class="scroll"><table class="{kind}">{heads}<tbody>{"".join(rows)}</tbody></table></div>'
    hint = f'<p class="hint">On the {escape(split_title(split))} split, best first.</p>'
    return f'<section id="classes"><h2>By class</h2>{hint}{body}</section>'


def transferred(run: RunFiles) -> str:
    """What a run that started from a trained model took over, part by part and class by class."""
    found = run.transfer
    if not found:
        return ""
    rows = []
    for group in found["groups"]:
        counts = (_cell(f"{group[key]:,}" if group[key] else DASH) for key in ("kept", "moved", "new"))
        rows.append(_row(escape(group["name"]), *counts, f'<td class="wordy">{escape("; ".join(group["how"]))}</td>'))
    heads = _heads("part", "kept", "moved", "new").replace("</tr>", '<th scope="col"></th></tr>')
    table = f'<div class="scroll"><table class="taken">{heads}<tbody>{"".join(rows)}</tbody></table></div>'
    known = {name: origin for name, origin in found["classes"].items() if origin is not None}
    named = ", ".join(name_of(name) + ("" if name == origin else f" (there {name_of(origin)})") for name, origin in known.items())
    new = ", ".join(name_of(name) for name in found["classes"] if name not in known)
    words = [f"Classes that the source knew: {named or 'none'}. New: {new or 'none'}."]
    if found["notes"]:
        words.append(f"Other than there: {escape('; '.join(found['notes']))}.")
    if found["unused"]:
        words.append(f"{len(found['unused']):,} tensors of the source have no place here.")
    words.append(f"Stem, first stage and batch norm of the backbone are {'frozen' if found['frozen'] else 'trained on'}.")
    hint = f"Numbers that this run took over from {escape(found['from'])}; moved: from another row, level or layer."
    return (
        f'<section id="transfer"><h2>Where it started</h2><p class="hint">{hint}</p>{table}<p class="note">{" ".join(words)}</p></section>'
    )


def main_evaluation(run: RunFiles) -> tuple[str, dict[str, Any] | None]:
    """The split that the page speaks of: val, else the first that was evaluated, else ("val", None)."""
    if not run.evaluation:
        return "val", None
    split = "val" if "val" in run.evaluation else next(iter(run.evaluation))
    return split, run.evaluation[split]


def pictures(run: RunFiles) -> str:
    """Typical and worst images, the truth beside the prediction."""
    entries = run.pictures.get("pictures") or []
    threshold = run.pictures.get("threshold")
    split = escape(split_title(str(run.pictures.get("split", "val"))))
    parts = []
    for kind, title, hint in (
        ("typical", "Typical", "Images of about the median quality."),
        ("worst", "Worst", "The images with the most and gravest mistakes. Look here first: is it the model, or the annotation?"),
    ):
        pairs = [_pair(run.folder, entry) for entry in entries if entry.get("kind") == kind]
        pairs = [pair for pair in pairs if pair]
        if pairs:
            parts.append(f'<h3>{title}</h3><p class="hint">{hint}</p><div class="pairs">{"".join(pairs)}</div>')
    if not parts:
        return ""
    seen = f"score of {threshold:.2f}, the best threshold" if threshold is not None else "score of 0.50"
    note = f"From the {split} split. Predicted boxes are those from a {seen}; dashed in the prediction: missed."
    if any(item["ignore"] for entry in entries for item in entry["truth"]):
        note += " Dashed in the truth: ignored, neither right nor wrong."
    return f'<section id="pictures"><h2>Truth and prediction</h2><p class="hint">{note}</p>{"".join(parts)}</section>'


def _pair(folder: Path, entry: dict[str, Any]) -> str:
    title = str(entry["title"])
    truth = [item for item in entry["truth"] if not item["ignore"]]
    there = ", ".join(f"{count} {_spoken(name)}" for name, count in Counter(item["name"] for item in truth).items()) or "no objects"
    said = ", ".join(f"{_spoken(item['name'])} {item['score']:.2f}" for item in entry["predictions"][:12]) or "nothing"
    sides = []
    for side, file, text in (("truth", entry["truth_file"], there), ("prediction", entry["prediction_file"], said)):
        path = folder / file
        if not path.is_file():
            return ""
        shown = picture(path.read_bytes(), (entry["width"], entry["height"]), f"{title}, {side}: {text}")
        sides.append(f"<div><p>{side}</p>{shown}</div>")
    kind = "pair tall" if entry["height"] > 1.1 * entry["width"] else "pair"
    caption = f"<figcaption>{escape(title)} <span>· {_verdict(entry)}</span></figcaption>"
    return f'<figure class="{kind}"><div>{"".join(sides)}</div>{caption}</figure>'


def _verdict(entry: dict[str, Any]) -> str:
    """What was right and what went wrong, with names."""
    groups: dict[str, list[str]] = {"missed": [name_of(item["name"]) for item in entry["truth"] if item["missed"]]}
    for item in entry["predictions"]:
        name = name_of(item["name"])
        if item["outcome"] == "wrong class":
            name = f"{name_of(entry['truth'][item['object']]['name'])} taken for {name}"
        groups.setdefault(item["outcome"], []).append(name)
    parts = []
    if right := groups.get("right"):
        parts.append(f'<b class="good">{len(right)} right</b>')
    for word in ("missed", "false", "wrong class", "misplaced", "duplicate"):
        if found := groups.get(word):
            names = ", ".join(name + (f" ×{count}" if count > 1 else "") for name, count in Counter(found).items())
            parts.append(f'<b class="bad">{len(found)} {word}</b> ({names})')
    if not parts:
        parts.append("nothing there, and nothing said" if not entry["truth"] else "nothing to judge")
    return f"{' · '.join(parts)} · F1 {entry['f1']:.2f}"


def data(run: RunFiles) -> str:
    """The splits, what was decided about the data, and what was left out."""
    if not run.data:
        return ""
    rows = "".join(
        _row(escape(split_title(name)), *(_cell(f"{facts.get(key, 0):,}") for key in ("images", "empty_images", "objects", "ignored")))
        for name, facts in (run.data.get("splits") or {}).items()
    )
    heads = _heads("split", "images", "of them empty", "boxes", "ignored boxes")
    table = f'<table class="narrow">{heads}<tbody>{rows}</tbody></table>'
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in run.data.get("notes") or [])
    skipped = run.data.get("skipped") or []
    lines = "".join(f"<li>{escape(str(line))}</li>" for line in skipped[:_LINES])
    lines += f"<li>and {len(skipped) - _LINES:,} more</li>" if len(skipped) > _LINES else ""
    title = "1 thing was" if len(skipped) == 1 else f"{len(skipped):,} things were"
    left_out = f"<details><summary>{title} left out of the data</summary><ul>{lines}</ul></details>" if skipped else ""
    source = f"{escape(str(run.data.get('source', '')))}, read as {escape(str(run.data.get('format', '')).upper())}."
    listed = f'<ul class="plain">{notes}</ul>' if notes else ""
    nothing = "" if skipped else '<p class="note">Nothing was left out.</p>'
    return f'<section id="data"><h2>Data</h2><p class="hint">{source}</p>{table}{listed}{left_out}{nothing}</section>'
