"""Models as Hugging Face's transformers writes them (``config.json`` and tensors): a file per kind, named as our model.

The library is not needed and not imported. How a kind is added, say RT-DETR (``model_type`` ``rt_detr``): ``rt_detr.py`` here, with

- ``options(config) -> dict``: our options, all that shape tensors or results, by asking a ``Config`` (``config.py``) for its values, each
  with the library's default; ``config.same`` where two of its values are one of ours, ``config.require`` for what our model has fixed;
- ``keys(model) -> rules``: patterns of its tensors' names -> our names, the first that matches whole wins, mostly from ``patterns.py``; for
  both names that 4.x and 5.x have, and after ``q_proj``, ``k_proj`` and ``v_proj`` have become ``in_proj``. A new kind of backbone is a
  function in ``config.BACKBONES`` and rules in ``patterns.backbone``;
- where needed, ``seen(tensors) -> dict``, options that a tensor has rather than the configuration; ``adapt`` and ``CONSTANTS``, see
  ``boxquery.official.fill``; and ``PROCESSOR``: what ``preprocessor_config.json`` has that
  differs from DETR's, for folders that lack the file or some of its values;
- a case in ``tests/models/test_transformers_folders.py``.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxquery.errors import UserError, count
from boxquery.models import create_model, papers
from boxquery.official import CLASS_HEADS, fill, rename
from boxquery.official.transformers.config import Config
from boxquery.official.transformers.patterns import packed

if TYPE_CHECKING:
    from torch import Tensor

    from boxquery.models.interface import Model

#: what ``preprocessor_config.json`` of DETR and most others has
PROCESSOR: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def list_kinds() -> list[str]:
    """Our names of the models that are read; their ``model_type`` is the same with underscores (or hyphens)."""
    return [name for name in papers() if (Path(__file__).parent / f"{name.replace('-', '_')}.py").is_file()]


def kind_of(config: Config) -> str:
    """Our name of the model that a configuration is of. Raises ``UserError`` for one that is not read."""
    kind, made = config.get("model_type", None), config.get("architectures", None)
    name = str(kind).replace("_", "-")
    found = made[0] if isinstance(made, list) and made else None
    known = ", ".join(each.replace("-", "_") for each in list_kinds())
    if kind is None:
        raise UserError(f"{config.where}: has no model_type, which says what it is a model of; known: {known}")
    if name not in list_kinds():
        raise UserError(
            f"{config.where}: a model of transformers of the kind {kind!r}{f' ({found})' if found else ''} is not read; known: {known}"
        )
    if found is not None and not str(found).endswith("ForObjectDetection"):
        raise UserError(f"{config.where}: {found} is no object detector; {name} is read as its ForObjectDetection")
    return name


def module_of(name: str) -> Any:
    """The module that reads a kind."""
    return import_module(f"boxquery.official.transformers.{name.replace('-', '_')}")


def processor_of(name: str) -> dict[str, Any]:
    """What ``preprocessor_config.json`` of a kind has where nothing else is said."""
    return PROCESSOR | getattr(module_of(name), "PROCESSOR", {})


def build(config: Config, tensors: dict[str, Tensor], classes: int, source: str) -> tuple[Model, dict[str, Any]]:
    """The model that a configuration describes, filled with its tensors.

    Args:
        classes: how many it has.
        source: the file of the tensors, for messages.

    Returns the model, and ``model``, ``options`` and the numbers of tensors ``used``, ``constants``, ``dropped`` and ``new``. Raises
    ``UserError`` where one does not fit the other.
    """
    name = kind_of(config)
    kind = module_of(name)
    options = kind.options(config)
    try:
        options |= kind.seen(tensors) if hasattr(kind, "seen") else {}
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    try:
        model = create_model(name, classes=classes, **options)
    except UserError as error:
        raise UserError(f"{config.where}: {error}") from error
    _check_classes(model, tensors, kind, config, source)
    advice = f"{config.where} is of another model or the file incomplete: save the model again (save_pretrained), or download both again"
    if not config.part("backbone_config").values and config.get("backbone", None) is None:
        advice += f"; {config.where} has no backbone_config, so the backbone was assumed to be {model.config['options']['backbone']}"
    try:
        counts = {what: len(keys) for what, keys in fill(model, packed(tensors), kind, advice=advice).items()}
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return model, {"model": name, "options": options, **counts}


def _check_classes(model: Model, tensors: dict[str, Tensor], kind: Any, config: Config, source: str) -> None:
    """Raise ``UserError`` where the configuration names more or fewer classes than the file's class head has."""
    own, rules, classes = model.state_dict(), kind.keys(model), model.config["classes"]
    for key, value in tensors.items():
        ours = rename(key, rules)
        if ours in own and re.fullmatch(CLASS_HEADS, ours) and ours.endswith(".bias") and len(value) != len(own[ours]):
            said = count(classes, "name") if config.get("id2label", None) else f"no names, which stands for {classes}"
            last = " besides the one for no object" if len(own[ours]) > classes else ""
            rows = count(len(value) - len(own[ours]) + classes, "row")
            raise UserError(
                f"{config.where}: id2label has {said}, the class head of {Path(source).name} has {rows}{last}; "
                "give each row its name in id2label, N/A for a row that is no class"
            )
