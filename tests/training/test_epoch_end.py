"""The parts of an epoch's end, each without a trainer: the clock, the evaluation, the best model, the table."""

import csv
import json

import pytest
import torch

import boxquery as bq
from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.training.best_model import BestModel
from boxquery.training.clock import Clock
from boxquery.training.config import RunConfig
from boxquery.training.evaluator import Evaluator
from boxquery.training.image_task import ImageTask
from boxquery.training.metrics_table import MetricsTable
from boxquery.training.run_length import RunLength

from .runs import SMALL, scenes


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """Seconds that the test sets: on the wall, and of the CPU."""
    seconds = [0.0, 0.0]
    monkeypatch.setattr("boxquery.training.clock._read", lambda: tuple(seconds))
    return seconds


def test_a_clock_ends_a_run_between_two_updates_and_leaves_time_for_the_evaluation(now):
    length = RunLength(minutes=1, clock="cpu", schedule_steps={0: 50}, accumulate=2, val_every=1).with_data(5, 4)
    clock = Clock(length, counts_cpu=True)
    clock.evaluation = 4.0
    clock.start(0)
    now[:] = [500.0, 49.9]  # of 54 seconds of the CPU 4 are for the evaluation
    assert not clock.after_batch(0, 2)
    now[1] = 50.1
    assert not clock.after_batch(0, 3)
    assert clock.after_batch(0, 4)
    assert clock.is_due(1)
    assert clock.after_epoch(0, 4)
    assert (clock.length.total_batches, clock.length.total_steps) == (4, 2)


def test_a_clock_counts_on_after_a_resume(now):
    length = RunLength(epochs=3).with_data(5, 4)
    clock = Clock(length, counts_cpu=False)
    clock.start(0)
    now[:] = [7.0, 3.0]
    again = Clock(length, counts_cpu=False)
    again.load_state_dict(json.loads(json.dumps(clock.state_dict())))
    now[:] = [107.0, 50.0]
    again.start(1)
    now[:] = [109.0, 51.0]
    assert again.spent() == (9.0, 4.0)
    assert not again.after_batch(2, 4)
    assert again.after_batch(2, 5)


def test_a_plan_that_a_busy_start_made_is_corrected(now):
    length = RunLength(minutes=10, val_every=10).with_data(1000, 4).with_total_batches(270)
    clock = Clock(length, counts_cpu=False)
    clock.length = length = RunLength(**vars(length) | {"schedule_steps": {0: 270}})
    clock.start(0)
    for batch in range(1, 400):
        now[0] += 2.0 if batch <= 30 else 0.5
        assert not clock.after_batch(0, batch)
    assert clock.length.total_batches == pytest.approx(30 + (540 - 60) / 0.5, rel=0.02)
    assert min(clock.length.schedule_steps) == 0
    assert clock.length.schedule_steps[0] == 270


def test_the_best_model_is_kept_and_patience_runs_out(tmp_path):
    data = scenes()
    model = bq.create_model("detr", classes=data.names, preset="tiny", **SMALL)
    best = BestModel(tmp_path / "model", Detector(model, data.names, data.ids, Preprocessing(64)), ImageTask(data), patience=2)
    for epoch, (ap, exhausted) in enumerate([(0.2, False), (0.1, False), (0.3, False), (0.3, False), (0.1, True)], 1):
        best.update(epoch, {"AP": ap, "best_threshold": ap}, model, write=True)
        assert best.exhausted == exhausted
    assert (best.best, best.epoch) == (0.3, 4)
    assert bq.load(tmp_path / "model").threshold == 0.3


@pytest.mark.parametrize("ap", [None, 0.0])
def test_with_nothing_to_choose_by_the_last_model_is_kept(tmp_path, ap):
    data = scenes()
    best = BestModel(tmp_path / "model", Detector(tiny_model(data), data.names, data.ids, Preprocessing(64)), ImageTask(data), patience=2)
    for epoch in (1, 2, 3):
        last = tiny_model(data)
        best.update(epoch, {"AP": ap, "best_threshold": None}, last, write=True)
    assert best.epoch == 3
    assert best.exhausted == (ap is not None)  # an AP that cannot improve is no reason to stop
    kept = bq.load(tmp_path / "model").model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in last.state_dict().items())


def tiny_model(data):
    return bq.create_model("detr", classes=data.names, preset="tiny", **SMALL)


def test_the_table_has_the_columns_of_all_rows(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.add({"epoch": 1, "loss": 2.5}, write=True)
    again = MetricsTable(tmp_path / "metrics.csv")
    again.load_state_dict(json.loads(json.dumps(table.state_dict())))
    again.add({"epoch": 2, "loss": 2.0, "AP": None}, write=True)
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "loss": "2.5", "AP": ""}, {"epoch": "2", "loss": "2.0", "AP": ""}]


def test_an_evaluator_needs_a_model_alone():
    data = scenes()
    model = bq.create_model("detr", classes=data.names, preset="tiny", **SMALL)
    length = RunLength(epochs=1).with_data(3, 4)
    config = RunConfig(data="shapes", model="detr", preset="tiny", image_size=64, batch_size=4, lr=1e-3, length=length)
    evaluator = Evaluator(config, Detector(model, data.names, data.ids, Preprocessing(64)), ImageTask(data), pytest.fail)
    metrics, found = evaluator.evaluate(model)
    assert set(ImageTask.columns) <= metrics.keys()
    assert list(found) == list(range(6))
    first, second = evaluator.alignment(model), evaluator.alignment(model)
    assert (first["query_changes"], second["query_changes"]) == (None, 0.0)
    assert {k: v for k, v in first.items() if k != "query_changes"} == {k: v for k, v in second.items() if k != "query_changes"}
