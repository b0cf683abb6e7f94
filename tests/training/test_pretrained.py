"""What a run's backbone starts from: asked for, found or not, written down, and on resuming not looked for again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import boxquery as bq
from boxquery.cli import app
from boxquery.cli import run as command_line
from boxquery.compare.plan import CompareFlags, Entry, resolved_plan
from boxquery.flags import fill_in
from boxquery.hub import Unavailable
from boxquery.parts import weights as finder
from boxquery.parts.backbone import Backbone
from boxquery.parts.weights import BackboneWeights
from boxquery.training import fit
from boxquery.training.config import RunConfig
from boxquery.training.run_length import Costs
from tests.data.writers import drawn, write_coco

from .runs import Stop, rows, scenes, settings

#: a backbone that is quick, and as a preset's is: of it released weights might be had
NAME = "resnet10t"
OPTIONS: dict[str, Any] = {"backbone": NAME, "backbone_options": {}, "hidden_dim": 32, "heads": 4, "ffn_dim": 32, "num_queries": 12}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors"
    tensors = {name: value.contiguous() for name, value in Backbone(NAME, 3).body.state_dict().items()}
    for name, value in tensors.items():
        if name.endswith("bn2.weight"):
            value.fill_(0.5)  # of an untrained network 0, and frozen it would let no gradient pass
    save_file(tensors, path)
    return path


@pytest.fixture
def released(file, monkeypatch):
    """As if the hub's cache had the weights of every backbone."""
    found = BackboneWeights.of("timm/resnet10t.c3_in1k", file)
    monkeypatch.setattr(finder, "_released", lambda backbone, progress: found)
    return found


def train(out: Path, **flags: Any) -> Any:
    return bq.train(scenes(), out=out, **{**settings("detr", OPTIONS), "images_seen": 8, **flags})


def backbone_of(folder: Path) -> dict[str, torch.Tensor]:
    state = load_file(folder / "model" / "model.safetensors")
    return {k.removeprefix("backbone.body."): v for k, v in state.items() if k.startswith("backbone.body.")}


def test_a_file_is_used_frozen_written_down_and_said(file, tmp_path, capsys):
    train(tmp_path / "run", pretrained=str(file))
    err = capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    digest = BackboneWeights.of("", file).sha256
    assert (config["pretrained"], config["weights"]) == (str(file), {"source": str(file), "file": str(file), "sha256": digest})
    assert f"--pretrained {file}" in config["command"]
    said = f"backbone from {file} (sha256 {digest[:12]}) stem, first stage and batch norm of the backbone stay frozen, its other layers are"
    assert said in " ".join(err.split())
    given, trained = load_file(file), backbone_of(tmp_path / "run")
    kept = [name for name in given if name.startswith(("conv1", "bn1", "layer1")) or name.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(trained[name], given[name]) for name in kept if not name.endswith("num_batches_tracked"))
    assert not torch.equal(trained["layer4.0.conv1.weight"], given["layer4.0.conv1.weight"])


@pytest.mark.parametrize("wanted", ["auto", None, True, "required"])
def test_released_weights_are_the_default(released, wanted, tmp_path):
    train(tmp_path / "run", pretrained=wanted)
    config = RunConfig.read(tmp_path / "run")
    assert (config.pretrained, config.weights["source"]) == (True, "timm/resnet10t.c3_in1k")


def test_a_preset_with_weights_is_another(tmp_path):
    """Its narrow backbone cannot have any: where there are weights it is a whole ResNet-18, at a tenth of the rate, also after a resume."""
    weights = {name: tensor.contiguous() for name, tensor in Backbone("resnet18", 3).body.state_dict().items()}
    save_file(weights, tmp_path / "resnet18.safetensors")
    plain = {"model": "detr", "preset": "tiny", "image_size": 64, "batch_size": 4, "device": "cpu", "precision": "float32", "options": None}
    path = str(tmp_path / "resnet18.safetensors")
    det = train(tmp_path / "run", pretrained=path, **plain)
    assert det.model.config["options"]["backbone_options"] == {}
    config = RunConfig.read(tmp_path / "run")
    assert (config.options, config.chosen) == ({"backbone_options": {}}, ["backbone_options", "lr"])
    (tmp_path / "resnet18.safetensors").unlink()
    again = bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert again.model.config == det.model.config
    rates = {
        group["name"]: group["initial_lr"] for group in torch.load(tmp_path / "run" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    }
    assert rates["backbone"] == pytest.approx(rates["transformer"] / 10)


@pytest.mark.parametrize("flags", [{"pretrained": False}, {"pretrained": "none"}])
def test_none_asks_nobody(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finder, "_released", lambda *given: pytest.fail("asked"))
    train(tmp_path / "run", **flags)
    assert RunConfig.read(tmp_path / "run").weights == {"source": "random"}
    assert "pretrained none" in yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["command"]
    assert "note: the backbone" not in capsys.readouterr().err


def test_without_weights_auto_says_so_in_a_line_and_required_stops(tmp_path, capsys):
    train(tmp_path / "run")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: the backbone")]
    assert len(notes) == 1
    assert "starts from random weights: timm/resnet10t.c3_in1k is not in the hub's cache, and HF_HUB_OFFLINE is set" in notes[0]
    assert "several times the steps" in notes[0]
    assert RunConfig.read(tmp_path / "run").pretrained is False
    with pytest.raises(Unavailable, match=r"^--pretrained: timm/resnet10t.* name a file or folder .*--pretrained none for random ones"):
        train(tmp_path / "other", pretrained=True)
    assert not (tmp_path / "other").exists()


def test_auto_leaves_a_narrower_backbone_alone(released, tmp_path, capsys):
    narrow = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}
    train(tmp_path / "run", options={**OPTIONS, **narrow})
    assert "as its backbone_options may change its shape" in capsys.readouterr().err
    with pytest.raises(bq.UserError, match="without backbone_options that reshape it"):
        train(tmp_path / "other", options={**OPTIONS, **narrow}, pretrained=True)


def test_a_trained_model_needs_no_other_weights(released, tmp_path, capsys):
    train(tmp_path / "first", pretrained=False)
    bq.train(scenes(), out=tmp_path / "next", start_from=tmp_path / "first", images_seen=8, batch_size=4, device="cpu")
    assert RunConfig.read(tmp_path / "next").weights == {"source": "random"}
    assert "note: the backbone" not in capsys.readouterr().err


def test_resuming_asks_nobody_and_gives_the_same(released, file, tmp_path, monkeypatch):
    """After an epoch the state has everything; before the first the recorded file is read again, and has to be the same."""
    copy = tmp_path / "weights.safetensors"
    shutil.copy(file, copy)
    flags = {"pretrained": str(copy), "epochs": 2, "images_seen": None}
    train(tmp_path / "whole", **flags)
    for number, where in ((0, "on_train_start"), (1, "on_train_epoch_start")):

        def stop(self, *given: Any, number=number) -> None:
            if self.current_epoch == number:
                raise Stop

        folder = tmp_path / f"stopped-{number}"
        with monkeypatch.context() as patched:
            patched.setattr(fit.Training, where, stop)
            with pytest.raises(Stop):
                train(folder, **flags)
        if number == 0:
            shutil.copytree(folder, tmp_path / "gone")
        monkeypatch.setattr(finder, "_released", lambda *given: pytest.fail("asked"))
        bq.train(scenes(), out=folder, resume=True)
        assert rows(folder) == rows(tmp_path / "whole")
        assert all(torch.equal(value, backbone_of(folder)[name]) for name, value in backbone_of(tmp_path / "whole").items())
    copy.write_bytes(b"other")
    with pytest.raises(bq.UserError, match=r"not the backbone weights that the run started from .* train in another --out"):
        bq.train(scenes(), out=tmp_path / "gone", resume=True)
    with pytest.raises(bq.UserError, match="was started with pretrained="):
        bq.train(scenes(), out=tmp_path / "whole", resume=True, pretrained=False)
    bq.train(scenes(), out=tmp_path / "whole", resume=True, pretrained=str(copy))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--pretrained --preset small", True), ("--pretrained", True), ("--pretrained=required --preset small", True),
        ("--preset small", "auto"), ("--pretrained auto", "auto"), ("--pretrained none --preset small", False),
        ("--pretrained=none", False), ("--pretrained NONE", False), ("--pretrained a/b.pth --seed 1", "a/b.pth"),
    ],
)  # fmt: skip
def test_the_flag_may_stand_alone(words, wanted):
    _, bound, _ = app.parse_args(fill_in(["train", "data", *words.split()]), exit_on_error=False, print_error=False)
    flags = bound.arguments.get("flags")
    assert (flags.pretrained if flags else "auto") == wanted
    assert bound.arguments["data"] == "data"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A hub's cache that has timm's ResNet-18, laid out as its client lays it out, and the tensors."""
    torch.manual_seed(6)
    tensors = {name: value.clone() for name, value in timm.create_model("resnet18").state_dict().items()}
    root = tmp_path_factory.mktemp("hub")
    folder = root / "models--timm--resnet18.a1_in1k"
    for part in ("refs", "snapshots/abc"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    save_file(tensors, folder / "snapshots" / "abc" / "model.safetensors")
    return root, tensors


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("name", bq.list_models())
def test_every_model_is_trained_from_what_the_cache_has(name, size, cache, tmp_path, monkeypatch):
    root, tensors = cache
    begun: list[fit.Run] = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(fit.Run, "fit", lambda self, state: begun.append(self))
    monkeypatch.setattr(fit, "measure_costs", lambda *given: Costs(1.0, 1.0, 1.0, 1.0))
    write_coco(tmp_path / "data", drawn(scenes(4, 2)))
    words = ["train", str(tmp_path / "data"), "--pretrained", "--preset", size, "--model", name, "--out", str(tmp_path / "run")]
    assert command_line([*words, "--image-size", "64", "--epochs", "1", "--device", "cpu"]) == 0
    own = begun[0].model.backbone.body.state_dict()
    assert len(own) > 50
    assert all(torch.equal(value, tensors[key]) for key, value in own.items())
    assert RunConfig.read(tmp_path / "run").weights["source"] == "timm/resnet18.a1_in1k"


def test_the_command_line_stops_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "data", drawn(scenes()))
    assert command_line(["train", "data", "--preset", "tiny", "--out", "run", "--pretrained"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "timm/resnet18.a1_in1k is not in the hub's cache" in lines[0]
    assert command_line(["train", "data", "--pretrained", "no/such.pth", "--preset", "tiny", "--out", "run"]) == 2
    assert "error: no/such.pth: no such file or folder; --pretrained takes weights" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_comparison_decides_once_for_all(released, tmp_path, monkeypatch):
    flags = {"images_seen": 8, "image_size": 64, "batch_size": 4, "device": "cpu", "preset": "tiny"}
    entries = [Entry(name, name, "tiny", {}, None) for name in ("detr", "fcos")]
    plan = resolved_plan("shapes", entries, (0,), CompareFlags(**flags))
    assert plan.pretrained is True
    assert "--pretrained" in plan.command_line(plan.runs()[0], tmp_path)
    lines: list[str] = []
    own = Entry("narrow", "detr", "tiny", {"backbone_options": {"stem_width": 8}}, None)
    mixed = resolved_plan("shapes", [*entries, own], (0,), CompareFlags(**flags), lines.append)
    assert mixed.pretrained is False
    assert "backbone_options" in lines[0]
    words = mixed.command_line(mixed.runs()[0], tmp_path)
    assert words[words.index("--pretrained") + 1] == "none"


def test_floors_follow_what_was_loaded(file, tmp_path):
    """The check before the first epoch counts steps from what the backbone starts from."""
    train(tmp_path / "run", pretrained=str(file))
    train(tmp_path / "random", pretrained=False)
    texts = [json.dumps(json.loads((tmp_path / name / "check.json").read_text())) for name in ("run", "random")]
    assert "from a pretrained backbone" in texts[0]
    assert "from random weights" in texts[1]
