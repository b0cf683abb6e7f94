"""nuScenes' tables as records: a scene of ours is a sample (keyframe) of theirs, in the vehicle's frame at the time of its lidar scan.

That frame is level: it has the vehicle's place and heading, but neither its roll nor its pitch, so that boxes, which nuScenes turns around
the vertical alone, stay what they are, there and back. Cameras are exact: each took its image at a moment and a pose of its own.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from boxquery.boxes3d import inverse_rigid, matrix_yaw, quaternion_matrix, rigid, transform, yaw_matrix
from boxquery.data.folder import Folder
from boxquery.data.images import Header, read_header, read_image
from boxquery.data.nuscenes.classes import AREA, CATEGORIES, NAMES, PROTOCOL, RACK
from boxquery.data.nuscenes.tables import Row, Tables
from boxquery.data.raw import Fault
from boxquery.data.scenes.records import SceneData, SceneRecord, SceneSplit
from boxquery.data.validation import THREADS, ImportReport, fail_if_too_many, named
from boxquery.errors import UserError, count

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT", "CAM_FRONT_RIGHT")
LIDAR = "LIDAR_TOP"
LONGEST_GAP = 1.5
"""Seconds between two annotations of an object, from which no velocity is taken if they are further apart."""

_MINI_VAL = frozenset({103, 916})
_VAL = frozenset(
    number
    for first, last in (
        (3, 3), (12, 18), (35, 36), (38, 39), (92, 110), (221, 221), (268, 278), (329, 332), (344, 346), (519, 524), (552, 565), (625, 627),
        (629, 630), (632, 638), (770, 771), (775, 775), (777, 778), (780, 784), (794, 800), (802, 802), (904, 917), (919, 931), (962, 963),
        (966, 969), (971, 972), (1059, 1073),
    )
    for number in range(first, last + 1)
)  # fmt: skip
"""Numbers of the scenes of the official val split, of v1.0-trainval and of v1.0-mini."""


def read(folder: Path, source: str, *, strict: bool = False) -> SceneData:
    """The data set whose tables are in a folder, with its official splits.

    Args:
        folder: that of the tables, beside which ``samples`` lies.
        source: as the user named it.
        strict: a box without size or with numbers that are not finite, and a sample an image of which is missing or broken, are fatal
            instead of skipped.

    Raises:
        UserError: a table is missing or broken, a token leads nowhere, or more than a tenth of samples or boxes are invalid.
    """
    tables = Tables(folder)
    reader, report = _Reader(tables, source), ImportReport()
    splits: dict[str, list[SceneRecord]] = {"train": [], "val": [], "test": []}
    samples = list(tables.rows("sample"))
    with ThreadPoolExecutor(THREADS) as pool:
        views = list(pool.map(reader.views, samples))
    for sample, own in zip(samples, views, strict=True):
        report.images_total += 1
        if own.fault is None:
            splits[reader.split(sample)].append(reader.record(sample, own, report))
        else:
            report.add(sample.where, own.fault, images=1)
    first = next((f"{problem.where}: {problem.fault}" for problem in report.problems), "")
    if strict and first:
        raise UserError(f"{source}: {first}; repair it, or leave out --strict")
    whole = f"unpack all of samples/ again, as in {first}"
    fail_if_too_many(report.images_invalid, report.images_total, "samples lack an image that can be used", f"{source}: ", whole)
    fail_if_too_many(report.boxes_skipped, report.boxes_total, "boxes are invalid", f"{source}: ", "unpack sample_annotation.json again")
    kept = {name: records for name, records in splits.items() if records}
    if not kept:
        raise UserError(f"{source}: no samples; unpack {folder.name} again")
    absent = {name: f"{folder.name} has no scene of it" for name in ("train", "val") if name not in kept}
    sizes = ", ".join(f"{len(records):,} {name}" for name, records in kept.items())
    notes = [f"nuScenes {folder.name}: {sizes} samples of {len(CAMERAS)} cameras"]
    hidden = sum(int(record.ignore.sum()) for records in kept.values() for record in records)
    if hidden:
        notes.append(
            f"{count(hidden, 'object')} without a lidar or radar point: not trained on, and left out of the ground truth, as by nuScenes"
        )
    return SceneData(
        source,
        "nuscenes",
        list(NAMES),
        list(range(len(NAMES))),
        {name: SceneSplit(name, records, read_views) for name, records in kept.items()},
        notes,
        report.lines,
        report.kinds,
        absent=absent,
        protocol=PROTOCOL,
        area=AREA,
    )


def read_views(record: SceneRecord) -> list[Image.Image]:
    """The images of a record. Raises ``UserError``, naming the file, if one cannot be read or has another size than the tables say."""
    if record.paths is None:
        raise UserError(f"scene {record.id} has no files")
    images = [read_image(path) for path in record.paths]
    for path, image, size in zip(record.paths, images, record.sizes.tolist(), strict=True):
        if list(image.size) != size:
            found, stated = (" x ".join(map(str, pair)) for pair in (image.size, size))
            raise UserError(f"{path}: {found} pixels, but sample_data.json says {stated}, which its calibration is for; unpack it again")
    return images


class _Views(NamedTuple):
    """The images of a sample in the order of the cameras: their rows, their files, and why one of them cannot be used."""

    rows: list[Row]
    paths: tuple[Path, ...]
    fault: Fault | None


class _Reader:
    """The joins of the tables."""

    def __init__(self, tables: Tables, source: str):
        self.tables, self.folder, self.source = tables, Folder(tables.folder.parent), source
        self._channels: dict[str, str] = {}
        self._frames: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in tables.rows("sample_data"):
            if row["is_key_frame"]:
                self._frames[row.text("sample_token")][self._channel(row)] = row
        tables.drop("sample_data")  # most of its rows are no keyframes
        self._annotations: dict[str, list[Row]] = defaultdict(list)
        for row in tables.rows("sample_annotation"):
            self._annotations[row.text("sample_token")].append(row)

    def split(self, sample: Row) -> str:
        """The official split of a sample."""
        scene = self.tables.row("scene", sample.text("scene_token"), sample.where)
        name, version = scene.text("name"), self.tables.folder.name
        digits = name.rpartition("-")[2]
        if not digits.isdecimal():
            raise UserError(f"{scene.where}: name {name!r} is not like scene-0061; unpack the table again")
        if version.endswith("test"):
            return "test"
        return "val" if int(digits) in (_MINI_VAL if version.endswith("mini") else _VAL) else "train"

    def views(self, sample: Row) -> _Views:
        """The images of a sample; of each file the header is read."""
        frames = self._frames[sample.text("token")]
        if missing := [channel for channel in (*CAMERAS, LIDAR) if channel not in frames]:
            raise UserError(f"{sample.where}: no keyframe of {', '.join(missing)} in sample_data.json; unpack all tables of one version")
        rows = [frames[channel] for channel in CAMERAS]
        paths = tuple(self.folder.join(self.folder.root, row.text("filename"), row.where) for row in rows)
        faults = (self._fault(row, path) for row, path in zip(rows, paths, strict=True))
        return _Views(rows, paths, next(filter(None, faults), None))

    def _fault(self, row: Row, path: Path) -> Fault | None:
        """Why an image cannot be used."""
        header, (width, height) = read_header(path), self._size(row)
        if isinstance(header, Header):
            if (header.width, header.height) == (width, height):
                return None
            stated = f"stated {width} x {height}, the file is {header.width} x {header.height}"
            header = Fault("stated size is not the file's", stated)
        return named(header, path, self.source)

    def _size(self, row: Row) -> tuple[int, int]:
        """Stated width and height of an image."""
        return int(row.numbers("width")), int(row.numbers("height"))

    def record(self, sample: Row, views: _Views, report: ImportReport) -> SceneRecord:
        """A sample as a record."""
        token = sample.text("token")
        vehicle = self._pose(self._frames[token][LIDAR])
        pose = rigid(yaw_matrix(float(matrix_yaw(vehicle[:3, :3]))), vehicle[:3, 3])
        boxes, labels, ignore, attributes, racks = self._objects(token, inverse_rigid(pose), report)
        return SceneRecord(
            id=token,
            paths=views.paths,
            cameras=CAMERAS,
            sizes=np.array([self._size(row) for row in views.rows]),
            lidar2img=np.stack([self._camera(row) @ pose for row in views.rows]),
            boxes=boxes,
            labels=labels,
            ignore=ignore,
            attributes=attributes,
            racks=racks,
            pose=pose,
        )

    def _channel(self, row: Row) -> str:
        """The name of the camera or other sensor of an image or scan."""
        token = row.text("calibrated_sensor_token")
        if token not in self._channels:
            calibrated = self.tables.row("calibrated_sensor", token, row.where)
            self._channels[token] = self.tables.row("sensor", calibrated.text("sensor_token"), calibrated.where).text("channel")
        return self._channels[token]

    def _pose(self, row: Row) -> np.ndarray:
        """From the vehicle's frame, at the time of an image or scan, to the global one."""
        return _rigid_of(self.tables.row("ego_pose", row.text("ego_pose_token"), row.where))

    def _camera(self, row: Row) -> np.ndarray:
        """From the global frame to the pixels of an image, [4, 4]."""
        calibrated = self.tables.row("calibrated_sensor", row.text("calibrated_sensor_token"), row.where)
        intrinsic = np.eye(4)
        intrinsic[:3, :3] = calibrated.numbers("camera_intrinsic", 3, 3)
        return intrinsic @ inverse_rigid(self._pose(row) @ _rigid_of(calibrated))

    def _objects(self, token: str, to_vehicle: np.ndarray, report: ImportReport) -> tuple[np.ndarray, ...]:
        """Boxes, labels, which are to be ignored, attributes, and bicycle racks of a sample."""
        boxes, racks, labels, ignore, attributes = [], [], [], [], []
        for row in self._annotations[token]:
            instance = self.tables.row("instance", row.text("instance_token"), row.where)
            category = self.tables.row("category", instance.text("category_token"), instance.where).text("name")
            if category != RACK and category not in CATEGORIES:
                continue
            report.boxes_total += 1
            box = self._box(row)
            if not np.isfinite(box[:7]).all() or (box[3:6] <= 0).any():
                report.add(row.where, Fault("a box without size, or with numbers that are not finite"), boxes=1)
            elif category == RACK:
                racks.append(box)
            else:
                boxes.append(box)
                labels.append(NAMES.index(CATEGORIES[category]))
                ignore.append(row.numbers("num_lidar_pts") + row.numbers("num_radar_pts") == 0)
                attributes.append(self._attribute(row))
        moved = (transform(np.reshape(found, (-1, 9)), to_vehicle) for found in (boxes, racks))
        own, stands = moved
        return own, np.array(labels, np.int64), np.array(ignore, bool), np.array(attributes, np.str_), stands

    def _attribute(self, row: Row) -> str:
        tokens = row["attribute_tokens"]
        if not isinstance(tokens, list) or len(tokens) > 1:
            raise UserError(f"{row.where}: attribute_tokens is {tokens!r:.80}, not a list of one or none; unpack the table again")
        return self.tables.row("attribute", tokens[0], row.where).text("name") if tokens else ""

    def _box(self, row: Row) -> np.ndarray:
        """An annotation as a box [9] in the global frame."""
        heading = matrix_yaw(quaternion_matrix(row.numbers("rotation", 4)))
        return np.array([*row.numbers("translation", 3), *row.numbers("size", 3), heading, *self._velocity(row)])

    def _velocity(self, row: Row) -> np.ndarray:
        """Metres per second [2], from the annotations before and after in time; NaN where there is none or too long ago."""
        before, after = row.text("prev"), row.text("next")
        first = self.tables.row("sample_annotation", before, row.where) if before else row
        last = self.tables.row("sample_annotation", after, row.where) if after else row
        gap = 1e-6 * self._time(last) - 1e-6 * self._time(first)
        if first is last or gap <= 0 or gap > LONGEST_GAP * (2 if before and after else 1):
            return np.full(2, np.nan)
        return (last.numbers("translation", 3) - first.numbers("translation", 3))[:2] / gap

    def _time(self, row: Row) -> float:
        """Microseconds of an annotation's sample."""
        return float(self.tables.row("sample", row.text("sample_token"), row.where).numbers("timestamp"))


def _rigid_of(row: Row) -> np.ndarray:
    """The matrix [4, 4] of a row with a rotation and a translation."""
    rotation, translation = row.numbers("rotation", 4), row.numbers("translation", 3)
    if not (np.isfinite(rotation).all() and rotation.any() and np.isfinite(translation).all()):
        raise UserError(f"{row.where}: its rotation or translation is not finite, or no rotation; unpack the table again")
    return rigid(quaternion_matrix(rotation), translation)
