"""How long a run is: cut to a number of batches, planned from what steps cost, or ended by its clock."""

import csv
import time
from contextlib import nullcontext
from itertools import pairwise, product

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

import boxquery as bq
from boxquery.data.dataset import Data
from boxquery.models.base import DetectionTransformer
from boxquery.models.recipes import Recipe
from boxquery.optimization import progress, rate_factor
from boxquery.training.config import RunConfig
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.run_length import PLANNED, Costs, RunLength

from .runs import SMALL, Stop, rows, settings
from .runs import scenes as scenes_of

BATCHES = [1, 3, 7, 51, 500]
#: runs of many steps, whose length alone matters: what a step really computes is as little as can be
LEAST = settings("detr", {**SMALL, "encoder_layers": 1, "decoder_layers": 1}) | {"image_size": 32}


def scenes() -> Data:
    """Six batches of images, and one to evaluate on."""
    return scenes_of(24, 4)


@pytest.mark.parametrize(("whole", "accumulate"), [*product(BATCHES, [1]), (3, 2), (7, 3), (51, 4), (3, 5)])
def test_a_run_lasts_as_many_batches_as_it_is_given(whole, accumulate):
    """As Lightning counts them: an update every ``accumulate`` batches, and one at the end of every whole epoch."""
    length = RunLength(epochs=1, accumulate=accumulate).with_data(whole, 4)
    for batches in range(3 * whole + 2):
        made = length.with_total_batches(batches)
        total = made.images_total // 4
        assert made.total_epochs >= 1
        assert 0 < made.last_batches <= whole
        assert made.last_batches == whole or made.last_batches % accumulate == 0, "a cut within an update loses its gradients"
        assert batches - accumulate < total <= batches or total == min(accumulate, whole)
        assert made.total_steps == sum(-(-n // accumulate) for n in [whole] * (total // whole) + [total % whole] * (total % whole > 0))
        assert made.with_total_batches(total) == made


@pytest.mark.parametrize("clock", ["wall", "cpu"])
@pytest.mark.parametrize("costs", [(0.3, 0.25, 2.0, 0.0), (0.11, 0.1, 4.0, 0.1), (2.0, 1.0, 1.0, 0.5), (0.02, 0.02, 0.5, 0.2)])
def test_planned_steps_and_evaluations_fill_the_minutes(costs, clock):
    costs = Costs(*costs)
    for whole, minutes in product(BATCHES, (2.0, 10.0)):
        plan = RunLength(minutes=minutes, clock=clock).with_data(whole, 4).plan(costs)
        batches, evaluations = plan.total_batches, -(-plan.total_epochs // plan.val_every)
        spent = min(batches, whole) * costs.first + max(batches - whole, 0) * costs.later + evaluations * costs.evaluation
        spent += plan.total_epochs * costs.closing + (costs.evaluation if clock == "wall" else 0)
        assert spent == pytest.approx(60 * minutes * PLANNED, rel=0.02, abs=2 * costs.first + costs.evaluation), (whole, minutes)
        if clock == "wall":
            assert plan.expected_seconds(costs) == pytest.approx(spent)


def test_a_shorter_run_is_planned_as_minutes_are():
    costs = Costs(0.3, 0.25, 2.0, 0.1)
    whole = RunLength(epochs=500).with_data(50, 4)
    shorter = whole.within(5, costs)
    assert shorter == RunLength(minutes=5).with_data(50, 4).plan(costs)
    assert shorter.expected_seconds(costs) < 300 < whole.expected_seconds(costs)


class Clock:
    """A CPU whose pace the test decides: a step of four images costs .75 s until ``change`` passes, then ``pace`` times as much."""

    def __init__(self, pace: float, change: int):
        self.now, self.passes, self.pace, self.change = 0.0, 0, pace, change

    def spend(self, images: int, training: bool) -> None:
        self.passes += 1
        self.now += images * (0.1875 if training else 0.02) * (self.pace if self.passes > self.change else 1.0)


def run_on(clock: Clock, monkeypatch) -> None:
    forward = DetectionTransformer.forward

    def counted(self, images, *args, **more):
        clock.spend(len(images), self.training)
        return forward(self, images, *args, **more)

    monkeypatch.setattr(DetectionTransformer, "forward", counted)
    monkeypatch.setattr(time, "process_time", lambda: clock.now)


@pytest.mark.parametrize("pace", [1.0, 0.7, 1.4])
def test_cpu_time_ends_a_run_whatever_its_pace(tmp_path, monkeypatch, pace):
    """Timed at one pace, trained at another: the time spent is the time allowed, and what came of it is written down."""
    with monkeypatch.context() as patched:
        run_on(Clock(pace, 34), patched)  # all of the timing, and some steps
        bq.train(scenes(), minutes=1, clock="cpu", out=tmp_path / "run", **LEAST)
    config, found = RunConfig.read(tmp_path / "run"), rows(tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open() as file:
        spent = float(list(csv.DictReader(file))[-1]["cpu_seconds"])
    length = config.length
    planned = length.schedule_steps[0]
    assert spent == pytest.approx(length.seconds, rel=0.02)
    assert length.ends_by_clock
    assert (int(found[-1]["epoch"]), int(found[-1]["step"])) == (length.total_epochs, length.total_steps)
    assert int(found[-1]["images"]) == length.images_total
    assert found[-1]["AP"], "the last model is looked at"
    if pace == 1.0:
        assert length.total_steps == pytest.approx(planned, rel=0.05)
    else:
        assert (length.total_steps > 1.1 * planned) == (pace < 1)
    bq.train(
        scenes(), images_seen=length.images_total, schedule_steps=planned, val_every=length.val_every, out=tmp_path / "again",
        **LEAST,
    )  # fmt: skip
    assert f"--images-seen {length.images_total}" in config.command(tmp_path)
    assert (f"--schedule-steps {planned}" in config.command(tmp_path)) == (length.total_steps != planned)
    learned = [(r["epoch"], r["step"], r["images"], r["lr"], r["loss"]) for r in found]
    assert learned == [(r["epoch"], r["step"], r["images"], r["lr"], r["loss"]) for r in rows(tmp_path / "again")]


def test_a_run_that_its_clock_ends_is_resumed_with_what_it_has_left(tmp_path, monkeypatch):
    """Killed in its third epoch, and again when all is done but the report: it has then spent what was allowed, and trains no further."""
    run_on(Clock(1.0, 0), monkeypatch)
    kept = EpochEnd.keep
    monkeypatch.setattr(EpochEnd, "keep", lambda self, trainer: stop_at(trainer.current_epoch == 2, kept, self, trainer))
    with pytest.raises(Stop):
        bq.train(scenes(), minutes=1, clock="cpu", out=tmp_path / "run", **LEAST)
    planned = RunConfig.read(tmp_path / "run")
    monkeypatch.setattr(EpochEnd, "keep", kept)
    with monkeypatch.context() as patched:
        patched.setattr("boxquery.training.fit.Run.finish", lambda self, epoch: stop_at(True))
        with pytest.raises(Stop):
            bq.train(scenes(), resume=True, out=tmp_path / "run")
    config, found = RunConfig.read(tmp_path / "run"), rows(tmp_path / "run")
    assert config.length.schedule_steps == planned.length.schedule_steps
    bq.train(scenes(), resume=True, out=tmp_path / "run")
    assert rows(tmp_path / "run") == found
    assert RunConfig.read(tmp_path / "run") == config
    assert config.length.total_steps == int(found[-1]["step"]) == pytest.approx(planned.length.total_steps, rel=0.05)


def stop_at(now: bool, keep=None, *args) -> None:
    if now:
        raise Stop
    keep(*args)


def test_a_known_schedule_needs_no_timed_steps(tmp_path, monkeypatch):
    """Other seeds of a comparison: they share the schedule of the rate, and each is ended by its own clock."""
    monkeypatch.setattr("boxquery.training.fit.measure_costs", lambda *_: pytest.fail("steps were timed"))
    run_on(Clock(1.0, 0), monkeypatch)
    bq.train(scenes(), minutes=0.3, clock="cpu", schedule_steps=40, val_every=3, out=tmp_path / "run", **LEAST)
    length = RunConfig.read(tmp_path / "run").length
    assert (length.schedule_steps, length.val_every) == ({0: 40}, 3)
    assert length.total_steps == pytest.approx((length.seconds - 1) / 0.75, abs=4)


@pytest.mark.parametrize("asked", [{"epochs": 2}, {"clock": "wall"}])
def test_where_epochs_or_the_wall_say_how_long_the_count_is_fixed(tmp_path, monkeypatch, asked):
    run_on(Clock(1.0, 0), monkeypatch)
    bq.train(scenes(), minutes=0.05, out=tmp_path / "run", **{"clock": "cpu"} | asked, **LEAST)
    length = RunConfig.read(tmp_path / "run").length
    assert not length.ends_by_clock
    assert length.schedule_steps[max(length.schedule_steps)] == length.total_steps, "the rate ends with the run"
    assert int(rows(tmp_path / "run")[-1]["step"]) == length.total_steps


def test_images_are_counted_to_the_batch_also_after_a_resume(tmp_path, monkeypatch):
    flags = {"images_seen": 32, **LEAST}
    bq.train(scenes_of(), out=tmp_path / "whole", **flags)
    assert [(r["images"], r["step"]) for r in rows(tmp_path / "whole")] == [("12", "3"), ("24", "6"), ("32", "8")]
    assert rows(tmp_path / "whole")[-1]["AP"]
    config = yaml.safe_load((tmp_path / "whole/config.yaml").read_text())
    assert (config["epochs"], config["steps"]) == (3, 8)
    length = RunConfig.read(tmp_path / "whole").length
    assert (length.epoch_batches, length.last_batches) == (3, 2)
    assert "--images-seen 32" in config["command"]
    assert "--epochs" not in config["command"]
    kept = EpochEnd.keep
    monkeypatch.setattr(EpochEnd, "keep", lambda self, trainer: stop_at(trainer.current_epoch == 2, kept, self, trainer))
    with pytest.raises(Stop):
        bq.train(scenes_of(), out=tmp_path / "run", **flags)
    monkeypatch.setattr(EpochEnd, "keep", kept)
    bq.train(scenes_of(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


class Machine:
    """One on which a step of four images costs a second and a half, and ``busy`` times as much until ``change`` passes."""

    def __init__(self, change: int, busy: float):
        self.now, self.passes, self.change, self.busy = 0.0, 0, change, busy

    def spend(self, images: int, training: bool) -> None:
        self.passes += 1
        self.now += images * (0.375 if training else 0.02) * (self.busy if self.passes <= self.change else 1.0)


def run_on_wall(machine: Machine, monkeypatch) -> None:
    forward = DetectionTransformer.forward

    def counted(self, images, *args, **more):
        machine.spend(len(images), self.training)
        return forward(self, images, *args, **more)

    monkeypatch.setattr(DetectionTransformer, "forward", counted)
    monkeypatch.setattr("boxquery.training.clock._read", lambda: (machine.now, machine.now))
    monkeypatch.setattr("boxquery.training.timing.clock", lambda config: lambda: machine.now)


@pytest.mark.parametrize(("busy", "change", "killed"), [(3.0, 15, None), (0.4, 15, None), (1.0, 0, None), (3.0, 15, 2)])
def test_a_busy_minute_at_the_start_does_not_decide(tmp_path, monkeypatch, busy, change, killed):
    """Planned anew from what steps took since: the run takes its minutes, and its command repeats it, also of one that was resumed."""
    with monkeypatch.context() as patched:
        run_on_wall(Machine(change, busy), patched)
        kept = EpochEnd.keep
        patched.setattr(EpochEnd, "keep", lambda self, trainer: stop_at(trainer.current_epoch == killed, kept, self, trainer))
        with pytest.raises(Stop) if killed else nullcontext():
            bq.train(scenes(), minutes=2, out=tmp_path / "run", **LEAST)
        patched.setattr(EpochEnd, "keep", kept)
        if killed:
            bq.train(scenes(), resume=True, out=tmp_path / "run")
    config, found = RunConfig.read(tmp_path / "run"), rows(tmp_path / "run")
    length = config.length
    with (tmp_path / "run/metrics.csv").open() as file:
        spent = float(list(csv.DictReader(file))[-1]["seconds"])
    assert spent == pytest.approx(length.seconds, rel=0.06)
    assert (int(found[-1]["step"]), found[-1]["epoch"]) == (length.total_steps, str(length.total_epochs))
    first, *others = length.schedule_steps.items()
    assert bool(others) == (busy != 1.0)
    if others:
        assert (length.total_steps > 1.5 * first[1]) == (busy > 1)
    bq.train(scenes(), out=tmp_path / "again", **vars(length.as_flags()), **LEAST)
    learned = [(r["epoch"], r["step"], r["images"], r["lr"], r["loss"], r["AP"]) for r in found]
    assert learned == [(r["epoch"], r["step"], r["images"], r["lr"], r["loss"], r["AP"]) for r in rows(tmp_path / "again")]


PIECES = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 400)), max_size=5)


@given(st.integers(1, 400), PIECES, st.sampled_from(["cosine", "step"]))
@example_settings(deadline=None)
def test_a_changed_plan_never_makes_the_rate_jump_or_rise(first, changes, decay):
    schedule, last = {0: first}, 0
    recipe = Recipe(decay=decay, decay_at=0.8)
    for later, more in changes:
        last = min(last + later, schedule[max(schedule)])
        before = progress(schedule, last)
        schedule[last] = last + more
        assert progress(schedule, last) == pytest.approx(before, abs=1e-12), "it goes on from where it was"
    factor = rate_factor(recipe, schedule)
    rates = [factor(step) for step in range(schedule[last] + 2)]
    assert all(a >= b - 1e-12 for a, b in pairwise(rates))
    assert progress(schedule, schedule[last]) == pytest.approx(1.0)
    if decay == "cosine":
        slowest = min(schedule[start] - start for start in schedule)
        assert max(a - b for a, b in pairwise(rates)) <= 2 / max(slowest, 1)
