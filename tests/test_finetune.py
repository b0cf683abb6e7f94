"""benchmarks/finetune.py: the model of the scenes is trained once, then every start with every number of images."""

import importlib
import json
from pathlib import Path

import pytest

from .data.writers import Picture, Thing, write_voc

ROOT = Path(__file__).parents[1]


@pytest.fixture
def finetune(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("finetune")
    monkeypatch.setattr(module, "SETS", {"one": (2, 4)})
    return module


@pytest.fixture
def data(tmp_path):
    splits = ["train"] * 5 + ["val"] * 2
    return write_voc(tmp_path / "data", [Picture(f"{split}{i}", split, [Thing("cat", [4, 5, 20, 19])]) for i, split in enumerate(splits)])


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that a fake trainer was given."""
    trained = []

    def run(train, cell, out):
        trained.append(str(cell))
        out.mkdir(parents=True)
        (out / "report.html").touch()
        ap = 0.1 if str(cell) == "scenes" else cell.images / 10 + (cell.start == "scenes") / 100
        (out / "metrics.csv").write_text(f"epoch,step,images,cpu_seconds,AP,AP50\n1,3,12,8.2,.9,.9\n2,6,24,19.3,{ap},{ap}\n")

    monkeypatch.setattr("cells.run_apart", run)
    return trained


def test_cells_are_measured_once_after_the_model_that_they_start_from(finetune, data, trained, tmp_path):
    results, todo = tmp_path / "results.json", [finetune.Cell("one", 2, start, 0) for start in ("random", "scenes")]
    for _ in range(2):
        finetune.measure(todo, {"one": str(data)}, tmp_path / "runs", results, 60)
    assert trained == ["scenes", "one-2-random-0", "one-2-scenes-0"]
    known = json.loads(results.read_text())
    assert known["cells"][0]["curve"] == [[8.2, 0.9], [19.3, 0.2]]
    text = finetune.table(known)
    assert "| one | 2 | 0.200 | 0.210 | not measured | 1.000 |" in text, "the last epoch's, not the best"
    assert "| one | 4 | not measured | not measured | not measured | not measured |" in text
    assert "trained on scenes for 60 CPU s" in text
    finetune.draw(tmp_path / "figure.svg", known)
    assert "from scenes" in (tmp_path / "figure.svg").read_text()


def test_the_command_line_chooses_sets_images_starts_and_seeds(finetune, data, trained, tmp_path, monkeypatch, capsys):
    out = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr(
        "sys.argv", ["finetune.py", f"one={data}", "--images", "4", "--starts", "random", "frozen", "--seeds", "1", "2", *out]
    )
    finetune.main()
    assert trained == ["scenes", "one-4-random-1", "one-4-frozen-1", "one-4-random-2", "one-4-frozen-2"]
    assert "| one | 4 | 0.400 (0.400 to 0.400) |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["finetune.py", f"two={data}", *out])
    with pytest.raises(SystemExit) as ended:
        finetune.main()
    assert ended.value.code == 2
    assert "two: write NAME=PATH, for one" in capsys.readouterr().err


def test_the_page_shows_the_results_that_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("finetune")
    known = json.loads(module.RESULTS.read_text()) if module.RESULTS.exists() else {"sets": {}, "cells": []}
    assert module.table(known) in module.PAGE.read_text(), "python benchmarks/finetune.py --show"
