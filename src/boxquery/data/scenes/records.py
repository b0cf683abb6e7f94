"""Scenes that several cameras see at once, with 3-D boxes in the frame of the vehicle: what records, splits and data are for images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from boxquery.data.dataset import AnyData, AnySplit

ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
"""nuScenes' errors of true positives: translation (m), scale (1 - IoU), orientation (rad), velocity (m/s), attribute (1 - accuracy)."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneRecord:
    """One moment, V images of it and its N objects, validated.

    The frame is the vehicle's, level: x forward, y left, z up, metres. Boxes are those of ``boxquery.boxes3d``.

    Attributes:
        id: the data set's own id (nuScenes: the sample's token).
        paths: V image files, or None for rendered images (built-in scenes).
        cameras: V names.
        sizes: int64 [V, 2], width and height of each image in pixels.
        lidar2img: float64 [V, 4, 4], from the frame to pixels: (u * depth, v * depth, depth, 1), the centre of the first pixel is (.5, .5).
        boxes: float64 [N, 9], x, y, z (centre), w, l, h, yaw, vx, vy; a velocity that is not known is NaN.
        labels: int64 [N], 0..C-1 into ``SceneData.names``.
        ignore: bool [N], True for objects that no sensor can see: not trained on, and left out of the ground truth in evaluation.
        attributes: str [N], what an object does ("vehicle.parked"), "" where that is not annotated.
        racks: float64 [K, 9], bicycle racks: bicycles and motorcycles inside them are not evaluated.
        pose: float64 [4, 4], from the frame to the data set's global one.
    """

    id: str
    paths: tuple[Path, ...] | None
    cameras: tuple[str, ...]
    sizes: np.ndarray
    lidar2img: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    attributes: np.ndarray
    racks: np.ndarray
    pose: np.ndarray


@dataclass(frozen=True, eq=False)
class SceneSplit(AnySplit[SceneRecord, list[Image.Image]]):
    """A named list of scenes, and a reader of their pixels.

    ``split[i]`` is a ``SceneRecord``; ``split.read(i)`` its V RGB images in the order of the cameras, read from disk or rendered.
    """


@dataclass(frozen=True, slots=True)
class DetectionProtocol:
    """What is evaluated of 3-D detections.

    Attributes:
        ranges: per class, in the order of the labels, the distance in metres from the vehicle below which its boxes count.
        errors: those of ``ERRORS`` that the data set measures.
        undefined: per class those of ``errors`` that are not measured for it.
        symmetric: classes whose front and rear are alike, so that half a turn is no error.
        in_racks: classes of which those inside bicycle racks are not evaluated.
    """

    ranges: Mapping[str, float]
    errors: tuple[str, ...] = ERRORS
    undefined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    symmetric: tuple[str, ...] = ()
    in_racks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SceneData(AnyData[SceneSplit]):
    """A data set of scenes.

    Attributes:
        protocol: what is evaluated.
        area: float [6], x, y, z at least and at most of the space that boxes are looked for in, in metres.
    """

    protocol: DetectionProtocol = field(kw_only=True)
    area: tuple[float, float, float, float, float, float] = field(kw_only=True)


class SceneDetections(NamedTuple):
    """What was found in a scene, in its own frame.

    ``boxes`` float [K, 9] as in ``SceneRecord``, ``scores`` float [K], ``labels`` int [K]; ``attributes`` str [K], None: none is predicted.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray | None = None
