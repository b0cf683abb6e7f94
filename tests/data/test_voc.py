"""Pascal VOC as tools, people and countries write it: every box is kept or named, and splits come from whatever names them."""

import itertools
import math
import re
import shutil

import numpy as np
import pytest

from boxquery import UserError
from boxquery.data.open import open_data

from . import writers
from .writers import NAMES, Thing, pictures

DECLARED = '<?xml version="1.0" encoding="{}"?>\n'


def kept(data):
    return sum(len(record.boxes) for split in data.splits.values() for record in split)


def boxes(images):
    return sum(len(picture.things) for picture in images)


def sides(data):
    return {name: {record.path.stem for record in split} for name, split in data.splits.items()}


def expected(images):
    return {name: {p.stem for p in images if p.split == name} for name in ("train", "val")}


def write(root, images, annotation, image, text=writers.voc_text, encoding="utf-8"):
    """XML and image files in folders that may hold ``{split}``."""
    for picture in images:
        folder, place = (root / name.format(split=picture.split) for name in (annotation, image))
        folder.mkdir(parents=True, exist_ok=True)
        writers.save_image(place / f"{picture.stem}.png", picture)
        (folder / f"{picture.stem}.xml").write_bytes(text(picture).encode(encoding))
    return root


def edit(change):
    """Text of an annotation with something replaced."""
    return lambda picture: re.sub(*change, writers.voc_text(picture), flags=re.DOTALL)


SPLIT = [
    ("Annotations/{split}", "JPEGImages/{split}"),
    ("annotations/{split}", "images/{split}"),
    ("{split}/annotations", "{split}/images"),
    ("{split}/Annotations", "{split}/JPEGImages"),
    ("{split}/xml", "{split}/img"),
    ("{split}_annotations", "{split}_images"),
    ("labels/{split}", "images/{split}"),
    ("{split}", "{split}"),
    ("Annotations", "JPEGImages/{split}"),
]
WHOLE = [
    ("Annotations", "JPEGImages"),
    ("annotations/xmls", "images"),
    ("annots", "images"),
    ("labels", "images"),
    ("xml", "data"),
    ("what", "ever"),
    (".", "."),
    ("labels", "."),
    ("both", "both"),
]


@pytest.mark.parametrize(("annotation", "image"), SPLIT)
@pytest.mark.parametrize("words", [("train", "val"), ("Train", "Validation"), ("training", "valid")])
def test_split_folders(tmp_path, annotation, image, words):
    images = pictures(16)
    for picture in images:
        picture.split = dict(zip(("train", "val"), words, strict=True))[picture.split]
    data = open_data(write(tmp_path, images, annotation, image))
    for picture in images:
        picture.split = "train" if picture.split == words[0] else "val"
    assert sides(data) == expected(images)
    assert (kept(data), data.skipped) == (boxes(images), [])


@pytest.mark.parametrize(("annotation", "image"), WHOLE)
def test_folders_without_splits(tmp_path, annotation, image):
    images = pictures(16)
    data = open_data(write(tmp_path, images, annotation, image))
    assert (data.format, kept(data), data.skipped) == ("voc", boxes(images), [])
    assert any("the data has no splits" in note for note in data.notes)


LINES = {
    "plain": "{0}",
    "ending": "{0}.png",
    "path": "JPEGImages/{0}.png",
    "foreign path": "/home/me/VOC/JPEGImages/{0}.png",
    "windows": "D:\\VOC\\{0}.png",
    "column": "{0} 1",
    "columns": "{0}   -1",
    "comment": "{0}  # seen",
    "two files": "JPEGImages/{0}.png Annotations/{0}.xml",
    "quoted": '"{0}"',
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(
    "names", [("train", "val"), ("Train", "Validation"), ("my_train", "my_val"), ("trainval", "val"), ("train2020", "valid")]
)
def test_lists(tmp_path, line, names):
    if "my_train" in names and "column" in line:
        pytest.skip("lists of one class")
    images = pictures(16)
    root = write(tmp_path, images, "Annotations", "JPEGImages")
    main = root / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split, name in zip(("train", "val"), names, strict=True):
        stems = [p.stem for p in images if p.split == split or (name == "trainval")]
        (main / f"{name}.txt").write_text("# made by hand\n\n" + "\n".join(LINES[line].format(stem) for stem in stems))
    (main / "cat_train.txt").write_text("\n".join(f"{p.stem} {-1 if i % 2 else 1}" for i, p in enumerate(images)))
    (main / "default.txt").write_text("p000\n")
    data = open_data(root)
    assert sides(data) == expected(images)
    assert (kept(data), data.skipped) == (boxes(images), [])
    assert "1 list not used: ImageSets/Main/default.txt" in data.notes


@pytest.mark.parametrize("place", ["ImageSets/Layout", "ImageSets/Segmentation", "ImageSets", "imagesets/main", "."])
def test_lists_elsewhere(tmp_path, place):
    images = pictures(16)
    root = write(tmp_path, images, "Annotations", "JPEGImages")
    (root / place).mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (root / place / f"{split}.txt").write_text("\n".join(p.stem for p in images if p.split == split and p.stem != "p015"))
    data = open_data(root)
    assert sum(map(len, data.splits.values())) == 15
    assert any("1 annotation file in none of the lists" in note and "Annotations/p015.xml" in note for note in data.notes)


ENCODINGS = {
    "gb2312": "红色", "gbk": "紅色", "GB18030": "绿", "big5": "藍色", "shift_jis": "赤い", "euc-jp": "青", "euc-kr": "파랑",
    "windows-1251": "красный",
    "koi8-r": "синий", "iso-8859-1": "grün", "cp1252": "grün", "utf-8": "grün红", "utf-16": "grün红",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("annotation", "image"), [("Annotations", "JPEGImages"), ("{split}", "{split}")])
def test_encodings_by_their_declaration(tmp_path, encoding, annotation, image):
    images, name = pictures(10), ENCODINGS[encoding]

    def text(picture):
        return DECLARED.format(encoding) + writers.voc_text(picture).replace("<name>cat</name>", f"<name>{name}</name>")

    data = open_data(write(tmp_path, images, annotation, image, text, encoding))
    assert sorted(data.names) == sorted([name, *NAMES[1:]]) if NAMES[0] == "cat" else name in data.names
    assert (kept(data), data.skipped) == (boxes(images), [])


def test_a_declaration_that_is_wrong_and_one_that_is_nothing(tmp_path):
    images = pictures(10)
    write(tmp_path, images, "Annotations", "JPEGImages", lambda p: DECLARED.format("gb2312") + writers.voc_text(p).replace("cat", "é红"))
    assert "é红" in open_data(tmp_path).names
    (tmp_path / "Annotations" / "p001.xml").write_bytes(
        b"\xef\xbb\xbf" + DECLARED.format("utf-8").encode() + writers.voc_text(images[1]).encode()
    )
    assert kept(open_data(tmp_path)) == boxes(images)
    (tmp_path / "Annotations" / "p001.xml").write_text('<!DOCTYPE annotation SYSTEM "http://x/y.dtd">' + writers.voc_text(images[1]))
    assert kept(open_data(tmp_path)) == boxes(images)  # nothing is fetched
    (tmp_path / "Annotations" / "p001.xml").write_text('<!DOCTYPE annotation [<!ENTITY a "b">]>' + writers.voc_text(images[1]))
    with pytest.raises(UserError, match=r"p001.xml: XML entities are not accepted"):
        open_data(tmp_path)


BNDBOX = r"<bndbox><xmin>(.*?)</xmin><ymin>(.*?)</ymin><xmax>(.*?)</xmax><ymax>(.*?)</ymax></bndbox>"
SAME = {
    "another order": (BNDBOX, r"<bndbox><ymax> \4 </ymax><xmax>\n\3\n</xmax><xmin>\1</xmin><ymin>\2</ymin></bndbox>"),
    "parts": (BNDBOX, r"<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>\g<0>"),
    "in objects": (r"(<object>.*</object>)", r"<objects>\1</objects>"),
    "exchanged x": (BNDBOX, r"<bndbox><xmin>\3</xmin><ymin>\2</ymin><xmax>\1</xmax><ymax>\4</ymax></bndbox>"),
    "exchanged": (BNDBOX, r"<bndbox><xmin>\3</xmin><ymin>\4</ymin><xmax>\1</xmax><ymax>\2</ymax></bndbox>"),
    "polygon": (BNDBOX, r"<polygon><x1>\1</x1><y1>\2</y1><x2>\3</x2><y2>\2</y2><x3>\3</x3><y3>\4</y3></polygon>"),
    "points": (BNDBOX, r"<polygon><point><x>\1</x><y>\4</y></point><point><x>\3</x><y>\2</y></point></polygon>"),
    "polygon beside": (BNDBOX, r"\g<0><polygon><x1>0</x1><y1>0</y1><x2>60</x2><y2>40</y2></polygon>"),
    "file name with a path": (r"<filename>", "<folder>x</folder><filename>C:\\\\photos\\\\"),
    "path of another machine": (r"<filename>(.*?)</filename>", r"<path>/home/me/\1</path><filename>/home/me/\1</filename>"),
    "wrong ending": (r"\.png</filename>", ".jpg</filename>"),
    "no ending": (r"\.png</filename>", "</filename>"),
    "no file name": (r"<filename>.*?</filename>", ""),
    "stale file name": (r"<filename>.*?</filename>", "<filename>other.png</filename>"),
    "no size": (r"<size>.*?</size>", "<size><width>0</width><height>0</height><depth>0</depth></size>"),
    "difficult in words": (
        r"<difficult>0</difficult>",
        "<difficult>Unspecified</difficult><pose>Unspecified</pose><truncated>true</truncated>",
    ),
}


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize(("annotation", "image"), [("Annotations", "JPEGImages"), ("{split}/xml", "{split}/img"), (".", ".")])
def test_the_same_boxes_written_otherwise(tmp_path, change, annotation, image):
    images = pictures(12)
    data = open_data(write(tmp_path, images, annotation, image, edit(SAME[change])))
    by_stem = {record.path.stem: record for split in data.splits.values() for record in split}
    assert data.skipped == []
    for picture in images:
        np.testing.assert_allclose(by_stem[picture.stem].boxes, np.reshape([t.box for t in picture.things], (-1, 4)), atol=1e-4)
        assert not by_stem[picture.stem].ignore.any()
    assert any("exchanged" in note for note in data.notes) == ("exchanged" in change)
    assert any("polygons without bndbox" in note for note in data.notes) == (change in ("polygon", "points"))


ROTATED = r"<robndbox><cx>30</cx><cy>20</cy><w>20</w><h>10</h><angle>{}</angle></robndbox>"


@pytest.mark.parametrize(("angle", "half"), [(0, (10, 5)), (math.pi / 2, (5, 10)), (math.pi / 4, (15 / math.sqrt(2), 15 / math.sqrt(2)))])
def test_rotated_boxes_become_upright(tmp_path, angle, half):
    images = pictures(10)
    data = open_data(write(tmp_path, images, "Annotations", "JPEGImages", edit((BNDBOX, ROTATED.format(angle)))))
    for record in itertools.chain(*data.splits.values()):
        for box in record.boxes:
            np.testing.assert_allclose(box, [30 - half[0], 20 - half[1], 30 + half[0], 20 + half[1]], atol=1e-4)
    assert f"{boxes(images)} rotated boxes (robndbox) without bndbox: the upright box around is used" in data.notes


FAULTS = {
    "one exchanged": (lambda images: images[2].things.append(Thing("cat", [9, 1, 5, 9])), "box has no size"),
    "half a bndbox": (lambda images: images[2].things.append(Thing("cat", [9, 1])), "not four numbers"),
    "no bndbox": (lambda images: images[2].things.append(Thing("cat", [])), "not four numbers"),
    "words": (lambda images: images[2].things.append(Thing("cat", ["a", 1, 2, 3])), "not four numbers"),
    "no name": (lambda images: images[2].things.append(Thing("", [1, 1, 9, 9])), "unknown category (no name"),
    "no image": (lambda images: setattr(images[2], "missing", True), "no such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("annotation", "image"), SPLIT[:4] + WHOLE[:3])
def test_kept_and_skipped_are_those_in_the_files(tmp_path, fault, annotation, image):
    spoil, words = FAULTS[fault]
    images = pictures(30)
    for picture in images[3:]:
        picture.things.append(Thing("cat", [1, 1, 9, 9]))
    spoil(images)
    data = open_data(write(tmp_path, images, annotation, image))
    skipped = len(images[2].things) if fault == "no image" else 1
    assert kept(data) + skipped == boxes(images)
    assert len(data.skipped) == 1
    assert words in data.skipped[0]
    with pytest.raises(UserError, match=rf"--strict.*; {boxes(images) - skipped} of {boxes(images)} boxes kept, {skipped} skipped"):
        open_data(tmp_path, strict=True)


def test_what_many_images_share_is_said_once(tmp_path):
    images = pictures(16)
    write(tmp_path, images, "Annotations", "JPEGImages")
    shutil.rmtree(tmp_path / "JPEGImages")
    with pytest.raises(UserError) as caught:
        open_data(tmp_path)
    words = "16 of 16 images are invalid, more than 10%: no such file: all 16 images; the first is Annotations/p000.xml ('p000.png'; looked"
    assert words in str(caught.value)
    assert f"0 of {boxes(images)} boxes kept, {boxes(images)} skipped" in str(caught.value)
    assert "remove" not in str(caught.value)


def test_images_of_another_split_and_without_annotation(tmp_path):
    """Frames of both splits have the same names: each annotation means the one of its own split; images without annotation are said."""
    images = pictures(16)
    write(tmp_path, images, "{split}/annotations", "{split}/images")
    for picture in images[:4]:
        writers.save_image(tmp_path / "val" / "images" / f"{picture.stem}.png", picture)
    data = open_data(tmp_path)
    assert all(record.path.parts[-3] == name for name, split in data.splits.items() for record in split)
    writers.save_image(tmp_path / "train" / "images" / "extra.png", images[0])
    assert "1 image without an annotation file left out: train/images/extra.png" in open_data(tmp_path).notes


@pytest.mark.parametrize(
    ("annotation", "image", "mask"),
    [
        ("annotations/xmls", "images", "annotations/trimaps"),
        ("labels/xml", "pictures", "labels/mask"),
        ("train/annotations/xml", "train/images", "train/annotations/masks"),
        ("labels", "images", "labels"),
        ("Annotations", "JPEGImages", "SegmentationClass"),
        ("annotations/xmls", "images", "annotations/what"),
    ],
)
def test_a_mask_is_not_the_image(tmp_path, annotation, image, mask):
    images = pictures(8)
    write(tmp_path, images, annotation, image, edit((r"<filename>(\w+).png", r"<filename>\1.jpg")))
    for file in sorted((tmp_path / image).iterdir()):
        (tmp_path / mask).mkdir(parents=True, exist_ok=True)
        (tmp_path / mask / file.name).write_bytes(file.read_bytes())
        file.rename(file.with_suffix(".jpg"))
    records = [record for split in open_data(tmp_path).splits.values() for record in split]
    assert len(records) == 8
    assert {record.path.parent for record in records} == {tmp_path / image}


def test_two_annotation_files_of_an_image_are_put_together(tmp_path):
    images = pictures(6)
    write(tmp_path, images, "annotations/a", "images")
    shutil.copytree(tmp_path / "annotations" / "a", tmp_path / "annotations" / "b")
    data = open_data(tmp_path)
    assert (sum(map(len, data.splits.values())), kept(data)) == (6, 2 * boxes(images))
    assert any("put together (annotations/a/p000.xml and annotations/b/p000.xml)" in note for note in data.notes)


def test_every_bndbox_counts(tmp_path):
    second = "</bndbox><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    images = pictures(6)
    data = open_data(write(tmp_path, images, "annotations", "images", edit(("</bndbox>", second))))
    assert kept(data) == 2 * boxes(images)
    assert any("beyond the first of an object" in note for note in data.notes)


def test_objects_in_another_element(tmp_path):
    images = pictures(6)
    data = open_data(write(tmp_path, images, "annotations", "images", edit(("(</?)object>", r"\1item>"))))
    assert kept(data) == boxes(images)
    assert any("in <item> in place of <object>" in note for note in data.notes)


def test_namespaces(tmp_path):
    images = pictures(6)
    data = open_data(write(tmp_path, images, "annotations", "images", edit(("<annotation>", '<annotation xmlns="http://a.b/c">'))))
    assert kept(data) == boxes(images)


@pytest.mark.parametrize("spoil", ["folder", "list", "XML of another kind"])
def test_names_alone_do_not_make_it_voc(tmp_path, spoil):
    writers.write_yolo(tmp_path, pictures(9))
    (tmp_path / ("ImageSets" if spoil == "list" else "Annotations")).mkdir()
    if spoil == "list":
        (tmp_path / "ImageSets" / "train.txt").write_text("p000\n")
    elif spoil == "XML of another kind":
        (tmp_path / "Annotations" / "labels.xml").write_text("<labels/>")
    assert open_data(tmp_path).format == "yolo"


def test_a_list_of_images_without_annotations_is_no_split(tmp_path):
    images = pictures(9, splits=("train", "val", "test"))
    writers.write_voc(tmp_path, images)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("\n".join(p.stem for p in images if p.split == "test"))
    for picture in images:
        if picture.split == "test":
            (tmp_path / "Annotations" / f"{picture.stem}.xml").unlink()
    data = open_data(tmp_path)
    assert sides(data) == expected(images)
    assert "none of its 3 images has an annotation" in data.absent["test"]


def test_empty_lists_are_no_lists(tmp_path):
    writers.write_voc(tmp_path, pictures(9))
    for file in (tmp_path / "ImageSets" / "Main").iterdir():
        file.write_text("")
    assert sum(map(len, open_data(tmp_path).splits.values())) == 9


def test_xml_of_another_kind_is_passed_over_and_broken_xml_is_counted(tmp_path):
    write(tmp_path, pictures(6), "annotations", "images")
    (tmp_path / "annotations" / "classes.xml").write_text("<classes/>")
    assert any("another kind left out: annotations/classes.xml" in note for note in open_data(tmp_path).notes)
    for stem in ("p001", "p004"):
        (tmp_path / "annotations" / f"{stem}.xml").write_text("")
    with pytest.raises(UserError, match=r"annotations/p001.xml: broken XML.*; 2 of 7 annotation files cannot be read"):
        open_data(tmp_path)
