"""A real Ray cluster of this machine with two workers: what it does equals what this process does, and what dies loses nothing."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from boxquery.cli import run as command_line
from boxquery.cluster import ray_cluster
from boxquery.compare.command import compare
from boxquery.compare.results import finished
from boxquery.scale.worker import ATTEMPTS, Attempts, Job, Worker
from tests.compare.fake_comparison import make_plan, write_finished
from tests.runtime import handmade

psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")

IMAGES = 40


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(2) as ray:
        yield ray


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A model, photographs of which one is broken, and what the ordinary prediction finds in them."""
    place = tmp_path_factory.mktemp("work")
    handmade.write(place / "model.onnx")
    for number in range(IMAGES):
        path = place / "photos" / ("night" if number % 3 else "day") / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2000 + number, 1500), (6 * number, 90, 40)).save(path)  # large: looking at it takes a while
    (place / "photos/broken.jpg").write_text("no picture")
    assert command_line([*words(place, "expected"), "--save", "json,csv,txt"]) == 0
    return place


def words(place: Path, out: str) -> list[str]:
    return ["predict", str(place / "model.onnx"), str(place / "photos"), "--threshold", "0", "--device", "cpu", "--out", str(place / out)]


def shards(place: Path) -> list[Path]:
    return sorted((place / "found/shards").glob("predictions-*.jsonl"))


def is_ours(printed: str) -> bool:
    """Whether stderr has nothing of Ray's."""
    return {line.partition(":")[0] for line in printed.splitlines()} <= {"note", "skipped", "predict"}


def wait_for(condition) -> None:
    until = time.monotonic() + 300
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    assert condition()


def map_workers() -> list:
    """The processes of Ray that look at images."""
    return [each for each in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(each.info["cmdline"] or [])]


@pytest.mark.slow
def test_neither_a_killed_command_nor_a_killed_worker_loses_anything(cluster, work, capfd):
    flags = ["--engine", "ray", "--workers", "2", "--save", "json,csv,txt"]
    address = {"RAY_ADDRESS": cluster.get_runtime_context().gcs_address}
    first = subprocess.Popen(
        [sys.executable, "-m", "boxquery", *words(work, "found"), *flags], env={**os.environ, **address}, stderr=subprocess.PIPE
    )
    wait_for(lambda: shards(work) or first.poll() is not None)
    first.kill()
    assert is_ours(first.communicate()[1].decode())
    before = {path: path.stat().st_mtime_ns for path in shards(work)}
    assert 0 < len(before) < IMAGES // 2
    assert not (work / "found/predictions.json").exists()

    old, killed = map_workers(), []

    def kill_a_worker() -> None:
        workers = []
        while not workers or len(shards(work)) <= len(before):
            workers = [each for each in map_workers() if each not in old]
            time.sleep(0.02)
        killed.append(len(shards(work)))
        workers[0].kill()

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    capfd.readouterr()
    assert command_line([*words(work, "found"), *flags]) == 0
    thread.join()
    lines = [json.loads(line) for path in shards(work) for line in path.read_text().splitlines()]
    assert killed[0] < len(shards(work)) - 2, "the worker was killed too late"
    assert len(lines) == len({line["path"] for line in lines}) == IMAGES + 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ("predictions.json", "predictions.csv", "labels"):
        found, expected = work / "found" / name, work / "expected" / name
        for path in found.rglob("*.txt") if found.is_dir() else [found]:
            assert path.read_bytes() == (expected / path.relative_to(found)).read_bytes()
    assert json.loads((work / "found/shards/index.json").read_text())["complete"]
    printed = capfd.readouterr()
    assert f"objects in {IMAGES} images" in printed.out
    assert is_ours(printed.err), printed.err
    assert f"of {IMAGES + 1} images are in {work / 'found/shards'} already" in printed.err


@pytest.mark.slow
def test_a_comparison_on_a_cluster(cluster, tmp_path, capfd):
    """Workers take what is left, and what fails does so for the reason that it has in a shell."""
    plan = make_plan(seeds=(0,))
    plan.write(tmp_path)
    done, *left = plan.runs()[:3]
    for planned in plan.runs():
        if planned not in left:
            write_finished(plan, tmp_path, planned)
    result = compare(out=tmp_path, engine="ray", jobs=2).result
    status = {run["label"]: (run["status"], run["reason"]) for run in result["runs"]}
    assert status[done.entry.label] == ("finished", "")
    for planned in left:
        assert status[planned.entry.label][0] == "failed"
        assert status[planned.entry.label][1].startswith("datasets/shapes & more: no such file or folder")
        assert not finished(tmp_path, planned)
        assert "no such file" in (tmp_path / "state" / f"{planned.name}.log").read_text()
    assert not list((tmp_path / "state").glob("*.lock"))
    assert {line for line in capfd.readouterr().err.splitlines() if "failed" not in line and "started" not in line} == set()


@pytest.mark.slow
def test_a_shard_whose_workers_die_is_given_up_and_errors_come_back(cluster, work):
    attempts = cluster.remote(num_cpus=0)(Attempts).remote()
    options = {"threshold": 0.0, "nms": None, "max_detections": None, "batch_size": 1, "tiles": None, "overlap": 0.2, "classes": None}
    job = Job(version("boxquery"), options, None, "cpu", "")
    model = cluster.put({"model.onnx": (work / "model.onnx").read_bytes()})
    shard = {"number": 0, "paths": [str(work / "photos/day/000.jpg")]}
    for _ in range(ATTEMPTS):
        assert json.loads(Worker(model, attempts, job)(shard)["lines"])["width"] == 2000
    assert Worker(model, attempts, job)(shard) == {"lines": "", "wrong": "", "bug": ""}
    other = Worker(model, attempts, replace(job, version="0.0"))
    assert other({**shard, "number": 1})["wrong"].startswith(f"a worker has boxquery {version('boxquery')}, not 0.0")
    assert "TypeError" in Worker(model, attempts, replace(job, options={"colour": "red"}))({**shard, "number": 2})["bug"]
