"""COCO values as people have them: each variant is read or refused with these words, and no box is lost without one."""

import copy
import json
from collections.abc import Callable

import pytest

from boxquery import UserError
from boxquery.cli import run

from . import writers
from .outcomes import boxes, expected, outcome
from .writers import NAMES, pictures


def each(key, change):
    """Change an entry of every element of a list of the file."""

    def apply(content):
        for entry in content[key]:
            change(entry)

    return apply


def put(key, value):
    return lambda entry: entry.update({key: value(entry)})


def move(old, new, value=lambda v: v):
    return lambda entry: entry.update({new: value(entry.pop(old))})


def polygon(entry):
    x, y, w, h = entry.pop("bbox")
    entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


def pairs(entry):
    x, y, w, h = entry.pop("bbox")
    entry["segmentation"] = [[[x, y], [x + w, y], [x + w, y + h]], [[x, y], [x, y + h], [x + 1, y + 1]]]


def mask(entry):
    x, y, w, h = entry.pop("bbox")
    counts = [x * 48 + y] + [h, 48 - h] * (w - 1) + [h]
    entry["segmentation"] = {"size": [48, 64], "counts": [*counts, 48 * 64 - sum(counts)]}


def corners(entry):
    x, y, w, h = entry["bbox"]
    entry |= {"bbox": [x, y, x + w, y + h], "bbox_mode": 0}


def twice(key):
    return lambda content: content[key].append(copy.deepcopy(content[key][0]))


def second_id(content):
    """One file under two ids, each with some of its boxes."""
    content["images"].append({**content["images"][1], "id": 7})
    next(entry for entry in content["annotations"] if entry["image_id"] == 101)["image_id"] = 7


def parents(content):
    for category in content["categories"]:
        category["supercategory"] = "animals"
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})


def dictionary(*keys, corners=False):
    def change(entry):
        x, y, w, h = entry["bbox"]
        entry["bbox"] = dict(zip(keys, (x, y, x + w, y + h) if corners else (x, y, w, h), strict=True))

    return change


IMAGES, ANNOTATIONS, CATEGORIES = "images", "annotations", "categories"
SAME: dict[str, tuple[Callable, str]] = {  # what is done to a file, and what is said; the data is the same
    "image_id as text": (each(ANNOTATIONS, put("image_id", lambda e: str(e["image_id"]))), "annotations image_id is text ('100')"),
    "image_id with decimals": (each(ANNOTATIONS, put("image_id", lambda e: float(e["image_id"]))), "image_id is a decimal number (100.0)"),
    "image_id as text with decimals": (each(ANNOTATIONS, put("image_id", lambda e: f"{e['image_id']}.0")), "image_id is text ('100.0')"),
    "image_id padded": (each(ANNOTATIONS, put("image_id", lambda e: f"{e['image_id']:06d}")), "image_id is text ('000100')"),
    "image ids as text": (each(IMAGES, put("id", lambda e: str(e["id"]))), "image_id is a number (100), the id is text ('100')"),
    "image ids with decimals": (each(IMAGES, put("id", lambda e: float(e["id"]))), "the id is a decimal number (100.0 is read as 100)"),
    "image_id is the file name": (each(ANNOTATIONS, put("image_id", lambda e: f"p{e['image_id'] - 100:03d}.png")), "image_id is"),
    "image_id is the stem": (each(ANNOTATIONS, put("image_id", lambda e: f"p{e['image_id'] - 100:03d}")), "image_id is"),
    "category_id as text": (each(ANNOTATIONS, put("category_id", lambda e: str(e["category_id"]))), "category_id is text"),
    "category_id with decimals": (
        each(ANNOTATIONS, put("category_id", lambda e: float(e["category_id"]))),
        "category_id is a decimal number",
    ),
    "category ids as text": (each(CATEGORIES, put("id", lambda e: str(e["id"]))), "all 3 categories the id is text ('3' is read as 3)"),
    "category_id is the name": (
        each(ANNOTATIONS, put("category_id", lambda e: {3: "cat", 17: "dog", 90: "owl"}[e["category_id"]])),
        "category_id is text",
    ),
    "only a supercategory": (each(CATEGORIES, move("name", "supercategory")), "there is no name: the supercategory is used"),
    "bbox of text": (each(ANNOTATIONS, put("bbox", lambda e: [str(v) for v in e["bbox"]])), "bbox is text"),
    "bbox as one text": (each(ANNOTATIONS, put("bbox", lambda e: str(e["bbox"]))), "bbox is text"),
    "bbox in a list": (each(ANNOTATIONS, put("bbox", lambda e: [e["bbox"]])), "bbox is a list in a list"),
    "bbox as x y w h": (each(ANNOTATIONS, dictionary("x", "y", "w", "h")), "bbox has the keys x, y, w, h"),
    "bbox as left top": (each(ANNOTATIONS, dictionary("left", "top", "width", "height")), "bbox has the keys left, top, width, height"),
    "bbox as corners": (each(ANNOTATIONS, dictionary("xmin", "ymin", "xmax", "ymax", corners=True)), "bbox has the keys xmin"),
    "bbox_mode": (each(ANNOTATIONS, corners), "bbox_mode is 0: bbox is read as x1, y1, x2, y2"),
    "polygons only": (each(ANNOTATIONS, polygon), "no bbox, but a segmentation: the box around it is used"),
    "polygons and an empty bbox": (each(ANNOTATIONS, lambda e: (polygon(e), e.update(bbox=[]))), "the box around it is used"),
    "polygons of pairs": (each(ANNOTATIONS, pairs), "the box around it is used"),
    "masks only": (each(ANNOTATIONS, mask), "the box around it is used"),
    "image listed twice": (twice(IMAGES), "1 of 13 images the entry is the same as another: used once"),
    "image listed under two ids": (
        second_id,
        "1 of 13 images the file is that of another entry: their boxes are put together ('p001.png')",
    ),
    "category listed twice": (twice(CATEGORIES), "1 of 4 categories the entry is the same as another: used once"),
    "parent category": (parents, "category 'animals' is the parent of others and has no boxes: left out"),
    "filename": (each(IMAGES, move("file_name", "filename")), "there is no file_name: 'filename' is used ('p000.png')"),
    "path": (each(IMAGES, move("file_name", "path", lambda v: f"/datasets/mine/{v}")), "there is no file_name: 'path' is used"),
    "coco_url": (each(IMAGES, move("file_name", "coco_url", lambda v: f"http://images.org/train/{v}")), "'coco_url' is used"),
    "white space in names": (each(CATEGORIES, put("name", lambda e: f" {e['name']}\n")), ""),
    "sizes as text": (each(IMAGES, put("width", lambda e: str(e["width"]))), ""),
    "no sizes": (each(IMAGES, lambda e: (e.pop("width"), e.pop("height"))), ""),
    "area NaN": (each(ANNOTATIONS, put("area", lambda e: float("nan"))), ""),
    "extra keys": (lambda c: c.update(info={}, licenses=None, videos=[]), ""),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    images = pictures(12)
    writers.write_coco_file(root, images)
    return root, images


@pytest.mark.parametrize("kind", SAME)
def test_values_that_mean_the_same(base, kind):
    root, images = base
    change, words = SAME[kind]
    content = writers.coco_content(images)
    given = len(content["annotations"])
    change(content)
    (root / "data.json").write_text(json.dumps(content))
    data, said = outcome(root, given)
    assert data.format == "coco"
    assert (data.names, data.ids, data.skipped) == (NAMES, [3, 17, 90], [])
    assert boxes(data) == expected(images)
    assert words in said
    assert sum(note.startswith(("data.json", "category")) for note in data.notes) == bool(words), said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encodings(base, encoding):
    root, images = base
    (root / "data.json").write_bytes(json.dumps(writers.coco_content(images)).encode(encoding))
    assert boxes(outcome(root)[0]) == expected(images)


def test_ids_in_words_are_numbered(base):
    root, images = base
    content = writers.coco_content(images)
    words = {3: "c", 17: "d", 90: "o"}
    for key, field in (("categories", "id"), ("annotations", "category_id")):
        for entry in content[key]:
            entry[field] = words[entry[field]]
    (root / "data.json").write_text(json.dumps(content))
    data, said = outcome(root)
    assert (data.names, data.ids) == (NAMES, [0, 1, 2])
    assert "category ids are words ('c'): numbered, from 0 on" in said
    assert boxes(data) == expected(images)


def test_text_and_number_stay_apart_where_both_exist(base):
    root, images = base
    content = writers.coco_content(images)
    content["images"][1]["id"] = "100"
    moved = [entry for entry in content["annotations"] if entry["image_id"] == 101]
    for entry in moved:
        entry["image_id"] = "100"
    (root / "data.json").write_text(json.dumps(content))
    assert boxes(outcome(root)[0]) == expected(images)


BROKEN = {  # what is done to the first annotation, and what is said
    "no bbox": (lambda e: e.pop("bbox"), "no bbox"),
    "rotated": (lambda e: e.update(bbox=[*e["bbox"], 30]), "five numbers, as rotated boxes have"),
    "bbox in words": (lambda e: e.update(bbox="here"), "box is not four numbers"),
    "bbox of NaN": (lambda e: e.update(bbox=[float("nan"), 1, 5, 5]), "not finite"),
    "other keys": (lambda e: e.update(bbox={"a": 1}), "box is not four numbers"),
    "other mode": (lambda e: e.update(bbox_mode=4), "bbox_mode is neither 0 nor 1"),
    "broken mask": (lambda e: (e.pop("bbox"), e.update(segmentation={"size": [48, 64], "counts": "é"})), "no bbox"),
    "a line": (lambda e: (e.pop("bbox"), e.update(segmentation=[[1, 1, 5, 5]])), "no bbox"),
    "unknown category": (lambda e: e.update(category_id="cow"), "unknown category"),
    "no category": (lambda e: e.pop("category_id"), "unknown category"),
    "unknown image": (lambda e: e.update(image_id="x.png"), "unknown image"),
    "no image": (lambda e: e.pop("image_id"), "unknown image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_has_no_meaning_is_skipped_and_named(base, kind):
    root, images = base
    change, words = BROKEN[kind]
    content = writers.coco_content(images)
    change(content["annotations"][0])
    (root / "data.json").write_text(json.dumps(content))
    data, _ = outcome(root, len(content["annotations"]))
    assert len(data.skipped) == 1
    assert words in data.skipped[0]
    assert "data.json annotation 1" in data.skipped[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (each(ANNOTATIONS, lambda e: e.pop("bbox")), ("no bbox", "all")),
        (each(ANNOTATIONS, put("image_id", lambda e: e["image_id"] + 1000)), ("unknown image", "all")),
        (each(ANNOTATIONS, put("category_id", lambda e: 5)), ("unknown category", "all")),
        (each(IMAGES, put("file_name", lambda e: f"gone/x{e['file_name']}")), ("no such file", "'gone/xp000.png'", "all 12 images")),
        (lambda c: c["images"].append({**c["images"][0], "file_name": "p001.png"}), ("image id 100 is already taken",)),
        (lambda c: c["categories"].append({"id": 3, "name": "cow"}), ("category id 3 is already taken",)),
    ],
)
def test_what_all_share_is_said_once(base, change, words):
    root, images = base
    content = writers.coco_content(images)
    change(content)
    (root / "data.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        outcome(root)
    assert all(word in str(caught.value) for word in words), caught.value


SPELLINGS = ("case", "ls_116", "ls_local_files", "ls_project_id", "nfd", "no_ending", "percent", "url_path")
VALUES = (
    "category_listed_twice", "float_category", "float_image_id", "float_images", "image_listed_twice", "name_is_number", "polygons_only",
    "string_bbox", "string_category", "string_image_id",
)  # fmt: skip
SHARED = [
    "10_coco_images_in_data/data",
    *(f"11_coco_file_names/{name}" for name in SPELLINGS),
    *(f"15_coco_values/{name}" for name in VALUES),
    "18_macos_leftovers/json",
    "18_macos_leftovers/zip",
]


@pytest.mark.shared
@pytest.mark.parametrize("case", SHARED)
def test_inputs_that_were_refused(shared, case):
    """The small inputs from public reports: all is read, and what was inferred is said."""
    folder = shared / "cases" / case
    if not folder.is_dir():
        pytest.skip(f"no cases/{case} in the reference material")
    data, _ = outcome(folder, 24 if "18" in case else 16)
    assert data.skipped == []
    assert len(data.names) == 3
    assert data.notes or case.endswith("json")


@pytest.mark.parametrize(("change", "status", "words"), [
    (SAME["image_id as text"][0], 0, "image_id is text"),
    (each(IMAGES, put("file_name", lambda e: f"/data/upload/1/{e['file_name'].upper()}")), 0, "by their file name alone, in another case"),
    (BROKEN["no bbox"][0], 0, "no bbox"),
    (each(ANNOTATIONS, lambda e: e.pop("bbox")), 2, "no bbox: all"),
    (lambda c: c.pop("categories"), 2, "no list 'categories'"),
])  # fmt: skip
def test_on_the_command_line(base, change, status, words, tmp_path, capsys, monkeypatch):
    root, images = base
    content = writers.coco_content(images)
    (change(content["annotations"][0]) if words == "no bbox" else change(content))
    (root / "data.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert run(["check", str(root), "--preset", "tiny"]) == status
    printed = capsys.readouterr()
    assert words in " ".join((printed.out + printed.err).split())
    assert printed.err.count("error: ") == (status == 2)
