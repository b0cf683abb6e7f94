"""The papers: names without torch, models on request."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxquery.errors import UserError

if TYPE_CHECKING:
    from boxquery.models.base import DetectionTransformer
    from boxquery.models.options import Preset

HERE = Path(__file__).parent


def list_models() -> list[str]:
    """Every model's name, sorted; read from the files that name a paper, without importing them."""
    return sorted(path.stem.replace("_", "-") for path in HERE.glob("*.py") if "Paper:" in describe(path.stem))


def describe(name: str) -> str:
    """The docstring of a model's file: its paper and how it differs from DETR."""
    return ast.get_docstring(ast.parse((HERE / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))) or ""


def facts(name: str) -> dict[str, str]:
    """The lines ``Key: value`` of a model's docstring: Paper, Year, Queries, Encoder, Cross-attention, Refinement, Matching, Published."""
    found = re.findall(r"^([A-Z][a-z-]+): (.+)$", describe(name), re.MULTILINE)
    return {key: value for key, value in found if key != "Licence"}


def sizes(name: str) -> dict[str, dict[str, float]]:
    """Preset -> ``parameters`` and ``gflops`` (multiply-adds at the preset's size of image), as ``benchmarks/sizes.py`` counted them."""
    return json.loads((HERE / "sizes.json").read_text(encoding="utf-8"))[name]


def differences(name: str) -> list[str]:
    """The bullets under "Differs from DETR in:" of a model's file."""
    return re.findall(r"^- (.+)$", describe(name).partition("Differs from DETR in:")[2], re.MULTILINE)


def preset(name: str, size: str = "paper") -> Preset:
    """Options and training recipe of a model's preset; imports torch."""
    presets = _paper(name).PRESETS
    if size not in presets:
        raise UserError(f"{name} has no preset {size!r}; choose one of {', '.join(presets)}")
    return presets[size]


def create_model(
    name: str, *, classes: int | list[str], backbone: str | None = None, pretrained: bool = False, preset: str = "paper", **options: Any
) -> DetectionTransformer:
    """Build a model.

    Args:
        name: from ``list_models()``.
        classes: a count, or a list of names.
        backbone: any timm feature extractor; None: the preset's.
        pretrained: backbone weights from the hub; stem, first stage and batch norm are then frozen, as published.
        preset: "paper" (the published R50 configuration), "small" or "tiny".
        options: the paper's own knobs; an unknown one is a ``UserError`` that lists the known ones.
    """
    from boxquery.models.options import with_options

    paper = _paper(name)
    start = globals()["preset"](name, preset).options
    if backbone is not None:
        options["backbone"] = backbone
        if backbone != start.backbone:
            options.setdefault("backbone_options", {})
    chosen = with_options(start, options, name)
    chosen.check()
    count = len(classes) if isinstance(classes, (list, tuple)) else classes
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"classes={classes!r}: must be a count of at least 1, or a list of names")
    model = paper.build(count, chosen, pretrained)
    model.config = {"name": name, "classes": count, "preset": preset, "frozen": False, "options": asdict(chosen)}
    if pretrained:
        model.freeze()
    return model


def _paper(name: str):
    if name not in list_models():
        raise UserError(f"no model {name!r}; choose one of {', '.join(list_models())}")
    return import_module(f"boxquery.models.{name.replace('-', '_')}")
