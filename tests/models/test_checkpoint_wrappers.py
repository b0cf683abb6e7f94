"""Checkpoints as people have them: wrapped by their training code, fine-tuned, without a class head, or of something else."""

import argparse
import collections
import enum
import json
import pathlib
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import boxquery as bq
from boxquery.cli import run
from boxquery.official import authors_of, rename
from boxquery.official.checkpoint import open_checkpoint, read
from boxquery.transfer import read_source, transfer
from tests.models.test_official import SMALL, deformable_keys, detr_keys

OPTIONS = {key: value for key, value in SMALL.items() if key not in ("backbone", "heads")}


def tensors_of(name: str, keys: list[str], classes: int) -> dict[str, Tensor]:
    """A model's tensors under its authors' names; the backbone's are zeros that take no room in a file."""
    torch.manual_seed(1)
    model = bq.create_model(name, classes=classes, **OPTIONS)
    rules, own = authors_of(name).keys(model), model.state_dict()
    theirs = {
        f"backbone.0.body.{k.removeprefix('backbone.body.')}": torch.zeros(()).expand(v.shape) for k, v in own.items() if "backbone" in k
    }
    return {key: own[rename(key, rules)].clone() for key in keys} | theirs


@pytest.fixture(scope="module")
def detr() -> dict[str, Tensor]:
    return tensors_of("detr", detr_keys(), 3)


def import_it(path: Path, *words: str, model: str = "detr") -> int:
    return run(["import-official", str(path), "--model", model, "--out", str(path.parent / "out"), *words])


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def whole_model(tensors: dict[str, Tensor]) -> nn.Module:
    """A module tree that has these tensors, of a class that is not there when it is read."""
    root = Theirs()
    for key, value in tensors.items():
        *path, last = key.split(".")
        part = root
        for name in path:
            if name not in part._modules:
                part.add_module(name, nn.Module())
            part = part._modules[name]
        if value.is_floating_point() and "running" not in last:
            part.register_parameter(last, nn.Parameter(value))
        else:
            part.register_buffer(last, value)
    root.register_buffer("cache", torch.zeros(3), persistent=False)
    return root


class Theirs(nn.Module):
    pass


WRAPPERS: dict[str, tuple[Any, str]] = {
    "bare": (lambda t: t, ""),
    "as released": (lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}}, "epoch": 3}, ""),
    "data parallel": (lambda t: {"model": prefixed("module.", t)}, "taken off the names of the tensors: module."),
    "compiled and parallel": (lambda t: prefixed("_orig_mod.module.", t), "module., _orig_mod."),
    "compiled parts": (lambda t: {k.replace("transformer.", "transformer._orig_mod."): v for k, v in t.items()}, "_orig_mod."),
    "Lightning": (
        lambda t: {"state_dict": {**prefixed("model.", t), "criterion.empty_weight": torch.ones(4)}, "loops": {}, "epoch": 3},
        "left out, not under model.: criterion.empty_weight",
    ),
    "nested": (lambda t: {"checkpoint": {"model_state_dict": prefixed("net.detector.", t)}}, "'checkpoint.model_state_dict'"),
    "net": (lambda t: {"net": t}, "under 'net'"),
    "average only": (lambda t: {"ema": {"module": t, "updates": 9}, "last_epoch": 3}, "under 'ema.module'"),
    "average first": (lambda t: {"ema": {"module": prefixed("a.", t)}, "model": t}, ""),
    "copy beside it": (lambda t: {"model": {**prefixed("student.", t), **prefixed("teacher.", t)}}, "not under student.: teacher."),
    "with a segmentation head": (lambda t: {"model": {**prefixed("detr.", t), "mask_head.weight": torch.ones(2)}}, "mask_head.weight"),
    "among other values": (lambda t: {**t, "epoch": 3, "name": "detr"}, ""),
    "half precision": (lambda t: {"model": {k: v.half() if v.is_floating_point() else v for k, v in t.items()}}, ""),
    "a whole model": (whole_model, ""),
    "a whole model in a file": (lambda t: {"ema": whole_model(t), "epoch": 9}, "under 'ema'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("old", [False, True], ids=["", "before torch 1.6"])
def test_wrappers_are_opened_and_said(kind, old, detr, tmp_path):
    if old and kind.startswith("a whole model"):
        pytest.skip("names in files of the old format are not looked up")
    wrap, said = WRAPPERS[kind]
    torch.save(wrap(detr), tmp_path / "theirs.pth", _use_new_zipfile_serialization=not old)
    tensors, notes = read(tmp_path / "theirs.pth")
    assert set(tensors) == set(detr)
    assert all(tensors[key].equal(value.to(tensors[key])) for key, value in detr.items() if kind != "half precision")
    assert said in " ".join(notes)
    assert bool(said) == bool(notes)


def test_a_wrapped_checkpoint_becomes_a_model(detr, tmp_path, capsys):
    torch.save({"state_dict": prefixed("module.model.", detr)}, tmp_path / "theirs.ckpt")
    assert import_it(tmp_path / "theirs.ckpt", "--classes", "helmet,vest,person") == 0
    said = capsys.readouterr().err
    assert "note: theirs.ckpt: the tensors are those under 'state_dict'" in said
    assert "note: theirs.ckpt: taken off the names of the tensors: module., model." in said
    found = bq.load(tmp_path / "out")
    assert (found.classes, found.ids) == (["helmet", "vest", "person"], [0, 1, 2])
    assert found.model.heads[0].classes.weight.equal(detr["class_embed.weight"])


def test_safetensors(detr, tmp_path):
    save_file({k: v.contiguous() for k, v in prefixed("model.", detr).items()}, tmp_path / "theirs.safetensors")
    tensors, notes = read(tmp_path / "theirs.safetensors")
    assert set(tensors) == set(detr)
    assert notes == ["theirs.safetensors: taken off the names of the tensors: model."]
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "theirs.safetensors").read_bytes()[:500])
    with pytest.raises(bq.UserError, match=r"cut\.safetensors: not a checkpoint, or one that was cut short"):
        read(tmp_path / "cut.safetensors")


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """As configuration libraries have it: a dictionary that is also an object."""

    def __init__(self, **values):
        super().__init__(**values)
        self.frozen = True


BESIDE: dict[str, Any] = {
    "a command line with a path": argparse.Namespace(output_dir=pathlib.PosixPath("x"), device=torch.device("cpu"), seed=3),
    "NumPy scalars": {"ap": np.float64(0.4), "epoch": np.int64(3)},
    "a configuration": Config(lr=1e-4),
    "a simple namespace": types.SimpleNamespace(a=[1, {"b": (2,)}]),
    "an enumeration": Colour.RED,
    "default dictionary": collections.defaultdict(list, a=[1]),
    "a NumPy array": np.zeros(3),
}


@pytest.mark.parametrize("what", BESIDE)
def test_values_beside_the_tensors_are_passed_over(what, detr, tmp_path):
    torch.save({"model": detr, "args": BESIDE[what]}, tmp_path / "theirs.pth")
    assert set(read(tmp_path / "theirs.pth")[0]) == set(detr)


def test_nothing_of_a_class_in_the_file_is_imported(detr, tmp_path, monkeypatch, capsys):
    module = types.ModuleType("their_code")
    exec("class Args:\n    def __setstate__(self, state): print('executed')\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "their_code", module)
    torch.save({"model": detr, "args": module.__dict__["Args"]()}, tmp_path / "theirs.pth")
    assert set(read(tmp_path / "theirs.pth")[0]) == set(detr)
    assert capsys.readouterr().out == ""


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("old", [False, True])
def test_what_would_run_is_refused_and_named(detr, tmp_path, capsys, old):
    torch.save({"model": detr, "args": Hostile()}, tmp_path / "theirs.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(bq.UserError, match=r"would have to be executed to be read, since it names (builtins\.)?print; load it where"):
        read(tmp_path / "theirs.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "args": "x"}, "holds no tensors, but a dictionary with 'epoch', 'args'"),
        ([1, 2], "holds no tensors, but a list"),
        ({1: torch.zeros(3)}, "the keys of its tensors are no names of a model's parameters (1)"),
        ({}, "holds no tensors, but an empty dictionary"),
        ({"optimizer": {"state": {"a": torch.zeros(3)}}}, "holds no tensors, but a dictionary with 'optimizer'"),
    ],
)
def test_what_a_file_without_tensors_holds(content, said, tmp_path):
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(bq.UserError) as raised:
        read(tmp_path / "theirs.pth")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}}, "it holds conv1.weight, fc.bias"),
        ({"queries.position": torch.zeros(3), "heads.0.classes.bias": torch.zeros(2)}, "boxquery's own: give the run or model folder"),
        ({"class_labels_classifier.bias": torch.zeros(3)}, "transformers: give the folder with its config.json"),
    ],
)
def test_what_is_no_checkpoint_of_the_model(content, said, tmp_path, capsys):
    torch.save(content, tmp_path / "theirs.pth")
    assert import_it(tmp_path / "theirs.pth") == 2
    line = capsys.readouterr().err
    assert "theirs.pth: not a checkpoint of detr: it has no tensor 'query_embed.weight'; " in line
    assert said in line


def test_another_model_is_named(tmp_path):
    torch.save({"model": tensors_of("deformable-detr", deformable_keys(False), 3)}, tmp_path / "theirs.pth")
    with pytest.raises(bq.UserError, match=r"not a checkpoint of anchor-detr: it has no tensor .* would fit --model .*deformable-detr"):
        open_checkpoint(tmp_path / "theirs.pth", "anchor-detr", {})


def test_what_is_missing_is_named(detr, tmp_path):
    torch.save({k: v for k, v in detr.items() if k != "class_embed.weight"}, tmp_path / "theirs.pth")
    with pytest.raises(bq.UserError, match=r"theirs\.pth: this is not .* missing: class_embed\.weight"):
        open_checkpoint(tmp_path / "theirs.pth", "detr", {})


# -- classes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "keys"), [("detr", detr_keys()), ("deformable-detr", deformable_keys(False))])
def test_a_class_head_that_is_missing_is_new(name, keys, tmp_path, capsys):
    tensors = tensors_of(name, keys, 3)
    torch.save({"model": {k: v for k, v in tensors.items() if "class_embed" not in k}}, tmp_path / "theirs.pth")
    assert import_it(tmp_path / "theirs.pth", model=name) == 2
    assert "has no class head (class_embed); name the classes of a new one with --classes a,b,c" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert import_it(tmp_path / "theirs.pth", "--classes", "helmet,vest", model=name) == 0
    assert "has no class head (class_embed): a new one, which has to be trained" in capsys.readouterr().err
    assert bq.load(tmp_path / "out").classes == ["helmet", "vest"]
    source, notes = read_source(tmp_path / "theirs.pth", name)
    assert any("has no class head" in line for line in notes)
    again, _ = read_source(tmp_path / "theirs.pth", name)
    assert all(v.equal(again.model.state_dict()[k]) for k, v in source.model.state_dict().items()), "a run resumes from equal weights"
    target = bq.create_model(name, classes=2, **{**source.model.config["options"]})
    report = transfer(source.transformer, target, source.classes, ["helmet", "vest"])
    assert report.classes == {"helmet": None, "vest": None}


def test_only_a_head_of_cocos_size_gets_cocos_names(detr, tmp_path, capsys):
    torch.save({"model": detr}, tmp_path / "theirs.pth")
    assert import_it(tmp_path / "theirs.pth", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == 3
    assert "note: theirs.pth: has no class names: they are called class 0, class 1, ... (--classes a,b,c names them)" in said.err
    assert bq.load(tmp_path / "out").classes == ["class 0", "class 1", "class 2"]


def test_rows_without_names_are_not_taken_over(detr, tmp_path):
    torch.save({"model": detr}, tmp_path / "theirs.pth")
    source, notes = read_source(tmp_path / "theirs.pth", "detr")
    assert notes[-1].startswith("theirs.pth: its class head has 3 rows and the file no names, so none is taken over")
    target = bq.create_model("detr", classes=3, **source.model.config["options"])
    names = ["class 0", "person", "bicycle"]
    assert transfer(source.transformer, target, source.classes, names).classes == dict.fromkeys(names)


@pytest.mark.parametrize(
    ("classes", "said"),
    [("a,b", "its class head has 3 rows, but --classes has 2 names"), ("a,b,a", "--classes names a twice")],
)
def test_class_names_that_do_not_fit(classes, said, detr, tmp_path, capsys):
    torch.save({"model": detr}, tmp_path / "theirs.pth")
    assert import_it(tmp_path / "theirs.pth", "--classes", classes) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_row_without_a_class(detr, tmp_path):
    torch.save({"model": detr}, tmp_path / "theirs.pth")
    assert import_it(tmp_path / "theirs.pth", "--classes", ",helmet,vest") == 0
    assert bq.load(tmp_path / "out").classes == [None, "helmet", "vest"]


# -- folders and files that are something else --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS in place of the file"),
        (b"<html>404 not found</html>", "not a checkpoint, or one that was cut short (a web page)"),
        (b"", "not a checkpoint, or one that was cut short (empty)"),
        (b"PK\x03\x04abc", "not a checkpoint, or one that was cut short (not readable by torch or safetensors)"),
    ],
)
def test_what_is_no_checkpoint_at_all(content, said, tmp_path, capsys):
    (tmp_path / "theirs.pth").write_bytes(content)
    assert import_it(tmp_path / "theirs.pth") == 2
    assert said in capsys.readouterr().err


def test_a_program_of_torch(tmp_path, capsys):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "theirs.pt")
    assert import_it(tmp_path / "theirs.pt") == 2
    assert "theirs.pt: a TorchScript program; save the model's state_dict()" in capsys.readouterr().err


def test_a_file_where_a_model_is_expected(tmp_path, capsys):
    (tmp_path / "fine.pth").write_bytes(pickle.dumps(3))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert run(["predict", str(tmp_path / "fine.pth"), str(tmp_path / "a.jpg")]) == 2
    assert "is a file; give a run or model folder, or an exported model (.onnx, .xml) (import-official makes one" in capsys.readouterr().err
    assert run(["import-official", str(tmp_path), "--model", "detr", "--out", str(tmp_path / "out")]) == 2
    assert "is a folder, and not one of transformers with a config.json; give the checkpoint file in it" in capsys.readouterr().err
