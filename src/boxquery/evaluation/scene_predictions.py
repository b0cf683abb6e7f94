"""The detections of a model on every scene of a split, as ``evaluate_scenes`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Subset

from boxquery.data.classes import match_names
from boxquery.data.scenes.loading import SceneDataset, SceneResizeTransform, collate_scenes
from boxquery.data.scenes.records import SceneData, SceneDetections, SceneRecord, SceneSplit
from boxquery.errors import UserError
from boxquery.evaluation.predictions import warn_skipped

if TYPE_CHECKING:
    from boxquery.runtime.scene_predictor import ScenePredictor

ScenesFound = dict[int, SceneDetections]
"""Position in a split -> its detections."""


def predict_scenes(
    detector: ScenePredictor,
    split: SceneSplit,
    *,
    batch_size: int = 4,
    workers: int = 0,
    only: Sequence[int] | None = None,
    cached: SceneDataset | None = None,
    one_label: bool = False,
    strict: bool = False,
    warn: Callable[[str], None] = warn_skipped,
    done: Callable[[int], None] = lambda count: None,
) -> ScenesFound:
    """Position in the split -> detections in the frame of the vehicle.

    Args:
        only: positions to predict; None: all.
        cached: a data set over this split that keeps images as ``detector.resize`` makes them.
        one_label: only the best class of each query.
        strict: a scene whose images cannot be read is fatal.
        warn: called once for each scene whose images cannot be read, which has no entry.
        done: called with the number of scenes of every batch.
    """
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size={batch_size}, workers={workers}: a batch has at least 1 scene, and workers is 0 or more")
    dataset = cached or SceneDataset(split, SceneResizeTransform(detector.resize, detector.area), strict=strict)
    order = list(range(len(split)) if only is None else only)
    found: ScenesFound = {}
    warned: set[str] = set()
    for batch in DataLoader(Subset(dataset, order), batch_size, collate_fn=collate_scenes, num_workers=workers):
        for line in batch.unreadable:
            if line not in warned:
                warned.add(line)
                warn(line)
        found |= zip(batch.indices, detector.detect(batch.images.numpy(), batch.lidar2img.numpy(), one_label=one_label), strict=True)
        done(len(batch.indices))
    return {i: found[i] for i in order if i in found}  # without those that only replaced others


def with_labels_of(found: ScenesFound, classes: Sequence[str], data: SceneData) -> ScenesFound:
    """Detections with the labels of the data in place of a detector's; those of classes that the data lacks are left out.

    Raises ``UserError`` where the detector lacks a class of the data.
    """
    known = match_names(data.names, classes)
    if unknown := [name for name, label in zip(data.names, known, strict=True) if label < 0]:
        raise UserError(f"{data.source}: the detector does not know {', '.join(unknown)}; it knows {', '.join(classes)}")
    if known == list(range(len(classes))):
        return found
    table = np.full(len(classes), -1)
    table[known] = np.arange(len(known))
    kept = {i: table[own.labels] >= 0 for i, own in found.items()}
    return {i: SceneDetections(own.boxes[kept[i]], own.scores[kept[i]], table[own.labels[kept[i]]]) for i, own in found.items()}


def without_camera(split: SceneSplit, camera: str, *, blind: bool) -> SceneSplit:
    """The same scenes without one camera. Raises ``UserError`` for one that they do not have.

    Args:
        blind: the camera stays, but its image is black, and by its calibration it sees nothing: for models with weights per camera.
    """
    if camera not in (names := split[0].cameras):
        raise UserError(f"no camera {camera!r}; cameras are {', '.join(names)}")
    whole = {record.id: record for record in split}

    def left(record: SceneRecord) -> list[int]:
        return [v for v, name in enumerate(record.cameras) if name != camera]

    def reduced(record: SceneRecord) -> SceneRecord:
        views = left(record)
        if blind:
            far = np.eye(4)  # 10 km above, looking up: every point is behind it
            far[2, 3] = -1e4
            matrices = np.tile(far, (len(record.cameras), 1, 1))
            matrices[views] = record.lidar2img[views]
            return replace(record, lidar2img=matrices)
        paths = None if record.paths is None else tuple(record.paths[v] for v in views)
        cameras = tuple(record.cameras[v] for v in views)
        return replace(record, paths=paths, cameras=cameras, sizes=record.sizes[views], lidar2img=record.lidar2img[views])

    def read(record: SceneRecord) -> list[Image.Image]:
        images = split.reader(whole[record.id])
        kept = left(whole[record.id])
        if blind:
            return [image if v in kept else Image.new("RGB", image.size) for v, image in enumerate(images)]
        return [images[v] for v in kept]

    return SceneSplit(split.name, [reduced(record) for record in split], read)


def with_shuffled_calibration(split: SceneSplit) -> SceneSplit:
    """The same scenes, each image with the calibration of another camera of its scene, drawn at random: a model that needs to know how its
    cameras stand finds nothing in them."""

    def shuffled(record: SceneRecord) -> SceneRecord:
        chance = np.random.default_rng(list(record.id.encode()))
        order = chance.permutation(len(record.cameras))  # each takes that of the next in a random circle
        matrices = record.lidar2img.copy()
        matrices[order] = record.lidar2img[np.roll(order, 1)]
        return replace(record, lidar2img=matrices)

    return SceneSplit(split.name, [shuffled(record) for record in split], split.reader)
