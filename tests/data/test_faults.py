"""Fatal problems are one line that says what, where and what to do; skipped boxes and images are counted and named. That is all."""

import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from boxquery import UserError
from boxquery.data import voc, yolo
from boxquery.data.open import open_data

from . import writers
from .writers import FORMATS, Picture, Thing, pictures

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def refused(source, *words, **options):
    """The text of the error, which is one line and contains all the words."""
    with pytest.raises(UserError) as caught:
        open_data(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


def put(thing):
    """A fault that adds an object to the third picture."""
    return lambda images: images[2].things.append(thing)


def stated(images):
    images[2].stated = (100, 100)


def missing(images):
    images[2].missing = True


def garbage(images):
    images[2].data = b"this is not an image"


def truncated(images):
    images[2].data = JPEG


BOXES = {
    "no width": (put(Thing("cat", [5, 5, 5, 9])), "no size"),
    "negative height": (put(Thing("cat", [5, 9, 8, 5])), "no size"),
    "right of the image": (put(Thing("cat", [64, 5, 70, 9])), "outside its image"),
    "above the image": (put(Thing("cat", [5, -9, 8, -2])), "outside its image"),
    "infinite": (put(Thing("cat", [5, 5, float("inf"), 9])), "not finite"),
    "NaN": (put(Thing("cat", [5, float("nan"), 8, 9])), "not f"),  # not finite, or not four numbers where it was text
    "words": (put(Thing("cat", ["a", "b", "c", "d"])), "not four numbers"),
    "three numbers": (put(Thing("cat", ["5", "5", "9"])), "not four numbers"),
    "unknown category": (put(Thing("cow", [5, 5, 9, 9])), "unknown category"),
}
IMAGES = {"missing": (missing, "no such file"), "garbage": (garbage, "not an image"), "truncated": (truncated, "p002.png")}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fault", BOXES)
def test_an_invalid_box_is_skipped_and_named(tmp_path, kind, fault):
    images = pictures()
    total = sum(len(picture.things) for picture in images)
    spoil, reason = BOXES[fault]
    spoil(images)
    data = open_data(FORMATS[kind](tmp_path, images))
    assert len(data.skipped) == 1
    assert reason in data.skipped[0]
    place = {"coco": r"annotations/instances_val2017.json annotation \d+ \(image 100\)", "voc": r"Annotations/p002.xml object \d+"}
    assert re.match(place.get(kind, r"labels/val/p002.txt line \d+"), data.skipped[0])
    assert sum(len(record.boxes) for split in data.splits.values() for record in split) == total
    assert any(f"{total} of {total + 1} boxes kept, 1 skipped" in note for note in data.notes)
    refused(tmp_path, reason, "--strict", strict=True)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fault", IMAGES)
def test_an_invalid_image_is_skipped_with_its_boxes(tmp_path, kind, fault):
    images = pictures()
    spoil, reason = IMAGES[fault]
    spoil(images)
    images[2].things = images[2].things[:1]
    data = open_data(FORMATS[kind](tmp_path, images))
    assert len(data.skipped) == 1
    assert reason in data.skipped[0]
    assert "skipped with its 1 box" in data.skipped[0] or not images[2].things
    assert sum(map(len, data.splits.values())) == 23
    refused(tmp_path, reason, strict=True)


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_wrong_size_is_named_and_the_files_own_is_used(tmp_path, kind):
    images = pictures()
    stated(images)
    data = open_data(FORMATS[kind](tmp_path, images))
    assert len(data.skipped) == 1
    assert "stated size is not the file's (stated 100 x 100, the file is 64 x 48); the file's size is used" in data.skipped[0]
    assert sum(map(len, data.splits.values())) == 24
    assert {(r.width, r.height) for split in data.splits.values() for r in split} == {(64, 48)}
    refused(tmp_path, "100 x 100", strict=True)


def test_coco_annotation_of_an_unknown_image(tmp_path):
    images = pictures()
    writers.write_coco_file(tmp_path, images)
    content = writers.coco_content(images)
    content["annotations"][3:3] = [{"id": 900, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5]}, "what?", {"image_id": []}]
    (tmp_path / "data.json").write_text(json.dumps(content))
    data = open_data(tmp_path)
    assert [line.partition(": ")[2] for line in data.skipped] == [
        "unknown image (7); skipped",
        "not an object ('what?'); skipped",
        "unknown image ([]); skipped",
    ]
    assert "data.json annotation 900" in data.skipped[0]


def test_voc_listed_image_without_annotation(tmp_path):
    writers.write_voc(tmp_path, pictures())
    (tmp_path / "Annotations" / "p004.xml").unlink()
    data = open_data(tmp_path)
    assert not data.skipped
    assert "1 listed image without an annotation file used as without objects: ImageSets/Main/train.txt p004" in data.notes
    (tmp_path / "JPEGImages" / "p004.png").unlink()
    assert open_data(tmp_path).skipped == ["ImageSets/Main/train.txt p004: has no annotation; skipped"]


@pytest.mark.parametrize("kind", FORMATS)
def test_too_many_faults_are_fatal(tmp_path, kind):
    images = pictures()
    for picture in images[:3]:
        picture.missing = True
    refused(FORMATS[kind](tmp_path / "images", images), "3 of 24 images", "10%", "p000")
    images = pictures()
    images[0].things = [Thing("cat", [5, 5, 5, 5]) for _ in range(12)]
    refused(FORMATS[kind](tmp_path / "boxes", images), "12 of", "boxes", "10%")
    images = pictures(20)
    images[0].missing = images[1].missing = True  # exactly a tenth
    images[0].things = images[1].things = []
    open_data(FORMATS[kind](tmp_path / "tenth", images))


@pytest.mark.parametrize("kind", FORMATS)
def test_no_boxes_at_all(tmp_path, kind):
    images = pictures()
    for picture in images:
        picture.things = []
    refused(FORMATS[kind](tmp_path, images), "no categories" if kind == "voc" else "no boxes")


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_no_boxes_but_those_to_ignore(tmp_path, kind):
    images = pictures()
    for picture in images:
        for thing in picture.things:
            thing.ignore = True
    with pytest.raises(UserError, match=r"no boxes to train on: .*iscrowd, difficult"):
        open_data(FORMATS[kind](tmp_path, images)).training_split()


def coco_root(root, change):
    """A single-file COCO set whose content ``change`` spoils."""
    images = pictures()
    writers.write_coco_file(root, images)
    content = writers.coco_content(images)
    text = change(content)
    (root / "data.json").write_text(text if isinstance(text, str) else json.dumps(content))
    return root


COCO = {
    "broken": (lambda c: json.dumps(c)[:-30], "broken JSON"),
    "nested": (lambda c: "[" * 200_000, "nested"),
    "huge number": (lambda c: '{"images": ' + "1" * 5000 + "}", "broken JSON"),
    "a list": (lambda c: "[]", "not COCO"),
    "no annotations": (lambda c: c.pop("annotations") and None, "'annotations'"),
    "no images": (lambda c: c["images"].clear(), "has no images"),
    "no categories": (lambda c: c["categories"].clear(), "no categories"),
    "duplicate image": (lambda c: c["images"][5].update(id=101), "image id 101"),
    "duplicate category": (lambda c: c["categories"][1].update(id=3), "category id 3"),
    "category without id": (lambda c: c["categories"][1].pop("id") and None, "categories[1]"),
    "category id in words": (lambda c: c["categories"][1].update(id="3"), "categories[1]"),
    "image without id": (lambda c: c["images"][4].pop("id") and None, "images[4]"),
    "image id a list": (lambda c: c["images"][4].update(id=[1]), "images[4]"),
    "up and out": (lambda c: c["images"][4].update(file_name="../../x.png"), "leaves the data folder"),
    "absolute": (lambda c: c["images"][4].update(file_name="/etc/hostname"), "leaves the data folder"),
    "drive": (lambda c: c["images"][4].update(file_name="C:\\x.png"), "not a path inside"),
    "back slashes": (lambda c: c["images"][4].update(file_name="..\\..\\x.png"), "leaves the data folder"),
    "NUL": (lambda c: c["images"][4].update(file_name="a\0b.png"), "not a path inside"),
}


@pytest.mark.parametrize("fault", COCO)
def test_coco_fatal(tmp_path, fault):
    change, words = COCO[fault]
    refused(coco_root(tmp_path / "set", change), words, *(["data.json"] if fault != "no images" else []))


def test_coco_not_utf8_and_splits_that_disagree(tmp_path):
    (tmp_path / "bad.json").write_bytes(b'{"images": "\xff\xfe"}')
    refused(tmp_path / "bad.json", "broken JSON")
    root = writers.write_coco(tmp_path / "set", pictures())
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "cow"
    file.write_text(json.dumps(content))
    refused(root, "category 3", "'cow'", "'cat'")
    (root / "annotations" / "instances_valid.json").write_text(file.read_text())
    refused(root, "are both val")
    (root / "annotations" / "instances_valid.json").rename(root / "annotations" / "instances_more.json")
    refused(root, "instances_more.json", "train, val or test")


VOC = {
    "broken": (lambda r: (r / "Annotations" / "p001.xml").write_text("<annotation><object>"), "Annotations/p001.xml: broken XML"),
    "empty": (lambda r: (r / "Annotations" / "p001.xml").write_text(""), "Annotations/p001.xml: broken XML"),
    "encoding": (
        lambda r: (r / "Annotations" / "p001.xml").write_bytes(b'<?xml version="1.0" encoding="klingon"?><annotation/>'),
        "broken XML",
    ),
    "entities": (
        lambda r: (r / "Annotations" / "p001.xml").write_text('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'),
        "entities are not accepted",
    ),
    "other XML": (lambda r: (r / "Annotations" / "p001.xml").write_text("<svg/>"), "<svg>"),
    "listed twice": (lambda r: (r / "ImageSets" / "Main" / "val.txt").open("a").write("p002\n"), "'p002' is listed twice"),
    "list leaves": (lambda r: (r / "ImageSets" / "Main" / "val.txt").open("a").write("../../x\n"), "leaves the data folder"),
    "list not UTF-8": (lambda r: (r / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff\xfe\xff"), "UTF-8"),
    "filename leaves": (
        lambda r: (r / "Annotations" / "p001.xml").write_text("<annotation><filename>../../x.png</filename></annotation>"),
        "leaves the data folder",
    ),
    "no annotations": (lambda r: [file.unlink() for file in (r / "Annotations").iterdir()], "no .xml annotations"),
}


@pytest.mark.parametrize("fault", VOC)
def test_voc_fatal(tmp_path, fault):
    spoil, words = VOC[fault]
    root = writers.write_voc(tmp_path / "set", pictures())
    spoil(root)
    refused(root, words)


def yaml(text):
    return lambda root: (root / "data.yaml").write_text(text)


YOLO = {
    "broken": (yaml("names: [cat, dog\ntrain: images/train"), "data.yaml: broken YAML"),
    "nested": (yaml("[" * 5000), "data.yaml: broken YAML"),
    "a list": (yaml("- cat"), "data.yaml"),
    "no names": (yaml("train: images/train\nval: images/val"), "no categories"),
    "empty names": (yaml("names: []\ntrain: images/train\nval: images/val"), "no categories"),
    "names in words": (yaml("names: {a: cat}\ntrain: images/train\nval: images/val"), "no categories"),
    "no such split": (yaml("names: [cat]\ntrain: images/trian"), "images/trian"),
    "split a number": (yaml("names: [cat]\ntrain: 3"), "data.yaml train"),
    "split leaves": (yaml("names: [cat]\ntrain: ../../elsewhere"), "leaves the data folder"),
    "split absolute": (yaml("names: [cat]\ntrain: /etc"), "leaves the data folder"),
    "path leaves": (yaml("path: ../..\nnames: [cat]\ntrain: somewhere"), "leaves the data folder"),
    "no labels": (lambda r: [f.unlink() for f in (r / "labels").rglob("*.txt")], "no label files"),
}


@pytest.mark.parametrize("fault", YOLO)
def test_yolo_fatal(tmp_path, fault):
    spoil, words = YOLO[fault]
    root = writers.write_yolo(tmp_path / "set", pictures())
    spoil(root)
    refused(root, words)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_out_are_fatal(tmp_path, kind, what):
    root = FORMATS[kind](tmp_path / "set", pictures())
    image = next(root.rglob("p000.png"))
    target = image if what == "file" else image.parent
    target.rename(tmp_path / "outside")
    os.symlink(tmp_path / "outside", target)
    refused(root, "link that leaves the data folder")


def test_links_inside_and_a_linked_root_are_fine(tmp_path):
    root = writers.write_coco(tmp_path / "set", pictures())
    (root / "train2017").rename(root / "pixels")
    os.symlink(root / "pixels", root / "train2017")
    os.symlink(root, tmp_path / "link")
    assert open_data(tmp_path / "link").skipped == []


def test_empty_and_unknown_folders(tmp_path):
    refused(tmp_path, "no annotations found")
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path / "a.txt", "not a data set")
    (tmp_path / "Annotations").mkdir()
    refused(tmp_path, "no .xml annotations")
    (tmp_path / "Annotations").rename(tmp_path / "annotations")
    refused(tmp_path, "annotations")
    writers.write_voc_flat(tmp_path / "one", pictures(1, splits=("train",)) or [])
    (tmp_path / "one" / "p000.xml").write_text(writers.voc_text(Picture("p000", "train", [Thing("cat", [1, 1, 5, 5])])))
    data = open_data(tmp_path / "one")
    with pytest.raises(UserError, match=r"no split 'val' .one image cannot be split into train and val; add images"):
        data.split("val")


def test_readers_raise_errors_of_their_own(tmp_path):
    for read in (lambda: voc.read(tmp_path), lambda: yolo.read(tmp_path, tmp_path)):
        with pytest.raises(UserError):
            read()


@pytest.mark.parametrize("kind", FORMATS)
def test_jpegs_without_their_end_are_used_and_named(tmp_path, kind):
    images = pictures()
    total = sum(len(picture.things) for picture in images)
    stream = io.BytesIO()
    # the same noise every time: of one in thirty the last bytes hold nothing that is needed
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(stream, "JPEG")
    for picture in images[:5]:
        picture.data = stream.getvalue()[:-2]  # under .png: the content decides
    data = open_data(FORMATS[kind](tmp_path, images))
    assert data.skipped == []
    assert sum(len(record.boxes) for split in data.splits.values() for record in split) == total
    assert "5 images lacking the end of the file, used as far as it goes: " in "\n".join(data.notes)


ODD = ("labels/pipe.txt", "p.txt", "x.yaml", "y.json", "z.xml", "c.csv", "extra/a.json")


@pytest.mark.parametrize("kind", FORMATS)
def test_pipes_and_dangling_links_and_folders_named_like_files_are_passed_over(tmp_path, kind):
    root = FORMATS[kind](tmp_path / "set", pictures())
    before = len(open_data(root).splits["train"])
    for name in ODD:
        (root / name).parent.mkdir(exist_ok=True)
        os.mkfifo(root / name)
    os.symlink("x", root / "x")
    os.symlink("nowhere.json", root / "n.json")
    (root / "test.txt").mkdir()
    assert len(open_data(root).splits["train"]) == before


@pytest.mark.parametrize("name", ["annotations/a.json", "annotations", "x.csv", "x.yaml"])
def test_nothing_outside_is_opened_to_recognise_it(tmp_path, monkeypatch, name):
    root, outside = tmp_path / "set", tmp_path / "outside"
    writers.save_image(root / "images" / "a.png", Picture("a", "train", []))
    outside.mkdir()
    for inner in ("a.json", "x.csv", "x.yaml"):
        (outside / inner).write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,1,1,9,9\n")
    (root / name).parent.mkdir(exist_ok=True)
    os.symlink(outside if name == "annotations" else outside / name.rpartition("/")[2], root / name)
    opened, really = [], io.open

    def watched(path, *args, **options):
        opened.append(str(path))
        return really(path, *args, **options)

    monkeypatch.setattr("io.open", watched)
    refused(root, "a link that leaves the data folder")
    assert [path for path in opened if "outside" in os.path.realpath(path)] == []
