"""What an exported file says of itself: one JSON string in its metadata, from which it is known how to use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self

from boxquery.data.preprocessing import Preprocessing
from boxquery.errors import UserError, first_line
from boxquery.limits import check_threshold

#: where it is: a key of ONNX's metadata, and of OpenVINO's ``rt_info``
KEY = "boxquery"
#: version of the record and of the graph's inputs and outputs, of a model of images and of one of scenes
FORMAT, SCENE_FORMAT = 1, 2
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class SceneInput:
    """What the record of a model of scenes says beside the rest.

    Attributes:
        images: (height, width) of the images that it was trained on; all images are resized as one of this size is.
        area: x, y, z at least and at most of the space that boxes are in, in metres.
        cameras: how many a scene must have; None: any number.
    """

    images: tuple[int, int]
    area: tuple[float, ...]
    cameras: int | None

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """From plain values. Raises ``KeyError`` and ``TypeError``."""
        images, area, cameras = values["images"], values["area"], values["cameras"]
        _expect(values, "images", "two sides of 1 to 65536 pixels", _are(images, 2, lambda side: _is_whole(side, 1, 2**16)))
        _expect(values, "area", "six finite numbers", _are(area, 6, lambda side: _is_number(side) and isfinite(side)))
        if not all(low < high for low, high in zip(area[:3], area[3:], strict=True)):
            raise TypeError(f"area should be x, y, z at least and then at most, not {area}")
        _expect(values, "cameras", "a whole number above 0, or null", cameras is None or _is_whole(cameras, 1))
        return cls((images[0], images[1]), tuple(map(float, area)), cameras)

    def to_dict(self) -> dict[str, Any]:
        return {"images": list(self.images), "area": list(self.area), "cameras": self.cameras}


@dataclass(frozen=True)
class Record:
    """Attributes:
    model: its name, as in ``boxquery models``.
    classes, ids: names by label (None: never predicted), and the data set's own category ids.
    threshold: the default score threshold.
    preprocessing: how an image becomes the input; the graph itself normalises.
    queries: how many there are.
    top_k: detections per image where a query may have several classes.
    has_no_object: whether a query has one class alone, as of a softmax.
    size: (height, width) of every input; None: any.
    precision: of ``PRECISIONS``.
    scenes: of a model of scenes of several cameras; None: of images.
    """

    model: str
    classes: list[str | None]
    ids: list[int]
    threshold: float
    preprocessing: Preprocessing
    queries: int
    top_k: int
    has_no_object: bool
    size: tuple[int, int] | None
    precision: str
    scenes: SceneInput | None = None

    @classmethod
    def read(cls, text: str | None, path: Path) -> Self:
        """From the string in the metadata of a file; None where there is none. Raises ``UserError``."""
        if text is None:
            raise UserError(f"{path}: not exported by boxquery, so classes and preprocessing are not known; export it from its run")
        try:
            values: dict[str, Any] = json.loads(text)
            _expect(values, "format", "a number from 1", _is_whole(values["format"], 1))
            if values["format"] > SCENE_FORMAT:
                raise UserError(f"format {values['format']} is of a newer boxquery, this one reads up to {SCENE_FORMAT}; update it")
            classes, ids, size, threshold = values["classes"], values["ids"], values["size"], values["threshold"]
            words = isinstance(classes, list) and all(name is None or isinstance(name, str) for name in classes)
            _expect(values, "classes", "a list of words and null", words)
            _expect(values, "ids", "a list of whole numbers", isinstance(ids, list) and all(_is_whole(id_, -(2**63)) for id_ in ids))
            if len(classes) != len(ids):
                raise TypeError(f"{len(classes)} classes and {len(ids)} ids should be as many")
            sides = size is None or _are(size, 2, lambda side: _is_whole(side, 16, 8192))
            _expect(values, "size", "two sides of 16 to 8192 pixels, or null", sides)
            _expect(values, "precision", f"one of {', '.join(PRECISIONS)}", values["precision"] in PRECISIONS)
            _expect(values, "model", "a word", isinstance(values["model"], str))
            for name in ("queries", "top_k"):
                _expect(values, name, "a whole number above 0", _is_whole(values[name], 1))
            _expect(values, "has_no_object", "true or false", isinstance(values["has_no_object"], bool))
            _expect(values, "threshold", "a number", _is_number(threshold))
            check_threshold(threshold)
            return cls(
                model=values["model"],
                classes=classes,
                ids=ids,
                threshold=float(threshold),
                preprocessing=Preprocessing.from_dict(values["preprocessing"]),
                queries=values["queries"],
                top_k=values["top_k"],
                has_no_object=values["has_no_object"],
                size=None if size is None else (size[0], size[1]),
                precision=values["precision"],
                scenes=SceneInput.read(values["scenes"]) if values["format"] == SCENE_FORMAT else None,
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            why = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise UserError(f"{path}: its record cannot be read ({why}); export it again from its run") from error


def _is_whole(value: object, least: int, most: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(values: object, count: int, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(holds, values))


def _expect(values: dict[str, Any], name: str, what: str, holds: bool) -> None:
    if not holds:
        raise TypeError(f"{name} should be {what}, not {repr(values[name])[:80]}")
