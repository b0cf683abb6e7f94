"""How long a run is: cut to a number of batches, planned from what steps cost, or ended by its clock."""

import csv
import time
from dataclasses import replace
from itertools import product

import pytest
import yaml

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.training.budget import PLANNED, Costs, allowed, within
from boxquery.training.config import UNSET, RunConfig
from boxquery.training.keeper import Keeper

from .runs import Stop, rows, scenes, settings

BATCHES = [1, 3, 7, 51, 500]


@pytest.mark.parametrize(("whole", "accumulate"), [*product(BATCHES, [1]), (3, 2), (7, 3), (51, 4), (3, 5)])
def test_a_run_lasts_as_many_batches_as_it_is_told(whole, accumulate):
    """As Lightning counts them: an update every ``accumulate`` batches, and one at the end of every whole epoch."""
    config = replace(UNSET, batch_size=4, batches=whole, accumulate=accumulate)
    for batches in range(3 * whole + 2):
        made = config.lasting(batches)
        total = made.seen() // 4
        assert made.epochs >= 1
        assert made.last == 0 or 0 < made.last < whole
        assert made.last % accumulate == 0, "a cut within an update loses its gradients"
        assert batches - accumulate < total <= batches or total == min(accumulate, whole)
        assert made.steps == sum(-(-n // accumulate) for n in [whole] * (total // whole) + [total % whole] * (total % whole > 0))
        assert made.lasting(total) == made


@pytest.mark.parametrize("clock", ["wall", "processor"])
@pytest.mark.parametrize("costs", [Costs(0.3, 0.25, 2.0), Costs(0.11, 0.1, 4.0), Costs(2.0, 1.0, 1.0), Costs(0.02, 0.02, 0.5)])
def test_planned_steps_and_evaluations_fill_the_minutes(costs, clock):
    for whole, minutes in product(BATCHES, (2.0, 10.0)):
        config = replace(UNSET, batch_size=4, batches=whole, minutes=minutes, clock=clock, by_clock=clock == "processor")
        plan = within(config, costs)
        batches, looks = plan.seen() // 4, -(-plan.epochs // plan.val_every)
        spent = min(batches, whole) * costs.first + max(batches - whole, 0) * costs.later + looks * costs.look
        spent += costs.look if clock == "wall" else 0
        assert spent == pytest.approx(60 * minutes * PLANNED, rel=0.02, abs=2 * costs.first + costs.look), (whole, minutes)


class Clock:
    """A processor whose pace the test decides: a step of four images costs half a second until ``change`` passes, then more or less."""

    def __init__(self, pace: float, change: int):
        self.now, self.passes, self.pace, self.change = 0.0, 0, pace, change

    def spend(self, images: int, training: bool) -> None:
        self.passes += 1
        self.now += images * (0.125 if training else 0.02) * (self.pace if self.passes > self.change else 1.0)


def run_on(clock: Clock, monkeypatch) -> None:
    forward = DetectionTransformer.forward

    def counted(self, images, *args, **more):
        clock.spend(len(images), self.training)
        return forward(self, images, *args, **more)

    monkeypatch.setattr(DetectionTransformer, "forward", counted)
    monkeypatch.setattr(time, "process_time", lambda: clock.now)


@pytest.mark.parametrize("pace", [1.0, 0.7, 1.4])
def test_the_processors_clock_ends_a_run_whatever_its_pace(tmp_path, monkeypatch, pace):
    """Timed at one pace, trained at another: the time spent is the time allowed, and what came of it is written down."""
    with monkeypatch.context() as patched:
        run_on(Clock(pace, 40), patched)
        bq.train(scenes(), minutes=1, clock="processor", out=tmp_path / "run", **settings("detr"))
    config, found = RunConfig.read(tmp_path / "run"), rows(tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open() as file:
        spent = float(list(csv.DictReader(file))[-1]["processor_seconds"])
    assert spent == pytest.approx(allowed(config), rel=0.02)
    assert config.by_clock
    assert (int(found[-1]["epoch"]), int(found[-1]["step"])) == (config.epochs, config.steps)
    assert int(found[-1]["images"]) == config.seen()
    assert found[-1]["AP"], "the last model is looked at"
    if pace == 1.0:
        assert config.steps == pytest.approx(config.schedule_steps, rel=0.05)
    else:
        assert (config.steps > 1.1 * config.schedule_steps) == (pace < 1)
    bq.train(
        scenes(), images_seen=config.seen(), schedule_steps=config.schedule_steps, val_every=config.val_every, out=tmp_path / "again",
        **settings("detr"),
    )  # fmt: skip
    assert f"--images-seen {config.seen()}" in config.command(tmp_path)
    assert (f"--schedule-steps {config.schedule_steps}" in config.command(tmp_path)) == (config.steps != config.schedule_steps)
    learned = [(r["epoch"], r["step"], r["images"], r["lr"], r["loss"]) for r in found]
    assert learned == [(r["epoch"], r["step"], r["images"], r["lr"], r["loss"]) for r in rows(tmp_path / "again")]


def test_a_run_that_its_clock_ends_is_resumed_with_what_it_has_left(tmp_path, monkeypatch):
    """Killed in its third epoch, and again when all is done but the report: it has then spent what was allowed, and trains no further."""
    run_on(Clock(1.0, 0), monkeypatch)
    kept = Keeper._keep
    monkeypatch.setattr(Keeper, "_keep", lambda self, trainer: stop_at(trainer.current_epoch == 2, kept, self, trainer))
    with pytest.raises(Stop):
        bq.train(scenes(), minutes=1, clock="processor", out=tmp_path / "run", **settings("detr"))
    planned = RunConfig.read(tmp_path / "run")
    monkeypatch.setattr(Keeper, "_keep", kept)
    with monkeypatch.context() as patched:
        patched.setattr("boxquery.training.fit.Run.finish", lambda self: stop_at(True))
        with pytest.raises(Stop):
            bq.train(scenes(), resume=True, out=tmp_path / "run")
    config, found = RunConfig.read(tmp_path / "run"), rows(tmp_path / "run")
    assert config.schedule_steps == planned.schedule_steps
    bq.train(scenes(), resume=True, out=tmp_path / "run")
    assert rows(tmp_path / "run") == found
    assert RunConfig.read(tmp_path / "run") == config
    assert config.steps == int(found[-1]["step"]) == pytest.approx(planned.steps, rel=0.05)


def stop_at(now: bool, keep=None, *args) -> None:
    if now:
        raise Stop
    keep(*args)


def test_a_known_schedule_needs_no_timed_steps(tmp_path, monkeypatch):
    """Other seeds of a comparison: they share the schedule of the rate, and each is ended by its own clock."""
    monkeypatch.setattr("boxquery.training.fit.timed", lambda *_: pytest.fail("steps were timed"))
    run_on(Clock(1.0, 0), monkeypatch)
    bq.train(scenes(), minutes=0.3, clock="processor", schedule_steps=40, val_every=3, out=tmp_path / "run", **settings("detr"))
    config = RunConfig.read(tmp_path / "run")
    assert (config.schedule_steps, config.val_every) == (40, 3)
    assert config.steps == pytest.approx((allowed(config) - 1) / 0.5, abs=6)


@pytest.mark.parametrize("given", [{"epochs": 2}, {"clock": "wall"}])
def test_where_epochs_or_the_wall_say_how_long_the_count_is_fixed(tmp_path, monkeypatch, given):
    run_on(Clock(1.0, 0), monkeypatch)
    bq.train(scenes(), minutes=0.05, out=tmp_path / "run", **{"clock": "processor"} | given, **settings("detr"))
    config = RunConfig.read(tmp_path / "run")
    assert not config.by_clock
    assert config.schedule_steps == 0
    assert int(rows(tmp_path / "run")[-1]["step"]) == config.steps


def test_images_are_counted_to_the_batch_also_after_a_resume(tmp_path, monkeypatch):
    given = {"images_seen": 32, **settings("detr")}
    bq.train(scenes(), out=tmp_path / "whole", **given)
    assert [(r["images"], r["step"]) for r in rows(tmp_path / "whole")] == [("12", "3"), ("24", "6"), ("32", "8")]
    assert rows(tmp_path / "whole")[-1]["AP"]
    config = yaml.safe_load((tmp_path / "whole/config.yaml").read_text())
    assert [config[name] for name in ("epochs", "batches", "last", "steps")] == [3, 3, 2, 8]
    assert "--images-seen 32" in config["command"]
    assert "--epochs" not in config["command"]
    kept = Keeper._keep
    monkeypatch.setattr(Keeper, "_keep", lambda self, trainer: stop_at(trainer.current_epoch == 2, kept, self, trainer))
    with pytest.raises(Stop):
        bq.train(scenes(), out=tmp_path / "run", **given)
    monkeypatch.setattr(Keeper, "_keep", kept)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
