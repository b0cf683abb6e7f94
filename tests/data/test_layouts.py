"""Folders as people have them: which files are annotations, where their images are, and which split they are of."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest

from boxquery import UserError

from . import writers
from .outcomes import boxes, by_split, expected, outcome
from .writers import Picture, Thing, pictures


def coco_in(json_name, image_name):
    """A writer: a JSON per split and its images, where these patterns say."""

    def write(root, images):
        for split, group in by_split(images).items():
            file = root / json_name.format(split)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(writers.coco_content(group)))
            for picture in group:
                writers.save_image(root / image_name.format(split) / f"{picture.stem}.png", picture)
        return root

    return write


def in_capitals(write):
    def rename(root, images):
        write(root, images)
        for place in sorted((p for p in root.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
            place.rename(place.with_name(place.name.upper()))
        return root

    return rename


LAYOUTS: dict[str, Callable] = {
    "annots and data": coco_in("annots/{}.json", "data/{}"),
    "one folder of images": coco_in("labels/{}.json", "imgs"),
    "json and img": coco_in("json/coco_{}.json", "img/{}"),
    "files beside images": coco_in("{}.json", "images/{}"),
    "files beside one folder": coco_in("{}.json", "photos"),
    "FiftyOne": coco_in("{}/labels.json", "{}/data"),
    "CVAT": coco_in("annotations/instances_{}.json", "images/{}"),
    "CVAT with folders": coco_in("{}/annotations/instances_default.json", "{}/images/default"),
    "split folders": coco_in("{}/coco.json", "{}/images"),
    "split folders, any case": in_capitals(coco_in("{}/annotations/coco.json", "{}/images")),
    "CamelCase": coco_in("Annotations/{}Set.json", "{}Images"),
    "Roboflow": coco_in("{}/_annotations.coco.json", "{}"),
    "far below": coco_in("annotations/{}.json", "all/of/the/images"),
    "annotations two folders below": coco_in("export/coco/{}.json", "photos"),
}
WORDS = [("train", "val"), ("training", "validation"), ("trn", "dev"), ("Train", "Valid"), ("TRAIN", "EVAL")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coco_layouts(tmp_path, layout):
    images = pictures(12)
    data, _ = outcome(LAYOUTS[layout](tmp_path, images), sum(len(p.things) for p in images))
    assert data.format == "coco"
    assert boxes(data) == expected(images)
    assert {name: {r.path.stem for r in split} for name, split in data.splits.items()} == {
        name: {p.stem for p in group} for name, group in by_split(images).items()
    }


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("layout", ["annots and data", "FiftyOne", "Roboflow", "files beside one folder"])
def test_words_of_splits(tmp_path, layout, words):
    images = pictures(12)
    names = dict(zip(("train", "val"), words, strict=True))
    for picture in images:
        picture.split = names[picture.split]
    data, _ = outcome(LAYOUTS[layout](tmp_path, images))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 4}


def test_the_same_names_in_each_split(tmp_path):
    """Images that are numbered anew in each split are each found in their own."""
    images = [Picture(f"{i}", split, [Thing("cat", [i, 1, i + 5, 9 + (split == "val")])]) for split in ("train", "val") for i in range(6)]
    data, _ = outcome(LAYOUTS["annots and data"](tmp_path, images), 12)
    assert [record.path.parent.name for split in data.splits.values() for record in split] == ["train"] * 6 + ["val"] * 6
    shutil.rmtree(tmp_path / "data" / "val")
    data, said = outcome(tmp_path)
    assert "none of the 6 images of val is there" in said
    assert {record.path.parent.name for split in data.splits.values() for record in split} == {"train"}


def test_a_split_that_was_not_exported(tmp_path):
    images = pictures(16, ("train", "train", "val", "test"))
    LAYOUTS["annots and data"](tmp_path, images)
    shutil.rmtree(tmp_path / "data" / "test")
    data, said = outcome(tmp_path)
    boxes_of_test = sum(len(p.things) for p in images if p.split == "test")
    assert "none of the 4 images of test is there (no such file ('p003.png'" in said
    assert f"left out with its {boxes_of_test} boxes" in said
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 4}
    with pytest.raises(UserError, match=r"no split 'test' .none of its 4 images is there"):
        data.split("test")
    (tmp_path / "annots" / "test.json").write_text("")
    assert "annots/test.json: an empty file; left out" in outcome(tmp_path)[1]
    (tmp_path / "annots" / "test.json").write_text('{"classes": 3}')
    assert "annots/test.json: no list 'images'" in outcome(tmp_path)[1]


def test_category_ids_of_one_file_are_others(tmp_path):
    images = pictures(12)
    root = LAYOUTS["annots and data"](tmp_path, images)
    (root / "annots" / "val.json").write_text(json.dumps(writers.coco_content([p for p in images if p.split == "val"], (90, 3, 17))))
    data, said = outcome(root)
    assert "annots/val.json: its category ids are others than those of the files before it: matched by name" in said
    assert boxes(data) == expected(images)


def test_one_readable_folder_inside_is_taken_and_several_are_named(tmp_path):
    images = pictures(12)
    writers.write_coco(tmp_path / "a" / "b" / "set", images)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "notes").mkdir()
    data, said = outcome(tmp_path)
    assert "the data is in a/b/set/" in said
    assert boxes(data) == expected(images)
    writers.write_voc(tmp_path / "a" / "b" / "voc", images)
    with pytest.raises(UserError, match="several folders hold annotations: a/b/set/, a/b/voc/; give one of them"):
        outcome(tmp_path)


def test_where_nothing_is_found_it_is_said_what_is_there(tmp_path):
    for picture in pictures(3):
        writers.save_image(tmp_path / "images" / f"{picture.stem}.png", picture)
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "rest.zip").write_bytes(b"PK")
    with pytest.raises(UserError) as caught:
        outcome(tmp_path)
    for words in ("no annotations found", "3 images", "1 .txt", "unpack rest.zip", "COCO .json", "Pascal VOC .xml", "YOLO data.yaml"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match=r"rest.zip: an archive; unpack it, and give the folder"):
        outcome(tmp_path / "rest.zip")


@pytest.mark.parametrize("writer", list(writers.FORMATS.values()))
def test_what_macos_leaves_is_not_seen(tmp_path, writer):
    images = pictures(12)
    root = writer(tmp_path / "zip" / "mine", images)
    for path in [p for p in root.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        (path.parent / ".DS_Store").write_bytes(b"\0")
        (path.parent / "Thumbs.db").write_bytes(b"\0")
    shutil.copytree(root, tmp_path / "zip" / "__MACOSX" / "mine")
    data, said = outcome(tmp_path / "zip")
    assert "the data is in mine/" in said
    assert boxes(data) == expected(images)
    assert data.skipped == []
    shutil.copytree(root, root / ".ipynb_checkpoints")
    assert boxes(outcome(root)[0]) == expected(images)


# -- what the user says ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def apart(tmp_path):
    """Two copies of the images, so that nobody can tell which are meant, and annotations of each format in folders of their own."""
    images = pictures(12, ("train",))
    for place in ("left", "right"):
        for picture in images:
            writers.save_image(tmp_path / place / f"{picture.stem}.png", picture)
    for kind in ("coco", "voc", "yolo"):
        (tmp_path / kind).mkdir()
    (tmp_path / "coco" / "all.json").write_text(json.dumps(writers.coco_content(images)))
    for picture in images:
        (tmp_path / "voc" / f"{picture.stem}.xml").write_text(writers.voc_text(picture))
        (tmp_path / "yolo" / f"{picture.stem}.txt").write_text(writers.yolo_text(picture))
    (tmp_path / "classes.txt").write_text("\n".join(writers.NAMES))
    return tmp_path, images


@pytest.mark.parametrize("place", ["left", "right"])
@pytest.mark.parametrize("kind", writers.FORMATS)
def test_images_and_annotations_that_are_named(apart, kind, place, monkeypatch):
    root, images = apart
    given = sum(len(picture.things) for picture in images)
    monkeypatch.chdir(root.parent)
    for options in (
        {"images": place, "annotations": kind},
        {"images": f"{root.name}/{place}", "annotations": root / kind},
        {"images": str(root / place), "annotations": f"{kind}/all.json" if kind == "coco" else kind},
    ):
        data, _ = outcome(root, given, **options)
        assert data.format == kind
        assert boxes(data) == expected(images)
        assert {record.path.parent.name for split in data.splits.values() for record in split} == {place}


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_images_and_annotations_from_elsewhere(apart, tmp_path_factory, kind):
    """An absolute path may lead anywhere: the user gives it, not the data."""
    root, images = apart
    given = sum(len(picture.things) for picture in images)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(root / "left", elsewhere / "photos")
    shutil.rmtree(root / "right")
    data, _ = outcome(root, given, images=elsewhere / "photos", annotations=kind)
    assert boxes(data) == expected(images)
    shutil.copy(root / "classes.txt", root / kind)
    shutil.move(root / kind, elsewhere / kind)
    shutil.move(elsewhere / "photos", root / "photos")
    data, _ = outcome(root, given, annotations=elsewhere / kind)
    assert boxes(data) == expected(images)


def test_places_that_are_wrong_are_named(apart, monkeypatch):
    root, _ = apart
    (root.parent / "outside").mkdir(exist_ok=True)
    (root / "link").symlink_to(root.parent / "outside")
    monkeypatch.chdir(root.parent)
    for options, words in (
        ({"images": "nowhere"}, "--images nowhere: no such file or folder in"),
        ({"images": "/nowhere"}, "--images /nowhere: no such file or folder"),
        ({"images": "coco/all.json"}, "--images coco/all.json: not a folder"),
        ({"images": "outside"}, "is outside of the data folder"),
        ({"images": "link"}, "is a link that leaves the data folder"),
        ({"annotations": "../outside"}, "is outside of the data folder"),
        ({"annotations": "left"}, "no annotations found: there are 12 images"),
    ):
        with pytest.raises(UserError) as caught:
            outcome(root, **options)
        assert words in str(caught.value), caught.value
    with pytest.raises(UserError, match="a file of annotations itself"):
        outcome(root / "coco" / "all.json", annotations="voc")
    with pytest.raises(UserError, match="leave out --images"):
        outcome("shapes", images="left")


def test_without_them_it_is_said_that_two_files_could_be_meant(apart):
    root, _ = apart
    with pytest.raises(UserError, match=r"2 files could be meant \(left/p000.png and right/p000.png\)"):
        outcome(root / "coco" / "all.json")


SPLIT_NAMES = {"first": "{split}_{stem}", "last": "img-{stem}-{split}", "apart": "{Split} {stem}", "alone": "{SPLIT}.{stem}"}


def renamed(pattern, group):
    return [
        replace(p, stem=pattern.format(split=p.split, Split=p.split.title(), SPLIT=p.split.upper(), stem=f"{i:03d}"))
        for i, p in enumerate(group)
    ]


@pytest.mark.parametrize(
    "write", [writers.write_coco_file, writers.write_yolo_classes, writers.write_voc_flat, writers.write_voc_lower_case]
)
@pytest.mark.parametrize("pattern", SPLIT_NAMES.values(), ids=SPLIT_NAMES)
def test_splits_are_in_the_file_names(tmp_path, write, pattern):
    images = renamed(pattern, pictures())
    write(tmp_path, images)
    data, text = outcome(tmp_path)
    assert {name: len(records) for name, records in data.splits.items()} == {name: len(group) for name, group in by_split(images).items()}
    assert text.count("begins or ends with the name of a split") == 1
    assert "held out" not in text


@pytest.mark.parametrize("odd", ["other", "mytrain_1", "train_1_val", "retest-1"])
def test_one_image_without_the_name_of_a_split_is_enough_against_it(tmp_path, odd):
    images = renamed("{split}_{stem}", pictures())
    images[0] = replace(images[0], stem=odd)
    writers.write_coco_file(tmp_path, images)
    assert "held out" in outcome(tmp_path)[1]


def test_xml_in_labels_beside_a_list_of_classes(tmp_path):
    writers.write_voc_lower_case(tmp_path, pictures())
    (tmp_path / "annotations").rename(tmp_path / "labels")
    (tmp_path / "labels/classes.txt").write_text("\n".join(writers.NAMES))
    data, text = outcome(tmp_path)
    assert data.format == "voc"
    assert "looks like" not in text


IN_TWO_PLACES = {
    "instances and not": ("annotations/instances_train.json", "annotations/val.json"),
    "not and instances": ("annotations/train.json", "annotations/instances_val.json"),
    "two folders of annotations": ("annotations_train/x.json", "annotations_val/x.json"),
    "labels and annotations": ("labels/train.json", "annotations/val.json"),
    "one in the data folder": ("annotations/train.json", "val.json"),
    "one beside its images": ("annotations/train.json", "val/val.json"),
    "one folder deeper": ("annotations/train.json", "annotations/val/coco.json"),
    "Roboflow and not": ("train/_annotations.coco.json", "valid/annotations.json"),
    "Roboflow and instances": ("train/_annotations.coco.json", "annotations/instances_val.json"),
    "capitals": ("annotations/train.JSON", "annotations/val.JSON"),
}


def coco_files(root, *names, images="images/{}"):
    """A COCO file of each name; the first is of the training images, the second of the others."""
    groups = by_split(pictures(12))
    for name, (split, group) in zip(names, groups.items(), strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(writers.coco_content(group)))
        for picture in group:
            writers.save_image(root / images.format(split) / f"{picture.stem}.png", picture)
    return {split: {p.stem for p in group} for split, group in groups.items()}


@pytest.mark.parametrize("layout", IN_TWO_PLACES)
def test_coco_files_in_two_places(tmp_path, layout):
    known = coco_files(tmp_path, *IN_TWO_PLACES[layout])
    data, _ = outcome(tmp_path)
    assert {name: {record.path.stem for record in split} for name, split in data.splits.items()} == known


def test_other_coco_files_are_left_out_by_name(tmp_path):
    known = coco_files(tmp_path, "annotations/train.json", "annotations/val.json")
    for other in ("annotations/trainval.json", "train.json"):
        shutil.copy(tmp_path / "annotations" / "train.json", tmp_path / other)
    (tmp_path / "annotations" / "notes.json").write_text("{ not json")
    data, _ = outcome(tmp_path)
    assert {name: {record.path.stem for record in split} for name, split in data.splits.items()} == known
    assert any(note.startswith("2 other COCO files left out: train.json, annotations/trainval.json") for note in data.notes)
    assert any(note.startswith("annotations/notes.json: broken JSON") for note in data.notes)


def test_several_coco_files_of_a_split_say_what_to_give(tmp_path):
    coco_files(tmp_path, "annotations/train_1.json", "annotations/train_2.json")
    with pytest.raises(UserError, match=r"are both train; merge them, or name the one to use: --annotations annotations/train_1.json"):
        outcome(tmp_path)


def test_masks_are_not_meant_by_a_name(tmp_path):
    coco_files(tmp_path, "annotations/a.json", images="images/batch")
    shutil.copytree(tmp_path / "images", tmp_path / "masks")
    data, _ = outcome(tmp_path)
    assert {record.path.parent for split in data.splits.values() for record in split} == {tmp_path / "images" / "batch"}
