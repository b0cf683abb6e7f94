"""Files of a run are written atomically, and read under old and new names."""

import json
import os
import stat

import pytest

from boxquery.data.dataset import Data
from boxquery.errors import UserError
from boxquery.files import atomic_write, write_json
from boxquery.report.run_files import data_facts, read_run, write_evaluation

from .fake_run import NAMES, make_split


def test_written_atomically_and_readable_by_others(tmp_path):
    path = atomic_write(tmp_path / "deep" / "file.txt", "ä")
    assert path.read_text(encoding="utf-8") == "ä"
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert os.listdir(tmp_path / "deep") == ["file.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = atomic_write(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\udc80")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == ["file.txt"]


def test_evaluations_of_splits_stand_beside_each_other(tmp_path):
    write_evaluation(tmp_path, "val", {"AP": 0.1})
    write_evaluation(tmp_path, "test", {"AP": 0.2})
    path = write_evaluation(tmp_path, "val", {"AP": 0.3})
    assert json.loads(path.read_text()) == {"val": {"AP": 0.3}, "test": {"AP": 0.2}}
    path.write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json"):
        write_evaluation(tmp_path, "val", {})


def test_data_facts(tmp_path):
    split = make_split("train", 30, 1)
    data = Data("here", "yolo", NAMES, list(range(5)), {"train": split}, ["a note"], ["a line"])
    facts = data_facts(data)
    train = facts["splits"]["train"]
    assert train["images"] == 30
    assert train["objects"] == sum(train["per_class"]) == sum(int((~record.ignore).sum()) for record in split)
    assert len(train["per_class"]) == 5
    assert (facts["format"], facts["names"], facts["notes"], facts["skipped"]) == ("yolo", NAMES, ["a note"], ["a line"])
    empty = Data("here", "yolo", [], [], {"train": make_split("train", 0, 1)})
    assert data_facts(empty)["splits"]["train"]["images"] == 0


@pytest.mark.parametrize("name", ["processor_seconds", "cpu_seconds"])
def test_cpu_seconds_of_runs_old_and_new(tmp_path, name):
    (tmp_path / "metrics.csv").write_text(f"epoch,{name}\n1,2.5\n2,\n")
    assert read_run(tmp_path).epochs == [{"epoch": 1, "cpu_seconds": 2.5}, {"epoch": 2}]


def test_a_check_of_version_0_1_0(tmp_path):
    (tmp_path / "check.json").write_text('{"ahead": {"objects_an_image": {"50": 2}}, "learn": null, "findings": []}')
    assert read_run(tmp_path).check == {"feasibility": {"objects_per_image": {"50": 2}}, "overfit": None, "findings": []}
