"""Run folders that an older version wrote (``old_runs/README.md``) are loaded, evaluated and gone on with."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import boxquery as bq
from boxquery.augment import DETR, Augment, recorded
from boxquery.cli import run
from boxquery.compare.plan import ComparisonPlan
from boxquery.model_folder import migrate
from boxquery.training.config import RunConfig
from boxquery.training.migration import migrate_overrides
from tests.data.writers import drawn, write_coco

from .runs import scenes

OLD = Path(__file__).parent / "old_runs"
NAMES = ["deformable-detr", "detr"]


def machine() -> dict[str, str]:
    """What decides the last bits of a sum in float32."""
    known: dict[str, Any] = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {"torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability(), "cpu": known.get("cpu_name", "")}


@torch.inference_mode()
def outputs(folder: Path) -> dict[str, Any]:
    """Of two images that are the same everywhere, the second one padded."""
    images = ((torch.arange(2 * 3 * 64 * 64) * 37 % 101) / 50 - 1).view(2, 3, 64, 64)
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[1, :, 48:] = True
    images[1, :, :, 48:] = 0
    out = bq.load(folder).model(images, mask)
    values = {"logits": out.logits, "boxes": out.boxes}
    if out.proposals is not None:
        values |= {"proposals.logits": out.proposals.logits, "proposals.boxes": out.proposals.boxes}
    return {name: value.tolist() for name, value in values.items()}


@pytest.fixture
def folder(request, tmp_path, monkeypatch) -> Path:
    """A copy of an old run beside the data that it was trained on, where it was: in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_coco(Path("data"), drawn(scenes()))
    return Path(shutil.copytree(OLD / request.param, request.param))


MATCHING = [
    ({}, {}),
    ({"denoising": 0}, {"matching": "one-to-one"}),
    ({"denoising": 60}, {"matching": "denoising", "denoising": 60}),
    ({"denoising": 30, "matching": "dense"}, {"matching": "denoising+dense", "denoising": 30}),
    ({"denoising": 0, "matching": "dense"}, {"matching": "dense"}),
    ({"matching": "dense"}, {"matching": "denoising+dense", "denoising": 60}),
]


@pytest.mark.parametrize(("before", "now"), MATCHING, ids=str)
def test_denoising_was_switched_on_by_its_number(before, now, tmp_path):
    """In ``config.yaml``, which holds what differs from the preset; in a model folder, which holds all; and in a comparison's plan."""
    config = yaml.safe_load((OLD / "deformable-detr" / "config.yaml").read_text())
    others = {name: value for name, value in config["options"].items() if name != "denoising"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"options": others | before}))
    options = RunConfig.read(tmp_path).options
    assert options == others | now | {"valid_ratios": "paper"}
    model = json.loads((OLD / "deformable-detr" / "model" / "config.json").read_text())
    model["model"]["options"] |= {"denoising": 60} | before
    loaded = migrate(model)["model"]["options"]
    expected = {"matching": "denoising", "denoising": 60} | now
    assert {name: loaded.get(name, 60) for name in expected} == expected
    entry = {"model": "deformable-detr", "preset": "tiny", "options": before, "lr": None}
    usual = {"epochs": 1, "minutes": None, "images_seen": None, "image_size": 64, "batch_size": 4, "pretrained": False}
    usual |= {"freeze_backbone": False, "device": "cpu", "precision": "float32", "strict": False}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({"data": "d", "seeds": [0], "entries": {"a": entry}} | usual))
    plan = ComparisonPlan.read(tmp_path)
    assert plan.entries[0].options == now | {"valid_ratios": "paper"}
    plan.write(tmp_path)
    assert ComparisonPlan.read(tmp_path) == plan


def test_other_models_had_no_denoising_of_their_own():
    assert migrate_overrides({"matching": "dense"}, "dab-detr", "tiny", 3) == {"matching": "dense"}


@pytest.mark.parametrize("number", range(1, 6))
def test_ratios_were_of_whole_cells(number, tmp_path):
    """In runs, which hold what differs from the preset; in a model folder what it lacks is the paper's."""
    before = {} if number == 5 else {"valid_ratios": "paper"}
    for model, preset, expected in (("dino-detr", "small", before), ("deformable-detr", "paper", {}), ("sam-detr", "tiny", {})):
        assert migrate_overrides({"levels": 2}, model, preset, number) == {"levels": 2} | expected
    config = yaml.safe_load((OLD / "deformable-detr" / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert RunConfig.read(tmp_path).options["valid_ratios"] == "paper"
    old, new = bq.load(OLD / "deformable-detr").model, bq.create_model("deformable-detr", classes=1, preset="tiny")
    assert (old.config["options"]["valid_ratios"], new.config["options"]["valid_ratios"]) == ("paper", "exact")


def losses(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "metrics.csv").open() as file:
        return [(row["epoch"], row["step"], row["images"], row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", NAMES)
def test_an_old_model_predicts_what_it_did(name):
    """To the last bit on the kind of machine that wrote it; elsewhere libraries add up in another order."""
    expected = json.loads((OLD / name / "expected.json").read_text())
    bounds = {"rtol": 0.0, "atol": 0.0} if expected["machine"] == machine() else {"rtol": 1e-4, "atol": 1e-5}
    found = outputs(OLD / name)
    assert found.keys() == expected["outputs"].keys()
    for key, values in expected["outputs"].items():
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(values), **bounds, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("folder", NAMES, indirect=True)
def test_an_old_run_is_understood(folder, capsys):
    written = yaml.safe_load((folder / "config.yaml").read_text())
    config = RunConfig.read(folder)
    options = written["options"] | ({"matching": "denoising"} if "denoising" in written["options"] else {})
    options |= {"valid_ratios": "paper"} if folder.name == "deformable-detr" else {}
    assert (config.data, config.model, config.options) == ("data", folder.name, options)
    assert f"--model {folder.name}" in config.command(folder)
    assert run(["evaluate", str(folder), "data", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6


@pytest.mark.parametrize("folder", NAMES, indirect=True)
def test_an_old_run_was_augmented_as_its_preset_was_then(folder):
    config = RunConfig.read(folder)
    assert config.augment == {}
    assert recorded(config.augmentation) == Augment(scales=(1.0,), crop=0.0)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    for size, scales in (("paper", DETR.scales), ("small", (0.8, 0.9, 1.0, 1.1, 1.2))):
        (folder / "config.yaml").write_text(yaml.safe_dump(values | {"preset": size}))
        assert recorded(RunConfig.read(folder).augmentation) == Augment(scales=scales)


@pytest.mark.parametrize("folder", ["detr"], indirect=True)
def test_an_old_run_is_gone_on_with_or_its_version_is_named(folder, capsys):
    """It was interrupted after three epochs, with most of its minutes left."""
    before, version = losses(folder), yaml.safe_load((folder / "config.yaml").read_text())["boxquery"]
    status = run(["train", "data", "--resume", "--out", str(folder)])
    if status == 0:
        assert losses(folder)[: len(before)] == before
        assert len(losses(folder)) > len(before)
        assert (folder / "report.html").is_file()
    else:
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert (status, len(errors)) == (2, 1)
        assert version in errors[0]
        assert losses(folder) == before
