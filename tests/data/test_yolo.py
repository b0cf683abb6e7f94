"""YOLO as it is found: the lines of all tools in the layouts of all tools; names, paths, lists. No box is lost without a word."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from boxquery import UserError
from boxquery.cli import run
from boxquery.data.open import open_data, read
from boxquery.data.validation import validate

from . import writers
from .writers import NAMES, SIZE, Picture, Thing

WIDTH, HEIGHT = SIZE


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """``check`` writes its pictures into the working directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


def pictures(count=12, splits=("train", "train", "val")):
    """Images with two objects each, of all classes, none at the edge."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        boxes = [
            [int(x), int(y), int(x + rng.integers(6, 13)), int(y + rng.integers(6, 13))] for x, y in rng.integers((2, 2), (45, 30), (2, 2))
        ]
        things = [Thing(NAMES[(i + k) % 3], box) for k, box in enumerate(boxes)]
        result.append(Picture(f"{'tv'[splits[i % len(splits)] == 'val']}{i:02d}", splits[i % len(splits)], things))
    return result


def shares(thing):
    x1, y1, x2, y2 = thing.box
    return [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]


def joined(*parts, sep=" "):
    return sep.join(f"{part:.7f}" if isinstance(part, float) else str(part) for part in parts)


def number(thing):
    return NAMES.index(thing.name)


# -- kinds of lines: the text for an object, and words of the note that it brings --------------------------------------------------------


def polygon(thing):
    x1, y1, x2, y2 = thing.box
    points = [(x1, y1 + 3), (x1 + 3, y1), (x2 - 3, y1), (x2, y2 - 3), (x2 - 3, y2), (x1 + 3, y2)][: 5 + x1 % 2]
    points[-1] = (points[-1][0], y2)
    return joined(number(thing), *(v for x, y in points for v in (x / WIDTH, y / HEIGHT)))


def rotated(thing):
    """A rectangle within the box that touches its four sides."""
    x1, y1, x2, y2 = thing.box
    a = 1.5
    points = [(x1 + a, y1), (x2, y2 - a), (x2 - a, y2), (x1, y1 + a)]
    return joined(number(thing), *(v for x, y in points for v in (x / WIDTH, y / HEIGHT)))


def keypoints(thing, count=4, visibility=True):
    x1, y1, x2, y2 = thing.box
    rng = np.random.default_rng(x1 * y1)
    points = [[x / WIDTH, y / HEIGHT, *([2] if visibility else [])] for x, y in rng.uniform((x1, y1), (x2, y2), (count, 2)).tolist()]
    return joined(number(thing), *shares(thing), *(v for point in points for v in point))


KINDS = {
    "boxes": (lambda t: joined(number(t), *shares(t)), None),
    "polygons": (polygon, "polygon: the box around it is used"),
    "rotated": (rotated, "a rotated box (four corners)"),
    "key points": (keypoints, "the first four numbers are the box"),
    "key points, flat": (lambda t: keypoints(t, 6, False), "kpt_shape [6, 2]"),
    "confidence": (lambda t: joined(number(t), *shares(t), 0.75), "a confidence at the end"),
    "confidence first": (lambda t: joined(number(t), 0.99 - t.box[0] / 100, *shares(t)), "a number between class and box"),
    "track": (lambda t: joined(number(t), *shares(t), 7 + t.box[0]), "whole number behind the box"),
    "polygons with confidence": (lambda t: polygon(t) + " 0.75", "a confidence at the end"),
    "commas": (lambda t: joined(number(t), *shares(t), sep=","), "commas or semicolons"),
    "commas and spaces": (lambda t: joined(number(t), *shares(t), sep=", "), "commas or semicolons"),
    "decimal commas": (lambda t: joined(number(t), *shares(t)).replace(".", ","), "decimal commas"),
    "tabs": (lambda t: "\t" + joined(number(t), *shares(t), sep="\t") + " \t \r\n\n", None),
    "exponents": (lambda t: joined(number(t), *(f"{v:.6e}" for v in shares(t))), None),
    "class names": (lambda t: joined(t.name.upper(), *shares(t)), "the class's name"),
    "class fractions": (lambda t: joined(f"{number(t)}.0", *shares(t)), "class number with a decimal point"),
}


# -- layouts: (root, pictures, text of a picture) ------------------------------------------------------------------------------------------


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ultralytics(root, images, text):
    for p in images:
        writers.save_image(root / "images" / p.split / f"{p.stem}.png", p)
        put(root / "labels" / p.split / f"{p.stem}.txt", text(p))
    put(root / "data.yaml", f"train: images/train\nval: images/val\nnames: {NAMES}\n")


def roboflow(root, images, text):
    for p in images:
        place = root / {"val": "valid"}.get(p.split, p.split)
        writers.save_image(place / "images" / f"{p.stem}.png", p)
        put(place / "labels" / f"{p.stem}.txt", text(p))
    put(root / "data.yaml", f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 3\nnames: {NAMES}\n")


def capitals(root, images, text):
    for p in images:
        writers.save_image(root / "Images" / f"{p.split.upper()}2017" / f"{p.stem}.png", p)
        put(root / "Labels" / f"{p.split.upper()}2017" / f"{p.stem.upper()}.TXT", text(p))
    put(root / "classes.txt", "\n".join(NAMES))


def beside(root, images, text):
    for p in images:
        writers.save_image(root / p.split / f"{p.stem}.png", p)
        put(root / p.split / f"{p.stem}.txt", text(p))
        put(root / p.split / "_darknet.labels", "\n".join(NAMES))


def siblings(root, images, text):
    """As labelImg and makesense leave it to their users."""
    for p in images:
        writers.save_image(root / "photos" / f"{p.stem}.png", p)
        put(root / "annots" / f"{p.stem}.txt", text(p))
    put(root / "annots" / "classes.txt", "\n".join(NAMES))


def sibling_splits(root, images, text):
    for p in images:
        writers.save_image(root / "photos" / p.split / f"{p.stem}.png", p)
        put(root / "annots" / p.split / f"{p.stem}.txt", text(p))
    put(root / "mine.names", "\n".join(NAMES))


def cvat(root, images, text):
    for p in images:
        writers.save_image(root / "obj_train_data" / f"{p.stem}.png", p)
        put(root / "obj_train_data" / f"{p.stem}.txt", text(p))
    for split in ("train", "val"):
        put(root / f"{split}.txt", "".join(f"data/obj_train_data/{p.stem}.png\n" for p in images if p.split == split))
    put(root / "obj.names", "\n".join(NAMES))
    put(root / "obj.data", "classes = 3\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\nbackup = backup/\n")


def colab(root, images, text):
    for p in images:
        writers.save_image(root / "images" / p.split / f"{p.stem}.png", p)
        put(root / "labels" / p.split / f"{p.stem}.txt", text(p))
    for split in ("train", "val"):
        lines = [f"/content/drive/mine/images/{split}/{p.stem}.png\n" for p in images if p.split == split]
        put(root / f"{split}.txt", "".join(["# made by a script\n", *lines]))
    put(root / "data.yaml", f"path: /content/drive/mine\ntrain: train.txt\nval: val.txt\nnames: {NAMES}\n")


def label_studio(root, images, text):
    for p in images:
        writers.save_image(root / "images" / f"0a1b2c3d-{p.stem}.png", p)
        put(root / "labels" / f"0a1b2c3d-{p.stem}.txt", text(p))
    put(root / "notes.json", json.dumps({"categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)], "info": {"year": 2026}}))


LAYOUTS = [ultralytics, roboflow, capitals, beside, siblings, sibling_splits, cvat, colab, label_studio]
WITHOUT_SPLITS = {siblings, label_studio}


def written(root, layout, images, line):
    layout(root, images, lambda p: "".join(f"{line(thing)}\n" for thing in p.things))
    return root


def given(root):
    """Boxes of the label files, counted by other means than the reader's."""
    listed = {"classes.txt", "train.txt", "val.txt"}
    files = [path for path in root.rglob("*") if path.suffix.lower() == ".txt" and path.name not in listed]
    return sum(bool(line.strip()) for path in files for line in path.read_text().splitlines())


def checked(root, capsys, *words, status=0, strict=False):
    """Exit status, words of what is printed, and that no box is lost; what was printed."""
    capsys.readouterr()
    assert run(["check", str(root), *(["--strict"] if strict else [])]) == status
    shown = capsys.readouterr()
    text = shown.out + shown.err
    for word in words:
        assert word in text, text
    if status == 2:
        assert shown.err.count("\n") == 1
        assert shown.err.startswith("error: ")
    else:
        _, report = validate(read(root))
        assert report.boxes_kept + report.boxes_skipped == report.boxes_total == given(root)
    return text


def assert_boxes(root, images):
    data = open_data(root)
    records = {record.path.stem.rpartition("-")[2]: record for split in data.splits.values() for record in split}
    assert set(records) == {p.stem for p in images}
    for p in images:
        np.testing.assert_allclose(records[p.stem].boxes, [thing.box for thing in p.things], atol=1e-3)
        assert [data.names[i] for i in records[p.stem].labels] == [thing.name for thing in p.things]
    return data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_lines_in_layouts(tmp_path, layout, kind):
    """Every kind of line in every layout gives the same boxes, in the same splits, and one note of what was inferred."""
    line, words = KINDS[kind]
    images = pictures()
    data = assert_boxes(written(tmp_path, layout, images, line), images)
    if layout not in WITHOUT_SPLITS:
        assert {p.stem for p in images if p.split == "val"} == {record.path.stem for record in data.splits["val"]}
    assert sum(words in note for note in data.notes) == 1 if words else not any("label lines" in note for note in data.notes)
    _, report = validate(read(tmp_path), strict=True)
    assert report.boxes_kept == report.boxes_total == given(tmp_path) == 24


@pytest.mark.parametrize(("layout", "kind"), [(LAYOUTS[i % len(LAYOUTS)], kind) for i, kind in enumerate(KINDS)])
def test_check_says_it(tmp_path, capsys, layout, kind):
    line, words = KINDS[kind]
    checked(written(tmp_path, layout, pictures(), line), capsys, *([f"note: {''}", words] if words else []))


# -- lines that cannot be read, or are not what they seem --------------------------------------------------------------------------------


def pixels(thing):
    x1, y1, x2, y2 = thing.box
    return joined(number(thing), (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)


def far_polygon(thing):
    return joined(number(thing), 0.2, 0.2, 1.4, 0.3, 0.5, 0.6, 0.4, 0.7)


SHARED = {
    "pixels": (pixels, "numbers are pixels, not shares of the image"),
    "polygons in pixels": (lambda t: joined(number(t), *t.box, t.box[0], t.box[3]), "numbers are pixels, not shares of the image"),
    "polygons beyond the image": (far_polygon, "polygon with numbers outside 0 to 1"),
    "angles": (lambda t: joined(number(t), *shares(t), -0.5 - t.box[0] / 90), "five numbers after the class"),
    "words": (lambda t: joined(number(t), "left", "top", "right", "bottom"), "box is not four numbers"),
}


@pytest.mark.parametrize("layout", [ultralytics, beside, siblings, cvat], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("kind", SHARED)
def test_what_all_lines_share_is_said_once(tmp_path, capsys, layout, kind):
    line, words = SHARED[kind]
    text = checked(written(tmp_path, layout, pictures(), line), capsys, words, "24 boxes", status=2)
    assert text.count(words) == 1


@pytest.mark.parametrize("layout", [ultralytics, roboflow, siblings, colab], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", "box is not four numbers"),
        ("0 0.5 0.5 0.2 zwei", "box is not four numbers"),
        ("7 0.5 0.5 0.2 0.2", "unknown category"),
        ("bird 0.5 0.5 0.2 0.2", "unknown category"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "box is not four numbers"),
        ("0 .1 .1 1.2 .2 .3 .3 .4 .5", "polygon with numbers outside 0 to 1"),
        ("0 32 24 10 10", "box lies outside"),
        ("-1 0.5 0.5 0.2 0.2", "unknown category"),
        ("1.5 0.5 0.5 0.2 0.2", "unknown category"),
        (",", "box is not four numbers"),
    ],
)
def test_one_line_is_skipped_and_counted(tmp_path, capsys, layout, line, words):
    written(tmp_path, layout, pictures(), lambda t: joined(number(t), *shares(t)))
    file = sorted(tmp_path.rglob("*t03.txt"))[0]
    file.write_text(file.read_text() + line + "\n")
    checked(tmp_path, capsys, words, "t03.txt line 3", "24 of 25")
    checked(tmp_path, capsys, words, status=2, strict=True)


POSE = "train: images/train\nval: images/val\nnames: [cat, dog, owl]\n"


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (4, 2), (4, 3), (17, 3)])
def test_stated_key_points(tmp_path, capsys, shape):
    """Whatever the length, the first four numbers are the box; another length is named."""
    images = pictures()
    written(tmp_path, ultralytics, images, lambda t: keypoints(t, shape[0], shape[1] == 3))
    put(tmp_path / "data.yaml", f"{POSE}kpt_shape: [{shape[0]}, {shape[1]}]\n")
    assert_boxes(tmp_path, images)
    checked(tmp_path, capsys, f"all 24 label lines have a box and key points (kpt_shape [{shape[0]}, {shape[1]}])")
    file = tmp_path / "labels" / "train" / "t03.txt"
    put(file, file.read_text() + "0 0.5 0.5 0.2 0.2 0.4 0.4 0.4 0.6 0.5 0.6 0.6 0.6 0.6 0.4\n0 0.5 0.5 0.2 0.2\n")
    words = [f"labels/train/t03.txt line 3: 14 numbers after the class, where kpt_shape [{shape[0]}, {shape[1]}] says"]
    checked(tmp_path, capsys, *words, "1 of 26 label lines has a box without key points")


def test_key_points_that_are_not_as_stated(tmp_path, capsys):
    written(tmp_path, ultralytics, pictures(), lambda t: keypoints(t, 4, False))
    put(tmp_path / "data.yaml", f"{POSE}kpt_shape: [4, 3]\n")
    checked(tmp_path, capsys, "12 numbers after the class, where kpt_shape [4, 3] says 16", status=2)
    put(tmp_path / "data.yaml", f"{POSE}kpt_shape: seventeen\n")
    checked(tmp_path, capsys, "'kpt_shape' should be [number of key points, 2 or 3]")


def test_polygons_of_one_length_are_no_key_points(tmp_path):
    """Six corners each, of rings: the polygons are taken, and the note says how to declare key points instead."""

    def ring(thing):
        x1, y1, x2, y2 = thing.box
        around = [((1 + math.cos(a)) / 2, (1 + math.sin(a)) / 2) for a in np.linspace(0, 2 * np.pi, 7)[:-1]]
        low = min(y for _, y in around)
        around = [(x, (y - low) / (1 - 2 * low)) for x, y in around]
        return joined(number(thing), *(v for x, y in around for v in ((x1 + x * (x2 - x1)) / WIDTH, (y1 + y * (y2 - y1)) / HEIGHT)))

    images = pictures()
    data = assert_boxes(written(tmp_path, ultralytics, images, ring), images)
    assert any("polygon" in note and "kpt_shape: [4, 2]" in note for note in data.notes)


def test_boxes_and_polygons_in_one_file(tmp_path):
    images = pictures()
    lines = iter([lambda t: joined(number(t), *shares(t)), polygon] * 24)
    data = assert_boxes(written(tmp_path, ultralytics, images, lambda t: next(lines)(t)), images)
    assert any("12 of 24 label lines have a polygon" in note for note in data.notes)


def test_dota(tmp_path, capsys):
    """Corners in pixels, the name of the class, and whether the object is difficult; two lines of header."""
    images = pictures()

    def dota(p):
        corners = [[t.box[0], t.box[1], t.box[2], t.box[1], t.box[2], t.box[3], t.box[0], t.box[3]] for t in p.things]
        lines = [joined(*c, t.name, int(i == 1)) for i, (c, t) in enumerate(zip(corners, p.things, strict=True))]
        return "\n".join(["imagesource:GoogleEarth", "gsd:0.146", *lines])

    for p in images:
        writers.save_image(tmp_path / p.split / "images" / f"{p.stem}.png", p)
        put(tmp_path / p.split / "labelTxt" / f"{p.stem}.txt", dota(p))
    data = assert_boxes(tmp_path, images)
    assert all(record.ignore.tolist() == [False, True] for split in data.splits.values() for record in split)
    assert any("DOTA's form" in note for note in data.notes)
    assert run(["check", str(tmp_path)]) == 0


# -- images and label files that do not belong together ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [ultralytics, roboflow, siblings, cvat, colab, beside], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("strict", [False, True])
def test_boxes_of_a_missing_image_count(tmp_path, capsys, layout, strict):
    written(tmp_path, layout, pictures(24), lambda t: joined(number(t), *shares(t)))
    next(tmp_path.rglob("*t03.png")).unlink()
    text = checked(tmp_path, capsys, "no such file", "t03", status=2 if strict else 0, strict=strict)
    if strict:
        assert "46 of 48 boxes kept, 2 skipped" in text
    _, report = validate(read(tmp_path))
    assert (report.boxes_total, report.boxes_kept, report.boxes_skipped) == (48, 46, 2)
    assert (report.images_total, report.images_invalid) == (24, 1)


@pytest.mark.parametrize("layout", [ultralytics, siblings, cvat, label_studio], ids=lambda layout: layout.__name__)
def test_no_image_at_all(tmp_path, capsys, layout):
    written(tmp_path, layout, pictures(), lambda t: joined(number(t), *shares(t)))
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    checked(tmp_path, capsys, status=2)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_no_label_file_at_all(tmp_path, capsys, layout):
    written(tmp_path, layout, pictures(), lambda t: joined(number(t), *shares(t)))
    for p in pictures():
        for path in tmp_path.rglob("*"):
            if path.stem.casefold().rpartition("-")[2] == p.stem and path.suffix.lower() == ".txt":
                path.unlink()
    checked(tmp_path, capsys, status=2)


def test_images_that_no_list_names_are_left_out(tmp_path, capsys):
    written(tmp_path, colab, pictures(), lambda t: joined(number(t), *shares(t)))
    lines = (tmp_path / "train.txt").read_text().splitlines()
    put(tmp_path / "train.txt", "\n".join([*lines[:-2], lines[1]]))
    text = checked_without_count(tmp_path, capsys)
    assert "2 images with a label file are in none of the lists: left out" in text
    assert "1 image of train is listed more than once: used once" in text
    assert "1 line of the list of train is a comment" in text
    assert "12 images" not in text


def checked_without_count(root, capsys, status=0):
    capsys.readouterr()
    assert run(["check", str(root)]) == status
    shown = capsys.readouterr()
    return shown.out + shown.err


def test_a_label_file_in_the_folder_of_another_split(tmp_path):
    written(tmp_path, ultralytics, pictures(24), lambda t: joined(number(t), *shares(t)))
    (tmp_path / "labels" / "val" / "v02.txt").rename(tmp_path / "labels" / "train" / "v02.txt")
    data, report = validate(read(tmp_path))
    assert (report.boxes_total, report.boxes_kept) == (48, 46)
    assert any("labels/train/v02.txt" in line and "images/val/v02.png has another place" in line for line in data.skipped)


def test_labels_of_another_folder_are_not_taken(tmp_path):
    """images/cam1/1.png has no label file; that of images/cam2/1.png is not its own."""
    images = pictures(8, splits=("cam1", "cam2"))
    for i, p in enumerate(images):
        writers.save_image(tmp_path / "images" / p.split / f"{i // 2}.png", p)
        if p.split == "cam2":
            put(tmp_path / "images" / p.split / f"{i // 2}.txt", joined(number(p.things[0]), *shares(p.things[0])))
    data = open_data(tmp_path)
    assert all(len(record.boxes) == ("cam2" in record.path.parts) for split in data.splits.values() for record in split)
    assert any("4 of 8 images have no label file" in note for note in data.notes)


# -- names ---------------------------------------------------------------------------------------------------------------------------------

NAME_TEXTS = {
    "words of YAML": ("names: [no, yes, on]", ["no", "yes", "on"]),
    "more words of YAML": ("names: [off, null, ~]", ["off", "null", "~"]),
    "numbers": ("names: [1e3, 1_000, 0x10]", ["1e3", "1_000", "0x10"]),
    "dates": ("names:\n- 2020-01-01\n- 1.50\n- 007", ["2020-01-01", "1.50", "007"]),
    "quoted": ("names: ['no', \"yes\", 'it''s']", ["no", "yes", "it's"]),
    "map": ("names:\n  0: no\n  1: off\n  2: 1_000", ["no", "off", "1_000"]),
    "quoted keys": ("names:\n  '0': cat\n  '1': dog\n  \"2\": owl", NAMES),
    "keys in disorder": ("names: {2: owl, 0: cat, 1: dog}", NAMES),
    "list of maps": ("names:\n- 0: cat\n- 1: dog\n- 2: owl", NAMES),
    "list of named maps": ("names:\n- name: cat\n- name: dog\n- name: owl", NAMES),
    "list of maps with ids": ("names:\n- {id: 1, name: dog}\n- {id: 0, name: cat}\n- {id: 2, name: owl}", NAMES),
    "swapped map": ("names: {cat: 0, dog: 1, owl: 2}", NAMES),
    "text": ("names: cat, dog, owl", NAMES),
    "a file": ("names: data/obj.names", NAMES),
    "a class list beside it": ("# none here", NAMES),
    "capitals": ("NAMES: [cat, dog, owl]", NAMES),
    "no names": ("nc: 3", ["class 0", "class 1", "class 2"]),
}


@pytest.mark.parametrize("case", NAME_TEXTS)
def test_names(tmp_path, capsys, case):
    text, names = NAME_TEXTS[case]
    written(tmp_path, ultralytics, pictures(), lambda t: joined(number(t), *shares(t)))
    put(tmp_path / "data.yaml", f"train: images/train\nval: images/val\n{text}\n")
    if "file" in case or "beside" in case:
        put(tmp_path / "obj.names", "cat\ndog\n\nowl\n")
    data = open_data(tmp_path)
    assert data.names == names
    assert data.ids == [0, 1, 2]
    checked(tmp_path, capsys, *names)


@pytest.mark.parametrize(
    "file", ["classes.txt", "labels/classes.txt", "obj.names", "my.names", "_darknet.labels", "labels.txt", "predefined_classes.txt"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_lists_of_classes(tmp_path, file, encoding):
    images = pictures()
    for p in images:
        writers.save_image(tmp_path / "images" / f"{p.stem}.png", p)
        put(tmp_path / "labels" / f"{p.stem}.txt", "".join(joined(number(t), *shares(t)) + "\n" for t in p.things))
    (tmp_path / file).write_bytes("châtaigne\r\ndog\r\nowl\r\n".encode(encoding))
    data = open_data(tmp_path)
    assert data.names == ["châtaigne", "dog", "owl"]
    assert any("not UTF-8" in note for note in data.notes) == (not encoding.startswith("utf-8"))


@pytest.mark.parametrize("text", ["0 cat\n1 dog\n2 owl", "0: cat\n1: dog\n2: owl\n", "0,cat\n1,dog\n2,owl"])
def test_numbered_lists_of_classes(tmp_path, text):
    written(tmp_path, siblings, pictures(), lambda t: joined(number(t), *shares(t)))
    put(tmp_path / "annots" / "classes.txt", text)
    assert open_data(tmp_path).names == NAMES


@pytest.mark.parametrize("layout", [siblings, label_studio, beside, capitals], ids=lambda layout: layout.__name__)
def test_without_any_list_of_classes(tmp_path, capsys, layout):
    written(tmp_path, layout, pictures(), lambda t: joined(number(t), *shares(t)))
    for path in tmp_path.rglob("*"):
        if path.name in ("classes.txt", "notes.json", "_darknet.labels"):
            path.unlink()
    checked(tmp_path, capsys, "no list of class names", "class 0", "class 2")


def test_class_lists_that_differ(tmp_path):
    written(tmp_path, beside, pictures(), lambda t: joined(number(t), *shares(t)))
    put(tmp_path / "val" / "_darknet.labels", "cat\ndog")
    assert open_data(tmp_path).names == NAMES  # the shorter list is a part of the longer one
    put(tmp_path / "val" / "_darknet.labels", "dog\ncat\nowl")
    with pytest.raises(UserError, match=r"train/_darknet.labels and val/_darknet.labels list different classes"):
        open_data(tmp_path)
    put(tmp_path / "classes.txt", "\n".join(NAMES))
    assert open_data(tmp_path).names == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [cat, dog, owl]\nnc: 4", "'nc' is 4, but 'names' lists 3 classes"),
        ("names: {0: cat, 0: dog, 2: owl}", "is listed twice"),
        ("names: {0: cat, 00: dog, 2: owl}", "is listed twice"),
        ("names:\n- 0: cat\n- 0: dog", "is listed twice"),
        ("names: [[cat], dog, owl]", "should be a word, not a list or map"),
        ("names: []", "no categories"),
        ("names: {a: cat}", "no categories"),
        ("other: 3", "no categories"),
    ],
)
def test_names_that_cannot_be(tmp_path, capsys, text, words):
    written(tmp_path, ultralytics, pictures(), lambda t: joined(number(t), *shares(t)))
    put(tmp_path / "data.yaml", f"train: images/train\nval: images/val\n{text}\n")
    checked(tmp_path, capsys, words, status=0 if "nc" in text else 2)


# -- paths ---------------------------------------------------------------------------------------------------------------------------------

PATHS = {  # data.yaml without names, for train/{images,labels} and valid/{images,labels}, and words of the note
    "exact": ("train: train/images\nval: valid/images", None),
    "valid": ("train: ./train/images\nvalid: valid/images/", None),
    "above": ("train: ../train/images\nval: ../valid/images", "'../train/images' as train/images"),
    "far above": ("train: ../../train/images\nval: ../../valid/images", "'../../valid/images' as valid/images"),
    "own name": ("train: mine-1/train/images\nval: mine-1/valid/images", "'mine-1/train/images' as train/images"),
    "another machine": (
        "train: /content/mine-1/train/images\nval: /content/mine-1/valid/images",
        "'/content/mine-1/train/images' as train/images",
    ),
    "Windows": ("train: C:\\data\\mine\\train\\images\nval: C:\\data\\mine\\valid\\images", "as train/images"),
    "Windows, slashes": ("train: D:/data/train/images\nval: D:/data/valid/images", "'D:/data/valid/images' as valid/images"),
    "other names": ("train: /home/me/tr/pictures\nval: /home/me/va/pictures", "'/home/me/tr/pictures' as train/images"),
    "other Windows names": ("train: E:\\tr\nval: E:\\va", "as valid/images"),
    "case": ("train: Train/Images\nval: VALID/IMAGES", "'Train/Images' as train/images"),
    "back slashes": ("train: train\\images\nval: valid\\images", None),
    "patterns": ("train: train/images/*.png\nval: valid/images/*.*", None),
    "lists": ("train: [train/images]\nval: [valid/images]", None),
    "path is the root": ("path: .\ntrain: train/images\nval: valid/images", None),
    "path is empty": ("path:\ntrain: train/images\nval: valid/images", None),
    "path is null": ("path: ~\ntrain: train/images\nval: valid/images", None),
    "path of its own name": ("path: mine\ntrain: train/images\nval: valid/images", "'mine' as the data folder"),
    "path dead": ("path: /content/mine\ntrain: train/images\nval: valid/images", "'/content/mine' as the data folder"),
    "path above": ("path: ../mine\ntrain: train/images\nval: valid/images", None),
    "path above another": ("path: ../datasets/mine\ntrain: train/images\nval: valid/images", "'../datasets/mine' as the data folder"),
    "path of Windows": ("path: C:\\data\\mine\ntrain: train/images\nval: valid/images", "as the data folder"),
    "no test": ("train: ../train/images\nval: ../valid/images\ntest: ../test/images", "there is no test/images in the data folder"),
    "no test here": ("train: train/images\nval: valid/images\ntest: test/images", "there is no test/images: left out"),
    "empty test": ("train: train/images\nval: valid/images\ntest:", None),
}


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("neighbour", [False, True])
def test_paths(tmp_path, capsys, case, neighbour):
    """Folders of the same names next door change nothing."""
    text, words = PATHS[case]
    root = tmp_path / "mine"
    images = pictures()
    written(root, roboflow, images, lambda t: joined(number(t), *shares(t)))
    if neighbour:
        for place in ("train", "valid", "test", "datasets/mine/train"):
            writers.save_image(tmp_path / place / "images" / "other.png", images[0])
    put(root / "data.yaml", f"{text}\nnames: {NAMES}\n")
    data = assert_boxes(root, images)
    assert len(data.splits["val"]) == 4
    said = [note for note in data.notes if "data.yaml" in note]
    assert (len(said) >= 1 and any(words in note for note in said)) if words else said == []
    if not neighbour:
        checked(root, capsys, *([words] if words else []))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: trian/images\nval: valid/images", "there is no trian/images"),
        ("train: ../elsewhere/pictures\nval: valid/images", "there is no elsewhere/pictures in the data folder"),
        ("train: ../../elsewhere", "leaves the data folder"),
        ("train: /etc", "leaves the data folder"),
        ("path: ../..\ntrain: somewhere", "leaves the data folder"),
        ("train: 3", "should be a folder"),
        ("train: {a: b}", "should be a folder"),
        ("train: /x/all/images\nval: /y/all/images", "leaves the data folder"),
    ],
)
def test_a_train_split_that_is_not_there(tmp_path, capsys, text, words):
    written(tmp_path, ultralytics, pictures(), lambda t: joined(number(t), *shares(t)))
    for split in ("train", "val"):
        (tmp_path / "images" / split).rename(tmp_path / "images" / f"{split}_images".replace("train", "one").replace("val", "two"))
    if "valid" in text:
        (tmp_path / "images" / "two_images").rename(tmp_path / "images" / "val")
        text = text.replace("valid/images", "images/val")
    put(tmp_path / "data.yaml", f"{text}\nnames: {NAMES}\n")
    text = checked(tmp_path, capsys, words, status=2)
    assert "move the file inside" not in text


def test_only_the_split_that_is_needed(tmp_path, capsys):
    """A val split alone can be opened, for evaluation; who needs train learns what is missing."""
    written(tmp_path, roboflow, pictures(), lambda t: joined(number(t), *shares(t)))
    for path in sorted((tmp_path / "train").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    data = open_data(tmp_path)
    assert list(data.splits) == ["val"]
    with pytest.raises(UserError, match=r"no split 'train' \(data.yaml train: there is no train/images in the data folder"):
        data.split("train")


def test_entries_may_be_images_and_lists(tmp_path):
    images = pictures()
    written(tmp_path, ultralytics, images, lambda t: joined(number(t), *shares(t)))
    train = [f"images/train/{p.stem}.png" for p in images if p.split == "train"]
    put(tmp_path / "more.txt", f"{train[0]}\n./{train[1]}\n")
    put(tmp_path / "data.yaml", f"train: [more.txt, {', '.join(train[2:])}]\nval: [images/val]\nnames: {NAMES}\n")
    data = assert_boxes(tmp_path, images)
    assert data.notes == []


def test_folders_that_the_user_names(tmp_path):
    """Images outside of the data folder, and one of two sets of label files."""
    images = pictures()
    root = tmp_path / "set"
    for layout in (ultralytics, siblings, cvat):
        written(root / layout.__name__, layout, images, lambda t: joined(number(t), *shares(t)))
        place = root / layout.__name__ / {siblings: "photos", cvat: "obj_train_data"}.get(layout, "images")
        (tmp_path / layout.__name__).mkdir()
        for path in [*place.rglob("*.png")]:
            target = tmp_path / layout.__name__ / path.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        data = open_data(root / layout.__name__, images=tmp_path / layout.__name__)
        assert sum(len(record.boxes) for split in data.splits.values() for record in split) == 24
    written(tmp_path / "two", ultralytics, images, lambda t: joined(number(t), *shares(t)))
    for p in images:
        put(tmp_path / "two" / "mine" / p.split / f"{p.stem}.txt", joined(number(p.things[0]), *shares(p.things[0])))
    assert sum(len(record.boxes) for split in open_data(tmp_path / "two").splits.values() for record in split) == 24
    data = open_data(tmp_path / "two", annotations="mine")
    assert sum(len(record.boxes) for split in data.splits.values() for record in split) == 12


def test_several_settings_are_named(tmp_path):
    written(tmp_path, ultralytics, pictures(), lambda t: joined(number(t), *shares(t)))
    (tmp_path / "data.yaml").rename(tmp_path / "a.yaml")
    put(tmp_path / "b.yaml", (tmp_path / "a.yaml").read_text())
    assert any("a.yaml is used, though b.yaml could be as well" in note for note in open_data(tmp_path).notes)
    assert any("b.yaml is used, though a.yaml could be as well" in note for note in open_data(tmp_path / "b.yaml").notes)


def test_settings_in_a_folder_of_their_own(tmp_path):
    images = pictures()
    written(tmp_path, ultralytics, images, lambda t: joined(number(t), *shares(t)))
    put(tmp_path / "cfg" / "data.yaml", f"train: ../images/train\nval: ../images/val\nnames: {NAMES}\n")
    (tmp_path / "data.yaml").unlink()
    assert any("cfg/data.yaml: what does not exist as written" in note for note in assert_boxes(tmp_path, images).notes)


def test_captions_beside_images_are_no_labels(tmp_path):
    for p in pictures():
        writers.save_image(tmp_path / f"{p.stem}.png", p)
        put(tmp_path / f"{p.stem}.txt", "a photograph of 2 cats and a dog at 12 o'clock")
    with pytest.raises(UserError, match="no annotations found"):
        open_data(Path(tmp_path))


@pytest.mark.parametrize("entry", ["test/images", "../test/images"])
def test_labels_of_a_split_without_images_are_counted(tmp_path, entry):
    writers.write_yolo_roboflow(tmp_path, pictures())
    head = tmp_path / "data.yaml"
    head.write_text("\n".join([*(line for line in head.read_text().splitlines() if not line.startswith("test")), f"test: {entry}"]))
    (tmp_path / "test/labels").mkdir(parents=True)
    (tmp_path / "test/labels/a.txt").write_text("0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n")
    (tmp_path / "test/labels/b.txt").write_text("0 .5 .5 .1 .1\n")
    (note,) = [note for note in open_data(tmp_path).notes if "test" in note]
    assert note.endswith("left out with 2 label files (3 boxes), as in test/labels/a.txt")


# -- labels, images and text in odd places ------------------------------------------------------------------------------------------------


def odd(root, place, count=12):
    """Images and labels, each in the folder that ``place`` gives for its number, and a class list."""
    images = pictures(count)
    for i, p in enumerate(images):
        writers.save_image(root / place(i)[0] / f"{p.stem}.png", p)
        put(root / place(i)[1] / f"{p.stem}.txt", "".join(joined(number(t), *shares(t)) + "\n" for t in p.things))
    put(root / "classes.txt", "\n".join(NAMES))
    return images


@pytest.mark.parametrize(
    "place",
    [
        lambda i: ("images", f"labels/batch{1 + i % 2}"),
        lambda i: ("images", f"labels/batch{1 + (i > 8)}"),
        lambda i: ("photos", f"annots/batch{1 + i % 2}"),
        lambda i: ("images/sub" if i % 3 else "images", "labels"),
        lambda i: (f"images/{'AB'[i % 2]}", "labels/A"),
    ],
)
def test_labels_of_one_image_folder_in_several(tmp_path, place):
    images = odd(tmp_path, place)
    data = assert_boxes(tmp_path, images)
    assert any("label files in another folder, found by name" in note for note in data.notes)


def test_folders_of_labels_are_splits(tmp_path):
    images = odd(tmp_path, lambda i: ("images", f"labels/{['train', 'train', 'val'][i % 3]}"))
    data = assert_boxes(tmp_path, images)
    assert {record.path.stem for record in data.splits["val"]} == {p.stem for p in images if p.split == "val"}
    assert any("the splits are those of the folders of the labels: train, val" in note for note in data.notes)


def test_a_split_that_the_settings_do_not_list(tmp_path):
    images = odd(tmp_path, lambda i: tuple(f"{top}/{['train', 'val', 'test', 'extra'][i % 4]}" for top in ("images", "labels")))
    put(tmp_path / "data.yaml", f"train: images/train\nval: images/val\nnames: {NAMES}\n")
    data = open_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 3, "test": 3}
    assert any("images/test with 3 labelled images is not listed in the settings: taken as test" in note for note in data.notes)
    assert any("images/extra with 3 labelled images is not listed in the settings: left out" in note for note in data.notes)
    assert len(images) == 12


def test_images_that_differ_by_their_ending(tmp_path):
    images = odd(tmp_path, lambda i: ("images", "labels"))
    writers.save_image(tmp_path / "images" / f"{images[0].stem}.bmp", images[0])
    data = open_data(tmp_path)
    records = [record for split in data.splits.values() for record in split]
    assert len({record.id for record in records}) == 13
    assert sum(len(record.boxes) for record in records) == 26
    assert any("2 images differ from another by their ending alone" in note for note in data.notes)


def test_text_among_labels(tmp_path, capsys):
    images = odd(tmp_path, lambda i: ("images", "labels"))
    put(tmp_path / "labels" / "info.txt", "Exported on Monday\nby me\n")
    put(tmp_path / "labels" / "attribution.txt", "2 cats by a friend\n")
    (tmp_path / "train.txt").mkdir()
    data = assert_boxes(tmp_path, images)
    assert any("2 text files among the labels are no label files, passed over: labels/attribution.txt" in note for note in data.notes)
    put(tmp_path / "labels" / "gone.txt", "0 0.5 0.5 0.2\n")
    _, report = validate(read(tmp_path))
    assert (report.boxes_total, report.boxes_kept, report.images_invalid) == (25, 24, 1)


def test_comments(tmp_path):
    images = odd(tmp_path, lambda i: ("images", "labels"))
    for path in (tmp_path / "labels").iterdir():
        put(path, "# class x y w h\n" + path.read_text().replace("\n", " # by me\n"))
    (tmp_path / "classes.txt").unlink()
    put(tmp_path / "data.yaml", f"train: images\nnames: {NAMES}\n")
    assert any("36 label lines have comments behind '#', left out" in note for note in assert_boxes(tmp_path, images).notes)


def test_a_label_file_that_is_no_text(tmp_path):
    images = odd(tmp_path, lambda i: ("images", "labels"), 24)
    (tmp_path / "labels" / f"{images[3].stem}.txt").write_bytes(bytes(range(256)))
    (tmp_path / "labels" / "more.txt").write_bytes(bytes(range(256)))
    data, report = validate(read(tmp_path))
    assert (report.boxes_total, report.boxes_kept, report.images_invalid) == (46, 46, 1)
    assert any("label file cannot be read" in line and f"{images[3].stem}.txt" in line for line in data.skipped)


def test_a_blank_line_among_class_names(tmp_path):
    odd(tmp_path, lambda i: ("images", "labels"))
    put(tmp_path / "classes.txt", "cat\n\ndog\nowl\n\n")
    assert any("classes.txt has a blank line among the names" in note and "class 1 is 'dog'" in note for note in open_data(tmp_path).notes)
    put(tmp_path / "classes.txt", "cat\n\ndog\n\nowl\n\n")
    assert not any("blank line" in note for note in open_data(tmp_path).notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Car 0.00 0 -1.57 5.24 6.78 27.31 34.77 1.57 1.73 4.15 1.0 1.62 8.4 0.01", "KITTI's form"),
        ("5,5,20,20,1,4,0,0", "VisDrone's own form"),
        ("cat 5.0 6.0 30.0 40.0", "a class and four corners in pixels"),
    ],
)
def test_labels_of_other_tools_are_named(tmp_path, capsys, line, words):
    written(tmp_path, ultralytics, pictures(), lambda t: line)
    checked(tmp_path, capsys, words, "convert the", status=2)
