"""The overfit test: a sound pipeline passes, a broken one is named."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.check.floors import everything, measured
from boxquery.check.overfit import GOAL, IMAGES, _verdict, choose_images, overfit_batch
from boxquery.cli import run
from boxquery.models import list_baselines
from tests.check.planted import changed, kept, pictures, scenes, write
from tests.training.runs import SMALL


@pytest.mark.slow
def test_a_sound_pipeline_learns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("boxquery.check.overfit.overfit_batch", partial(overfit_batch, seconds=900))  # for a busy machine
    data = write(tmp_path / "data", "coco", pictures(12, 6))
    assert run(["check", data, "--model", "deformable-detr", "--preset", "tiny", "--overfit", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["overfit"]
    assert result["AP50"] > GOAL
    assert result["reached"]
    assert len(result["images"]) == IMAGES


def test_what_does_not_overfit_fails_the_check(monkeypatch):
    result = overfit_batch(scenes(8, 4), "detr", SMALL, steps=3)
    assert not result.reached
    assert result.steps == 3
    assert result.finding().level == "error"
    assert result.finding().name == "does-not-learn"
    assert "could not overfit images train/" in result.finding().text
    late = replace(result, planned=300, loss=(20.0, 8.0)).finding()
    assert (late.name, late.level) == ("not-proven", "warning")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_test(monkeypatch, what):
    """And the page and ``--json`` have no NaN."""
    criterion = bq.create_model("detr", classes=3, preset="tiny", **SMALL).criterion
    terms, calls = type(criterion).terms, []

    def spoiled(self, *given):
        found = terms(self, *given)
        calls.append(1)
        if len(calls) == 3:
            root = (found["l1"] - found["l1"].detach()).abs().sqrt()  # 0, with a gradient that is none
            found = {**found, "l1": found["l1"] + (root if what == "gradient" else torch.nan)}
        return found

    monkeypatch.setattr(type(criterion), "terms", spoiled)
    result = overfit_batch(scenes(8, 4), "detr", SMALL, steps=9)
    assert result.steps == 3
    assert result.verdict == "the loss or its gradient became NaN or inf at step 3"
    assert result.finding().level == "error"
    first, last = json.loads(json.dumps(result.values(), allow_nan=False))["loss"]
    assert first > 0
    assert last is None


@pytest.mark.parametrize(
    ("losses", "any_class", "near", "repeated", "verdict"),
    [
        ([9.0, float("nan")], 0.0, 0.0, 0.0, "became NaN or inf"),
        ([9.0, 8.0], 0.0, 0.0, 0.0, "did not fall"),
        ([9.0, 1.0], 0.95, 0.5, 0.0, "classes are wrong"),
        ([9.0, 1.0], 0.3, 0.95, 0.0, "boxes are off"),
        ([9.0, 1.0], 0.3, 0.95, 0.4, "40% duplicates"),
        ([9.0, 1.0], 0.3, 0.7, 0.0, "more steps"),
        ([9.0, 1.0], 0.1, 0.1, 0.0, "still missed"),
    ],
)
def test_what_failed_is_named(losses, any_class, near, repeated, verdict):
    assert verdict in _verdict(losses, any_class, near, repeated)


def test_visible_images_of_different_classes_are_chosen():
    data = scenes(40)
    data = changed(data, "train", lambda r: kept(r, np.full(len(r.boxes), int(str(r.id).split("/")[1]) >= 20)))
    four = choose_images(data.splits["train"])
    assert len(four) == IMAGES
    assert all(len(record.boxes) for record in four)
    assert len({int(label) for record in four for label in record.labels}) >= 4
    single = changed(data, "train", lambda r: kept(r, np.full(len(r.boxes), r.id == "train/30")))
    assert [r.id for r in choose_images(single.splits["train"])] == ["train/30"]


def test_enough_queries_are_given_for_the_images():
    crowded = changed(scenes(4, 2), "train", lambda r: kept(r, np.repeat(np.arange(len(r.boxes)), 15)))
    assert max(len(record.boxes) for record in crowded.splits["train"]) > 40  # the preset's
    result = overfit_batch(crowded, "detr", {name: value for name, value in SMALL.items() if name != "num_queries"}, steps=1)
    assert result.steps == 1


def test_the_floors_that_ship_are_of_known_models():
    assert set(everything()["models"]) <= {*bq.list_models(), *list_baselines()}
    for name in everything()["models"]:
        for run_ in measured(name).get("learn", []):
            assert run_["AP50"] > GOAL or not run_["reached"]
        if "learn_steps" in measured(name):
            assert measured(name)["learn_steps"] >= 3 * max(run_["steps"] for run_ in measured(name)["learn"])
