"""What runs in tests are made of: a model that learns nothing much, quickly, a few scenes, and what two runs are compared by."""

import csv
from pathlib import Path
from typing import Any

from boxquery.data.dataset import Data
from boxquery.data.shapes import shapes_data

SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""},
    "hidden_dim": 32,
    "heads": 4,
    "ffn_dim": 32,
    "num_queries": 12,
}


class Stop(Exception):
    """Somebody pulled the plug."""


def scenes(train: int = 12, val: int = 6) -> Data:
    return shapes_data(train=train, val=val, test=4, size=64)


def settings(model: str, options: dict[str, Any] = SMALL) -> dict[str, Any]:
    return {
        "model": model, "preset": "tiny", "options": options, "image_size": 64, "batch_size": 4, "device": "cpu", "precision": "float32",
    }  # fmt: skip


def rows(folder: Path) -> list[dict]:
    """``metrics.csv`` without the columns that are clocks."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in csv.DictReader(file)]
