"""Models of several cameras are compared as models of images are: mAP in place of AP, scenes in place of images, no word on duplicates."""

import json
import re

import numpy as np
import pytest

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.compare.measure import measure_run
from boxquery.compare.plan import ComparisonPlan
from boxquery.compare.results import collect, progress_of, run_folder
from boxquery.compare.runner import Runner, adopt
from boxquery.compare.statistics import conclusion
from boxquery.evaluation.metric_names import OF_SCENES
from tests.training.runs import SMALL

DATA = "surround:train=4,val=3,test=2,width=64"
OPTIONS = {**SMALL, "decoder_layers": 1}
FLAGS = {"image_size": 48, "batch_size": 2, "device": "cpu", "precision": "float32"}


def words(out, *more: str) -> list[str]:
    given = ["compare", DATA, "--preset", "tiny", "--out", str(out), *more]
    given += [word for name, value in FLAGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return given + [word for name, value in OPTIONS.items() for word in ("--option", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two models that were trained beforehand, adopted and measured; a third has not begun."""
    folder = tmp_path_factory.mktemp("compare")
    for name in ("petr", "detr3d"):
        bq.train(DATA, model=name, preset="tiny", epochs=1, options=OPTIONS, out=folder / "before" / name, **FLAGS)
    out = folder / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "run", lambda self: None)
        assert command_line(words(out, "--models", "petr,detr3d", "--epochs", "1", "--seeds", "1")) == 0
        assert command_line(words(out, "--model", "petr", "--epochs", "1", "--seeds", "2")) == 0
    for planned, _ in adopt(ComparisonPlan.read(out), out, [folder / "before"]):
        measure_run(run_folder(out, planned))
    assert command_line(["compare", "--show", str(out)]) == 0
    return out


def test_they_are_measured_by_what_scenes_are_measured_by(compared):
    result = json.loads((compared / "results.json").read_text())
    assert result["unit"] == "scene"
    assert {entry["label"]: entry["seeds"] for entry in result["entries"]} == {"petr": [0], "detr3d": [0]}
    for entry in result["entries"]:
        own = json.loads((compared / f"runs/{entry['label']}-0/evaluation.json").read_text())
        assert entry["mAP"] == [own["val"]["mAP"]]
        assert {name: entry["scores"][name] for name in ("NDS", "AP@2", "mAOE")} == {
            name: own["val"][name] for name in ("NDS", "AP@2", "mAOE")
        }
        assert entry["test"]["mAP"] == own["test"]["mAP"]
        assert len(entry["interval"]) == 2
        assert (entry["image"], entry["images"]) == ("6 x 48 x 80", 4)
        assert not {"AP", "nms", "duplicate_rate"} & {*entry, *entry["scores"]}
    run = next(run for run in result["runs"] if run["status"] == "finished")
    assert run["curve"][0].keys() >= {"images", "cpu_seconds", "mAP", "NDS"}
    assert run["images_measured"] == 3
    assert "on 3 validation scenes" in result["conclusion"][0]


def test_the_page_speaks_of_scenes_and_leaves_out_what_they_do_not_have(compared):
    page = re.sub(r'base64,[^"]*', "", (compared / "report.html").read_text())
    for text in (
        "mAP against scenes seen",
        "NDS against scenes seen",
        "ms per scene",
        "mAOE of the heading",
        "The same scenes",
        "petr, seed 1",
    ):
        assert text in page, text
    for text in ("uplicate", "NMS", "AP50", "mAVE", "mAAE", ">nan", "image seen", "images seen"):
        assert text not in page, text
    assert max(head.count('<th scope="col"') for head in page.split("</thead>")) <= 10, "a table has no room for more at 1,300 pixels"
    assert page.count("<img") == 3 * 3  # three scenes: the truth and two models


def test_how_far_a_run_is_has_its_metrics(compared):
    plan = ComparisonPlan.read(compared)
    assert [progress_of(compared, planned).scores.keys() for planned in plan.runs()[:2]] == [{"mAP", "NDS"}] * 2
    assert plan.entries[0].options == OPTIONS, "the area of the data is chosen by each run"


def test_a_budget_is_in_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "run", lambda self: None)
    assert command_line(words(tmp_path / "c", "--models", "petr", "--images-seen", "8")) == 0
    assert collect([tmp_path / "c"])["plan"]["budget"] == "8 scenes"


def test_the_conclusion_names_the_metric():
    assert (
        conclusion({"a": 0.0}, {"a": np.zeros(9)}, {"a": 1}, "1 epoch", OF_SCENES, 6)[0]
        == "After 1 epoch, mAP is 0 on 6 validation scenes for a."
    )


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        (
            "surround",
            ["--models", "petr,deformable-detr"],
            "petr finds 3-D boxes in scenes of several cameras, and deformable-detr boxes in",
        ),
        ("shapes", ["--models", "retinanet,detr3d"], "detr3d finds 3-D boxes in scenes of several cameras, and retinanet boxes in images"),
        ("surround", ["--models", "detr"], "model 'detr' finds boxes in images"),
        ("shapes", ["--models", "petr"], "model 'petr' finds 3-D boxes in scenes"),
        ("surround", ["--models", "petr", "--augment", "mosaic=1"], "augment: mosaic is of images"),
        ("surround", ["--models", "petr", "--images", "x"], "--images: is of images"),
    ],
)
def test_what_does_not_belong_together_is_one_line_and_leaves_nothing(data, given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line(["compare", data, *given, "--preset", "tiny", "--epochs", "1", "--out", "x"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())
