"""Exported models of scenes give what the model gives: for any batch and size, in both runtimes, and through the commands."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import boxquery as bq
from boxquery import runtime
from boxquery.api import SceneDetector
from boxquery.cli import run as command_line
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.open import open_scenes
from boxquery.export import int8
from boxquery.export.graph import SceneGraph, trace
from boxquery.export.metadata import metadata
from boxquery.export.onnx import to_onnx, write_onnx
from boxquery.export.openvino import read_graph, write_openvino
from boxquery.export.verify import compare, run_file, run_graph
from boxquery.export.verify_scenes import scene_rows
from boxquery.runtime.exported_scenes import ExportedSceneDetector
from tests.training.runs import SMALL

onnx_ir = pytest.importorskip("onnx_ir", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("openvino", reason="the extra openvino is not installed")

DATA = "surround:train=2,val=3,test=1,width=64"
SCENES = open_scenes(DATA)
SMALLEST = {**SMALL, "decoder_layers": 1, "levels": 2}
OWN = {"petr": {"depths": 4}}
#: queries as published; ``tiny`` has those of proposals
PUBLISHED = {"two_stage": False, "class_loss": "paper"}
#: batches, cameras and sizes that no graph was traced with
SHAPES = ((1, 6, 48, 80), (3, 6, 61, 95), (2, 2, 33, 47))


def detector(name: str, **options: Any) -> SceneDetector:
    torch.manual_seed(0)
    options = {**SMALLEST, **OWN.get(name, {}), **options}
    model = bq.create_model(name, classes=len(SCENES.names), preset="tiny", area=list(SCENES.area), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return SceneDetector(model.eval(), SCENES.names, SCENES.ids, Preprocessing(48), (38, 64), 0.01)


def written(made: SceneDetector, size: tuple[int, int] | None, folder: Path) -> list[ExportedSceneDetector]:
    model = to_onnx(trace(SceneGraph(made), size))
    write_onnx(model, folder / "model.onnx", metadata(made, "onnx", "fp32", size))
    write_openvino(read_graph(folder / "model.onnx"), folder / "model.xml", metadata(made, "openvino", "fp32", size), half=False)
    return [runtime.load_scenes(folder / f"model{ending}", threads=1) for ending in (".onnx", ".xml")]


def inputs(batch: int, views: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise, seen by cameras of ``surround``."""
    lidar2img = np.stack([SCENES.splits["val"][i].lidar2img[:views] for i in range(batch)]).astype(np.float32)
    return np.random.default_rng(0).integers(0, 256, (batch, views, 3, *size), np.uint8), lidar2img


def assert_equal(made: SceneDetector, both: list[ExportedSceneDetector], shapes) -> None:
    graph = SceneGraph(made)
    for batch, views, *size in shapes:
        given = inputs(batch, made.cameras or views, size)
        ours = run_graph(graph, *given)
        for exported in both:
            theirs = run_file(exported.engine, *given)
            assert [each.shape for each in ours.values()] == [each.shape for each in theirs.values()]
            for i in range(batch):
                rows = [scene_rows({name: each[i : i + 1] for name, each in side.items()}, made.area) for side in (ours, theirs)]
                assert compare(*rows) == (pytest.approx(0, abs=1e-4), 0)
            assert (theirs["scores"][:, :-1] >= theirs["scores"][:, 1:]).all()


def by_place(found) -> np.ndarray:
    """Labels and boxes [K, 10] in an order that scores which are equal to rounding do not decide."""
    rows = np.column_stack((found.labels, found.boxes))
    return rows[np.lexsort(rows[:, 1::-1].T.round(2))]


@pytest.mark.slow
def test_any_batch_size_and_number_of_cameras_agree_and_both_detectors_find_the_same(tmp_path):
    made = detector("petr")
    both = written(made, None, tmp_path)
    assert_equal(made, both, SHAPES)
    scene, images = SCENES.splits["val"][1], SCENES.splits["val"].read(1)
    wanted = made.predict(images, scene.lidar2img, threshold=0, cameras=scene.cameras)
    for exported in both:
        assert (exported.classes, exported.ids, exported.threshold, exported.area) == (made.classes, made.ids, 0.01, made.area)
        assert (exported.cameras, exported.resize) == (None, made.resize)
        found = exported.predict(images, scene.lidar2img, threshold=0, cameras=scene.cameras)
        np.testing.assert_allclose(by_place(found), by_place(wanted), atol=1e-2)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        assert found.draw().size == wanted.draw().size
        exported.image_size = 80
        assert exported.predict(images, scene.lidar2img, threshold=0).boxes.shape == (12, 9)
        exported.image_size = 48
        given = exported.inputs(images, scene.lidar2img)
        ours, theirs = made.detect(*given)[0], exported.detect(*given)[0]
        assert len(ours.scores) == len(SCENES.names) * 12
        np.testing.assert_allclose(by_place(theirs), by_place(ours), atol=1e-2)


def test_boxes_far_outside_have_no_score(tmp_path):
    made = detector("detr3d", **PUBLISHED)
    graph = SceneGraph(made)
    graph.area = (-3.0, -3.0, -1.0, 3.0, 3.0, 1.0)
    found = run_graph(graph, *inputs(1, 6, (48, 80)))
    inside = (np.abs(found["boxes"][0, :, :2]) <= 13).all(1) & (found["boxes"][0, :, 2] >= -6) & (found["boxes"][0, :, 2] <= 8)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(found["scores"][0] > 0, inside)
    assert found["class_scores"].min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("petr", (48, 80)), ("detr3d", None)])
def test_queries_as_published_agree(name, size, tmp_path):
    """Of the other size than the model's proposals, which the other tests export: tracing takes time."""
    made = detector(name, **PUBLISHED)
    shapes = [(batch, views, *(size or side)) for batch, views, *side in SHAPES]
    assert_equal(made, written(made, size, tmp_path), shapes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder with a model, its file of one size as the command wrote it, and what the command said."""
    folder = tmp_path_factory.mktemp("exported")
    detector("detr3d").save(folder / "model")
    words = ["export", folder / "model", "--to", "onnx", "--size", "40x64", "--verify", DATA, "--out", folder / "model.onnx", "--json"]
    with pytest.MonkeyPatch.context() as patched:
        said: list[str] = []
        patched.setattr("builtins.print", lambda *words, **options: said.append(" ".join(map(str, words))))
        assert command_line([str(word) for word in words]) == 0
    return folder, json.loads(next(line for line in said if line.startswith("{")))


def test_the_command_verifies_on_scenes_and_says_what_is_inside(exported):
    folder, values = exported
    seen = values["verified"]
    assert (seen["scenes"], seen["differing"]) == (3, 0)
    assert seen["difference"] < 1e-4
    assert (seen["mAP_exported"], seen["NDS_exported"]) == (pytest.approx(seen["mAP"]), pytest.approx(seen["NDS"], abs=1e-4))
    assert {"ms", "ms_exported", "mAP_own_size"} <= seen.keys()
    assert values["scenes"] == {"images": [38, 64], "area": list(SCENES.area), "cameras": 6}
    assert (values["format"], values["classes"], values["size"]) == (2, SCENES.names, [40, 64])
    found = runtime.load_scenes(folder / "model.onnx", threads=1)
    assert re.match(r"<ExportedSceneDetector detr3d \(fp32\), \d classes: .* images of 64 x 40, threshold 0.01, onnxruntime", repr(found))


def test_one_size_agrees_on_any_batch_in_both_runtimes(exported):
    folder, _ = exported
    made = bq.load(folder / "model")
    write_openvino(read_graph(folder / "model.onnx"), folder / "model.xml", metadata(made, "openvino", "fp32", (40, 64)), half=False)
    assert_equal(
        made, [runtime.load_scenes(folder / f"model{end}", threads=1) for end in (".onnx", ".xml")], ((1, 6, 40, 64), (3, 6, 40, 64))
    )


def test_int8_is_near_in_both_runtimes(exported, tmp_path):
    folder, _ = exported
    made = bq.load(folder / "model")
    resize = replace(made.resize, fixed=(40, 64))
    quantised, used = int8.quantize(onnx_ir.load(folder / "model.onnx"), int8.scene_inputs(DATA, None, resize))
    assert used == 2
    values = metadata(made, "onnx", "int8", (40, 64), used)
    write_onnx(quantised, tmp_path / "model.onnx", values)
    write_openvino(read_graph(tmp_path / "model.onnx"), tmp_path / "model.xml", values, half=False)
    given = inputs(2, 6, (40, 64))
    ours = run_graph(SceneGraph(made), *given)
    for ending in (".onnx", ".xml"):
        theirs = run_file(runtime.load_scenes(tmp_path / f"model{ending}", threads=1).engine, *given)
        assert 1e-6 < np.abs(ours["class_scores"] - theirs["class_scores"]).max() < 0.05
    assert not [name for name in int8.in_8_bits(onnx_ir.load(folder / "model.onnx")) if "position_encoder" in name]


def test_evaluate_and_predict_take_the_file(exported, tmp_path, capsys):
    folder, values = exported
    assert command_line(["evaluate", str(folder / "model.onnx"), DATA, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["mAP"] == pytest.approx(values["verified"]["mAP_exported"], abs=1e-4)
    assert metrics["NDS"] == pytest.approx(values["verified"]["NDS_exported"], abs=1e-3)
    assert command_line(["predict", str(folder / "model.onnx"), DATA, "--out", str(tmp_path / "p"), "--json"]) == 0
    assert len(json.loads((tmp_path / "p/predictions.json").read_text())["results"]) == 3
    assert len(list((tmp_path / "p/pictures").iterdir())) == 3


def test_no_torch_is_needed(exported, tmp_path):
    folder, _ = exported
    for i, image in enumerate(SCENES.splits["val"].read(0)):
        image.save(tmp_path / f"{i}.png")
    np.save(tmp_path / "lidar2img.npy", SCENES.splits["val"][0].lidar2img)
    code = """
import sys
sys.modules |= dict.fromkeys(("torch", "torchvision", "timm", "scipy"))
import numpy as np
from boxquery import runtime
model, folder = sys.argv[1:]
lidar2img = np.load(f"{folder}/lidar2img.npy")
found = runtime.load_scenes(model, threads=1).predict([f"{folder}/{i}.png" for i in range(6)], lidar2img, threshold=0)
found.draw()
print(found)
"""
    words = [sys.executable, "-c", code, str(folder / "model.onnx"), str(tmp_path)]
    alone = subprocess.run(words, capture_output=True, text=True)
    assert alone.stdout.startswith("<SceneResult of 6 cameras: 12 objects: "), alone.stderr


def test_benchmark_takes_the_file(exported, capsys):
    folder, _ = exported
    words = ["benchmark", str(folder / "model.onnx"), "--images", DATA, "--runs", "3", "--threads", "1", "--json"]
    assert command_line(words) == 0
    told = json.loads(capsys.readouterr().out)
    (row,), known = told["runtimes"], told["conditions"]
    assert (row["runtime"], row["precision"], row["runs"]) == ("onnxruntime", "fp32", 3)
    assert (told["unit"], known["input_sizes"]) == ("scene", [[40, 64]])
    assert "torch" not in known["versions"]


def test_what_is_wrong_is_said_in_one_line(exported, tmp_path, capsys):
    folder, _ = exported
    file, out = folder / "model.onnx", tmp_path / "m.onnx"
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    for words, message in (
        (["evaluate", file, "shapes"], "finds 3-D boxes in scenes of several cameras; give it such scenes"),
        (["predict", file, tmp_path / "a.png"], "finds 3-D boxes in scenes of several cameras; give it such scenes"),
        (["export", folder / "model", "--to", "onnx", "--out", out, "--verify", "shapes"], "holds images, and detr3d takes scenes"),
        (
            ["export", folder / "model", "--to", "onnx", "--out", out, "--precision", "int8", "--calibrate", "shapes"],
            "give nuScenes' folder, which holds samples and v1.0-mini, or the word surround",
        ),
    ):
        assert command_line([str(word) for word in words]) == 2, words
        assert re.match("error: .*" + re.escape(message), capsys.readouterr().err.splitlines()[-1]), words
    found, scene, images = runtime.load_scenes(file, threads=1), SCENES.splits["val"][0], SCENES.splits["val"].read(0)
    with pytest.raises(bq.UserError, match=r"^scenes of 5 cameras: detr3d has weights for 6; give all of them$"):
        found.predict(images[:5], scene.lidar2img[:5])
    with pytest.raises(bq.UserError, match=r"^lidar2img \[5, 4, 4\] for 6 images: must be finite numbers \[6, 4, 4\]$"):
        found.predict(images, scene.lidar2img[:5])
    with pytest.raises(bq.UserError, match=r"^lidar2img\[2\]: is not the matrix of a camera"):
        found.predict(images, scene.lidar2img * (np.arange(6) != 2)[:, None, None])
    with pytest.raises(bq.UserError, match=r"^images of 48x80: this model was exported for 40x64 alone$"):
        found.detect(*inputs(1, 6, (48, 80)))
    with pytest.raises(bq.UserError, match=r"^image_size=96: this model was exported for 40x64 alone"):
        found.image_size = 96
    with pytest.raises(bq.UserError, match=r"^no.jpg: no such file"):
        found.predict(["no.jpg"] * 6, scene.lidar2img)
