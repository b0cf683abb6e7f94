"""Whatever is in the files: every box is kept or named, and no other exception than UserError is raised."""

import contextlib
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxquery import UserError
from boxquery.data import coco
from boxquery.data.open import open_data
from boxquery.data.raw import RawDataset, RawImage, RawObject
from boxquery.data.validation import check_box, validate

from . import writers
from .writers import Picture, Thing, pictures


@given(
    st.lists(
        st.tuples(*[st.one_of(st.floats(width=32), st.integers(-70, 140), st.sampled_from([0, 1e-30, 64, 48, 1e308, -1e308]))] * 4),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_kept_and_skipped_are_all(tmp_path_factory, boxes):
    """Whatever the boxes are: each is kept, inside its image and not empty, or skipped and named."""
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        for i in range(12):
            writers.save_image(root / f"{i}.png", Picture(str(i), "train", []))
    fine = [RawObject(f"fine {i}", 0, (1.0, 1.0, 9.0, 9.0), "") for i in range(200)]
    listed = [RawImage(i, root / f"{i}.png", f"image {i}", objects=list(fine)) for i in range(12)]
    listed[0].objects += [RawObject(f"box {i}", 0, tuple(map(float, box)), repr(box)) for i, box in enumerate(boxes)]
    data, report = validate(RawDataset("coco", ["cat"], [1], {"": listed}))
    kept = [record.boxes for split in data.splits.values() for record in split]
    assert report.boxes_total == 2400 + len(boxes)
    assert report.boxes_kept == sum(map(len, kept))
    assert report.boxes_kept + report.boxes_skipped == report.boxes_total
    assert len(data.skipped) == report.boxes_skipped
    everything = np.concatenate(kept)
    assert np.isfinite(everything).all()
    assert (everything[:, 2:] > everything[:, :2]).all()
    assert (everything >= 0).all()
    assert (everything <= [64, 48, 64, 48]).all()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), lambda x: st.lists(x, max_size=3)))
@settings(max_examples=60, deadline=None)
def test_coco_of_any_values_is_read_or_refused(tmp_path_factory, value):
    """Any JSON value in any place of the file: a result or a UserError, never another exception."""
    images = pictures(12)
    for key in ("images", "annotations", "categories"):
        for field in writers.coco_content(images)[key][0]:
            content = writers.coco_content(images)
            content[key][0][field] = value
            root = tmp_path_factory.getbasetemp() / "json"
            root.mkdir(exist_ok=True)
            (root / "x.json").write_text(json.dumps(content))
            with contextlib.suppress(UserError):
                coco.read(root, [root / "x.json"], whole=True)


def test_check_box_clips():
    assert check_box((-1.0, 2.0, 99.0, 9.0), 10, 20) == ((0.0, 2.0, 10.0, 9.0), None)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The file cut, overwritten, or with bytes inserted or removed."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 4))) + data[at + 4 :]
        case 2:
            return (
                data[:at]
                + rng.choice([b"[[[", b"<a>", b"nan", b"..", b"/", b"\0", b"1e999", b"-", b"\xff", b"{", b"\n", b":", b"&x;"])
                + data[at:]
            )
        case _:
            return data[:at] + data[at + rng.randint(1, 20) :]


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    root = writers.FORMATS[kind](tmp_path, pictures(12))
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".png")
    rng = random.Random(0)
    outcomes = set()
    for _ in range(80):
        file = rng.choice(files)
        data = file.read_bytes()
        file.write_bytes(damaged(rng, data))
        try:
            open_data(root)
            outcomes.add("read")
        except UserError as error:
            outcomes.add("refused" if "\n" not in str(error) else str(error))
        file.write_bytes(data)
    assert outcomes == {"read", "refused"}


def test_what_many_share_is_said_once(tmp_path):
    """Thirty invalid boxes among five hundred: ten lines and a count, all in the data; a refusal names the kind, the first and the rest."""
    images = pictures(12)
    images[0].things += [Thing("cat", [1, 1, 9, 9])] * 500
    images[1].things += [Thing("cat", [5, 5, 5, 9])] * 30
    data = open_data(writers.write_coco_file(tmp_path / "some", images))
    lines = data.messages()
    assert len(data.skipped) == 30
    assert sum(line.startswith("skipped: ") for line in lines) == 11
    assert lines[-1] == "skipped: and 20 more: box has no size; boxquery check with --out lists all in check.json"
    images[0].things = []
    for picture in images[2:10]:
        picture.missing = True
    with pytest.raises(UserError) as caught:
        open_data(writers.write_coco_file(tmp_path / "most", images))
    assert re.search(
        r"8 of 12 images are invalid, more than 10%: no such file: 8 of 12 images; the first is data.json image 102 "
        r"\('p002.png'; looked .*\); put the images .*; \d+ of \d+ boxes kept, \d+ skipped$",
        str(caught.value),
    )
    kept, total, skipped = map(int, re.findall(r"(\d+) of (\d+) boxes kept, (\d+) skipped", str(caught.value))[0])
    assert kept + skipped == total == sum(len(picture.things) for picture in images)
    with pytest.raises(UserError, match=f"{kept} of {total} boxes kept, {skipped} skipped"):
        open_data(tmp_path / "most", strict=True)


def test_copies_stay_on_one_side_of_a_split_that_is_made(tmp_path):
    images = pictures(40)
    for i, picture in enumerate(images):
        picture.size = picture.stated = (64, 48 + i // 2)  # twins have equal pixels
    data = open_data(writers.write_voc_flat(tmp_path, images))
    sides = [{record.height for record in split} for split in data.splits.values()]
    assert not sides[0] & sides[1]
    assert [len(split) for split in data.splits.values()] == [32, 8]
    assert any("40 images with copies under other names" in note for note in data.notes)


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_a_split_is_only_missed_where_it_is_needed(tmp_path, kind):
    """Without val some images are held out; without train, val can still be evaluated; an unreadable test split is left out."""
    images = pictures(40, splits=("train", "train", "train", "val", "test"))
    for picture in images:
        if picture.split == "test":
            picture.things = []
    images[4].data = b"?"
    root = writers.FORMATS[kind](tmp_path / "all", [p for p in images if p.split != "test" or p is images[4]])
    data = open_data(root)
    assert list(data.splits) == ["train", "val"]
    with pytest.raises(UserError, match=r"no split 'test' \(none of its 1 image can be used\); it has train, val"):
        data.split("test")
    only = open_data(writers.FORMATS[kind](tmp_path / "val", pictures(10, splits=("val",))))
    assert list(only.splits) == ["val"]
    with pytest.raises(UserError, match="no split 'train'; it has val"):
        only.training_split()


def test_names_are_printable(tmp_path):
    images = [RawImage(i, tmp_path / "none.png", f"image {i}\x1b[31m") for i in range(3)]
    with pytest.raises(UserError) as caught:
        validate(RawDataset("coco", ["a\u202eb\n"], [1], {"": images}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", writers.FORMATS)
def test_what_is_passed_over_is_said(tmp_path, kind):
    root = writers.FORMATS[kind](tmp_path, pictures(12))
    place = next(root.rglob("p000.png")).parent
    for name in ("a.mp4", "b.mp4", "c.PSD", "d.txt", ".DS_Store", "Thumbs.db"):
        (place / name).write_bytes(b"?")
    data = open_data(root)
    assert "3 files beside the images passed over: .mp4 2, .psd 1" in data.notes
    assert sum(map(len, data.splits.values())) == 12


@pytest.mark.parametrize("kind", ["coco", "voc"])
@pytest.mark.parametrize("fits", [True, False])
def test_width_and_height_in_each_others_place(tmp_path, kind, fits):
    """Taken with a note where boxes show it; where one lies beyond the file as well, the images are other ones."""
    images = pictures(12)
    for picture in images:
        picture.stated = picture.size[::-1]
        picture.things.append(Thing("cat", [50, 1, 63 if fits else 70, 9]))
    root = writers.FORMATS[kind](tmp_path, images)
    if not fits:
        with pytest.raises(UserError, match=r"12 of 12 images are invalid.*stated size is not the file's: all 12 images"):
            open_data(root)
        return
    data = open_data(root)
    assert "12 images with width and height stated in each other's place, as the boxes show: the files' are used" in data.notes
    assert {(r.width, r.height) for split in data.splits.values() for r in split} == {(64, 48)}
    with pytest.raises(UserError, match="stated 48 x 64, the file is 64 x 48"):
        open_data(root, strict=True)
