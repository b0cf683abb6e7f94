"""Exported models: the same ``predict`` as the Detector's, by onnxruntime and OpenVINO, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boxquery as bq
from boxquery import runtime
from boxquery.api import ExportedDetector
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.data.shapes import shapes_data
from boxquery.runtime.__main__ import main

from . import handmade

ENDINGS = [".onnx", ".xml"]


@pytest.fixture(scope="module", params=ENDINGS)
def path(request, tmp_path_factory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("exported") / f"model{request.param}")


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(90, 255, (48, 80, 3), dtype=np.uint8))


def expected(photo: Image.Image, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clipped boxes, scores and labels, best first."""
    pixels = Resize(Preprocessing(64))(photo)
    scores = handmade.FACTORS * pixels.astype(np.float64).mean() / 255
    order = np.argsort(-scores.max(1))
    kept = order[scores.max(1)[order] >= threshold]
    boxes = (handmade.corners() * ([photo.width, photo.height] * 2)).clip(0, [photo.width, photo.height] * 2)
    return boxes[kept], scores.max(1)[kept], scores.argmax(1)[kept]


def test_predict_is_what_the_graph_says(path, photo):
    found = runtime.load(path).predict(photo, threshold=0.4)
    boxes, scores, labels = expected(photo, 0.4)
    assert 0 < len(labels) < handmade.QUERIES
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert found.labels.tolist() == labels.tolist()
    assert found.names == [handmade.CLASSES[label] for label in labels]
    assert found.ids == [{0: 17, 2: 90}[label] for label in labels]
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert found.size == (48, 80)


def test_it_is_described_and_has_its_own_threshold(path, photo):
    detector = runtime.load(path, threads=1)
    assert detector.threshold == 0.1
    assert len(detector.predict(photo)) == len(expected(photo, 0.1)[1])
    assert (detector.name, detector.num_queries, detector.image_size) == ("detr", handmade.QUERIES, 64)
    said = repr(detector)
    assert said.startswith("<ExportedDetector detr (fp32), 2 classes: cat, owl; image size 64 x any, threshold 0.10, ")
    assert said.endswith(" on cpu>")
    detector.image_size = 96
    assert detector.resize.size(48, 80) == (96, 160)


def test_every_kind_of_source_and_batch(path, photo, tmp_path):
    detector = runtime.load(path)
    photo.save(tmp_path / "a.png")
    wanted = detector.predict(photo)
    for source in (str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(photo)):
        assert np.array_equal(detector.predict(source).boxes, wanted.boxes)
    images = [photo, photo.resize((150, 48)), photo.point(lambda value: value // 2), photo.resize((48, 80))]
    together = detector.predict(images, batch_size=4)
    assert isinstance(together, list)
    for image, found, alone in zip(images, together, detector.predict(iter(images)), strict=True):
        assert found.size == (image.height, image.width)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-4)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)


def test_which_detections_are_kept(path, photo):
    detector = runtime.load(path)
    every = detector.predict(photo, threshold=0)
    assert len(every) == handmade.QUERIES
    assert set(detector.predict(photo, classes=["OWL"]).names) == {"owl"}
    assert np.array_equal(detector.predict(photo, max_detections=2).boxes, every.boxes[:2])
    assert 0 < len(detector.predict(photo, threshold=0, nms=0.05)) < len(every)
    for wrong in ({"nms": 0}, {"batch_size": 0}, {"threshold": 2}, {"classes": ["cta"]}):
        with pytest.raises(bq.UserError, match=next(iter(wrong))):
            detector.predict(photo, **wrong)


def test_several_classes_of_a_query_count_in_evaluation(path, photo):
    detector = runtime.load(path)
    pixels = detector.resize(photo)[None]
    (found,) = detector.detect(pixels, [(48, 80)])
    assert len(found.scores) == 10  # the record's top_k, more than queries
    assert (np.diff(found.scores) <= 0).all()
    scores = handmade.FACTORS * pixels.astype(np.float64).mean() / 255
    np.testing.assert_allclose(found.scores, np.sort(scores.ravel())[::-1][:10], atol=1e-5)
    assert len(detector.detect(pixels, [(48, 80)], top_k=3)[0].labels) == 3


def test_a_softmax_has_one_class_per_query(tmp_path, photo):
    detector = runtime.load(handmade.write(tmp_path / "model.onnx", has_no_object=True))
    (found,) = detector.detect(detector.resize(photo)[None], [(48, 80)])
    assert len(found.scores) == handmade.QUERIES


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_fixed_size(ending, tmp_path, photo):
    detector = runtime.load(handmade.write(tmp_path / f"model{ending}", size=[64, 96]))
    assert "image size 64 x 96" in repr(detector)
    for image in (photo, photo.resize((30, 90))):
        assert len(detector.predict(image, threshold=0)) == handmade.QUERIES
    with pytest.raises(bq.UserError, match="image_size=80: this model was exported for 64x96 alone"):
        detector.image_size = 80
    with pytest.raises(bq.UserError, match="images of 64x64: this model was exported for 64x96 alone"):
        detector.detect(np.zeros((1, 3, 64, 64), np.uint8), [(64, 64)])


def test_threads_are_given_or_those_of_the_environment(path, monkeypatch):
    with pytest.raises(bq.UserError, match="threads=0"):
        runtime.load(path, threads=0)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    runtime.load(path)


def test_without_the_runtime(path, monkeypatch):
    package = {".onnx": "onnxruntime", ".xml": "openvino"}[path.suffix]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(bq.UserError, match=f"needs the package {package}: pip install {package}"):
        runtime.load(path)


def test_it_loads_no_torch_and_no_more_than_it_needs(path, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    code = (
        "import sys; from boxquery import runtime; "
        f"print(len(runtime.load({str(path)!r}).predict({str(tmp_path / 'a.png')!r}))); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    count, loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(count) > 0
    assert set(loaded.split()).isdisjoint({"torch", "torchvision", "scipy", "yaml", "cyclopts", "rich", "jinja2", "hotcoco", "onnx"})


def test_its_own_command(path, photo, tmp_path, capsys):
    photo.save(tmp_path / "7.png")
    assert main([str(path), str(tmp_path / "7.png"), "--threshold", "0.4", "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert (image["file"], image["width"], image["height"]) == (str(tmp_path / "7.png"), 80, 48)
    assert [row["score"] for row in image["detections"]] == pytest.approx(expected(photo, 0.4)[1], abs=1e-4)
    assert {row["class"] for row in image["detections"]} <= {"cat", "owl"}
    assert main([str(path), str(tmp_path / "7.png")]) == 0
    assert "80 x 48, 6 found" in capsys.readouterr().out
    assert main([str(path), str(tmp_path / "none.png")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_commands_predict_and_evaluate(path, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.save("a.png")
    assert run(["predict", str(path), "a.png", "--out", "found", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == len(expected(photo, 0.1)[1])
    assert len(json.loads(Path("found/predictions.json").read_text())) == len(expected(photo, 0.1)[1])


def test_evaluation_is_that_of_its_detections(tmp_path):
    """Several classes per query, no run behind it, and workers that know only how to resize."""
    path = handmade.write(tmp_path / "model.onnx", classes=["circle", "square", "triangle"], ids=[1, 2, 3])
    detector = ExportedDetector.open(path)
    scenes = shapes_data(train=2, val=2, test=8, size=64)
    metrics = detector.evaluate(scenes, split="test", workers=1, classes=["circle", "triangle"])
    assert metrics["median_box"] is None
    assert metrics["detections"] > metrics["images"]
    assert 0 <= metrics["AP"] < 0.2
