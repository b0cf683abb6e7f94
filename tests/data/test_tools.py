"""Annotation tools' own formats: read exactly, or named with what to export instead."""

import contextlib
import csv
import json
import random
import shutil
from collections.abc import Callable

import pytest

from boxquery import UserError
from boxquery.check.annotation_format import open_checked
from boxquery.cli import run
from boxquery.data.open import read

from . import writers
from .outcomes import boxes, by_split, expected, outcome
from .test_fuzz import json_changed
from .writers import NAMES, Picture, pictures


def via_entries(images, classes="name"):
    return {
        f"{p.stem}.png123": {
            "filename": f"{p.stem}.png",
            "size": 123,
            "regions": [
                {
                    "shape_attributes": {"name": "rect", **dict(zip(("x", "y", "width", "height"), sized(t.box), strict=True))},
                    "region_attributes": {classes: t.name, "colour": ""},
                }
                for t in p.things
            ],
            "file_attributes": {},
        }
        for p in images
    }


def sized(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def write_via(root, images):
    (root / "via_project.json").write_text(
        json.dumps({"_via_settings": {}, "_via_img_metadata": via_entries(images), "_via_attributes": {}})
    )


def write_via_regions(root, images):
    entries = via_entries(images, "class")
    for entry in entries.values():
        entry["regions"] = {str(i): region for i, region in enumerate(entry["regions"])}
    (root / "via_region_data.json").write_text(json.dumps(entries))


def write_via_csv(root, images):
    with (root / "via.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(
            ["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes", "region_attributes"]
        )
        for entry in via_entries(images).values():
            for i, region in enumerate(entry["regions"] or [{"shape_attributes": {}, "region_attributes": {}}]):
                shape, attributes = (json.dumps(region[key]) for key in ("shape_attributes", "region_attributes"))
                out.writerow([entry["filename"], 123, "{}", len(entry["regions"]), i, shape, attributes])


def write_labelme(root, images):
    for p in images:
        shapes = [
            {"label": t.name, "points": [[t.box[2], t.box[3]], [t.box[0], t.box[1]]], "shape_type": "rectangle", "flags": {}}
            for t in p.things
        ]
        entry = {
            "version": "5.0",
            "shapes": shapes,
            "imagePath": f"..\\images\\{p.stem}.png",
            "imageData": None,
            "imageWidth": 64,
            "imageHeight": 48,
        }
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{p.stem}.json").write_text(json.dumps(entry))


def write_supervisely(root, images):
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": name, "shape": "rectangle"} for name in NAMES], "tags": []}))
    for split, group in by_split(images).items():
        (root / split / "ann").mkdir(parents=True)
        (root / split / "img").mkdir()
        for p in group:
            shutil.copy(root / "images" / f"{p.stem}.png", root / split / "img" / f"{p.stem}.png")
            objects = [
                {"classTitle": t.name, "geometryType": "rectangle", "points": {"exterior": [t.box[:2], t.box[2:]], "interior": []}}
                for t in p.things
            ]
            entry = {"size": {"width": 64, "height": 48}, "objects": objects, "tags": []}
            (root / split / "ann" / f"{p.stem}.png.json").write_text(json.dumps(entry))
    shutil.rmtree(root / "images")


def write_cvat(root, images):
    lines = ["<?xml version='1.0'?><annotations><version>1.1</version><meta><task/></meta>"]
    for i, p in enumerate(images):
        lines.append(f'<image id="{i}" name="{p.stem}.png" subset="{p.split.title()}" width="64" height="48">')
        for t in p.things:
            corners = " ".join(f'{k}="{v}.00"' for k, v in zip(("xtl", "ytl", "xbr", "ybr"), t.box, strict=True))
            lines.append(f'<box label="{t.name}" source="manual" occluded="0" {corners} z_order="0"></box>')
        lines.append("</image>")
    (root / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))


def percent(box):
    x, y, w, h = sized(box)
    return {"x": x / 64 * 100, "y": y / 48 * 100, "width": w / 64 * 100, "height": h / 48 * 100, "rotation": 0}


def write_label_studio(root, images):
    tasks = [
        {
            "id": i,
            "data": {"image": f"/data/upload/1/3f2a1bcd-{p.stem}.png"},
            "annotations": [
                {"result": [{"type": "rectanglelabels", "value": {**percent(t.box), "rectanglelabels": [t.name]}} for t in p.things]}
            ],
        }
        for i, p in enumerate(images)
    ]
    (root / "project-1.json").write_text(json.dumps(tasks))


def write_label_studio_min(root, images):
    tasks = [
        {"image": f"/data/upload/1/{p.stem}.png", "id": i, "annotator": 1}
        | ({"label": [{**percent(t.box), "rectanglelabels": [t.name]} for t in p.things]} if p.things else {})
        for i, p in enumerate(images)
    ]
    (root / "min.json").write_text(json.dumps(tasks))


def write_createml(root, images):
    entries = []
    for p in images:
        shapes = []
        for t in p.things:
            x, y, w, h = sized(t.box)
            shapes.append({"label": t.name, "coordinates": {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h}})
        entries.append({"image": f"{p.stem}.png", "annotations": shapes})
    (root / "_annotations.createml.json").write_text(json.dumps(entries))


def write_csv(root, images):
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for p in images:
        lines += [f"{p.stem}.png,64,48,{t.name},{','.join(map(str, t.box))}" for t in p.things] or [f"{p.stem}.png,64,48,,,,,"]
    (root / "labels.csv").write_text("\n".join(lines))


def write_makesense_csv(root, images):
    lines = ["label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height"]
    lines += [f"{t.name},{','.join(map(str, sized(t.box)))},{p.stem}.png,64,48" for p in images for t in p.things]
    lines += [f",,,,,{p.stem}.png,64,48" for p in images if not p.things]
    (root / "labels_mine_2026.csv").write_text("\n".join(lines))


TOOLS: dict[str, tuple[Callable, str]] = {
    "via": (write_via, "VIA's annotations"),
    "via with numbered regions": (write_via_regions, "VIA's annotations"),
    "via-csv": (write_via_csv, "VIA's CSV"),
    "labelme": (write_labelme, "labelme's JSON"),
    "supervisely": (write_supervisely, "Supervisely's JSON"),
    "cvat": (write_cvat, "CVAT for images"),
    "label-studio": (write_label_studio, "Label Studio's JSON"),
    "label-studio-min": (write_label_studio_min, "Label Studio's JSON"),
    "createml": (write_createml, "CreateML's JSON"),
    "csv": (write_csv, "a CSV of boxes"),
    "csv of makesense": (write_makesense_csv, "a CSV of boxes"),
}


def tool_root(root, tool, images):
    for picture in images:
        writers.save_image(root / "images" / f"{picture.stem}.png", picture)
    TOOLS[tool][0](root, images)
    return root


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_of_annotation(tmp_path, tool):
    images = pictures(12)
    data, said = outcome(tool_root(tmp_path, tool, images), sum(len(p.things) for p in images))
    assert data.format in tool
    assert data.names == NAMES
    assert data.skipped == []
    assert f"read as {TOOLS[tool][1]}" in said
    found, wanted = boxes(data), expected(images)
    assert found == wanted
    if tool in ("supervisely", "cvat"):
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 4}


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "supervisely"])
def test_tools_of_annotation_by_their_file(tmp_path, tool):
    images = pictures(12)
    tool_root(tmp_path, tool, images)
    file = next(path for path in sorted(tmp_path.rglob("*")) if path.suffix in (".json", ".xml", ".csv"))
    assert f"read as {TOOLS[tool][1]}" in outcome(file)[1] if tool != "labelme" else read(file).format == "labelme"


def test_other_shapes_become_boxes_or_are_named(tmp_path):
    images = pictures(12)
    tool_root(tmp_path, "via", images)
    entries = via_entries(images)
    first = entries["p001.png123"]["regions"]
    shapes = [
        {"name": "circle", "cx": 20, "cy": 20, "r": 5},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 5, "ry": 3},
        {"name": "polygon", "all_points_x": [3, 9, 5], "all_points_y": [4, 5, 11]},
        {"name": "point", "cx": 20, "cy": 20},
    ]
    first += [{"shape_attributes": shape, "region_attributes": {"name": "dog"}} for shape in shapes]
    (tmp_path / "via_project.json").write_text(json.dumps(entries))
    data, _ = outcome(tmp_path)
    found = boxes(data)["p001"]
    for box in ((15, 15, 25, 25), (15, 17, 25, 23), (3, 4, 9, 11)):
        assert ("dog", *map(float, box)) in found
    assert len(data.skipped) == 1
    assert "a point is not a box" in data.skipped[0]


NAMED = {
    "results.json": ([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}], "a COCO results file (predictions)"),
    "datumaro.json": ({"info": {}, "categories": {}, "items": []}, "a Datumaro export"),
    "samples.json": ({"samples": []}, "a FiftyOne export"),
    "via3.json": ({"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}, "a project of VIA 3"),
    "labelbox.json": ([{"data_row": {}, "projects": {}}], "a Labelbox export"),
    "output.manifest": ({"source-ref": "s3://b/a.png"}, "a SageMaker manifest"),
    "vertex.jsonl": ({"imageGcsUri": "gs://b/a.png"}, "an import file of Vertex AI"),
}


@pytest.mark.parametrize("name", NAMED)
def test_formats_that_are_not_read_are_named(tmp_path, name):
    content, words = NAMED[name]
    writers.save_image(tmp_path / "images" / "a.png", Picture("a", "train", []))
    (tmp_path / name).write_text(json.dumps(content))
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UserError) as caught:
            outcome(source)
        assert words in str(caught.value)
        assert "which is not read; " in str(caught.value)


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if "csv" not in tool and tool != "cvat"])
def test_tools_files_of_any_values(tmp_path, tool):
    """Broken in many ways, a file is read or refused, never a traceback."""
    images = pictures(12)
    tool_root(tmp_path, tool, images)
    rng = random.Random(0)
    for _ in range(60):
        file = rng.choice([path for path in sorted(tmp_path.rglob("*.json")) if path.name != "meta.json"])
        before = file.read_text()
        content = json.loads(before)
        file.write_text(json.dumps(json_changed(rng, content) if isinstance(content, dict) else [json_changed(rng, e) for e in content]))
        with contextlib.suppress(UserError):
            outcome(tmp_path)
        file.write_text(before)


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_data_is_checked(tmp_path, tool):
    data, findings = open_checked(tool_root(tmp_path, tool, pictures(24)))
    assert len(boxes(data)) == 24
    assert findings == []


@pytest.mark.parametrize("classes", [True, False])
def test_lists_of_images_with_boxes(tmp_path, classes, monkeypatch):
    """keras-yolo3's; the command, too, reads what no other format is."""
    monkeypatch.chdir(tmp_path)
    images = pictures()
    for split, group in by_split(images).items():
        for p in group:
            writers.save_image(tmp_path / "data" / "img" / f"{p.stem}.png", p)
        lines = [" ".join([f"img/{p.stem}.png", *(",".join(map(str, [*t.box, NAMES.index(t.name)])) for t in p.things)]) for p in group]
        (tmp_path / "data" / f"{split}.txt").write_text("\n".join(lines))
    if classes:
        (tmp_path / "data/my_classes.txt").write_text("\n".join(NAMES))
    data, text = outcome(tmp_path / "data", sum(len(p.things) for p in images))
    assert {split: len(records) for split, records in data.splits.items()} == {s: len(g) for s, g in by_split(images).items()}
    assert "keras-yolo3" in text
    if classes:
        assert boxes(data) == expected(images)
    else:
        assert data.names == ["class 0", "class 1", "class 2"]
    assert run(["check", "data"]) == 0


HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def rows(images):
    return "".join(f"{p.stem}.png,64,48,{t.name},{','.join(map(str, t.box))}\n" for p in images for t in p.things)


def labelme_of(name):
    shape = {"label": "cat", "points": [[1, 1], [20, 20]], "shape_type": "rectangle"}
    return json.dumps({"shapes": [shape], "imagePath": name, "imageData": None, "imageWidth": 64, "imageHeight": 48})


def labelme_image(root, stem, name=""):
    writers.save_image(root / f"{stem}.png", Picture(stem, "train", []))
    (root / f"{stem}.json").write_text(labelme_of(name or f"{stem}.png"))


def test_files_at_every_depth_are_read_and_ids_come_from_their_paths(tmp_path):
    for folder, number in ((".", 4), ("s1", 4), ("s2/deep/er", 4)):
        for i in range(number):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            labelme_image(tmp_path / folder, f"a{i}")
    data, _ = outcome(tmp_path, 12)
    ids = sorted(str(record.id) for split in data.splits.values() for record in split)
    assert ids == sorted(f"{folder}a{i}" for folder in ("", "s1/", "s2/deep/er/") for i in range(4))


@pytest.mark.parametrize("names", [("train_labels.csv", "test_labels.csv"), ("train.csv", "test/test.csv"), ("train/l.csv", "test/l.csv")])
def test_splits_are_in_the_names_of_files_or_folders(tmp_path, names):
    images = pictures(12)
    for picture in images:
        writers.save_image(tmp_path / "images" / f"{picture.stem}.png", picture)
    for name, group in zip(names, (images[:8], images[8:]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(HEAD + rows(group))
    data, _ = outcome(tmp_path, sum(len(p.things) for p in images))
    assert len(data.splits["test"]) == sum(bool(p.things) for p in images[8:])


def test_files_of_another_tool_are_counted(tmp_path):
    images = pictures(12)
    tool_root(tmp_path, "csv", images)
    write_createml(tmp_path, images[:3])
    (tmp_path / "package.json").write_text("{}")
    _, said = outcome(tmp_path)
    number = sum(len(p.things) for p in images[:3])
    assert f"1 file (CreateML's JSON) with {number} boxes left out: _annotations.createml.json" in said
    assert "1 file (of no format that is known) left out: package.json" in said


def test_the_image_beside_is_used_where_image_path_is_old_and_other_json_hides_nothing(tmp_path):
    for i in range(6):
        labelme_image(tmp_path, f"a{i}", f"IMG_{i}.png")
        (tmp_path / f"A{i}.json").write_text("{}")
    data, said = outcome(tmp_path, 6)
    assert sum(map(len, data.splits.values())) == 6
    assert "6 images: the file beside the annotations is used, not the one that imagePath names" in said


def test_a_broken_file_of_many_is_left_out_with_a_note(tmp_path):
    for i in range(6):
        labelme_image(tmp_path, f"a{i}")
    (tmp_path / "a5.json").write_text("{")
    _, said = outcome(tmp_path, 5)
    assert "1 of 6 files left out, with their images: " in said
    assert "a5.json" in said


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(HEAD.replace(",", ";"), "utf-8"), (HEAD, "latin-1"), (HEAD.replace("class,", ""), "utf-8")],
    ids=["semicolons", "latin-1", "no class"],
)
def test_other_kinds_of_csv(tmp_path, text, encoding):
    columns = {"filename": "{}", "width": "64", "height": "48", "class": "café", "xmin": "1", "ymin": "1", "xmax": "20", "ymax": "20"}
    separator = ";" if ";" in text else ","
    line = separator.join(columns[key] for key in text.strip().split(separator))
    for i in range(6):
        writers.save_image(tmp_path / "images" / f"a{i}.png", Picture(f"a{i}", "train", []))
    (tmp_path / "labels.csv").write_text(text + "\n".join(line.format(f"a{i}.png") for i in range(6)), encoding=encoding)
    data, said = outcome(tmp_path, 6)
    assert data.names == (["café"] if "class" in text else ["object"])
    assert ("all are of one class, 'object'" in said) == ("class" not in text)
    assert ("read as cp1252" in said) == (encoding == "latin-1")


def test_annotations_without_a_class_are_of_one(tmp_path):
    images = pictures(12)
    tool_root(tmp_path, "via", images)
    entries = via_entries(images)
    for region in (region for entry in entries.values() for region in entry["regions"]):
        region["region_attributes"] = {}
    (tmp_path / "via_project.json").write_text(json.dumps(entries))
    data, said = outcome(tmp_path, sum(len(p.things) for p in images))
    assert data.names == ["object"]
    assert "no object in VIA's annotations has a class: all are of one class, 'object'" in said


def test_of_several_annotators_the_first_is_used_and_a_shape_with_its_labels_is_one_object(tmp_path):
    side = {"x": 10, "y": 10, "width": 20, "height": 20}
    result = [
        {"id": "q", "type": "rectangle", "value": side},
        {"id": "q", "type": "labels", "value": {**side, "labels": ["cat"]}},
    ]
    tasks = []
    for i in range(6):
        writers.save_image(tmp_path / "images" / f"a{i}.png", Picture(f"a{i}", "train", []))
        annotations = [{"was_cancelled": True, "result": []}, {"result": result}, {"result": result}]
        tasks.append({"id": i, "data": {"image": f"s3://b/a{i}.png"}, "annotations": annotations})
    (tmp_path / "p.json").write_text(json.dumps(tasks))
    data, said = outcome(tmp_path, 6)
    assert data.names == ["cat"]
    assert "6 images: several annotations: the first is used, the others are left out (6 boxes)" in said
