"""Released weights of backbones: from files and folders as people have them, from the hub's cache, and from a hub, be it silent."""

import argparse
import hashlib
import http.server
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from boxquery.errors import UserError
from boxquery.hub import Unavailable
from boxquery.parts.backbone import Backbone
from boxquery.parts.weights import find_weights

HUB_ID = "timm/resnet18.a1_in1k"


def network(name: str) -> dict[str, torch.Tensor]:
    """The state dict of a whole timm network, as its released file holds it."""
    torch.manual_seed(1)
    return {k: v.clone() for k, v in timm.create_model(name).state_dict().items()}


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    return network("resnet18")


@pytest.fixture(scope="module")
def file(resnet18, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(resnet18, path)
    return path


def loaded(given: Path, name: str = "resnet18") -> Backbone:
    return Backbone(name, 3, find_weights(name, given))


def same(backbone: Backbone, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, tensors[name]) for name, value in backbone.body.state_dict().items())


def cached(root: Path, content: bytes) -> Path:
    """A hub's cache with one repository, laid out as its client lays it out."""
    folder = root / "models--timm--resnet18.a1_in1k"
    commit, digest = "0" * 40, hashlib.sha256(content).hexdigest()
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs" / digest).write_bytes(content)
    os.symlink(f"../../blobs/{digest}", folder / "snapshots" / commit / "model.safetensors")
    return folder


def wrap(tensors: dict[str, torch.Tensor], how: str) -> dict:
    prefixed = {f"module.{name}": value for name, value in tensors.items()}
    return {
        "torchvision": {name: value for name, value in tensors.items() if "num_batches" not in name},
        "state_dict": {"epoch": 3, "arch": "resnet18", "args": argparse.Namespace(lr=0.1), "state_dict": prefixed},
        "model": {"model": tensors, "optimizer": {"state": {0: torch.zeros(3)}}},
        "detector": {f"backbone.body.{name}": value for name, value in tensors.items()} | {"head.weight": torch.zeros(3)},
    }[how]


@pytest.mark.parametrize("how", ["torchvision", "state_dict", "model", "detector"])
def test_a_file_of_torch_in_the_wrappers_that_people_have(resnet18, tmp_path, how):
    torch.save(wrap(resnet18, how), tmp_path / "weights.pth")
    backbone = loaded(tmp_path / "weights.pth")
    assert all(torch.equal(v, resnet18[k]) for k, v in backbone.body.state_dict().items() if "num_batches" not in k)
    assert backbone.left_out == ["fc"]


def test_files_and_folders(resnet18, file, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 1000}))
    torch_folder = tmp_path / "torch"
    torch_folder.mkdir()
    torch.save(resnet18, torch_folder / "pytorch_model.bin")
    in_cache = cached(tmp_path, file.read_bytes())
    for given in (file, folder, torch_folder, in_cache, *(in_cache / "blobs").iterdir()):
        assert same(loaded(given), resnet18), given
        assert find_weights("resnet18", given).source == str(given)
    monkeypatch.chdir(tmp_path)
    assert find_weights("resnet18", "saved").file == str(folder / "model.safetensors")
    assert find_weights("resnet18", file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(
        UserError, match=r"holds weights of resnet18, and the backbone is resnet50; choose it by --option backbone=resnet18"
    ):
        find_weights("resnet50.a1_in1k", folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in this folder"):
        find_weights("resnet18", folder)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224", "regnety_002"])
def test_networks_whose_parts_are_renamed(name, tmp_path):
    """timm's extractors call ``stages.0`` stages_0, and keep a transformer in ``model``."""
    tensors = network(name)
    save_file({f"module.{k}": v for k, v in tensors.items()}, tmp_path / "w.safetensors")
    own = loaded(tmp_path / "w.safetensors", name).body.state_dict()
    given = {k.replace("_", "."): v for k, v in tensors.items()}
    assert all(torch.equal(value, given[k.removeprefix("model.").replace("_", ".")]) for k, value in own.items())


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_what_cannot_be_used_is_one_line(resnet18, tmp_path, capsys):
    def saved(value, name: str = "w.pth") -> Path:
        torch.save(value, tmp_path / name)
        return tmp_path / name

    deeper, other = network("resnet34"), network("resnet10t")
    few = {name: value for name, value in resnet18.items() if not name.startswith("layer3.")}
    (tmp_path / "text.pth").write_text("weights\n")
    (tmp_path / "text.safetensors").write_text("weights\n")
    for given, message in (
        (tmp_path / "none.pth", "no such file or folder"),
        (tmp_path / "text.pth", "not a file of weights"),
        (tmp_path / "text.safetensors", "not a file of weights"),
        (saved({"state_dict": resnet18, "hook": Code()}, "code.pth"), "would have to be executed"),
        (saved({"epoch": 3}, "empty.pth"), "holds no tensors"),
        (saved(deeper, "34.pth"), r"has tensors that resnet18 lacks, first layer1\.2\..*--option backbone=NAME \(now resnet18\)"),
        (saved(other, "10t.pth"), r"lacks \d+ of the 120 tensors of resnet18, first conv1\.weight"),
        (saved(few, "few.pth"), r"lacks \d+ of the 120 tensors of resnet18, first layer3\.0"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(given)
    with pytest.raises(UserError, match=r"lacks 5 of the 126 tensors .* without backbone_options that reshape it"):
        Backbone("resnet18", 1, find_weights("resnet18", saved(resnet18)), options={"stem_width": 8, "channels": (8, 8, 8, 8)})
    wide = {name: torch.cat([value, value]) if name.startswith("layer4.1.conv2") else value for name, value in resnet18.items()}
    with pytest.raises(UserError, match=r"layer4\.1\.conv2\.weight is \[1024, 512, 3, 3\] there and \[512, 512, 3, 3\] in resnet18"):
        loaded(saved(wide))
    broken = {name: value / 0 if name == "layer2.0.conv1.weight" else value for name, value in resnet18.items()}
    with pytest.raises(UserError, match=r"layer2\.0\.conv1\.weight contains NaN or inf"):
        loaded(saved(broken))
    assert capsys.readouterr().out == ""


def test_a_file_that_has_changed_since(file, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(file.read_bytes())
    found = find_weights("resnet18", tmp_path / "w.safetensors")
    assert found.checked() == found
    (tmp_path / "w.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="another sha256"):
        found.checked()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and a hub that may be asked; where it is, a test says by setting ENDPOINT."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)

    def at(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")

    return at


def test_the_cache_is_enough(hub, file, resnet18, tmp_path):
    """What is there is used without asking anybody."""
    hub("http://localhost:9")
    with pytest.raises(Unavailable, match=r"timm/resnet18\.a1_in1k is not in the hub's cache, and http://localhost:9 cannot be reached"):
        find_weights("resnet18", True)
    cached(tmp_path / "cache", file.read_bytes())
    found = find_weights("resnet18", True)
    assert found.source == HUB_ID
    assert same(Backbone("resnet18", 3, found), resnet18)


def test_without_an_answer_it_is_over_in_three_seconds(hub, monkeypatch, capfd):
    """A server that accepts and is silent, and a name that cannot be looked up, at once or ever."""
    silent = socket.create_server(("127.0.0.1", 0))

    def limit(address: str, message: str) -> None:
        hub(address)
        started = time.monotonic()
        with pytest.raises(Unavailable, match=message):
            find_weights("resnet18", True)
        assert time.monotonic() - started < 3.0

    limit(f"http://127.0.0.1:{silent.getsockname()[1]}", "does not answer within 2 s|cannot be reached")
    limit("http://hub.invalid", "cannot be reached|does not answer")
    over = threading.Event()

    def look_up(*given, **named):
        over.wait(20)
        raise socket.gaierror("nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    limit("http://hub.invalid", r"does not answer within 2 s \(HF_HUB_ETAG_TIMEOUT allows more\)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    limit("http://hub.invalid", "HF_HUB_OFFLINE is set")
    over.set()
    assert capfd.readouterr() == ("", "")


def test_what_is_not_released(hub):
    hub("http://localhost:9")
    with pytest.raises(UserError, match=r"'resnet18\.mine': timm knows no weights with this tag; of resnet18 it knows resnet18\.a1_in1k"):
        find_weights("resnet18.mine", True)
    with pytest.raises(Unavailable, match="no weights of resnetaa34d are released on the hub"):
        find_weights("resnetaa34d", True)


class Hub(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_HEAD(self) -> None:
        known = self.path == f"/{HUB_ID}/resolve/main/model.safetensors" or "/resolve/" + "0" * 40 in self.path
        self.send_response(200 if known else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.content) if known else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *given) -> None:
        pass


def test_a_download_is_announced_and_kept(hub, file, resnet18, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "content", file.read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub(address := f"http://127.0.0.1:{server.server_port}")
    lines: list[str] = []
    found = find_weights("resnet18", True, lines.append)
    server.shutdown()
    server.server_close()
    assert lines == [f"downloading 47 MB of backbone weights: {address}/{HUB_ID}"]
    assert same(Backbone("resnet18", 3, found), resnet18)
    assert find_weights("resnet18", True, lines.append) == found
    assert len(lines) == 1
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
