"""The public names that need torch, see ``boxquery/__init__.py``. Nothing inside the library imports this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from boxquery import detector, model_folder, scene_detector
from boxquery.data.classes import map_labels, match_names, matching_notes
from boxquery.data.dataset import Data
from boxquery.data.open import open_data
from boxquery.data.scenes.open import open_scenes
from boxquery.data.scenes.records import SceneData
from boxquery.evaluation.fixed_boxes import evaluate_fixed_boxes, fixed_boxes_note
from boxquery.evaluation.median_box import evaluate_median_boxes, median_box_note
from boxquery.evaluation.metrics import evaluate, limits_note
from boxquery.evaluation.nuscenes import evaluate_scenes
from boxquery.evaluation.predictions import drop_unreadable, keep_labels, predict_split
from boxquery.evaluation.scene_predictions import predict_scenes, with_labels_of, with_shuffled_calibration
from boxquery.evaluation.scene_predictions import without_camera as without_camera_of
from boxquery.explain.explanation import explain
from boxquery.explain.scenes import SceneExplanation, explain_scene
from boxquery.export.writer import export
from boxquery.limits import DEFAULT_OVERLAP, MAX_DETECTIONS, check_above_zero, check_nms, check_threshold
from boxquery.pretraining import command
from boxquery.progress import Progress
from boxquery.report.page import new_evaluation, write_evaluation_page, write_scene_evaluation_page
from boxquery.report.run_files import read_fixed_boxes, read_median_boxes
from boxquery.runtime import exported, exported_scenes
from boxquery.runtime.predictor import ImageSource, Predictor, to_pil
from boxquery.runtime.scene_predictor import ScenePredictor, check_matrices
from boxquery.runtime.tiles import Tiles
from boxquery.training import run

P = ParamSpec("P")


class _Evaluated(Predictor):
    """What a trained detector and an exported one can do with data."""

    def evaluate(
        self,
        data: str | Path | Data,
        *,
        split: str = "val",
        out: str | Path | None = None,
        threshold: float | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int = MAX_DETECTIONS,
        tiles: int | None = None,
        overlap: float = DEFAULT_OVERLAP,
        batch_size: int = 8,
        workers: int = 0,
        strict: bool = False,
        progress: bool = False,
    ) -> dict[str, Any]:
        """AP and the metrics around it on a split of a data set; classes are matched by name.

        Classes that the data does not list are left out. AP counts several classes per query, as COCO defines it of models with
        sigmoid scores; everything at one threshold counts the best one, as ``predict`` gives it.

        Args:
            out: a folder for ``evaluation.html`` with confusion matrix, curves and errors by type, and the same as CSV and JSON.
            threshold: score from which detections count for precision, recall and duplicates; None: the one with the best F1 on this split.
            nms: IoU threshold of class-wise NMS (1 disables it); None: the model's own (none for DETRs).
            classes: names of the only classes to evaluate; None: all that the data lists.
            max_detections: detections per class and image that count; COCO's AP has 100.
            tiles, overlap: as ``predict`` has them.
            strict: an image that cannot be read is fatal; otherwise it is named on stderr and left out.
            progress: show on stderr how far it is.

        Returns what ``boxquery.evaluation.metrics.evaluate`` does; ``median_box``: ``AP`` and ``AP50`` of the training images' median box
        of each class in every image, or None where the detector is not from a run that knows them; and ``notes``: what was decided, and
        what limits the numbers.

        Raises ``UserError`` if the data lacks the split or has a class that the detector does not know.
        """
        check_nms(nms)
        check_threshold(threshold)
        check_above_zero(max_detections=max_detections)
        cut = None if tiles is None else Tiles(tiles, overlap)
        folder = None if out is None else new_evaluation(Path(out))
        opened = open_data(data, strict=strict) if isinstance(data, str | Path) else data
        labels = None if classes is None else self.labels_of(classes)
        records = map_labels(opened, split, self.classes, labels)
        notes = matching_notes(opened, self.classes) if labels is None else []
        with Progress("evaluate", len(records)) if progress else nullcontext() as bar:
            found = predict_split(
                self, records, batch_size=batch_size, workers=workers, nms=nms, max_detections=max_detections, tiles=cut, strict=strict,
                done=bar.advance if bar else lambda count: None,
            )  # fmt: skip
        records, found = drop_unreadable(records, found)
        found = keep_labels(found, match_names(opened.names, self.classes) if labels is None else labels)
        names = [f"(no name {i})" if name is None else name for i, name in enumerate(self.classes)]
        metrics = evaluate(records, found, names, self.ids, max_detections=max_detections, threshold=threshold)
        queries = self.num_queries if self.has_queries else max_detections
        medians = read_median_boxes(self.run) if self.run else None
        metrics["median_box"] = None if medians is None else evaluate_median_boxes(medians, records, names, self.ids)
        metrics["notes"] = notes + limits_note(records, max_detections, queries) + median_box_note(metrics)
        if folder is not None:
            title = f"{self.run or self.name} on {split} of {opened.source}"
            write_evaluation_page(folder, title, records, found, names, metrics)
        return metrics


class Detector(_Evaluated, detector.Detector):
    __doc__ = detector.Detector.__doc__

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which ``boxquery.load`` reads. Raises ``UserError``."""
        return model_folder.save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload to the hub; returns the address. Needs a login there."""
        return model_folder.push_to_hub(self, repo_id, private=private)

    def export(
        self,
        path: str | Path,
        *,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        verify: str | Path | Data | None = None,
        split: str = "val",
        calibrate: str | Path | Data | None = None,
        calibration_images: int | None = None,
    ) -> dict[str, Any]:
        """Write the model as a file that runs without Python or torch, with its post-processing, class names, threshold and preprocessing.

        Args:
            path: ``.onnx``, or ``.xml`` for OpenVINO, with its weights beside it in a file ``.bin``.
            precision: "fp32"; "fp16", weights stored in 16 bits; "bf16", computed in it on processors that can (both OpenVINO only);
                "int8", large products in 8 bits.
            size: (height, width) of every input, which is faster; None: any.
            verify: a data set on which file and model are compared, image by image; None: they are not.
            split: of that data.
            calibrate: images on which int8 measures ranges: a data set, of which it takes the training split, or a folder of images.
            calibration_images: how many of them; None: 100.

        Returns what the file says of itself, its ``bytes``, and as ``verified`` what ``boxquery.export.verify.verify`` found. Raises
        ``UserError``, a ``CheckFailed`` where file and model differ too much; then nothing is written.
        """
        data = open_data(verify) if isinstance(verify, str | Path) else verify
        return export(
            self, path, precision=precision, size=size, data=data, split=split, calibrate=calibrate, calibration_images=calibration_images
        )

    def explain(self, source: ImageSource | Sequence[ImageSource], *, threshold: float | None = None) -> Any:
        """What every query attended to, how its box moved from layer to layer, and which queries competed for one object.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives an ``Explanation``; a list gives a list. Each keeps the attention
                of every layer, which takes memory.
            threshold: minimum score of a detection, 0..1; None: the detector's own.

        Raises ``UserError`` for an image that cannot be read.
        """
        if isinstance(source, ImageSource):
            return explain(self, source, threshold=threshold)
        return [explain(self, each, threshold=threshold) for each in source]


class ExportedDetector(_Evaluated, exported.ExportedDetector):
    __doc__ = exported.ExportedDetector.__doc__


class _EvaluatedScenes(ScenePredictor):
    """What a trained detector of scenes and an exported one can do with data."""

    def evaluate(
        self,
        data: str | Path | SceneData,
        *,
        split: str = "val",
        out: str | Path | None = None,
        without_camera: str | None = None,
        shuffle_calibration: bool = False,
        batch_size: int = 4,
        workers: int = 0,
        strict: bool = False,
        progress: bool = False,
    ) -> dict[str, Any]:
        """mAP, NDS and the errors of nuScenes on a split of a data set; classes are matched by name.

        Args:
            out: a folder for ``evaluation.html`` with pictures, and the numbers as CSV and JSON.
            without_camera: the name of a camera whose images the model is not given.
            shuffle_calibration: give each image the calibration of another camera of its scene.
            strict: a scene that cannot be read is fatal; otherwise it is named on stderr and left out.
            progress: show on stderr how far it is.

        Returns what ``boxquery.evaluation.nuscenes.evaluate_scenes`` does; ``fixed_boxes``: ``mAP`` and ``NDS`` of the same boxes in every
        scene, or None where the detector is not from a run that knows them; and ``notes``.

        Raises ``UserError`` if the data lacks the split or the camera, or has a class that the detector does not know.
        """
        folder = None if out is None else new_evaluation(Path(out))
        opened = open_scenes(data, strict=strict) if isinstance(data, str | Path) else data
        scenes = opened.split(split)
        if without_camera is not None:
            scenes = without_camera_of(scenes, without_camera, blind=self.cameras is not None)
        if shuffle_calibration:
            scenes = with_shuffled_calibration(scenes)
        with_labels_of({}, self.classes, opened)  # which refuses data of other classes before the long part
        with Progress("evaluate", len(scenes)) if progress else nullcontext() as bar:
            found = predict_scenes(
                self, scenes, batch_size=batch_size, workers=workers, strict=strict, done=bar.advance if bar else lambda count: None
            )
        scenes, found = drop_unreadable(scenes, found)
        found = with_labels_of(found, self.classes, opened)
        metrics = evaluate_scenes(scenes, found, opened.protocol)
        fixed = read_fixed_boxes(self.run) if self.run else None
        if fixed is not None:
            fixed = with_labels_of({0: fixed}, self.classes, opened)[0]
        metrics["fixed_boxes"] = None if fixed is None else evaluate_fixed_boxes(fixed, scenes, opened.protocol)
        harmed = without_camera is not None or shuffle_calibration  # what it then loses says nothing of what it learned
        metrics["notes"] = [] if harmed else fixed_boxes_note(metrics)
        if folder is not None:
            title = f"{self.run or self.name} on {split} of {opened.source}"
            write_scene_evaluation_page(folder, title, scenes, found, opened, metrics)
        return metrics


class SceneDetector(_EvaluatedScenes, scene_detector.SceneDetector):
    __doc__ = scene_detector.SceneDetector.__doc__

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which ``boxquery.load`` reads. Raises ``UserError``."""
        return model_folder.save(self, folder)

    def export(
        self,
        path: str | Path,
        *,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        verify: str | Path | SceneData | None = None,
        split: str = "val",
        calibrate: str | Path | SceneData | None = None,
        calibration_images: int | None = None,
    ) -> dict[str, Any]:
        """As ``Detector.export``: a file that takes the images of all cameras and their calibration (docs/export.md).

        Args:
            verify: scenes on which file and model are compared, one by one; None: they are not.
            calibrate: scenes on which int8 measures ranges, of the training split.
            calibration_images: how many scenes; None: 100.
        """
        data = open_scenes(verify) if isinstance(verify, str | Path) else verify
        return export(
            self, path, precision=precision, size=size, data=data, split=split, calibrate=calibrate, calibration_images=calibration_images
        )

    def explain(
        self, images: Sequence[ImageSource], lidar2img: np.ndarray, *, threshold: float | None = None, cameras: Sequence[str] = ()
    ) -> SceneExplanation:
        """From which pixels of which cameras the query of each detection read; the arguments are those of ``predict``."""
        pictures = [to_pil(image) for image in images]
        return explain_scene(self, pictures, check_matrices(lidar2img, len(pictures)), threshold=threshold, cameras=cameras)


class ExportedSceneDetector(_EvaluatedScenes, exported_scenes.ExportedSceneDetector):
    __doc__ = exported_scenes.ExportedSceneDetector.__doc__


def _public(base: detector.Detector) -> Detector:
    public = Detector(base.model, base.classes, base.ids, base.preprocessing, base.threshold)
    public.run = base.run
    return public


def _public_scenes(base: scene_detector.SceneDetector) -> SceneDetector:
    public = SceneDetector(base.model, base.classes, base.ids, base.preprocessing, base.resize.images, base.threshold)
    public.run = base.run
    return public


def _returning(make: Callable[P, model_folder.Loaded]) -> Callable[P, Detector | SceneDetector]:
    """The same function, returning the ``Detector`` or ``SceneDetector`` of this module."""

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Detector | SceneDetector:
        base = make(*args, **kwargs)
        return _public_scenes(base) if isinstance(base, scene_detector.SceneDetector) else _public(base)

    return made


load = _returning(model_folder.open_model)
train = _returning(run.train)
pretrain = _returning(command.pretrain)


def load_images(source: str, *, download: bool = False) -> Detector:
    """``load`` for a model of images. Raises ``UserError`` for one of scenes."""
    return _public(model_folder.load(source, download=download))


def load_scenes(source: str, *, download: bool = False) -> SceneDetector:
    """``load`` for a model of scenes. Raises ``UserError`` for one of images."""
    return _public_scenes(model_folder.load_scenes(source, download=download))
