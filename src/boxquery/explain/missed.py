"""Why objects were missed: for every truth box without a detection exactly one reason, by plain rules on the queries' answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from boxquery.evaluation.coco_matching import IGNORED, iou
from boxquery.evaluation.predictions import drop_unreadable
from boxquery.explain import tables
from boxquery.explain.inference import answer, batches_of, least_score, outcomes, pixels, records_of
from boxquery.files import atomic_write
from boxquery.pages.drawing import draw
from boxquery.pages.format import split_title

IOU_RIGHT = 0.5
IOU_NEAR = 0.1

#: In the order in which they are tried: the first that holds is the reason. ``missed`` defines the words.
REASONS = {
    "wrong class": "a detection is at the place and belongs to no other object, but it names another class",
    "badly localised": f"a detection of its class overlaps it most of all objects, but only with an IoU from {IOU_NEAR} to {IOU_RIGHT}",
    "below threshold": "a query is at the place and overlaps no other object more, but its score is below the threshold",
    "taken over": "the queries at the place belong to a neighbouring object that they overlap more; "
    "or a query that had found it in an earlier layer has gone over to another object",
    "never proposed": f"no query, at any score, put a box with an IoU of {IOU_RIGHT} on it",
}
_SIZES = "Small: under 32² pixels; medium: under 96²; large: the rest."
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}

_PICTURES = 6  # of each reason on the page
_PICTURE = 480  # pixels of a picture's long side
_CONTEXT = 0.8  # of the object's long side shown around it


@dataclass(frozen=True, slots=True)
class Miss:
    """An object without a detection.

    Attributes:
        image: the data set's own image id; ``position``: its place in the split.
        object: its place in ``record.boxes``.
        name: its class; ``box``: xyxy in pixels; ``area``: square pixels, as annotated; ``size``: "small" (under 32²), "medium" (under
            96²) or "large".
        reason: one of ``REASONS``; ``details``: the same in a sentence, with numbers.
        query: the query that the reason is about; of one never proposed the query with the largest IoU, or, if none overlaps it, the one
            whose centre is nearest.
        query_box: xyxy in pixels of its last box, unclipped; ``says``, ``says_score``: its best class there.
        overlap: IoU of the two boxes.
        score: what the query gives the object's own class.
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
    says: str
    says_score: float
    overlap: float
    score: float


@dataclass(frozen=True, eq=False)
class Missed:
    """What a detector misses in a split, and why.

    Attributes:
        model, data, split, threshold: what was looked at, and the least score of a detection.
        images: how many.
        objects: how many objects there are by (class, size), found ones too; ignored ones do not count.
        items: the missed ones in the order of the split.
        skipped: a line for each image whose pixels could not be read; they are in no count.
    """

    model: str
    data: str
    split: str
    threshold: float
    images: int
    objects: dict[tuple[str, str], int]
    items: list[Miss]
    records: Split = field(repr=False)
    skipped: list[str] = field(default_factory=list)

    def counts(self, by: str) -> dict[str, dict[str, int]]:
        """Rows of the table: name of the ``by`` ("name" or "size") -> {"objects", "missed", and each reason: how many}."""
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
        tables = {**self.total(), "by_class": self.counts("name"), "by_size": self.counts("size")}
        return {**known, **tables, "items": [asdict(item) for item in self.items], "skipped": self.skipped}

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
        """Write ``missed.html``, which needs no other file: the tables, and of each reason the largest objects with the query's box.

        Returns its path. Raises ``UserError`` for an image that can no longer be read.
        """
        return atomic_write(Path(folder) / "missed.html", _page(self))


def missed(
    detector: Detector,
    data: str | Path | Data,
    split: str = "val",
    *,
    threshold: float | None = None,
    limit: int | None = None,
    strict: bool = False,
) -> Missed:
    """Why objects of a split have no detection.

    A query is a *detection* if the score of its best class reaches the threshold. Detections are given to objects as in evaluation: best
    scores first, each to the free object of its class that it overlaps most, if the IoU is at least 0.5; an object that gets none is
    missed. A query is *at* an object if the IoU of its last box is at least 0.5; it is the object's *own* if no other object (of any class)
    has a larger IoU with it, and it neither found another object nor lies in an ignored region of its class. The reason is the first that
    holds:

    1. wrong class: one of its own queries at the object is a detection (of another class: one of the same would have found it).
    2. badly localised: one of its own queries is a detection of its class, with an IoU of at least 0.1.
    3. below threshold: one of its own queries is at the object; that with the highest score for the object's class is named.
    4. taken over: a query is at the object, but it is not its own; or a query that was at the object in an earlier layer, naming its class
       with a score that reaches the threshold, has found another object in the last.
    5. never proposed: none of these.

    Args:
        data: a path, the word ``shapes`` or an opened data set; classes are matched by name.
        threshold: 0..1; None: the detector's own.
        limit: look at so many images, from the first; None: all.
        strict: an image whose pixels cannot be read is fatal; else it is named on stderr and left out.

    Raises ``UserError`` where the data lacks the split or has a class that the detector does not know, or more than a tenth of the
    images cannot be read.
    """
    least = least_score(detector, threshold)
    source, records = records_of(detector, data, split, strict)
    if limit is not None:
        if limit < 1:
            raise UserError(f"limit={limit}: look at one image at least")
        records = replace(records, records=records.records[:limit])
    names = [str(name) for name in detector.classes]
    skipped: list[str] = []
    found: dict[int, list[Miss]] = {}
    for batch in batches_of(detector, records, strict, skipped):
        out = answer(detector, batch.images, batch.mask)
        scores = detector.transformer.criterion.classification.scores(out.logits).float().cpu().numpy()
        for place, position in enumerate(batch.indices):
            record = records[position]
            found[position] = explain_misses(record, position, pixels(out, place, record), scores[:, place], names, least)
    seen, _ = drop_unreadable(records, found)
    objects = Counter(
        (names[label], size_of(area))
        for record in seen
        for label, area, ignore in zip(record.labels, record.areas, record.ignore, strict=True)
        if not ignore
    )
    items = [miss for position in sorted(found) for miss in found[position]]
    return Missed(detector.model.config["name"], source, split, least, len(seen), dict(objects), items, records, skipped)


def size_of(area: float) -> str:
    """The size group of an area in square pixels, as COCO has them."""
    return next(name for name, bound in SIZES.items() if area < bound)


def explain_misses(
    record: Record, position: int, boxes: np.ndarray, scores: np.ndarray, names: Sequence[str], threshold: float
) -> list[Miss]:
    """The missed objects of one image by the rules of ``missed``.

    Args:
        boxes: [L, Q, 4] xyxy in pixels, a row a decoder layer; ``scores``: [L, Q, C].
        names: of the C classes.
    """
    image = _Answers(record, boxes, scores, threshold)
    result = []
    for number in np.flatnonzero(~record.ignore & ~np.isin(np.arange(len(record.boxes)), image.found)):
        reason, query, extra = _reason(image, int(number), names)
        label, overlap = int(record.labels[number]), float(image.overlap[query, number])
        says, sure, score = int(image.labels[query]), float(image.best[query]), float(scores[-1, query, label])
        result.append(
            Miss(
                image=record.id,
                position=position,
                object=int(number),
                name=names[label],
                box=tuple(record.boxes[number].tolist()),
                area=float(record.areas[number]),
                size=size_of(record.areas[number]),
                reason=reason,
                details=extra or _details(reason, query, names[says], sure, names[label], score, overlap, threshold),
                query=query,
                query_box=tuple(boxes[-1, query].tolist()),
                says=names[says],
                says_score=sure,
                overlap=overlap,
                score=score,
            )
        )
    return result


class _Answers:
    """What the queries of one image say, and whom they belong to. N objects, also ignored ones, whose columns are never anyone's own.

    Attributes:
        best, labels: [Q], of each query's best class.
        detection: bool [Q]; ``found``: [Q], the object that a query found, or -1; ``ignored``: bool [Q], lies in an ignored region.
        overlap: [Q, N] IoU of the last layer.
        own: bool [Q, N].
    """

    def __init__(self, record: Record, boxes: np.ndarray, scores: np.ndarray, threshold: float):
        self.record, self.boxes, self.scores, self.threshold = record, boxes, scores, threshold
        self.labels, self.best = scores[-1].argmax(-1), scores[-1].max(-1)
        self.detection, outcome, self.found = outcomes(record, boxes[-1], self.best, self.labels, scores.shape[-1], threshold)
        self.truth = record.boxes.astype(np.float64)
        self.overlap = iou(boxes[-1], self.truth)
        rivals = np.where(record.ignore, 0.0, self.overlap)
        self.ignored = outcome == IGNORED
        self.own = (~self.ignored & (self.found < 0))[:, None] & (self.overlap >= rivals.max(-1, keepdims=True, initial=0.0))


def _reason(image: _Answers, number: int, names: Sequence[str]) -> tuple[str, int, str]:
    """The reason, the query that it is about, and a sentence where the query alone does not say it."""
    label, overlap, own = image.record.labels[number], image.overlap[:, number], image.own[:, number]
    at = overlap >= IOU_RIGHT
    if (wrong := own & at & image.detection).any():
        return "wrong class", _first(wrong, image.best), ""
    if (beside := own & image.detection & (image.labels == label) & (overlap >= IOU_NEAR)).any():
        return "badly localised", _first(beside, overlap), ""
    if (silent := own & at).any():
        return "below threshold", _first(silent, image.scores[-1, :, label]), ""
    if at.any():
        query = _first(at, np.where(image.found >= 0, 1 + image.best, image.best))
        return "taken over", query, _neighbour(image, query, number, names)
    for layer in range(len(image.boxes) - 2, -1, -1):
        earlier = image.scores[layer]
        had = (iou(image.boxes[layer], image.truth[[number]])[:, 0] >= IOU_RIGHT) & (earlier.argmax(-1) == label)
        if (left := had & (earlier.max(-1) >= image.threshold) & (image.found >= 0)).any():
            query = _first(left, earlier.max(-1))
            went = names[int(image.record.labels[image.found[query]])]
            return "taken over", query, f"query {query} had it in layer {layer + 1} and then went over to a {went}"
    return "never proposed", _nearest(image, number), ""


def _first(among: np.ndarray, by: np.ndarray) -> int:
    """The query with the largest value of those that are True; among equals the first."""
    return int(np.argmax(np.where(among, by, -np.inf)))


def _nearest(image: _Answers, number: int) -> int:
    if image.overlap[:, number].any():
        return int(image.overlap[:, number].argmax())
    centre, boxes = image.truth[number].reshape(2, 2).mean(0), image.boxes[-1]
    return int(np.hypot(*((boxes[:, :2] + boxes[:, 2:]) / 2 - centre).T).argmin())


def _neighbour(image: _Answers, query: int, number: int, names: Sequence[str]) -> str:
    """Whom a query at the place belongs to."""
    here = image.overlap[query, number]
    if image.ignored[query]:
        says = f"{names[int(image.labels[query])]} {image.best[query]:.2f}"
        return f"query {query} ({says}, IoU {here:.2f}) lies in an ignored region of its class"
    other, does = int(image.found[query]), "found"
    if other < 0:
        other, does = int(np.where(image.record.ignore, 0.0, image.overlap[query]).argmax()), "fits better on"
    name = names[int(image.record.labels[other])]
    return f"query {query} {does} a {name} beside it: IoU {image.overlap[query, other]:.2f} there, {here:.2f} here"


def _details(reason: str, query: int, says: str, sure: float, name: str, score: float, overlap: float, threshold: float) -> str:
    match reason:
        case "wrong class":
            return f"query {query} says {says} {sure:.2f}, and {name} {score:.2f}; IoU {overlap:.2f}"
        case "badly localised":
            return f"query {query} says {says} {sure:.2f}, but with an IoU of {overlap:.3f}"
        case "below threshold":
            leans = "" if says == name else f"; it leans to {says} {sure:.2f}"
            return f"query {query} says {name} {score:.2f}, the threshold is {threshold:.2f}{leans}; IoU {overlap:.2f}"
    if overlap == 0:
        return f"no query's box overlaps it; nearest is query {query} ({says} {sure:.2f})"
    return f"the best box, of query {query} ({says} {sure:.2f}), has an IoU of {overlap:.2f}"


def _counted(objects: int, items: Iterable[Miss]) -> dict[str, int]:
    reasons = Counter(item.reason for item in items)
    return {"objects": objects, "missed": reasons.total(), **{reason: reasons[reason] for reason in REASONS}}


# -- the page ---------------------------------------------------------------------------------------------------------------------


def _page(result: Missed) -> str:
    total = result.total()
    split = split_title(result.split)
    lead = f"There are no objects in {result.images:,} images."
    if total["objects"]:
        share = 100 * total["missed"] / total["objects"]
        lead = (
            f"Of {total['objects']:,} objects in {result.images:,} images <b>{total['missed']:,}</b> ({share:.0f} %) "
            f"have no detection at a score threshold of {result.threshold:.2f}."
        )
    rows = [(reason, f"{total[reason]:,}", total[reason] / max(1, total["missed"]), meaning) for reason, meaning in REASONS.items()]
    why = tables.table(("reason", "objects", "", "what it means"), rows, words=3)
    hint = "Every missed object has one reason: the first of these that holds."
    body = [
        tables.headline("What was missed, and why", f"{result.model} · {result.data} · {split} split", lead, result.skipped),
        tables.section("reasons", "Reasons", hint, why),
        tables.section(
            "classes", "By class", "How many objects, and of the missed ones each reason.", _table("class", result.counts("name"))
        ),
        tables.section("sizes", "By size", _SIZES, _table("size", result.counts("size"))),
        *_galleries(result),
    ]
    return tables.page(f"Missed by {result.model}", body)


def _table(kind: str, counts: dict[str, dict[str, int]]) -> str:
    return tables.table((kind, "objects", "missed", *REASONS), [(name, *(f"{n:,}" for n in row.values())) for name, row in counts.items()])


def _galleries(result: Missed) -> Iterator[str]:
    for reason in REASONS:
        items = sorted((item for item in result.items if item.reason == reason), key=lambda item: -item.area)
        if items:
            cards = [tables.card(_picture(result.records, m), f"{m.name}, image {m.image}", m.details) for m in items[:_PICTURES]]
            shown = f"The {_PICTURES} largest of {len(items):,}." if len(items) > _PICTURES else f"All {len(items)}, the largest first."
            hint = f"{shown} Dashed: the object; solid: the query's last box."
            yield tables.section(reason.replace(" ", "-"), f"Pictures: {reason}", hint, tables.cards(cards))


def _picture(records: Split, item: Miss) -> Image.Image:
    """The object with its surroundings and the query's box, enlarged."""
    image = records.read(item.position)
    box, other = np.array(item.box), np.array(item.query_box)
    margin = max(_CONTEXT * max(box[2:] - box[:2]), 24)
    low, high = np.minimum(box, other)[:2] - margin / 4, np.maximum(box, other)[2:] + margin / 4
    low, high = np.minimum(low, box[:2] - margin), np.maximum(high, box[2:] + margin)
    low, high = np.floor(np.clip(low, 0, image.size)), np.ceil(np.clip(high, 0, image.size))
    window = image.crop((*low.astype(int).tolist(), *high.astype(int).tolist()))
    scale = _PICTURE / max(window.size)
    size = max(1, round(window.width * scale)), max(1, round(window.height * scale))
    shift = np.tile(low, 2)
    window = window.resize(size, Image.Resampling.LANCZOS)
    object_, query = ((box - shift) * scale)[None], ((other - shift) * scale)[None]
    return draw(window, query, [0], [item.says, item.name], scores=[item.says_score], dashed=(object_, np.array([1])))
