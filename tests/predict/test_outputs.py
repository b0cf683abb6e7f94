"""What ``boxquery predict`` writes: every kind of file says the same of the same boxes."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxquery.errors import UserError
from boxquery.predict.outputs import PLACES, ResultWriter, check_kinds, new_folder
from boxquery.predict.sources import Item, Source, find_sources
from boxquery.predict.summary import Summary
from boxquery.result import Result

CLASSES = ["red", None, "a/b: c", "=1+1", "A_B_ C", "..", "a,\nb"]


def result(*rows: tuple[float, float, float, float, float, int], size=(100, 200)) -> Result:
    table = np.array(rows, np.float64).reshape(-1, 6)
    labels = table[:, 5].astype(np.int64)
    image = Image.effect_noise(size[::-1], 80).convert("RGB")
    names, ids = [str(CLASSES[label]) for label in labels], [10 + int(label) for label in labels]
    return Result(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), labels, names, ids, size, None, image)


FOUND = result(
    (20, 10, 60, 30, 0.75, 0), (0, 0, 200, 100, 0.5, 2), (10, 10, 10.2, 99.9, 0.25, 3), (1, 1, 9, 9, 0.2, 4), (0, 0, 5, 5, 0.1, 6)
)
KINDS = ["pictures", "json", "txt", "xml", "csv", "crops"]
ITEM = Item(Source(Path("a.png"), "a.png", "a", "a"))


def write(out: Path, kinds=KINDS, fail=False) -> None:
    with ResultWriter(out, check_kinds(kinds), CLASSES) as writer:
        writer.add(Item(Source(Path("x/a.png"), "x/a.png", "x/a", "x/a")), FOUND)
        writer.add(Item(Source(Path("7.png"), "7.png", "7", 7)), result())
        if fail:
            raise UserError("the disk is full")


def test_all_kinds_hold_the_same_boxes(tmp_path):
    write(tmp_path / "out")
    out = tmp_path / "out"
    rows = json.loads((out / "predictions.json").read_text())
    assert [row["category_id"] for row in rows] == [10, 12, 13, 14, 16]
    assert {(row["image_id"], row["file_name"]) for row in rows} == {("x/a", "x/a.png")}
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == FOUND.names
    assert [float(table[0][name]) for name in ("x1", "y1", "x2", "y2", "width", "height")] == [20, 10, 60, 30, 200, 100]
    lines = (out / "labels/x/a.txt").read_text().splitlines()
    assert lines[0] == "0 0.200000 0.200000 0.200000 0.200000 0.75000"
    assert len(lines) == 5
    assert (out / "labels/7.txt").read_text() == ""
    assert (out / "classes.txt").read_text().split("\n") == ["red", "", "a/b: c", "=1+1", "A_B_ C", "..", "a, b", ""]
    assert sorted(str(path.relative_to(out)) for path in (out / "pictures").rglob("*.jpg")) == ["pictures/7.jpg", "pictures/x/a.jpg"]


def test_crops_are_one_per_box_in_folders_that_are_safe(tmp_path):
    write(tmp_path / "out", ["crops"])
    crops = {str(path.relative_to(tmp_path / "out/crops")): Image.open(path).size for path in tmp_path.rglob("*.jpg")}
    assert crops == {
        "red/x/a-0.jpg": (40, 20),
        "a_b_ c/x/a-1.jpg": (200, 100),
        "=1+1/x/a-2.jpg": (1, 90),
        "A_B_ C (4)/x/a-3.jpg": (8, 8),
        "a,_b/x/a-4.jpg": (5, 5),
    }


def test_nothing_is_left_where_writing_failed(tmp_path):
    with pytest.raises(UserError, match="the disk is full"):
        write(tmp_path / "out", fail=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="the disk is full"):
        write(tmp_path / "mine", fail=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_two_results_are_never_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_folder(None) == Path("predictions")
    write(Path("predictions"), ["csv"])
    assert new_folder(None) == Path("predictions-2")
    with pytest.raises(UserError, match=r"predictions: holds another result \(predictions\.csv\)"):
        new_folder(Path("predictions"))
    Path("empty").mkdir()
    assert new_folder(Path("empty")) == Path("empty")
    Path("file").touch()
    with pytest.raises(UserError, match="file: is a file"):
        new_folder(Path("file"))


def test_kinds_are_checked():
    assert check_kinds(["csv, json", "crops"]) == ["json", "csv", "crops"]
    with pytest.raises(UserError, match="--save cvs: choose from pictures, video, json, txt, xml, csv, crops"):
        check_kinds(["cvs"])
    with pytest.raises(UserError, match="name at least one"):
        check_kinds([","])


def test_a_summary_says_what_and_why():
    summary = Summary(0.25, given=False)
    summary.add(ITEM, result(*[(0, 0, 50, 50 + i, 0.9, 0) for i in range(4)], (0, 0, 50, 50, 0.8, 2)))
    summary.add(ITEM, result())
    assert summary.values()["duplicates"] == 3
    assert summary.duplicates_note() == [
        "3 of 5 boxes (60%) overlap a better one of their class with an IoU above 0.7; --nms 0.7 removes them"
    ]
    assert summary.lines() == [
        "5 objects in 2 images (1 without any): 4 red, 1 a/b: c",
        "threshold: a score of 0.25 or more, which had the best F1 in the evaluation during training",
    ]
    nothing = Summary(0.25, given=True)
    nothing.add(ITEM, result())
    assert nothing.lines()[1] == "threshold: a score of 0.25 or more, as given; a lower --threshold shows what is weaker"
    nameless = Summary(0.0, given=True, named=False)
    nameless.add(ITEM, result())
    assert nameless.lines()[1].startswith("threshold: a score of 0 or more, as given; no class of this model has a name")
    assert "as given" in Summary(0.25, given=True).lines()[1]
    summary.tracks.add((ITEM.name, 0))
    assert summary.lines()[2].endswith("; what continues a track may be weaker, down to 0.1")
    assert "the default" in Summary(0.5, given=False).lines()[1]


CLASHES = {
    "folders": ["cam1/frame.png", "cam2/frame.png", "cam2/more/frame.png"],
    "endings": ["a.png", "a.jpg", "a.JPG", "a.png.jpg"],
    "numbers": ["1.png", "001.png", "x/01.png"],
    "case": ["A.png", "a.png", "b/A.png"],
    "a folder called as an image": ["x.png", "x.jpg/a.png", "x.jpg/a.jpg"],
    "long": ["b/" + "long" * 60 + "1.png", "b/" + "long" * 60 + "2.png"],
    "odd": ["-0.png", "x-0.png", "x.png", "[b].png", "%31.png", "1.png", "a b.png", "a_b.png", "caf\u00e9.png", "cafe\u0301.png"],
}


@pytest.mark.parametrize("batch", ["one call", "named one by one", "with a folder twice"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clash", CLASHES)
def test_every_image_has_its_own_outputs(clash, kind, batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = CLASHES[clash]
    for name in names:
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(Path("photos", name))
    sources = {
        "one call": ["photos"],
        "named one by one": [f"photos/{name}" for name in names],
        "with a folder twice": ["photos", "./photos"],
    }
    files, _ = find_sources(sources[batch])
    with ResultWriter(Path("out"), [kind], CLASSES) as writer:
        for source in files:
            writer.add(Item(source), FOUND)
    if kind == "json":
        ids = Counter(row["image_id"] for row in json.loads(Path("out/predictions.json").read_text()))
    elif kind == "csv":
        with Path("out/predictions.csv").open(newline="") as lines:
            ids = Counter(row["file_name"] for row in csv.DictReader(lines))
    else:
        written = [path for path in Path("out", PLACES[kind]).rglob("*") if path.is_file()]
        if len({name.casefold() for name in names}) == len(names):  # or there is no file system that ignores case
            assert len({str(path).casefold() for path in written}) == len(written)
        ids = dict.fromkeys(range(len(written) // (5 if kind == "crops" else 1)), 5)
    assert list(ids.values()) == [5] * len(names)
