"""A page is one file that allows what it was written with, and nothing else."""

import base64
import hashlib
import json
import re

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from boxquery.pages.html import _ENVIRONMENT, render
from boxquery.pages.images import data_uri, encode


def policy(page: str) -> dict[str, str]:
    (found,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    return dict(part.strip().split(" ", 1) for part in found.split(";"))


def allows(page: str, what: str, tag: str) -> bool:
    """Whether the policy names the only element of its kind, and nothing more."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
    return policy(page)[what] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_only_its_own_style_and_script_are_allowed():
    page = render("base.html", title="a", script="explanation.js", data={"x": 1})
    assert set(policy(page)) == {"default-src", "img-src", "style-src", "script-src"}
    assert policy(page)["default-src"] == "'none'"
    assert policy(page)["img-src"] == "data:"
    assert allows(page, "style-src", "style")
    assert allows(page, "script-src", "script")


def test_without_a_script_none_may_run():
    page = render("base.html", title="a")
    assert set(policy(page)) == {"default-src", "img-src", "style-src"}
    assert policy(page)["img-src"] == "data:"
    assert allows(page, "style-src", "style")
    assert "<script" not in page


def test_the_context_is_text_and_complete():
    bad = "</title></script><b>"
    page = render("base.html", title=bad, data={"name": bad})
    assert bad not in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(data) == {"name": bad}
    with pytest.raises(ValueError, match="JSON"):
        render("base.html", title="a", data=float("nan"))
    with pytest.raises(UndefinedError, match="title"):
        render("base.html")


def macro(call: str, **values: object) -> str:
    return _ENVIRONMENT.from_string("{% import 'macros.html' as m %}{{ m." + call + " }}").render(values)


def test_table():
    rows = [["<a>", 1, None, "why & how"], ["b", Markup("<i>2</i>"), 0.5, ""]]
    text = macro("table(['', 'n', '', ''], rows, words=[3], bars=[2], kind='narrow', caption='c<')", rows=rows)
    cells = re.findall(r'<td class="(\w+)">(.*?)</td>', " ".join(text.split()))
    assert [kind for kind, _ in cells] == ["n", "b", "wordy"] * 2
    assert [cell for _, cell in cells[::3]] == ["1", "<i>2</i>"]
    assert (cells[1][1].strip(), cells[2][1]) == ("", "why &amp; how")
    assert 'width="50.0%"' in cells[4][1]
    assert re.findall(r'<th scope="row">(.*?)</th>', text) == ["&lt;a&gt;", "b"]
    assert "<caption>c&lt;</caption>" in text
    assert 'class="narrow"' in text
    assert 'class=" dense"' in macro("table(['a'], rows)", rows=[["x"]] * 21)


def test_bar_stays_in_its_cell():
    assert 'width="100.0%"' in macro("bar(1.5)")
    assert 'width="0.0%"' in macro("bar(-1)")


def test_pictures_are_part_of_the_page():
    png = encode(Image.new("RGBA", (4, 3)))
    text = macro("picture(data, 4, 3, text)", data=png, text='a "b" <c>')
    assert f'src="{data_uri(png)}"' in text
    assert 'width="4" height="3"' in text
    assert 'alt="a &#34;b&#34; &lt;c&gt;"' in text
