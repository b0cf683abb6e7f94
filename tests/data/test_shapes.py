"""The built-in scenes are what they claim: sizes, crowding, balance, seeds; and not solvable by thresholding."""

import hashlib
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import ndimage

from boxquery import UserError
from boxquery.data.open import open_data
from boxquery.data.shapes.scenes import SIDES, shapes_data
from boxquery.data.shapes.silhouettes import NAMES, silhouette

from . import thresholding


@pytest.fixture(scope="module")
def records():
    return shapes_data().splits["train"][:1500]


def hidden(boxes):
    """Share of each box [N] that any one later box covers, and whether it meets any other box."""
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    both = np.clip(sides, 0, None).prod(2)
    np.fill_diagonal(both, 0)
    share = both / (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]
    return np.triu(share, 1).max(1), (both > 0).any(1)


def test_objects(records):
    counts = np.array([len(record.boxes) for record in records])
    assert (counts.min(), counts.max()) == (1, 10)
    assert abs(counts.mean() - 5.5) < 0.4
    boxes = np.concatenate([record.boxes for record in records])
    sides = (boxes[:, 2:] - boxes[:, :2]) / 160
    assert sides.min() > SIDES[0] - 1e-3
    assert 0.55 < sides.max() < SIDES[2] + 1e-3
    assert abs((sides.max(1) < SIDES[1]).mean() - 0.30) < 0.03
    assert boxes.min() >= 0
    assert boxes.max() <= 160
    share = np.bincount(np.concatenate([record.labels for record in records])) / counts.sum()
    assert len(share) == len(NAMES) >= 5
    assert abs(share * len(NAMES) - 1).max() < 0.12


def test_overlap(records):
    covered, meets = zip(*[hidden(record.boxes) for record in records], strict=True)
    assert abs(np.concatenate(meets).mean() - 0.20) < 0.03
    assert np.concatenate(covered).max() <= 0.70 + 1e-4


@pytest.mark.parametrize(("crowding", "low", "high"), [(0, 0, 0), (0.5, 0.4, 0.56), (1, 0.75, 1)])
def test_crowding_is_adjustable(crowding, low, high):
    records = shapes_data(crowding=crowding, max_objects=10).splits["train"][:200]
    share = np.concatenate([hidden(record.boxes)[1] for record in records]).mean()
    assert low <= share <= high


def test_boxes_are_those_of_the_pixels():
    """Drawn without anything else, every silhouette fills its box to the pixel; nothing is drawn outside the boxes."""
    from boxquery.data.shapes.paint import _mask

    box = np.array([3.3, 5.6, 43.1, 30.2])
    for label in range(3 * len(NAMES)):
        for angle in np.linspace(0, 6, 7):
            rows, columns = np.nonzero(_mask(silhouette(label).turned(angle)[0], box, 50, 40) > 0.2)
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert abs(found - box).max() < 1.5, (label, angle)


def test_silhouettes_differ_whatever_their_rotation():
    """Of any two classes, no rotations agree: intersection over union of filled masks stays below 0.9."""
    from boxquery.data.shapes.paint import _mask

    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    box = np.array([0, 0, 40, 40.0])
    masks = np.array([[_mask(silhouette(label).turned(a)[0], box, 40, 40).ravel() > 0.5 for a in angles] for label in range(len(NAMES))])
    for i in range(len(NAMES)):
        for j in range(i):
            both = (masks[i][:, None] & masks[j][None]).sum(2) / (masks[i][:, None] | masks[j][None]).sum(2)
            assert both.max() < 0.9, (NAMES[i], NAMES[j])


def test_more_classes_are_drawn_from_their_numbers():
    """They have names, differ from each other, and change neither the layout's chances nor the scenes of the first five."""
    many = shapes_data(classes=40, train=300)
    assert many.names[:6] == [*NAMES, "silhouette 6"]
    assert many.ids == list(range(40))
    labels = np.concatenate([record.labels for record in many.splits["train"]])
    assert set(labels.tolist()) == set(range(40))
    outlines = {silhouette(label).outlines[0].tobytes() for label in range(40)}
    assert len(outlines) == 40
    assert {len(silhouette(label).outlines) for label in range(len(NAMES), 40)} == {1, 2, 3, 4}
    again, other = (shapes_data(classes=classes, train=300).splits["train"] for classes in (40, 41))
    assert many.splits["train"].read(3).tobytes() == again.read(3).tobytes() != other.read(3).tobytes()
    assert many.splits["train"][3].boxes.tobytes() == shapes_data(train=300).splits["train"][3].boxes.tobytes()


def test_scene_depends_on_seed_split_and_index_alone():
    code = (
        "import hashlib; from boxquery.data.shapes.scenes import shapes_data; s = shapes_data(seed=5, train=10).splits['train'];"
        "print(hashlib.blake2b(s.read(7).tobytes() + s[7].boxes.tobytes()).hexdigest(), end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    split = shapes_data(seed=5, train=10**9, val=1).splits["train"]
    assert hashlib.blake2b(split.read(7).tobytes() + split[7].boxes.tobytes()).hexdigest() == other


def test_scenes_stay_what_they_were():
    """Runs are compared across versions: the same seeds give the same objects, to a hundredth of a pixel."""

    def digest(**given) -> str:
        found = hashlib.blake2b(digest_size=8)
        for split in shapes_data(**given).splits.values():
            for record in split[:6]:
                found.update(np.round(record.boxes, 2).tobytes() + record.labels.tobytes())
        return found.hexdigest()

    assert digest() == "a3de55f6be2ab9be"
    assert digest(max_objects=30, crowding=0.8, seed=3) == "6a44e80b802c0723"


@pytest.mark.parametrize("objects", [1, 2, 12, 30])
def test_every_scene_has_exactly_so_many_objects(objects):
    split = shapes_data(objects=objects).splits["train"]
    records = split[:40]
    assert {len(record.boxes) for record in records} == {objects}
    boxes = np.concatenate([record.boxes for record in records])
    assert (boxes[:, 2:] - boxes[:, :2]).min() / 160 > SIDES[0] - 1e-3
    assert np.concatenate([hidden(record.boxes)[0] for record in records]).max() <= 0.70 + 1e-4
    again = shapes_data(objects=objects, max_objects=3).splits["train"]
    assert again[7].boxes.tobytes() == records[7].boxes.tobytes()


def test_a_crowd_is_smaller_and_a_few_are_as_large_as_ever():
    def median(**given) -> float:
        boxes = np.concatenate([record.boxes for record in shapes_data(**given).splits["train"][:100]])
        return float(np.median((boxes[:, 2:] - boxes[:, :2]).max(1)))

    assert abs(median(objects=2) / median() - 1) < 0.15
    assert median(objects=30) < 0.75 * median()


def test_options_in_the_word():
    word = "shapes:objects=2, train=5,size=64,crowding=0.5"
    data = open_data(word)
    assert {len(record.boxes) for record in data.splits["train"]} == {2}
    assert (len(data.splits["train"]), data.splits["val"][0].width, data.source) == (5, 64, word)
    assert "2 per scene" in data.notes[0]
    assert "crowding 0.5" in data.notes[0]
    seeded, plain = open_data("shapes:seed=3", seed=5).splits["val"], shapes_data(seed=3).splits["val"]
    assert seeded[4].boxes.tobytes() == plain[4].boxes.tobytes()
    assert open_data("shapes").source == open_data("shapes:").source.rstrip(":") == "shapes"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("shapes:object=2", "no option 'object=2'; the options of the scenes are train, val, test, size, seed, crowding, max_objects, obj"),
        ("shapes:12", "no option '12'; the options"),
        ("shapes:objects=", "objects= is not a whole number"),
        ("shapes:objects=1.5", "objects=1.5 is not a whole number"),
        ("shapes:crowding=much", "crowding=much is not a number"),
        ("shapes:crowding=nan", "crowding=nan is out of range; choose 0 to 1"),
        ("shapes:objects=31", "objects=31 is out of range; choose 1 to 30"),
        ("shapes:size=8", "size=8 is out of range"),
        ("shapes:size=64,size=64", "size is given twice"),
        ("shapes:objects=2,max_objects=3", "objects and max_objects exclude each other"),
    ],
)
def test_wrong_options_say_what_there_is(word, said):
    with pytest.raises(UserError, match=re.escape(said)):
        open_data(word)


def test_a_scene_without_room_is_given_up(monkeypatch):
    monkeypatch.setattr("boxquery.data.shapes.scenes._DRAWS", 50)
    full = shapes_data(max_objects=30, seed=9).splits["train"]
    with pytest.raises(UserError, match=r"^shapes: \d+ objects found no room in one scene"):
        full[:100]


def test_no_scene_twice():
    """Splits, seeds and indices share no scene."""
    seen = set()
    for seed in (0, 1):
        for split in shapes_data(seed=seed).splits.values():
            seen |= {record.boxes.tobytes() for record in split[:150]}
    assert len(seen) == 2 * 3 * 150


def test_split_is_a_lazy_sequence():
    split = shapes_data(train=2**32).splits["train"]
    last = split[-1]
    assert last.id == f"train/{2**32 - 1}"
    assert (last.width, last.height) == split.read(2**32 - 1).size == (160, 160)
    assert last.boxes.dtype == np.float32
    assert last.labels.dtype == np.int64
    assert not last.ignore.any()
    np.testing.assert_allclose(last.areas, (last.boxes[:, 2:] - last.boxes[:, :2]).prod(1))
    with pytest.raises(IndexError):
        split[2**32]
    again = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert again.read(3).tobytes() == split.read(3).tobytes()


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"size": 8}, {"seed": -1}, {"seed": 2**32}, {"crowding": 1.5}, {"max_objects": 0}, {"max_objects": 31}]
)
def test_arguments_out_of_range(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        shapes_data(**wrong)


def test_thresholding_finds_objects_on_a_plain_background():
    """The baseline is no straw man: on a plain background it finds the objects."""
    rng = np.random.default_rng(0)
    scenes = []
    for record in shapes_data(crowding=0).splits["val"][:20]:
        image = np.full((160, 160, 3), 90, np.uint8)
        for x1, y1, x2, y2 in record.boxes.round().astype(int):
            image[y1:y2, x1:x2] = (200, rng.integers(120, 255), rng.integers(60))
        scenes.append((record, image))
    assert thresholding.oracle_ap50(scenes, thresholding.from_median, len(NAMES)) > 0.6


@pytest.mark.parametrize("method", thresholding.METHODS, ids=lambda method: method.__name__)
def test_thresholding_does_not_solve_it(method):
    split = shapes_data().splits["val"]
    scenes = [(split[i], np.asarray(split.read(i))) for i in range(40)]
    assert thresholding.oracle_ap50(scenes, method, len(NAMES)) < 0.20


def test_objects_stand_out_from_their_background():
    """Every object differs from the background beside it, in mean colour or in texture, by more than noise: it can be learned."""
    split = shapes_data(crowding=0).splits["val"]
    weak = total = 0
    for i in range(60):
        image = ndimage.gaussian_filter(np.asarray(split.read(i)).astype(np.float32), (1, 1, 0))
        for x1, y1, x2, y2 in split[i].boxes.round().astype(int):
            inside = image[(y1 + y2) // 2 - 2 : (y1 + y2) // 2 + 2, x1 : x2 + 1].mean(0)
            edge = np.abs(np.diff(image[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3], axis=1)).max()
            weak += edge < 12 and inside.std() < 4
            total += 1
    assert weak < 0.01 * total


def test_fast():
    split = shapes_data(seed=9).splits["train"]
    split.read(0)
    start = time.process_time()
    for i in range(100):
        split.read(i)
    assert (time.process_time() - start) / 100 < 0.012  # about 0.003 on an idle machine
