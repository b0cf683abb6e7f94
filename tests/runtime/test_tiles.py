"""Tiles cover an image; whatever they cut, every object is found once and whole."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from boxquery.data.dataset import Record, Split
from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.errors import UserError
from boxquery.evaluation.predictions import predict_split
from boxquery.runtime.predictor import Detections, Predictor
from boxquery.runtime.tiles import Tiles, merge_views


def see(objects, labels, views, *, blind=(), least=0.0):
    """What a perfect detector says of each view: the visible part of every object, where it is more than ``least`` of it."""
    found = []
    for number, view in enumerate(views):
        parts = np.clip(objects, np.tile(view[:2], 2), np.tile(view[2:], 2))
        area = (parts[:, 2:] - parts[:, :2]).prod(1)
        seen = (area > least * (objects[:, 2:] - objects[:, :2]).prod(1)) & (number not in blind)
        found.append((parts[seen] - np.tile(view[:2], 2), 0.9 - 0.01 * np.arange(seen.sum()) % 0.5, labels[seen]))
    return found


@pytest.mark.parametrize(("height", "width"), [(100, 100), (640, 640), (641, 640), (1000, 3000), (640, 5000), (2160, 3840)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_image_and_overlap(height, width, overlap):
    views = Tiles(640, overlap).views(height, width)
    assert views[0].tolist() == [0, 0, width, height]
    assert (len(views) == 1) == (height <= 640 >= width)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(int(view[low]), int(view[high])) for view in views[1:]})
        if spans:
            assert (spans[0][0], spans[-1][1]) == (0, length)
            assert {end - start for start, end in spans} == {min(640, length)}
            assert all(before[1] - after[0] >= int(640 * overlap) for before, after in pairwise(spans))


def boxes_apart(random: np.random.Generator, number: int, size: int, low: int, high: int) -> np.ndarray:
    """Boxes that do not touch each other."""
    kept = np.zeros((0, 4))
    for _ in range(50 * number):
        side = random.integers(low, high, 2)
        corner = random.integers(0, size - side)
        box = np.concatenate([corner, corner + side]).astype(np.float64)
        if len(kept) < number and not ((kept[:, :2] < box[2:] + 2) & (kept[:, 2:] + 2 > box[:2])).all(1).any():
            kept = np.concatenate([kept, box[None]])
    return kept


def same(found, objects, labels) -> bool:
    boxes, _, own = found
    rows = sorted((*map(float, box), int(label)) for box, label in zip(boxes, own, strict=True))
    return rows == sorted((*map(float, box), int(label)) for box, label in zip(objects, labels, strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("blind", [(), (0,)], ids=["whole image seen", "whole image missed"])
def test_each_object_is_found_once_and_whole(seed, blind):
    random = np.random.default_rng(seed)
    objects = boxes_apart(random, 60, 1500, 6, 90)  # the overlap is 96
    labels = random.integers(0, 3, len(objects))
    views = Tiles(320, 0.3).views(1500, 1500)
    assert same(merge_views(views, see(objects, labels, views, blind=blind)), objects, labels)


@pytest.mark.parametrize("blind", [(), (0,)], ids=["whole image seen", "whole image missed"])
def test_objects_larger_than_a_tile_are_put_together(blind):
    objects = np.array([[100.0, 200, 1400, 420], [50, 600, 130, 1400], [700, 700, 1300, 1300]])
    labels = np.array([0, 0, 1])
    views = Tiles(320, 0.3).views(1500, 1500)
    assert same(merge_views(views, see(objects, labels, views, blind=blind)), objects, labels)


def test_a_crowd_that_one_view_keeps_apart_stays():
    """Two boxes of a class with an IoU of .67, both seen by the tile: NMS would lose one."""
    objects, labels = np.array([[100.0, 100, 150, 200], [110, 100, 160, 200]]), np.array([1, 1])
    views = Tiles(320, 0.2).views(600, 600)
    found = see(objects, labels, views)
    assert same(merge_views(views, found[:1] + [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))] * (len(views) - 1)), objects, labels)
    assert same(merge_views(views, found), objects, labels)


def test_the_better_score_and_the_box_that_is_not_cut():
    views = Tiles(100, 0.2).views(100, 180)  # tiles from 0 and from 80
    whole, left, right = ([[70.0, 10, 110, 50]], [0.3], [1]), ([[70.0, 10, 100, 50]], [0.9], [1]), ([[0.0, 10, 30, 50]], [0.5], [1])
    boxes, scores, labels = merge_views(views, [tuple(map(np.array, each)) for each in (whole, left, right)])
    assert (boxes.tolist(), labels.tolist()) == ([[70, 10, 110, 50]], [1])
    assert scores == pytest.approx([0.9])


def test_nothing_found_is_nothing():
    views = Tiles(100).views(300, 300)
    none = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
    assert [len(column) for column in merge_views(views, [none] * len(views))] == [0, 0, 0]


@pytest.mark.parametrize(("side", "overlap", "said"), [(0, 0.2, "tiles=0"), (640, 1.0, "overlap=1.0"), (640, -0.1, "overlap=-0.1")])
def test_what_cannot_be_is_refused(side, overlap, said):
    with pytest.raises(UserError, match=said):
        Tiles(side, overlap)


class SquareFinder(Predictor):
    """Finds bright squares on black, as they are in its input of 64 x 64 pixels; what is below three pixels there it does not see."""

    def __init__(self):
        super().__init__(["square"], [1], Resize(Preprocessing(64, square=True)), 0.5)
        self.batches: list[int] = []

    name, num_queries = "squares", 100

    def detect(self, images, sizes, *, top_k=None, one_label=False, nms=None):
        from scipy import ndimage

        self.batches.append(len(images))
        found = []
        for pixels, (height, width) in zip(images, sizes, strict=True):
            parts = ndimage.find_objects(ndimage.label(pixels[0] > 100)[0])
            scale = np.array([width / 64, height / 64] * 2)
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in parts if min(x.stop - x.start, y.stop - y.start) >= 3]
            boxes = np.array(boxes, np.float32).reshape(-1, 4)
            found.append(Detections(boxes * scale, np.full(len(boxes), 0.9, np.float32), np.zeros(len(boxes), np.int64)))
        return found


def test_small_objects_are_found_in_tiles():
    image = np.zeros((640, 640, 3), np.uint8)
    objects = [(10, 10, 20, 20), (122, 300, 134, 312), (300, 122, 312, 134), (600, 600, 616, 616), (250, 350, 450, 560)]
    for x1, y1, x2, y2 in objects:
        image[y1:y2, x1:x2] = 255
    finder = SquareFinder()
    assert len(finder.predict(image)) == 1
    finder.batches.clear()
    result = finder.predict(image, tiles=128, overlap=0.25, batch_size=16)
    boxes = result.boxes[np.lexsort(result.boxes.T[::-1])]
    assert len(result) == len(objects)
    assert np.abs(boxes - np.array(sorted(objects))).max() <= 10  # of the large one, from the whole image at a tenth
    assert np.abs(boxes[:3] - np.array(sorted(objects))[:3]).max() <= 2
    assert finder.batches == [16, 16, 16, 2]  # the whole image and 49 tiles
    assert len(finder.predict(image, tiles=128, max_detections=2)) == 2
    with pytest.raises(UserError, match="tiles=3"):
        finder.predict(image, tiles=3)


def test_evaluation_looks_at_the_same_tiles():
    image = np.zeros((640, 640, 3), np.uint8)
    objects = np.array([(10, 10, 20, 20), (122, 300, 134, 312), (300, 122, 312, 134)], np.float32)
    for x1, y1, x2, y2 in objects.astype(int):
        image[y1:y2, x1:x2] = 255
    areas = np.full(3, 144.0)
    good, broken = (Record(name, None, 640, 640, objects, np.zeros(3, np.int64), np.zeros(3, bool), areas) for name in ("good", "broken"))

    def read(record: Record) -> Image.Image:
        if record is broken:
            raise UserError("broken: cannot be read")
        return Image.fromarray(image)

    finder, split, said, done = SquareFinder(), Split("val", [broken, good], read), [], []
    assert len(predict_split(finder, Split("val", [good], read))[0][1]) == 0
    found = predict_split(finder, split, tiles=Tiles(128, 0.25), warn=said.append, done=done.append)
    result = finder.predict(image, tiles=128, overlap=0.25)
    assert np.array_equal(found[1][0], result.boxes)
    assert (list(found), len(result), said, done) == ([1], 3, ["broken: cannot be read"], [1, 1])
    with pytest.raises(UserError, match="broken"):
        predict_split(finder, split, tiles=Tiles(128), strict=True)


def test_boxes_that_end_where_a_tile_does_are_counted():
    boxes = np.array([[40, 20, 100, 60], [0, 0, 30, 30], [80, 10, 99, 50], [60, 70, 200, 90], [170, 50, 200, 80]], np.float32)
    assert Tiles(100, 0.2).count_cut(100, 200, boxes) == 1  # of the tiles from 0, 50 and 100 on
    assert Tiles(300, 0.2).count_cut(100, 200, boxes) == 0
