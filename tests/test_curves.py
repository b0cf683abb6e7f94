"""benchmarks/curves.py: cells are measured once, images are those of train, and the page says what is missing."""

import importlib
import json
from pathlib import Path

import pytest

from boxquery.training.config import RunConfig
from boxquery.training.run_length import RunLength

from .data.writers import Picture, Thing, write_voc

ROOT = Path(__file__).parents[1]


@pytest.fixture
def curves(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("curves")
    monkeypatch.setattr(module, "SETS", {"one": (4, 8)})
    monkeypatch.setattr(module, "SECONDS", (300, 600))
    return module


@pytest.fixture
def data(tmp_path):
    """Twelve images to train on and four to evaluate on."""
    splits = ["train"] * 12 + ["val"] * 4
    return write_voc(tmp_path / "data", [Picture(f"{split}{i}", split, [Thing("cat", [4, 5, 20, 19])]) for i, split in enumerate(splits)])


@pytest.fixture
def trained(monkeypatch):
    """The cells that a fake trainer was given; it writes a run's configuration and table."""
    cells = []

    def run(train, cell, out):
        cells.append(cell)
        out.mkdir(parents=True, exist_ok=True)
        RunConfig(data="", model="fcos", preset="small", image_size=320, batch_size=4, lr=1e-3, precision="float32", pretrained=False,
                  length=RunLength(epochs=1).with_data(cell.images, 4)).write(out)  # fmt: skip
        ap = cell.images * cell.seconds / 10_000 + cell.seed / 100
        (out / "metrics.csv").write_text(f"epoch,step,images,cpu_seconds,AP,AP50\n1,30,120,8.2,,\n2,60,240,19.3,{ap},{2 * ap}\n")

    monkeypatch.setattr("cells.run_apart", run)
    return cells


def test_cells_are_measured_once_and_the_rest_is_not_measured(curves, data, trained, tmp_path):
    results, paths = tmp_path / "curves.json", {"one": str(data)}
    first = [curves.Cell("one", 4, 300, 0), curves.Cell("one", 4, 600, 0)]
    for _ in range(2):
        curves.measure(first, paths, tmp_path / "runs", results)
    assert trained == first
    text = curves.table(curves.cells.read_results(results))
    assert "**one**: AP / AP50 on the 4 images of val (4 objects)" in text
    assert "| 4 | 0.120 / 0.240 | 0.240 / 0.480 | 1.000 / 1.000 |" in text
    assert "| 8 | not measured | not measured | not measured |" in text
    assert "Trained: fcos, preset small, at 320 pixels in batches of 4. 1 seed per cell" in text
    curves.measure([*first, curves.Cell("one", 4, 300, 1)], paths, tmp_path / "runs", results)
    assert len(trained) == 3
    assert "| 4 | 0.125 / 0.250 (0.120 to 0.130) |" in curves.table(curves.cells.read_results(results))


def test_fewer_images_are_among_more_and_val_is_whole(curves, data):
    few, more = curves.subset(str(data), 4), curves.subset(str(data), 8)
    ids = [{record.id for record in part.splits["train"]} for part in (few, more)]
    assert (len(ids[0]), len(ids[1])) == (4, 8)
    assert ids[0] < ids[1]
    assert all(str(id_).startswith("train") for id_ in ids[1])
    assert len(few.splits["val"]) == 4


def test_the_figure_and_the_page_are_written(curves, data, trained, tmp_path, monkeypatch):
    page, results = tmp_path / "learning-curves.md", tmp_path / "curves.json"
    page.write_text("Why?\n\n<!-- measured -->\nold\n<!-- end of what was measured -->\n")
    monkeypatch.setattr(curves, "PAGE", page)
    monkeypatch.setattr(curves, "FIGURE", tmp_path / "learning-curves.svg")
    curves.show(results, keep=True)
    assert "svg" not in page.read_text()
    curves.measure([curves.Cell("one", 4, 300, 0)], {"one": str(data)}, tmp_path / "runs", results)
    curves.show(results, keep=True)
    assert page.read_text().startswith("Why?\n\n<!-- measured -->\n\n![")
    assert "old" not in page.read_text()
    assert "4 images" in (tmp_path / "learning-curves.svg").read_text()


def test_the_page_shows_the_results_that_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    curves = importlib.import_module("curves")
    known = json.loads(curves.RESULTS.read_text()) if curves.RESULTS.exists() else {"sets": {}, "cells": []}
    text = curves.PAGE.read_text()
    assert curves.table(known) in text, "python benchmarks/curves.py --show"
    assert (f"({curves.FIGURE.name})" in text) == curves.FIGURE.is_file() == bool(known["cells"])
