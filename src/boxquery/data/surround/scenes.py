"""The built-in scenes of several cameras: objects on a plane around a vehicle, drawn from a seed, so that all runs without a download.

A scene is a *layout* (which objects, where), a *rig* (six cameras on the vehicle's roof, which stand a little differently in every scene)
and *pixels*, rendered when they are read. Where an object is shows only in the images and in how their cameras stand: the places of objects
are uniform, so that no box is likelier than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from boxquery.boxes3d import rigid
from boxquery.data.scenes.records import DetectionProtocol, SceneData, SceneRecord, SceneSplit
from boxquery.data.surround.looks import NAMES, SIZES, SPREAD
from boxquery.data.surround.paint import paint
from boxquery.errors import UserError

CAMERAS = ("front", "front_left", "rear_left", "rear", "rear_right", "front_right")
SIDE = 100.0
"""Metres of a side of the square around the vehicle that centres are uniform in."""
CLEARANCE = 4.0
"""Metres around the vehicle's centre that hold nothing of an object."""
FEWEST, MOST = 3, 12
"""Objects of a scene."""
PROTOCOL = DetectionProtocol(ranges=dict.fromkeys(NAMES, 50.0), errors=("ATE", "ASE", "AOE"))
"""Objects count up to 50 m. There is nothing to measure of velocities, which one moment does not show, and attributes."""
AREA = (-50.0, -50.0, -1.0, 50.0, 50.0, 5.0)

_RATIO = 0.6  # height of an image, as a share of its width
_TURN, _CAMERA_TURN, _ROLL = 8.0, 1.5, 1.5  # degrees: the rig against the vehicle, and a camera against the rig, at most
_PITCH = 9.0, 13.0  # degrees downwards
_VIEW = 64.0, 68.0  # degrees of a camera's horizontal field of view
_HEIGHT = 3.4, 4.0  # metres above the plane: the roof of a bus
_MOUNT = 1.2, 0.8  # metres from the vehicle's centre, along and across
_DRAWS = 10_000  # attempts at a place for an object
_SPLITS = ("train", "val", "test")
_WORD = 2**32
_OBJECTS, _RIG, _NOISE, _PIXELS = range(4)


@dataclass(frozen=True, slots=True)
class SurroundScenes(Sequence[SceneRecord]):
    """The records of one split, made on access: ``scenes[i]`` depends on the fields and ``i`` alone.

    Attributes:
        split: "train", "val" or "test"; each has seeds, and therefore scenes and rigs, of its own.
        length: number of scenes; any number up to 2**32 costs the same.
        width: of every image in pixels; the height is 0.6 of it.
        seed: 0..2**32 - 1.
        noise: degrees by which a stated camera is turned against the one that took the image, as the standard deviation of three angles.
        objects: every scene has exactly this many; None: 3 to 12.
    """

    split: str
    length: int
    width: int
    seed: int
    noise: float
    objects: int | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        index = range(self.length)[index]
        boxes, labels = _layout(self, index)
        return SceneRecord(
            id=f"{self.split}/{index}",
            paths=None,
            cameras=CAMERAS,
            sizes=np.tile(self.size, (len(CAMERAS), 1)),
            lidar2img=self.cameras(index, stated=True),
            boxes=boxes,
            labels=labels,
            ignore=np.zeros(len(boxes), dtype=bool),
            attributes=np.full(len(boxes), ""),
            racks=np.zeros((0, 9)),
            pose=np.eye(4),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every image."""
        return self.width, round(_RATIO * self.width)

    def rng(self, index: int, use: int) -> np.random.Generator:
        """The generator of one aspect of a scene. All words are below 2**32, so that no two seeds are equal."""
        return np.random.default_rng([self.seed, _SPLITS.index(self.split), index, use])

    def cameras(self, index: int, *, stated: bool = False) -> np.ndarray:
        """The cameras [6, 4, 4] that take the images of a scene, or those that its record states, which ``noise`` keeps apart."""
        rng = self.rng(index, _RIG)
        turn = rng.uniform(-_TURN, _TURN)
        height, mount = rng.uniform(*_HEIGHT), np.array(_MOUNT) * rng.uniform(0.8, 1.2, 2)
        angles = np.column_stack(
            (
                60.0 * np.arange(len(CAMERAS)) + turn + rng.uniform(-_CAMERA_TURN, _CAMERA_TURN, len(CAMERAS)),
                rng.uniform(*_PITCH, len(CAMERAS)),
                rng.uniform(-_ROLL, _ROLL, len(CAMERAS)),
            )
        )
        views = np.radians(rng.uniform(*_VIEW, len(CAMERAS)))
        heights = height + rng.uniform(-0.05, 0.05, len(CAMERAS))
        headings = np.radians(angles[:, 0])
        places = np.column_stack((mount[0] * np.cos(headings), mount[1] * np.sin(headings), heights))
        if stated and self.noise:
            angles = angles + self.rng(index, _NOISE).normal(0, self.noise, angles.shape)
        return np.stack([_camera(*one, self.size) for one in zip(places, np.radians(angles), views, strict=True)])

    def draw(self, record: SceneRecord) -> list[Image.Image]:
        """The pixels of one of these records."""
        return self.render(record)[0]

    def render(self, record: SceneRecord) -> tuple[list[Image.Image], np.ndarray]:
        """The pixels of one of these records, and int [V, N]: how many of each image's rays, four per pixel, meet each object."""
        index = int(record.id.rpartition("/")[2])
        return paint(self.rng(index, _PIXELS), self.cameras(index), self.size, *_layout(self, index))


def surround_data(
    *, train: int = 4000, val: int = 200, test: int = 200, width: int = 160, seed: int = 0, noise: float = 0.0, objects: int | None = None
) -> SceneData:
    """The built-in scenes of six cameras as a data set.

    Args:
        train, val, test: scenes per split, 1..2**32; scenes are made on access, so a large split costs nothing.
        width: of every image in pixels, at least 32; the height is 0.6 of it.
        seed: 0..2**32 - 1. No two splits or seeds share random numbers.
        noise: degrees by which the stated calibration of every camera is wrong (standard deviation of yaw, pitch and roll), 0..10.
        objects: every scene has exactly this many, 1..12; None: 3 to 12.

    Raises:
        UserError: an argument outside its range.
    """
    for name, value, low, high in (
        ("train", train, 1, _WORD),
        ("val", val, 1, _WORD),
        ("test", test, 1, _WORD),
        ("width", width, 32, 2048),
        ("seed", seed, 0, _WORD - 1),
        ("noise", noise, 0, 10),
        ("objects", 1 if objects is None else objects, 1, MOST),
    ):
        if not low <= value <= high:
            raise UserError(f"surround: {name}={value} is out of range; choose {low} to {high}")
    splits = {}
    for name, count in zip(_SPLITS, (train, val, test), strict=True):
        scenes = SurroundScenes(name, count, width, seed, noise, objects)
        splits[name] = SceneSplit(name, scenes, scenes.draw)
    each = f"{FEWEST} to {MOST} objects" if objects is None else f"{objects} object{'s' if objects > 1 else ''}"
    note = f"surround: {train} + {val} + {test} scenes drawn from seed {seed}, {len(CAMERAS)} cameras, width {width}, {each} per scene"
    note += f", calibration noise {noise:g} degrees" if noise else ""
    source = f"surround, seed {seed}" if seed else "surround"
    return SceneData(source, "surround", list(NAMES), list(range(len(NAMES))), splits, [note], protocol=PROTOCOL, area=AREA)


def _camera(place: np.ndarray, angles: np.ndarray, view: float, size: tuple[int, int]) -> np.ndarray:
    """The matrix [4, 4] of a camera: where it stands, its yaw, pitch (downwards) and roll, and its horizontal field of view in radians."""
    yaw, pitch, roll = angles
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    down = np.cross(forward, right)
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    rotation = np.stack((right, down, forward))
    width, height = size
    focal = width / 2 / np.tan(view / 2)
    intrinsic = np.eye(4)
    intrinsic[:2, :3] = (focal, 0, width / 2), (0, focal, height / 2)
    return intrinsic @ rigid(rotation, -rotation @ place)


@lru_cache(maxsize=16384)  # a whole data set of the default size, which a run goes through several times
def _layout(scenes: SurroundScenes, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes float64 [N, 9] and labels int64 [N] of a scene."""
    rng = scenes.rng(index, _OBJECTS)
    count = int(rng.integers(FEWEST, MOST + 1)) if scenes.objects is None else scenes.objects
    labels = rng.integers(0, len(NAMES), count)
    sizes = (
        np.array(list(SIZES.values()))[labels] * (1 + rng.uniform(-SPREAD, SPREAD, (count, 1))) * (1 + rng.uniform(-0.02, 0.02, (count, 3)))
    )
    boxes = np.zeros((count, 9))
    for i in range(count):
        boxes[i] = _placed(rng, sizes[i], boxes[:i])
    boxes.setflags(write=False)
    labels.setflags(write=False)
    return boxes, labels


def _placed(rng: np.random.Generator, size: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A box of a size, uniform among those that meet neither the vehicle nor another box."""
    for _ in range(_DRAWS):
        x, y = rng.uniform(-SIDE / 2, SIDE / 2, 2)
        yaw = rng.uniform(-np.pi, np.pi)
        box = np.array([x, y, size[2] / 2, *size, yaw, np.nan, np.nan])
        if _distance(box) >= CLEARANCE and not any(_overlaps(box, other) for other in others):
            return box
    raise UserError("surround: an object found no room in a scene; lower objects")


def _distance(box: np.ndarray) -> float:
    """Metres from the vehicle's centre to the nearest point of a box on the plane."""
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    along, across = abs(cosine * box[0] + sine * box[1]), abs(cosine * box[1] - sine * box[0])
    return float(np.hypot(max(along - box[4] / 2, 0), max(across - box[3] / 2, 0)))


def _overlaps(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two boxes meet on the plane: none of their four directions separates them."""
    offset = b[:2] - a[:2]
    if np.hypot(*offset) > (np.hypot(a[3], a[4]) + np.hypot(b[3], b[4])) / 2:
        return False
    axes = np.array([[np.cos(t), np.sin(t)] for box in (a, b) for t in (box[6], box[6] + np.pi / 2)])
    reach = sum(
        np.abs(axes @ np.array([[np.cos(box[6]), np.sin(box[6])], [-np.sin(box[6]), np.cos(box[6])]]).T) @ (box[[4, 3]] / 2)
        for box in (a, b)
    )
    return bool((np.abs(axes @ offset) <= reach).all())
