"""A real comparison, tiny: its run equals that of ``train``, it is interrupted and resumed, finished runs are adopted; what fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import boxquery as bq
from boxquery.cli import run as command_line
from boxquery.compare.command import compare
from boxquery.compare.plan import ComparisonPlan
from boxquery.compare.results import collect, finished, progress_of, run_folder
from boxquery.compare.runner import Runner, adopt
from boxquery.locks import RUN_LOCK, Lock
from boxquery.models import preset
from tests.data.writers import drawn, write_coco
from tests.training.runs import SMALL, rows, scenes, settings

from .fake_comparison import make_plan, write_finished

PLAN = {"one": {"model": "detr"}}
BUDGET = {"images_seen": 36, "seeds": 1, "preset": "tiny", "image_size": 64, "batch_size": 4, "device": "cpu", "precision": "float32"}

POPEN = subprocess.Popen


def command_of(data: Path, plan: Path, out: Path) -> list[str]:
    found = ["compare", str(data), "--plan", str(plan), "--out", str(out)]
    for name, value in BUDGET.items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    for name, value in SMALL.items():
        found += ["--option", f"{name}={json.dumps(value)}"]
    return found


@pytest.mark.slow
def test_a_comparison_is_interrupted_and_resumed_and_equals_training(tmp_path):
    data = write_coco(tmp_path / "scenes", drawn(scenes()))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    out = tmp_path / "out"

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what it starts in the background
    first = subprocess.Popen(
        [sys.executable, "-m", "boxquery", *command_of(data, tmp_path / "plan.yaml", out), "--jobs", "1"], stderr=subprocess.PIPE, text=True
    )
    begun, until = out / "runs/one-0/last.ckpt", time.monotonic() + 600
    while not begun.exists() and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=300)
    assert begun.exists(), errors
    assert first.returncode == 130
    assert "Traceback" not in errors
    assert not list((out / "state").glob("*.lock"))
    done = len(rows(out / "runs/one-0"))

    result = compare(out=out, jobs=2).result  # the plan is known: no other argument is needed
    assert {run["label"]: run["status"] for run in result["runs"]} == {"one": "finished"}
    assert 1 <= done <= 3
    log = (out / "state/one-0.log").read_text()
    assert log.count("epoch 1/3  loss") == 1  # what was finished before the interruption was not done again
    assert log.count("epoch 3/3  loss") == 1

    rate = preset("detr", "tiny").recipe.lr  # a comparison is at the presets' rates, whatever the data
    alone = bq.train(str(data), images_seen=36, lr=rate, out=tmp_path / "alone", **settings("detr"))
    assert rows(out / "runs/one-0") == rows(tmp_path / "alone")
    assert len(rows(tmp_path / "alone")) == 3
    assert alone.model.config["options"]["backbone"] == "resnet10t"
    assert [run["images"] for run in result["runs"] if run["status"] == "finished"] == [36]
    measured = json.loads((out / "runs/one-0/compare/measured.json").read_text())
    assert measured["parameters"] == sum(p.numel() for p in alone.model.parameters())
    assert measured["milliseconds"] > 0
    assert len(measured["resampled"]["AP"]) == 1000
    assert len(measured["pictures"]) == 4
    assert all((out / "runs/one-0/compare" / item["prediction"]).is_file() for item in measured["pictures"])
    assert all(run["memory"] > 1e8 for run in result["runs"] if run["status"] == "finished")

    plan = ComparisonPlan.read(out)
    taken = adopt(plan, tmp_path / "other", [out])
    assert [planned.name for planned, _ in taken] == ["one-0"]
    assert not (tmp_path / "other/runs/one-0/last.ckpt").exists()


def test_finished_runs_are_adopted_by_what_they_are_not_by_their_names(tmp_path):
    plan = make_plan(seeds=(0,))
    source = tmp_path / "source"
    first, second, *_ = plan.runs()
    write_finished(plan, source, first).rename(source / "some-name")
    unfinished = write_finished(plan, source, second)
    (unfinished / "report.html").unlink()
    taken = adopt(plan, tmp_path / "out", [source])
    assert [(planned.name, path.name) for planned, path in taken] == [(first.name, "some-name")]
    assert finished(tmp_path / "out", first)
    assert not run_folder(tmp_path / "out", second).exists()
    assert adopt(plan, tmp_path / "out", [source]) == []
    with pytest.raises(bq.UserError, match="no such folder"):
        adopt(plan, tmp_path / "out", [tmp_path / "none"])


def runner(plan: ComparisonPlan, folder: Path, monkeypatch, code: str) -> tuple[Runner, list[str]]:
    """A runner whose processes run ``code`` instead of ``boxquery``; ``sys.argv[1:]`` is what ``boxquery`` would be called with."""
    from rich.console import Console

    commands = []

    def instead(command, **settings):
        commands.append(" ".join(command[2:]))
        return POPEN([sys.executable, "-c", code, *command[2:]], **settings)

    monkeypatch.setattr("boxquery.compare.runner.subprocess.Popen", instead)
    monkeypatch.setattr("boxquery.compare.runner.POLL", 0.02)
    plan.write(folder)
    return Runner(plan, folder, 2, Console(quiet=True)), commands


def test_what_failed_is_kept_with_its_reason_and_retried(tmp_path, monkeypatch):
    plan = make_plan(seeds=(0,))
    code = "import os, sys; print('starting', file=sys.stderr); print('error: the disk is full', file=sys.stderr); sys.exit(2)"
    for _ in range(2):
        work, commands = runner(plan, tmp_path, monkeypatch, code)
        work.run()
        assert len(commands) == len(plan.entries)
    reasons = [json.loads(path.read_text())["reason"] for path in sorted((tmp_path / "state").glob("*.json"))]
    assert reasons == ["the disk is full"] * len(plan.entries)
    work, _ = runner(plan, tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)")
    work.run()
    assert "signal 9" in json.loads(next((tmp_path / "state").glob("*.json")).read_text())["reason"]
    assert not list((tmp_path / "state").glob("*.lock"))


def test_the_line_of_a_real_error_is_the_reason(tmp_path, monkeypatch):
    plan = make_plan(seeds=(0,))
    plan = ComparisonPlan(**{**vars(plan), "entries": plan.entries[:1]})
    code = "from boxquery import cli; raise SystemExit(cli.run(['train', 'nowhere', '--model', 'detr']))"
    work, _ = runner(plan, tmp_path, monkeypatch, code)
    work.run()
    (run,) = collect([tmp_path])["runs"]
    assert run["status"] == "failed"
    assert run["reason"].startswith("nowhere: ")


def test_a_run_is_resumed_unless_it_has_no_epoch(tmp_path, monkeypatch):
    from .fake_comparison import write_config

    plan = make_plan(seeds=(0,))
    begun, bare, foreign, trained = plan.runs()
    for planned in plan.runs():
        write_config(plan, planned, run_folder(tmp_path, planned), **({"lr": 0.5} if planned == foreign else {}))
    (run_folder(tmp_path, begun) / "last.ckpt").write_text("")
    for name in ("report.html", "evaluation.json", "metrics.csv"):
        (run_folder(tmp_path, trained) / name).write_text("{}")
    (run_folder(tmp_path, trained) / "model").mkdir()
    work, commands = runner(plan, tmp_path, monkeypatch, "import sys; sys.exit(1)")
    work.run()
    assert any(line.endswith("--resume") and begun.name in line for line in commands)
    assert any("--model detr" in line and bare.name in line for line in commands)
    assert any(line.startswith("boxquery.compare.measure") and trained.name in line for line in commands)
    assert len(commands) == 3
    assert "another run" in json.loads((tmp_path / "state" / f"{foreign.name}.json").read_text())["reason"]


def test_seeds_share_the_steps_of_their_minutes(tmp_path, monkeypatch):
    """The first is timed while the other waits; then it gets the schedule that was planned."""
    plan = make_plan(epochs=None, minutes=2.0)
    plan = ComparisonPlan(**{**vars(plan), "entries": plan.entries[:1]})
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom boxquery.training.config import RunConfig\n"
        "from boxquery.training.run_length import RunLength\n"
        "a = sys.argv[1:]\nout = Path(a[a.index('--out') + 1])\n"
        "if '--schedule-steps' not in a:\n    time.sleep(0.5)\n"
        "    length = RunLength(minutes=2.0, clock='cpu', schedule_steps={0: 20}, val_every=2).with_data(7, 4)\n"
        "    RunConfig(data='d', model='detr', preset='tiny', image_size=64, batch_size=4, lr=0.1, length=length).write(out)\n"
        "sys.exit(1)"
    )
    work, commands = runner(plan, tmp_path, monkeypatch, code)
    work.run()
    assert len(commands) == 2
    assert "--minutes 2.0 --clock cpu" in commands[0]
    assert "--schedule-steps" not in commands[0]
    assert "--minutes 2.0 --clock cpu --schedule-steps 20 --val-every 2" in commands[1]


def test_two_runners_share_the_work(tmp_path, monkeypatch):
    import threading

    plan = make_plan()
    code = "import sys, time; time.sleep(0.05); sys.exit(1)"
    one, _ = runner(plan, tmp_path, monkeypatch, code)
    other = Runner(plan, tmp_path, 2, one.console)
    other.left.reverse()
    begun = []
    start = Runner._begin

    def begin(self, planned, lock):
        begun.append((self is one, planned.name))
        start(self, planned, lock)

    monkeypatch.setattr(Runner, "_begin", begin)
    threads = [threading.Thread(target=work.run) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name for _, name in begun} == {planned.name for planned in plan.runs()}
    assert {mine for mine, _ in begun} == {True, False}


def test_a_training_that_outlives_its_comparison_is_left_alone(tmp_path, monkeypatch):
    plan = make_plan(seeds=(0,))
    first, *others = plan.runs()
    lock = Lock.take(run_folder(tmp_path, first) / RUN_LOCK)
    work, commands = runner(plan, tmp_path, monkeypatch, "import sys; sys.exit(1)")
    assert progress_of(tmp_path, first).status == "training"
    work.run()
    assert any(note.startswith("A process still works on 1 of them") for note in collect([tmp_path])["notes"])
    lock.release()
    assert len(commands) == len(others)
    assert not any(first.name in line for line in commands)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["shapes"], "name what to compare"),
        (["--models", "detr"], "name the data"),
        (["shapes", "--models", "detr", "--epochs", "1", "--minutes", "2", "--out", "x"], "one of"),
        (["shapes", "--models", "detr,conditional-detr", "--preset", "paper", "--out", "x"], "differ in epochs (50, 300): give --epochs"),
        (["shapes", "--models", "dert", "--epochs", "1", "--out", "x"], "dert"),
        (["nowhere", "--models", "detr", "--epochs", "1", "--out", "x"], "nowhere"),
        (["--models", "detr", "--epochs", "1", "--out", "x"], "name the data"),
        (["shapes", "--models", "detr", "--option", "layers=1", "--epochs", "1", "--out", "x"], "layers"),
        (["shapes", "--models", "detr", "--epochs", "0", "--out", "x"], "epochs=0"),
        (["shapes", "--models", "detr", "--minutes", "nan", "--out", "x"], "minutes=nan"),
        (["shapes", "--models", "detr", "--epochs", "1", "--lr", "inf", "--out", "x"], "lr=inf"),
        (["shapes", "--models", "detr", "--seeds", "0", "--epochs", "1", "--out", "x"], "seeds=0"),
        (["--out", "x"], "no comparison there"),
        (["--show", "x"], "no comparison there"),
        (["shapes", "--show", "x"], "trains nothing"),
        (["shapes", "--models", "detr", "--sweep", "num_queries", "--epochs", "1", "--out", "x"], "name=a,b,c"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line(["compare", *given]) == 2
    printed = capsys.readouterr()
    assert len([line for line in printed.err.splitlines() if line.startswith("error:")]) == 1
    assert message in printed.err
    assert not list(tmp_path.iterdir())


def test_what_is_not_given_is_the_presets_and_named_after_the_data(tmp_path, monkeypatch):
    """The command of the article's first open question, as short as it can be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "run", lambda self: None)
    assert command_line(["compare", "shapes", "--model", "dab-detr", "--sweep", "num_queries=10,30"]) == 0
    plan = ComparisonPlan.read(tmp_path / "comparisons/shapes")
    assert [(entry.label, entry.model, entry.options) for entry in plan.entries] == [
        ("num_queries=10", "dab-detr", {"num_queries": 10}),
        ("num_queries=30", "dab-detr", {"num_queries": 30}),
    ]
    assert (plan.epochs, plan.budget(), plan.minutes, plan.images_seen) == (150, "150 epochs", None, None)
    assert command_line(["compare", "shapes"]) == 0  # goes on with it
    assert command_line(["compare", "shapes", "--models", "detr"]) == 0  # as well
    plan = ComparisonPlan.read(tmp_path / "comparisons/shapes")
    assert [entry.label for entry in plan.entries] == ["num_queries=10", "num_queries=30", "detr"]


def test_a_folder_that_holds_something_else_is_not_written_into(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert command_line(["compare", "shapes", "--models", "detr", "--epochs", "1", "--out", str(tmp_path)]) == 2
    assert "is not a comparison; choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
