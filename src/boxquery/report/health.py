"""What the check before training and the diagnosis during it said, as HTML: sections of a run's report, and the page of a check alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from boxquery.files import atomic_write
from boxquery.pages.html import document, picture
from boxquery.report.run_files import RunFiles, read_run
from boxquery.report.sections import data

_WORDS = {"doomed": "Stops a run", "warning": "Warning", "note": "Note"}
_QUALITY = 85


def diagnosis(run: RunFiles) -> str:
    """What the run said of itself, each thing once; "" where it had nothing to say."""
    said = run.diagnosis.get("findings") or []
    if not said:
        return ""
    hint = "Each is said once, at the epoch at which it first held, with the likely cause and what tests it."
    return f'<section id="diagnosis"><h2>Diagnosis</h2><p class="hint">{hint}</p>{_list(said)}</section>'


def checked(run: RunFiles) -> str:
    """What was found before the first epoch, and what the network was shown."""
    if not run.check:
        return ""
    said = run.check.get("findings") or []
    lead = "" if said else '<p class="note">Nothing spoke against training on this data.</p>'
    return f'<section id="check"><h2>Check before training</h2>{lead}{_list(said)}{_ahead(run.check)}{_picture(run)}</section>'


def write_page(folder: Path) -> Path:
    """``check.html`` from the ``check.json`` and ``check.png`` of a folder."""
    run = read_run(folder)
    run = replace(run, data=run.check.get("data") or {})
    source = str(run.data.get("source", "")).rstrip("/").rsplit("/", 1)[-1]
    head = f'<header id="headline"><h1>Check of {escape(source)}</h1></header>'
    return atomic_write(folder / "check.html", document(f"Check of {source}", "\n".join((head, checked(run), data(run)))))


def _list(findings: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for finding in findings:
        word = _WORDS.get(str(finding.get("level")), str(finding.get("level")))
        kind = "" if finding.get("level") == "note" else ' class="bad"'
        when = f" (epoch {finding['epoch']})" if finding.get("epoch") else ""
        remedy = f" <i>{escape(str(finding['remedy']))}</i>" if finding.get("remedy") else ""
        rows.append(f"<li><b{kind}>{escape(word)}{when}:</b> {escape(str(finding.get('text', '')))}{remedy}</li>")
    return f'<ul class="plain">{"".join(rows)}</ul>' if rows else ""


def _ahead(check: Mapping[str, Any]) -> str:
    ahead = check.get("ahead")
    if not isinstance(ahead, Mapping):
        return ""
    side, number = ahead["side_percentiles"], ahead["objects_an_image"]
    return (
        f'<p class="note">At {ahead["image_size"]} pixels objects are {side["0"]:g} to {side["100"]:g} pixels (median {side["50"]:g}); '
        f"a cell is {ahead['cell']}, and {100 * ahead['below_a_cell']:.0f} % of the objects are smaller. An image has {number['0']:g} to "
        f"{number['100']:g} objects (median {number['50']:g}), the model at most {ahead['queries']} answers.</p>"
    )


def _picture(run: RunFiles) -> str:
    path = run.folder / str(run.check.get("picture") or "")
    if not run.check.get("picture") or not path.is_file():
        return ""
    with Image.open(path) as image:
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=_QUALITY)
    shown = picture(stream.getvalue(), image.size, "Training images and boxes after augmentation")
    return (
        '<h3>What the network sees</h3><p class="hint">Training images with their boxes after augmentation. Do boxes and names fit?</p>'
        f'<div class="scroll">{shown}</div>'
    )
