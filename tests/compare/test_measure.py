"""Measurements of a finished run: multiply-adds as in models/sizes.json, and NMS applied afterwards."""

import json

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.compare.measure import gflops, measure_run
from boxquery.compare.plan import ComparisonPlan, Entry
from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.evaluation.predictions import apply_nms, predict_split
from boxquery.models import list_scene_models, sizes
from boxquery.training.config import RunConfig
from tests.data.writers import drawn, write_coco
from tests.training.runs import SMALL, scenes


@pytest.mark.parametrize("name", list_scene_models())
def test_multiply_adds_of_scenes_are_those_of_the_table_of_models(name):
    model = bq.create_model(name, classes=10, preset="tiny").eval()
    assert gflops(model, torch.zeros(1, 6, 3, 96, 160), torch.eye(4).expand(1, 6, 4, 4)) == pytest.approx(
        sizes(name)["tiny"]["gflops"], abs=0.006
    )


@pytest.mark.parametrize("name", bq.list_models())
def test_multiply_adds_are_those_of_the_table_of_models(name):
    """Counted there on shapes alone, here on a real pass, in which attention must not hide in one fused operation."""
    model = bq.create_model(name, classes=91, preset="tiny").eval()
    assert gflops(model, torch.zeros(1, 3, 160, 160), None) == pytest.approx(sizes(name)["tiny"]["gflops"], abs=0.006)


def test_nms_applied_afterwards_is_nms_in_the_model():
    # before it has learned anything DETR puts every box around the middle, so that most go
    detector = Detector(bq.create_model("detr", classes=5, preset="tiny"), [*"abcde"], [1, 2, 3, 4, 5], Preprocessing(64))
    split = scenes().splits["val"]
    every = predict_split(detector, split)
    for iou in (0.7, 0.5):
        asked, kept = predict_split(detector, split, nms=iou), apply_nms(every, iou)
        assert list(kept) == list(asked)
        assert sum(len(kept[i][0]) for i in kept) < sum(len(every[i][0]) for i in every)
        for i in kept:
            for one, other in zip(kept[i], asked[i], strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_baseline_is_the_planned_run_and_measured_without_its_own_nms(tmp_path):
    """The data chose its anchors, which no plan names; at threshold 1 nothing is suppressed, not even by the model itself."""
    options = {**SMALL, "score": 0.0}
    for name in ("heads", "ffn_dim", "num_queries"):
        options.pop(name)
    settings = {"image_size": 64, "epochs": 6, "lr": 3e-3, "batch_size": 4, "device": "cpu", "precision": "float32"}
    data = write_coco(tmp_path / "data", drawn(scenes()))
    bq.train(str(data), model="retinanet", preset="tiny", out=tmp_path / "run", options=options, workers=0, **settings)
    entry = Entry("reference", "retinanet", "tiny", options, 3e-3)
    rest = dict.fromkeys(("pretrained", "freeze_backbone", "strict"), False)
    settings.pop("lr")
    plan = ComparisonPlan(data=str(data), entries=(entry,), seeds=(0,), minutes=None, images_seen=None, **settings, **rest)
    config = RunConfig.read(tmp_path / "run")
    assert config.chosen == ["anchor_ratios", "anchor_sizes"]
    assert plan.fits(plan.runs()[0], config)
    nms = json.loads(measure_run(tmp_path / "run").read_text())["nms"]
    own = json.loads((tmp_path / "run" / "evaluation.json").read_text())["val"]
    assert nms["0.5"]["AP"] == pytest.approx(own["AP"], abs=1e-6), "RetinaNet's own threshold"
    every = bq.load(tmp_path / "run").evaluate(str(data), split="val", nms=1)
    assert nms["1"]["AP"] == pytest.approx(every["AP"], abs=1e-9)
    assert nms["1"]["AP"] != nms["0.5"]["AP"]
