"""benchmarks/experiments.py: every experiment can be run, and its figure and table say what was measured."""

import importlib
import json
from pathlib import Path

import pytest

from boxquery.compare.plan import CompareFlags, Entry, resolved_plan
from boxquery.compare.results import collect

from .compare.fake_comparison import QUALITY, make_comparison

ROOT = Path(__file__).parents[1]


@pytest.fixture
def experiments(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("experiments")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    return module


def test_every_experiment_is_a_plan_that_can_be_trained(experiments):
    labels = set()
    for name, experiment in experiments.EXPERIMENTS.items():
        for data in experiment.images:
            known = [Entry(label, preset="tiny", **given) for label, given in experiment.entries(data).items()]
            flags = CompareFlags(images_seen=experiment.images[data], image_size=128, batch_size=4, pretrained=False, device="cpu")
            plan = resolved_plan("shapes", known, (0, 1), flags)
            labels |= {(name, entry.label) for entry in plan.entries}
    assert len(labels) > 25


def test_entries_that_experiments_share_are_one_run(experiments):
    """What one experiment trained the next takes over, if its settings are exactly the same."""
    for data in experiments.DATA:
        queries, layers = experiments.queries(data), experiments.layers(data)
        assert queries["40-queries"] != queries["80-queries"] == layers["80-everywhere"]
        assert experiments.convolution(data)["attention"] == experiments.end_to_end(data)["deformable-detr"]


def test_the_figure_and_the_table_say_what_was_measured(experiments, tmp_path, capsys):
    folder = make_comparison(tmp_path / "all")
    found = experiments.record(collect([folder]))
    assert str(tmp_path) not in json.dumps(found), "a record names no machine"
    (tmp_path / "results" / "end-to-end-scenes.json").write_text(json.dumps(found))
    page = tmp_path / "end-to-end.md"
    page.write_text("Why?\n\n<!-- measured -->\nold\n<!-- end of what was measured -->\n\nSo.\n")
    for _ in range(2):
        experiments.show("end-to-end")
    text = page.read_text()
    assert text.startswith("Why?")
    assert text.endswith("So.\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith(("| deformable", "| dab", "| <b>"))]
    assert [row.split(" | ")[0][2:] for row in rows] == list(QUALITY)
    assert "| 0.552 (" in rows[0]
    assert "lower by more than chance explains" in text.lower()
    assert "Not finished: <b>detr, seed 1" in text
    picture = (tmp_path / "end-to-end.svg").read_text()
    assert all(label in picture for label in ("deformable-detr", "dab-twin", "built-in scenes"))
    experiments.show("queries")
    assert "queries: nothing measured yet" in capsys.readouterr().out


def test_the_pages_show_the_results_that_are_kept(experiments):
    pages = ROOT / "docs" / "experiments"
    for name in experiments.EXPERIMENTS:
        found = {data: pages / "results" / f"{name}-{data}.json" for data in experiments.DATA}
        known = {data: json.loads(path.read_text()) for data, path in found.items() if path.exists()}
        assert known, name
        text = (pages / f"{name}.md").read_text()
        for data, result in known.items():
            assert experiments.table(data, result, nms=name == "end-to-end") in text, f"{name}: experiments.py {name} --show"
        assert f"({name}.svg)" in text
        assert (pages / f"{name}.svg").is_file()
        assert f"]({name}.md)" in (pages / "README.md").read_text()
