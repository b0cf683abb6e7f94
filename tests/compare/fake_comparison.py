"""A comparison with seeded numbers, as its folders would hold it; nothing was trained. For tests of reading, report and page."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from boxquery.compare.plan import ComparisonPlan, Entry, PlannedRun
from boxquery.compare.results import FOLDER, MEASURED, NMS, run_folder, write_ending
from boxquery.files import write_json
from boxquery.report.run_files import write_evaluation
from boxquery.training.config import RunConfig
from boxquery.training.run_length import RunLength

#: label -> how good it gets
QUALITY = {"deformable-detr": 0.55, "dab-detr": 0.4, "dab-twin": 0.395, "<b>detr": 0.1}
IMAGES, EPOCHS = 120, 8


def make_plan(**changes) -> ComparisonPlan:
    entries = tuple(Entry(label, "detr", "tiny", {"num_queries": 9 + i}, 1e-3) for i, label in enumerate(QUALITY))
    common = {"image_size": 64, "batch_size": 4, "pretrained": False, "freeze_backbone": False, "device": "cpu", "precision": "float32"}
    known = {"epochs": EPOCHS, "minutes": None, "images_seen": None, **common, "strict": False}
    return ComparisonPlan(**{"data": "datasets/shapes & more", "entries": entries, "seeds": (0, 1), **known, **changes})


def write_config(plan: ComparisonPlan, planned: PlannedRun, run: Path, **changes) -> RunConfig:
    entry = planned.entry
    common = {name: getattr(plan, name) for name in ("data", "image_size", "batch_size", "pretrained", "precision", "strict")}
    length = RunLength(epochs=EPOCHS).with_data(25, 4)
    config = RunConfig(**{**entry.settings(), **common, "length": length, "seed": planned.seed, **changes})
    config.write(run)
    return config


def write_finished(plan: ComparisonPlan, folder: Path, planned: PlannedRun, *, val: str = "same", reading: bool = True) -> Path:
    """A run that is trained and measured."""
    run, quality = run_folder(folder, planned), QUALITY[planned.entry.label]
    rng = np.random.default_rng([planned.seed, len(planned.entry.label)])
    write_config(plan, planned, run)
    final = write_curve(run, quality + 0.004 * planned.seed, rng, reading)
    (run / "model").mkdir()
    (run / "report.html").write_text("a report")
    scores = {"AP50": min(1, 1.5 * final), "AP75": 1.1 * final, "APs": None, "APm": 0.8 * final, "APl": 1.2 * final}
    write_evaluation(run, "val", {"AP": final, **scores, "duplicate_rate": 0.12, "best_threshold": 0.3, "images": IMAGES, "objects": 400})
    # images move all models alike: on the same draws a small difference can be seen that two intervals would hide
    shift = np.random.default_rng(0).normal(0, 0.02, 1000)
    pictures = []
    for number in (1, 2):
        files = {side: f"{side}-{number}.jpg" for side in ("truth", "prediction")}
        (run / FOLDER).mkdir(exist_ok=True)
        for file in files.values():
            Image.fromarray(rng.integers(90, 200, (60, 90, 3), dtype=np.uint8)).resize((400, 267)).save(run / FOLDER / file)
        pictures.append({"title": f"street <{number}>.jpg", "width": 400, "height": 267, "threshold": 0.3, **files})
    after = {f"{t:g}": {"AP": final + 0.02, "AP50": min(1, 1.6 * final), "duplicate_rate": 0.0} for t in NMS}
    measured = {"val": val, "images_measured": IMAGES, "parameters": 2_400_000, "gflops": 0.3, "image": "64 x 64", "milliseconds": 21.5}
    drawn = {key: (final + shift + rng.normal(0, 0.003, 1000)).round(5).tolist() for key in ("AP", "AP50")}
    rest = {"threads": 1, "load": 3.1, "cores": 2, "nms": after, "resampled": drawn, "pictures": pictures}
    write_json(run / FOLDER / MEASURED, measured | rest)
    write_ending(folder, planned, memory=900 * 2**20)
    return run


def write_curve(run: Path, quality: float, rng: np.random.Generator, reading: bool) -> float:
    with (run / "metrics.csv").open("w", newline="") as file:
        columns = [
            "epoch",
            "step",
            "images",
            "seconds",
            "cpu_seconds",
            "AP",
            "AP50",
            "inside_1",
            "inside_2",
            "inside_even",
            "query_changes",
        ]
        table = csv.writer(file)
        table.writerow(columns if reading else columns[:7])
        for epoch in range(1, EPOCHS + 1):
            ap = quality * (1 - np.exp(-epoch / 2)) / (1 - np.exp(-EPOCHS / 2))
            seconds = epoch * (10 + rng.random())
            row = [epoch, 25 * epoch, 100 * epoch, seconds * 2, seconds, ap, min(1, 1.5 * ap), 0.2, 0.2 + ap / 2, 0.1, 0.3]
            table.writerow(row if reading else row[:7])
    return quality


def make_comparison(folder: Path) -> Path:
    """Seven of eight runs are there, the last has failed."""
    plan = make_plan()
    plan.write(folder)
    *others, last = plan.runs()
    for planned in others:
        write_finished(plan, folder, planned, reading=planned.entry.label != "dab-twin")
    write_ending(folder, last, reason="epoch 3: loss <nan> & more")
    return folder
