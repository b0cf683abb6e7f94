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
    detector.resize = Resize(Preprocessing(64, square=True))
    assert "; image size 64 x 64, " in repr(detector)


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


@pytest.mark.parametrize("source", [None, 7], ids=["none", "number"])
def test_what_is_no_source_is_refused_at_once(path, source):
    with pytest.raises(bq.UserError, match=f"source={source}: give a path"):
        runtime.load(path).predict(source)


def test_a_folder_is_called_one(path, tmp_path):
    with pytest.raises(bq.UserError, match="is a folder; give the images in it"):
        runtime.load(path).predict(tmp_path)


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


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_copy_is_not_used(ending, tmp_path, photo):
    path = handmade.write(tmp_path / f"model{ending}")
    files = [path] if ending == ".onnx" else [path, path.with_suffix(".bin")]
    chance = np.random.default_rng(0)
    for file in files:
        whole = file.read_bytes()
        for _ in range(30):
            spoilt = bytearray(whole)
            place = int(chance.integers(len(whole)))
            spoilt[place] ^= 1 << int(chance.integers(8))
            if b"crc32" not in spoilt:
                continue  # its key itself is hit: a file from before check sums
            file.write_bytes(spoilt)
            with pytest.raises(bq.UserError, match=r"check sum|cannot open it|cannot be read|not exported by|not a model"):
                runtime.load(path).predict(photo)
        file.write_bytes(whole)
    assert len(runtime.load(path).predict(photo, threshold=0)) == handmade.QUERIES


def test_a_file_from_before_check_sums(path, tmp_path, photo):
    older = handmade.write(tmp_path / f"model{path.suffix}", crc32=None)
    assert np.array_equal(runtime.load(older).predict(photo).boxes, runtime.load(path).predict(photo).boxes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": [64]}, "size should be two sides"),
        ({"size": "96"}, "size should be two sides"),
        ({"size": [64, 1e9]}, "size should be two sides"),
        ({"size": [8, 64]}, "size should be two sides"),
        ({"classes": "cat"}, "classes should be a list of words"),
        ({"classes": ["cat", 1, "owl"]}, "classes should be a list of words"),
        ({"classes": ["cat", "owl"]}, "2 classes and 3 ids"),
        ({"classes": ["cat", "owl"], "ids": [1, 2]}, "names 2 classes, its graph has 3"),
        ({"ids": [1, 2, 3.5]}, "ids should be a list of whole numbers"),
        ({"ids": [1, 2, 10**400]}, "ids should be a list of whole numbers"),
        ({"queries": 0}, "queries should be a whole number above 0"),
        ({"queries": True}, "queries should be"),
        ({"top_k": 1.5}, "top_k should be"),
        ({"top_k": float("inf")}, "top_k should be"),
        ({"has_no_object": "no"}, "has_no_object should be true or false"),
        ({"format": 0}, "format should be a number from 1"),
        ({"format": "1"}, "format should be a number from 1"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": 10**400}, "must be from 0 to 1"),
        ({"model": None}, "model should be a word"),
        ({"precision": ["fp32"]}, "precision should be one of"),
        ({"preprocessing": [1]}, "preprocessing"),
        ({"preprocessing": {**Preprocessing(64).to_dict(), "longest_ratio": 1e308}}, "longest_ratio=1e.308: must be a number from 1 to"),
        ({"record": [1, 2]}, "cannot be read"),
        ({"record": {"format": 1}}, "cannot be read"),
        ({"size": [64, 96], "sides": (64, 64)}, r"record says size \[64, 96\], its graph 64 x 64"),
        ({"sides": (64, 64)}, r"record says size null, its graph 64 x 64"),
    ],
)
def test_a_record_that_was_edited(changes, says, tmp_path):
    sides = changes.get("sides") or ("height", "width")
    with pytest.raises(bq.UserError, match=says) as caught:
        runtime.load(handmade.write(tmp_path / "model.onnx", **{"crc32": None, "sides": sides, **changes}))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_graph_that_gives_no_numbers(ending, tmp_path, photo):
    with pytest.raises(bq.UserError, match="no finite numbers, in fp16"):
        runtime.load(handmade.write(tmp_path / f"model{ending}", precision="fp16", factor=np.nan)).predict(photo)


def test_a_graph_that_is_not_ours(tmp_path):
    handmade.write_other(tmp_path / "other.onnx")
    with pytest.raises(bq.UserError, match="its graph has no input 'images' of uint8 and 4 dimensions"):
        runtime.load(tmp_path / "other.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(bq.UserError, match="not a file"):
        runtime.load(tmp_path / "folder.onnx")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_broken_file_prints_nothing_of_its_own(ending, tmp_path, capfd):
    path = handmade.write(tmp_path / f"model{ending}", crc32=None)
    path.write_bytes(b"<net name='x' <" if ending == ".xml" else path.read_bytes()[:-700])
    with pytest.raises(bq.UserError, match="cannot open it" if ending == ".onnx" else "or damaged \\(not well-formed"):
        runtime.load(path)
    assert capfd.readouterr() == ("", "")


def test_an_xml_with_a_long_comment(tmp_path, photo):
    path = handmade.write(tmp_path / "model.xml", crc32=None)
    head, _, rest = path.read_text().partition("?>")
    path.write_text(f"{head}?><!--{'x' * 9000}-->{rest}")
    assert len(runtime.load(path).predict(photo, threshold=0)) == handmade.QUERIES


@pytest.mark.parametrize("threads", ["2", 1.5, True, 10**11])
def test_threads_that_cannot_be(path, threads, monkeypatch):
    with pytest.raises(bq.UserError, match=r"threads=.*: must be a whole number from 1 to 1024"):
        runtime.load(path, threads=threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "99999999999")
    with pytest.raises(bq.UserError, match=r"OMP_NUM_THREADS=9+: an exported model runs on at most 1024 threads"):
        runtime.load(path)
