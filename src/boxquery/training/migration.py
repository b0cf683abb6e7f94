"""Run folders that older versions wrote, read in today's terms. Imports no torch.

Format 1 is that of boxquery 0.1.0, whose ``config.yaml`` names no format; until format 3 the option ``denoising``
was a number, 0 for none; until format 4 ``valid_ratios`` were of whole cells in all presets.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from boxquery.augment import DETR
from boxquery.errors import UserError
from boxquery.models.options import migrate_options

FORMAT = 5

#: whose presets "small" and "tiny" have exact ``valid_ratios`` from format 5 on
_EXACT = ("deformable-detr", "dab-deformable-detr", "dino-detr")

#: what the presets of all models did to images before format 3, which names it
_AUGMENTED = {"paper": DETR, "small": replace(DETR, scales=(0.8, 0.9, 1.0, 1.1, 1.2)), "tiny": replace(DETR, scales=(1.0,), crop=0.0)}


def migrate_config(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """The values of a ``config.yaml`` in today's format. Raises ``UserError`` for those of a newer version."""
    if (number := values.get("format", 1)) not in range(1, FORMAT + 1):
        raise UserError(f"{file}: written by boxquery {values.get('boxquery')} (format {number}); read it with that version")
    if number == FORMAT:
        return values
    values = values | {"options": migrate_overrides(values["options"], values["model"], values["preset"], number)}
    if number >= 3:
        return values
    values = values | {"augmentation": _AUGMENTED[values["preset"]].values()}
    if number == 2:
        return values
    minutes, by_clock, batches = values.get("minutes"), values.get("by_clock", False), values.get("batches", 1)
    length = {
        "epochs": None if by_clock or values.get("images_seen") is not None else values["epochs"],
        "minutes": minutes,
        "clock": "cpu" if values.get("clock") == "processor" else "wall",
        "images_seen": values.get("images_seen"),
        "schedule_steps": {0: values.get("schedule_steps") or values["steps"]},
        "accumulate": values.get("accumulate", 1),
        "val_every": values.get("val_every", 1),
        "epoch_batches": batches,
        "batch_images": values["batch_size"] * values.get("world", 1),
        "total_batches": (values["epochs"] - 1) * batches + (values.get("last") or batches),
    }
    start_from = values.get("start_from") or None
    return values | {"start_from": start_from, "world_size": values.get("world", 1), "length": length}


def migrate_overrides(options: dict[str, Any], model: str, preset: str, number: int) -> dict[str, Any]:
    """Options that differ from a preset, of format ``number``, in today's format."""
    ours = preset in ("small", "tiny")
    if number < 4:
        options = migrate_options(options, usual=60 if model == "deformable-detr" and ours else 0)
    return {"valid_ratios": "paper", **options} if number < 5 and ours and model in _EXACT else options


def migrate_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state in ``last.ckpt``, in today's format."""
    if (old := state["callbacks"].pop("Keeper", None)) is None:
        return state
    rows = [{"cpu_seconds" if name == "processor_seconds" else name: value for name, value in row.items()} for row in old["rows"]]
    evaluated = [row["epoch"] for row in rows if "AP" in row] or [0] * (1 + old["waited"])
    diagnosis = old.get("diagnosis", {})
    last = rows[-1] if rows else {"seconds": 0.0, "cpu_seconds": 0.0}
    clock = {name: old.get(before, 0.0) for name, before in (("evaluation", "look"), ("closing", "closing"))}
    state["callbacks"]["EpochEnd"] = {
        "clock": clock | {"spent": (last["seconds"], last["cpu_seconds"]), "paused": 0.0, "over": old.get("over", False)},
        "evaluator": {"finders": old.get("finders", [])},
        "best": {"best": old["best"], "epoch": evaluated[-1 - old["waited"]], "waited": old["waited"]},
        "table": {"rows": rows},
        "diagnosis": {"findings": diagnosis.get("said", []), "first": diagnosis.get("first", {})},
        "unreadable": old.get("unreadable", {"train": [], "val": []}),
    }
    return state
