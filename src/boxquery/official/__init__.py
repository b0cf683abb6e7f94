"""Released checkpoints: the key names of each paper's authors, mapped to ours in a file named as the model.

Models as Hugging Face's transformers names them are in ``transformers/``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxquery.errors import UserError, some
from boxquery.models import papers

if TYPE_CHECKING:
    from torch import Tensor

    from boxquery.models.interface import Model

#: our parameters that have a row per class
CLASS_HEADS = r"(heads\.\d+|queries\.head)\.classes\..+|queries\.denoising\.labels"


def list_official() -> list[str]:
    """Models whose released checkpoints can be read."""
    return [name for name in papers() if (Path(__file__).parent / f"{name.replace('-', '_')}.py").is_file()]


def authors_of(name: str) -> Any:
    """The module that reads a model's released checkpoints. Raises ``UserError``."""
    if name not in list_official():
        raise UserError(f"no official checkpoint is known for {name!r}; known: {', '.join(list_official())}")
    return import_module(f"boxquery.official.{name.replace('-', '_')}")


def load_official(model: Model, state_dict: dict[str, Tensor], *, new_head: bool = False) -> dict[str, list[str]]:
    """Fill a model with the tensors of its authors' checkpoint.

    Args:
        model: from ``create_model``, with the options and the class count of the checkpoint (91 for COCO).
        state_dict: the authors' keys and tensors (what they store under ``"model"``).
        new_head: if the file has no class head at all, as is usual before fine-tuning, keep the model's initial one.

    Every tensor is used, or is a constant that the key map names. Returns ``{"used": [...], "constants": [...], "dropped": [...], "new":
    [...]}``; "dropped" names rows of tensors that the authors' model has and the paper's has not ("class_embed.bias[91]"), "new" the
    parameters of a new class head (our names). A key that is neither used nor constant, any other parameter left without a tensor, or a
    shape that differs is a ``UserError`` with the keys. Stem, first stage and batch norm are then frozen, as published.
    """
    return fill(model, state_dict, authors_of(model.config["name"]), new_head=new_head)


def fill(
    model: Model, state_dict: dict[str, Tensor], names: Any, *, new_head: bool = False, advice: str = "check the model and its options"
) -> dict[str, list[str]]:
    """``load_official`` for tensors in the names of a module: the authors' of a paper, or those of a kind in ``transformers/``.

    Args:
        names: has ``keys(model)``, rules from their names to ours, and may have ``CONSTANTS``, patterns of names that no parameter of ours
            belongs to, and ``adapt(model, tensors)``, which gives the tensors that the rules are for, and the rows that it left out.
        advice: what to do where the tensors are not those of the model, for the message.
    """
    name = model.config["name"]
    rules, constants, theirs = names.keys(model), getattr(names, "CONSTANTS", ()), list(state_dict)
    state_dict, dropped = names.adapt(model, state_dict) if hasattr(names, "adapt") else (state_dict, [])
    own = model.state_dict()
    new: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    known, unknown = [], []
    for key, value in state_dict.items():
        target = rename(key, rules)
        if target in own:
            if target in new:
                if new[target].shape != value.shape or not bool((new[target] == value).all()):
                    raise UserError(f"{source[target]!r} and {key!r} are one tensor in {name} but differ; {advice}")
                continue
            if own[target].shape != value.shape:
                raise UserError(f"{key!r} is {list(value.shape)} there, and {list(own[target].shape)} in this {name}; {advice}")
            if own[target].is_floating_point() and not is_real(value):
                raise UserError(f"{key!r} has values of type {value.dtype}: only floating point of 16 bits or more is supported")
            if target.endswith(".running_var") and bool((value < 0).any()):
                raise UserError(f"{key!r} has a negative variance; use another state of this model")
            new[target], source[target] = value, key
        elif key.endswith(".num_batches_tracked") or any(re.fullmatch(pattern, key) for pattern in constants):
            known.append(key)
        else:
            unknown.append(key)
    heads = {key for key in own if re.fullmatch(CLASS_HEADS, key)}
    fresh = sorted(heads) if new_head and not heads & new.keys() else []
    missing = [k for k in own if k not in new and k not in fresh and not k.endswith("num_batches_tracked")]
    if unknown or missing:
        lost = [key for ours in missing for key in named_there(ours, rules, theirs)]
        unknown = [key for key in unknown if key not in _siblings(lost)]
        found = [f"{what}: {some(keys, 6)}" for what, keys in (("not understood", unknown), ("missing", lost)) if keys]
        raise UserError(f"this is not a checkpoint of {name} with these options; {'; '.join(found)}; {advice}")
    model.load_state_dict(new, strict=False)
    model.freeze()
    return {"used": list(source.values()), "constants": known, "dropped": dropped, "new": fresh}


def is_real(tensor: Tensor) -> bool:
    """Whether it has floating point of 16 bits or more; in eight bits are parts of quantised weights, that have no NaN to look for."""
    return tensor.is_floating_point() and tensor.element_size() > 1


def rename(key: str, rules: list[tuple[str, str]]) -> str | None:
    """Our name of the authors' key, by the first pattern that matches; None if there is none."""
    return next((match.expand(ours) for theirs, ours in rules if (match := re.fullmatch(theirs, key))), None)


def named_there(ours: str, rules: list[tuple[str, str]], known: list[str]) -> list[str]:
    """What a file would call a tensor of ours: of the names that the rules give it, the one most like names that the file has.

    Several where the file has three projections apart that are one of ours; ours itself, where no rule can be read backwards.
    """
    candidates = [key for pattern, template in rules for key in _backwards(ours, pattern, template) if rename(key, rules) == ours]
    if not candidates:
        return [ours]
    places = {key[:end] for key in known for end in (match.end() for match in re.finditer(r"\.", key))}
    found = max(candidates, key=lambda key: sum(1 if key[: match.end()] in places else -1 for match in re.finditer(r"\.", key)))
    return [key for key in _projections(found) if key not in known]


def _backwards(ours: str, pattern: str, template: str) -> Iterator[str]:
    """Names that a rule may make ``ours`` of. What it leaves open outside of groups is not found; of shared heads it is the first."""
    parts = re.split(r"\\(\d)", template.replace(r"\g<rest>", r"\9"))
    expression = "".join(rf"(?P<g{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    if len(set(parts[1::2])) < len(parts[1::2]) or (match := re.fullmatch(expression, ours)) is None:
        return
    numbers = itertools.count(1)
    pattern = re.sub(r"\((?!\?:)(?:[^()]|\([^()]*\))*\)", lambda group: "<9>" if "?P<rest>" in group[0] else f"<{next(numbers)}>", pattern)
    choices = re.split(r"\(\?:([^()]*)\)(\??)", pattern)
    fixed, groups, optional = choices[::3], choices[1::3], choices[2::3]
    for chosen in itertools.product(*([*group.split("|"), *([""] if mark else [])] for group, mark in zip(groups, optional, strict=True))):
        name = "".join(itertools.chain.from_iterable(itertools.zip_longest(fixed, chosen, fillvalue=""))).replace("\\.", ".")
        yield re.sub(r"<(\d)>", lambda number: match.groupdict().get(f"g{number[1]}", "0"), name)


def _projections(key: str) -> list[str]:
    """The three of transformers that one ``in_proj`` was made of, see ``transformers.patterns.packed``."""
    return [key.replace(".in_proj.", f".{name}_proj.") for name in "qkv"] if ".in_proj." in key else [key]


def _siblings(keys: list[str]) -> set[str]:
    """Keys with the two others of each projection."""
    return {other for key in keys for other in _projections(re.sub(r"\.[qkv]_proj\.", ".in_proj.", key))}
