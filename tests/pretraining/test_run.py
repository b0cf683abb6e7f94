"""Whole runs of pre-training: what they leave, that a stopped one resumes the same, what training takes from them, what they refuse."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.data.shapes import shapes_data
from boxquery.models import create_model, list_baselines, list_scene_models
from boxquery.parts import weights as finder
from boxquery.parts.backbone import Backbone
from boxquery.parts.weights import BackboneWeights
from boxquery.pretraining.task import PATCHES, PatchDetector, PatchTask
from boxquery.training.config import RunConfig
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.module import Training
from tests.data.writers import pictures, write_voc
from tests.training.runs import SMALL, Stop, rows, settings

NAMES = ["circle", "square", "triangle", "star", "cross"]


def images() -> Any:
    return shapes_data(train=12, val=4, test=2, size=64)


def pretrain(out: Path, model: str = "detr", **flags: Any) -> Any:
    return bq.pretrain(images(), out=out, **{**settings(model), "patches": 4, "pretrained": False, "epochs": 2, **flags})


def stop_after(monkeypatch, epochs: int) -> None:
    keep = EpochEnd.keep

    def pull_the_plug(self, trainer):
        keep(self, trainer)
        if trainer.current_epoch + 1 == epochs:
            raise Stop

    monkeypatch.setattr(EpochEnd, "keep", pull_the_plug)


@pytest.fixture(scope="module", params=["deformable-detr"])
def finished(request, tmp_path_factory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / request.param
    return request.param, folder, pretrain(folder, request.param)


def test_a_run_leaves_what_any_run_leaves(finished):
    name, folder, detector = finished
    table = rows(folder)
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert {"loss", "class", "l1", "giou", "feature", "AP", "AP50", "iou"} <= table[0].keys()
    assert 0 <= float(table[1]["iou"]) <= 1
    for file in ("model/config.json", f"model/{PATCHES}", "last.ckpt", "check.json", "data.json"):
        assert (folder / file).is_file(), file
    report = (folder / "report.html").read_text()
    assert f"{name} pre-trained on shapes" in report
    assert "Patches found" in report
    metrics = json.loads((folder / "evaluation.json").read_text())
    assert list(metrics) == ["val"]
    assert metrics["val"]["iou"] == pytest.approx(float(table[1]["iou"]), abs=1e-6) or metrics["val"]["AP"] >= float(table[1]["AP"])
    assert [row["name"] for row in metrics["val"]["per_class"]] == ["patch 1", "patch 2", "patch 3", "patch 4"]
    assert detector.classes == [None]
    assert len(detector.predict(images().splits["val"].read(0), threshold=0.0)) == 0, "what it knows is no class"


def test_its_command_repeats_it(finished):
    name, folder, _ = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["command"].startswith(f"boxquery pretrain shapes --model {name}")
    assert "--patches 4" in config["command"]
    assert RunConfig.read(folder).resume_command(folder).startswith("boxquery pretrain shapes --out")


def test_its_model_is_an_ordinary_one(finished):
    name, folder, detector = finished
    plain = create_model(name, classes=1, preset="tiny", **SMALL)
    assert load_file(folder / "model" / "model.safetensors").keys() == plain.state_dict().keys()
    loaded = PatchDetector.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(loaded.transformer.parameters(), detector.model.parameters(), strict=True))


def test_stopped_and_resumed_it_is_the_same_run(finished, tmp_path, monkeypatch):
    name, whole, _ = finished
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(Stop):
            pretrain(tmp_path / "run", name)
    assert len(rows(tmp_path / "run")) == 1
    bq.pretrain(images(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(whole)
    for file in ("model.safetensors", PATCHES):
        ours, theirs = load_file(tmp_path / "run" / "model" / file), load_file(whole / "model" / file)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_training_goes_on_from_it(finished, tmp_path):
    _name, folder, _ = finished
    detector = bq.train(images(), start_from=folder, out=tmp_path / "run", epochs=1, batch_size=4, device="cpu", precision="float32")
    assert detector.classes == NAMES
    groups = {group["name"]: group for group in json.loads((tmp_path / "run" / "transfer.json").read_text())["groups"]}
    assert groups["class heads"]["kept"] == 0, "that of one patch is of no use"
    for part in ("backbone", "encoder", "decoder", "box heads"):
        assert groups[part]["new"] == groups[part]["moved"] == 0, part


def test_a_data_set_is_not_read_for_its_labels(tmp_path, capsys):
    """By the command line, on files whose annotations are broken; and it says what it does with the backbone."""
    data = write_voc(tmp_path / "photos", pictures(10))
    for file in data.rglob("*.xml"):
        file.write_text("<broken")
    words = ["--model", "detr", "--preset", "tiny", "--epochs", "1", "--image-size", "64", "--batch-size", "4", "--device", "cpu"]
    words += ["--patches", "3", "--pretrained", "none"]
    options = [word for name in ("hidden_dim=32", "heads=4", "num_queries=9") for word in ("--option", name)]
    assert command_line(["pretrain", str(data), *words, *options, "--freeze-backbone", "--out", str(tmp_path / "run"), "--json"]) == 0
    told = capsys.readouterr()
    assert "8 train, 2 val images, 3 patches each" in told.err
    assert "frozen at random weights" in told.err
    assert json.loads(told.out)["model"] == "detr"
    assert command_line(["pretrain", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert "already complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "frozen"),
    [({}, True), ({"train_backbone": True}, False), ({"pretrained": False}, False), ({"pretrained": False, "freeze_backbone": True}, True)],
)
def test_a_backbone_that_knows_something_is_frozen(tmp_path, monkeypatch, flags, frozen):
    """As published; from random weights it is trained, and either can be asked for."""
    own = SMALL | {"backbone_options": {}}
    tensors = {name: value.contiguous() for name, value in Backbone("resnet10t", 1).body.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    monkeypatch.setattr(finder, "_released", lambda backbone, progress: BackboneWeights.of("x", tmp_path / "weights.safetensors"))
    built = []
    build = PatchTask.build

    def keep(self, config, weights):
        built.append(build(self, config, weights))
        raise Stop

    monkeypatch.setattr(PatchTask, "build", keep)
    with pytest.raises(Stop):
        bq.pretrain(images(), out=tmp_path / "run", **{**settings("detr", own), "patches": 4, "epochs": 1, "pretrained": True, **flags})
    if "freeze_backbone" not in flags:  # which every run looks after
        assert any(parameter.requires_grad for parameter in built[0].backbone.parameters()) != frozen


@pytest.mark.parametrize("name", ["petr", "fcos", "faster-rcnn"])
def test_models_without_such_queries_are_refused(name, tmp_path, capsys):
    assert name in [*list_baselines(), *list_scene_models()]
    assert command_line(["pretrain", "shapes", "--model", name, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    why = "learns 3-D boxes from several cameras" if name in list_scene_models() else "has no queries that could be told what to look for"
    assert line.startswith(f"error: {name} {why}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"model": "auto"}, "pretrain needs a model"),
        ({"patches": 13}, "--patches 13: more than the 12 queries"),
        ({"patches": 0}, "patches=0: must be from 1 to the number of the model's queries"),
        ({"augment": {"mosaic": 0.5}}, "--augment mosaic: patches must stay"),
        ({"augment": "strong"}, "--augment strong: patches must stay"),
        ({"train_backbone": True, "freeze_backbone": True}, "exclude each other"),
        ({"threshold": 0.5}, "goes with --teacher"),
        ({"teacher": "runs/none"}, "folder of images"),
    ],
)
def test_what_cannot_be_is_one_error(flags, says, tmp_path):
    with pytest.raises(bq.UserError, match=says):
        pretrain(tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "nowhere: no such image or folder, and no match as a glob"),
        ("surround:train=5", "scenes of several cameras, and pretrain"),
    ],
)
@pytest.mark.parametrize("teacher", [[], ["--teacher", "runs/none"]])
def test_images_that_cannot_be_are_one_error_with_a_remedy(source, says, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line(["pretrain", source, "--model", "detr", *teacher]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert line.endswith("; give a folder of images, a glob, or without --teacher the word shapes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [[], ["--model", "petr"], ["--model", "fcos"], ["--teacher", "runs/none"], ["--from", "runs/none"]])
def test_images_that_are_not_there_are_named_before_all_else(flags, capsys):
    assert command_line(["pretrain", "nowhere", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nowhere: no such image or folder")


def test_a_model_must_be_named_before_anything_is_read(tmp_path, capsys):
    assert command_line(["pretrain", str(tmp_path)]) == 2  # which holds no image
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: pretrain needs a model: --model with one of ")


def test_interrupted_in_its_first_epoch_it_begins_again_as_it_says(tmp_path, monkeypatch, capsys):
    def ctrl_c(*_):
        raise KeyboardInterrupt

    folder = write_voc(tmp_path / "photos", pictures(10))
    words = ["pretrain", str(folder), "--model", "detr", "--preset", "tiny", "--epochs", "1", "--image-size", "64", "--pretrained", "none"]
    with monkeypatch.context() as patched:
        patched.setattr(Training, "training_step", ctrl_c)
        assert command_line([*words, "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "interrupted: no epoch had finished, so of the run only its settings are kept"
    assert command_line(shlex.split(said[-1].removeprefix("begin again with: boxquery "))) == 0
    assert len(rows(tmp_path / "run")) == 1


def test_runs_of_training_and_pretraining_are_not_confused(finished, tmp_path):
    _, folder, _ = finished
    with pytest.raises(bq.UserError, match="is a run of boxquery pretrain; resume it with boxquery pretrain"):
        bq.train(images(), out=folder, resume=True)
    bq.train(images(), out=tmp_path / "run", **settings("detr"), images_seen=4)
    with pytest.raises(bq.UserError, match="is a run of boxquery train; resume it with boxquery train"):
        bq.pretrain(images(), out=tmp_path / "run", resume=True)


def test_a_model_without_its_patches_cannot_be_evaluated_again(finished, tmp_path):
    _, folder, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "model" / PATCHES).unlink()
    with pytest.raises(bq.UserError, match="not what belongs to the model beside it"):
        PatchDetector.load(tmp_path / "run")
    assert bq.load(tmp_path / "run").classes == [None], "training needs it not"
