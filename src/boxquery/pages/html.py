"""Pages that are one HTML file: nothing in them comes from outside, and nothing that is not known when they are written can run."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def standalone(title: str, body: str, *, style: str, script: str = "", data: Any = None) -> str:
    """A whole page; ``title`` is text, ``body`` HTML without styles or scripts of its own, which the page forbids.

    Args:
        style: CSS, after that which every page has (its colours, light and dark, and its letters).
        script: JavaScript that runs when the body is there.
        data: what the script reads as JSON from the element ``data``; None: there is none. No NaN: a ValueError.
    """
    style = Path(__file__).with_name("base.css").read_text(encoding="utf-8") + style
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'"
    if data is not None:
        text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        body += f'\n<script type="application/json" id="data">{text}</script>'
    if script:
        policy += f"; script-src '{_hash(script)}'"
        body += f"\n<script>{script}</script>"
    return _PAGE.format(policy=policy, title=escape(title), style=style, body=body)


def document(title: str, body: str, made: str = "Made by boxquery.", style: str = "") -> str:
    """A whole page in the look of the reports: ``title`` and ``made`` (by whom, of what) are text, ``body`` HTML, ``style`` more CSS."""
    house = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    foot = f"<footer>{escape(made)} This page needs no other file and no network.</footer>"
    return standalone(title, f"<main>\n{body}\n{foot}\n</main>", style=house + style)


def picture(data: bytes, size: tuple[int, int], text: str, form: str = "jpeg") -> str:
    """A picture in the page: the bytes of its file, its width and height, and in words (not HTML) what it shows."""
    source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    return f'<img width="{size[0]}" height="{size[1]}" src="{source}" alt="{escape(text)}">'


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
