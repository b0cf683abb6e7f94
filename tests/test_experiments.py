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
        matching, five = experiments.matching_dab(data), experiments.convergence_dense(data)
        assert all(matching[f"dab-detr-{strategy}"] == five[f"dab-detr-{strategy}"] for strategy in ("one-to-one", "dense"))


def test_what_each_strategy_adds_is_shown_beside_what_is_not_measured(experiments):
    def found(label, *ap):
        scores = {"AP": sum(ap) / len(ap), "AP50": 0.4}
        return {"label": label, "seeds": list(range(len(ap))), "AP": list(ap), "scores": scores, "nms": {"1": {"duplicate_rate": 0.05}}}

    result = {
        "entries": [found("dab-detr-dense", 0.15, 0.14, 0.16), found("dab-detr-one-to-one", 0.10, 0.12)],
        "runs": [{"label": "dab-detr-dense", "curve": [{"inside": 0.5, "inside_even": 0.1}]}],
    }
    labels = ["dab-detr-one-to-one", "dab-detr-dense", "sam-detr-dense"]
    text = experiments.strategy_table("bccd", labels, result, {"dab-detr-dense": {"ms": 110.4, "ratio": 1.2, "low": 1.1, "high": 1.25}})
    assert "| dab-detr | one-to-one | 0.110 |  | 0.400 |  | 5.0 % | not measured |" in text
    assert "| dab-detr | dense | 0.150 | +0.035 (+0.020 to +0.050) | 0.400 | 0.50 (0.10) | 5.0 % | 1.20 (1.10 to 1.25), 110 ms |" in text
    assert "| sam-detr | dense |" + " not measured |" * 6 in text
    assert "step" not in experiments.strategy_table("bccd", labels, None, None)


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


def test_the_pages_show_the_results_that_are_kept(experiments, monkeypatch):
    pages = ROOT / "docs" / "experiments"
    monkeypatch.setattr(experiments, "DOCS", pages)
    for name, experiment in experiments.EXPERIMENTS.items():
        found = {data: pages / "results" / f"{name}-{data}.json" for data in experiment.images}
        known = {data: json.loads(path.read_text()) for data, path in found.items() if path.exists()}
        text = (pages / f"{name}.md").read_text()
        assert experiments.page_text(name, known) in text, f"{name}: experiments.py {name} --show"
        assert f"]({name}.md)" in (pages / "README.md").read_text()
        if known:
            assert f"({name}.svg)" in text
            assert (pages / f"{name}.svg").is_file()
        else:
            assert "not measured" in text
