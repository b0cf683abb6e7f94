"""The report of a run: one HTML file without references to anything outside, made from the files of the run folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from boxquery.files import atomic_write
from boxquery.pages.format import DASH, duration, split_title
from boxquery.pages.html import document
from boxquery.report.health import checked, diagnosis
from boxquery.report.run_files import RunFiles, read_run
from boxquery.report.sections import (
    alignment,
    classes,
    curves,
    data,
    main_evaluation,
    name_of,
    pictures,
    scores,
    transferred,
)  # fmt: skip

_CHIPS = 30  # class names shown at the top


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder.

    Reads config.yaml, metrics.csv, evaluation.json, data.json, pictures.json, pictures/, transfer.json, check.json and diagnosis.json; what
    is missing is left out of the page.

    Returns:
        The path of the report, replaced whole.

    Raises:
        UserError: no such folder, or one of the files cannot be understood.
    """
    known = read_run(run)
    sections = (headline, diagnosis, curves, alignment, scores, classes, pictures, transferred, data, checked, configuration)
    body = "\n".join(text for section in sections if (text := section(known)))
    return atomic_write(run / "report.html", document(_title(known), body, "Made by boxquery from the files of this run folder."))


def _title(run: RunFiles) -> str:
    model = str(run.config.get("model") or run.folder.resolve().name)
    source = _source(run)
    return f"{model} on {source}" if source else model


def _source(run: RunFiles) -> str:
    """The data's own name: the last part of what the user gave."""
    source = run.config.get("data") or run.data.get("source") or ""
    return str(source).rstrip("/").rsplit("/", 1)[-1]


def headline(run: RunFiles) -> str:
    """Which model on which data, how good in a sentence, the main numbers, and what it finds."""
    split, result = main_evaluation(run)
    options = run.config.get("options")
    backbone = options.get("backbone") if isinstance(options, Mapping) else None
    by = [run.config.get("preset") and f"preset {run.config['preset']}", backbone or run.config.get("backbone")]
    by += [f"seed {run.config['seed']}"] if run.config.get("seed") is not None else []
    line = f'<p class="by">{escape(" · ".join(str(part) for part in by if part))}</p>'
    names = [item["name"] for item in (result or {}).get("per_class") or []] or run.data.get("names") or []
    chips = "".join(f"<li>{name_of(name)}</li>" for name in names[:_CHIPS])
    more = f"<li>and {len(names) - _CHIPS:,} more</li>" if len(names) > _CHIPS else ""
    finds = f'<p class="finds">It looks for {_count(len(names), "class", "classes")}</p><ul class="classes">{chips}{more}</ul>'
    finds = finds if names else ""
    lead = f'<p class="lead">{_sentence(split, result, run)}</p>'
    return f'<header id="headline"><h1>{escape(_title(run))}</h1>{line}{lead}{_facts(run, result)}{finds}</header>'


def _count(value: int, one: str, many: str) -> str:
    return f"{value:,} {one if value == 1 else many}"


def _sentence(split: str, result: dict[str, Any] | None, run: RunFiles) -> str:
    if result is None:
        if not run.epochs:
            return "Nothing was measured in this run yet."
        return f"Trained for {_count(len(run.epochs), 'epoch', 'epochs')}; not evaluated yet."
    images = f"the {_count(result['images'], 'image', 'images')} of the {escape(split_title(split))} split"
    if not result["objects"]:
        return f"There are no objects in {images}, so there is nothing to measure accuracy on."
    if result["best_threshold"] is None:
        return f"It finds nothing yet: in {images}, no detection overlaps an object of its class by half."
    found, right = 100 * result["recall"], 100 * result["precision"]
    return (
        f"At a score threshold of {result['best_threshold']:.2f} it finds <b>{found:.0f} %</b> of the "
        f"{_count(result['objects'], 'object', 'objects')} in {images}, and <b>{right:.0f} %</b> of the boxes it draws are right."
    )


def _facts(run: RunFiles, result: dict[str, Any] | None) -> str:
    def fact(name: str, value: str, small: str = "", main: bool = False) -> str:
        return f"<div{' class=main' if main else ''}><dt>{name}</dt><dd>{value}{f' <small>{small}</small>' if small else ''}</dd></div>"

    facts = []
    if result is not None:
        for key in ("AP", "AP50", "AP75"):
            facts.append(fact(key, DASH if result.get(key) is None else f"{result[key]:.3f}", main=key == "AP"))
        rate = result.get("duplicate_rate")
        facts.append(fact("Duplicates", DASH if rate is None else f"{100 * rate:.1f}", "" if rate is None else "%"))
    if run.epochs:
        last = run.epochs[-1]
        planned = run.config.get("epochs")
        done = f"{last.get('epoch', len(run.epochs)):g}"
        facts.append(fact("Epochs", done, f"of {planned}" if isinstance(planned, int) and f"{planned}" != done else ""))
        if "seconds" in last:
            facts.append(fact("Training time", duration(last["seconds"])))
    train = (run.data.get("splits") or {}).get("train")
    if train:
        facts.append(fact("Trained on", f"{train['images']:,}", "images"))
    return f'<dl class="facts">{"".join(facts)}</dl>' if facts else ""


def flatten(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names, in their order; an empty mapping is left out."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item


def configuration(run: RunFiles) -> str:
    """Every setting, and the command to repeat the run."""
    if not run.config:
        return ""
    command = f"<pre><code>{escape(str(run.config['command']))}</code></pre>" if run.config.get("command") else ""
    settings = [(key, value) for key, value in flatten(run.config) if key != "command"]
    rows = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(_setting(value))}</td></tr>' for key, value in settings)
    table = f'<div class="scroll"><table class="config"><caption>config.yaml</caption><tbody>{rows}</tbody></table></div>'
    return f'<section id="configuration"><h2>To repeat it</h2>{command}<h3>Configuration</h3>{table}</section>'


def _setting(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
