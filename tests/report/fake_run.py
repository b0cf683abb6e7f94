"""A run folder made of seeded numbers and pictures drawn here: for tests of the report only."""

import csv
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from boxquery.data.dataset import Data, Record, Split
from boxquery.evaluation.metrics import evaluate
from boxquery.files import write_json
from boxquery.report.pictures import write_pictures
from boxquery.report.run_files import DATA, data_facts, write_evaluation

NAMES = ["disc", "square", "triangle", "<script>alert('x')</script>", "a & b"]
INKS = [(198, 92, 60), (64, 120, 170), (90, 150, 80), (200, 160, 60), (130, 90, 160)]


def scene(record: Record) -> Image.Image:
    """A soft background with one shape per object."""
    rng = np.random.default_rng(int(record.id))
    rough = Image.fromarray(rng.integers(150, 235, (5, 6, 3), dtype=np.uint8))
    image = rough.resize((record.width, record.height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
        ink = INKS[label]
        if label in (0, 3):
            pen.ellipse((x1, y1, x2, y2), fill=ink)
        elif label == 2:
            pen.polygon([((x1 + x2) / 2, y1), (x2, y2), (x1, y2)], fill=ink)
        else:
            pen.rectangle((x1, y1, x2, y2), fill=ink)
    return image


def make_split(name: str, images: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    records = []
    for number in range(images):
        width, height = (480, 640) if number % 9 == 4 else (640, 480)
        count = int(rng.integers(0, 7))
        corner = rng.uniform(0.02, 0.7, (count, 2))
        side = rng.uniform(0.05, 0.27, (count, 2))
        boxes = (np.concatenate([corner, corner + side], axis=1) * [width, height, width, height]).astype(np.float32)
        labels = np.minimum(rng.geometric(0.4, count) - 1, len(NAMES) - 1)
        ignore, areas = rng.random(count) < 0.05, (boxes[:, 2:] - boxes[:, :2]).prod(1)
        path = Path(f"street-{number:04d}.jpg") if number % 2 else None
        records.append(Record(seed * 1000 + number, path, width, height, boxes, labels, ignore, areas))
    return Split(name, records, scene)


def make_predictions(split: Split, seed: int) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Predictions of a fairly good model: boxes moved, some lost, some of another class, some twice, some from nowhere."""
    rng = np.random.default_rng(seed)
    result = {}
    for position, record in enumerate(split):
        kept = rng.random(len(record.boxes)) > 0.12
        boxes = record.boxes[kept] + rng.normal(0, 5, (int(kept.sum()), 4))
        labels = np.where(rng.random(len(boxes)) < 0.06, (record.labels[kept] + 1) % len(NAMES), record.labels[kept])
        scores = rng.beta(8, 3, len(boxes))
        twice = rng.random(len(boxes)) < 0.06
        orphans = rng.uniform(0, 400, (15, 2))
        boxes = np.concatenate([boxes, boxes[twice] + 3, np.concatenate([orphans, orphans + rng.uniform(30, 200, (15, 2))], axis=1)])
        scores = np.concatenate([scores, scores[twice] * 0.9, rng.beta(1.2, 9, 15)])
        labels = np.concatenate([labels, labels[twice], rng.integers(0, len(NAMES), 15)])
        result[position] = boxes, scores, labels
    return result


def write_metrics(run: Path, epochs: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    columns = ["epoch", "step", "images", "seconds", "lr", "loss", "class", "l1", "giou", "AP", "AP50", "AP75", "duplicate_rate"]
    with (run / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for epoch in range(1, epochs + 1):
            fall = np.exp(-epoch / 18)
            terms = [0.35 + 0.5 * fall, 0.04 + 0.11 * fall, 0.3 + 0.7 * fall] * (1 + rng.normal(0, 0.03, 3))
            quality = 0.42 * (1 - np.exp(-epoch / 16)) + rng.normal(0, 0.008)
            lr = 2e-4 if epoch < 0.8 * epochs else 2e-5
            scores = [quality, min(1, 1.65 * quality), 1.06 * quality, 0.02 + 0.3 * fall] if epoch % 2 == 0 or epochs < 5 else [""] * 4
            loss = terms @ [2, 5, 2]
            table.writerow([epoch, 75 * epoch, 1200 * epoch, 41.5 * epoch, lr, loss, *terms, *scores])


def make_run(run: Path, *, epochs: int = 50, images: int = 60) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    splits = {"train": make_split("train", 300, 1), "val": make_split("val", images, 2), "test": make_split("test", 40, 3)}
    ids = [1, 2, 3, 17, 40]
    data = Data("datasets/shapes & more", "coco", NAMES, ids, splits)
    data.notes.append("No test list was given: 10 % of the images, chosen with seed 0, are the test split.")
    data.skipped.extend(f"annotations/train.json: image {i}, box {i % 4}: width 0; left out" for i in range(7))
    data.skipped.append("train/<b>odd</b>.jpg: cannot be read; left out")
    write_json(run / DATA, data_facts(data))
    for name in ("val", "test"):
        predictions = make_predictions(splits[name], 5)
        result = evaluate(splits[name], predictions, NAMES, ids)
        write_evaluation(run, name, result)
        if name == "val":
            write_pictures(run, splits[name], predictions, NAMES, threshold=result["best_threshold"])
    write_metrics(run, epochs)
    config = {
        "model": "dab-detr", "preset": "small", "options": {"backbone": "resnet18", "num_queries": 50, "dropout": 0.0},
        "data": "datasets/shapes & more", "epochs": epochs, "batch_size": 16, "lr": 0.0002, "seed": 7, "freeze_backbone": False,
        "image_size": 480, "device": "cpu", "optimizer": {"name": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.0001}, "minutes": None,
        "command": "boxquery train 'datasets/shapes & more' --model dab-detr --preset small --epochs 50",
    }  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return run
