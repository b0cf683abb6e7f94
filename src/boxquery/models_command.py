"""``boxquery models``: what there is, from the models' own docstrings. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from rich import box
from rich.table import Table

from boxquery.command_result import CommandResult
from boxquery.errors import UserError
from boxquery.flags import AUTO
from boxquery.models import describe, differences, facts, list_baselines, list_scene_models, papers, sizes

_AUTO = "model, preset, options, image size, batch size, length and augmentation are chosen for the data and the processor"


def models(name: str | None = None, /) -> CommandResult:
    """List the models, or describe one: its paper, how it differs from DETR, and its presets.

    Args:
        name: A model or baseline to describe. Default: list all.
    """
    family, baselines, scenes = papers(), list_baselines(), list_scene_models()
    if name is not None:
        if name == AUTO:
            return CommandResult({"name": AUTO, "summary": _AUTO}, text=f"{AUTO}: {_AUTO}.")
        if name not in [*family, *scenes, *baselines]:
            raise UserError(f"no model {name!r}; choose one of {', '.join([*family, *scenes])}, or a baseline: {', '.join(baselines)}")
        values = _model(name)
        presets = [f"- {preset}: {_size(count)} at {count['image']}" for preset, count in values.get("sizes", {}).items()]
        return CommandResult(values, text="\n".join([describe(name), *(["", "Presets:", *presets] if presets else [])]))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, leading=1)
    table.add_column("model", no_wrap=True)
    table.add_column("in one line")
    for column in ("size", "AP", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)
    rows, scene_rows = ([_model(each) for each in names] for names in (family, scenes))
    for row in rows + scene_rows:
        ap, epochs = re.findall(r"([\d.]+) m?AP\b.*? in (\d+) epochs", row["published"])[0]
        table.add_row(f"[bold]{row['name']}[/bold]", row["summary"], f"{row['sizes']['paper']['parameters'] / 1e6:.0f} M", ap, epochs)
        if row is rows[-1]:
            table.add_section()
    text = (
        f"\nsize: parameters of preset paper with {rows[0]['sizes']['paper']['classes']} classes (COCO's rows); AP: published for it on "
        "COCO val2017 after that many epochs (its page says with what).\n"
        f"{', '.join(scenes)}: 3-D boxes in scenes of several cameras (docs/surround.md); their size is that with "
        f"{scene_rows[0]['sizes']['paper']['classes']} classes, their AP is mAP on nuScenes val.\n"
        f"{AUTO}, the default of train: {_AUTO}.\n"
        f"boxquery models NAME describes one, also those of other families to compare with: {', '.join(baselines)}."
    )
    return CommandResult({"models": rows, "scenes": scene_rows, "baselines": baselines}, table, text)


def _model(name: str) -> dict[str, Any]:
    """What is known of a model: plain values."""
    lines = {key.lower().replace("-", "_"): value for key, value in facts(name).items()}
    values = {"name": name, "summary": describe(name).splitlines()[0].partition(": ")[2], **lines}
    return {**values, "sizes": sizes(name), "differs_from_detr_in": differences(name)} if name not in list_baselines() else values


def _size(count: dict[str, Any]) -> str:
    gflops, classes = count["gflops"], count["classes"]
    return f"{count['parameters'] / 1e6:.1f} M parameters with {classes} classes, {gflops:.{0 if gflops >= 10 else 1}f} G multiply-adds"
