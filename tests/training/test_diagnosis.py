"""What a training says of itself: each thing once, in words, in the run folder and its report; and what it says when numbers end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.errors import CheckFailed
from boxquery.training.config import RunConfig
from boxquery.training.diagnosis import Diagnosis
from boxquery.training.image_task import ImageTask
from boxquery.training.module import Training
from boxquery.training.run_length import RunLength
from tests.check.planted import changed, pictures, write
from tests.data.writers import NAMES
from tests.training.runs import scenes, settings

CONFIG = RunConfig(
    data="photos",
    model="detr",
    preset="tiny",
    lr=0.01,
    image_size=96,
    batch_size=4,
    length=RunLength(epochs=1).with_data(9, 4),
    pretrained=False,
)
FLOORS = {"floor": {"random": {"left": 100, "not_within": 50}}}


@pytest.fixture
def diagnosis(tmp_path, monkeypatch):
    monkeypatch.setattr("boxquery.training.diagnosis.measured", lambda name: FLOORS if name == "detr" else {})
    return Diagnosis(tmp_path, CONFIG, ImageTask(scenes()))


def detections(spread: float, score: float, images: int = 6):
    """Ten boxes an image of 64 pixels that differ by a share of it, and their scores."""
    rng = np.random.default_rng(0)
    made = {}
    for i in range(images):
        corner = 20 + 64 * spread * rng.standard_normal((10, 2))
        boxes = np.concatenate((corner, corner + 10 + 64 * spread * rng.standard_normal((10, 2))), 1)
        made[i] = boxes.astype(np.float32), np.full(10, score, np.float32), np.zeros(10, np.int64)
    return made


def names(findings) -> list[str]:
    return [finding.name for finding in findings]


def test_ap_0_is_reported_after_the_floor_with_its_cause(diagnosis):
    nothing, some = {"AP50": 0.0}, {"AP50": 0.2}
    assert names(diagnosis.after_evaluation({"step": 99}, nothing, detections(0.0, 0.5))) == []
    assert names(diagnosis.after_evaluation({"step": 100}, some, detections(0.0, 0.5))) == []
    assert names(diagnosis.after_evaluation({"step": 100}, {"AP50": None}, detections(0.2, 0.5))) == []
    assert names(diagnosis.after_evaluation({"step": 100}, nothing, detections(0.2, 0.5))) == ["ap-zero"]
    assert names(diagnosis.after_evaluation({"step": 100}, nothing, detections(0.001, 0.5))) == ["ap-zero", "one-box"]
    found = diagnosis.after_evaluation({"step": 100}, nothing, detections(0.2, 0.01))
    assert names(found) == ["ap-zero", "all-background"]
    assert "Everything is classified as background" in found[0].text
    assert "boxquery check photos --model detr --overfit" in found[0].remedy


def test_without_a_measured_floor_it_waits(tmp_path):
    unknown = Diagnosis(tmp_path, replace(CONFIG, model="my-own"), ImageTask(scenes()))
    nothing = {"AP50": 0.0}
    assert unknown.after_evaluation({"step": 1999}, nothing, detections(0.2, 0.5)) == []
    (zero,) = unknown.after_evaluation({"step": 2000}, nothing, detections(0.2, 0.5))
    assert "no floor was measured" in zero.text


@pytest.mark.parametrize(
    ("losses", "norms", "waiting", "expected"),
    [
        ([9.0] * 50, [1.0] * 50, 0.1, []),
        ([9.0] * 3 + [30.0] * 47, [1.0] * 50, 0.1, ["loss-rising"]),
        ([9.0] * 50, [1.0] * 3 + [90.0] * 47, 0.1, ["gradients-exploding"]),
        ([9.0] * 50, [1.0] * 3 + [1e-4] * 47, 0.1, ["gradients-vanishing"]),
        ([9.0] * 50, [1.0] * 50, 0.8, ["loader-starving"]),
    ],
)
def test_losses_gradients_and_clocks(diagnosis, losses, norms, waiting, expected):
    assert names(diagnosis.after_epoch({"step": 50}, losses, norms, waiting, True)) == expected
    assert names(Diagnosis(diagnosis.folder, CONFIG, ImageTask(scenes())).after_epoch({"step": 20}, losses, norms, 0.1, True)) == []


def test_the_first_epoch_may_wait(diagnosis):
    assert names(diagnosis.after_epoch({"step": 50}, [9.0] * 50, [1.0] * 50, 0.9, False)) == []


def test_each_problem_is_reported_once_also_after_a_resume(diagnosis):
    found = diagnosis.after_epoch({"step": 50}, [9.0] * 3 + [30.0] * 47, [1.0] * 50, 0.9, True)
    found = list(found)
    assert names(diagnosis.add(found, 4)) == ["loss-rising", "loader-starving"]
    assert diagnosis.add(found, 5) == []
    again = Diagnosis(diagnosis.folder, CONFIG, ImageTask(scenes()))
    again.load_state_dict(json.loads(json.dumps(diagnosis.state_dict())))
    assert again.add(found, 6) == []
    again.write()
    kept = json.loads((diagnosis.folder / "diagnosis.json").read_text())["findings"]
    assert [(entry["name"], entry["epoch"]) for entry in kept] == [("loss-rising", 4), ("loader-starving", 4)]


def test_a_healthy_run_says_nothing_and_keeps_its_check(tmp_path, capsys):
    bq.train(scenes(), epochs=2, out=tmp_path / "run", **settings("deformable-detr"))
    assert not (tmp_path / "run/diagnosis.json").exists()
    report = (tmp_path / "run/report.html").read_text()
    assert "What the network sees" in report
    assert 'id="diagnosis"' not in report
    assert json.loads((tmp_path / "run/check.json").read_text())["feasibility"]["queries"] == 12


def test_an_infinite_loss_names_its_own_step(tmp_path, monkeypatch, capsys):
    """Not the next one, in which the broken weights show: the images, the term and the layer are those of the step that broke them."""
    step, broken = Training.training_step, []

    def infinite(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            criterion = type(self.model.criterion)
            terms = criterion.terms

            def spoiled(own, *given):
                found = terms(own, *given)
                return {**found, "l1": found["l1"] * torch.tensor([1.0, 1.0, float("inf")])}

            with monkeypatch.context() as patch:
                patch.setattr(criterion, "terms", spoiled)
                broken.extend(str(self.ids[i]) for i in batch.indices)
                return step(self, batch, batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", infinite)
    with pytest.raises(bq.UserError, match=r"epoch 1, batch 1 .+the loss was not finite \(term l1 of decoder layer 2\)") as raised:
        bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings("detr"))
    assert all(name in str(raised.value) for name in broken)
    assert "rate " in str(raised.value)
    assert "scale 64 x 64 pixels" in str(raised.value)
    assert "hold the state of 1 finished epochs" in str(raised.value)
    weights = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
    (kept,) = json.loads((tmp_path / "run/diagnosis.json").read_text())["findings"]
    assert (kept["name"], kept["epoch"]) == ("loss-not-finite", 2)
    assert "the loss was not finite" in (tmp_path / "run/report.html").read_text()


def test_an_infinite_loss_in_the_last_step_of_an_epoch_is_not_kept(tmp_path, monkeypatch):
    step = Training.training_step

    def infinite(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.current_epoch == 1 and self.trainer.is_last_batch:
            self.previous.loss = self.previous.loss * float("nan")

    monkeypatch.setattr(Training, "training_step", infinite)
    with pytest.raises(bq.UserError, match=r"epoch 1, batch 2 .+not finite"):
        bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings("detr"))
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["epoch"] == 0


def test_gradients_that_are_none_in_the_last_step_of_an_epoch_are_not_kept(tmp_path, monkeypatch):
    """Its loss is a number, and nothing is evaluated that would notice; what is named is the step itself, with its own rate."""
    step, rates = Training.training_step, []

    def infinite(self, batch, batch_idx):
        if self.current_epoch == 1 and self.trainer.is_last_batch:
            rates.append(f"rate {self.trainer.optimizers[0].param_groups[0]['lr']:.2g};")
            self.model.heads[0].boxes.layers[2].weight.register_hook(lambda gradient: gradient * float("inf"))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", infinite)
    message = r"epoch 1, batch 2 .+gradients were not finite \(first in heads\.0\.boxes\.layers\.2\.weight, 1 param"
    with pytest.raises(bq.UserError, match=message) as raised:
        bq.train(scenes(), epochs=3, val_every=3, out=tmp_path / "run", **settings("detr"))
    assert rates[0] in str(raised.value)
    state = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values() if value.is_floating_point())


def words_of(data, out) -> list[str]:
    words = ["train", str(data), "--model", "detr", "--preset", "tiny", "--epochs", "1", "--image-size", "64", "--batch-size", "12"]
    for option in ("num_queries=3", "hidden_dim=32", "heads=4", "encoder_layers=0", "decoder_layers=1"):
        words += ["--option", option]
    return [*words, "--out", str(out)]


def test_a_guess_stops_no_training_and_names_a_picture_that_exists(tmp_path, capsys):
    images = [replace(p, things=[replace(t, name=NAMES[0]) for t in p.things[:3]]) for p in pictures(36, 12)]
    data = write(tmp_path / "data", "voc", [replace(a, data=b.data) for a, b in zip(images, images[1:] + images[:1], strict=True)])
    assert command_line(words_of(data, tmp_path / "run")) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "fit their own images no better" in line]
    assert line.startswith("warning (strong evidence): The boxes of train fit their own images no better than the boxes of other images")
    assert f"Look at {tmp_path}/run/check.png." in line
    assert (tmp_path / "run/check.png").exists()
    assert "fit their own images no better" in (tmp_path / "run/report.html").read_text()


def test_training_stops_where_the_check_fails_and_force_goes_on(tmp_path, capsys):
    """More objects than queries in most images, which is a fact."""
    images = [replace(p, things=[p.things[0]] * 5) for p in pictures(12, 12)]
    words = words_of(write(tmp_path / "data", "voc", images), tmp_path / "run")
    assert command_line(words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "more objects" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: check failed: 12 of 12 training images have more objects")
    assert "--force" in lines[0]
    assert "check.png" not in lines[0]
    assert not (tmp_path / "run").exists()
    assert command_line([*words, "--force"]) == 0
    assert "have more objects" in (tmp_path / "run/report.html").read_text()
    assert "--force" in (tmp_path / "run/config.yaml").read_text()


def test_a_failed_check_is_status_1():
    assert (CheckFailed("x").status, bq.UserError("x").status) == (1, 2)


def test_without_objects_in_val_nothing_is_reported_of_ap(tmp_path, capsys):
    data = changed(scenes(), "val", lambda r: replace(r, boxes=r.boxes[:0], labels=r.labels[:0], ignore=r.ignore[:0], areas=r.areas[:0]))
    bq.train(data, epochs=1, out=tmp_path / "run", **settings("detr"))
    assert "val, the last model (epoch 1; no AP to choose by): AP -  AP50 -" in capsys.readouterr().err
    assert not (tmp_path / "run/diagnosis.json").exists()
