"""``--model auto``: what it chooses for which data and processor, that flags win, and that its run is a run like any other."""

import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import boxquery as bq
from boxquery import auto
from boxquery.augment import LEVELS
from boxquery.auto import (
    FEW,
    LARGER,
    LEAST_EPOCHS,
    LEAST_STEPS,
    LIGHT_FROM,
    MANY,
    MOST_CPU,
    MOST_GPU,
    MOST_STEPS,
    RATE_OBJECTS,
    SHORT_CPU,
    SIZES,
    STRONG_MINUTES,
    STRONG_UNTIL,
    VISIBLE,
    DataFacts,
    Given,
    choose,
)  # fmt: skip
from boxquery.cli import run
from boxquery.data.shapes import shapes_data
from boxquery.device import Processor
from boxquery.fine_tuning import from_shapes
from boxquery.models import preset, register
from boxquery.training import settings
from boxquery.training.config import RunConfig, TrainFlags
from boxquery.training.module import Training
from boxquery.training.state import finished_epochs
from tests.data.writers import drawn, write_coco

from .processes import apart, in_two
from .runs import SMALL, Stop, rows, scenes

CPU, GPU, SMALL_GPU = Processor("cpu", 2), Processor("cuda", 8, 24.0), Processor("cuda", 8, 6.0)
RECIPE, TINY = preset(auto.MODEL, "small").recipe, preset(auto.MODEL, "tiny").recipe
#: what is not left to auto, so that a run takes a second
QUICK: dict[str, Any] = {"options": SMALL, "image_size": 64, "device": "cpu", "precision": "float32", "pretrained": False}


def facts(
    images: int = 131, *, side: float = 0.3, short_side: float = 0.2, image_side: int = 640, objects: float = 1.5, most_objects: int = 3,
    mixed: float = 0.0,
) -> DataFacts:  # fmt: skip
    return DataFacts(images, objects, most_objects, side, short_side, image_side, mixed)


def steps(images: int, batch_size: int, epochs: int | None) -> int:
    assert epochs is not None
    return epochs * max(images // batch_size, 1)


@pytest.mark.parametrize("processor", [CPU, GPU])
@pytest.mark.parametrize("images", [1, 2, 10, 100, 1_000, 20_000, 120_000])
def test_every_set_is_seen_long_enough_and_not_too_long(images, processor):
    choice = choose(facts(images), processor, Given())
    done = steps(images, choice.batch_size, choice.epochs)
    assert done >= LEAST_STEPS
    assert done <= max(MOST_STEPS, LEAST_EPOCHS * images / choice.batch_size)
    assert choice.batch_size <= images
    size = "tiny" if images < MANY and processor == CPU else "small"
    assert (choice.model, choice.preset, choice.image_size) == (auto.MODEL, size, preset(auto.MODEL, size).recipe.image_size)
    assert choice.chosen == sorted(["augment", "batch_size", "epochs", "image_size", "lr", "model", "preset", "square", *choice.options])


def test_few_images_are_trained_for_more_epochs_and_many_for_fewer():
    epochs = [choose(facts(images), GPU, Given()).epochs or 0 for images in (10, 1_000, 20_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[1] == RECIPE.epochs
    both = [choose(facts(10), CPU, Given(accumulate=2)).epochs, choose(facts(10), CPU, Given(processes=2)).epochs]
    assert both == [LEAST_STEPS, LEAST_STEPS]


def test_a_gpu_trains_larger_batches_and_of_many_images_a_larger_model():
    few, some, many = (choose(facts(images), GPU, Given()) for images in (20, 1_000, MANY))
    assert few.batch_size == RECIPE.batch_size < some.batch_size
    assert (few.options, some.options, many.options) == ({}, {}, LARGER)
    assert choose(facts(MANY), GPU, Given(options={"hidden_dim": 64})).options == {**LARGER, "hidden_dim": 64}
    assert choose(facts(MANY), SMALL_GPU, Given()).options == choose(facts(MANY), CPU, Given()).options == {}
    assert choose(facts(1_000), SMALL_GPU, Given()).batch_size < some.batch_size
    model = bq.create_model(many.model, classes=3, preset=many.preset, **many.options)
    assert model.num_queries_per_layer[-1] == 300


@pytest.mark.parametrize("processor", [CPU, GPU])
def test_small_objects_get_pixels_as_far_as_images_and_processor_go(processor):
    most = MOST_GPU if processor == GPU else MOST_CPU
    many = MANY
    sizes = {short: choose(facts(many, short_side=short), processor, Given()).image_size for short in (0.3, 0.04, 0.035, 0.01)}
    assert sizes[0.3] == RECIPE.image_size
    for short, size in sizes.items():
        assert size * short >= VISIBLE or size == most
        smaller = [other for other in SIZES if RECIPE.image_size <= other < size]
        assert all(other * short < VISIBLE for other in smaller)
    assert sizes[0.01] == most
    assert choose(facts(many, short_side=0.01, image_side=300), processor, Given()).image_size == 320, "the images have no more"
    assert choose(facts(many, image_side=150), processor, Given()).image_size == 160
    tiny = TINY.image_size
    assert choose(facts(image_side=100), processor, Given()).image_size == 128 < tiny
    assert choose(facts(image_side=100, short_side=0.01), processor, Given()).image_size == tiny, "objects are too small to lose pixels"


def test_few_or_small_images_and_short_runs_have_the_tiny_preset():
    few, more, many = (choose(facts(images), CPU, Given()) for images in (FEW, FEW + 1, MANY))
    assert [choice.preset for choice in (few, more, many)] == ["tiny", "tiny", "small"]
    assert more.lines[0].startswith(f"auto: deformable-detr tiny: {FEW + 1} images are too few for a larger model on a CPU")
    assert choose(facts(FEW, short_side=0.06), CPU, Given()).image_size == 256, "its images grow with small objects as others do"
    assert choose(facts(MANY, image_side=160), CPU, Given()).preset == "tiny"
    minutes = [choose(facts(MANY), CPU, Given(minutes=minutes)).preset for minutes in (3, SHORT_CPU)]
    assert minutes == ["tiny", choose(facts(), GPU, Given(minutes=3)).preset] == ["tiny", "small"]


def test_there_are_queries_for_every_object():
    for size in ("tiny", "small"):
        usual = preset(auto.MODEL, size).options.num_queries
        assert choose(facts(most_objects=usual), CPU, Given(preset=size)).options == {}
    crowded = choose(facts(most_objects=150), CPU, Given())
    assert crowded.options == {"num_queries": 180}
    assert "num_queries" in crowded.chosen
    assert "tiny with num_queries=180: 131 images" in crowded.lines[0]
    assert choose(facts(most_objects=150), CPU, Given(options={"num_queries": 30})).options == {"num_queries": 30}


@pytest.mark.parametrize("given", [
    {"preset": "tiny"}, {"preset": "paper"}, {"image_size": 224}, {"batch_size": 7}, {"epochs": 3}, {"minutes": 30.0}, {"images_seen": 800},
    {"augment": "none"}, {"lr": 0.002}, {"square": True},
])  # fmt: skip
def test_what_is_given_wins_and_is_called_given(given):
    ((name, value),) = given.items()
    choice = choose(facts(short_side=0.01), GPU, Given(**given))
    assert choice.flags().get(name, value) == ({"level": value} if name == "augment" else value)
    assert name not in choice.chosen
    assert [line for line in choice.lines if re.search(rf"as given \(--(model, --)?{name.replace('_', '-')}\)", line)]
    assert ("epochs" in choice.chosen) == (name in ("preset", "image_size", "batch_size", "augment", "lr", "square"))
    if value == "paper":
        published = preset(auto.MODEL, "paper").recipe
        assert (choice.image_size, choice.batch_size, choice.epochs) == (published.image_size, published.batch_size, published.epochs)


def test_few_images_are_augmented_most():
    levels = [choose(facts(images), GPU, Given()).augment for images in (STRONG_UNTIL, STRONG_UNTIL + 1, LIGHT_FROM)]
    assert levels == [{"level": "strong"}, {}, {"level": "light"}]
    runs = [choose(facts(), CPU, Given(minutes=minutes)).augment.get("level") for minutes in (1, STRONG_MINUTES - 1, STRONG_MINUTES)]
    assert runs == [None, None, "strong"], "too short for it"
    parts = choose(facts(), CPU, Given(augment={"flip": 0}))
    assert parts.augment == {"level": "strong", "scales": [1.0], "flip": 0.0}, "the tiny preset has one size"
    assert parts.lines[2].endswith("augmentation strong in one size with flip=0.0 as given, since 131 images are few (--augment)")
    assert "augment" in parts.chosen


def test_images_of_mixed_shapes_become_squares_of_one_size():
    choice = choose(facts(mixed=0.5), CPU, Given(minutes=5))
    assert (choice.square, choice.image_size, choice.augment) == (True, 160, {"scales": [1.0]})
    assert choice.lines[1].endswith("; squares, since shapes differ and would be padded (--no-square)")
    assert choose(facts(MANY, mixed=0.5), CPU, Given()).image_size == 256
    assert [choose(facts(mixed=0.5), CPU, given).square for given in (Given(square=False), Given(preset="paper"))] == [False, False]
    assert not choose(facts(mixed=0.05), CPU, Given()).square
    assert choose(facts(mixed=0.5), CPU, Given(square=True, preset="paper")).image_size == 800


def test_the_rate_falls_with_the_objects_of_a_step():
    rates = [choose(facts(objects=objects), CPU, Given()).lr for objects in (0, 1, 3, RATE_OBJECTS / 4, 30)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-2] == rates[-1] == RECIPE.lr
    assert choose(facts(objects=1), CPU, Given(batch_size=RATE_OBJECTS)).lr == RECIPE.lr
    assert choose(facts(objects=1), CPU, Given(preset="paper")).lr == preset(auto.MODEL, "paper").recipe.lr
    assert choose(facts(objects=1), CPU, Given(accumulate=RATE_OBJECTS)).lr == RECIPE.lr


def test_three_lines_say_what_was_chosen_why_and_by_which_flag():
    assert choose(facts(), CPU, Given()).lines == [
        "auto: deformable-detr tiny: 131 images are few, and a small model sees them often (--model, --preset)",
        "auto: 160 px: half of the objects are larger than 48 px there (--image-size)",
        "auto: batches of 4 (--batch-size), learning rate 0.0006, as a step has 6 objects (--lr), 250 epochs, about 8,000 steps, since 131 "
        "images are few (--epochs or --minutes), augmentation strong in one size, since 131 images are few (--augment)",
    ]
    assert choose(facts(20_000, short_side=0.01, objects=12.5), CPU, Given()).lines == [
        "auto: deformable-detr small: 20,000 images are many, but a larger model needs a GPU with 12 GB (--model, --preset)",
        "auto: 416 px, as the most on a CPU with 2 cores, though 10% of the objects measure less than 12 px there (--image-size)",
        "auto: batches of 4 (--batch-size), learning rate 0.001 (--lr), 12 epochs, about 60,000 steps, since 20,000 images are many "
        "(--epochs or --minutes), augmentation light, since 20,000 images are many (--augment)",
    ]


def test_facts_are_those_of_the_training_images():
    split = scenes(train=5).splits["train"]
    found = DataFacts.of(split)
    boxes = np.concatenate([record.boxes for record in split]) / 64
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (found.images, found.image_side) == (5, 64)
    assert found.objects == pytest.approx(len(boxes) / 5)
    assert found.mixed == 0
    assert found.most_objects == max(len(record.boxes) for record in split)
    assert found.side == pytest.approx(float(np.median(np.sqrt(sides.prod(1)))), rel=1e-6)
    assert found.short_side == pytest.approx(float(np.quantile(sides.min(1), 0.1)), rel=1e-6)


def data_folder(root: Path) -> Path:
    return write_coco(root / "photos", drawn(scenes()))


def test_a_run_records_the_choice_and_its_command_repeats_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = data_folder(tmp_path)
    words = ["--epochs", "2", "--image-size", "64", "--device", "cpu", "--precision", "float32", "--pretrained", "none"]
    words += [word for name, value in SMALL.items() for word in ("--option", f"{name}={value}".replace("'", ""))]
    assert run(["train", str(data), *words]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("auto: ")]
    assert lines == [
        "auto: deformable-detr tiny: images of 64 px are small (--model, --preset)",
        "auto: 64 px as given (--image-size)",
        "auto: batches of 4 (--batch-size), learning rate 0.0009, as a step has 27 objects (--lr), 2 epochs as given (--epochs), "
        "augmentation strong in one size, since 12 images are few (--augment)",
    ]
    folder = Path("runs/deformable-detr-tiny-photos-1")
    config = RunConfig.read(folder)
    assert (config.model, config.preset, config.image_size, config.batch_size) == ("deformable-detr", "tiny", 64, 4)
    assert config.chosen == ["augment", "batch_size", "lr", "model", "preset", "square"]
    assert (config.augment, config.augmentation["mosaic"]) == ({"level": "strong", "scales": [1.0]}, LEVELS["strong"].mosaic)
    again = shlex.split(config.command("again"))[1:]
    assert "auto" not in again
    assert run([*again, "--device", "cpu"]) == 0
    assert "auto: " not in capsys.readouterr().err
    assert RunConfig.read(Path("again")) == replace(config, chosen=[])
    assert rows(Path("again")) == rows(folder)


def test_an_interrupted_run_of_auto_resumes_with_what_was_chosen(tmp_path, capsys, monkeypatch):
    data, step = scenes(), Training.training_step
    bq.train(data, out=tmp_path / "whole", epochs=2, **QUICK)

    def pull_the_plug(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise Stop
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", pull_the_plug)
    with pytest.raises(Stop):
        bq.train(data, out=tmp_path / "run", epochs=2, **QUICK)
    monkeypatch.setattr(Training, "training_step", step)
    capsys.readouterr()
    monkeypatch.setattr(settings, "choose", None)  # nothing is chosen again
    bq.train(data, out=tmp_path / "run", resume=True, model="auto")
    assert "auto: " not in capsys.readouterr().err
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    with pytest.raises(bq.UserError, match=r"started with model='deformable-detr', not 'detr'"):
        bq.train(data, out=tmp_path / "run", resume=True, model="detr")


@pytest.mark.parametrize("given", [{}, {"model": None}, {"model": "auto", "preset": None}])
def test_python_has_the_same_default(tmp_path, given):
    bq.train(scenes(), out=tmp_path / "run", images_seen=8, **given, **QUICK)
    config = RunConfig.read(tmp_path / "run")
    assert (config.model, config.preset, config.chosen) == (
        "deformable-detr",
        "tiny",
        ["augment", "batch_size", "lr", "model", "preset", "square"],
    )
    assert config.length.epochs is None


def test_a_budget_of_cpu_minutes_is_the_length(tmp_path):
    bq.train(scenes(), out=tmp_path / "run", model="auto", minutes=0.05, clock="cpu", **QUICK)
    config = RunConfig.read(tmp_path / "run")
    assert (config.length.minutes, config.length.epochs, config.length.ends_by_clock) == (0.05, None, True)
    assert "epochs" not in config.chosen


def test_a_named_model_has_its_preset_and_a_source_its_own(tmp_path, capsys):
    bq.train(scenes(), out=tmp_path / "first", model="detr", images_seen=8, **QUICK)
    assert (RunConfig.read(tmp_path / "first").preset, RunConfig.read(tmp_path / "first").chosen) == ("small", ["lr"])
    bq.train(scenes(), out=tmp_path / "next", model="auto", start_from=tmp_path / "first", images_seen=8, device="cpu")
    assert RunConfig.read(tmp_path / "next").model == "detr"
    assert "auto: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "per_step"), [({}, 4), ({"batch_size": 1, "preset": "tiny"}, 1), ({"accumulate": 3}, 12), ({"batch_size": 50}, 12)]
)
def test_the_rate_of_a_named_model_falls_with_the_objects_of_a_step(tmp_path, capsys, flags, per_step):
    data = shapes_data(train=12, val=2, test=2, size=64, objects=1)
    bq.train(data, out=tmp_path / "run", model="detr", images_seen=12, **flags, **QUICK)
    config, usual = RunConfig.read(tmp_path / "run"), preset("detr", flags.get("preset", "small")).recipe.lr
    assert config.lr == pytest.approx(usual * (per_step / RATE_OBJECTS) ** auto.RATE_POWER, rel=0.1)
    assert config.chosen == ["lr"]
    assert f"learning rate {config.lr:g}, as a step has {per_step} object" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [{"lr": 2e-3}, {"preset": "paper", "options": {}}])
def test_the_rate_that_is_given_or_published_stays(tmp_path, capsys, flags):
    config = settings.resolve("shapes", *settings.with_rate(TrainFlags(model="detr", device="cpu", **flags), scenes(), print))
    assert config.lr == flags.get("lr", preset("detr", "paper").recipe.lr)
    assert config.chosen == []
    assert not capsys.readouterr().out


def choose_by_rank(out: Path) -> None:
    """Train where the second process would choose otherwise."""
    choices = settings.choose

    def by_rank(*known):
        choice = choices(*known)
        return choice if os.environ["RANK"] == "0" else replace(choice, preset="small", batch_size=1, chosen=["model"])

    settings.choose = by_rank
    bq.train(scenes(), out=out, images_seen=16, **QUICK)


@pytest.mark.slow
def test_the_first_process_chooses_for_all(tmp_path):
    message = apart(tmp_path / "log", in_two, 0, choose_by_rank, tmp_path / "run")
    config = RunConfig.read(tmp_path / "run")
    assert (config.preset, config.batch_size, config.world_size, config.length.batch_images) == ("tiny", 4, 2, 8)
    assert finished_epochs(tmp_path / "run") == 2
    assert message.count("auto: ") == 3


def test_check_looks_at_the_size_that_training_chooses(tmp_path, capsys):
    data = data_folder(tmp_path)
    status = run(["check", str(data), "--json", "--out", str(tmp_path / "checked")])
    assert status == 0
    captured = capsys.readouterr()
    chosen = from_shapes(choose(DataFacts.of(scenes().splits["train"]), CPU, Given()), Given(), str(data))
    assert [line for line in captured.err.splitlines() if line.startswith("auto: ")] == chosen.lines
    assert f'"image_size": {chosen.image_size}' in captured.out
    run(["check", str(data), "--model", "detr", "--preset", "tiny", "--json"])
    captured = capsys.readouterr()
    assert f'"image_size": {preset("detr", "tiny").recipe.image_size}' in captured.out
    assert "auto: " not in captured.err


def test_auto_is_no_model(capsys):
    with pytest.raises(bq.UserError, match="the library has a model of this name"):
        register("auto", bq)  # pyright: ignore[reportArgumentType]
    with pytest.raises(bq.UserError, match="'auto' is resolved for a data set, by train and check; name a model here"):
        bq.create_model("auto", classes=3)
    assert "auto" not in bq.list_models()
    assert run(["compare", "shapes", "--models", "auto,detr", "--epochs", "1"]) == 2
    assert "'auto' is resolved for a data set" in capsys.readouterr().err
    assert run(["models"]) == run(["models", "auto"]) == 0
    assert capsys.readouterr().out.count("are chosen for the data and the processor") == 2


def test_data_without_a_training_split_is_refused_before_anything_is_chosen(tmp_path, capsys):
    data = scenes()
    broken = replace(data, splits={"val": data.splits["val"]})
    with pytest.raises(bq.UserError, match="no split 'train'"):
        bq.train(broken, out=tmp_path / "run", **QUICK)
    assert "auto: " not in capsys.readouterr().err
