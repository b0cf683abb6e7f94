"""What a person is told: how long a run will take, how far it is, and how it goes on."""

import io
import re
import shlex
import time
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

import boxquery as bq
from boxquery.cli import run
from boxquery.progress import stderr_console
from boxquery.training.clock import Clock
from boxquery.training.config import RunConfig
from boxquery.training.epoch_end import EpochEnd
from boxquery.training.image_task import ImageTask
from boxquery.training.module import Training
from boxquery.training.progress import Heartbeat, LiveBar
from boxquery.training.run_length import Costs, RunLength
from boxquery.training.timing import announcement
from tests.data.writers import drawn, write_coco

from .runs import rows, scenes, settings


def config(epochs: int = 50, preset: str = "small", **more) -> RunConfig:
    length = RunLength(epochs=epochs).with_data(100, 4)
    return RunConfig(data="d", model="detr", preset=preset, image_size=64, batch_size=4, lr=0.1, device="cpu", length=length, **more)


@pytest.mark.parametrize(
    ("costs", "preset", "message"),
    [
        (
            (0.01, 0.01, 0.1, 0.0),
            "small",
            r"50 epochs of 100 batches of 4 images \(5,000 steps in all\), evaluated after every epoch: about 55 s on this machine",
        ),
        ((0.3, 0.3, 3.0, 0.1), "small", "about 28 min on this machine; --minutes 5 would be 8 epochs"),
        ((3.0, 3.0, 30.0, 0.0), "small", "about 4 h 36 min on this machine; --minutes 30 would be 5 epochs"),
        ((30.0, 30.0, 90.0, 0.0), "paper", r"--minutes 30 would be \d\d steps, --preset small is faster"),
        ((30.0, 30.0, 90.0, 0.0), "tiny", r"--minutes 30 would be \d\d steps"),
    ],
)
def test_the_expected_time_and_what_would_be_shorter(costs, preset, message):
    (line,) = announcement(config(preset=preset), Costs(*costs))
    assert re.search(message + "$", line), line


def test_minutes_are_announced_as_they_were_asked_for(monkeypatch):
    monkeypatch.setattr("boxquery.training.timing.os.getloadavg", lambda: (0.0, 0.0, 0.0))
    length = RunLength(minutes=10, clock="cpu").with_data(100, 4).plan(costs := Costs(0.1, 0.1, 1.0, 0.0))
    (line,) = announcement(config().with_length(length), costs)
    assert line.endswith(": about 10 min of CPU time on this machine")


def test_timing_draws_no_random_number_of_the_run(tmp_path, monkeypatch, capsys):
    flags = {"epochs": 2, **settings("deformable-detr")}
    bq.train(scenes(), out=tmp_path / "timed", **flags)
    assert re.search(
        r"\n2 epochs of 3 batches of 4 images \(6 steps in all\), evaluated after every epoch: about \d+ s on this machine\n",
        capsys.readouterr().err,
    )
    monkeypatch.setattr("boxquery.training.fit.measure_costs", lambda *_: Costs(1.0, 1.0, 1.0, 1.0))
    bq.train(scenes(), out=tmp_path / "run", **flags)
    assert rows(tmp_path / "run") == rows(tmp_path / "timed")


def test_interrupted_it_prints_the_command_that_resumes(tmp_path, monkeypatch, capsys):
    step = Training.training_step

    def ctrl_c(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Training, "training_step", ctrl_c)
    data, out = write_coco(tmp_path / "my data" / "it's", drawn(scenes())), tmp_path / "a run"
    with pytest.raises(KeyboardInterrupt) as stopped:
        bq.train(str(data), epochs=3, out=out, **settings("detr"))
    (line,) = re.findall(r"^1 finished epoch kept, one that had begun is lost\nresume with: (.+)$", str(stopped.value))
    assert shlex.split(line) == ["boxquery", "train", str(data), "--out", str(out), "--resume"]
    monkeypatch.setattr(Training, "training_step", step)
    assert run(["train", "--resume", "--out", str(out)]) == 0, "the run knows its data"
    assert re.search(r"^resuming after epoch 1/3$", capsys.readouterr().err, re.MULTILINE)
    assert len(rows(out)) == 3
    assert run(["train", "--resume", "--out", str(out)]) == 0
    assert "the run was already complete" in capsys.readouterr().err


def test_interrupted_in_its_first_epoch_a_run_keeps_its_settings_alone_and_says_so(tmp_path, monkeypatch, capsys):
    def ctrl_c(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "training_step", ctrl_c)
    out, data = tmp_path / "run", "shapes:train=8,val=4,test=4,size=64"
    assert run(["train", data, "--out", str(out), "--epochs", "1", "--preset", "tiny", "--image-size", "32", "--pretrained", "none"]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "interrupted: no epoch had finished, so of the run only its settings are kept"
    assert said[-1].startswith(f"begin again with: boxquery train {data} --out ")
    command = shlex.split(said[-1].partition(": boxquery ")[2])
    assert run(command) == 130, "it begins again, and is interrupted again"
    assert "no epoch was finished: starting from the beginning" in capsys.readouterr().err
    assert run(["predict", str(out), str(tmp_path)]) == 2
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run(["predict", str(out), str(tmp_path)]) == 2
    assert "no epoch of this run has finished yet" in capsys.readouterr().err


def test_the_line_of_an_epoch_fits_a_terminal():
    console = Console(file=(shown := io.StringIO()), soft_wrap=True)
    bar = LiveBar(console, RunLength(epochs=1000).with_data(3, 4), Heartbeat(console), ImageTask(scenes()))
    losses = {"loss": 12.345, "class": 1.234, "l1": 0.123, "giou": 0.456}
    bar.report({"epoch": 1000, **losses, "AP": 0.1234, "AP50": 0.5678, "seconds": 3600.0})
    assert shown.getvalue() == "epoch 1000/1000  loss 12.35  AP 0.123  AP50 0.568  60 min so far\n"
    assert len(shown.getvalue().rstrip()) <= 80


def test_off_a_terminal_nothing_is_silent_for_long():
    console = Console(file=(shown := io.StringIO()))
    with Heartbeat(console, every=0.05) as heartbeat:
        time.sleep(0.2)
        heartbeat.doing = lambda: "epoch 1/3  step 7/300"
        time.sleep(0.2)
    lines, once = shown.getvalue().splitlines(), ["reading the data", "epoch 1/3  step 7/300"]
    assert (lines[0], set(lines)) == ("reading the data", {*once, *(f"still {line}" for line in once)})
    assert [lines.count(line) for line in once] == [1, 1], "what is said twice is still being done"
    assert "\r" not in shown.getvalue()
    assert len(lines) <= 8


def test_on_a_terminal_the_bar_says_it_and_fits_80_columns():
    console = Console(file=(file := io.StringIO()), force_terminal=True, width=80)
    with Heartbeat(console, every=0.01) as heartbeat:
        time.sleep(0.05)
    assert file.getvalue() == ""
    bar = LiveBar(console, RunLength(epochs=1000).with_data(1000, 16), heartbeat, ImageTask(scenes()))
    pace = "1.23e+03 images/s, 12 h 05 min left"
    bar.progress.update(bar.shown, completed=5000, description="epoch 1000/1000  loss 12.3  AP 0.123", pace=pace)
    with bar.progress:
        pass
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in file.getvalue().splitlines()]
    assert max(map(len, shown)) <= 80
    assert any("loss 12.3  AP 0.123" in line and pace in line for line in shown), shown


def test_a_changed_plan_is_said_with_its_reason_and_only_where_it_differs_by_much():
    console = Console(file=(shown := io.StringIO()), soft_wrap=True)
    long = RunLength(minutes=2).with_data(50, 4).plan(Costs(0.6, 0.6, 1.0, 0.0))
    run_config = config().with_length(long)
    end = EpochEnd.__new__(EpochEnd)
    end.bar = LiveBar(console, long, Heartbeat(console), ImageTask(scenes()))
    end.clock, end.announced = Clock(long, False), (long.total_steps, 0.6)
    for factor in (1.1, 1.2, 1.5, 1.4, 1.6):
        end.clock.per_batch = 0.6 * factor
        end._announce(run_config.length.with_total_batches(int(long.total_batches / factor)))
    steps = int(long.total_batches / 1.5)
    assert shown.getvalue() == f"a step takes 0.9 s instead of 0.6 s: {steps} steps in all fit into the 2 min\n"


def test_where_minutes_are_cpu_time_the_other_clock_is_named_and_an_early_end_is_said():
    console = Console(file=(shown := io.StringIO()), soft_wrap=True)
    planned = RunLength(minutes=2, clock="cpu").with_data(50, 4).plan(Costs(0.6, 0.6, 1.0, 0.0))
    end = EpochEnd.__new__(EpochEnd)
    end.bar = LiveBar(console, planned, Heartbeat(console), ImageTask(scenes()))
    end.clock, end.announced = Clock(planned, True), (planned.total_steps, 0.6)
    end.bar.report({"epoch": 1, "AP": 0.1, "AP50": 0.2, "seconds": 600.0})
    assert shown.getvalue().endswith("  10 min so far (wall time)\n")
    end._say_end()
    assert shown.getvalue().count("\n") == 1, "the run goes on"
    end.clock.over, end.clock.length = True, planned.with_total_batches(101)
    end._say_end()
    assert shown.getvalue().endswith(
        f"\nthe run ended after 101 steps, when 90 % of its 2 min of CPU time was spent; {planned.total_steps} were planned\n"
    )
    end.bar.done = planned.total_batches + 3
    assert f"  step {planned.total_steps + 3} ({planned.total_steps} planned)" in end.bar.state(), "it is not over at its planned steps"
    end.bar.pace = 1.0
    assert end.bar.state().endswith("  until its CPU time is spent")
    end.bar.report({"epoch": planned.total_epochs + 1, "AP": 0.1, "AP50": 0.2, "seconds": 600.0})
    said = shown.getvalue().splitlines()[-1]
    assert said.startswith(f"epoch {planned.total_epochs + 1} ({planned.total_epochs} planned)  AP 0.100")


def test_a_run_by_minutes_is_repeated_by_its_minutes_or_by_its_steps():
    length = RunLength(minutes=2).with_data(50, 4).plan(Costs(0.6, 0.6, 1.0, 0.0))
    made = config().with_length(replace(length, schedule_steps={0: 128, 16: length.total_steps}))
    assert "--minutes 2 " in made.command("x", made.length.as_minutes())
    assert "--schedule-steps" not in made.command("x", made.length.as_minutes())
    assert "--schedule-steps 0:128,16:" in made.command("x").replace("steps 128,", "steps 0:128,")


def test_notes_are_wrapped_at_words_on_a_terminal_alone(monkeypatch, capsys):
    note = "note: " + "eighteen images :smile: have 12 boxes in /some/folder " * 3
    monkeypatch.setenv("COLUMNS", "60")
    stderr_console().print(note, markup=False)
    assert capsys.readouterr().err == note + "\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    stderr_console().print(note, markup=False)
    lines = capsys.readouterr().err.splitlines()
    assert " ".join(line.strip() for line in lines) == note.strip()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60


def test_a_misspelt_keyword_is_named_with_the_one_that_was_meant():
    with pytest.raises(bq.UserError, match=r"^train\(\) has no keyword minuts; did you mean minutes\?$"):
        bq.train("shapes", minuts=1)
