"""Whole runs on small built-in scenes: what a run leaves, that a stopped one resumes the same, and what it refuses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import boxquery as bq
from boxquery.api import Detector
from boxquery.cli import run as command_line
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Preprocessing
from boxquery.evaluation.alignment import measure_split, with_objects
from boxquery.evaluation.predictions import predict_split
from boxquery.explain.page import write_page
from boxquery.models.recipes import Recipe
from boxquery.optimization import parameter_groups, rate_factor
from boxquery.training import fit, image_task
from boxquery.training.config import RunConfig, TrainFlags
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.run_length import RunLength
from boxquery.training.settings import same
from tests.data.writers import Picture, Thing, drawn, pictures, write_coco, write_coco_file, write_voc_lower_case

from .processes import apart, in_two
from .runs import SMALL, Stop, rows, scenes, settings


@pytest.mark.parametrize("name", bq.list_models())
def test_every_parameter_has_its_rate(name):
    """Once, and what is learned a query (its own parameters, not those of networks beside them) is apart."""
    model = bq.create_model(name, classes=3, preset="tiny", **SMALL)
    groups = parameter_groups(model, Recipe(lr=1.0, backbone_lr=0.5, low_lr_factor=0.1, query_lr_factor=10.0))
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for path, parameter in model.named_parameters():
        expected = 0.5 if path.startswith("backbone.") else 0.1 if any(part in path for part in model.low_lr_patterns) else 1.0
        if path.startswith("queries.") and path.count(".") == 1:
            expected = 10.0
        assert rates[id(parameter)] == expected, path


def test_a_learned_position_has_the_rate_of_the_queries():
    model = bq.create_model("dab-detr", classes=3, preset="tiny", **SMALL, query_position="learned")
    rates = {id(p): group["lr"] for group in parameter_groups(model, Recipe(lr=1.0, query_lr_factor=10.0)) for p in group["params"]}
    assert rates[id(model.place.table)] == 10.0
    assert rates[id(model.place.place.scale.layers[0].weight)] == 1.0


@pytest.fixture(scope="module", params=["detr", "deformable-detr"])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    detector = bq.train(scenes(), epochs=3, out=folder, **settings(request.param))
    return request.param, folder, detector


def test_a_run_leaves_what_the_contract_names(finished):
    name, folder, detector = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"], config["epochs"], config["seed"]) == (name, 3, 0)
    assert config["command"].startswith("boxquery train shapes --model")
    assert [int(r["epoch"]) for r in rows(folder)] == [1, 2, 3]
    assert {"loss", "class", "l1", "giou", "AP", "AP50", "duplicate_rate", "lr"} <= set(rows(folder)[0])
    for file in ("model/config.json", "model/model.safetensors", "last.ckpt", "report.html", "evaluation.json"):
        assert (folder / file).is_file()
    assert set(json.loads((folder / "evaluation.json").read_text())) == {"val", "test"}
    assert detector.classes == scenes().names
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_run_logs_what_its_queries_read(finished):
    """The last row is what the saved weights give on the same images."""
    name, folder, _ = finished
    first, *others = rows(folder)
    reached = ["distance"] if name != "detr" else []
    for row in (first, *others):
        measured = [f"{measure}_{layer}" for measure in ("inside", "entropy", *reached) for layer in (1, 2, 3)]
        assert all(0 <= float(row[column]) <= 1 for column in [*measured, "inside_even"])
        assert ("distance_1" in row) == bool(reached)
    assert first["query_changes"] == ""
    assert all(0 <= float(row["query_changes"]) <= 1 for row in others)
    assert len({row["inside_even"] for row in (first, *others)}) == 1
    state = torch.load(folder / "last.ckpt", weights_only=True)
    kept = state["callbacks"]["EpochEnd"]["evaluator"]
    config = json.loads((folder / "model/config.json").read_text())["model"]
    model = bq.create_model(name, classes=5, preset="tiny", **config["options"])
    model.load_state_dict({k.removeprefix("average."): v for k, v in state["state_dict"].items() if k.startswith("average.")})
    data = scenes()
    detector = Detector(model, data.names, data.ids, Preprocessing(64))
    found = measure_split(detector, data.splits["val"], only=with_objects(data.splits["val"], 1))
    assert {k: float(others[-1][k]) for k in found.columns()} == pytest.approx(found.columns(), abs=1e-6)
    assert kept["finders"] == found.query.tolist()


@pytest.mark.parametrize("ignored", [False, True])
def test_without_any_object_to_read_nothing_is_logged(tmp_path, ignored):
    data = scenes()
    val = data.splits["val"]
    if ignored:
        bare = [replace(r, ignore=np.ones_like(r.ignore)) for r in val]
    else:
        bare = [replace(r, boxes=r.boxes[:0], labels=r.labels[:0], ignore=r.ignore[:0], areas=r.areas[:0]) for r in val]
    data = replace(data, splits={**data.splits, "val": replace(val, records=bare)})
    bq.train(data, epochs=2, out=tmp_path / "run", **settings("detr"))
    assert len(rows(tmp_path / "run")) == 2
    assert not [column for column in rows(tmp_path / "run")[0] if column.startswith(("inside", "entropy", "query"))]
    assert "What queries attend to" not in (tmp_path / "run/report.html").read_text()


def test_loaded_it_predicts_as_before(finished):
    _, folder, detector = finished
    image = scenes().splits["val"].read(0)
    first, again = detector.predict(image, threshold=0.0), bq.load(folder).predict(image, threshold=0.0)
    assert len(first) > 0
    assert (first.boxes == again.boxes).all()
    assert first.names == again.names
    assert first.names == [detector.classes[i] for i in first.labels]
    metrics = bq.load(folder / "model").evaluate(scenes(), split="val")
    assert metrics["AP"] == pytest.approx(json.loads((folder / "evaluation.json").read_text())["val"]["AP"], abs=1e-9)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_stopped_and_resumed_it_is_the_same_run(finished, tmp_path, monkeypatch, stopped_after):
    name, whole, _ = finished
    keep = EpochEnd.keep

    def pull_the_plug(self, trainer):
        keep(self, trainer)
        if trainer.current_epoch + 1 == stopped_after:
            raise Stop

    monkeypatch.setattr(EpochEnd, "keep", pull_the_plug)
    with pytest.raises(Stop):
        bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings(name))
    assert len(rows(tmp_path / "run")) == stopped_after
    monkeypatch.setattr(EpochEnd, "keep", keep)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(whole)
    ours, theirs = (json.loads((f / "evaluation.json").read_text()) for f in (tmp_path / "run", whole))
    assert ours == theirs


def test_stopped_in_the_middle_of_an_epoch(finished, tmp_path, monkeypatch):
    """The half epoch is done again, from the same state, with the same draws."""
    name, whole, _ = finished
    from boxquery.training.module import Training

    step = Training.training_step

    def pull_the_plug(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise Stop
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", pull_the_plug)
    with pytest.raises(Stop):
        bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings(name))
    monkeypatch.setattr(Training, "training_step", step)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(whole)


def test_workers_do_not_change_a_run(finished, tmp_path):
    name, whole, _ = finished
    bq.train(scenes(), epochs=3, out=tmp_path / "run", workers=2, **settings(name))
    assert rows(tmp_path / "run") == rows(whole)


def test_workers_that_read_ahead_are_resumed_with_the_right_epoch(finished, tmp_path, monkeypatch):
    """They ask for images before the training says which epoch it is."""
    name, whole, _ = finished
    keep = EpochEnd.keep

    def pull_the_plug(self, trainer):
        keep(self, trainer)
        raise Stop

    monkeypatch.setattr(EpochEnd, "keep", pull_the_plug)
    with pytest.raises(Stop):
        bq.train(scenes(), epochs=3, out=tmp_path / "run", workers=1, **settings(name))
    monkeypatch.setattr(EpochEnd, "keep", keep)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(whole)


def test_minutes_become_a_number_of_steps_that_is_written_down(tmp_path):
    bq.train(scenes(), minutes=0.03, out=tmp_path / "run", **settings("detr"))
    config, length = yaml.safe_load((tmp_path / "run/config.yaml").read_text()), RunConfig.read(tmp_path / "run").length
    assert len(rows(tmp_path / "run")) == config["epochs"]
    assert int(rows(tmp_path / "run")[-1]["step"]) == config["steps"]
    assert int(rows(tmp_path / "run")[-1]["images"]) == length.images_total
    assert length.minutes == 0.03


def _stop(*_, **__):
    raise Stop


def test_of_minutes_and_epochs_what_is_over_first_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("boxquery.training.fit.L.Trainer.fit", _stop)
    monkeypatch.setattr("boxquery.training.timing.os.getloadavg", lambda: (9.5, 1.0, 1.0))
    monkeypatch.setattr("boxquery.training.timing.os.cpu_count", lambda: 2)
    found = {}
    for name, given in {"few": {"epochs": 1}, "many": {"epochs": 100_000}, "open": {}}.items():
        for resume in (False, True):  # the same command resumes it
            with pytest.raises(Stop):
                bq.train(scenes(), minutes=0.1, resume=resume, out=tmp_path / name, **given, **settings("detr"))
        found[name] = RunConfig.read(tmp_path / name).length
    assert (found["few"].total_epochs, found["few"].total_batches) == (1, 3), "an epoch that was asked for is a whole one"
    assert 1 < found["many"].total_epochs < 100_000
    assert found["open"].total_epochs > 1
    assert capsys.readouterr().err.count("load 9.5 on 2 cores") == 3, "a busy machine is the reason for few steps, and says so"


def test_the_seed_of_a_run_holds_out_the_images_that_evaluation_does(tmp_path):
    """Otherwise ``evaluate`` would look at images that the run has learned."""
    pictures = [replace(picture, stem=f"scene{i}") for i, picture in enumerate(drawn(scenes(train=20, val=1)))]
    source = write_coco_file(tmp_path / "data", pictures)
    bq.train(str(source), epochs=1, seed=7, out=tmp_path / "run", **settings("detr"))
    (message,) = json.loads((tmp_path / "run" / "data.json").read_text())["notes"]
    assert "held out as val" in message
    assert [message] == open_data(str(source)).notes


def test_minutes_of_cpu_time_do_not_count_waiting(tmp_path, monkeypatch):
    """A machine that is busy with other things leaves a run as many steps; one on the wall's clock gets fewer."""
    import time

    from boxquery.models.base import DetectionTransformer

    forward = DetectionTransformer.forward
    monkeypatch.setattr("boxquery.training.fit.L.Trainer.fit", _stop)
    monkeypatch.setattr(DetectionTransformer, "forward", lambda *a, **k: (time.sleep(0.1), forward(*a, **k))[1])
    steps = {}
    for clock in ("wall", "cpu"):
        with pytest.raises(Stop):
            bq.train(scenes(), minutes=0.1, clock=clock, out=tmp_path / clock, **settings("detr"))
        length = RunConfig.read(tmp_path / clock).length
        steps[clock] = length.total_steps
        assert length.clock == clock
    assert steps["cpu"] > 1.2 * steps["wall"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_one_model_has_one_number(tmp_path, monkeypatch, capsys, precision):
    """In the row of its epoch, in the closing line and to whoever evaluates it, in batches of any size: padding decides nothing."""
    sizes = [(64 + 8 * (i % 5), 48 + 8 * (i % 3)) for i in range(24)]
    images = [replace(p, size=size, stated=size) for p, size in zip(pictures(24, ("train", "val")), sizes, strict=True)]
    data = open_data(write_coco(tmp_path / "data", images))
    seen, real = [], image_task.evaluate
    recorded = lambda split, found, *more, **limits: (seen.append(mean_score(found)), real(split, found, *more, **limits))[1]  # noqa: E731
    monkeypatch.setattr(image_task, "evaluate", recorded)
    flags = settings("deformable-detr") | {"precision": precision, "force": True, "seed": 2}  # of few seeds AP is above 0
    detector = bq.train(data, epochs=3, out=tmp_path / "run", **flags)
    del seen[:-4]  # those of timing
    best = max(range(3), key=lambda i: (float(rows(tmp_path / "run")[i]["AP"]), i))
    closing = json.loads((tmp_path / "run/evaluation.json").read_text())["val"]
    assert f"val, the best model (epoch {best + 1})" in capsys.readouterr().err
    assert closing["AP50"] == pytest.approx(float(rows(tmp_path / "run")[best]["AP50"]), abs=1e-6)
    assert seen[3] == pytest.approx(seen[best], rel=1e-5)
    for batch_size in (1, 3, 8):
        assert detector.evaluate(data, batch_size=batch_size)["AP50"] == pytest.approx(closing["AP50"], abs=1e-6)
        assert mean_score(predict_split(detector, data.splits["val"], batch_size=batch_size)) == pytest.approx(seen[3], rel=1e-5)


def mean_score(found: dict) -> float:
    """Of all detections: each of them moves it, but not the AP of a model that has hardly learned."""
    return float(np.mean([scores.mean() for _, scores, _ in found.values()]))


def test_bf16_trains_and_early_stop_stops(tmp_path, monkeypatch):
    monkeypatch.setattr("boxquery.training.evaluator.Evaluator.evaluate", lambda *_: (dict.fromkeys(METRICS, 0.25), {}))
    bq.train(scenes(), epochs=9, patience=2, out=tmp_path / "run", **settings("deformable-detr") | {"precision": "bf16"})
    assert len(rows(tmp_path / "run")) == 3
    assert "--patience 2" in yaml.safe_load((tmp_path / "run/config.yaml").read_text())["command"]


METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "duplicate_rate", "best_threshold")


def test_accumulated_steps_are_fewer(tmp_path):
    bq.train(scenes(), epochs=2, accumulate=3, out=tmp_path / "run", **settings("detr"))
    assert [int(r["step"]) for r in rows(tmp_path / "run")] == [1, 2]


def test_an_existing_run_is_not_written_over(finished):
    _, folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(bq.UserError, match="holds another run"):
        bq.train(scenes(), epochs=1, out=folder, **settings("detr"))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "dert"}, "no model 'dert'"),
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"options": {"layers": 3}}, "unknown option 'layers'"),
        ({"options": {"num_queries": "many"}}, "must be a whole number"),
        ({"options": {**SMALL, "num_queries": 1}}, r"than the model has queries \(1\)"),
        ({"options": {**SMALL, "num_queries": [12, 12, 9]}}, "has 10 objects, but the last layer keeps 9 queries: end num_queries"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"minutes": -1.0}, "minutes=-1.0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"image_size": 3}, "image_size=3"),
        ({"patience": -2}, "patience=-2"),
        ({"images_seen": 0}, "images_seen=0"),
        ({"images_seen": 8}, "neither --minutes nor --epochs"),
        ({"clock": "sun"}, "clock='sun'"),
        ({"val_every": -1}, "val_every=-1"),
        ({"schedule_steps": -5}, "schedule_steps=-5"),
        ({"resume": True}, "no run to resume"),
    ],
)
def test_what_cannot_be_trained_is_an_error_before_anything_is_written(wrong, message, tmp_path):
    given = settings("detr") | {"epochs": 1} | wrong
    with pytest.raises(bq.UserError, match=message):
        bq.train(scenes(), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_label_beyond_the_classes_is_found_before_the_first_step(tmp_path):
    data = scenes()
    train = data.splits["train"]
    wrong = [replace(r, labels=r.labels + 5) if i == 3 else r for i, r in enumerate(train)]
    data = replace(data, splits={**data.splits, "train": replace(train, records=wrong)})
    with pytest.raises(bq.UserError, match=f"split 'train', image {train[3].id}: labels 5 to [5-9], where classes go from 0 to 4"):
        bq.train(data, epochs=1, out=tmp_path / "run", **settings("detr"))
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_settings_is_refused(finished):
    name, folder, _ = finished
    other = "deformable-detr" if name == "detr" else "detr"
    for wrong, message in (({"model": other}, "model="), ({"epochs": 4}, "epochs=3"), ({"seed": 9}, "seed=0"), ({"lr": 0.5}, "lr=")):
        with pytest.raises(bq.UserError, match=f"was started with {message}"):
            bq.train(scenes(), out=folder, resume=True, **wrong)
    with pytest.raises(bq.UserError, match="was started with data="):
        bq.train("elsewhere", out=folder, resume=True)


def run_of(batch_size: int, batches: int) -> RunConfig:
    length = RunLength(epochs=1).with_data(batches, batch_size)
    return RunConfig(data="shapes", model="detr", preset="tiny", image_size=64, batch_size=batch_size, lr=1e-3, length=length)


def test_resumed_it_runs_and_reads_where_it_is_asked_to(tmp_path, monkeypatch):
    """As the advice after a reader's death says (``--resume --workers 0``), and on another machine; a clock has been read by then."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = replace(run_of(batch_size=4, batches=3), device="cuda", workers=4)
    asked = same(config, "shapes", TrainFlags(device="cpu", workers=0, clock="cpu"), tmp_path)
    assert asked == replace(config, device="cpu", workers=0)
    with pytest.raises(bq.UserError, match="no CUDA device"):
        same(config, "shapes", TrainFlags(), tmp_path)
    config = replace(config, device="cpu")
    assert same(config, "shapes", TrainFlags(), tmp_path) == config


@pytest.mark.parametrize(("own", "batches", "asked", "fits"), [(4, 3, 4, True), (4, 1, 8, True), (4, 3, 8, False), (4, 1, 2, False)])
def test_resumed_it_has_batches_of_the_same_size(tmp_path, own, batches, asked, fits):
    """Which is less than was asked for where there were no more images."""
    config, requested = run_of(batch_size=own, batches=batches), TrainFlags(batch_size=asked)
    if fits:
        assert same(config, "shapes", requested, tmp_path).batch_size == own
    else:
        with pytest.raises(bq.UserError, match="was started with batch_size=4"):
            same(config, "shapes", requested, tmp_path)


def test_without_an_average_it_goes_on_training(tmp_path, monkeypatch):
    """The model that an evaluation switched to answer is the one that is trained."""
    from boxquery.training import fit
    from boxquery.training.module import Training

    modes, step, presets = [], Training.training_step, fit.preset

    def watched(self, batch, batch_idx):
        modes.append(self.model.training)
        return step(self, batch, batch_idx)

    def unaveraged(name, size, *, pretrained):
        known = presets(name, size, pretrained=pretrained)
        return replace(known, recipe=replace(known.recipe, ema=0.0))

    monkeypatch.setattr(Training, "training_step", watched)
    monkeypatch.setattr(fit, "preset", unaveraged)
    bq.train(scenes(), epochs=2, out=tmp_path / "run", **settings("detr"))
    assert len(modes) == 6
    assert all(modes)


def test_nan_stops_the_run_and_names_the_images(tmp_path, monkeypatch):
    from boxquery.training.module import Training

    begin = Training.on_train_epoch_start

    def break_a_weight(self):
        begin(self)
        if self.current_epoch == 1:
            with torch.no_grad():
                self.model.heads[0].boxes.layers[2].weight.fill_(float("nan"))

    monkeypatch.setattr(Training, "on_train_epoch_start", break_a_weight)
    with pytest.raises(bq.UserError, match=r"epoch 1, batch 0 \(images .+\).+NaN or inf"):
        bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings("detr"))
    assert len(rows(tmp_path / "run")) == 1
    assert (tmp_path / "run/last.ckpt").is_file()


def test_interrupted_it_says_so_and_can_go_on(finished, tmp_path, monkeypatch):
    name, whole, _ = finished
    from boxquery.training.module import Training

    step = Training.training_step

    def ctrl_c(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings(name))
    monkeypatch.setattr(Training, "training_step", step)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(whole)


@pytest.mark.parametrize("size", [(2000, 4), (1, 40)])
def test_strips_are_trained_on(size, tmp_path):
    """500 times as long as high, and a pixel wide."""
    width, height = size
    images = [
        Picture(f"{split}{i}", split, [Thing("cat", [width * i // 8, 0, width * i // 8 + max(width // 4, 1), height // 2])], size, size)
        for split in ("train", "val") for i in range(4)
    ]  # fmt: skip
    detector = bq.train(str(write_coco(tmp_path / "data", images)), epochs=2, out=tmp_path / "run", **settings("deformable-detr"))
    assert all(float(row["loss"]) > 0 for row in rows(tmp_path / "run"))
    result = detector.predict(np.zeros((height, width, 3), np.uint8), threshold=0)
    assert len(result)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= [width, height, width, height]).all()


def test_numbers_of_queries_by_layer_from_the_command_line(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(fit, "start", lambda data, out, requested, *more: asked.append(requested))
    for word in ("num_queries=[100,50,30]", "num_queries=[100, 50, 30]"):
        command_line(["train", "shapes", "--option", word])
    assert [flags.options for flags in asked] == [{"num_queries": [100, 50, 30]}] * 2
    assert "num_queries=[100, 50, 30]" in list(asked[0].words())


def test_queries_are_dropped_in_a_whole_run(tmp_path):
    """Training, evaluation, saving, the report, and the page of an explanation."""
    few = {**settings("deformable-detr"), "options": {**SMALL, "num_queries": [12, 12, 11]}}
    detector = bq.train(scenes(), epochs=1, out=tmp_path / "run", **few)
    assert detector.model.num_queries_per_layer == (12, 12, 11)
    assert (tmp_path / "run" / "report.html").is_file()
    assert detector.evaluate(scenes(), split="test")["images"] == 4
    photo = np.zeros((64, 80, 3), np.uint8)
    story = detector.explain(photo, threshold=0.0)
    assert len(story.found) == 11
    assert "head_maps" in write_page([story], tmp_path / "page.html").read_text()


def test_schedules():
    step = rate_factor(Recipe(decay="step", decay_at=0.8, warmup=0.1), {0: 100})
    assert [round(step(i), 3) for i in (0, 9, 10, 79, 80)] == [0.091, 0.909, 1.0, 1.0, 0.1]
    cosine = rate_factor(Recipe(decay="cosine"), {0: 100})
    assert cosine(0) == 1
    assert cosine(50) == pytest.approx(0.5)
    assert cosine(100) == 0.01


def shared(start: Path) -> dict:
    """Settings of a run in which two processes with half a batch each compute what one does with all of it: batch norm is fixed, and
    nothing is drawn in a step."""
    return {
        **settings("deformable-detr"),
        "start_from": start,
        "options": {**SMALL, "matching": "one-to-one"},
        "image_size": 64,
        "epochs": 2,
    }


def run_and_tell(start: Path, out: Path, batch_size: int) -> None:
    """Train, and write down beside the run the scores that every image got in the last evaluation."""
    evaluate = image_task.evaluate

    def recorded(split, found, *names, **limits):
        if os.environ.get("RANK", "0") == "0" and len(split) == 7:  # not of the split "test"
            out.with_suffix(".json").write_text(json.dumps({i: found[i][1].tolist() for i in sorted(found)}))
        return evaluate(split, found, *names, **limits)

    image_task.evaluate = recorded
    try:
        bq.train(scenes(train=16, val=7), out=out, **{**shared(start), "batch_size": batch_size})
    finally:
        image_task.evaluate = evaluate


def weights(run: Path) -> torch.Tensor:
    """All that was trained, after the last step, in one row."""
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([v.flatten() for k, v in state.items() if k.startswith("model.") and v.is_floating_point()])


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_whole_batch(tmp_path):
    """gloo, two ranks: the same losses, weights and predictions as a single process whose batch is theirs together."""
    torch.manual_seed(0)
    model = bq.create_model("deformable-detr", classes=5, preset="tiny", **SMALL, matching="one-to-one")
    model.freeze()
    data = scenes()
    start = Detector(model, data.names, data.ids, Preprocessing(64)).save(tmp_path / "start")
    begun = torch.cat([v.flatten() for v in model.state_dict().values() if v.is_floating_point()])
    apart(tmp_path / "log", in_two, 0, run_and_tell, start, tmp_path / "two", 2)
    run_and_tell(start, tmp_path / "one", 4)
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [(r["epoch"], r["step"], r["images"]) for r in two] == [("1", "4", "16"), ("2", "8", "32")]
    assert [r["query_changes"] == "" for r in two] == [True, False]
    for ours, theirs in zip(two, one, strict=True):
        for name in ("loss", "class", "l1", "giou", "proposals.class", "inside_1"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5), name
    # .004; of a run that sees half of each batch .79
    moved = weights(tmp_path / "one") - begun
    assert (weights(tmp_path / "two") - begun - moved).norm() < 0.05 * moved.norm()
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert list(ours) == list(theirs) == [str(i) for i in range(7)]
    for image, scores in ours.items():
        assert scores == pytest.approx(theirs[image], abs=1e-4)
    assert max(max(scores) for scores in ours.values()) > 0.01


def test_the_command_line_trains_evaluates_and_predicts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_voc_lower_case(tmp_path / "photos", [picture for picture in drawn(scenes()) if picture.split == "train"])
    words = ["train", str(data), "--model", "detr", "--preset", "tiny", "--epochs", "1", "--image-size", "64", "--out", "run", "--json"]
    for name in ("num_queries=9", "hidden_dim=32", "heads=4"):
        words += ["--option", name]
    assert command_line(words) == 0
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)) >= {"model", "classes", "run", "val"}
    assert "note:" in captured.err  # a split was made, and reported
    assert command_line(["evaluate", "run", str(data), "--split", "val", "--json"]) == 0
    assert {"AP", "AP50", "AP75", "per_class", "duplicate_rate"} <= set(json.loads(capsys.readouterr().out))
    (data / "images/broken.png").write_bytes(b"no picture")
    assert command_line(["predict", "run", str(data / "images"), "--threshold", "0.0", "--out", "found", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 12
    assert "broken.png" in captured.err
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert {r["file_name"] for r in found} == {f"train{i:03d}.png" for i in range(12)}
    assert len(list((tmp_path / "found/pictures").iterdir())) == 12
    for wrong in (
        ["evaluate", "run", "nowhere"],
        ["evaluate", "nothing", str(data)],
        ["predict", "run", "none.jpg"],
        ["train", str(data), "--out", "run"],
    ):
        assert command_line(wrong) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
