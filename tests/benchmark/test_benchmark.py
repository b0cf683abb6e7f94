"""``boxquery benchmark``: numbers with their conditions, each runtime in a process of its own, and one that dies takes no other with it."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import boxquery as bq
from boxquery import runtime
from boxquery.benchmark import machine
from boxquery.benchmark.measure import Measured, measure
from boxquery.benchmark.plan import Wanted, plan
from boxquery.benchmark.process import Job, Memory, Timing, Worker
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing
from boxquery.errors import UserError
from boxquery.export.writer import export
from tests.runtime import handmade


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    made = bq.create_model("detr", classes=2, preset="tiny", hidden_dim=32, heads=4, num_queries=5, decoder_layers=1)
    return str(bq.Detector(made, ["cat", "owl"], [1, 2], Preprocessing(64)).save(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("a.png", (96, 64)), ("b.png", (192, 128)), ("c.png", (64, 96))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / name)
    return folder


def job(source: str, photos: Path) -> Job:
    return Job("pytorch", "fp32", source, "cpu", 1, None, 1, tuple(sorted(photos.glob("[a-c].png"))))


def test_numbers_come_with_their_conditions(model, photos, capsys):
    (photos / "d.png").write_bytes(b"no picture")
    words = ["benchmark", model, "--images", str(photos), "--runs", "4", "--batch-size", "2", "--threads", "1", "--precision", "fp32"]
    assert run([*words, "--runtimes", "pytorch", "--device", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    (row,), known = told["runtimes"], told["conditions"]
    assert "d.png: not an image" in captured.err
    assert (row["runtime"], row["precision"], row["device"], row["runs"], told["failed"]) == ("pytorch", "fp32", "cpu", 4, [])
    assert row["latency_ms"]["p95"] >= row["latency_ms"]["median"] >= row["parts_ms"]["model"] > 0
    assert row["images_per_second"] == pytest.approx(2000 / row["latency_ms"]["median"], rel=0.01)
    assert min(row["parts_ms"].values()) > 0
    assert row["memory_mb"] is None or row["memory_mb"] > 0
    assert known["input_sizes"] == [[64, 96], [96, 64]]
    assert (known["batch_size"], known["threads"], known["images"]) == (2, 1, "3 images")
    assert {"boxquery", "python", "torch"} <= known["versions"].keys()


@pytest.fixture(scope="module")
def scene_model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    made = bq.create_model("petr", classes=2, preset="tiny", hidden_dim=32, heads=4, num_queries=5, depths=4)
    return str(
        bq.SceneDetector(made, ["cat", "owl"], [1, 2], Preprocessing(48), (60, 100)).save(tmp_path_factory.mktemp("scenes") / "model")
    )


def test_scenes_are_measured_as_images_are(scene_model, capsys):
    words = ["benchmark", scene_model, "--runs", "3", "--batch-size", "2", "--threads", "1", "--precision", "fp32", "--runtimes", "pytorch"]
    assert run([*words, "--images", "surround:val=3,width=64", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (row,), known = told["runtimes"], told["conditions"]
    assert (row["runs"], told["unit"], known["images"], known["input_sizes"]) == (3, "scene", "3 scenes of 6 cameras", [[48, 80]])
    assert row["scenes_per_second"] == pytest.approx(2000 / row["latency_ms"]["median"], rel=0.01)
    assert min(row["parts_ms"].values()) > 0


@pytest.mark.parametrize(("ending", "name"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_an_exported_file_is_measured_in_its_own_runtime_and_precision(ending, name, photos, tmp_path, capsys):
    file = handmade.write(tmp_path / f"model{ending}", size=[64, 96])
    assert run(["benchmark", str(file), "--images", str(photos), "--runs", "2", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (row,) = told["runtimes"]
    assert (row["runtime"], row["precision"], row["device"], row["runs"]) == (name, "fp32", "cpu", 2)
    assert 0 < row["parts_ms"]["model"] < row["latency_ms"]["median"]
    assert told["conditions"]["input_sizes"] == [[64, 96]]
    assert name in told["conditions"]["versions"]
    assert "torch" not in told["conditions"]["versions"]


def test_a_model_is_exported_for_every_runtime_and_what_fails_is_left_out(model, tmp_path, monkeypatch):
    def refuse_openvino(detector, path, **given):
        if path.suffix == ".xml":
            raise UserError("openvino 1.0 was never tried")
        return export(detector, path, **given)

    monkeypatch.setattr("boxquery.export.writer.export", refuse_openvino)
    make = partial(Job, threads=1, image_size=None, batch_size=1, images=())
    wanted = Wanted.of(["pytorch,onnxruntime", "openvino"], ["fp32"])
    jobs, left_out = plan(model, None, wanted, make, tmp_path, device="cpu", download=False, say=(said := []).append)
    assert "exported before anything is timed, which takes ten seconds to a few minutes each; --runtimes pytorch does without" in said[0]
    assert [str(job) for job in jobs] == ["pytorch fp32", "onnxruntime fp32"]
    assert [(str(each.job), each.failed) for each in left_out] == [("openvino fp32", "openvino 1.0 was never tried")]
    assert runtime.load(jobs[1].source).classes == ["cat", "owl"]


def test_a_process_that_is_killed_is_one_error_and_takes_no_other_with_it(model, photos):
    with Worker(job(model, photos)) as worker:
        assert worker.ready().inputs == [(64, 96), (96, 64)]
        assert os.getpid() != worker.process.pid
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="killed by signal 9"):
            worker.run(0)


def test_what_cannot_be_loaded_is_left_out_with_its_reason(tmp_path, photos):
    (measured,) = measure([job(str(tmp_path), photos)], 3, None, lambda line: None)
    assert "neither a run nor a model folder" in measured.failed
    assert measured.timings == []


def test_a_row_has_medians_percentiles_and_the_parts(model, photos):
    timings = [Timing((0.001, 0.010 * (i + 1), 0.002), (0.001, 0.005, 0.002)) for i in range(5)]
    row = Measured(job(model, photos), None, timings, Memory(12_345_678, None)).row()
    assert row["latency_ms"] == {"median": 33.0, "p95": pytest.approx(51.0)}
    assert row["parts_ms"] == {"preprocessing": 1.0, "model": 30.0, "postprocessing": 2.0}
    assert row["cpu_ms"] == {"all": 8.0, "preprocessing": 1.0, "model": 5.0, "postprocessing": 2.0}
    assert (row["memory_mb"], row["gpu_memory_mb"], row["images_per_second"]) == (12.3, None, pytest.approx(30.303))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["detr", "--preset", "huge"], "huge"),
        (["petr", "--images", "notes.png"], "notes.png: no folder v1.0-mini"),
        (["petr", "--images", "surround", "--images", "shapes"], "--images shapes: of a model of scenes, one data set at a time"),
        (["dert"], "dert: no such folder"),
        (["detr", "--precision", "int9"], "--precision int9: choose among fp32, bf16, fp16, int8"),
        (["detr", "--runtimes", "tensorrt"], "--runtimes tensorrt: choose among pytorch, onnxruntime, openvino"),
        (["detr", "--runtimes", "pytorch", "--precision", "int8"], "--precision int8: choose among pytorch in fp32, bf16"),
        (["model.onnx", "--precision", "fp32"], "model.onnx: an exported file has its own"),
        (["detr", "--runs", "0"], "runs=0"),
        (["detr", "--minutes", "-1"], "minutes=-1"),
        (["detr", "--images", "nothing.jpg"], "nothing.jpg"),
        (["detr", "--images", "notes.png"], "notes.png: none of 1 image can be read"),
        ([".", "--preset", "tiny"], "--preset tiny: . has its own"),
    ],
)
def test_wrong_input_is_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes.png").write_bytes(b"no picture")
    assert run(["benchmark", *words, "--device", "cpu"]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert says in errors[0]
    assert captured.out == ""


def test_cores_that_share_a_physical_one_count_once(monkeypatch):
    block = "processor : {}\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\nphysical id\t: 0\nsiblings : 4\ncore id\t\t: {}\n"
    monkeypatch.setattr(machine, "_cpuinfo", lambda: "\n".join(block.format(i, i // 2) for i in range(4)))
    monkeypatch.setattr(machine, "cores", lambda: 4)
    assert machine.processor() == {"name": "Some CPU (family 25, model 17)", "cores": 4, "physical_cores": 2}
    monkeypatch.setattr(machine, "_cpuinfo", lambda: "")
    assert machine.physical_cores() == 4
