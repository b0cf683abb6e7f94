"""The entries of a plan, what is refused before anything is written, and which runs are the planned ones."""

from dataclasses import replace
from pathlib import Path

import pytest

import boxquery as bq
from boxquery.compare.plan import CompareFlags, ComparisonPlan, PlannedRun, entries_of, resolved_plan
from boxquery.flags import option_word, parse_options
from boxquery.training.config import RunConfig
from boxquery.training.run_length import RunLength

from .fake_comparison import make_plan, write_config


def entries(models=(), file=None, sweep=None, **options):
    return entries_of(list(models), file, sweep or {}, CompareFlags(preset="tiny", options=options))


def test_models_a_sweep_and_a_file_make_entries(tmp_path):
    assert [(e.label, e.model, e.options) for e in entries(["detr", "dab-detr"], num_queries=9)] == [
        ("detr", "detr", {"num_queries": 9}), ("dab-detr", "dab-detr", {"num_queries": 9})
    ]  # fmt: skip
    swept = entries(["detr"], sweep={"num_queries": [10, 30]}, heads=4)
    assert [(e.label, e.options) for e in swept] == [
        ("num_queries=10", {"heads": 4, "num_queries": 10}), ("num_queries=30", {"heads": 4, "num_queries": 30})
    ]  # fmt: skip
    assert [e.label for e in entries(["detr"], sweep={"queries": [[300, 100], "a b"]})] == ["queries=_300_100", "queries=a_b"]
    file = tmp_path / "plan.yaml"
    file.write_text("detr:\nwithout: {model: sam-detr, options: {cross_attention: false}, lr: 0.0005, preset: small}\n")
    first, second = entries(file=file, heads=4)
    assert (first.label, first.model, first.preset, first.options, first.lr) == ("detr", "detr", "tiny", {"heads": 4}, None)
    assert second.settings() == {"model": "sam-detr", "preset": "small", "options": {"heads": 4, "cross_attention": False}, "lr": 5e-4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- detr", "found a list"),
        ("a/b: {model: detr}", "not a label"),
        ("..: {model: detr}", "not a label"),
        ("a: {modell: detr}", "modell is not known"),
        ("a: detr", "'detr' is not known"),
        ("a: {model: detr, options: [1]}", "options is a mapping"),
        ("a: {model: detr, lr: 5e-4}", "in YAML 5.0e-4"),
        ("{", "cannot be read"),
        ("{}", "the list is empty"),
    ],
)
def test_a_plan_file_that_cannot_be_used_is_refused(text, message, tmp_path):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(bq.UserError, match=message):
        entries(file=tmp_path / "plan.yaml")


def test_what_cannot_be_compared_is_refused():
    for given, message in (
        ({}, "--models"), ({"models": ["detr", "detr"]}, "named twice"), ({"models": ["a", "b"], "sweep": {"x": [1]}}, "one model"),
        ({"models": ["a"], "sweep": {"x": [1], "y": [2]}}, "one option"), ({"models": ["a"], "sweep": {"x": [1, 1]}}, "named twice"),
        ({"file": Path("none.yaml")}, "cannot be read"), ({"models": ["a"], "file": Path("none.yaml")}, "name what to compare"),
    ):  # fmt: skip
        with pytest.raises(bq.UserError, match=message):
            entries(**given)


def test_what_is_not_given_is_the_presets():
    models, flags = entries(["detr", "dab-detr"]), CompareFlags(epochs=8, device="cpu")
    plan = resolved_plan("shapes", models, (0, 1), flags)
    assert (plan.image_size, plan.batch_size, plan.device, plan.epochs, plan.seeds) == (160, 4, "cpu", 8, (0, 1))
    assert plan.precision in ("float32", "bf16")
    assert [entry.lr for entry in plan.entries] == [1e-3, 1e-3]
    assert not plan.square
    assert resolved_plan("shapes", models, (0, 1), replace(flags, square=True)).square
    with pytest.raises(bq.UserError, match=r"differ in image_size \(160, 240\).+--image-size"):
        resolved_plan("shapes", (models[0], replace(models[1], preset="small")), (0,), flags)
    for wrong, message in (
        (replace(models[0], model="dert"), "no model 'dert'"), (replace(models[0], preset="huge"), "no preset"),
        (replace(models[0], options={"layers": 3}), "unknown option 'layers'"), (replace(models[0], options={"heads": 5}), "multiple"),
    ):  # fmt: skip
        with pytest.raises(bq.UserError, match=message):
            resolved_plan("shapes", (wrong,), (0,), flags)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    shared = {"channels": [8, 8]}
    models = entries(["detr", "dab-detr"], backbone_options=shared)
    plan = make_plan(entries=tuple(models))
    plan.write(tmp_path)
    assert ComparisonPlan.read(tmp_path) == plan
    assert "&id" not in (tmp_path / "compare.yaml").read_text()
    for text, message in (
        ("[1]", "not a comparison's plan"),
        ("entries: {a: {modell: 1}}", "not a comparison's plan"),
        (None, "no comparison"),
    ):
        (tmp_path / "compare.yaml").unlink(missing_ok=True)
        if text:
            (tmp_path / "compare.yaml").write_text(text)
        with pytest.raises(bq.UserError, match=message):
            ComparisonPlan.read(tmp_path)


def test_a_plan_grows_but_does_not_change(tmp_path):
    plan = make_plan()
    more = make_plan(entries=(*plan.entries[:1], replace(plan.entries[0], label="new")), seeds=(0, 1, 2))
    both = plan.merge(more, tmp_path)
    assert [e.label for e in both.entries] == [*(e.label for e in plan.entries), "new"]
    assert both.seeds == (0, 1, 2)
    assert [planned.name for planned in both.runs()][:6] == [f"{e.label}-0" for e in both.entries] + [f"{both.entries[0].label}-1"]
    with pytest.raises(bq.UserError, match="epochs=8, not 9"):
        plan.merge(make_plan(epochs=9), tmp_path)
    with pytest.raises(bq.UserError, match="rename one"):
        plan.merge(make_plan(entries=(replace(plan.entries[0], lr=0.5),)), tmp_path)


def test_a_run_is_the_planned_one_by_its_configuration(tmp_path):
    plan = make_plan()
    planned = plan.runs()[0]
    config = write_config(plan, planned, tmp_path / "run", device="cuda", workers=3)
    assert plan.fits(planned, config)
    assert plan.fits(planned, replace(config, options={"num_queries": 9}))
    anchored = replace(config, options={"num_queries": 9, "anchor_sizes": [[8.0]]})
    assert not plan.fits(planned, anchored)
    assert plan.fits(planned, replace(anchored, chosen=["anchor_sizes"])), "what the data chose nobody planned"
    for change in (
        {"seed": 1}, {"lr": 0.5}, {"options": {}}, {"model": "dab-detr"}, {"precision": "bf16"}, {"data": "other"},
        {"pretrained": True}, {"image_size": 65}, {"square": True}, {"patience": 1}, {"batch_size": 2}, {"world_size": 2},
    ):  # fmt: skip
        assert not plan.fits(planned, replace(config, **change)), change

    def lasting(**change):
        return config.with_length(replace(config.length, **change))

    for change in ({"epochs": 9}, {"minutes": 3.0}, {"accumulate": 2}):
        assert not plan.fits(planned, lasting(**change)), change
    seen = replace(plan, epochs=None, images_seen=800)
    assert config.length.images_total == 800
    assert seen.fits(planned, config)
    assert seen.fits(planned, lasting(epochs=None, images_seen=800, total_batches=198))
    assert not seen.fits(planned, lasting(total_batches=194))
    timed = replace(plan, epochs=None, minutes=2.0)
    assert timed.fits(planned, lasting(epochs=None, minutes=2.0, clock="cpu"))
    assert not timed.fits(planned, lasting(minutes=2.0, clock="cpu"))
    assert not timed.fits(planned, lasting(epochs=None, minutes=2.5, clock="cpu"))
    assert not timed.fits(planned, lasting(epochs=None, images_seen=400))
    assert not timed.fits(planned, config)


def test_the_command_line_trains_the_planned_run():
    """They are read back by the command line into the same settings; other seeds get the schedule that was planned for the first."""
    from boxquery.cli import app

    plan = make_plan(epochs=None, minutes=2.0, precision="bf16", strict=True)
    options = {"backbone_options": {"channels": [8, 16], "rate": 1e-5}, "dilation": False, "name": "yes", "many": list(range(60))}
    planned = PlannedRun(replace(plan.entries[0], options=options), 3)
    command = plan.command_line(planned, Path("out"))
    _, bound, _ = app.parse_args(command, exit_on_error=False, print_error=False)
    given = bound.arguments["flags"]
    assert given.options == options
    assert (bound.arguments["data"], given.seed, given.lr, given.minutes, given.clock) == (plan.data, 3, 1e-3, 2.0, "cpu")
    assert (given.precision, given.strict, given.image_size, given.batch_size) == ("bf16", True, 64, 4)
    length = RunLength(minutes=2.0, clock="cpu", schedule_steps={0: 23}, val_every=2).with_data(7, 4)
    worth = RunConfig(data="d", model="m", preset="p", image_size=64, batch_size=4, lr=0.1, length=length)
    _, bound, _ = app.parse_args(plan.command_line(planned, Path("out"), worth), exit_on_error=False, print_error=False)
    given = bound.arguments["flags"]
    assert (given.minutes, given.schedule_steps, given.val_every) == (2.0, {0: 23}, 2)


@pytest.mark.parametrize("value", [1, 1e-5, 2.5, True, None, "text", "yes", "1", "a: b", [1, [2.0, "x"]], {"a": {"b": (1, 2)}}, "ä" * 200])
def test_an_option_is_one_word_that_reads_back(value):
    class Token:
        def __init__(self, value):
            self.value = value

    read = parse_options(None, [Token(option_word("name", value))])["name"]
    assert read == ({"a": {"b": [1, 2]}} if isinstance(value, dict) else value)
    assert "\n" not in option_word("name", value)
