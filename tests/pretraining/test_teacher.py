"""Self-training: what a teacher detects becomes labels, from which another model learns in one run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.data.open import open_data
from boxquery.data.shapes import shapes_data
from boxquery.pretraining.teacher import PSEUDO_LABELS, label
from boxquery.training.config import RunConfig
from tests.training.runs import SMALL, Stop, rows, scenes, settings

from .test_run import stop_after

FLAGS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "device": "cpu", "precision": "float32", "pretrained": False, "force": True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    split = shapes_data(train=10, size=64).splits["train"]
    for i in range(10):
        (folder / "set").mkdir(exist_ok=True)
        split.read(i).save(folder / ("set" if i % 2 else ".") / f"s{i}.png")
    (folder / "set" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A run; untrained enough to be sure of nothing."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    bq.train(scenes(), out=folder, epochs=1, **settings("detr"))
    return folder


@pytest.fixture(scope="module")
def finished(photos, teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "student"
    bq.pretrain(photos, teacher=teacher, threshold=0.1, out=folder, **FLAGS)
    return folder


def test_what_a_teacher_detects_becomes_labels(photos, teacher, finished):
    labels = json.loads((finished / PSEUDO_LABELS).read_text())
    assert sorted(row["file_name"] for row in labels["images"]) == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    assert [row["name"] for row in labels["categories"]] == scenes().names
    detector = bq.load(teacher)
    for image in labels["images"]:
        mine = [row for row in labels["annotations"] if row["image_id"] == image["id"]]
        found = detector.predict(photos / image["file_name"], threshold=0.1, max_detections=30)
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in mine)]).reshape(-1, 4)
        assert np.allclose(boxes, found.boxes, atol=0.02)
        assert [row["category_id"] for row in mine] == found.ids
    data = open_data(finished / PSEUDO_LABELS, images=photos)
    assert sum(len(split) for split in data.splits.values()) == 10, "an ordinary data set"


def test_the_student_is_as_its_teacher_unless_another_is_given(photos, teacher, finished, tmp_path):
    config = RunConfig.read(finished)
    assert (config.model, config.preset, config.image_size) == ("detr", "tiny", 64)
    assert config.options["hidden_dim"] == 32
    assert config.start_from is None
    assert config.command(finished).startswith("boxquery train ")
    assert bq.load(finished).classes == scenes().names
    other = bq.pretrain(
        photos, teacher=teacher, threshold=0.1, out=tmp_path / "run", model="deformable-detr", preset="tiny", image_size=64, options=SMALL,
        **{**FLAGS, "epochs": 1},
    )  # fmt: skip
    assert other.name == "deformable-detr"


def test_stopped_and_resumed_it_is_the_same_run(photos, teacher, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(Stop):
            bq.pretrain(photos, teacher=teacher, threshold=0.1, out=tmp_path / "run", **FLAGS)
    bq.pretrain(out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(finished)


def test_labels_that_are_there_are_used_again_if_they_are_the_same(photos, teacher, finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PSEUDO_LABELS).write_text((finished / PSEUDO_LABELS).read_text())
    with pytest.raises(bq.UserError, match="of another teacher, threshold or folder"):
        bq.pretrain(photos, teacher=teacher, threshold=0.2, out=tmp_path / "run", **FLAGS)
    with pytest.raises(bq.UserError, match="no training had begun; leave out --resume"):
        bq.pretrain(out=tmp_path / "run", resume=True)
    words = ["pretrain", str(photos), "--teacher", str(teacher), "--threshold", "0.1", "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert command_line([*words, "--batch-size", "4", "--device", "cpu", "--pretrained", "none", "--force", "--json"]) == 0
    told = capsys.readouterr()
    assert "it is used again" in told.err
    assert f"boxquery train shapes --from {tmp_path / 'run'}" in told.err
    assert json.loads(told.out)["classes"] == scenes().names


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"threshold": 1.0}, "finds nothing in 10 images with a score of 1.00 or more; give a lower --threshold"),
        ({"patches": 3}, "--patches is for random patches"),
        ({"train_backbone": True}, "--train-backbone is for random patches"),
        ({"threshold": 2.0}, "threshold"),
    ],
)
def test_what_cannot_be_is_one_error(photos, teacher, tmp_path, flags, says):
    with pytest.raises(bq.UserError, match=says):
        bq.pretrain(photos, teacher=teacher, out=tmp_path / "run", **{**FLAGS, **flags})
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_no_class(photos, tmp_path):
    from boxquery.data.preprocessing import Preprocessing
    from boxquery.detector import Detector

    detector = Detector(bq.create_model("detr", classes=1, preset="tiny", **SMALL), [None], [0], Preprocessing(64))
    with pytest.raises(bq.UserError, match="classes have no names"):
        label(detector, [], None)
