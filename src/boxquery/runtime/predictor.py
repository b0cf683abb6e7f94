"""Images in, detections out, whatever runs the model: what ``boxquery.Detector`` and exported models have in common. Needs no torch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from boxquery.data.classes import match_names
from boxquery.data.images import read_image
from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.data.scenes.resize import SceneResize
from boxquery.data.video import Frame, Video, is_stream
from boxquery.data.web import is_moving, read_web_image
from boxquery.errors import UserError
from boxquery.limits import DEFAULT_OVERLAP, DEFAULT_THRESHOLD, check_above_zero, check_nms, check_threshold
from boxquery.result import Result
from boxquery.runtime.tiles import Tiles, merge_views

ImageSource = str | Path | Image.Image | np.ndarray
R = TypeVar("R", Resize, SceneResize)
N = TypeVar("N", bound=str | None)


class Detections(NamedTuple):
    """Of one image, best first: ``boxes`` float [K, 4] xyxy in pixels of the original image, unclipped; ``scores`` [K], ``labels`` [K]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class AnyPredictor(ABC, Generic[R, N]):
    """Something that detects in images or in scenes, with its class names and preprocessing.

    Args:
        classes: class names by label; of images None for one that has no name and is never predicted.
        ids: the data set's own category ids, parallel to ``classes``.
        resize: how an image, or the images of a scene, become the model's input.
        threshold: the default score threshold; 0.5 until an evaluation has found a better one.
    """

    def __init__(self, classes: Sequence[N], ids: Sequence[int], resize: R, threshold: float = DEFAULT_THRESHOLD):
        self.classes, self.ids, self.resize = list(classes), list(ids), resize
        check_threshold(threshold)
        self.threshold = threshold
        #: the run folder that it was loaded from, if any
        self.run: Path | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name, as in ``boxquery models``."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return self.resize.preprocessing

    @property
    def image_size(self) -> int:
        """Short side of the model's input in pixels, or the side of the square; may be set."""
        return self.preprocessing.image_size

    @image_size.setter
    def image_size(self, pixels: int) -> None:
        check_above_zero(image_size=pixels)
        if self.resize.fixed is not None:
            height, width = self.resize.fixed
            raise UserError(f"image_size={pixels}: this model was exported for {height}x{width} alone; export it again with another --size")
        self.resize = replace(self.resize, preprocessing=replace(self.preprocessing, image_size=pixels))


class Predictor(AnyPredictor[Resize, str | None]):
    """Something that detects boxes in images; see ``AnyPredictor``."""

    @property
    @abstractmethod
    def num_queries(self) -> int:
        """Queries that detect; of a baseline its maximum number of detections per image."""

    @property
    def has_queries(self) -> bool:
        """Whether it is a detection transformer, not a baseline."""
        return True

    @abstractmethod
    def detect(
        self,
        images: np.ndarray,
        sizes: list[tuple[int, int]],
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[Detections]:
        """Detections per image of a batch.

        Args:
            images: uint8 [B, 3, h, w], resized by ``self.resize``.
            sizes: (height, width) of the original images.
            top_k: detections per image at most; None: the paper's own number.
            one_label: only the best class of each query.
            nms: IoU threshold of class-wise NMS (1 disables it); None: the model's own (none for DETRs).
        """

    def predict(
        self,
        source: ImageSource | Iterable[ImageSource],
        *,
        threshold: float | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
        tiles: int | None = None,
        overlap: float = DEFAULT_OVERLAP,
        every: int = 1,
    ) -> Any:
        """Detect objects; one label per query.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives a ``Result``; a list gives a list; any other iterable gives a
                generator that holds one batch at a time. So does a video: its file, ``camera:0``, or the address of a stream.
            threshold: minimum score, 0..1; None: the detector's own.
            nms: IoU threshold of class-wise NMS (1 disables it); None: the model's own (none for DETRs).
            classes: names of the only classes to keep; None: all.
            max_detections: most detections per image; None: as many as the model has queries, or a baseline's own.
            batch_size: images of one shape that run together, of so many that are read at a time.
            tiles: pixels of the side of tiles that are looked at beside the whole image, for small objects; None: only the whole image.
            overlap: share of a tile that neighbours have in common.
            every: only each n-th frame of a video.

        Raises ``UserError`` for an image or video that cannot be read; warns where a video ends too early.
        """
        check_above_zero(batch_size=batch_size, max_detections=max_detections, every=every)
        check_nms(nms)
        labels = None if classes is None else self.labels_of(classes)
        chosen = _Chosen(self.min_score(threshold), nms, labels, max_detections, None if tiles is None else Tiles(tiles, overlap))
        if isinstance(source, str | Path) and is_moving(source):
            return self._frames(Video(source, every=every), chosen, batch_size)
        if isinstance(source, ImageSource):
            return next(self._stream([source], chosen, batch_size))
        if not isinstance(source, Iterable):
            raise UserError(f"source={source!r}: give a path, a PIL image, an RGB array, or a list or generator of these")
        stream = self._stream(source, chosen, batch_size)
        return list(stream) if isinstance(source, list | tuple) else stream

    def _frames(self, video: Video, chosen: _Chosen, batch_size: int) -> Iterator[Result]:
        """The results of a video's frames, with their numbers and times."""
        waiting: deque[Frame] = deque()
        frames = (waiting.append(frame) or frame.image for frame in video)
        for result in self._stream(frames, chosen, batch_size):
            frame = waiting.popleft()
            yield replace(result, frame=frame.number, time=float(frame.time))
        if video.remark:
            warnings.warn(f"{video.name}: {video.remark}")

    def _stream(self, sources: Iterable[ImageSource], chosen: _Chosen, batch_size: int) -> Iterator[Result]:
        sources = iter(sources)
        while group := list(islice(sources, batch_size if chosen.tiles is None else 1)):
            images = [to_pil(source) for source in group]
            top_k = chosen.max_detections and max(chosen.max_detections, self.num_queries)
            if chosen.tiles is None:
                found = self._detect(images, top_k=top_k, one_label=True, nms=chosen.nms)
            else:
                found = [
                    self.detect_in_tiles(image, chosen.tiles, batch_size=batch_size, top_k=top_k, one_label=True, nms=chosen.nms)
                    for image in images
                ]
            yield from map(self._result, group, images, found, repeat(chosen))

    def detect_in_tiles(
        self,
        image: Image.Image,
        tiles: Tiles,
        *,
        batch_size: int = 1,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> Detections:
        """Detections in the whole image and in tiles of it, of which ``batch_size`` run together; the rest as ``detect``."""
        views = tiles.views(image.height, image.width)
        found: list[Detections] = []
        for start in range(0, len(views), batch_size):
            crops = [image.crop(view) for view in views[start : start + batch_size].tolist()]
            found += self._detect(crops, top_k=top_k, one_label=one_label, nms=nms)
        return Detections(*merge_views(views, found))

    def _detect(self, images: list[Image.Image], *, top_k: int | None, one_label: bool, nms: float | None) -> list[Detections]:
        """Detections per image. Only images of one shape run together: none is padded, so what is found in it depends on it alone."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault(self.resize.size(image.height, image.width), []).append(i)
        found: dict[int, Detections] = {}
        for alike in by_shape.values():
            pixels = np.stack([self.resize(images[i]) for i in alike])
            sizes = [(images[i].height, images[i].width) for i in alike]
            found |= zip(alike, self.detect(pixels, sizes, top_k=top_k, one_label=one_label, nms=nms), strict=True)
        return [found[i] for i in range(len(images))]

    def labels_of(self, names: Sequence[str]) -> list[int]:
        """Labels of class names, which match without case, space, hyphen and underscore. Raises ``UserError`` for one that is unknown."""
        names = [names] if isinstance(names, str) else list(names)
        labels = match_names(names, self.classes)
        if unknown := [name for name, label in zip(names, labels, strict=True) if label < 0]:
            known = [name for name in self.classes if name is not None]
            close = get_close_matches(unknown[0], known, 1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"classes: the detector does not know {', '.join(unknown)}{meant}; it knows {', '.join(known)}")
        return labels

    def min_score(self, threshold: float | None) -> float:
        """The threshold; the detector's own for None. Raises ``UserError`` if it is not from 0 to 1."""
        check_threshold(threshold)
        return self.threshold if threshold is None else threshold

    def _result(self, source: ImageSource, image: Image.Image, found: Detections, chosen: _Chosen) -> Result:
        keep = (found.scores >= chosen.threshold) & (found.scores > 0)
        if chosen.labels is not None:
            keep &= np.isin(found.labels, chosen.labels)
        boxes, scores, labels = (column[keep][: chosen.max_detections] for column in found)
        path = str(source) if isinstance(source, str | Path) and not is_stream(str(source)) else None
        return Result(
            boxes=boxes.astype(np.float32).clip(0, np.array([image.width, image.height] * 2, np.float32)),
            scores=scores.astype(np.float32),
            labels=labels,
            names=[str(self.classes[i]) for i in labels],
            ids=[self.ids[i] for i in labels],
            size=(image.height, image.width),
            path=path,
            image=image if path is None else None,
        )


class _Chosen(NamedTuple):
    """What is looked at and kept, see ``Predictor.predict``; of ``labels`` alone, or of all for None."""

    threshold: float
    nms: float | None
    labels: list[int] | None
    max_detections: int | None
    tiles: Tiles | None


def to_pil(source: ImageSource) -> Image.Image:
    """An RGB image from a path, an address, a PIL image or an RGB uint8 array [H, W, 3]. Raises ``UserError``."""
    if isinstance(source, str) and is_stream(source):
        return read_web_image(source)
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise UserError(f"an array of {source.dtype} {list(source.shape)}: give RGB uint8 [H, W, 3]")
    return Image.fromarray(source)
