"""Names and facts of all models, without importing torch, and ``create_model``."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boxquery.errors import UserError
from boxquery.flags import AUTO

if TYPE_CHECKING:
    from boxquery.models.base import QueryTransformer
    from boxquery.models.interface import Model
    from boxquery.models.recipes import Preset
    from boxquery.parts.weights import BackboneWeights

HERE = Path(__file__).parent
#: folders of models, in it
ROOMS = ("", "scenes", "baselines")


class Paper(Protocol):
    """What a paper's file provides: a module, or anything with these names."""

    PRESETS: dict[str, Preset]

    @property
    def build(self) -> Callable[[int, Any, BackboneWeights | None], QueryTransformer]: ...


#: models registered by the user, by name
_own: dict[str, Paper] = {}


def list_models() -> list[str]:
    """Every model's name, sorted: the library's papers, and what was registered."""
    return sorted([*papers(), *_own])


def papers() -> list[str]:
    """The library's own models, sorted; found by the line "Paper:" of their files, without importing them."""
    return sorted(path.stem.replace("_", "-") for path in HERE.glob("*.py") if "Paper:" in _docstring(path))


def list_scene_models() -> list[str]:
    """The models that take scenes of several cameras, sorted; ``create_model`` builds them like any other."""
    return sorted(path.stem.replace("_", "-") for path in (HERE / "scenes").glob("*.py") if "Paper:" in _docstring(path))


def list_baselines() -> list[str]:
    """The baselines, sorted: torchvision's detectors, accepted by the rest of the library like any model's name."""
    return sorted(path.stem.replace("_", "-") for path in (HERE / "baselines").glob("*.py") if "Paper:" in _docstring(path))


def register(name: str, paper: Paper) -> None:
    """Make a model of your own known to ``create_model``, ``list_models``, ``train`` and ``load``, for this process.

    Args:
        name: lower-case words and numbers joined by hyphens, none of the library's; your own may be registered again.
        paper: a module like those in this folder, with ``PRESETS`` (name -> ``Preset``; ``presets()`` makes the three), a function
            ``build(classes, options, weights) -> DetectionTransformer``, and a docstring that says how it differs from DETR.

    docs/mixing.md shows one. Raises ``UserError``.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UserError(f"name={name!r}: must be lower-case words and numbers joined by hyphens")
    if name in [AUTO, *papers(), *list_scene_models(), *list_baselines()]:
        raise UserError(f"name={name!r}: the library has a model of this name; choose another")
    known = getattr(paper, "PRESETS", None)
    if not isinstance(known, dict) or not known or not callable(getattr(paper, "build", None)):
        raise UserError(f"{name}: a model's module needs PRESETS (a filled dictionary) and build(classes, options, weights)")
    _own[name] = paper


def describe(name: str) -> str:
    """The docstring of a model's file: its paper and, of the family, how it differs from DETR."""
    if name in _own:
        return inspect.cleandoc(_own[name].__doc__ or "")
    file = f"{name.replace('-', '_')}.py"
    return _docstring(next((path for path in [HERE / room / file for room in ROOMS] if path.is_file()), HERE / file))


@cache
def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def facts(name: str) -> dict[str, str]:
    """The lines ``Key: value`` of a model's docstring: Paper, Year, Queries, Encoder, Cross-attention, Refinement, Matching, Published."""
    found = re.findall(r"^([A-Z][a-z-]+): (.+)$", describe(name), re.MULTILINE)
    return {key: value for key, value in found if key != "Licence"}


def sizes(name: str) -> dict[str, dict[str, float]]:
    """Preset -> ``parameters`` and ``gflops`` (multiply-adds) for ``classes`` and ``image``, as ``benchmarks/sizes.py`` counted them."""
    return json.loads((HERE / "sizes.json").read_text(encoding="utf-8"))[name]


def differences(name: str) -> list[str]:
    """The bullets under "Differs from DETR in:" of a model's file."""
    bullets = re.findall(r"^- (.+(?:\n  .+)*)", describe(name).partition("Differs from DETR in:")[2], re.MULTILINE)
    return [" ".join(bullet.split()) for bullet in bullets]


def check_image_model(name: str) -> None:
    """Raise ``UserError`` for one of the library's models of scenes."""
    if name in list_scene_models():
        raise UserError(
            f"model {name!r} finds 3-D boxes in scenes of several cameras (docs/surround.md), and this is about images; models of images: "
            f"{', '.join(list_models())}"
        )


def check_scene_model(name: str) -> None:
    """Raise ``UserError`` for one of the library's models of images."""
    if name in [*papers(), *list_baselines()]:
        raise UserError(
            f"model {name!r} finds boxes in images, and this is about scenes of several cameras (docs/surround.md); models of scenes: "
            f"{', '.join(list_scene_models())}"
        )


def preset(name: str, size: str = "paper", *, pretrained: bool = False) -> Preset:
    """Options and training recipe of a model's preset, as they are with or without released weights of the backbone; imports torch."""
    return _preset(name, size, pretrained)


def _preset(name: str, size: str, pretrained: bool) -> Preset:
    presets = _paper(name).PRESETS
    if size not in presets:
        raise UserError(f"{name} has no preset {size!r}; choose one of {', '.join(presets)}")
    return (presets[size].pretrained if pretrained else None) or presets[size]


def preset_options(name: str, size: str, given: Mapping[str, Any], *, pretrained: bool = False) -> Any:
    """A preset's options with those given in their place; imports torch.

    Raises ``UserError``, which begins with the model's name, for an unknown one or a value that it cannot have.
    """
    from boxquery.models.options import with_options

    chosen = with_options(_preset(name, size, pretrained).options, given, name)
    if "denoising" in given and "matching" not in given and "denoising" not in chosen.strategies:
        raise UserError(
            f"{name}: denoising={chosen.denoising} is a number of noised queries, of which matching has none: add matching='denoising'"
        )
    return chosen


def check_options(name: str, size: str, options: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for a misspelt model or preset, or options with which it cannot be built, before anything is read.

    One of the library's is built, without memory for its weights; your own may need numbers for that.
    """
    preset_options(name, size, options)
    if name not in _own:
        import torch

        with torch.device("meta"):
            create_model(name, classes=1, preset=size, **options)


def create_model(
    name: str,
    *,
    classes: int | list[str],
    backbone: str | None = None,
    pretrained: bool | str | Path | BackboneWeights = False,
    preset: str = "paper",
    **options: Any,
) -> Model:
    """Build a model.

    Args:
        name: from ``list_models()``, ``boxquery.models.list_scene_models()`` or ``boxquery.models.list_baselines()``.
        classes: a count, or a list of names.
        backbone: any timm feature extractor; None: the preset's.
        pretrained: True: the backbone's released weights, from the hub or its cache; or a file or folder of them. Stem, first stage and
            batch norm are then frozen, as published, and the presets small and tiny have a whole ResNet-18 in place of a narrow one.
        preset: "paper" (the published R50 configuration), "small" or "tiny".
        options: the paper's own options and those of all models (docs/options.md); an unknown one is a ``UserError`` that lists the known
            ones.
    """
    from boxquery.models.common_options import apply
    from boxquery.parts.weights import BackboneWeights, find_weights

    paper = _paper(name)
    start = _preset(name, preset, bool(pretrained)).options
    if backbone is not None:
        options["backbone"] = backbone
        if backbone != start.backbone:
            options.setdefault("backbone_options", {})
    chosen = preset_options(name, preset, options, pretrained=bool(pretrained))
    count = len(classes) if isinstance(classes, (list, tuple)) else classes
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"classes={classes!r}: must be a count of at least 1, or a list of names")
    if pretrained and not isinstance(pretrained, BackboneWeights):
        pretrained = find_weights(chosen.backbone, pretrained)
    weights = pretrained or None
    model = paper.build(count, chosen, weights)
    if model.has_queries:
        apply(model, chosen, count)
    model.config = {"name": name, "classes": count, "preset": preset, "frozen": False, "options": asdict(chosen)}
    if weights is not None:
        model.freeze()
    return model


def _paper(name: str) -> Any:
    if name in _own:
        return _own[name]
    for room, names in (("models", papers()), ("models.scenes", list_scene_models()), ("models.baselines", list_baselines())):
        if name in names:
            return import_module(f"boxquery.{room}.{name.replace('-', '_')}")
    if name == AUTO:
        raise UserError(
            f"{name!r} is resolved for a data set, by train and check; name a model here: {', '.join([*list_models(), *list_baselines()])}"
        )
    raise UserError(
        f"no model {name!r}; choose one of {', '.join(list_models())}, or a baseline: {', '.join(list_baselines())}; "
        "your own must be registered first (docs/mixing.md)"
    )
