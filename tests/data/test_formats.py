"""A data set is read the same from every layout: splits, names, ids, boxes, crowds."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxquery import UserError
from boxquery.data.open import open_data

from . import writers
from .writers import LAYOUTS, NAMES, SIZE, Picture, Thing, pictures


def by_stem(data):
    """Records of all splits by the stem of their file."""
    return {record.path.stem: record for split in data.splits.values() for record in split}


def assert_same(data, images):
    """Every picture with exactly its objects, in order."""
    records = by_stem(data)
    assert set(records) == {picture.stem for picture in images}
    for picture in images:
        record = records[picture.stem]
        assert (record.width, record.height) == picture.size
        assert record.boxes.dtype == np.float32
        assert record.boxes.shape == (len(picture.things), 4)
        assert record.labels.dtype == np.int64
        assert record.ignore.dtype == bool
        np.testing.assert_allclose(record.boxes, np.array([thing.box for thing in picture.things]).reshape(-1, 4), atol=1e-4)
        assert [data.names[label] for label in record.labels] == [thing.name for thing in picture.things]
        assert record.areas.shape == record.labels.shape


@pytest.mark.parametrize(("writer", "kind", "split"), LAYOUTS, ids=lambda value: getattr(value, "__name__", None))
def test_layouts(tmp_path, writer, kind, split):
    images = pictures(splits=("train", "train", "val", "test"))
    data = open_data(writer(tmp_path, images))
    assert data.format == kind
    assert data.names == NAMES
    assert data.ids == ([3, 17, 90] if kind == "coco" else [0, 1, 2])
    assert data.skipped == []
    assert_same(data, images)
    if split:
        expected = {name: {p.stem for p in images if p.split == name} for name in ("train", "val", "test")}
        assert {name: {r.path.stem for r in group} for name, group in data.splits.items()} == expected
        assert list(data.splits) == ["train", "val", "test"]
        assert not any("held out" in note for note in data.notes)
    else:
        assert {name: len(group) for name, group in data.splits.items()} == {"train": 19, "val": 5}
        assert any("no splits" in note and "5 of its 24" in note for note in data.notes)
    assert data.splits["train"].read(0).size == SIZE
    assert pickle.loads(pickle.dumps(data)).splits["val"][0].id == data.splits["val"][0].id  # noqa: S301


def test_split_depends_on_seed_and_id_alone(tmp_path):
    images = pictures(60)
    writers.write_voc_flat(tmp_path / "a", images)
    writers.write_voc_flat(tmp_path / "b", images[:-5])

    def held_out(name, seed):
        return {record.id for record in open_data(tmp_path / name, seed=seed).splits["val"]}

    assert held_out("a", 0) == held_out("a", 0)
    assert held_out("a", 0) != held_out("a", 1)
    assert len(held_out("a", 0) - {p.stem for p in images[-5:]} - held_out("b", 0)) <= 1  # fewer images move few others


@pytest.mark.parametrize("writer", list(writers.FORMATS.values()))
def test_train_without_val(tmp_path, writer):
    data = open_data(writer(tmp_path, pictures(20, splits=("train", "train", "train", "test"))))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "val": 3, "test": 5}
    assert any("no val split: 3 of its 15" in note for note in data.notes)


def test_val_alone_stays_whole(tmp_path):
    data = open_data(writers.write_coco(tmp_path, pictures(10, splits=("val",))))
    assert {name: len(split) for name, split in data.splits.items()} == {"val": 10}


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (90, 5, 1)])
def test_coco_ids_come_back(tmp_path, ids):
    """Whatever the ids are, label -> id -> name is what the file says, in order of id."""
    images = pictures()
    for picture in images:
        writers.save_image(tmp_path / f"{picture.stem}.png", picture)
    (tmp_path / "mine.json").write_text(json.dumps(writers.coco_content(images, ids)))
    data = open_data(tmp_path / "mine.json")
    assert data.ids == sorted(ids)
    assert dict(zip(data.ids, data.names, strict=True)) == dict(zip(ids, NAMES, strict=True))
    assert_same(data, images)


def test_coco_unused_and_twin_categories_are_kept(tmp_path):
    images = pictures(10)
    content = writers.coco_content(images)
    content["categories"] += [{"id": 1, "name": "animal"}, {"id": 91, "name": "owl"}]
    writers.write_coco_file(tmp_path, images)
    (tmp_path / "data.json").write_text(json.dumps(content))
    data = open_data(tmp_path)
    assert data.names == ["animal", "cat", "dog", "owl (90)", "owl (91)"]
    assert any("same name" in note for note in data.notes)


def test_coco_area_and_crowd(tmp_path):
    images = [Picture(f"p{i}", "train", [Thing("cat", [1, 2, 11, 22]), Thing("dog", [0, 0, 5, 5], True)]) for i in range(6)]
    content = writers.coco_content(images)
    content["annotations"][0]["area"] = 77.5
    writers.write_coco_file(tmp_path, images)
    (tmp_path / "data.json").write_text(json.dumps(content))
    record = by_stem(open_data(tmp_path))["p0"]
    assert record.ignore.tolist() == [False, True]
    assert record.areas.tolist() == [77.5, 25.0]


def test_voc_difficult_is_ignored(tmp_path):
    images = [Picture(f"p{i}", "train", [Thing("cat", [1, 2, 11, 22]), Thing("dog", [0, 0, 5, 5], True)]) for i in range(6)]
    assert by_stem(open_data(writers.write_voc(tmp_path, images)))["p3"].ignore.tolist() == [False, True]


def test_voc_trainval_and_left_out(tmp_path):
    writers.write_voc(tmp_path, pictures(12))
    main = tmp_path / "ImageSets" / "Main"
    lines = (main / "train.txt").read_text().splitlines()
    (main / "train.txt").unlink()
    (main / "val.txt").unlink()
    (main / "trainval.txt").write_text("\n".join(line + ".jpg" for line in lines))
    data = open_data(tmp_path)
    assert sum(map(len, data.splits.values())) == len(lines)
    assert any("4 annotation files in none of the lists in ImageSets/Main left out: Annotations/" in note for note in data.notes)


def test_voc_wrong_filename_and_unstated_size(tmp_path):
    """The image of the annotation's own name wins over a stale <filename>; a size of 0 x 0 is ignored."""
    images = pictures(10)
    for picture in images:
        picture.fields, picture.stated = {"file_name": "renamed.jpg"}, (0, 0)
    assert_same(open_data(writers.write_voc(tmp_path, images)), images)


def test_yolo_polygons_lists_and_sparse_names(tmp_path):
    images = pictures(10)
    writers.write_yolo(tmp_path, images)
    polygon = "7 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n"
    (tmp_path / "labels" / "train" / "p000.txt").write_text(polygon)
    for name in ("train", "val"):
        files = sorted((tmp_path / "images" / name).iterdir())
        (tmp_path / f"{name}.txt").write_text("".join(f"./images/{name}/{file.name}\n" for file in files))
    (tmp_path / "data.yaml").write_text("path: .\nnames: {0: cat, 1: dog, 2: owl, 7: kite}\ntrain: train.txt\nval: [val.txt]\n")
    data = open_data(tmp_path / "data.yaml")
    assert (data.names, data.ids) == ([*NAMES, "kite"], [0, 1, 2, 7])
    record = by_stem(data)["p000"]
    assert record.labels.tolist() == [3]
    np.testing.assert_allclose(record.boxes, [[16, 12, 48, 36]])


def test_yolo_missing_label_file_is_an_empty_image(tmp_path):
    writers.write_yolo(tmp_path, pictures(10))
    (tmp_path / "labels" / "train" / "p001.txt").unlink()
    data = open_data(tmp_path)
    assert len(by_stem(data)["p001"].boxes) == 0
    assert any("1 of 10 images have no label file" in note for note in data.notes)


def test_nested_folder_and_leak_are_noted(tmp_path):
    writers.write_voc(tmp_path / "export", pictures(12))
    with (tmp_path / "export" / "ImageSets" / "Main" / "val.txt").open("a") as file:
        file.write("p000\n")
    notes = open_data(tmp_path).notes
    assert "the data is in export/" in notes
    assert any("more than one split" in note for note in notes)


@pytest.mark.parametrize("writer", list(writers.FORMATS.values()))
def test_boxes_partly_outside_are_clipped(tmp_path, writer):
    images = pictures(12)
    images[0].things = [Thing("cat", [-3, 40, 10, 60]), Thing("cat", [60, 40, 64.02, 48])]
    data = open_data(writer(tmp_path, images))
    np.testing.assert_allclose(by_stem(data)["p000"].boxes, [[0, 40, 10, 48], [60, 40, 64, 48]], atol=1e-4)
    assert any("1 box reached beyond" in note for note in data.notes)
    assert data.skipped == []


@pytest.mark.parametrize(("stated", "expected"), [((48, 64), [2, 3, 12, 23]), ((64, 48), [48 - 23, 2, 48 - 3, 12])])
def test_exif_rotation(tmp_path, stated, expected):
    """Boxes stated for the stored size are rotated with the image; boxes stated for the upright size stay.

    The file holds 64 x 48 pixels and says "turn right", so it is 48 x 64 upright.
    """
    images = pictures(10)
    images[0].things = [Thing("cat", [2, 3, 12, 23])]
    images[0].stated = stated
    root = writers.write_coco_file(tmp_path, images)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((48, 64, 3), np.uint8)
    if stated == (64, 48):
        pixels[3:23, 2:12] = 255
    else:
        upright = np.zeros((64, 48, 3), np.uint8)
        upright[3:23, 2:12] = 255
        pixels = np.rot90(upright).copy()
    Image.fromarray(pixels).save(root / "p000.png", exif=exif)
    data = open_data(root)
    split, index = next((s, i) for s in data.splits.values() for i, r in enumerate(s) if r.path.stem == "p000")
    record = split[index]
    assert (record.width, record.height) == (48, 64)
    np.testing.assert_allclose(record.boxes, [expected])
    x1, y1, x2, y2 = record.boxes[0].astype(int)
    image = np.asarray(split.read(index))
    assert image[y1:y2, x1:x2].min() == 255  # the box holds the white rectangle
    assert image.astype(int).sum() == 3 * 255 * (x2 - x1) * (y2 - y1)  # and all of it
    assert any("EXIF" in note for note in data.notes) == (stated == (64, 48))


def test_opening_does_not_import_torch():
    code = "import sys, boxquery.data.open, boxquery.data; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_word_wins_over_folder():
    data = open_data("shapes", seed=3)
    assert data.format == "shapes"
    assert len(data.splits["train"]) == 2000


@pytest.mark.parametrize("source", ["nowhere", "", "a\0b"])
def test_no_such_source(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        open_data(source)


@pytest.mark.shared
def test_bccd(shared):
    folder = shared / "datasets" / "bccd"
    if not folder.is_dir():
        pytest.skip("no datasets/bccd in the reference material")
    data = open_data(folder)
    assert data.names == ["Platelets", "RBC", "WBC"]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 205, "val": 87, "test": 72}
    assert sorted(line.partition(": ")[0] for line in data.skipped) == [
        "Annotations/BloodImage_00338.xml object 13",
        "Annotations/BloodImage_00343.xml object 4",
    ]
    assert all("box has no size" in line and line.endswith("; skipped") for line in data.skipped)
    assert sum(len(record.boxes) for split in data.splits.values() for record in split) == 4886
    with pytest.raises(UserError, match="BloodImage_003"):
        open_data(folder, strict=True)
    assert Path(data.splits["train"][0].path).is_file()
