"""A page is one file that allows what it was written with, and nothing else."""

import base64
import hashlib
import json
import re

import pytest

from boxquery.pages.html import document, picture, standalone


def policy(page: str) -> dict[str, str]:
    (found,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    return dict(part.strip().split(" ", 1) for part in found.split(";"))


def allows(page: str, what: str, tag: str) -> bool:
    """Whether the policy names the only element of its kind, and nothing more."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
    return policy(page)[what] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_only_its_own_style_and_script_are_allowed():
    page = standalone("a", "<p>b</p>", style="p { color: red; }", script="start();", data={"x": 1})
    assert set(policy(page)) == {"default-src", "img-src", "style-src", "script-src"}
    assert policy(page)["default-src"] == "'none'"
    assert policy(page)["img-src"] == "data:"
    assert allows(page, "style-src", "style")
    assert allows(page, "script-src", "script")


def test_without_a_script_none_may_run():
    page = document("a", "<p>b</p>", style="p { color: red; }")
    assert set(policy(page)) == {"default-src", "img-src", "style-src"}
    assert allows(page, "style-src", "style")
    assert "<script" not in page


def test_text_and_data_cannot_leave_their_place():
    bad = "</title></script><b>"
    page = standalone(bad, "", style="", script="1", data={"name": bad})
    assert bad not in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(data) == {"name": bad}
    assert bad not in document("a", "", made=bad)
    assert 'alt="a &quot;b&quot; &lt;c&gt;"' in picture(b"x", (1, 2), 'a "b" <c>')
    with pytest.raises(ValueError, match="JSON"):
        standalone("a", "", style="", data=float("nan"))
