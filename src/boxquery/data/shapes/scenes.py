"""The built-in scenes: silhouettes on a textured background, rendered from a seed, so that everything runs without a download.

A scene is a *layout* (which silhouettes, where; cheap, no pixels) and its *pixels*, rendered when they are read. Colour and texture are
independent of the class, only the silhouette shows it, and the background is as textured as the objects: thresholding does not solve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from boxquery.data.dataset import Data, Record, Split
from boxquery.data.shapes.paint import paint
from boxquery.data.shapes.silhouettes import NAMES, names, silhouette
from boxquery.errors import UserError

SIDES = (0.06, 0.12, 0.60)
"""Smallest side, upper limit of "small", and largest side of an object, as fractions of the image side."""

_SMALL = 0.27  # share of objects drawn with both sides under SIDES[1]; larger ones find a place less often, which makes it 30 %
_TALLEST = 1.5  # largest ratio of sides
_FULL = 0.55  # boxes are drawn again if together they would fill more of the image than this
_MOST = 30  # objects per scene; of draws with 30 one in some thousand fits into the image, of draws with 40 not one in a million
_DRAWS = 200_000  # attempts at the sides of one scene
_SHRINKING, _SHRUNK = 0.97, 200  # factor on sides that found no room, where a scene has an exact number of objects; and how often
_COVERED = 0.70  # largest share of an object that later ones may hide
_TRIES = 96  # candidate positions per object
_SPLITS = ("train", "val", "test")
_WORD = 2**32


@dataclass(frozen=True, slots=True, eq=False)
class Thing:
    """One object: its label, its box (float [4], xyxy in pixels) and its rotation in radians."""

    label: int
    box: np.ndarray
    angle: float


@dataclass(frozen=True, slots=True)
class Scenes(Sequence[Record]):
    """The records of one split, made on access: ``scenes[i]`` depends on the fields and ``i`` alone.

    Attributes:
        split: "train", "val" or "test"; each has seeds of its own.
        length: number of scenes; any number up to 2**32 costs the same.
        size: side of the square image in pixels.
        seed: 0..2**32 - 1.
        crowding: share of objects that overlap another, 0..1.
        max_objects: a scene has 1 to this many.
        objects: every scene has exactly this many instead; None: not so.
        classes: how many there are; where there are more than those with names, grounds are rough.
    """

    split: str
    length: int
    size: int
    seed: int
    crowding: float
    max_objects: int
    objects: int | None = None
    classes: int = len(NAMES)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        index = range(self.length)[index]
        things = self.layout(index)
        boxes = np.stack([thing.box for thing in things]).astype(np.float32)
        return Record(
            id=f"{self.split}/{index}",
            path=None,
            width=self.size,
            height=self.size,
            boxes=boxes,
            labels=np.array([thing.label for thing in things], dtype=np.int64),
            ignore=np.zeros(len(things), dtype=bool),
            areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        )

    def rng(self, index: int, use: int) -> np.random.Generator:
        """The generator of a scene's layout (``use`` 0) or pixels (1). All words are below 2**32, so that no two seeds are equal."""
        return np.random.default_rng([self.seed, _SPLITS.index(self.split), index, use])

    def layout(self, index: int) -> tuple[Thing, ...]:
        """The objects of a scene, from back to front."""
        return _layout(self, index)

    def draw(self, record: Record) -> Image.Image:
        """The pixels of one of these records."""
        index = int(str(record.id).rpartition("/")[2])
        things = [(silhouette(thing.label), thing.angle, thing.box) for thing in self.layout(index)]
        return paint(self.rng(index, 1), self.size, things, rough=self.classes > len(NAMES))


def shapes_data(
    *,
    train: int = 2000,
    val: int = 200,
    test: int = 200,
    size: int = 160,
    seed: int = 0,
    crowding: float = 0.2,
    max_objects: int = 10,
    objects: int | None = None,
    classes: int = len(NAMES),
) -> Data:
    """The built-in scenes as a data set.

    Args:
        train, val, test: scenes per split, 1..2**32; scenes are made on access, so a large split costs nothing.
        size: side of the square images in pixels, at least 32.
        seed: 0..2**32 - 1. No two splits or seeds share random numbers.
        crowding: share of objects that overlap another, 0..1.
        max_objects: a scene has 1 to this many, at most 30: more would fill the image.
        objects: every scene has exactly this many, 1..30, whatever ``max_objects`` is; many are drawn smaller, so that all find room.
        classes: 1..1000, the first five circle, square, triangle, star and cross. With more, all scenes are more varied: the others are
            random outlines with parts and colours of their own, and grounds have detail of every size.

    Raises:
        UserError: an argument outside its range.
    """
    for name, value, low, high in (
        ("train", train, 1, _WORD),
        ("val", val, 1, _WORD),
        ("test", test, 1, _WORD),
        ("size", size, 32, 4096),
        ("seed", seed, 0, _WORD - 1),
        ("crowding", crowding, 0, 1),
        ("max_objects", max_objects, 1, _MOST),
        ("objects", 1 if objects is None else objects, 1, _MOST),
        ("classes", classes, 1, 1000),
    ):
        if not low <= value <= high:
            raise UserError(f"shapes: {name}={value} is out of range; choose {low} to {high}")
    splits = {}
    for name, count in zip(_SPLITS, (train, val, test), strict=True):
        scenes = Scenes(name, count, size, seed, crowding, max_objects, objects, classes)
        splits[name] = Split(name, scenes, scenes.draw)
    note = f"shapes: {train} + {val} + {test} scenes of {size} x {size} pixels drawn from seed {seed}, crowding {crowding:g}"
    if objects is not None:
        note += f", {objects} per scene"
    if classes != len(NAMES):
        note += f", of {classes} classes"
    return Data(f"shapes, seed {seed}" if seed else "shapes", "shapes", names(classes), list(range(classes)), splits, [note])


@lru_cache(maxsize=4096)
def _layout(scenes: Scenes, index: int) -> tuple[Thing, ...]:
    rng = scenes.rng(index, 0)
    if scenes.objects is None:
        boxes = _placed(rng, _sides(rng, int(rng.integers(1, scenes.max_objects + 1))), scenes.crowding)
    else:
        boxes = _all_placed(rng, scenes.objects, scenes.crowding)
    boxes = boxes[_order(rng, boxes)] * scenes.size
    boxes.setflags(write=False)
    labels = rng.integers(0, scenes.classes, len(boxes))
    angles = rng.uniform(-0.35, 0.35, len(boxes))
    return tuple(Thing(int(label), box, float(angle)) for label, box, angle in zip(labels, boxes, angles, strict=True))


def _all_placed(rng: np.random.Generator, count: int, crowding: float) -> np.ndarray:
    """Boxes [count, 4] in 0..1. Where they find no room, all are drawn smaller, down to the smallest side, until they do."""
    sides = _drawn_sides(rng, count)
    sides *= min(1.0, (_FULL / sides.prod(1).sum()) ** 0.5)
    for _ in range(_SHRUNK):
        sides = np.maximum(sides, SIDES[0])
        boxes = _placed(rng, sides, crowding)
        if len(boxes) == count:
            return boxes
        sides *= _SHRINKING
    raise UserError(f"shapes: {count} objects found no room in one scene, however small; lower objects")


def _sides(rng: np.random.Generator, count: int) -> np.ndarray:
    """Widths and heights as fractions of the image side, [count, 2], the largest first, which together do not fill the image."""
    for _ in range(_DRAWS):
        sides = _drawn_sides(rng, count)
        if count == 1 or sides.prod(1).sum() <= _FULL:
            return sides
    raise UserError(f"shapes: {count} objects found no room in one scene, however they were drawn; lower max_objects")


def _drawn_sides(rng: np.random.Generator, count: int) -> np.ndarray:
    """Widths and heights as fractions of the image side, [count, 2], the largest first."""
    smallest, small, largest = SIDES
    long = np.where(
        rng.random(count) < _SMALL,
        rng.uniform(smallest, small, count),
        small * (largest / small) ** (rng.random(count) ** 1.5),
    )
    short = np.maximum(long * rng.uniform(1 / _TALLEST, 1, count), smallest)
    upright = rng.random(count) < 0.5
    sides = np.where(upright[:, None], np.stack((short, long), 1), np.stack((long, short), 1))
    return sides[np.argsort(-long, kind="stable")]


def _placed(rng: np.random.Generator, sides: np.ndarray, crowding: float) -> np.ndarray:
    """Boxes [n, 4] in 0..1 for as many of the sides [count, 2] as find room; a share of ``crowding`` of them in overlapping pairs."""
    count = len(sides)
    pairs = min(int(crowding * count / 2 + rng.random()), count // 2)
    partner = np.full(count, -1)
    chosen = rng.permutation(count)[: 2 * pairs].reshape(-1, 2)
    partner[chosen.max(1)] = chosen.min(1)  # the smaller of a pair is placed later and looks for its partner
    boxes = np.zeros((count, 4))
    done = np.zeros(count, dtype=bool)
    for i, side in enumerate(sides):
        mate = partner[i] if partner[i] >= 0 and done[partner[i]] else -1
        if mate < 0:
            corner = rng.random((_TRIES, 2)) * (1 - side)
        else:
            reach = sides[mate] + side
            corner = np.clip(boxes[mate, :2] - side + rng.random((_TRIES, 2)) * reach, 0, 1 - side)
        candidates = np.concatenate((corner, corner + side), 1)
        share = _overlap(candidates, boxes) / side.prod()
        good = ~(share[:, done & (np.arange(count) != mate)] > 0).any(1)
        if mate >= 0:
            good &= (share[:, mate] > 0.1) & (share[:, mate] < _COVERED)
        if good.any():
            boxes[i] = candidates[good.argmax()]
            done[i] = True
    return boxes[done]


def _order(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """A drawing order [n] in which no box is covered by later ones to more than ``_COVERED``."""
    order = rng.permutation(len(boxes))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    covered = _overlap(boxes, boxes) / area[:, None]
    np.fill_diagonal(covered, 0)
    rank = np.argsort(order)
    hidden = np.where(rank[None, :] > rank[:, None], covered, 0).sum(1)
    return order if (hidden <= _COVERED).all() else np.argsort(-area, kind="stable")


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas of the intersections of boxes [n, 4] and [m, 4]: [n, m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(2)
