"""How queries are used over a data set: how often each wins, where its boxes are, and how self-attention affects duplicates."""

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
from boxquery.evaluation.predictions import drop_unreadable
from boxquery.explain.inference import open_split, pixel_boxes, run_model, split_batches, without_self_attention
from boxquery.files import atomic_write
from boxquery.models.base import DetectionTransformer
from boxquery.pages.format import DASH, percent
from boxquery.pages.html import render
from boxquery.parts.output import Output

#: queries whose maps are shown, as in the DETR paper
MAPS = 20
_SIDE = 220  # of a map in pixels
_LARGE = 0.25  # square root of a box's share of the image: large from here, small below half of it
_GREEN, _RED, _BLUE = np.array([0, 158, 80]), np.array([214, 48, 32]), np.array([0, 92, 214])
_QUALITY = ("self-attention", "threshold", "detections", "duplicates", "precision", "recall")
_COLUMNS = ("detections", "matched", "centre x", "centre y", "width", "height")


@dataclass(frozen=True, slots=True)
class Quality:
    """The detections of all queries: those whose best class reaches ``threshold``.

    Attributes:
        detections: number of detections.
        duplicate_rate: the share of them that overlap a better one of the same class and image with IoU > 0.7; None without detections.
        precision: the share of those outside ignored regions that found an object at IoU 0.5; None without any.
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
        model, data, split, threshold: what was evaluated, and the minimum score of a detection.
        two_stage: queries are made from each image's proposals; query q is then the proposal with the q-th best score.
        objects: number of objects, without ignored ones.
        boxes: float32 [N, Q, 4] cxcywh in [0, 1], the last layer's boxes at any score.
        scores: float32 [N, Q], of each query's best class.
        matched: int64 [Q], number of images in which the query is matched to an object as in training.
        with_self_attention: the model's detections.
        without_self_attention: those of the same model if every query attends to itself alone.
        equal_count: the same at the threshold that gives as many detections as with self-attention. This is the fair comparison, since
            scores change without self-attention, and fewer detections have fewer duplicates.
        skipped: a line per image whose pixels could not be read; these are in no count.
    """

    model: str
    data: str
    split: str
    threshold: float
    two_stage: bool
    objects: int
    boxes: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    matched: np.ndarray = field(repr=False)
    with_self_attention: Quality
    without_self_attention: Quality
    equal_count: Quality
    skipped: list[str] = field(default_factory=list)

    @cached_property
    def detections(self) -> np.ndarray:
        """int64 [Q]: number of images in which the query is a detection."""
        return _detected(self.scores, self.threshold).sum(0)

    @cached_property
    def dead(self) -> list[int]:
        """The queries that are a detection in no image."""
        return np.flatnonzero(self.detections == 0).tolist()

    @cached_property
    def mean(self) -> np.ndarray:
        """float64 [Q, 4]: the mean box, cxcywh in [0, 1]."""
        return self.boxes.mean(0, dtype=np.float64)

    @cached_property
    def spread(self) -> np.ndarray:
        """float64 [Q, 4]: the standard deviation of the boxes' centres and sizes."""
        return self.boxes.std(0, dtype=np.float64)

    def summary(self) -> dict[str, Any]:
        """Everything but the boxes, as plain values; an undefined number is None."""
        keys = ("x", "y", "width", "height")
        columns = (each.tolist() for each in (self.detections, self.matched, self.mean, self.spread))
        queries = [
            {"detections": d, "matched": m, "mean": dict(zip(keys, mean, strict=True)), "spread": dict(zip(keys, spread, strict=True))}
            for d, m, mean, spread in zip(*columns, strict=True)
        ]
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "threshold": self.threshold,
            "images": len(self.boxes),
            "objects": self.objects,
            "by": self.unit,
            "gini_detections": gini(self.detections),
            "gini_matched": gini(self.matched),
            "dead": self.dead,
            "self_attention": asdict(self.with_self_attention),
            "no_self_attention": asdict(self.without_self_attention),
            "no_self_attention_as_many": asdict(self.equal_count),
            "queries": queries,
            "skipped": self.skipped,
        }

    @property
    def unit(self) -> str:
        """What is counted: "query", or "rank" for a two-stage model."""
        return "rank" if self.two_stage else "query"

    @property
    def note(self) -> str:
        """What a reader has to know about a two-stage model."""
        note = "This two-stage model makes its queries from each image's proposals; all numbers are by rank of the proposal, 0 is the best."
        return note if self.two_stage else ""

    @property
    def inequality(self) -> str:
        values = [DASH if value is None else f"{value:.2f}" for value in (gini(self.detections), gini(self.matched))]
        never = f"{len(self.dead)} of {self.scores.shape[1]} {'ranks' if self.two_stage else 'queries'}"
        return f"{never} are never a detection. Gini coefficient of detections {values[0]}, of matches {values[1]} (0: all equal)."

    def show(self) -> None:
        """Print the numbers, and the most used queries."""
        console = Console(soft_wrap=True, highlight=False)
        table = Table(title=escape(f"{self.model} on {self.split} of {self.data}, threshold {self.threshold:.2f}"), title_justify="left")
        for column in _QUALITY:
            table.add_column(column, justify="left" if column == _QUALITY[0] else "right")
        for row in self._quality_rows():
            table.add_row(*row)
        console.print(table)
        table = Table(caption="mean ± standard deviation, relative to the image", caption_justify="left")
        for column in (self.unit, *_COLUMNS):
            table.add_column(column, justify="right", overflow="fold")
        for row in self._query_rows(10):
            table.add_row(*(cell.replace(" ", "") for cell in row))
        console.print(table)
        console.print(f"{self.note} {self.inequality}".strip(), markup=False)

    def _quality_rows(self) -> list[list[str]]:
        rows = {"on": self.with_self_attention, "off": self.without_self_attention, "off, equal count": self.equal_count}
        return [
            [name, f"{q.threshold:.2f}", f"{q.detections:,}", percent(q.duplicate_rate), percent(q.precision), percent(q.recall)]
            for name, q in rows.items()
        ]

    def _query_rows(self, count: int) -> list[list[str]]:
        rows = []
        for query in most_used(self, count):
            places = [f"{mean:.2f} ± {std:.2f}" for mean, std in zip(self.mean[query], self.spread[query], strict=True)]
            rows.append([str(query), f"{self.detections[query]:,}", f"{self.matched[query]:,}", *places])
        return rows

    def write(self, folder: str | Path) -> Path:
        """Write ``usage.html``, and its maps as one picture, ``usage.png``. Returns the path of the page."""
        folder, stream = Path(folder), io.BytesIO()
        figure(self).save(stream, "PNG", optimize=True)
        atomic_write(folder / "usage.png", stream.getvalue())
        maps = [
            (position_map(self.boxes[:, query]), f"{self.unit} {query}", f"{self.detections[query]:,} detections")
            for query in most_used(self, MAPS)
        ]
        page = render(
            "usage.html",
            styles=("style.css", "dataset.css"),
            result=self,
            maps=maps,
            quality=(_QUALITY, self._quality_rows()),
            queries=([self.unit, *_COLUMNS], self._query_rows(len(self.matched))),
        )
        return atomic_write(folder / "usage.html", page)


def usage(
    detector: Detector, data: str | Path | Data, split: str = "val", *, threshold: float | None = None, strict: bool = False
) -> Usage:
    """How often each query wins, where its boxes are, and how self-attention affects duplicates. Takes two forward passes per image.

    A query is a *detection* in an image if the score of its best class reaches the threshold, as in ``Detector.predict``. The maps are
    those of the DETR paper (figure 7): all boxes of a query, at any score.

    Args:
        data: a path, the word ``shapes`` or an opened data set; classes are matched by name.
        threshold: 0..1; default: the detector's own.
        strict: fail at an image whose pixels cannot be read instead of skipping it.

    Raises ``UserError`` if the data lacks the split or has a class that the detector does not know, or if more than a tenth of the images
    cannot be read.
    """
    least = detector.min_score(threshold)
    source, records = open_split(detector, data, split, strict)
    model, alone, classes = detector.transformer, without_self_attention(detector.transformer), len(detector.classes)
    images: dict[int, tuple[np.ndarray, np.ndarray, ImageDetections, ImageDetections]] = {}
    skipped: list[str] = []
    two_stage = False
    for batch in split_batches(detector, records, strict, skipped):
        out, other = (run_model(detector, batch.images, batch.mask, model=each, last_only=True) for each in (model, alone))
        two_stage = out.proposals is not None
        matched = [queries.cpu().numpy() for queries, _ in model.match(out, batch.targets)[-1]]
        columns = out.boxes[-1].float().cpu().numpy(), matched, *(_best_classes(model, each, batch, records) for each in (out, other))
        images |= dict(zip(batch.indices, zip(*columns, strict=True), strict=True))
    records, images = drop_unreadable(records, dict(sorted(images.items())))
    boxes, matched, *detections = zip(*images.values(), strict=True)
    found, others = (dict(enumerate(each)) for each in detections)
    scores, other_scores = (np.stack([scores for _, scores, _ in each]) for each in detections)
    return Usage(
        model=detector.model.config["name"],
        data=source,
        split=split,
        threshold=least,
        two_stage=two_stage,
        objects=sum(int((~record.ignore).sum()) for record in records),
        boxes=np.stack(boxes),
        scores=scores,
        matched=np.bincount(np.concatenate(matched), minlength=scores.shape[1]),
        with_self_attention=quality(records, found, classes, least),
        without_self_attention=quality(records, others, classes, least),
        equal_count=quality(records, others, classes, _equal_threshold(scores, other_scores, least)),
        skipped=skipped,
    )


def _best_classes(model: DetectionTransformer, out: Output, batch: Batch, records: Split) -> list[ImageDetections]:
    """Per image every query's last box with the score and index of its best class."""
    best = model.scores(out.logits[-1]).max(-1)
    boxes = [pixel_boxes(out, image, records[index])[-1] for image, index in enumerate(batch.indices)]
    return list(zip(boxes, best.values.float().cpu().numpy(), best.indices.cpu().numpy(), strict=True))


def _equal_threshold(scores: np.ndarray, others: np.ndarray, threshold: float) -> float:
    """The threshold that gives ``others`` as many detections as ``scores`` have; the same threshold if those have none."""
    count = int(_detected(scores, threshold).sum())
    return float(np.sort(others, axis=None)[-count]) if count else threshold


def quality(records: Split, found: dict[int, ImageDetections], classes: int, threshold: float) -> Quality:
    """``Quality`` of detections at a threshold; duplicates, precision and recall are those of ``evaluate``."""
    kept: dict[int, ImageDetections] = {}
    for position, (boxes, scores, labels) in found.items():
        detected = _detected(scores, threshold)
        kept[position] = boxes[detected], scores[detected], labels[detected]
    table = flatten_detections(records, kept, classes, max(1, *(len(scores) for _, scores, _ in found.values())))
    outcome, _ = coco_match(records, table, IOU_RIGHT)
    counted, right = int((outcome != IGNORED).sum()), int((outcome == RIGHT).sum())
    objects = sum(int((~record.ignore).sum()) for record in records)
    duplicate = find_duplicates(table, np.ones(len(outcome), bool))
    return Quality(
        threshold=threshold,
        detections=len(outcome),
        duplicate_rate=float(duplicate.mean()) if len(duplicate) else None,
        precision=right / counted if counted else None,
        recall=right / objects if objects else None,
    )


def _detected(scores: np.ndarray, threshold: float) -> np.ndarray:
    return (scores >= threshold) & (scores > 0)


def gini(wins: np.ndarray) -> float | None:
    """Gini coefficient of counts [Q]: 0 if all are equal, (Q - 1) / Q if one has everything; None if all are 0."""
    total = float(wins.sum())
    if total == 0:
        return None
    rank = np.arange(1, len(wins) + 1)
    return float(((2 * rank - len(wins) - 1) * np.sort(wins)).sum() / (len(wins) * total))


def most_used(result: Usage, count: int) -> list[int]:
    """The queries that are detections most often; on ties those matched most often."""
    return np.lexsort((-result.matched, -result.detections))[:count].tolist()


# -- maps -------------------------------------------------------------------------------------------------------------------------


def colours(sizes: np.ndarray) -> np.ndarray:
    """Colours uint8 [N, 3] of widths and heights [N, 2] in [0, 1]: small boxes green, large ones red if wide, blue if tall, else purple."""
    width, height = np.maximum(sizes, 1e-6).T
    large = np.clip(2 * np.sqrt(width * height) / _LARGE - 1, 0, 1)[:, None]
    wide = np.clip(0.5 + np.log2(width / height) / 2, 0, 1)[:, None]  # 0.5: a square; 1: twice as wide as high
    return np.round((1 - large) * _GREEN + large * (wide * _RED + (1 - wide) * _BLUE)).astype(np.uint8)


def position_map(boxes: np.ndarray, side: int = _SIDE) -> Image.Image:
    """RGBA picture of the unit square with a dot at the centre of every box [N, 4] (cxcywh), small boxes on top."""
    fine = 3  # drawn larger and reduced, for smooth dots
    picture = Image.new("RGBA", (side * fine, side * fine))
    pen, radius = ImageDraw.Draw(picture), fine * float(np.clip(30 / max(len(boxes), 1) ** 0.5, 1.1, 3.0))
    order = np.argsort(-boxes[:, 2:].prod(1), kind="stable")
    for (x, y), ink in zip(boxes[order, :2] * side * fine, colours(boxes[order, 2:]).tolist(), strict=True):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*ink, 255))
    return picture.resize((side, side), Image.Resampling.BOX)


def figure(result: Usage) -> Image.Image:
    """The maps of the most used queries on white, five per row, in the order of the page."""
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
