"""Nothing is lost: whatever happens to a run, it resumes to the same numbers or says in one line what to do."""

import json
import os
import pickle
import resource
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.data.loading import EpochSampler
from boxquery.data.open import open_data
from boxquery.evaluation.predictions import drop_unreadable, predict_split
from boxquery.files import atomic_write
from boxquery.locks import RUN_LOCK
from boxquery.training.config import RunConfig
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.fit import Run
from boxquery.training.image_task import ImageTask
from boxquery.training.module import Training
from boxquery.training.progress import Heartbeat, LiveBar
from boxquery.training.state import LAST, PREVIOUS, damage, latest_checkpoint, run_lock
from tests.data import writers

from .processes import FORK, FRESH, apart, in_two, script
from .runs import Stop, rows, scenes, settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    bq.train(scenes(), epochs=3, out=folder, **settings("detr"))
    return folder


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that died when its second epoch was kept."""
    keep = EpochEnd.keep

    def pull_the_plug(self, trainer):
        keep(self, trainer)
        if trainer.current_epoch + 1 == 2:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(EpochEnd, "keep", pull_the_plug)
        with pytest.raises(Stop):
            bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings("detr"))
    return tmp_path / "run"


def same(folder, whole):
    assert rows(folder) == rows(whole)
    for name in ("evaluation.json", "model/model.safetensors", "model/config.json", "data.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not any(folder.rglob(".*"))
    return True


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 16
    path.write_bytes(content)


SPOILT = {
    "cut": cut,
    "flipped": flip,
    "flipped at the end": lambda path: flip(path, -1),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_state_falls_back_to_the_one_before(stopped, whole, capsys, how):
    SPOILT[how](stopped / LAST)
    bq.train(scenes(), out=stopped, resume=True)
    message = capsys.readouterr().err
    assert f"resuming from {PREVIOUS}" in message
    assert how == "gone" or f"{LAST} is cut short" in message
    assert same(stopped, whole)


@pytest.mark.parametrize("how", SPOILT)
def test_every_damage_is_seen(whole, tmp_path, how):
    for name in (LAST, PREVIOUS, "metrics.csv"):
        atomic_write(tmp_path / name, (whole / name).read_bytes())
    assert latest_checkpoint(tmp_path) == (tmp_path / LAST, "")
    SPOILT[how](tmp_path / LAST)
    assert latest_checkpoint(tmp_path)[0] == tmp_path / PREVIOUS
    SPOILT[how](tmp_path / PREVIOUS)
    with pytest.raises(bq.UserError, match=f"{LAST}.+restore it from a copy"):
        latest_checkpoint(tmp_path)


def test_no_flipped_bit_passes(tmp_path):
    """Not even in the archive's own headers, whose check sums do not cover them."""
    from boxquery.training.state import StateFiles

    StateFiles({}).save_checkpoint({"a": torch.arange(9.0), "b": [1, {"c": "d"}]}, tmp_path / LAST)
    content = (tmp_path / LAST).read_bytes()
    assert damage(tmp_path / LAST) is None
    assert torch.load(tmp_path / LAST, weights_only=True)["b"] == [1, {"c": "d"}]
    for at in range(0, len(content), 3):
        flip(tmp_path / LAST, at)
        assert damage(tmp_path / LAST) is not None, at
        (tmp_path / LAST).write_bytes(content)


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Hostile(), "would have to be executed"),
        ({"state_dict": Hostile()}, "would have to be executed"),
        ([1], "not the state of a run"),
        ({"state_dict": {}}, "not the state of a run"),
    ],
)
def test_a_state_executes_nothing(whole, tmp_path, monkeypatch, content, message, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "metrics.csv"):
        atomic_write(tmp_path / "run" / name, (whole / name).read_bytes())
    torch.save(content, tmp_path / "run" / LAST, pickle_module=pickle)
    with pytest.raises(bq.UserError, match=message):
        bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert not (tmp_path / "executed").exists()


def test_a_state_of_another_model_is_refused(stopped, tmp_path):
    bq.train(scenes(), epochs=1, out=tmp_path / "other", **settings("deformable-detr"))
    atomic_write(stopped / LAST, (tmp_path / "other" / LAST).read_bytes())
    with pytest.raises(bq.UserError, match="the state of another model"):
        bq.train(scenes(), out=stopped, resume=True)


def test_dead_before_the_first_epoch_it_starts_again(whole, tmp_path, monkeypatch, capsys):
    def die(self, state):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Run, "fit", die)
        with pytest.raises(Stop):
            bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings("detr"))
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert "starting from the beginning" in capsys.readouterr().err
    assert same(tmp_path / "run", whole)


def test_dead_before_the_first_epoch_it_starts_from_the_same_model_again(whole, tmp_path, monkeypatch):
    source = bq.load(whole).save(tmp_path / "source")
    given = settings("detr") | {"start_from": str(source), "epochs": 1}
    bq.train(scenes(), out=tmp_path / "whole", **given)

    def die(self, state):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Run, "fit", die)
        with pytest.raises(Stop):
            bq.train(scenes(), out=tmp_path / "run", **given)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert same(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/transfer.json").read_bytes() == (tmp_path / "whole/transfer.json").read_bytes()
    (tmp_path / "run" / LAST).unlink()
    bq.load(tmp_path / "run").save(source)
    with pytest.raises(bq.UserError, match="is not what the run started from any more"):
        bq.train(scenes(), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("patience", [0, 1])
def test_dead_while_it_finished(tmp_path, monkeypatch, patience):
    """All epochs are done, or it had decided to stop: nothing is trained any more."""
    given = settings("detr") | {"epochs": 4, "patience": patience}
    bq.train(scenes(), out=tmp_path / "whole", **given)
    assert len(rows(tmp_path / "whole")) == (2 if patience else 4)

    def die(self, epoch):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", die)
        with pytest.raises(Stop):
            bq.train(scenes(), out=tmp_path / "run", **given)
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert same(tmp_path / "run", tmp_path / "whole")


def hold(folder: Path, pipe) -> None:
    with run_lock(folder):
        worker = FORK.Process(target=time.sleep, args=(20,))
        worker.start()
        pipe.send(worker.pid)
        time.sleep(60)


def test_one_run_at_a_time_in_a_folder(tmp_path):
    """While the first lives; however it dies, the next one may."""
    folder = tmp_path / "run"
    here, there = FRESH.Pipe()
    first = FRESH.Process(target=hold, args=(folder, there))
    first.start()
    worker = here.recv()
    with pytest.raises(bq.UserError, match=f"is being trained by process {first.pid} on .+; wait for it"):
        bq.train(scenes(), epochs=1, out=folder, **settings("detr"))
    assert sorted(path.name for path in folder.iterdir()) == [RUN_LOCK]
    (folder / ".metrics.csv.x1.new").write_text("half")
    first.kill()
    first.join()
    os.kill(worker, 0)  # which reads images, and lives on for a moment
    with run_lock(folder):
        assert [path.name for path in folder.iterdir()] == [RUN_LOCK]
    os.kill(worker, signal.SIGKILL)
    assert not folder.exists()


def test_a_start_that_fails_leaves_no_empty_folders(tmp_path):
    (tmp_path / "kept").mkdir()
    with suppress(bq.UserError), run_lock(tmp_path / "kept/runs/detr-1"):
        raise bq.UserError("no such backbone")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


@pytest.mark.parametrize("limit", [20_000, 400_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on(whole, tmp_path, limit, capsys):
    """The operating system stops the writing of the state (or of the weights); with room again the run is the same."""
    state = {path.name: path.stat().st_size for path in (whole / LAST, whole / "model/model.safetensors")}
    assert min(state.values()) > 20_000
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(bq.UserError, match=r"cannot be written \(File too large\); make room"):
            bq.train(scenes(), epochs=3, out=tmp_path / "run", **settings("detr"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert not any((tmp_path / "run").rglob(".*"))
    bq.train(scenes(), out=tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)


# -- images whose header is whole and whose pixels are not ---------------------------------------------------------------------------


def spoil_pixels(path):
    """Damage in the middle of the compressed pixels; the file begins and ends well."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


@pytest.fixture
def photos(tmp_path) -> Path:
    return writers.write_voc(tmp_path / "photos", writers.pictures(36))


def test_an_image_found_unreadable_while_training_is_named_and_skipped(photos, tmp_path, capsys):
    words = ["train", str(photos), "--model", "detr", "--preset", "tiny", "--epochs", "2", "--image-size", "64", "--batch-size", "4"]
    words += [part for option in ("hidden_dim=32", "heads=4", "num_queries=9") for part in ("--option", option)]
    for name in ("p000", "p002"):  # of train and of val
        spoil_pixels(photos / f"JPEGImages/{name}.png")
    assert command_line([*words, "--out", str(tmp_path / "run")]) == 0
    message = capsys.readouterr().err
    for name in ("p000", "p002"):
        assert message.count(f"{name}.png: cannot be read") == 1 + (name == "p002")  # val is read again by the best model
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())["val"]
    assert evaluation["images"] == 11
    skipped = json.loads((tmp_path / "run/data.json").read_text())["skipped"]
    assert sorted(line.split()[0] for line in skipped) == ["train", "val"]
    assert command_line(["evaluate", str(tmp_path / "run"), str(photos), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 11
    assert captured.err.count("p002.png") == 1
    assert command_line(["evaluate", str(tmp_path / "run"), str(photos), "--strict"]) == 2
    assert command_line([*words, "--out", str(tmp_path / "strict"), "--strict"]) == 2
    assert "p000.png" in capsys.readouterr().err
    for name in ("p001", "p003"):
        spoil_pixels(photos / f"JPEGImages/{name}.png")
    assert command_line([*words, "--out", str(tmp_path / "many"), "--workers", "1"]) == 2
    assert "3 of 24 training images cannot be read" in capsys.readouterr().err


def test_images_found_unreadable_are_known_after_a_resume(whole, capsys):
    """Also where nothing is read any more, so that the report of a run that died while it finished names them."""
    config, data = RunConfig.read(whole), scenes()
    bar = LiveBar(Console(), config.length, Heartbeat(Console()), ImageTask(data))
    made = [EpochEnd(whole, config, bq.load(whole), ImageTask(data), bar, EpochSampler(12, 0)) for _ in range(2)]
    made[0].skipped("val", "p.png: cannot be read")
    made[1].load_state_dict(json.loads(json.dumps(made[0].state_dict())))
    made[1].skipped("val", "p.png: cannot be read")
    assert made[1].unreadable == {"train": [], "val": ["p.png: cannot be read"]}
    assert capsys.readouterr().err.count("p.png") == 1


def test_more_than_a_tenth_unreadable_is_no_evaluation(whole, photos):
    data = open_data(photos)
    for name in ("p002", "p005"):
        spoil_pixels(photos / f"JPEGImages/{name}.png")
    lines: list[str] = []
    found = predict_split(bq.load(whole), data.splits["val"], warn=lines.append)
    assert len(found) == 10
    assert len(lines) == 2
    with pytest.raises(bq.UserError, match="2 of 12 images of split 'val' cannot be read"):
        drop_unreadable(data.splits["val"], found)


# -- processes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_planted_steps_of_writing_it_ends_the_same(tmp_path):
    """Three of the moments that ``benchmarks/kills.py`` tries; inside the first model, the second state and the report."""
    message = apart(tmp_path / "log", script, ROOT / "benchmarks/kills.py", "--steps", "5", "30", "66")
    assert "3 kills: all runs ended the same, no file was damaged" in message


def train_on_one_object(out: Path, killed: bool) -> None:
    """A rank's part of a run on data where most batches of a process hold no object at all; with ``killed`` the second rank dies once."""
    step = Training.training_step

    def deadly(self, batch, batch_idx):
        if self.current_epoch == 2 and batch_idx == 1:
            out.with_suffix(".dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, batch_idx)

    if killed and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        Training.training_step = deadly
    data = scenes(train=12, val=6)
    train = data.splits["train"]
    bare = [replace(r, boxes=r.boxes[:0], labels=r.labels[:0], ignore=r.ignore[:0], areas=r.areas[:0]) for r in train]
    data.splits["train"] = replace(train, records=[train[0], *bare[1:]], reader=lambda r: train.reader(r))
    bq.train(data, epochs=4, out=out, **settings("deformable-detr") | {"batch_size": 2})


@pytest.mark.slow
def test_a_killed_process_of_two_is_restarted_and_the_run_goes_on(tmp_path):
    """torchrun's elastic restart."""
    for name in ("killed", "whole"):
        apart(tmp_path / f"{name}.log", in_two, 1, train_on_one_object, tmp_path / name, name == "killed")
    assert (tmp_path / "killed.dead").exists()
    assert len(rows(tmp_path / "whole")) == 4
    assert same(tmp_path / "killed", tmp_path / "whole")
