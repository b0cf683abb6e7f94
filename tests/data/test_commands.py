"""Kinds of faults crossed with formats and layouts, through the commands: exit status, kept + skipped = given, and the words."""

import json
import re

import pytest

from boxquery.cli import run

from .writers import LAYOUTS, Thing, pictures


def box(*corners):
    return lambda images: images[2].things.append(Thing("cat", list(corners)))


def boxes_of_many(images):
    for picture in images[:8]:
        picture.things += [Thing("cat", [5, 5, 5, 9])] * 2


def missing(many):
    def spoil(images):
        for picture in images[:many]:
            picture.missing = True

    return spoil


def damaged(images):
    images[2].data = b"<html>404</html>"


KINDS = {  # what is done, exit status, words on stderr or stdout
    "no size": (box(5, 5, 5, 9), 0, r"skipped: .*: box has no size \("),
    "outside": (box(70, 5, 80, 9), 0, r"skipped: .*: box lies outside its image \(64 x 48"),
    "infinite": (box(5, 5, float("inf"), 9), 0, r"skipped: .*: box is not finite"),
    "many without size": (boxes_of_many, 2, r"error: .* boxes are invalid, more than 10%: box has no size: 16 of \d+ boxes; the first is "),
    "an image missing": (missing(1), 0, r"skipped: .*: no such file"),
    "many images missing": (
        missing(8),
        2,
        r"error: .*8 of 40 images are invalid, more than 10%: no such file: 8 of 40 images; the first is ",
    ),
    "not an image": (damaged, 0, r"skipped: .*: not an image"),
}


@pytest.mark.parametrize(
    ("kind", "writer"),
    [(kind, layout[0]) for i, kind in enumerate(KINDS) for j, layout in enumerate(LAYOUTS) if (i + j) % 2 == 0],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_kinds_in_layouts(tmp_path, monkeypatch, capsys, kind, writer):
    monkeypatch.chdir(tmp_path)
    spoil, status, words = KINDS[kind]
    images = pictures(40)
    for i, picture in enumerate(images):
        picture.size = picture.stated = (64, 48)
        picture.things.append(Thing("dog", [1, 1, 9 + i / 10, 9]))
    spoil(images)
    given = sum(len(picture.things) for picture in images)
    root = writer(tmp_path / "data", images)
    assert run(["check", str(root), "--out", str(tmp_path / "checked")]) == status
    text = "".join(capsys.readouterr())
    assert re.search(words, text), text
    assert "Traceback" not in text
    assert "No problem found" not in text
    assert not re.search(r"repair or remove|\(es\)|\(s\)", text)
    found = re.search(r"(\d+) of (\d+) boxes kept, (\d+) skipped", text)
    assert found, text
    kept, total, skipped = map(int, found.groups())
    assert kept + skipped == total == given
    if status == 0:
        facts = json.loads((tmp_path / "checked" / "check.json").read_text())["data"]
        assert sum(split["objects"] for split in facts["splits"].values()) == kept
        assert len(facts["skipped"]) == 1
