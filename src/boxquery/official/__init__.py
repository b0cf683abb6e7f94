"""Released checkpoints: each paper's own key names, mapped to ours."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from boxquery.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from boxquery.models.interface import Model

#: our name of a model -> the module with its key map
AUTHORS = {
    "anchor-detr": "boxquery.official.anchor_detr",
    "conditional-detr": "boxquery.official.conditional_detr",
    "dab-deformable-detr": "boxquery.official.dab_deformable_detr",
    "dab-detr": "boxquery.official.dab_detr",
    "deformable-detr": "boxquery.official.deformable_detr",
    "detr": "boxquery.official.detr",
    "sam-detr": "boxquery.official.sam_detr",
    "smca-detr": "boxquery.official.smca_detr",
}


def load_official(model: Model, state_dict: dict[str, Tensor]) -> dict[str, list[str]]:
    """Fill a model with the tensors of its authors' checkpoint.

    Args:
        model: from ``create_model``, with the options and the class count of the checkpoint (91 for COCO).
        state_dict: the authors' keys and tensors (what they store under ``"model"``).

    Every tensor is used, or is a constant that the map names. Returns ``{"used": [...], "constants": [...], "dropped": [...]}``; the last
    names rows of tensors that the authors' model has and the paper's has not ("class_embed.bias[91]"). A key that is neither, a
    parameter left without a tensor, or a shape that differs is a ``UserError`` with the keys. Trained weights come with stem, first
    stage and batch norm frozen, as published.
    """
    name = model.config["name"]
    if name not in AUTHORS:
        raise UserError(f"no official checkpoint is known for {name!r}; known: {', '.join(AUTHORS)}")
    authors = import_module(AUTHORS[name])
    rules, constants = [(re.compile(a), b) for a, b in authors.keys(model)], [re.compile(c) for c in authors.CONSTANTS]
    state_dict, dropped = authors.adapt(model, state_dict) if hasattr(authors, "adapt") else (state_dict, [])
    own = model.state_dict()
    new: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    known, strange = [], []
    for key, value in state_dict.items():
        target = _renamed(key, rules)
        if target in own:
            if target in new:
                if new[target].shape != value.shape or not bool((new[target] == value).all()):
                    raise UserError(f"official keys {source[target]!r} and {key!r} are one tensor in {name} but differ; check the options")
                continue
            if own[target].shape != value.shape:
                raise UserError(
                    f"official key {key!r} is {list(value.shape)}, the model's {target!r} {list(own[target].shape)}; check the options"
                )
            new[target], source[target] = value, key
        elif any(c.fullmatch(key) for c in constants):
            known.append(key)
        else:
            strange.append(key)
    missing = [k for k in own if k not in new and not k.endswith("num_batches_tracked")]
    if strange or missing:
        said = [f"not understood: {_some(strange)}"] * bool(strange) + [f"without a tensor: {_some(missing)}"] * bool(missing)
        raise UserError(f"this is not a checkpoint of {name} with these options; {'; '.join(said)}")
    model.load_state_dict(new, strict=False)
    model.freeze()
    return {"used": list(source.values()), "constants": known, "dropped": dropped}


def _renamed(key: str, rules: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, target in rules:
        if (match := pattern.fullmatch(key)) is not None:
            return match.expand(target)
    return None


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
