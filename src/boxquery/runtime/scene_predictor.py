"""The images of several cameras in, 3-D boxes out, whatever runs the model: what ``boxquery.SceneDetector`` and exported models have in
common. Needs no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from PIL import Image

from boxquery.data.scenes.records import SceneDetections
from boxquery.data.scenes.resize import SceneResize
from boxquery.errors import UserError, count
from boxquery.limits import DEFAULT_THRESHOLD, check_above_zero, check_threshold
from boxquery.runtime.predictor import AnyPredictor, ImageSource, to_pil
from boxquery.scene_result import SceneResult


class ScenePredictor(AnyPredictor[SceneResize, str]):
    """Something that detects 3-D boxes in scenes; see ``AnyPredictor``.

    Args:
        area: x, y, z at least and at most of the space that boxes are in, in metres.
    """

    def __init__(
        self, classes: Sequence[str], ids: Sequence[int], resize: SceneResize, area: Sequence[float], threshold: float = DEFAULT_THRESHOLD
    ):
        super().__init__(classes, ids, resize, threshold)
        self.area = tuple(area)

    @property
    @abstractmethod
    def cameras(self) -> int | None:
        """How many cameras a scene must have; None: any number."""

    @abstractmethod
    def detect(self, images: np.ndarray, lidar2img: np.ndarray, *, one_label: bool = False) -> list[SceneDetections]:
        """Detections per scene of a batch, best first, as many as the paper has.

        Args:
            images: uint8 [B, V, 3, H, W], resized by ``self.resize``.
            lidar2img: [B, V, 4, 4], for these pixels.
            one_label: only the best class of each query.
        """

    def inputs(self, images: Sequence[Image.Image], lidar2img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images of one scene, and their calibration [V, 4, 4], as ``detect`` takes them: of one scene."""
        return self.resize.pixels(images)[None], self.resize.lidar2img(lidar2img, [image.size for image in images])[None]

    def predict(
        self,
        images: Sequence[ImageSource],
        lidar2img: np.ndarray,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        cameras: Sequence[str] = (),
    ) -> SceneResult:
        """Detect the objects of one scene; one class per query.

        Args:
            images: of the V cameras: paths, PIL images or RGB uint8 arrays [H, W, 3].
            lidar2img: [V, 4, 4], from the frame of the vehicle to the pixels of these images: (u * depth, v * depth, depth, 1).
            threshold: minimum score, 0..1; None: the detector's own.
            max_detections: most detections, the best ones; None: all.
            cameras: names of the cameras, for pictures.

        Raises ``UserError`` for an image that cannot be read, or matrices that do not belong to the images.
        """
        given = {"threshold": threshold, "max_detections": max_detections, "cameras": cameras}
        return self.predict_batch([(images, lidar2img)], **given)[0]

    def predict_batch(
        self, scenes: Sequence[tuple[Sequence[ImageSource], np.ndarray]], *, threshold: float | None = None,
        max_detections: int | None = None, cameras: Sequence[str] = (),
    ) -> list[SceneResult]:  # fmt: skip
        """``predict`` for scenes of the same number of cameras, which run together."""
        check_above_zero(max_detections=max_detections)
        opened = [([to_pil(image) for image in images], check_matrices(lidar2img, len(images))) for images, lidar2img in scenes]
        pixels, matrices = (np.concatenate(each) for each in zip(*(self.inputs(*scene) for scene in opened), strict=True))
        found = self.detect(pixels, matrices, one_label=True)
        given = {"threshold": threshold, "max_detections": max_detections, "cameras": cameras}
        return [self.result(own, *scene, **given) for own, scene in zip(found, opened, strict=True)]

    def result(
        self, found: SceneDetections, images: list[Image.Image], lidar2img: np.ndarray, *, threshold: float | None = None,
        max_detections: int | None = None, cameras: Sequence[str] = (),
    ) -> SceneResult:  # fmt: skip
        """Detections at or above the threshold, with what they were found in."""
        check_threshold(threshold)
        kept = found.scores >= (self.threshold if threshold is None else threshold)
        boxes, scores, labels = (column[kept][:max_detections] for column in found[:3])
        return SceneResult(
            boxes, scores, labels, [self.classes[i] for i in labels], [self.ids[i] for i in labels], lidar2img, images, self.classes,
            tuple(cameras), float(max(map(abs, self.area[:2]))),
        )  # fmt: skip

    def check_views(self, images: np.ndarray) -> None:
        """Raise ``UserError`` for a batch [B, V, 3, H, W] of scenes with another number of cameras than the model has weights for."""
        if self.cameras is not None and images.shape[1] != self.cameras:
            raise UserError(f"scenes of {count(images.shape[1], 'camera')}: {self.name} has weights for {self.cameras}; give all of them")


def check_matrices(lidar2img: np.ndarray, views: int) -> np.ndarray:
    """The calibration as float64 [V, 4, 4]. Raises ``UserError`` where it is none of so many cameras."""
    matrices = np.asarray(lidar2img, np.float64)
    if matrices.shape != (views, 4, 4) or not np.isfinite(matrices).all():
        raise UserError(f"lidar2img {list(matrices.shape)} for {count(views, 'image')}: must be finite numbers [{views}, 4, 4]")
    for view, matrix in enumerate(matrices):
        if matrix[3].tolist() != [0, 0, 0, 1] or not np.linalg.det(matrix[:3, :3]):
            raise UserError(
                f"lidar2img[{view}]: is not the matrix of a camera, which has an inverse and the last row 0, 0, 0, 1; "
                "give intrinsics @ extrinsics"
            )
    return matrices
