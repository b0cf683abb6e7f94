"""Scenes of several cameras through the same commands as images: one run folder, one resume, one evaluation; pictures and maps."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.data.nuscenes.results import read_results
from boxquery.data.scenes.open import open_scenes
from boxquery.evaluation.scene_predictions import with_shuffled_calibration, without_camera
from boxquery.models import list_scene_models
from boxquery.training.epoch_end import EpochEnd
from tests.data import nuscenes_layout
from tests.training.runs import SMALL, Stop, rows, scenes, settings

DATA = "surround:train=6,val=3,test=2,width=64"
OWN = {"petr": {"depths": 4}}


def flags(name: str) -> dict:
    return settings(name, {**SMALL, "decoder_layers": 2, **OWN.get(name, {})}) | {"image_size": 48, "batch_size": 2}


@pytest.fixture(scope="module", params=list_scene_models())
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    return request.param, folder, bq.train(DATA, epochs=2, out=folder, **flags(request.param))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch, for commands that only need one."""
    folder = tmp_path_factory.mktemp("runs") / "detr3d"
    bq.train(DATA, epochs=1, out=folder, **flags("detr3d"))
    return folder


def said(capsys, words: list) -> tuple[int, str, str]:
    status = command_line([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_run_leaves_what_every_run_leaves(finished):
    _, folder, detector = finished
    for file in ("model/config.json", "model/model.safetensors", "last.ckpt", "report.html", "check.json", "data.json"):
        assert (folder / file).is_file()
    assert {"loss", "class", "l1", "mAP", "NDS", "mATE", "mASE", "mAOE", "AP@0.5", "AP@4", "best_threshold"} <= set(rows(folder)[0])
    assert not {"AP", "mAVE", "giou"} & set(rows(folder)[0])
    with (folder / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert 0 <= float(last["waiting_seconds"]) <= float(last["seconds"])
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation) == {"val", "test"}
    assert set(evaluation["val"]["fixed_boxes"]) == {"mAP", "NDS"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["options"]["area"] == list(open_scenes(DATA).area)
    page = (folder / "report.html").read_text()
    for words in ("NDS of fixed boxes", "AP by distance", "Truth and prediction", "the 3 scenes of the validation split"):
        assert words in page.replace("\n", " ") or words.replace("3 scenes", "<b>3 scenes</b>") in page
    assert isinstance(detector, bq.SceneDetector)
    assert detector.summary()["val"] == {key: evaluation["val"][key] for key in ("mAP", "NDS")}


def test_the_saved_model_has_the_numbers_of_the_run(finished):
    _, folder, trained = finished
    detector, data = bq.load(folder), open_scenes(DATA)
    closing = json.loads((folder / "evaluation.json").read_text())["val"]
    metrics = detector.evaluate(data, batch_size=3)
    assert metrics["NDS"] == pytest.approx(closing["NDS"], abs=1e-6)
    assert metrics["fixed_boxes"] == pytest.approx(closing["fixed_boxes"], abs=1e-3)  # whose boxes are rounded in data.json
    split = data.split("val")
    one, other = (each.predict(split.read(0), split[0].lidar2img, threshold=0.0) for each in (detector, trained))
    assert np.allclose(one.boxes, other.boxes)
    assert one.boxes.shape == (len(one), 9)
    assert len(one) == detector.model.num_queries_per_layer[-1]
    assert (np.diff(one.scores) <= 0).all()
    larger = [image.resize((128, 76)) for image in split.read(0)]  # the same cameras with more pixels
    zoom = np.diag([128 / 64, 76 / 38, 1, 1])
    again = detector.predict(larger, zoom @ split[0].lidar2img, threshold=0.0)
    apart = np.linalg.norm(again.boxes[:, None, :2] - one.boxes[None, :, :2], axis=2).min(1)
    assert np.median(apart) < 1.0  # metres; as scores are almost equal, their order is another
    with pytest.raises(bq.UserError, match=r"lidar2img \[6, 4, 4\] for 2 images"):
        detector.predict(larger[:2], split[0].lidar2img)


def test_a_model_is_chosen_where_none_is_named(tmp_path, capsys):
    flags = ["--epochs", "1", "--batch-size", "4", "--image-size", "32", "--pretrained", "none"]
    assert command_line(["train", DATA, *flags, "--out", str(tmp_path / "run")]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    size, queries = ("small", 100) if config["device"] == "cuda" else ("tiny", 50)
    assert (config["model"], config["preset"]) == ("petr", size)
    assert {"model", "preset"} <= set(config["chosen"])
    assert f"auto: petr {size}: " in capsys.readouterr().err
    status, out, _ = said(capsys, ["check", DATA])
    assert status == 0
    assert f"the model predicts at most {queries}" in out


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(finished, tmp_path, monkeypatch):
    name, folder, _ = finished
    keep = EpochEnd.keep

    def stop(self, trainer):
        keep(self, trainer)
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(EpochEnd, "keep", stop)
        with pytest.raises(Stop):
            bq.train(DATA, epochs=2, out=tmp_path / "run", **flags(name))
    bq.train(out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(folder)
    whole, resumed = (torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (folder, tmp_path / "run"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_run_that_starts_from_another_takes_all_of_it(run, tmp_path):
    bq.train(DATA, start_from=run, epochs=1, out=tmp_path / "next", batch_size=2, device="cpu")
    groups = json.loads((tmp_path / "next/transfer.json").read_text())["groups"]
    assert sum(group["new"] for group in groups) == 0


def test_evaluate_prints_nuscenes_metrics_and_takes_a_camera_away(run, tmp_path, capsys):
    status, out, _ = said(capsys, ["evaluate", run, DATA, "--out", tmp_path / "e", "--json"])
    assert status == 0
    assert {"mAP", "NDS", "mATE", "classes", "fixed_boxes", "best_threshold"} <= json.loads(out).keys()
    with (tmp_path / "e/per_class.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == open_scenes(DATA).names
    page = (tmp_path / "e/evaluation.html").read_text()
    assert "mean over classes and 0.5, 1, 2 and 4 m" in page
    assert f" on val of {DATA}</h1>" in page
    status, out, err = said(capsys, ["evaluate", run, DATA, "--without-camera", "front", "--shuffle-calibration"])
    assert status == 0
    assert "has not learned to look" not in err, "what it loses so says nothing of what it learned"
    assert "without front" in out
    assert "best fixed boxes in every scene" in out


def test_predict_writes_results_as_nuscenes_has_them_and_pictures(run, tmp_path, capsys):
    status, out, _ = said(capsys, ["predict", run, DATA, "--split", "test", "--threshold", "0.01", "--out", tmp_path / "p", "--json"])
    assert status == 0
    results = json.loads((tmp_path / "p/predictions.json").read_text())["results"]
    assert list(results) == ["test/0", "test/1"]
    assert json.loads(out)["objects"] == sum(map(len, results.values()))
    assert {row["detection_name"] for found in results.values() for row in found} <= set(open_scenes(DATA).names)
    assert sorted(path.name for path in (tmp_path / "p/pictures").iterdir()) == ["test-0.jpg", "test-1.jpg"]


def test_explain_shows_one_map_over_all_cameras(run, tmp_path, capsys):
    status, out, _ = said(capsys, ["explain", run, DATA, "--scene", "1", "--threshold", "0.0", "--out", tmp_path, "--json"])
    assert status == 0
    detections = json.loads(out)["explanations"][0]["detections"]
    assert len(detections) == 12
    for layer in detections[0]["cameras"]:
        assert sum(layer.values()) == pytest.approx(1, abs=1e-5)
    page = (tmp_path / "val-1.html").read_text()
    assert page.count("<img") == 1 + 8
    assert "Detections and ground truth" in page
    split = open_scenes(DATA).split("val")
    why = bq.load(run).explain(split.read(0), split[0].lidar2img, threshold=0.0, cameras=split[0].cameras)
    heat = why.heatmap(3)
    assert heat.shape == (6, 48, 80)
    assert heat.sum() == pytest.approx(1, abs=1e-5)
    console = Console(file=(shown := io.StringIO()), width=80)
    console.print(why.table())
    header = re.findall("[a-z]+", shown.getvalue().partition("┡")[0].partition("┏")[2])
    assert set(header) == {"query", "class", "score", "front", "rear", "left", "right"}, "no word is split in 80 columns"
    assert why.draw(0).width == pytest.approx(1200, abs=20)
    assert said(capsys, ["explain", run, DATA, "--scene", "3"])[2].endswith("has scenes 0 to 2\n")


def test_scenes_and_images_are_told_apart_in_one_line(run, tmp_path, capsys):
    images = tmp_path / "images"
    bq.train(scenes(), epochs=1, out=images, **settings("detr"))
    capsys.readouterr()
    for words, message in (
        (["train", DATA, "--model", "detr"], "model 'detr' finds boxes in images, and this is about scenes"),
        (["train", DATA, "--preset", "huge"], "petr has no preset 'huge'; choose one of"),
        (["train", "shapes", "--model", "petr"], "model 'petr' finds 3-D boxes in scenes of several cameras"),
        (["train", DATA, "--model", "petr", "--images", "x"], "--images: is of images"),
        (["train", DATA, "--model", "petr", "--augment", "mosaic=1"], "augment: mosaic is of images"),
        (["evaluate", run, "shapes"], "detr3d finds 3-D boxes in scenes of several cameras; give it such scenes"),
        (["evaluate", images, DATA], "detr finds boxes in images; scenes of several cameras need detr3d or petr"),
        (["evaluate", images, "shapes", "--without-camera", "front"], "are of scenes of several cameras, and shapes holds images"),
        (["evaluate", run, DATA, "--nms", "0.5"], "--nms: is of images"),
        (["evaluate", run, DATA, "--without-camera", "top"], "no camera 'top'; cameras are front, front_left"),
        (["predict", run, DATA, "--track"], "--track: is of images"),
        (["predict", run, DATA, "--save", "xml"], "--save xml: of scenes there are pictures and json"),
        (["explain", run, DATA, "--faithful"], "--faithful: is of images"),
        (["export", run, "--to", "onnx", "--out", tmp_path / "m.onnx", "--verify", "shapes"], "holds images, and detr3d takes scenes"),
        (["export", images, "--to", "onnx", "--out", tmp_path / "m.onnx", "--verify", DATA], "holds scenes of several cameras, and detr"),
        (["check", DATA, "--model", "detr"], "model 'detr' finds boxes in images"),
    ):
        status, _, err = said(capsys, words)
        assert status == 2, words
        assert err.splitlines()[-1].startswith("error: "), words
        assert message in err.splitlines()[-1], words


def test_a_run_on_nuscenes_as_it_is_downloaded(tmp_path, capsys):
    nuscenes_layout.write(tmp_path / "data")
    words = [
        "train",
        tmp_path / "data",
        "--model",
        "petr",
        "--preset",
        "tiny",
        "--epochs",
        "1",
        "--image-size",
        "48",
        "--out",
        tmp_path / "run",
    ]
    for name, value in {**SMALL, **OWN["petr"]}.items():
        words += ["--option", f"{name}={json.dumps(value)}"]
    assert said(capsys, words)[0] == 0
    assert {"mAVE", "mAAE"} <= set(rows(tmp_path / "run")[0])
    assert said(capsys, ["predict", tmp_path / "run", tmp_path / "data", "--save", "json", "--out", tmp_path / "p"])[0] == 0
    found = read_results(tmp_path / "p/predictions.json", open_scenes(tmp_path / "data").split("val"))
    assert all(len(own.scores) for own in found.values())


def test_check_says_what_scenes_are_and_whether_a_model_can_overfit_them(tmp_path, capsys):
    status, out, _ = said(capsys, ["check", DATA, "--model", "petr", "--option", "num_queries=5", "--out", tmp_path, "--json"])
    assert status == 0
    found = json.loads(out)
    assert {finding["name"] for finding in found["findings"]} >= {"crowded"}
    assert found["scenes"]["unseen"]["train"] < 0.2
    assert "Training scenes with their boxes" in (tmp_path / "check.html").read_text()
    from boxquery.check.scene_overfit import overfit_scenes

    options = flags("petr")["options"]
    result = overfit_scenes(open_scenes(DATA), "petr", options, steps=3)
    assert (result.steps, result.reached) == (3, False)
    assert result.finding().level == "error"


def test_a_camera_less_and_calibration_of_others():
    split = open_scenes(DATA).split("val")
    less, blind, shuffled = (
        without_camera(split, "rear", blind=False),
        without_camera(split, "rear", blind=True),
        with_shuffled_calibration(split),
    )
    assert (len(less.read(0)), len(less[0].cameras), less[0].lidar2img.shape) == (5, 5, (5, 4, 4))
    assert np.array_equal(less[0].lidar2img[3], split[0].lidar2img[4])
    assert np.asarray(less.read(0)[3]).tolist() == np.asarray(split.read(0)[4]).tolist()
    images = blind.read(0)
    assert [bool(np.asarray(image).any()) for image in images] == [True, True, True, False, True, True]
    points = np.column_stack((np.random.default_rng(0).uniform(-50, 50, (20, 3)), np.ones(20)))
    assert ((points @ blind[0].lidar2img[3].T)[:, 2] < 0).all()
    for record, own in zip(shuffled, split, strict=True):
        places = [[np.array_equal(a, b) for b in own.lidar2img].index(True) for a in record.lidar2img]
        assert sorted(places) == list(range(6))
        assert all(a != b for a, b in enumerate(places))
