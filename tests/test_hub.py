"""Hub ids where a folder is taken: from the hub's cache, from a hub, and from nobody; and which names are no hub ids."""

import contextlib
import hashlib
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import boxquery as bq
from boxquery import hub
from boxquery.cli import run
from boxquery.flags import is_hub_id
from boxquery.hub import Unavailable, find_model
from tests.models.transformers_folders import model, save

NAME = "someone/conditional-detr"
CARD = "---\nlicense: apache-2.0\ntags:\n- vision\n---\n# A model\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = save(model("conditional-detr-resnet"), tmp_path_factory.mktemp("theirs") / "hf")
    (made / "README.md").write_text(CARD)
    (made / "optimizer.pt").write_bytes(b"of no use here")
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, which may not be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    return tmp_path / "cache"


def put(folder: Path, cache: Path, name: str = NAME, without: tuple[str, ...] = ()) -> Path:
    """A folder in a cache, laid out as the hub's client does it."""
    place, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (place / part).mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    for file in folder.iterdir():
        if file.name not in without:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            (place / "blobs" / digest).write_bytes(file.read_bytes())
            os.symlink(f"../../blobs/{digest}", place / "snapshots" / commit / file.name)
    return place / "snapshots" / commit


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True))


def test_a_model_in_the_cache_is_used_and_named(folder, cache, tmp_path, capsys):
    """Wherever a folder is taken, without a network."""
    put(folder, cache)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.jpg")
    assert same(bq.load(NAME), bq.load(folder))
    assert capsys.readouterr().err == f"note: {NAME} (licence apache-2.0, 0.7 MB), from the hub's cache\n"
    found = ["predict", NAME, str(tmp_path / "a.jpg"), "--out", str(tmp_path / "found"), "--image-size", "64"]
    assert run(found) == 0
    assert run(["explain", NAME, str(tmp_path / "a.jpg"), "--out", str(tmp_path / "page")]) == 0
    assert run(["import-official", NAME, "--out", str(tmp_path / "ours")]) == 0
    assert bq.load(tmp_path / "ours").classes == bq.load(folder).classes
    assert (tmp_path / "found" / "predictions.json").is_file()


def test_a_model_of_ours_in_the_cache(folder, cache, tmp_path):
    bq.load(folder).save(tmp_path / "ours")
    put(tmp_path / "ours", cache, "someone/ours")
    assert same(bq.load("someone/ours"), bq.load(folder))
    assert find_model("someone/ours").licence == "unknown"


def test_half_a_model_in_the_cache_is_none(folder, cache):
    put(folder, cache, without=("model.safetensors",))
    with pytest.raises(
        Unavailable,
        match=rf"^{NAME}: no such folder here, and as a hub id: {NAME} is not in the hub's cache, and HF_HUB_OFFLINE is set; "
        "unset it to ask the hub, or give the path of a folder$",
    ):
        bq.load(NAME)


def test_a_link_that_leads_nowhere_is_no_weights(folder, cache):
    there = put(folder, cache)
    (there / "model.safetensors").resolve().unlink()
    with pytest.raises(Unavailable, match=f"{NAME} is not in the hub's cache"):
        bq.load(NAME)


def test_a_licence_stays_in_its_line(folder, cache):
    there = put(folder, cache, without=("README.md",))
    (there / "README.md").write_text('---\nlicense: "a\\nerror: b"\n---\n')
    assert find_model(NAME).licence == "a\\nerror: b"


def test_what_is_here_wins_and_what_would_be_here_is_missing(folder, cache, tmp_path, monkeypatch, capsys):
    put(folder, cache)
    monkeypatch.setattr(hub, "find_model", lambda name: pytest.fail(f"asked for {name}"))
    monkeypatch.chdir(tmp_path)
    for name in (
        "./someone/x",
        "/someone/x",
        "runs/x",
        "~/x",
        "x",
        "a/b/c",
        "a/",
        "../a",
        "a/b c",
        "",
        "a--b/c",
        "a..b/c",
        "foo/bar.git",
        "foo/bar-",
        "a/" + "b" * 97,
        "a" * 5000,
    ):
        assert not is_hub_id(name)
        assert run(["predict", name, "a.jpg"]) == 2
    assert is_hub_id(NAME)
    Path("someone").mkdir()
    assert not is_hub_id(NAME)
    capsys.readouterr()
    assert run(["predict", NAME, "a.jpg"]) == 2
    assert f"error: {NAME}: no such folder; give a run folder" in capsys.readouterr().err
    bq.load(folder).save(NAME)
    assert same(bq.load(NAME), bq.load(folder))


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository; ``files`` is set by the test."""

    files: ClassVar[dict[str, bytes]] = {}
    sizes: ClassVar[dict[str, int]] = {}

    def do_HEAD(self) -> None:
        content = self.files.get(self.path.rpartition("/")[2]) if "/resolve/" in self.path else None
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        if not self.path.startswith("/api/"):
            self.do_HEAD()
            self.wfile.write(self.files[self.path.rpartition("/")[2]])
            return
        siblings = [{"rfilename": name, "size": self.sizes.get(name, len(content))} for name, content in self.files.items()]
        info = {"id": NAME, "sha": "0" * 40, "siblings": siblings, "cardData": {"license": "apache-2.0"}, "tags": []}
        content = json.dumps(info).encode()
        self.send_response(200 if NAME in self.path else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *given) -> None:
        pass


@contextlib.contextmanager
def serving(monkeypatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    at(address, monkeypatch)
    yield address
    server.shutdown()
    server.server_close()


def at(address: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def test_a_model_is_fetched_announced_and_kept(folder, cache, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "files", {file.name: file.read_bytes() for file in folder.iterdir()})
    with serving(monkeypatch) as address:
        detector = bq.load(NAME)
        line = capsys.readouterr().err.splitlines()[0]
        assert line == f"note: downloading {NAME} (licence apache-2.0, 0.7 MB) from {address}"
        with pytest.raises(Unavailable, match=rf"{address} has no such model, or not for everybody; check the name$"):
            bq.load("someone/else")
    assert same(detector, bq.load(folder))
    kept = find_model(NAME)
    assert kept.folder is not None
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert same(bq.load(NAME), detector)  # nobody is there to be asked


def load_together(address: str, cache: Path, written: Path) -> None:
    """In each of two processes."""
    from torch import distributed

    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE, constants.ENDPOINT = str(cache), False, address
    constants.HUGGINGFACE_CO_URL_TEMPLATE = address + "/{repo_id}/resolve/{revision}/{filename}"
    distributed.init_process_group("gloo")
    distributed.barrier()
    detector = bq.load(NAME)
    total = torch.stack([value.double().sum() for value in detector.model.state_dict().values()]).sum()
    both = [torch.zeros_like(total) for _ in range(2)]
    distributed.all_gather(both, total)
    assert both[0] == both[1]
    (written / os.environ["RANK"]).touch()
    distributed.destroy_process_group()


def test_of_two_processes_one_fetches_a_model(folder, cache, tmp_path, monkeypatch):
    from tests.training.processes import apart, in_two

    asked = []

    class Slow(Hub):
        files: ClassVar[dict[str, bytes]] = {file.name: file.read_bytes() for file in folder.iterdir()}

        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(0.2)
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    printed = apart(tmp_path / "log", in_two, 0, load_together, f"http://127.0.0.1:{server.server_port}", cache, tmp_path)
    server.shutdown()
    server.server_close()
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()
    assert len(asked) == len(set(asked)), asked
    assert sum("model.safetensors" in path for path in asked) == 1
    assert printed.count("note: downloading") == printed.count("from the hub's cache") == 1


def test_weights_of_a_backbone_are_fetched_on_every_machine(folder, cache, tmp_path, monkeypatch):
    """What the first process has found elsewhere is fetched here, and is the same."""
    from boxquery.training.pretrained import with_own_file
    from tests.compare.fake_comparison import make_plan, write_config

    plan, content = make_plan(), b"weights"
    sha256 = hashlib.sha256(content).hexdigest()
    weights = {"source": "timm/resnet10t.c3_in1k", "file": "/another/machine/model.safetensors", "sha256": sha256}
    options = {"backbone": "resnet10t.c3_in1k"}
    config = write_config(plan, plan.runs()[0], tmp_path / "run", pretrained=True, weights=weights, options=options)
    monkeypatch.setattr(Hub, "files", {"model.safetensors": content})
    with serving(monkeypatch):
        own = with_own_file(config)
        assert Path(own.weights["file"]).read_bytes() == content
        assert with_own_file(own) == own
        with pytest.raises(bq.UserError, match="the first process has other weights"):
            with_own_file(replace(config, weights={**weights, "sha256": "0" * 64}))


def test_more_than_200_mb_need_a_flag(folder, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Hub, "files", {file.name: file.read_bytes() for file in folder.iterdir()})
    monkeypatch.setattr(Hub, "sizes", {"model.safetensors": 250_000_000})
    with serving(monkeypatch):
        assert run(["import-official", NAME, "--out", str(tmp_path / "ours")]) == 2
        said = f"error: {NAME}: no such folder here, and as a hub id: {NAME} (licence apache-2.0, 250 MB): more than 200 MB are only"
        assert capsys.readouterr().err.startswith(said)
        assert not cache.exists() or not list(cache.rglob("*.safetensors"))
        assert run(["import-official", NAME, "--out", str(tmp_path / "ours"), "--download"]) == 0
    assert same(bq.load(tmp_path / "ours"), bq.load(folder))


def test_without_an_answer_it_is_over_in_three_seconds(cache, monkeypatch, capfd):
    silent = socket.create_server(("127.0.0.1", 0))
    for address in (f"http://127.0.0.1:{silent.getsockname()[1]}", "http://localhost:9", "http://hub.invalid"):
        at(address, monkeypatch)
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"does not answer within 2 s|cannot be reached"):
            bq.load(NAME)
        assert time.monotonic() - started < 3.0
    assert capfd.readouterr() == ("", "")
