"""Faults of a whole data set, planted in all three layouts and in records, and named; clean data, in which nothing is found."""

import json
from dataclasses import replace

import numpy as np
import pytest

import boxquery as bq
from boxquery.check.annotation_format import open_checked
from boxquery.check.box_contrast import check_fit, measure_fit, sample_images
from boxquery.check.command import check
from boxquery.check.duplicates import check_duplicates, equal_images
from boxquery.check.feasibility import FeasibilityPlan, check_steps
from boxquery.check.run_checks import run_checks
from boxquery.check.splits import check_colours, check_labels
from boxquery.cli import run
from boxquery.data.open import open_data
from boxquery.data.shapes import shapes_data
from boxquery.data.transforms import Augment
from tests.check.planted import SIDE, changed, kept, pictures, scenes, write
from tests.data.writers import Picture, coco_content

PLAN = FeasibilityPlan("detr", "tiny", queries=12, stride=8, image_size=SIDE, steps=0, lr=1e-3, usual_lr=1e-3)
LAYOUTS = ["coco", "voc", "yolo"]


def named(data, findings=(), plan=PLAN) -> dict[str, str]:
    """Name of every finding -> its level."""
    return {f.name: f.level for f in run_checks(data, findings, plan, Augment(), preview=False).findings}


def alarms(found: dict[str, str]) -> set[str]:
    return {name for name, level in found.items() if level != "note"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clean_data_gives_no_warning(tmp_path, layout):
    data, findings = open_checked(write(tmp_path / "data", layout, pictures()))
    assert alarms(named(data, findings)) == set()


@pytest.mark.parametrize("seed", range(4))
def test_built_in_scenes_give_no_warning(seed):
    data = shapes_data(train=64, val=32, test=8, seed=seed, crowding=[0.2, 0.8, 0.0, 0.5][seed], max_objects=[10, 12, 3, 2][seed])
    assert alarms(named(data)) == set()


@pytest.mark.shared
def test_real_data_gives_no_warning_and_its_two_faults_are_named(shared):
    data, findings = open_checked(shared / "datasets" / "bccd")
    result = run_checks(data, findings, replace(PLAN, queries=100, image_size=240), Augment(), preview=False)
    assert [f.line() for f in result.findings] == []
    assert [line.split(":")[0] for line in result.facts["data"]["skipped"]] == [
        "Annotations/BloodImage_00343.xml object 4", "Annotations/BloodImage_00338.xml object 13",
    ]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_other_annotations(tmp_path, layout):
    images = pictures()
    turned = [replace(a, data=b.data) for a, b in zip(images, images[1:] + images[:1], strict=True)]
    data, findings = open_checked(write(tmp_path / "data", layout, turned))
    assert "images-do-not-belong" in named(data, findings)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shifted_boxes_are_named_with_their_shift(tmp_path, layout):
    def moved(picture: Picture) -> Picture:
        things = [replace(t, box=[t.box[0] + 0.1 * SIDE, t.box[1], t.box[2] + 0.1 * SIDE, t.box[3]]) for t in picture.things]
        return replace(picture, things=[t for t in things if t.box[2] <= SIDE])

    data, findings = open_checked(write(tmp_path / "data", layout, [moved(p) for p in pictures()]))
    result = run_checks(data, findings, PLAN, Augment(), preview=False)
    (finding,) = [f for f in result.findings if f.name == "boxes-moved" and "boxes of train" in f.text]
    assert "shifted by +10 % of the width and +0 % of the height" in finding.text
    assert finding.level == "error"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_val_equal_to_train(tmp_path, layout):
    images = [p for p in pictures() if p.split == "train"]
    both = [*images, *(replace(p, stem=f"again{p.stem}", split="val") for p in images)]
    found = named(*open_checked(write(tmp_path / "data", layout, both)))
    assert found["val-is-train"] == "error"
    assert "leakage" not in found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_leak_and_duplicates_are_counted(tmp_path, layout):
    images = pictures()
    train, val = [p for p in images if p.split == "train"], [p for p in images if p.split == "val"]
    copied = replace(val[0], data=train[3].data, things=train[3].things)
    twice = replace(train[5], data=train[6].data, things=train[6].things)
    data = open_data(write(tmp_path / "data", layout, [*train[:5], twice, *train[6:], copied, *val[1:]]))
    counted, findings = check_duplicates(data, equal_images(data))
    assert counted["shared"] == {"train & val": 1}
    assert counted["shared_with_other_boxes"] == {"train & val": 0}
    assert counted["duplicates"] == {"train": 1, "val": 0}
    assert {f.name: f.level for f in findings} == {"leakage": "warning", "duplicate-images": "note"}
    assert f"{val[0].stem}.png" in findings[0].text


def test_images_of_another_split(tmp_path):
    images = pictures(20, 20)
    mixed = [replace(a, data=b.data) for a, b in zip(images[:20], images[20:], strict=True)] + images[20:]
    assert named(*open_checked(write(tmp_path / "data", "coco", mixed)))["images-of-another-split"] == "error"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_of_val_that_train_lacks(tmp_path, layout):
    images = [replace(p, things=[t for t in p.things if p.split == "val" or t.name != "owl"]) for p in pictures()]
    found = named(*open_checked(write(tmp_path / "data", layout, images)))
    assert alarms(found) == {"class-missing-in-train"}


@pytest.mark.parametrize(("first", "words"), [(0, "from 0, the list of categories from 1"), (2, "from 1, the list of categories from 0")])
def test_ids_off_by_one_in_coco(tmp_path, first, words):
    folder = tmp_path / "data"
    write(folder, "coco", pictures())
    for split in ("train", "val"):
        group = [p for p in pictures() if p.split == split]
        content = coco_content(group, ids=(1, 2, 3))
        for annotation in content["annotations"]:
            annotation["category_id"] += first - 1
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    with pytest.raises(bq.UserError, match="off by one") as raised:
        open_checked(folder)
    assert words in str(raised.value)
    assert "annotation" in str(raised.value)
    assert run(["check", str(folder)]) == 2


def test_ids_off_by_one_in_yolo(tmp_path):
    folder = tmp_path / "data"
    write(folder, "yolo", pictures())
    for file in (folder / "labels").rglob("*.txt"):
        lines = [line.split() for line in file.read_text().splitlines()]
        file.write_text("\n".join(" ".join([str(int(n) + 1), *rest]) for n, *rest in lines) + "\n")
    with pytest.raises(bq.UserError, match=r"count from 1, the list of categories from 0.+Subtract 1 from"):
        open_checked(folder)


def test_corners_written_as_sizes(tmp_path):
    folder = tmp_path / "data"
    write(folder, "coco", pictures())
    for file in (folder / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x, y, x + w, y + h]
        file.write_text(json.dumps(content))
    data, findings = open_checked(folder)  # nothing is refused: boxes are clipped
    assert [f.name for f in findings] == ["boxes-of-another-format"]
    assert "look like x1, y1, x2, y2" in findings[0].text
    assert alarms(named(data, findings)) >= {"boxes-of-another-format"}


def test_sizes_written_as_corners(tmp_path):
    images = [
        replace(p, things=[replace(t, box=[*t.box[:2], t.box[2] - t.box[0], t.box[3] - t.box[1]]) for t in p.things]) for p in pictures()
    ]
    with pytest.raises(bq.UserError, match="Boxes look like x, y, width, height, where VOC expects x1, y1, x2, y2"):
        open_checked(write(tmp_path / "data", "voc", images))


@pytest.mark.parametrize(
    ("layout", "name"), [("coco", "boxes-normalised"), ("voc", "boxes-normalised"), ("yolo", "boxes-normalised-twice")]
)
def test_boxes_normalised_once_too_often(tmp_path, layout, name):
    images = [replace(p, things=[replace(t, box=[v / SIDE for v in t.box]) for t in p.things]) for p in pictures()]
    data, findings = open_checked(write(tmp_path / "data", layout, images))
    assert [f.name for f in findings] == [name]
    found = named(data, findings)
    assert found[name] == "error"
    assert not {"boxes-moved", "images-do-not-belong"} & set(found)


def test_pixels_where_fractions_belong(tmp_path):
    images = [replace(p, things=[replace(t, box=[v * SIDE for v in t.box]) for t in p.things]) for p in pictures()]
    with pytest.raises(bq.UserError, match="are in pixels, where YOLO expects fractions"):
        open_checked(write(tmp_path / "data", "yolo", images))


def test_half_of_the_labels_missing_in_train():
    rng = np.random.default_rng(0)
    data = changed(scenes(200, 100), "train", lambda r: kept(r, rng.random(len(r.boxes)) < 0.5))
    assert alarms(named(data)) == {"labels-missing"}
    data = changed(scenes(200, 100), "train", lambda r: kept(r, np.full(len(r.boxes), rng.random() < 0.5)))
    assert "many-empty-images" in named(data)


def test_more_objects_than_queries_and_objects_below_a_cell():
    data = scenes()
    assert named(data, plan=replace(PLAN, queries=1))["more-objects-than-queries"] == "error"
    assert named(data, plan=replace(PLAN, queries=4))["more-objects-than-queries"] == "warning"
    assert named(data, plan=replace(PLAN, queries=4, drops=True))["more-objects-than-queries"] == "error"
    assert named(data, plan=replace(PLAN, stride=96))["objects-below-a-cell"] == "warning"
    result = run_checks(data, [], replace(PLAN, queries=4), Augment(), preview=False)
    most = max(len(record.boxes) for record in data.splits["train"])
    assert result.facts["feasibility"]["objects_per_image"]["100"] == most == 5
    assert f"up to {most}" in result.findings[0].text


def by_size(record):
    """Labels that follow from size, as in cell images and unlike in the built-in scenes."""
    sides = (record.boxes[:, 2:] - record.boxes[:, :2]).max(1)
    return replace(record, labels=np.digitize(sides, (0.16 * SIDE, 0.3 * SIDE)).astype(np.int64))


def test_labels_shifted_in_one_split():
    data = shapes_data(train=100, val=100, test=1, size=SIDE)
    for split in ("train", "val"):
        data = changed(data, split, by_size)
    images = {name: sample_images(data.splits[name]) for name in ("train", "val")}
    assert check_labels(images["train"], images["val"], "val", data.names) is None
    wrong = [replace(image, labels=(image.labels + 1) % 3) for image in images["val"]]
    finding = check_labels(images["train"], wrong, "val", data.names)
    assert finding is not None
    assert finding.name == "labels-shifted"
    assert "labelled square look like train's circle" in finding.text
    unlike = [replace(image, labels=(image.labels + 1) % 5) for image in sample_images(scenes().splits["val"])]
    assert check_labels(sample_images(scenes().splits["train"]), unlike, "val", data.names) is None  # size and colour tell nothing


def test_a_few_boxes_whose_labels_look_swapped_stop_no_run():
    """Ten boxes per class, whose size determines the class in train: eight of ten swapped in val may be chance, all of forty are not."""
    data = changed(shapes_data(train=60, val=60, test=1, size=SIDE), "train", by_size)
    images = {name: sample_images(split) for name, split in data.splits.items()}
    known = {}
    for label in (0, 2):
        known[label] = next(image for image in images["train"] if (image.labels == label).any())

    def boxes(label: int, given: int, count: int) -> list:
        image = known[label]
        box = image.boxes[image.labels == label][:1]
        return [replace(image, boxes=box, labels=np.array([given])) for _ in range(count)]

    train = boxes(0, 0, 40) + boxes(2, 1, 40)
    few = boxes(0, 1, 8) + boxes(2, 0, 8) + boxes(0, 0, 2) + boxes(2, 1, 2)
    assert check_labels(train, few, "val", ["a", "b"]) is None
    assert check_labels(train, boxes(0, 1, 40) + boxes(2, 0, 40), "val", ["a", "b"]) is not None


def test_colours_swapped_in_one_split():
    images = sample_images(scenes(64, 64).splits["train"]), sample_images(scenes(64, 64).splits["val"])
    assert check_colours(*images, "val") is None
    tinted = [[replace(image, sums=image.sums * np.array([1.0, 0.8, 0.5])) for image in group] for group in images]
    assert check_colours(*tinted, "val") is None
    swapped = [replace(image, sums=image.sums[..., ::-1]) for image in tinted[1]]
    finding = check_colours(tinted[0], swapped, "val")
    assert finding is not None
    assert "BGR" in finding.text


def test_few_images_give_a_warning_or_nothing():
    images = sample_images(scenes(12).splits["train"])
    wrong = [replace(a, boxes=b.boxes, labels=b.labels) for a, b in zip(images, images[1:] + images[:1], strict=True)]
    found = measure_fit(wrong)
    assert found is not None
    finding = check_fit("train", found)
    assert finding is not None
    assert finding.level == "warning"
    assert measure_fit(images[:4]) is None


def test_too_few_steps_and_a_rate_far_off(monkeypatch):
    floors = {"floor": {"random": {"left": 1000, "not_within": 500}, "trained": {"left": None, "not_within": 0}}}
    monkeypatch.setattr("boxquery.check.feasibility.measured", lambda name: floors if name == "detr" else {})
    assert [f.name for f in check_steps(replace(PLAN, steps=400))] == ["too-few-steps"]
    assert not list(check_steps(replace(PLAN, steps=600)))
    assert not list(check_steps(replace(PLAN, steps=400, start="trained")))
    assert not list(check_steps(replace(PLAN, steps=400, model="sam-detr")))
    assert [f.name for f in check_steps(replace(PLAN, steps=600, lr=0.1))] == ["rate-too-high"]


def test_the_command_writes_and_prints_what_it_found(tmp_path, capsys):
    data = write(tmp_path / "data", "voc", pictures())
    assert run(["check", data, "--model", "detr", "--preset", "tiny", "--image-size", "96", "--out", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["status"] == 0
    assert shown["data"]["splits"]["train"]["images"] == 40
    assert sum(shown["data"]["splits"]["train"]["per_class"]) == shown["data"]["splits"]["train"]["objects"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"check.json", "check.png", "check.html"}
    assert json.loads((tmp_path / "out/check.json").read_text()) == shown
    assert "What the network sees" in (tmp_path / "out/check.html").read_text()
    assert run(["check", data, "--model", "detr", "--preset", "tiny", "--option", "num_queries=1"]) == 1
    assert "check failed: " in capsys.readouterr().out
    assert run(["check", str(tmp_path / "nowhere")]) == 2
    assert run(["check", data, "--epochs", "-3"]) == 2
    assert "epochs=-3: must be a finite number above 0" in capsys.readouterr().err


def test_check_prints_what_the_data_is(capsys):
    result = check("shapes", model="detr", preset="tiny")
    assert result.status == 0
    result.show()
    assert "circle" in capsys.readouterr().out
