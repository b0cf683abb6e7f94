"""Why objects were missed: one reason for every object without a detection, by rules on what the queries predict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxquery.data.dataset import Data, Record, Split
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.coco_matching import IGNORED, coco_match, flatten_detections, iou
from boxquery.evaluation.errors import IOU_MISPLACED, IOU_RIGHT
from boxquery.evaluation.predictions import drop_unreadable
from boxquery.explain.inference import open_split, pixel_boxes, run_model, split_batches
from boxquery.files import atomic_write
from boxquery.pages.drawing import draw
from boxquery.pages.html import render
from boxquery.pages.images import resize_to

#: in the order in which they are tried: the first that holds is the reason, see ``missed``
REASONS = {
    "wrong class": "a detection is at the object and belongs to no other, but predicts another class",
    "badly localised": f"a detection of its class overlaps it more than any other object, but only with IoU {IOU_MISPLACED} to {IOU_RIGHT}",
    "below threshold": "a query is at the object and overlaps no other more, but its score is below the threshold",
    "taken over": "the queries at the object belong to a neighbour that they overlap more, or the query that had found it in an earlier "
    "layer moved to another object",
    "never proposed": "no query, at any score, is at the object",
}
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}

_PICTURES = 6  # per reason on the page
_LONG_SIDE = 480  # of a picture in pixels
_CONTEXT = 0.8  # shown around an object, as a share of its long side


@dataclass(frozen=True, slots=True)
class MissedObject:
    """An object without a detection.

    Attributes:
        image: the data set's own image id; ``position``: its index in the split.
        object: its index in ``record.boxes``.
        name: its class; ``box``: xyxy in pixels; ``area``: in square pixels, as annotated; ``size``: a key of ``SIZES``.
        reason: one of ``REASONS``; ``details``: a sentence with numbers.
        query: the query that the reason is about; if never proposed, the query with the largest IoU, or the nearest if none overlaps.
        query_box: its last box, xyxy in pixels, not clipped; ``predicted``, ``predicted_score``: its best class.
        overlap: IoU of the two boxes.
        score: the query's score for the object's class.
    """

    image: int | str
    position: int
    object: int
    name: str
    box: tuple[float, ...]
    area: float
    size: str
    reason: str
    details: str
    query: int
    query_box: tuple[float, ...]
    predicted: str
    predicted_score: float
    overlap: float
    score: float


@dataclass(frozen=True, eq=False)
class MissedObjects:
    """The objects of a split that a detector misses, and why.

    Attributes:
        model, data, split, threshold: what was evaluated, and the minimum score of a detection.
        images: number of images.
        objects: number of objects by (class, size), found or missed, without ignored ones.
        items: the missed objects in the order of the split.
        skipped: a line per image whose pixels could not be read; these are in no count.
    """

    model: str
    data: str
    split: str
    threshold: float
    images: int
    objects: dict[tuple[str, str], int]
    items: list[MissedObject]
    records: Split = field(repr=False)
    skipped: list[str] = field(default_factory=list)

    def counts(self, by: str) -> dict[str, dict[str, int]]:
        """By "name" (class) or "size": its value -> {"objects", "missed" and every reason: number of objects}."""
        place = {"name": 0, "size": 1}[by]
        keys = list(SIZES) if by == "size" else sorted({key[0] for key in self.objects})
        return {
            key: _counted(sum(n for k, n in self.objects.items() if k[place] == key), [m for m in self.items if getattr(m, by) == key])
            for key in keys
        }

    def total(self) -> dict[str, int]:
        """The same for all objects together."""
        return _counted(sum(self.objects.values()), self.items)

    def summary(self) -> dict[str, Any]:
        """Everything as plain values."""
        known = {"model": self.model, "data": self.data, "split": self.split, "threshold": self.threshold, "images": self.images}
        counts = {**self.total(), "by_class": self.counts("name"), "by_size": self.counts("size")}
        return {**known, **counts, "items": [asdict(item) for item in self.items], "skipped": self.skipped}

    def show(self) -> None:
        """Print the table."""
        table = Table(
            title=escape(f"{self.model} on {self.split} of {self.data}, threshold {self.threshold:.2f}"),
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=0,
            pad_edge=False,
        )
        for column in ("", "objects", "missed", *REASONS):
            table.add_column(column, justify="right" if column else "left", overflow="fold")
        for group in ({"all": self.total()}, self.counts("size"), self.counts("name")):
            for name, row in group.items():
                table.add_row(escape(name), *(str(value) for value in row.values()))
            table.add_section()
        Console(soft_wrap=True, highlight=False).print(table)

    def write(self, folder: str | Path) -> Path:
        """Write ``missed.html``: the tables, and per reason the largest objects with the query's box. Returns its path.

        Raises ``UserError`` for an image that can no longer be read.
        """
        total, tables = self.total(), {"class": self.counts("name"), "size": self.counts("size")}
        page = render(
            "missed.html",
            styles=("style.css", "dataset.css"),
            result=self,
            total=total,
            columns=["objects", "missed", *REASONS],
            reasons=[(name, f"{total[name]:,}", total[name] / max(1, total["missed"]), meaning) for name, meaning in REASONS.items()],
            tables={kind: [(name, *(f"{n:,}" for n in row.values())) for name, row in counts.items()] for kind, counts in tables.items()},
            pictures={reason: self._pictures(reason) for reason in REASONS},
        )
        return atomic_write(Path(folder) / "missed.html", page)

    def _pictures(self, reason: str) -> list[tuple[Image.Image, str, str]]:
        """The largest objects that were missed for a reason: picture, title and text."""
        items = sorted((item for item in self.items if item.reason == reason), key=lambda item: -item.area)[:_PICTURES]
        return [(_picture(self.records, item), f"{item.name}, image {item.image}", item.details) for item in items]


def missed(
    detector: Detector,
    data: str | Path | Data,
    split: str = "val",
    *,
    threshold: float | None = None,
    limit: int | None = None,
    strict: bool = False,
) -> MissedObjects:
    """Why objects of a split have no detection.

    A query is a *detection* if the score of its best class reaches the threshold. Detections are matched to objects as in evaluation: best
    score first, each to the free object of its class with the largest IoU of at least 0.5. An object without a match is missed. A query is
    *at* an object if the IoU of its last box is at least 0.5. It is one of the object's *own* if it overlaps no other object (of any class)
    more, and neither found another object nor is in an ignored region of its class. The reason is the first that holds:

    1. wrong class: an own query at the object is a detection (of another class, or it would have found the object).
    2. badly localised: an own query is a detection of the object's class with an IoU of at least 0.1.
    3. below threshold: an own query is at the object. The one with the highest score for the object's class is named.
    4. taken over: a query is at the object, but not its own; or a query that was at the object in an earlier layer, with its class and a
       score that reached the threshold, has found another object in the last layer.
    5. never proposed: none of these.

    Args:
        data: a path, the word ``shapes`` or an opened data set; classes are matched by name.
        threshold: 0..1; default: the detector's own.
        limit: number of images, from the first; default: all.
        strict: fail at an image whose pixels cannot be read instead of skipping it.

    Raises ``UserError`` if the data lacks the split or has a class that the detector does not know, or if more than a tenth of the images
    cannot be read.
    """
    least = detector.min_score(threshold)
    source, records = open_split(detector, data, split, strict)
    if limit is not None:
        if limit < 1:
            raise UserError(f"limit={limit}: must be at least 1")
        records = replace(records, records=records.records[:limit])
    names = [str(name) for name in detector.classes]
    skipped: list[str] = []
    found: dict[int, list[MissedObject]] = {}
    for batch in split_batches(detector, records, strict, skipped):
        out = run_model(detector, batch.images, batch.mask)
        scores = detector.transformer.scores(out.logits).float().cpu().numpy()
        for place, position in enumerate(batch.indices):
            record = records[position]
            found[position] = explain_misses(record, position, pixel_boxes(out, place, record), scores[:, place], names, least)
    seen, _ = drop_unreadable(records, found)
    objects = Counter(
        (names[label], size_of(area))
        for record in seen
        for label, area, ignore in zip(record.labels, record.areas, record.ignore, strict=True)
        if not ignore
    )
    items = [miss for position in sorted(found) for miss in found[position]]
    return MissedObjects(detector.model.config["name"], source, split, least, len(seen), dict(objects), items, records, skipped)


def size_of(area: float) -> str:
    """COCO's name for the size of an area in square pixels."""
    return next(name for name, bound in SIZES.items() if area < bound)


def explain_misses(
    record: Record, position: int, boxes: np.ndarray, scores: np.ndarray, names: Sequence[str], threshold: float
) -> list[MissedObject]:
    """The missed objects of one image by the rules of ``missed``.

    Args:
        boxes, scores: [L, Q, 4] xyxy in pixels and [L, Q, C], of every decoder layer.
        names: of the C classes.
    """
    image = _Predictions(record, boxes, scores, names, threshold)
    result = []
    for number in np.flatnonzero(~record.ignore & ~np.isin(np.arange(len(record.boxes)), image.found)).tolist():
        reason, query, details = _reason(image, number)
        label = int(record.labels[number])
        result.append(
            MissedObject(
                image=record.id,
                position=position,
                object=number,
                name=names[label],
                box=tuple(record.boxes[number].tolist()),
                area=float(record.areas[number]),
                size=size_of(record.areas[number]),
                reason=reason,
                details=details,
                query=query,
                query_box=tuple(boxes[-1, query].tolist()),
                predicted=names[int(image.labels[query])],
                predicted_score=float(image.best[query]),
                overlap=float(image.overlap[query, number]),
                score=float(scores[-1, query, label]),
            )
        )
    return result


class _Predictions:
    """What Q queries predict for an image with N objects, and which objects they belong to; see ``missed`` for the terms.

    Attributes:
        best, labels: [Q], score and index of each query's best class.
        detection: bool [Q]; ``found``: [Q], the object that a query found, or -1; ``ignored``: bool [Q], in an ignored region.
        overlap: [Q, N], IoU in the last layer; ``counted``: the same, but 0 with ignored objects.
        own: bool [Q, N]; of ignored objects never.
    """

    def __init__(self, record: Record, boxes: np.ndarray, scores: np.ndarray, names: Sequence[str], threshold: float):
        self.record, self.boxes, self.scores, self.names, self.threshold = record, boxes, scores, names, threshold
        self.labels, self.best = scores[-1].argmax(-1), scores[-1].max(-1)
        self.detection = (self.best >= threshold) & (self.best > 0)
        shown = np.flatnonzero(self.detection)
        shown = shown[np.lexsort((-self.best[shown], self.labels[shown]))]  # in the order of ``flatten_detections``
        detections = {0: (boxes[-1, shown], self.best[shown], self.labels[shown])}
        table = flatten_detections([record], detections, scores.shape[-1], max(1, len(self.best)))
        outcome, self.found = np.zeros(len(self.best), np.int64), np.full(len(self.best), -1)
        outcome[shown], self.found[shown] = coco_match([record], table, IOU_RIGHT)
        self.truth, self.ignored = record.boxes.astype(np.float64), outcome == IGNORED
        self.overlap = iou(boxes[-1], self.truth)
        self.counted = np.where(record.ignore, 0.0, self.overlap)
        self.own = (~self.ignored & (self.found < 0))[:, None] & (self.overlap >= self.counted.max(-1, keepdims=True, initial=0.0))

    def predicted(self, query: int) -> str:
        return f"{self.names[int(self.labels[query])]} {self.best[query]:.2f}"


def _reason(image: _Predictions, number: int) -> tuple[str, int, str]:
    """Why an object was missed, the query that the reason is about, and a sentence with numbers."""
    label, overlap, own = int(image.record.labels[number]), image.overlap[:, number], image.own[:, number]
    name, scores, at = image.names[label], image.scores[-1, :, label], overlap >= IOU_RIGHT
    if (wrong := own & at & image.detection).any():
        query = _first(wrong, image.best)
        details = f"query {query} predicts {image.predicted(query)}, and {name} {scores[query]:.2f}; IoU {overlap[query]:.2f}"
        return "wrong class", query, details
    if (beside := own & image.detection & (image.labels == label) & (overlap >= IOU_MISPLACED)).any():
        query = _first(beside, overlap)
        return "badly localised", query, f"query {query} predicts {image.predicted(query)}, but with an IoU of {overlap[query]:.3f}"
    if (silent := own & at).any():
        query = _first(silent, scores)
        other = "" if image.labels[query] == label else f"; its best class is {image.predicted(query)}"
        details = f"query {query} predicts {name} {scores[query]:.2f}, the threshold is {image.threshold:.2f}{other}"
        return "below threshold", query, f"{details}; IoU {overlap[query]:.2f}"
    if at.any():
        query = _first(at, np.where(image.found >= 0, 1 + image.best, image.best))
        return "taken over", query, _neighbour(image, query, overlap[query])
    for layer in range(len(image.boxes) - 2, -1, -1):
        earlier = image.scores[layer]
        had = (iou(image.boxes[layer], image.truth[[number]])[:, 0] >= IOU_RIGHT) & (earlier.argmax(-1) == label)
        if (left := had & (earlier.max(-1) >= image.threshold) & (image.found >= 0)).any():
            query = _first(left, earlier.max(-1))
            neighbour = image.names[int(image.record.labels[image.found[query]])]
            return "taken over", query, f"query {query} had found it in layer {layer + 1} and then moved to a {neighbour}"
    if overlap.any():
        query = int(overlap.argmax())
        details = f"the best box, of query {query} ({image.predicted(query)}), has an IoU of {overlap[query]:.2f}"
    else:
        centres, centre = (boxes.reshape(-1, 2, 2).mean(1) for boxes in (image.boxes[-1], image.truth[number]))
        query = int(np.hypot(*(centres - centre).T).argmin())
        details = f"no query's box overlaps it; the nearest is that of query {query} ({image.predicted(query)})"
    return "never proposed", query, details


def _first(among: np.ndarray, by: np.ndarray) -> int:
    """The query with the largest value among those that are True; on ties the first."""
    return int(np.argmax(np.where(among, by, -np.inf)))


def _neighbour(image: _Predictions, query: int, overlap: float) -> str:
    """The object that a query at another one belongs to, in a sentence."""
    if image.ignored[query]:
        return f"query {query} ({image.predicted(query)}, IoU {overlap:.2f}) is in an ignored region of its class"
    other, verb = int(image.found[query]), "found"
    if other < 0:
        other, verb = int(image.counted[query].argmax()), "fits better on"
    name = image.names[int(image.record.labels[other])]
    return f"query {query} {verb} a {name} beside it: IoU {image.overlap[query, other]:.2f} there, {overlap:.2f} here"


def _counted(objects: int, items: Iterable[MissedObject]) -> dict[str, int]:
    reasons = Counter(item.reason for item in items)
    return {"objects": objects, "missed": reasons.total(), **{reason: reasons[reason] for reason in REASONS}}


def _picture(records: Split, item: MissedObject) -> Image.Image:
    """The object with its surroundings and the query's box, magnified."""
    image = records.read(item.position)
    box, other = np.array(item.box), np.array(item.query_box)
    margin = max(_CONTEXT * max(box[2:] - box[:2]), 24)
    low, high = np.minimum(box, other)[:2] - margin / 4, np.maximum(box, other)[2:] + margin / 4
    low, high = np.minimum(low, box[:2] - margin), np.maximum(high, box[2:] + margin)
    low, high = np.floor(np.clip(low, 0, image.size)), np.ceil(np.clip(high, 0, image.size))
    window = image.crop((*low.astype(int).tolist(), *high.astype(int).tolist()))
    window, scale = resize_to(window, _LONG_SIDE)
    object_, query = ((each - np.tile(low, 2))[None] * scale for each in (box, other))
    return draw(window, query, [0], [item.predicted, item.name], scores=[item.predicted_score], dashed=(object_, np.array([1])))
