"""Text from data is never markup: brackets in the names of classes, folders and runs are printed as they are, by every command."""

import json
from pathlib import Path

import pytest

from boxquery.cli import run
from tests.data.writers import NAMES, pictures, write_coco
from tests.training.runs import SMALL

#: what rich would make red, drop, or stop at
STRANGE = {"cat": "[red]cat[/red]", "dog": "[/]dog", "owl": "owl [link=x] [1]"}
FOLDER = "data [bold] [/x]"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("markup")
    for path in (write_coco(root / FOLDER, pictures()) / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["name"] = STRANGE[category["name"]]
        path.write_text(json.dumps(content))
    return root


def said_by(words: list[str], capfd) -> tuple[int, str]:
    status = run(words)
    out, err = capfd.readouterr()
    return status, " ".join((out + err).split())


def test_names_with_brackets(place, capfd, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    status, said = said_by(["check", FOLDER], capfd)
    assert status == 0
    assert FOLDER in said
    assert all(name in said for name in STRANGE.values())

    options = [word for key, value in SMALL.items() for word in ("--option", f"{key}={json.dumps(value)}")]
    length = ["--epochs", "1", "--image-size", "64", "--batch-size", "4", "--device", "cpu", "--precision", "float32"]
    status, said = said_by(["train", FOLDER, "--out", "runs [b]", "--model", "detr", "--preset", "tiny", *length, *options], capfd)
    assert status == 0, said
    assert all(name in said for name in STRANGE.values())
    assert "runs [b]/report.html" in said

    status, said = said_by(["evaluate", "runs [b]", FOLDER, "--device", "cpu"], capfd)
    assert status == 0, said
    assert f"runs [b] on val of {FOLDER}" in said
    assert all(name in said for name in STRANGE.values())
    assert len(STRANGE) == len(NAMES)

    photo = next((place / FOLDER / "val2017").iterdir())
    status, said = said_by(["predict", "runs [b]", str(photo), "--out", "found [i]", "--threshold", "0", "--device", "cpu"], capfd)
    assert status == 0, said
    assert "found [i]" in said


@pytest.mark.parametrize("schedule", ["32:900", "1:700,32:900"])
def test_a_schedule_without_a_start(schedule, tmp_path, capsys):
    assert run(["train", "shapes", "--schedule-steps", schedule, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "--schedule-steps" in said
    assert "must start at step 0" in said
    assert not (tmp_path / "run").exists()
