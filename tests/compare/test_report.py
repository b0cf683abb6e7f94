"""Folders of a comparison, merged and reported on without training."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.compare.report import mean_curve
from boxquery.compare.results import collect, progress_of, reached, run_folder, write_ending

from .fake_comparison import EPOCHS, QUALITY, make_comparison, make_plan, write_config, write_finished


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("compare") / "all")


@pytest.fixture(scope="module")
def shown(comparison):
    assert command_line(["compare", "--show", str(comparison)]) == 0
    return json.loads((comparison / "results.json").read_text()), (comparison / "report.html").read_text()


def test_entries_are_ordered_with_means_over_their_seeds(shown):
    result, _ = shown
    assert [entry["label"] for entry in result["entries"]] == list(QUALITY)
    first = result["entries"][0]
    assert first["seeds"] == [0, 1]
    assert first["AP"] == pytest.approx([0.55, 0.554])
    assert first["scores"]["AP"] == pytest.approx(0.552)
    assert first["scores"]["APs"] is None
    assert first["interval"][0] < 0.552 < first["interval"][1]
    assert first["nms"]["0.7"]["AP"] == pytest.approx(0.572)
    assert (first["parameters"], first["memory"], first["images"]) == (2_400_000, 900 * 2**20, 100 * EPOCHS)
    assert 8 < first["images_per_second"] < 10.1
    assert result["entries"][-1]["seeds"] == [0]
    assert all("resampled" not in run for run in result["runs"])


def test_differences_are_taken_on_the_same_images(shown):
    """Two intervals overlap widely where the paired difference is clear; of near twins none is shown."""
    result, _ = shown
    assert result["best"] == "deformable-detr"
    low, high = result["lower"]["dab-detr"]["interval"]
    assert 0.13 < low < 0.152 < high < 0.17
    assert "lower by more than chance explains" in result["conclusion"][1].lower()


def test_near_twins_show_no_difference(tmp_path):
    plan = make_plan()
    plan = replace(plan, entries=plan.entries[1:3])
    plan.write(tmp_path)
    for planned in plan.runs():
        write_finished(plan, tmp_path, planned)
    result = collect([tmp_path])
    low, high = result["lower"]["dab-twin"]["interval"]
    assert low < 0 < high
    assert result["conclusion"][1].startswith("No difference from it is shown for dab-twin")


def test_a_level_is_reached_between_two_evaluations():
    curve = [{"images": 100, "AP": 0.1}, {"images": 200, "AP": 0.3}, {"images": 300, "AP": 0.2}]
    assert reached(curve, "images", 0.05, "AP") == 100, "at the first evaluation or before: nothing before it was measured"
    assert reached(curve, "images", 0.2, "AP") == pytest.approx(150)
    assert reached(curve, "images", 0.31, "AP") is None
    assert reached(curve, "seconds", 0.05, "AP") is None


def test_the_mean_of_curves_is_where_all_are_known():
    assert mean_curve([[(1, 0.0), (3, 1.0)], [(1, 0.2), (3, 0.4)]]) == ([(1, 0.1), (3, 0.7)], [(1, 0.0, 0.2), (3, 0.4, 1.0)])
    line, band = mean_curve([[(0, 0.0), (10, 1.0)], [(5, 0.5), (20, 2.0)]])
    assert (line[0][0], line[-1][0]) == (5, 10)
    assert all(y == pytest.approx(x / 10) for x, y in line)
    assert all(low <= high for _, low, high in band)
    assert mean_curve([]) == mean_curve([[(0, 1)], [(5, 1)]]) == ([], [])


class Reader(HTMLParser):
    """What a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [found[name] for name in ("src", "href") if name in found]
        self.ids += [found["id"]] if tag in ("section", "header") else []


def test_the_page_holds_all_it_needs(shown):
    result, text = shown
    page = Reader(text)
    assert page.ids == ["headline", "curves", "scores", "reached", "costs", "duplicates", "alignment", "pictures", "unfinished", "plan"]
    assert "script" not in page.tags
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert len(page.links) == 2 * (1 + len(QUALITY))  # of two images the truth and each model's answer
    assert page.tags.count("svg") == 6
    assert result["conclusion"][0] in text
    assert "&lt;b&gt;detr" in text
    assert "<b>detr" not in text
    assert "epoch 3: loss &lt;nan&gt; &amp; more" in text
    assert "1 of 8 runs are not finished, 1 of them failed." in text


def test_parts_of_one_comparison_are_merged(comparison, shown, tmp_path):
    """Half of the runs in one folder, half in another, as from two machines; the data is elsewhere on the second."""
    whole, _ = shown
    parts = [tmp_path / "a", tmp_path / "b"]
    for place, part in enumerate(parts):
        shutil.copytree(comparison, part)
        for planned in make_plan().runs()[place::2]:
            shutil.rmtree(run_folder(part, planned), ignore_errors=True)
    plan = yaml.safe_load((parts[1] / "compare.yaml").read_text())
    (parts[1] / "compare.yaml").write_text(yaml.safe_dump({**plan, "data": "/elsewhere/shapes & more"}, sort_keys=False))
    assert command_line(["compare", "--show", *map(str, parts), "--out", str(tmp_path / "merged")]) == 0
    merged = json.loads((tmp_path / "merged/results.json").read_text())
    for result in (whole, merged):
        result["runs"] = [{k: v for k, v in run.items() if k != "folder"} for run in result["runs"]]
    assert merged == whole
    (parts[1] / "compare.yaml").write_text(yaml.safe_dump({**plan, "image_size": 65}, sort_keys=False))
    with pytest.raises(bq.UserError, match="image_size=64, not 65"):
        collect(parts)


def test_other_validation_images_are_not_compared(tmp_path):
    plan = make_plan(seeds=(0,))
    plan.write(tmp_path)
    for planned in plan.runs()[:2]:
        write_finished(plan, tmp_path, planned, val=planned.entry.label)
    result = collect([tmp_path])
    assert result["conclusion"][0] == "The runs were not measured on the same validation images."
    assert result["lower"] == {}


def test_caveats_are_notes(tmp_path):
    plan = make_plan(seeds=(0,), epochs=None, minutes=2.0)
    plan.write(tmp_path)
    for planned in plan.runs()[:2]:
        run = write_finished(plan, tmp_path, planned)
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    longer = [[*row[:4], row[4] if row[0] == "epoch" else "99", *row[5:]] for row in rows]
    (run / "metrics.csv").write_text("\n".join(map(",".join, longer)))
    notes = " ".join(collect([tmp_path])["notes"])
    assert "2 of 4 runs are not finished." in notes
    assert "one seed" in notes
    assert "The time spent differs by" in notes
    assert "3.1 to 3.1 on 2 cores" in notes


def test_how_far_a_run_is(tmp_path):
    plan = make_plan()
    planned = plan.runs()[0]
    assert progress_of(tmp_path, planned).status == "waiting"
    run = run_folder(tmp_path, planned)
    write_config(plan, planned, run)
    (run / "metrics.csv").write_text("epoch,seconds,AP,AP50\n1,10,0.1,0.2\n2,20,,\n")
    found = progress_of(tmp_path, planned)
    assert (found.status, found.epoch, found.epochs, found.scores) == ("stopped", 2, EPOCHS, {"AP": 0.1, "AP50": 0.2})
    write_ending(tmp_path, planned, reason="why", memory=5)
    write_ending(tmp_path, planned, memory=3)
    assert progress_of(tmp_path, planned).status == "stopped"
    write_ending(tmp_path, planned, reason="why")
    assert (progress_of(tmp_path, planned).status, progress_of(tmp_path, planned).reason) == ("failed", "why")
    assert (tmp_path / "state" / f"{planned.name}.json").read_text().count("5") == 1


def test_before_any_run_is_finished_there_is_a_page(tmp_path):
    make_plan().write(tmp_path)
    assert command_line(["compare", "--show", str(tmp_path)]) == 0
    assert "No run is finished yet." in (tmp_path / "report.html").read_text()


def test_showing_needs_no_torch(comparison):
    code = f"from boxquery.cli import run; run(['compare', '--show', {str(comparison)!r}]); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "timm", "lightning"} & set(done.stdout.split())


def test_json_is_one_object(comparison, capsys):
    assert command_line(["compare", "--show", str(comparison), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(comparison / "report.html")
    assert printed["entries"][0]["scores"]["AP"] == pytest.approx(0.552)
