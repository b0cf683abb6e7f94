"""How queries are used over a data set: who wins, where each one's boxes fall, who never speaks, and what self-attention does about
duplicates."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxquery.data.dataset import Data, Split
from boxquery.data.loading import Batch
from boxquery.detector import Detector
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, ImageDetections, coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_RIGHT, find_duplicates
from boxquery.evaluation.predictions import DetectionsByImage, drop_unreadable
from boxquery.explain import tables
from boxquery.explain.inference import answer, batches_of, least_score, pixels, records_of, without_exchange
from boxquery.files import atomic_write
from boxquery.models.base import DetectionTransformer
from boxquery.pages.format import DASH, split_title
from boxquery.parts.output import Output

MAPS = 20
"""Queries with a map of their own, as many as in the DETR paper."""

_SIDE = 220  # pixels of a map
_LARGE = 0.25  # from this square root of its share of the image on, a box is large, under half of that small
_GREEN, _RED, _BLUE = np.array([0, 158, 80]), np.array([214, 48, 32]), np.array([0, 92, 214])


@dataclass(frozen=True, slots=True)
class Quality:
    """The detections of all queries together: those whose best class reaches ``threshold``.

    Attributes:
        detections: how many.
        duplicate_rate: the share of them that overlap a better one of the same class and image with IoU > 0.7; None without any.
        precision: the share that found an object, at IoU 0.5, of those that are not in ignored regions; None without any.
        recall: the share of objects found; None without objects.
    """

    threshold: float
    detections: int
    duplicate_rate: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True, eq=False)
class Usage:
    """How Q queries are used in N images.

    Attributes:
        model, data, split, threshold: what was looked at, and the least score of a detection.
        ranked: a two-stage model, which has no queries of its own: it makes them from each image's proposals, and number q is the proposal
            of the q-th best score. All numbers by query are by that rank then.
        objects: how many there were, without ignored ones.
        boxes: float32 [N, Q, 4] cxcywh in [0, 1] of each image, the last layer's boxes at any score.
        scores: float32 [N, Q], of each query's best class.
        matched: int64 [Q], in how many images the one-to-one matching of training gives the query an object.
        exchange: the detections of the model as it is.
        no_exchange: of the same model with self-attention between queries switched off: in every layer each query sees itself alone.
        no_exchange_as_many: the same at the threshold that gives as many detections as the model has as it is. Scores change with the
            switch, and few detections have few duplicates, so this is the one to compare.
        skipped: a line for each image whose pixels could not be read; they are in no count.
    """

    model: str
    data: str
    split: str
    threshold: float
    ranked: bool
    objects: int
    boxes: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    matched: np.ndarray = field(repr=False)
    exchange: Quality
    no_exchange: Quality
    no_exchange_as_many: Quality
    skipped: list[str] = field(default_factory=list)

    @cached_property
    def detections(self) -> np.ndarray:
        """int64 [Q]: in how many images the query is a detection."""
        return _detected(self.scores, self.threshold).sum(0)

    @cached_property
    def dead(self) -> list[int]:
        """The queries that are a detection in no image."""
        return [int(query) for query in np.flatnonzero(self.detections == 0)]

    @cached_property
    def mean(self) -> np.ndarray:
        """float64 [Q, 4]: the mean box, cxcywh in [0, 1]."""
        return self.boxes.mean(0, dtype=np.float64)

    @cached_property
    def spread(self) -> np.ndarray:
        """float64 [Q, 4]: the standard deviation of the boxes' centres and sizes."""
        return self.boxes.std(0, dtype=np.float64)

    def summary(self) -> dict[str, Any]:
        """Everything but the single boxes, as plain values; a number that is not defined is None."""
        columns = ("x", "y", "width", "height")
        queries = [
            {
                "detections": int(self.detections[query]),
                "matched": int(self.matched[query]),
                "mean": dict(zip(columns, self.mean[query].tolist(), strict=True)),
                "spread": dict(zip(columns, self.spread[query].tolist(), strict=True)),
            }
            for query in range(len(self.matched))
        ]
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "threshold": self.threshold,
            "images": len(self.boxes),
            "objects": self.objects,
            "by": self.word,
            "gini_detections": gini(self.detections),
            "gini_matched": gini(self.matched),
            "dead": self.dead,
            "self_attention": asdict(self.exchange),
            "no_self_attention": asdict(self.no_exchange),
            "no_self_attention_as_many": asdict(self.no_exchange_as_many),
            "queries": queries,
            "skipped": self.skipped,
        }

    @property
    def word(self) -> str:
        """What is counted: "query", or "rank" where queries are made anew for every image."""
        return "rank" if self.ranked else "query"

    def show(self) -> None:
        """Print the numbers, and the queries that win most."""
        console = Console(soft_wrap=True, highlight=False)
        title = f"{self.model} on {self.split} of {self.data}, threshold {self.threshold:.2f}"
        table = Table(title=escape(title), title_justify="left")
        for column in _QUALITY:
            table.add_column(column, justify="left" if column == _QUALITY[0] else "right")
        for row in _exchange_rows(self):
            table.add_row(*row)
        console.print(table)
        table = Table(caption="mean ± standard deviation, in shares of the image", caption_justify="left")
        for column in (self.word, *_COLUMNS):
            table.add_column(column, justify="right", overflow="fold")
        for query in most_used(self, 10):
            table.add_row(str(query), *(cell.replace(" ", "") for cell in _query_cells(self, query)))
        console.print(table)
        console.print(f"{_note(self)} {_inequality(self)}".strip(), markup=False)

    def write(self, folder: str | Path) -> Path:
        """Write ``usage.html``, which needs no other file, and its maps as one picture, ``usage.png``. Returns the path of the page."""
        folder = Path(folder)
        stream = io.BytesIO()
        figure(self).save(stream, "PNG", optimize=True)
        atomic_write(folder / "usage.png", stream.getvalue())
        return atomic_write(folder / "usage.html", _page(self))


def usage(
    detector: Detector, data: str | Path | Data, split: str = "val", *, threshold: float | None = None, strict: bool = False
) -> Usage:
    """How often each query wins, where its boxes fall, and what self-attention does about duplicates: every image is shown twice.

    A query is a *detection* in an image if the score of its best class reaches the threshold, as in ``Detector.predict``. The maps are
    those of the DETR paper (figure 7): all boxes of a query, at any score.

    Args:
        data: a path, the word ``shapes`` or an opened data set; classes are matched by name.
        threshold: 0..1; None: the detector's own.
        strict: an image whose pixels cannot be read is fatal; else it is named on stderr and left out.

    Raises ``UserError`` where the data lacks the split or has a class that the detector does not know, or more than a tenth of the
    images cannot be read.
    """
    least = least_score(detector, threshold)
    source, records = records_of(detector, data, split, strict)
    model, alone, classes = detector.transformer, without_exchange(detector.transformer), len(detector.classes)
    boxes: dict[int, np.ndarray] = {}
    winners: dict[int, np.ndarray] = {}
    found: DetectionsByImage = {}
    others: DetectionsByImage = {}
    skipped: list[str] = []
    ranked = False
    for batch in batches_of(detector, records, strict, skipped):
        out = answer(detector, batch.images, batch.mask, last_only=True)
        ranked = out.proposals is not None
        for place, (index, (queries, _)) in enumerate(zip(batch.indices, model.match(out, batch.targets)[-1], strict=True)):
            boxes[index], winners[index] = out.boxes[-1, place].float().cpu().numpy(), queries.cpu().numpy()
        found |= _said(model, out, batch, records)
        others |= _said(model, answer(detector, batch.images, batch.mask, model=alone, last_only=True), batch, records)
    order = sorted(found)
    _, others = drop_unreadable(records, others)
    records, found = drop_unreadable(records, found)
    scores, moved = (np.stack([said[i][1] for i in range(len(records))]) for said in (found, others))
    return Usage(
        model=detector.model.config["name"],
        data=source,
        split=split,
        threshold=least,
        ranked=ranked,
        objects=sum(int((~record.ignore).sum()) for record in records),
        boxes=np.stack([boxes[i] for i in order]),
        scores=scores,
        matched=np.bincount(np.concatenate([winners[i] for i in order]), minlength=scores.shape[1]),
        exchange=quality(records, found, classes, least),
        no_exchange=quality(records, others, classes, least),
        no_exchange_as_many=quality(records, others, classes, _equal_threshold(scores, moved, least)),
        skipped=skipped,
    )


def _said(model: DetectionTransformer, out: Output, batch: Batch, records: Split) -> DetectionsByImage:
    """Every query's last box with its best class, as evaluation takes them."""
    best = model.criterion.classification.scores(out.logits[-1]).max(-1)
    scores, labels = best.values.float().cpu().numpy(), best.indices.cpu().numpy()
    return {index: (pixels(out, place, records[index])[-1], scores[place], labels[place]) for place, index in enumerate(batch.indices)}


def _equal_threshold(scores: np.ndarray, others: np.ndarray, threshold: float) -> float:
    """The threshold at which the ``others`` have as many detections as ``scores`` have; where those have none, the same threshold."""
    count = int(_detected(scores, threshold).sum())
    return float(np.sort(others, axis=None)[-count]) if count else threshold


def quality(records: Split, found: dict[int, ImageDetections], classes: int, threshold: float) -> Quality:
    """``Quality`` of predictions as ``evaluate`` takes them, at a threshold; duplicates, precision and recall are those of ``evaluate``."""
    seen: dict[int, ImageDetections] = {}
    for position, (boxes, scores, labels) in found.items():
        kept = _detected(scores, threshold)
        seen[position] = boxes[kept], scores[kept], labels[kept]
    table = flatten_detections(records, seen, classes, max(1, *(len(answer[1]) for answer in found.values())))
    outcome, _ = coco_match(records, table, IOU_RIGHT)
    counted, right = int((outcome != IGNORED).sum()), int((outcome == RIGHT).sum())
    objects = sum(int((~record.ignore).sum()) for record in records)
    twice = find_duplicates(table, np.ones(len(outcome), bool))
    return Quality(
        threshold=threshold,
        detections=len(outcome),
        duplicate_rate=float(twice.mean()) if len(twice) else None,
        precision=right / counted if counted else None,
        recall=right / objects if objects else None,
    )


def _detected(scores: np.ndarray, threshold: float) -> np.ndarray:
    return (scores >= threshold) & (scores > 0)


def gini(wins: np.ndarray) -> float | None:
    """Inequality of counts [Q]: 0 where all are alike, (Q - 1) / Q where one has everything; None where there is nothing to share."""
    total = float(wins.sum())
    if total == 0:
        return None
    rank = np.arange(1, len(wins) + 1)
    return float(((2 * rank - len(wins) - 1) * np.sort(wins)).sum() / (len(wins) * total))


def most_used(result: Usage, count: int) -> list[int]:
    """The queries that are detections most often, then matched most often."""
    return [int(query) for query in np.lexsort((-result.matched, -result.detections))[:count]]


# -- maps -------------------------------------------------------------------------------------------------------------------------


def colours(sizes: np.ndarray) -> np.ndarray:
    """uint8 [N, 3] of widths and heights [N, 2] in [0, 1]: green where small; where large red if wide, blue if tall, purple between."""
    width, height = np.maximum(sizes, 1e-6).T
    large = np.clip(2 * np.sqrt(width * height) / _LARGE - 1, 0, 1)[:, None]
    wide = np.clip(0.5 + np.log2(width / height) / 2, 0, 1)[:, None]  # 0.5: a square; 1: twice as wide as high
    return np.round((1 - large) * _GREEN + large * (wide * _RED + (1 - wide) * _BLUE)).astype(np.uint8)


def position_map(boxes: np.ndarray, side: int = _SIDE) -> Image.Image:
    """RGBA picture of the unit square with a dot at the centre of every box [N, 4] (cxcywh); small boxes on top. Centres outside are left
    out."""
    fine = 3  # drawn larger and reduced: smooth dots
    picture = Image.new("RGBA", (side * fine, side * fine))
    pen, radius = ImageDraw.Draw(picture), fine * float(np.clip(30 / max(len(boxes), 1) ** 0.5, 1.1, 3.0))
    order = np.argsort(-boxes[:, 2:].prod(1), kind="stable")
    for (x, y), ink in zip(boxes[order, :2] * side * fine, colours(boxes[order, 2:]).tolist(), strict=True):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*ink, 255))
    return picture.resize((side, side), Image.Resampling.BOX)


def figure(result: Usage) -> Image.Image:
    """The maps of the most used queries on white, five in a row, in the order of the page."""
    chosen, gap = most_used(result, MAPS), 12
    rows, columns = -(-len(chosen) // 5), min(5, len(chosen))
    sheet = Image.new("RGB", (columns * (_SIDE + gap) + gap, rows * (_SIDE + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, query in enumerate(chosen):
        x, y = gap + place % 5 * (_SIDE + gap), gap + place // 5 * (_SIDE + gap)
        drawn = position_map(result.boxes[:, query])
        sheet.paste(drawn, (x, y), drawn)
        pen.rectangle((x - 1, y - 1, x + _SIDE, y + _SIDE), outline=(170, 170, 170))
    return sheet


# -- page -------------------------------------------------------------------------------------------------------------------------

_COLUMNS = ("detections", "matched", "centre x", "centre y", "width", "height")


def _query_cells(result: Usage, query: int) -> list[str]:
    places = [f"{mean:.2f} ± {std:.2f}" for mean, std in zip(result.mean[query], result.spread[query], strict=True)]
    return [f"{result.detections[query]:,}", f"{result.matched[query]:,}", *places]


def _share(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.1f} %"


_QUALITY = ("self-attention", "threshold", "detections", "duplicates", "precision", "recall")


def _exchange_rows(result: Usage) -> list[list[str]]:
    rows = {"as it is": result.exchange, "switched off": result.no_exchange, "off, as many": result.no_exchange_as_many}
    return [
        [name, f"{q.threshold:.2f}", f"{q.detections:,}", _share(q.duplicate_rate), _share(q.precision), _share(q.recall)]
        for name, q in rows.items()
    ]


def _note(result: Usage) -> str:
    if not result.ranked:
        return ""
    return (
        "This model is two-stage: it makes its queries anew for every image from the best proposals, so none is the same in two images. "
        "All numbers and maps are by the rank of the proposal, 0 being the best."
    )


def _inequality(result: Usage) -> str:
    values = [DASH if value is None else f"{value:.2f}" for value in (gini(result.detections), gini(result.matched))]
    many = f"{len(result.dead)} of {result.scores.shape[1]} {'ranks' if result.ranked else 'queries'}"
    return f"{many} are never a detection. Gini of detections {values[0]}, of matches {values[1]} (0: all alike, near 1: few have all)."


_OFF = (
    "Duplicates: detections that overlap a better one of their class with IoU > 0.7. Switched off: every query sees itself alone. "
    "As many: at the threshold that gives as many detections as the model has as it is; the fair comparison, for the switch moves scores."
)
_NUMBERS = (
    "In how many images a detection, and matched to an object as in training; mean ± standard deviation of all boxes, in image sides."
)


def _page(result: Usage) -> str:
    chosen = most_used(result, MAPS)
    lead = (
        f"<b>{result.exchange.detections:,}</b> detections in {len(result.boxes):,} images at a score threshold of {result.threshold:.2f}. "
        f"{_inequality(result)}"
    )
    maps = [
        tables.card(position_map(result.boxes[:, query]), f"{result.word} {query}", f"{result.detections[query]:,} detections")
        for query in chosen
    ]
    where = (
        f"The {len(chosen)} most used. Every dot is the centre of the box in one image, at any score, in the unit square. "
        "Green: small boxes; red: large and wide; blue: large and tall; purple: large, about square."
    )
    rows = [[str(query), *_query_cells(result, query)] for query in most_used(result, len(result.matched))]
    body = [
        tables.headline(
            "How the queries are used", f"{result.model} · {result.data} · {split_title(result.split)} split", lead, result.skipped
        ),
        f'<p class="note">{_note(result)}</p>' if result.ranked else "",
        tables.section("maps", "Where boxes fall", where, tables.cards(maps, maps=True)),
        tables.section("exchange", "Self-attention and duplicates", _OFF, tables.table(_QUALITY, _exchange_rows(result))),
        tables.section("queries", f"By {result.word}", _NUMBERS, tables.table((result.word, *_COLUMNS), rows)),
    ]
    return tables.page(f"Queries of {result.model}", [part for part in body if part])
