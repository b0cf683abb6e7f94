"""The flags of a run are its command line: what a configuration prints is read back as the same configuration."""

import shlex
from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import boxquery as bq
from boxquery.augment import DEFAULT_LEVEL, DETR, LEVELS, Augment, recorded
from boxquery.cli import app, run
from boxquery.flags import AUTO, PRETRAINED, fill_in
from boxquery.training.config import RunConfig, RunFlags, TrainFlags
from boxquery.training.run_length import RunLength

COUNT = st.integers(1, 10**6)
RATE = st.floats(1e-9, 10.0)
TEXT = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=6,
)
NOT_GIVEN = st.none()
SHARE = st.floats(0, 1)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "level": st.sampled_from([*LEVELS, DEFAULT_LEVEL]), "flip": SHARE, "mosaic": SHARE, "plain_end": SHARE,
        "rotation": st.floats(0, 180), "scales": st.lists(st.floats(0.1, 2), min_size=1), "mosaic_scales": st.just([0.2, 0.8]),
    },
).filter(bool)  # fmt: skip
FLAGS = st.builds(
    TrainFlags,
    start_from=NOT_GIVEN | TEXT,
    model=st.sampled_from([AUTO, *bq.list_models()]),
    preset=NOT_GIVEN | st.sampled_from(["paper", "small", "tiny"]),
    options=NOT_GIVEN | st.dictionaries(st.from_regex(r"[a-z][a-z_0-9]*", fullmatch=True), VALUES, min_size=1),
    augment=NOT_GIVEN | PARTS, image_size=NOT_GIVEN | COUNT, batch_size=NOT_GIVEN | COUNT, lr=NOT_GIVEN | RATE, patience=st.integers(0, 99),
    pretrained=st.booleans() | st.just("auto") | TEXT.filter(lambda word: word.lower() not in PRETRAINED),
    freeze_backbone=st.booleans(), strict=st.booleans(), force=st.booleans(),
    device=st.sampled_from(["auto", "cpu", "cuda"]), precision=st.sampled_from(["auto", "float32", "bf16"]),
    workers=NOT_GIVEN | st.integers(0, 64), seed=st.integers(-(2**40), 2**40),
    epochs=NOT_GIVEN | COUNT, minutes=NOT_GIVEN | st.floats(1e-3, 1e6), clock=st.sampled_from(["wall", "cpu"]),
    images_seen=NOT_GIVEN | COUNT, accumulate=COUNT, val_every=NOT_GIVEN | COUNT,
    schedule_steps=NOT_GIVEN | st.builds(lambda first, later: {0: first, **later}, COUNT, st.dictionaries(COUNT, COUNT, max_size=3)),
)  # fmt: skip


def parse(words: list[str]) -> dict:
    command, bound, _ = app.parse_args(fill_in(words), exit_on_error=False, print_error=False)
    assert command.__name__ == "command"
    return {"flags": TrainFlags(), **bound.arguments}


@given(FLAGS)
@settings(deadline=None)
def test_flags_are_read_back_from_their_words(flags):
    assert parse(["train", "data", *flags.words()]) == {"data": "data", "flags": flags}


@given(FLAGS, st.integers(1, 2000), st.integers(1, 400), st.integers(1, 10**5))
@settings(deadline=None)
def test_the_command_of_a_run_repeats_it(flags, epoch_batches, batch, epochs):
    own = {name: value for flag in fields(RunFlags) if (value := getattr(flags, name := flag.name)) is not None}
    length = RunLength(epochs=epochs, accumulate=flags.accumulate, val_every=flags.val_every).with_data(epoch_batches, batch)
    config = RunConfig(**{"model": "detr", "preset": "tiny", "image_size": 64, "batch_size": 2, "lr": 0.1, **own}, data="d", length=length)
    found = parse(shlex.split(config.command("out"))[1:])
    assert (found["data"], str(found["out"])) == ("d", "out")
    again = found["flags"]
    assert replace(
        again, device=config.device, workers=config.workers, options=again.options or {}, augment=again.augment or {}
    ) == TrainFlags(**{flag.name: getattr(config, flag.name) for flag in fields(RunFlags)}, **vars(length.as_flags()))
    repeated = RunLength(**vars(length.as_flags()) | {"schedule_steps": {}}).with_data(epoch_batches, batch)
    assert repeated == length


def test_a_configuration_is_read_back(tmp_path):
    length = RunLength(minutes=2.5, clock="cpu", schedule_steps={0: 30, 8: 40}).with_data(7, 8).with_total_batches(33)
    options = {"num_queries": [9, 8], "backbone_options": {"channels": [8]}}
    config = RunConfig(data="d", model="detr", preset="tiny", options=options, image_size=64, batch_size=4, lr=0.1, length=length)
    config.write(tmp_path)
    assert RunConfig.read(tmp_path) == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (written["format"], written["epochs"], written["steps"]) == (5, 5, 33)
    assert "--images-seen 264 --schedule-steps 30,8:40" in written["command"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": "fast"}, "lr is a str"),
        ({"device": "tpu"}, "device is a str"),
        ({"length": {"epochs": "many"}}, "epochs is a str"),
        ({"length": None}, "not a run's configuration"),
        ({"image_size": -1}, r"config\.yaml: image_size=-1: must be a finite number above 0; was it edited\?"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"seed": 2**70}, "must fit into 64 bits"),
        ({"patience": True}, "patience is a bool"),
        ({"world_size": 0}, "world_size=0"),
        ({"format": 6, "boxquery": "9.0"}, r"written by boxquery 9\.0 \(format 6\)"),
        ({"augment": {"flips": 0}}, r"config\.yaml: augment: no part 'flips'; parts: scales, crop, .*mosaic, .*; was it edited\?"),
        ({"augmentation": {"flip": 2.0}}, r"config\.yaml: augmentation: flip=2\.0 is out of range; .*; was it edited\?"),
    ],
)
def test_an_invalid_configuration_is_one_line(tmp_path, change, message):
    config = RunConfig(data="d", model="detr", preset="tiny", image_size=64, batch_size=4, lr=0.1, length=RunLength().with_data(3, 4))
    config.write(tmp_path)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | change))
    with pytest.raises(bq.UserError, match=message):
        RunConfig.read(tmp_path)


def test_python_takes_the_flags_as_keywords():
    import inspect

    names = list(inspect.signature(bq.train).parameters)
    assert names[:3] == ["data", "out", "resume"]
    assert set(names[3:]) == {flag.name for flag in fields(TrainFlags)}
    with pytest.raises(bq.UserError, match=r"no keyword epoch; did you mean epochs"):
        bq.train("shapes", epoch=3)


def test_help_prints_defaults_and_choices_and_no_python(capsys, monkeypatch):
    monkeypatch.setattr(app, "_console", Console(width=400))  # each command keeps the console of its first --help otherwise
    assert run(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[choices: wall, cpu] [default: wall]" in text
    assert "Size and recipe: paper, small, tiny, or a further size that is published" in text
    for leak in ("None", "False", "True", "start_from", "``", "list_models", "boxquery."):
        assert leak not in text, leak
    for flag in fields(TrainFlags):
        name = {"start_from": "from", "options": "option"}.get(flag.name, flag.name.replace("_", "-"))
        assert f"--{name} " in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--augment", "strong"], {"level": "strong"}),
        (["--augment", "strong", "--augment", "flip=0", "--augment", "mosaic=0.5"], {"level": "strong", "flip": 0.0, "mosaic": 0.5}),
        (["--augment", "scales=1", "--augment", "zoom-out=.1"], {"scales": [1.0], "zoom_out": 0.1}),
        (["--augment", "mosaic_scales=[0.5, 1]", "--augment=none"], {"level": "none", "mosaic_scales": [0.5, 1.0]}),
        (["--augment", "--epochs", "2"], {}),
    ],
)
def test_augmentation_by_level_and_by_name(words, parts):
    assert parse(["train", "data", *words])["flags"].augment == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--augment", "much"], "no level 'much'; levels: none, light, default, strong; parts, as name=value: scales, crop, "),
        (["--augment", "flips=0"], "no part 'flips'; parts: scales, crop, "),
        (["--augment", "flip=no"], "flip=False: must be a number; 0 is off"),
        (["--augment", "flip=2"], "augmentation: flip=2.0 is out of range; choose 0 to 1"),
        (["--augment", "rotation=-3"], "rotation=-3.0 is out of range; choose 0 to 180 degrees"),
        (["--augment", "scales=[]"], "scales=() should be positive fractions"),
        (["--augment", "mosaic_scales=[1, .5]"], "mosaic_scales=(1.0, 0.5) should be the least and the largest"),
        (["--augment", "scales=[a]"], "scales=['a']: must be numbers, like [0.8, 1.0, 1.2]"),
        (["--augment", "=3"], "'=3': write name=value"),
        (["--augment", "flip={"], "'flip={': the value is not YAML"),
        (["--augment", "none", "--augment", "light"], "none and light: give one level"),
        (["--augment", "own=f"], "own='f': must be a function, which only boxquery.train in Python can be given"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_wrong_augmentation_is_one_line(words, message, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["--models", "detr,dab-detr", "--out", "x"] if command == "compare" else []
    assert run([command, "shapes", *models, *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert message in text
    assert not list(tmp_path.iterdir())


def test_an_augmentation_is_recorded_whole():
    """Its values are those of a file, and give the same again."""
    for augment in (DETR, *LEVELS.values(), Augment(rotation=12.5, mosaic_scales=(0.3, 0.9))):
        values = yaml.safe_load(yaml.safe_dump(augment.values()))
        assert values == augment.values()
        assert recorded(values) == augment
    named = Augment(own=parse).values()
    assert named["own"] == f"{__name__}.parse"
    assert recorded(named, parse) == Augment(own=parse)
    assert recorded({}) == DETR


def test_levels_are_of_increasing_strength():
    none, light, strong = (LEVELS[name] for name in ("none", "light", "strong"))
    for part in ("flip", "crop", "colour", "zoom_out", "mosaic", "mixup", "rotation"):
        assert 0 == getattr(none, part) <= getattr(light, part) <= getattr(strong, part)


@pytest.mark.parametrize("verb", ["train", "check"])
@pytest.mark.parametrize(
    ("model", "option", "said"),
    [
        ("d-fine", "reg_max=0", "d-fine: reg_max=0: must be"),
        ("d-fine", "layers=3", "d-fine: unknown option 'layers'"),
        ("d-fine", "reg_scale=nan", "d-fine: reg_scale='nan'"),
        ("detr", "backbone=resnet999", "backbone 'resnet999' is not a timm model"),
        ("detr", "classes=3", "detr: unknown option 'classes'"),
        ("petr", "levels=9", "backbone 'resnet50' has fewer than 9 maps"),
        ("petr", "layers=3", "petr: unknown option 'layers'"),
    ],
)
def test_an_option_that_a_model_cannot_have_is_refused_before_data_are_read(verb, model, option, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1.0-mini").mkdir()
    (tmp_path / "v1.0-mini" / "sample.json").write_text("no table")
    (tmp_path / "empty").mkdir()
    data = str(tmp_path if model == "petr" else tmp_path / "empty")
    assert run([verb, data, "--model", model, "--preset", "paper", "--option", option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert not (tmp_path / "runs").exists()
