"""benchmarks/pretraining.py: every start learns without labels first, once, and the page says what was measured."""

import importlib
import json
from pathlib import Path

import pytest

from .data.writers import Picture, Thing, write_voc

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pretraining(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("pretraining")
    monkeypatch.setattr(module, "SETS", {"one": (2, 4)})
    return module


def test_cells_are_measured_once_after_what_they_start_from(pretraining, monkeypatch, tmp_path):
    splits = ["train"] * 5 + ["val"] * 2
    data = write_voc(tmp_path / "data", [Picture(f"{split}{i}", split, [Thing("cat", [4, 5, 20, 19])]) for i, split in enumerate(splits)])
    ran = []

    def run(train, cell, out):
        ran.append(str(cell))
        (out / "model").mkdir(parents=True)
        (out / "evaluation.json").write_text(json.dumps({"val": {"AP": 0.1, "iou": 0.25}}))
        ap = 0.3 if str(cell).startswith("before") else cell.images / 10 + (cell.start == "patches") / 100 if "one" in str(cell) else 0.9
        (out / "metrics.csv").write_text(f"epoch,step,images,cpu_seconds,AP,AP50\n1,3,12,8.2,.9,.9\n2,6,24,19.3,{ap},{ap}\n")

    monkeypatch.setattr("cells.run_apart", run)
    results = tmp_path / "results.json"
    todo = [pretraining.Cell("one", images, start, 0) for images in (2, 4) for start in ("none", "patches", "scenes-frozen", "teacher")]
    for _ in range(2):
        pretraining.measure(todo[:-1], {"one": str(data)}, tmp_path / "runs", results, 60, 30)
    assert ran == [
        "one-2-none-0", "before-one-patches", "one-2-patches-0", "scenes", "before-one-scenes-frozen", "one-2-scenes-frozen-0",
        "before-one-teacher-2-0", "one-2-teacher-0", "one-4-none-0", "one-4-patches-0", "one-4-scenes-frozen-0",
    ]  # fmt: skip
    text = pretraining.table(json.loads(results.read_text()))
    assert "| random weights | 0.200 | 0.400 |" in text
    assert "| patches, backbone trained | 0.210 | 0.410 |" in text, "the last epoch's, not the best"
    assert "| patches, backbone trained | +0.010 | +0.010 |" in text, "beside random weights of the same seed"
    assert "| a teacher's detections | 0.200 | not measured |" in text
    assert "| from scenes, then patches, backbone trained | not measured | not measured |" in text
    assert f"after {pretraining.SECONDS} CPU s with labels" in text
    assert f"60 CPU s without ({pretraining.SECONDS + 60} CPU s" in text
    assert "a mean IoU of 0.250 (patches, backbone trained)" in text


def test_a_teacher_looks_at_the_training_images_alone(pretraining, tmp_path):
    splits = ["train"] * 3 + ["val"] * 2
    data = write_voc(tmp_path / "data", [Picture(f"{split}{i}", split, [Thing("cat", [4, 5, 20, 19])]) for i, split in enumerate(splits)])
    for _ in range(2):
        folder = pretraining.copied(pretraining.subset(str(data), 100), tmp_path / "pictures")
    assert sorted(path.stem for path in folder.iterdir()) == ["train0", "train1", "train2"]
    assert not any(path.is_symlink() for path in folder.iterdir()), "which would lead out of the folder"


def test_the_page_shows_the_results_that_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("pretraining")
    known = json.loads(module.RESULTS.read_text()) if module.RESULTS.exists() else {"sets": {}, "cells": []}
    assert module.table(known) in module.PAGE.read_text(), "python benchmarks/pretraining.py --show"
