"""Faults of a whole data set, planted in all three layouts and in records, and named; clean data, in which nothing is found."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import boxquery as bq
from boxquery.augment import Augment
from boxquery.check.annotation_format import open_checked
from boxquery.check.box_fit import MOVES, check_fit, measure_fit
from boxquery.check.colours import check_colours, compare_colours
from boxquery.check.command import check
from boxquery.check.duplicates import check_duplicates, equal_images
from boxquery.check.feasibility import FeasibilityPlan, check_steps
from boxquery.check.labels import check_labels, compare_labels
from boxquery.check.near_duplicates import check_uniform, thumbnails
from boxquery.check.run_checks import run_checks
from boxquery.check.samples import LIGHT, RED_BLUE, sample_images
from boxquery.cli import run
from boxquery.data.loading import DetectionDataset
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import shapes_data
from boxquery.data.transforms import TrainTransform
from boxquery.data.validation import read_record
from tests.check.planted import SIDE, changed, kept, pictures, scenes, write
from tests.data.writers import Picture, coco_content

PLAN = FeasibilityPlan("detr", "tiny", queries=12, stride=8, image_size=SIDE, steps=0, lr=1e-3, usual_lr=1e-3)
LAYOUTS = ["coco", "voc", "yolo"]


def named(data, findings=(), plan=PLAN) -> dict[str, str]:
    """Name of every finding -> its level."""
    return {f.name: f.level for f in run_checks(data, findings, plan, Augment(), picture="never").findings}


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
@pytest.mark.parametrize("name", ["bccd", "cards", "raccoon"])
def test_nothing_is_guessed_of_real_data(shared, name):
    """Not even of camouflaged animals; copies are named by their content."""
    data, findings = open_checked(shared / "datasets" / name)
    found = named(data, findings, replace(PLAN, queries=100, image_size=240))
    assert set(found.items()) <= {("duplicate-images", "note")}


@pytest.mark.shared
def test_real_data_gives_no_warning_and_its_two_faults_are_named(shared):
    data, findings = open_checked(shared / "datasets" / "bccd")
    result = run_checks(data, findings, replace(PLAN, queries=100, image_size=240), Augment(), picture="never")
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
    result = run_checks(data, findings, PLAN, Augment(), picture="never")
    (finding,) = [f for f in result.findings if f.name == "boxes-moved" and "boxes of train" in f.text]
    assert "shifted by +10 % of the width and +0 % of the height" in finding.text
    assert (finding.level, finding.evidence) == ("warning", "strong")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_val_equal_to_train(tmp_path, layout):
    images = [p for p in pictures() if p.split == "train"]
    both = [*images, *(replace(p, stem=f"again{p.stem}", split="val") for p in images)]
    found = named(*open_checked(write(tmp_path / "data", layout, both)))
    assert found["val-is-train"] == "warning"
    assert "leakage" not in found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_leak_and_duplicates_are_counted(tmp_path, layout):
    images = pictures()
    train, val = [p for p in images if p.split == "train"], [p for p in images if p.split == "val"]
    copied = replace(val[0], data=train[3].data, things=train[3].things)
    twice = replace(train[5], data=train[6].data, things=train[6].things)
    data = open_data(write(tmp_path / "data", layout, [*train[:5], twice, *train[6:], copied, *val[1:]]))
    counted, findings = check_duplicates(data, equal_images({name: [r.path for r in split] for name, split in data.splits.items()}))
    assert counted["shared"] == {"train & val": 1}
    assert counted["shared_with_other_boxes"] == {"train & val": 0}
    assert counted["duplicates"] == {"train": 1, "val": 0}
    assert {f.name: f.level for f in findings} == {"leakage": "warning", "duplicate-images": "note"}
    assert f"{val[0].stem}.png" in findings[0].text


def test_images_of_another_split(tmp_path):
    images = pictures(20, 20)
    mixed = [replace(a, data=b.data) for a, b in zip(images[:20], images[20:], strict=True)] + images[20:]
    assert named(*open_checked(write(tmp_path / "data", "coco", mixed)))["images-of-another-split"] == "warning"


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


def test_ids_of_few_boxes_from_one(tmp_path):
    folder = tmp_path / "data"
    write(folder, "yolo", pictures())
    for i, file in enumerate(sorted((folder / "labels").rglob("*.txt"))):
        file.write_text(f"{1 + i % 3} 0.5 0.5 0.25 0.25\n" if i < 9 else "")
    with pytest.raises(bq.UserError, match=r"ids from 1 to 3, the list of categories has 0 to 2: ids are probably counted from 1"):
        open_checked(folder)


def test_pictures_never_land_among_other_files(tmp_path, monkeypatch, capsys):
    """Where no --out was given: a folder of that name is used if it is an earlier check's."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", "yolo", pictures())
    for file in sorted((tmp_path / "data/images").rglob("*.png"))[1:]:
        file.write_bytes(sorted((tmp_path / "data/images").rglob("*.png"))[0].read_bytes())  # a finding that names images
    (tmp_path / "checked-data").mkdir()
    (tmp_path / "checked-data/check.json").write_text("mine")
    (tmp_path / "checked-data/thesis.txt").write_text("mine")
    for _ in range(2):
        run(["check", "data"])
        assert "written to checked-data-2: check.html, check.json, check.png" in capsys.readouterr().out
    assert (tmp_path / "checked-data/check.json").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checked-data", "checked-data-2", "data"]


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
    assert found[name] == "warning"
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
    result = run_checks(data, [], replace(PLAN, queries=4), Augment(), picture="never")
    most = max(len(record.boxes) for record in data.splits["train"])
    assert result.facts["feasibility"]["objects_per_image"]["100"] == most == 5
    assert f"up to {most}" in result.findings[0].text


def labels_found(train, other, names):
    fit = compare_labels(train, other)
    return None if fit is None else check_labels(train, other, "val", names, fit)


@pytest.mark.parametrize("by", [1, 2, 4])
def test_labels_shifted_in_one_split(by):
    """The silhouettes of the built-in scenes tell their classes apart, where size and colour do not."""
    data = shapes_data(train=80, val=50, test=1)
    images = {name: sample_images(data.splits[name]) for name in ("train", "val")}
    assert labels_found(images["train"], images["val"], data.names) is None
    wrong = [replace(image, labels=(image.labels + by) % len(data.names)) for image in images["val"]]
    finding = labels_found(images["train"], wrong, data.names)
    assert finding is not None
    assert (finding.name, finding.level) == ("labels-shifted", "warning")
    assert f"labelled {data.names[by]} look like train's {data.names[0]}" in finding.text
    assert {split for split, _ in finding.images} == {"train", "val"}


def test_labels_that_mean_nothing_are_no_shift():
    rng = np.random.default_rng(0)
    data = shapes_data(train=80, val=50, test=1)
    for name in ("train", "val"):
        data = changed(data, name, lambda r: replace(r, labels=rng.integers(0, 5, len(r.labels))))
    assert labels_found(sample_images(data.splits["train"]), sample_images(data.splits["val"]), data.names) is None
    few = changed(data, "val", lambda r: kept(r, np.arange(len(r.boxes)) < (int(str(r.id)[4:]) < 9)))
    assert compare_labels(sample_images(data.splits["train"]), sample_images(few.splits["val"])) is None


def tinted(image):
    """Warm, as most photographs are."""
    sums = image.sums.copy()
    sums[..., RED_BLUE] = 0.4 * sums[..., RED_BLUE] + 0.25 * sums[..., LIGHT]
    return replace(image, sums=sums)


def swapped(image):
    sums = image.sums.copy()
    sums[..., RED_BLUE] *= -1
    return replace(image, sums=sums)


def test_colours_swapped_in_one_split():
    train, val = (sample_images(scenes(64, 64).splits[name]) for name in ("train", "val"))

    def found(a, b):
        fit = compare_colours(a, b)
        return fit and check_colours(a, b, "val", fit)

    assert found(train, val) is None
    assert found(train, [swapped(image) for image in val]) is None  # the scenes have no colours of their own
    train, val = [tinted(image) for image in train], [tinted(image) for image in val]
    assert found(train, val) is None
    finding = found(train, [swapped(image) for image in val])
    assert finding is not None
    assert "BGR" in finding.text
    assert compare_colours(train, val[:10]) is None


def test_few_images_give_nothing():
    images = sample_images(scenes(20).splits["train"])
    assert measure_fit([replace(a, boxes=b.boxes) for a, b in zip(images, images[1:] + images[:1], strict=True)]) is None


@pytest.mark.parametrize("move", ["mirrored left to right", "written with x and y swapped", "written with their centre as their corner"])
def test_moves_are_named(move):
    undo = "written with their corner as their centre" if move == "written with their centre as their corner" else move
    images = [replace(image, boxes=np.clip(MOVES[undo](image.boxes), 0, 1)) for image in sample_images(scenes(40).splits["train"])]
    fit = measure_fit(images)
    assert fit is not None
    finding = check_fit("train", images, fit)
    assert finding is not None
    assert (finding.name, finding.undo) == ("boxes-moved", move)


def pixels_saved(data, folder, change=lambda image, record: image):
    """The rendered images as files, changed."""
    folder.mkdir(parents=True)

    def saved(split, i, record):
        path = folder / f"{split.name}-{i}.png"
        change(split.read(i), record).save(path)
        return replace(record, path=path)

    splits = {
        name: replace(split, records=[saved(split, i, record) for i, record in enumerate(split)], reader=read_record)
        for name, split in data.splits.items()
    }
    return replace(data, splits=splits)


def test_camouflage_is_no_wrong_image(tmp_path):
    """Objects of the ground's mean colour, apart from it by their texture alone."""
    rng = np.random.default_rng(0)

    def hidden(image, record):
        pixels = rng.normal(128, 4, (*image.size[::-1], 3))
        for x1, y1, x2, y2 in record.boxes.astype(int):
            pixels[y1:y2, x1:x2] += rng.normal(0, 30, (y2 - y1, x2 - x1, 1))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    data = pixels_saved(scenes(40, 30), tmp_path / "images", hidden)
    assert not alarms(named(data))
    other = replace(data.splits["train"], records=[
        replace(a, boxes=b.boxes, labels=b.labels, ignore=b.ignore, areas=b.areas)
        for a, b in zip(data.splits["train"], [*data.splits["train"][1:], data.splits["train"][0]], strict=True)
    ])  # fmt: skip
    assert "images-do-not-belong" in named(replace(data, splits={**data.splits, "train": other}))


def test_near_duplicates_and_uniform_images(tmp_path):
    data = pixels_saved(scenes(40, 20), tmp_path / "images")
    assert not named(data)
    train, val = data.splits["train"], data.splits["val"]
    for i in range(6):
        train.read(i).resize((80, 80)).save(tmp_path / f"images/val-{i}.jpg", quality=60)
    blank = tmp_path / "blank.png"
    Image.new("RGB", (96, 96), (3, 3, 3)).save(blank)
    records = [
        replace(r, path=tmp_path / f"images/val-{i}.jpg", width=80, height=80, boxes=r.boxes * 80 / 96) if i < 6 else r
        for i, r in enumerate(val)
    ]
    records[10] = replace(records[10], path=blank)
    findings = run_checks(
        replace(data, splits={**data.splits, "val": replace(val, records=records)}), [], PLAN, Augment(), picture="never"
    ).findings
    near = next(f for f in findings if f.name == "near-duplicates")
    assert near.text.startswith("6 of 19 val images look the same as one of train (val-0.jpg like train-0.png, ")
    assert near.level == "warning"
    assert next(f for f in findings if f.name == "uniform-images").text.startswith(
        "1 of 61 images are of a single colour (blank.png), 1 of"
    )


@pytest.mark.parametrize("size", [(8000, 16), (900, 900)])
def test_noise_is_not_of_a_single_colour(size, tmp_path):
    """Its mean is everywhere the same once it is reduced."""
    data = pixels_saved(scenes(2, 1), tmp_path / "images")
    noise = np.random.default_rng(0).integers(100, 156, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "images/val-0.png")
    assert not check_uniform(data, thumbnails(data))


def test_boxes_that_repeat():
    twice = changed(scenes(), "train", lambda r: kept(r, np.repeat(np.arange(len(r.boxes)), 2)))
    assert named(twice)["boxes-listed-twice"] == "warning"
    once = changed(scenes(), "train", lambda r: kept(r, np.arange(len(r.boxes) + (r.id == "train/3")) % len(r.boxes)))
    assert named(once)["boxes-listed-twice"] == "note"

    def in_corner(record):
        boxes = record.boxes.copy()
        boxes[::2] -= boxes[::2][:, [0, 1, 0, 1]]
        return replace(record, boxes=boxes)

    findings = run_checks(changed(scenes(), "train", in_corner), [], PLAN, Augment(), picture="never").findings
    assert any(f.name == "boxes-in-a-corner" and "top left corner" in f.text for f in findings)
    pasted = changed(
        scenes(), "train", lambda r: replace(r, boxes=np.concatenate((r.boxes[:-1], np.array([[10, 20, 40, 60]], np.float32))))
    )
    assert named(pasted)["same-box-everywhere"] == "warning"


def test_classes_that_differ_in_case():
    data = scenes()
    names = ["Traffic light", "traffic_light", *data.names[2:]]
    findings = run_checks(replace(data, names=names), [], PLAN, Augment(), picture="never").findings
    (finding,) = [f for f in findings if f.name == "classes-alike"]
    assert "'Traffic light' and 'traffic_light'" in finding.text


def test_the_same_photograph_annotated_twice_is_a_leak_and_nothing_is_mixed_up(tmp_path):
    images = pictures(30, 12)
    train, val = [p for p in images if p.split == "train"], [p for p in images if p.split == "val"]
    again = [
        replace(v, data=t.data, things=[replace(thing, box=[value + 0.4 for value in thing.box]) for thing in t.things])
        for v, t in zip(val, train[: len(val)], strict=True)
    ]
    found = named(*open_checked(write(tmp_path / "data", "voc", [*train, *again])))
    assert "leakage" in found
    assert "images-of-another-split" not in found


def test_mosaics_have_more_boxes_and_val_misses_none():
    data = scenes(100, 100)
    small = changed(data, "train", lambda r: kept(replace(r, boxes=r.boxes * np.float32(0.5)), np.repeat(np.arange(len(r.boxes)), 3)))
    assert "labels-missing" not in named(small)
    same = changed(data, "val", lambda r: kept(r, np.arange(len(r.boxes)) < 1))
    assert "labels-missing" in named(same)


def test_more_objects_than_coco_counts_and_recall_that_is_bounded():
    full = changed(scenes(), "val", lambda r: kept(r, np.arange(150) % len(r.boxes)))
    findings = {f.name: f for f in run_checks(full, [], replace(PLAN, queries=100, max_detections=40), Augment(), picture="never").findings}
    assert findings["recall-bounded"].level == "warning"
    assert "Recall on val can be at most 0.67: up to 150 objects per image" in findings["recall-bounded"].text
    assert "--option num_queries=180" in findings["recall-bounded"].remedy
    assert findings["many-objects"].text.startswith("val: recall can be at most 0.")
    assert "but 40 detections of a class count per image; --max-detections " in findings["many-objects"].text
    assert "many-objects" not in named(full, plan=replace(PLAN, queries=100, max_detections=150))
    assert "recall-bounded" not in named(full, plan=replace(PLAN, queries=150))


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
    assert run(["check", data, "--model", "detr", "--preset", "tiny", "--out", str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    assert f"written to {tmp_path}/again: check.html, check.json, check.png" in shown
    assert "1 to 5 (median" in shown
    assert run(["check", str(tmp_path / "nowhere")]) == 2
    assert run(["check", data, "--epochs", "-3"]) == 2
    assert "epochs=-3: must be a finite number above 0" in capsys.readouterr().err


def test_a_finding_that_speaks_of_images_names_a_picture_that_was_written(tmp_path, capsys, monkeypatch):
    images = pictures()
    data = write(tmp_path / "data", "yolo", [replace(a, data=b.data) for a, b in zip(images, images[1:] + images[:1], strict=True)])
    monkeypatch.chdir(tmp_path)
    assert run(["check", data, "--model", "detr", "--preset", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("warning") and "boxes of train" in line]
    assert line.startswith("warning (strong evidence): ")
    picture = next(word for word in line.split() if word.endswith("check.png.")).rstrip(".")
    with Image.open(tmp_path / picture) as image:
        assert image.height > 1000  # the grid, and a row per finding
    assert "No problem found." not in lines


def test_images_of_another_folder_and_of_another_split_are_named_where_sizes_betray_them(tmp_path):
    """What is refused for its stated sizes is refused with its cause."""
    images = pictures(30, 30)
    resized = []
    for i, picture in enumerate(images):
        with Image.open(io.BytesIO(picture.data or b"")) as image:
            stream = io.BytesIO()
            image.resize((SIDE, SIDE - 24 * (i % 3))).save(stream, "PNG")
        resized.append(replace(picture, data=stream.getvalue()))
    turned = [replace(a, data=b.data) for a, b in zip(images, resized, strict=True)]
    with pytest.raises(bq.UserError, match=r"the images do not belong to them\. Pair"):
        open_checked(write(tmp_path / "turned", "voc", turned))
    train, val = turned[:30], turned[30:]
    mixed = [replace(a, data=b.data) for a, b in zip(train, val, strict=True)] + val
    with pytest.raises(bq.UserError, match="images of train and val were mixed up"):
        open_checked(write(tmp_path / "mixed", "voc", mixed))


def test_check_prints_what_the_data_is(capsys):
    result = check("shapes", model="detr", preset="tiny")
    assert result.status == 0
    result.show()
    assert "circle" in capsys.readouterr().out


def test_the_preview_of_an_augmentation(tmp_path, monkeypatch, capsys):
    """Beside the images as they are; in a folder of its own where no --out was given; another picture for another augmentation."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", "yolo", pictures())
    drawn = []
    for words in (["--augment"], ["--augment", "default"], ["--augment", "strong", "--augment", "rotation=20"]):
        assert run(["check", "data", "--model", "detr", "--preset", "tiny", *words]) == 0
        shown = capsys.readouterr().out
        assert "written to checked-data: augmented.png, check.html, check.json" in shown
        drawn.append((tmp_path / "checked-data/augmented.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    assert json.loads((tmp_path / "checked-data/check.json").read_text())["augmented"] == "augmented.png"
    with Image.open(tmp_path / "checked-data/augmented.png") as image:
        assert image.width > image.height > 600
    assert run(["check", "data", "--augment", "strongest"]) == 2
    assert "no level 'strongest'; levels: none, light, default, strong" in capsys.readouterr().err


def test_the_preview_is_what_training_is_shown(monkeypatch):
    from boxquery.check import preview

    seen = []
    monkeypatch.setattr(preview, "draw", lambda image, boxes, labels, names, dashed=None: seen.append((boxes, labels)) or image)
    data, augment = shapes_data(train=6, val=2, size=64), Augment(mosaic=1.0)
    result = run_checks(data, [], PLAN, augment, seed=4, picture="never", preview=True)
    assert result.augmented is not None
    dataset = DetectionDataset(
        data.splits["train"], TrainTransform(Preprocessing(PLAN.image_size), augment, most_objects=PLAN.queries), seed=4
    )
    assert len(seen) == 3 * 5
    for row, index in enumerate((0, 2, 5)):
        for epoch in range(4):
            assert seen[5 * row + 1 + epoch][1].tolist() == dataset[epoch, index]["target"]["labels"].tolist()


def test_mosaics_with_more_objects_than_queries_are_a_note():
    data = shapes_data(train=20, val=4, size=64, max_objects=8)
    assert "crowded-mosaics" not in {f.name for f in run_checks(data, [], PLAN, Augment(), picture="never").findings}
    found = {f.name: f for f in run_checks(data, [], PLAN, Augment(mosaic=0.5), picture="never").findings}
    assert found["crowded-mosaics"].level == "note"
    roomy = run_checks(data, [], replace(PLAN, queries=100), Augment(mosaic=0.5), picture="never").findings
    assert "crowded-mosaics" not in {f.name for f in roomy}
