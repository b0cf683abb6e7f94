"""Standalone pages: one HTML file that loads nothing from outside and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from boxquery.errors import count
from boxquery.pages.format import class_name, duration, number, split_title, three
from boxquery.pages.images import data_uri, encode

_TEMPLATES = Path(__file__).with_name("templates")
_ENVIRONMENT = Environment(loader=PackageLoader("boxquery.pages"), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True)


def render(template: str, *, styles: Sequence[str] = ("style.css",), script: str | None = None, data: Any = None, **context: Any) -> str:
    """A standalone page from a template that extends ``base.html``.

    Strings of the context are text: the template escapes them. HTML must be ``Markup``.

    Args:
        styles: CSS files of templates/, after base.css.
        script: a JavaScript file of templates/, run after the body.
        data: JSON for the script, in the element ``data``. ValueError if it holds NaN or inf.
        context: the template's variables; a missing one raises UndefinedError.
    """
    style = "".join(_read(name) for name in ("base.css", *styles))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'"
    code = _read(script) if script else ""
    if code:
        policy += f"; script-src '{_hash(code)}'"
    text = "" if data is None else json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return render_part(template, **context, page={"policy": policy, "style": style, "script": code, "data": text})


def render_part(template: str, **context: Any) -> Markup:
    """A part of a page."""
    return Markup(_ENVIRONMENT.get_template(template).render(context))


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


_FILTERS = (class_name, count, data_uri, duration, encode, number, split_title, three)
_ENVIRONMENT.filters.update({function.__name__: function for function in _FILTERS})
