"""A model that finds its boxes in the pixels, and scenes for it: every query predicts the box of its own colour."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from boxquery.data.dataset import Data, Record, Split
from boxquery.data.preprocessing import MEAN, STD, Preprocessing
from boxquery.detector import Detector
from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.parts.output import Output

NAMES = ["disc", "square", "star"]
SIDE = 64
Box = tuple[float, float, float, float]


def shade(query: int) -> tuple[int, int, int]:
    return (40 + 20 * query, 10, 250 - 20 * query)


class Reader(nn.Module):
    """Query q finds the pixels of ``shade(q)``, with the class and score planted for it; without them it waits in a corner at 0.01."""

    has_queries = True

    def __init__(self, classes: Sequence[int], scores: Sequence[float]):
        super().__init__()
        self.config = {"name": "reader", "classes": len(NAMES)}
        self.criterion = SetCriterion(Focal())
        self.unused = nn.Parameter(torch.zeros(()))
        self.classes, self.certain = list(classes), list(scores)

    def scores(self, logits: Tensor) -> Tensor:
        return self.criterion.classification.scores(logits)

    def forward(self, images: Tensor, mask: Tensor | None = None, *, last_only: bool = False, trace: bool = False) -> Output:
        pixels = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        pixels = (pixels * 255).round()
        logits = torch.full((1, len(images), len(self.classes), len(NAMES)), -7.0)
        boxes = torch.full((1, len(images), len(self.classes), 4), 0.01)
        for i, image in enumerate(pixels):
            for query, (label, score) in enumerate(zip(self.classes, self.certain, strict=True)):
                y, x = torch.where((image == torch.tensor(shade(query))[:, None, None]).all(0))
                logits[0, i, query, label] = torch.logit(torch.tensor(score if len(x) else 0.01))
                if len(x):
                    low, high = torch.stack((x.min(), y.min())), torch.stack((x.max(), y.max())) + 1
                    boxes[0, i, query] = torch.cat(((low + high) / 2, (high - low).float())) / SIDE
        return Output(logits, boxes)


def reader(classes: Sequence[int], scores: Sequence[float]) -> Detector:
    return Detector(Reader(classes, scores), NAMES, [1, 2, 3], Preprocessing(SIDE))  # pyright: ignore[reportArgumentType]


def record(name: str, boxes: Sequence[Box], labels: Sequence[int], ignore: Sequence[bool] | None = None) -> Record:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    hidden = np.zeros(len(table), bool) if ignore is None else np.array(ignore)
    return Record(name, None, SIDE, SIDE, table, np.array(labels, np.int64), hidden, (table[:, 2:] - table[:, :2]).prod(1))


def scenes(records: Sequence[Record], *, erased: Sequence[tuple[str, int]] = ()) -> Data:
    """Object n of a record is painted in the colour of query n; (id, object) pairs in ``erased`` are painted over with ground."""

    def paint(scene: Record) -> Image.Image:
        image = Image.new("RGB", (SIDE, SIDE))
        pen = ImageDraw.Draw(image)
        for number, (x1, y1, x2, y2) in enumerate(scene.boxes.astype(int).tolist()):
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=(0, 0, 0) if (scene.id, number) in erased else shade(number))
        return image

    return Data("planted", "shapes", NAMES, [1, 2, 3], {"val": Split("val", list(records), paint)})
