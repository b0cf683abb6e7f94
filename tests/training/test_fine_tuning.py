"""Where auto starts from: weights of COCO that the hub's cache has, of the size that fits, trained on with settings of their own."""

import json
import re
import shlex
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

import boxquery as bq
from boxquery.auto import FEW, LARGE_MEMORY, MANY, MANY_CORES, DataFacts, Given
from boxquery.cli import run
from boxquery.data.open import open_data
from boxquery.device import Processor
from boxquery.fine_tuning import CPU_SIZE, LEAST_STEPS, SHAPES, SHAPES_ALLOWS, SHAPES_IS, STARTS, find_start, fitting, tune
from boxquery.hub import LARGE, HubModel
from boxquery.models import preset
from boxquery.models.options import Options
from boxquery.models.recipes import FINE_TUNING
from boxquery.official.transformers import list_kinds
from boxquery.training.config import RunConfig
from boxquery.training.fit import Run
from tests.data.writers import drawn, write_coco
from tests.models.transformers_folders import model, save
from tests.test_hub import at, put

from .runs import rows

CPU, GPU = Processor("cpu", 2), Processor("cuda", 8, LARGE_MEMORY)
#: of what every run here is, so that it takes a second
QUICK = ["--image-size", "64", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--precision", "float32"]
SCENES = "shapes:train=8,val=4,test=4,size=64"


def facts(images: int = 131, short_side: float = 0.2, mixed: float = 0.0) -> DataFacts:
    return DataFacts(images, 1.5, 3, 0.3, short_side, 640, mixed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small D-FINE that knows a class of the built-in scenes."""
    theirs = model("d-fine", ("person", "circle", "N/A", "cup"), num_queries=40)
    made = save(theirs, tmp_path_factory.mktemp("theirs") / "hf", processor="RTDetrImageProcessor")
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_every_start_is_a_model_that_is_read():
    for start in STARTS.values():
        assert start.model in list_kinds()
        assert preset(start.model, start.preset)


def test_the_size_fits_data_and_processor():
    names = {start.preset: name for name, start in STARTS.items()}

    def size(processor: Processor, images: int = 131, **given: Any) -> str:
        return names[fitting(facts(images), processor, Given(**given)).preset]

    assert size(CPU) == size(CPU, 100_000) == "nano"
    assert size(Processor("cpu", MANY_CORES)) == "small"
    assert [size(GPU, images) for images in (10, FEW, MANY)] == ["small", "medium", "large"]
    assert size(Processor("cuda", 8, 6.0), MANY) == "medium"
    assert size(GPU, MANY, minutes=1.0) == "nano"


def test_what_is_given_is_kept_and_the_rest_has_settings_of_its_own():
    start, found = STARTS["nano"], HubModel(STARTS["nano"].name, 15_300_000, "apache-2.0", ())
    choice = tune(facts(), CPU, Given(), start, found)
    assert (choice.model, choice.preset, choice.start_from, choice.recipe) == ("d-fine", "n", start.name, "fine-tuning")
    assert (choice.square, choice.image_size, choice.lr) == (True, CPU_SIZE, pytest.approx(FINE_TUNING.lr, rel=0.5))
    assert choice.epochs is not None
    assert choice.epochs * (131 // choice.batch_size) >= LEAST_STEPS
    assert choice.augment == {"level": "light", "scales": [1.0]}
    assert choice.lines[0] == (
        f"auto: d-fine n from {start.name} (licence apache-2.0, 15 MB), trained on COCO (--from; --pretrained none: random)"
    )
    assert tune(facts(), GPU, Given(), start, found).image_size == 640
    crowded = tune(replace(facts(), most_objects=310), CPU, Given(), start, found)
    assert (crowded.options, "d-fine n with num_queries=380 from " in crowded.lines[0]) == ({"num_queries": 380}, True)
    given = Given(image_size=96, square=False, batch_size=2, lr=3e-4, minutes=2.0, augment="strong")
    chosen = tune(facts(), CPU, given, start, found)
    assert (chosen.image_size, chosen.square, chosen.batch_size, chosen.lr, chosen.epochs) == (96, False, 2, 3e-4, None)
    assert chosen.augment == {"level": "strong"}
    assert chosen.chosen == ["model", "preset", "recipe", "start_from"]


def test_a_run_starts_from_what_the_cache_has(folder, cache, monkeypatch, capsys):
    put(folder, cache, STARTS["nano"].name)
    recipes = []
    fit = Run.fit
    monkeypatch.setattr(Run, "fit", lambda self, state: recipes.append(self.recipe) or fit(self, state))
    assert run(["train", SCENES, "--out", "run", *QUICK]) == 0
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if "licence apache-2.0" in line]) == 1
    assert f"auto: d-fine n from {STARTS['nano'].name} (licence apache-2.0, " in said
    assert re.search(r"classes taken over: .*circle", said)
    assert "transformers" not in said
    assert "Warning" not in said
    config = RunConfig.read(Path("run"))
    assert (config.start_from, config.recipe, config.model, config.preset) == (STARTS["nano"].name, "fine-tuning", "d-fine", "n")
    assert (config.square, config.lr) == (True, pytest.approx(FINE_TUNING.lr, rel=0.9))
    assert (recipes[0].ema, recipes[0].decay, recipes[0].lr) == (FINE_TUNING.ema, FINE_TUNING.decay, config.lr)
    assert recipes[0].backbone_lr == pytest.approx(config.lr / 10)
    preprocessing = bq.load("run").preprocessing
    assert (preprocessing.square, preprocessing.mean, preprocessing.image_size) == (True, None, 64)
    # the command in the run's configuration repeats it
    words = shlex.split(yaml.safe_load(Path("run/config.yaml").read_text())["command"])
    assert run([*words[1:-1], "again"]) == 0
    again = RunConfig.read(Path("again"))
    assert (again.start_hash, again.recipe, again.options) == (config.start_hash, config.recipe, config.options)
    metrics = [Path(name, "metrics.csv").read_text().splitlines()[1].split(",")[:4] for name in ("run", "again")]
    assert metrics[0] == metrics[1]


def test_without_weights_it_is_the_recipe_from_random_ones(cache, capsys):
    """A line says why; asking that nobody is asked, or naming a preset or options, leaves that out."""
    small = ["--option", "decoder_layers=1"]
    assert run(["train", SCENES, "--out", "run", "--preset", "tiny", *QUICK]) == 0
    assert "trained on COCO" not in capsys.readouterr().err
    assert run(["train", SCENES, "--out", "other", *QUICK, *small]) == 0
    assert "trained on COCO" not in capsys.readouterr().err
    lines: list[str] = []
    assert find_start(facts(), CPU, Given(), lines.append) is None
    name = STARTS["nano"].name
    assert lines == [f"note: no weights trained on COCO to start from: {name} is not in the hub's cache, and HF_HUB_OFFLINE is set"]
    assert RunConfig.read(Path("run")).recipe == "preset"


@pytest.fixture
def photographs(cache) -> str:
    """A data set that is no scenes to boxquery."""
    return str(write_coco(cache.parent / "photographs", drawn(open_data(SCENES))))


def test_without_weights_of_coco_it_starts_from_drawn_scenes(photographs, capsys):
    """Said in a line, recorded, and repeated by the command."""
    assert run(["train", photographs, "--out", "run", *QUICK]) == 0
    said = capsys.readouterr().err
    assert "it starts from weights that learned drawn scenes and come with boxquery (--from; --pretrained none: random)" in said
    config, before = RunConfig.read(Path("run")), bq.load(SHAPES).model.state_dict()
    assert (config.start_from, config.recipe, config.model, config.preset) == (SHAPES, "preset", *SHAPES_IS)
    assert "start_from" in config.chosen
    assert json.loads(Path("run/transfer.json").read_text())["from"] == SHAPES
    name, near = "backbone.body.layer1.0.conv1.weight", {}
    for start in (SHAPES, None):
        detector = bq.load("run") if start else bq.train(photographs, out="random", **given_quick(), pretrained=False)
        near[start] = float((detector.model.state_dict()[name] - before[name]).abs().mean())
    assert near[SHAPES] < 0.1 * near[None]
    command = config.command(Path("again"))
    assert run(shlex.split(command)[1:]) == 0
    assert [row["loss"] for row in rows(Path("again"))] == [row["loss"] for row in rows(Path("run"))]


def given_quick() -> dict[str, Any]:
    return {"image_size": 64, "epochs": 1, "batch_size": 4, "device": "cpu", "precision": "float32"}


@pytest.mark.parametrize("more", [["--pretrained", "none"], ["--option", "decoder_layers=1"], ["--model", "deformable-detr"]])
def test_random_weights_are_had_by_asking(photographs, monkeypatch, capsys, more):
    """Or by an option with which the weights of drawn scenes do not fit, which is said."""
    monkeypatch.setattr(Run, "fit", lambda self, state: self.detector)
    assert run(["train", photographs, "--out", "run", *QUICK, *more]) == 0
    said = "not from the weights that learned drawn scenes, as decoder_layers builds another network (--from shapes keeps what fits)"
    err = capsys.readouterr().err
    assert (said in err, "drawn scenes" in err) == (("--option" in more),) * 2
    assert RunConfig.read(Path("run")).start_from is None


@pytest.mark.parametrize("option", ["num_queries=60", "matching=denoising+dense", "class_loss=mal", "levels=3"])
def test_options_that_build_the_same_network_keep_the_start(photographs, monkeypatch, option):
    """Also one that the preset has anyway."""
    assert {field.name for field in fields(Options)} >= SHAPES_ALLOWS
    monkeypatch.setattr(Run, "fit", lambda self, state: self.detector)
    assert run(["train", photographs, "--out", "run", *QUICK, "--option", option]) == 0
    assert RunConfig.read(Path("run")).start_from == SHAPES


def test_the_bundled_model_is_one_like_any_other(photographs, monkeypatch, capsys):
    """It is named by a word; a folder of that name wins; and other sizes take over what fits."""
    monkeypatch.setattr(Run, "fit", lambda self, state: self.detector)
    assert bq.load(SHAPES).classes[:6] == ["circle", "square", "triangle", "star", "cross", "silhouette 6"]
    assert run(["train", photographs, "--from", SHAPES, "--preset", "small", "--out", "small", *QUICK]) == 0
    assert "classes taken over: " in capsys.readouterr().err
    Path(SHAPES).mkdir()
    with pytest.raises(bq.UserError, match="neither a run nor a model folder"):
        bq.load(SHAPES)


def test_check_says_that_training_starts_from_drawn_scenes(photographs, capsys):
    assert run(["check", photographs, "--json"]) in (0, 1)
    assert "it starts from weights that learned drawn scenes" in capsys.readouterr().err


def test_a_broken_file_in_the_cache_stops_nothing(folder, cache, monkeypatch, capsys):
    place = put(folder, cache, STARTS["nano"].name)
    (place / "model.safetensors").unlink()
    (place / "model.safetensors").write_bytes(b"half")
    monkeypatch.setattr(Run, "fit", lambda self, state: self.detector)
    assert run(["train", SCENES, "--out", "run", *QUICK]) == 0
    said = capsys.readouterr().err
    assert "note: no weights trained on COCO to start from: " in said
    assert "cut short" in said
    assert RunConfig.read(Path("run")).start_from is None


def test_another_model_in_its_place_stops_nothing(cache, tmp_path, monkeypatch, capsys):
    put(save(model("detr-resnet"), tmp_path / "detr"), cache, STARTS["nano"].name)
    monkeypatch.setattr(Run, "fit", lambda self, state: self.detector)
    assert run(["train", SCENES, "--out", "run", *QUICK]) == 0
    assert f"COCO to start from: {STARTS['nano'].name} in the hub's cache is a detr, not the d-fine" in capsys.readouterr().err
    assert RunConfig.read(Path("run")).start_from is None


def test_a_preset_of_other_models(cache, capsys):
    assert run(["train", SCENES, "--out", "run", "--preset", "r18", *QUICK]) == 2
    said = "error: --preset r18: deformable-detr, which auto chose, has none of that name; add --model rt-detr or rt-detr-v2"
    assert said in capsys.readouterr().err


def test_no_network_is_over_in_seconds(cache, monkeypatch):
    at("http://hub.invalid", monkeypatch)
    started, lines = time.monotonic(), []
    assert find_start(facts(), CPU, Given(), lines.append) is None
    assert time.monotonic() - started < 3.0
    assert len(lines) == 1


def test_a_large_model_is_not_fetched_unasked(cache, monkeypatch, capsys):
    name = STARTS["nano"].name
    monkeypatch.setattr("boxquery.fine_tuning.find_model", lambda _: HubModel(name, LARGE + 1, "apache-2.0", ("config.json",)))
    monkeypatch.setattr(Run, "fit", lambda self, state: self.detector)
    assert run(["train", SCENES, "--out", "run", *QUICK]) == 0
    assert "more than 200 MB are only downloaded with --download" in capsys.readouterr().err
    assert RunConfig.read(Path("run")).start_from is None


def test_check_says_what_training_starts_from(folder, cache, capsys):
    put(folder, cache, STARTS["nano"].name)
    assert run(["check", SCENES, "--json"]) == 0
    captured = capsys.readouterr()
    assert f"auto: d-fine n from {STARTS['nano'].name}" in captured.err
    assert json.loads(captured.out)["feasibility"]["queries"] == preset("d-fine", "n").options.num_queries


def test_the_demo_shows_it(folder, cache, monkeypatch, capsys):
    asked = []

    class Trained:
        run = Path("run")

    Path("run").mkdir()
    Path("run/evaluation.json").write_text(json.dumps({"test": {"images": 4, "AP": 0.5, "AP50": 0.75}}))
    monkeypatch.setattr("boxquery.training.run.train", lambda data, **settings: asked.append(settings) or Trained)
    assert run(["demo", "--pretrained", "--minutes", "0.1"]) == 0
    assert (asked[0]["start_from"], asked[0]["recipe"], asked[0]["minutes"]) == (STARTS["nano"].name, "fine-tuning", 0.1)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{STARTS['nano'].name} fine-tuned on the built-in scenes for ")
    assert json.loads(captured.out)["AP"] == 0.5
    assert run(["demo", "--minutes", "0.1"]) == 0
    assert asked[1]["model"] == "deformable-detr"
    assert run(["demo", "--pretrained", "weights.pth"]) == 2
    capsys.readouterr()
    Path("run/evaluation.json").unlink()  # the first of several processes has yet to write it
    monkeypatch.setenv("RANK", "1")
    assert run(["demo", "--minutes", "0.1"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.undo()


def test_the_demo_says_what_is_missing(cache, capsys):
    assert run(["demo", "--pretrained", "--minutes", "0.1"]) == 2
    assert f"error: {STARTS['nano'].name}: no such folder here, and as a hub id: " in capsys.readouterr().err
