"""Runs whose images are augmented as the user asks: what is recorded of it, the same images after a resume, plain ones at the end."""

import math
from dataclasses import replace

import pytest
import yaml

import boxquery as bq
from boxquery.augment import LEVELS, recorded
from boxquery.data.loading import DetectionDataset
from boxquery.models import preset
from boxquery.training.config import RunConfig
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.run_length import RunLength
from tests.compare.fake_comparison import make_plan

from .runs import Stop, rows, scenes, settings

MIXED = {"level": "strong", "mosaic": 0.6, "rotation": 10.0}


def darker(image, boxes, labels, generator):
    return image // 2, boxes, labels


def also_darker(image, boxes, labels, generator):
    return image // 2, boxes, labels


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "run"
    bq.train(scenes(), epochs=3, out=folder, augment={**MIXED, "own": darker}, **settings("detr"))
    return folder


def test_what_was_asked_for_and_what_it_is_are_recorded(mixed):
    written = yaml.safe_load((mixed / "config.yaml").read_text())
    assert written["augment"] == MIXED
    assert written["augmentation"]["own"] == f"{__name__}.darker"
    assert recorded(written["augmentation"]) == replace(LEVELS["strong"], mosaic=0.6, rotation=10.0)
    assert "--augment strong --augment mosaic=0.6 --augment rotation=10.0" in written["command"]
    page = (mixed / "report.html").read_text()
    for name in ("augment.level", "augmentation.mosaic", "augmentation.own"):
        assert name in page


def test_without_a_wish_the_recipe_is_recorded(tmp_path):
    bq.train(scenes(), epochs=1, out=tmp_path, **settings("detr"))
    config = RunConfig.read(tmp_path)
    assert config.augment == {}
    assert recorded(config.augmentation) == preset("detr", "tiny").recipe.augment
    assert "--augment" not in config.command(tmp_path)


def test_workers_do_not_change_a_run(mixed, tmp_path):
    bq.train(scenes(), epochs=3, out=tmp_path, workers=2, augment={**MIXED, "own": darker}, **settings("detr"))
    assert rows(tmp_path) == rows(mixed)


def test_stopped_and_resumed_it_is_the_same_run(mixed, tmp_path, monkeypatch):
    keep = EpochEnd.keep

    def keep_and_stop(self, trainer):
        keep(self, trainer)
        if trainer.current_epoch == 0:
            raise Stop

    monkeypatch.setattr(EpochEnd, "keep", keep_and_stop)
    with pytest.raises(Stop):
        bq.train(scenes(), epochs=3, out=tmp_path, augment={**MIXED, "own": darker}, **settings("detr"))
    monkeypatch.undo()
    for given, message in (
        (None, r"own transform .*\.darker: resume it in Python with augment=darker"),
        (also_darker, r"started with .*\.darker, not .*\.also_darker"),
        ({"level": "light", "own": darker}, "was started with augment="),
    ):
        with pytest.raises(bq.UserError, match=message):
            bq.train(out=tmp_path, resume=True, augment=given)
    bq.train(scenes(), out=tmp_path, resume=True, augment=darker)
    assert rows(tmp_path) == rows(mixed)


def test_an_own_transform_that_a_run_never_had_is_refused(tmp_path, mixed):
    bq.train(scenes(), epochs=1, out=tmp_path, augment="none", **settings("detr"))
    with pytest.raises(bq.UserError, match="started with no own transform"):
        bq.train(out=tmp_path, resume=True, augment=darker)


def test_the_last_images_are_plain(tmp_path, monkeypatch):
    """Of five epochs of three batches the last two fifths, which begin with the fourth."""
    asked, get = [], DetectionDataset.__getitem__

    def remember(self, item):
        if isinstance(item, tuple):
            asked.append(item)
        return get(self, item)

    monkeypatch.setattr("boxquery.training.fit.Run.measure_costs", lambda self: None)
    monkeypatch.setattr(DetectionDataset, "__getitem__", remember)
    bq.train(scenes(), epochs=5, out=tmp_path, augment={"mosaic": 1.0, "plain_end": 0.4}, **settings("detr"))
    assert {epoch: {item.plain for item in asked if item.epoch == epoch} for epoch in range(5)} == {
        0: {False}, 1: {False}, 2: {False}, 3: {True}, 4: {True},
    }  # fmt: skip


def test_the_plain_end_is_that_of_the_schedule_planned_when_an_epoch_begins():
    length = RunLength(minutes=1.0).with_data(10, 4)
    assert length.schedule_end(0) == math.inf
    planned = replace(length, schedule_steps={0: 100, 25: 60}, total_batches=60)
    assert [planned.schedule_end(epoch) for epoch in range(5)] == [10, 10, 10, 6, 6]
    assert replace(planned, accumulate=4).schedule_end(0) == 100 / 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("lots", "no level 'lots'"),
        ({"flips": 1}, "no part 'flips'"),
        ({"own": "f"}, "must be a function"),
        (3, "give a level"),
        (lambda image, boxes, labels, generator: (image.float(), boxes, labels), "returned as image float32"),
    ],
)
def test_a_wrong_augmentation_leaves_nothing(wrong, message, tmp_path):
    with pytest.raises(bq.UserError, match=message):
        bq.train(scenes(), epochs=1, out=tmp_path / "run", augment=wrong, **settings("detr"))
    assert not (tmp_path / "run").exists()


def test_every_run_of_a_comparison_has_the_same_augmentation(tmp_path):
    plan = make_plan(augment={"level": "strong", "flip": 0.0})
    planned = plan.runs()[0]
    words = plan.command_line(planned, tmp_path)
    assert words[words.index("--augment") :][:4] == ["--augment", "strong", "--augment", "flip=0.0"]
    plan.write(tmp_path)
    assert type(plan).read(tmp_path) == plan
    with pytest.raises(bq.UserError, match="compares with augment="):
        plan.merge(make_plan(), tmp_path)


def test_an_own_transform_that_workers_cannot_be_given_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    with pytest.raises(bq.UserError, match=r"<lambda> cannot be sent to the processes that read images .*workers=0"):
        bq.train(scenes(), epochs=1, out=tmp_path / "run", workers=2, augment=lambda *sample: sample[:3], **settings("detr"))
    assert not (tmp_path / "run").exists()
