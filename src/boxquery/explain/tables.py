"""Pages about a data set in the look of the run report: HTML that needs no script and no other file. Does not import torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from boxquery.pages.charts import bar
from boxquery.pages.html import document, picture

_STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 28px 24px; margin: 16px 0 0; }
.cards.maps { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.cards figure { break-inside: avoid; min-width: 0; }
.cards img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--track); }
.cards figcaption { margin: 8px 0 0; color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.cards figcaption span { display: block; color: var(--soft); font-weight: 400; }
.maps img { background: none; border: 1px solid var(--faint); }
td.b { min-width: 90px; vertical-align: middle; }
tbody th { min-width: 120px; }
@media (max-width: 760px) {
  .b { display: none; }
  th, td { padding-right: 12px; }
  tbody th { min-width: 84px; }
  td.wordy { min-width: 160px; }
}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page; ``title`` is text, ``parts`` HTML."""
    return document(title, "\n".join(parts), style=_STYLE)


def headline(title: str, by: str, lead: str, skipped: Sequence[str] = ()) -> str:
    """``title``, ``by`` and the lines about images that were ``skipped`` are text, ``lead`` HTML."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in skipped)
    count = "1 image" if len(skipped) == 1 else f"{len(skipped):,} images"
    left_out = f"<details><summary>{count} could not be read: left out of all counts</summary><ul>{lines}</ul></details>" if skipped else ""
    return f'<header><h1>{escape(title)}</h1><p class="by">{escape(by)}</p><p class="lead">{lead}</p>{left_out}</header>'


def section(name: str, title: str, hint: str, body: str) -> str:
    """``name`` is the anchor, ``title`` and ``hint`` text, ``body`` HTML."""
    return f'<section id="{name}"><h2>{escape(title)}</h2><p class="hint">{escape(hint)}</p>{body}</section>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str | float]], *, words: int | None = None) -> str:
    """A table whose first column names the rows.

    A cell is text, set to the right like a number, or a float in [0, 1], drawn as a bar, whose column has no head and is left out on
    phones. ``words``: the one other column of prose.
    """
    kinds = ["" if place in (0, words) else " class=n" if head else " class=b" for place, head in enumerate(heads)]
    top = "".join(f'<th scope="col"{kind}>{escape(head)}</th>' for head, kind in zip(heads, kinds, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(_cell(cell, place == words) for place, cell in enumerate(rest, 1))
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    kind = ' class="dense"' if len(rows) > 20 else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(cell: str | float, words: bool) -> str:
    if isinstance(cell, str):
        return f'<td class="{"wordy" if words else "n"}">{escape(cell)}</td>'
    return f'<td class="b">{bar(cell)}</td>'


def card(image: Image.Image, title: str, text: str) -> str:
    """A picture with its caption; photographs are stored as JPEG, pictures with transparency as PNG."""
    stream, form = io.BytesIO(), "PNG" if image.mode == "RGBA" else "JPEG"
    image.save(stream, form, optimize=True, **({} if form == "PNG" else {"quality": 82}))
    shown = picture(stream.getvalue(), image.size, f"{title}: {text}", form.lower())
    return f"<figure>{shown}<figcaption>{escape(title)} <span>{escape(text)}</span></figcaption></figure>"


def cards(figures: Sequence[str], *, maps: bool = False) -> str:
    """Cards side by side; ``maps`` are small."""
    return f'<div class="cards{" maps" if maps else ""}">{"".join(figures)}</div>'
