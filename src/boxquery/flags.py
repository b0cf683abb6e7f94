"""Flags that several commands share: their types, defaults and checks. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from cyclopts import Parameter

from boxquery.augment import augment_parts
from boxquery.errors import UserError, first_line

#: in place of a model's name, and where none is named: the model is chosen for the data and the processor
AUTO = "auto"
#: models that come with the library, by the name that stands for their folder, and where these are below the package
BUNDLED = {"shapes": "weights/shapes"}
#: the preset of a model that is named without one
DEFAULT_PRESET = "small"
#: the presets that no paper published
OUR_PRESETS = ("small", "tiny")

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bf16"]
RecipeName = Literal["preset", "fine-tuning"]
#: a flag that is off unless it is given
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]


#: words of ``--pretrained`` that are no files; alone it is ``required``
PRETRAINED: dict[str, bool | str] = {"auto": "auto", "none": False, "required": True, "false": False, "true": True}


def pretrained_of(word: str) -> bool | str:
    """What a word after ``--pretrained`` means: one of ``PRETRAINED``, else a file or folder."""
    return PRETRAINED.get(word.lower(), word)


def parse_pretrained(kind: Any, tokens: Any) -> bool | str:
    return pretrained_of(tokens[-1].value)


#: what flags mean that are given without a value
_ALONE = {"--pretrained": "required", "--augment": ""}


def fill_in(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the values of flags that may have none."""
    pairs = zip(words, [*words[1:], "--"], strict=False)
    return [f"{word}={_ALONE[word]}" if word in _ALONE and following.startswith("-") else word for word, following in pairs]


if TYPE_CHECKING:
    Pretrained = bool | str
else:  # cyclopts takes a flag that may be a bool for one without a value
    Pretrained = Annotated[str | bool, Parameter(converter=parse_pretrained, accepts_keys=False, n_tokens=1, negative=())]


def parse_options(kind: Any, tokens: Any) -> dict[str, Any]:
    """``--option levels=3 --option box_refine=false`` -> a dictionary; values are YAML."""
    return dict(_named(token.value, "--option") for token in tokens)


def parse_augment(kind: Any, tokens: Any) -> dict[str, Any]:
    """``--augment strong --augment flip=0`` -> what ``augment_parts`` makes of it; values are YAML."""
    words = [token.value for token in tokens if token.value]
    levels = [word for word in words if "=" not in word]
    if len(levels) > 1:
        raise ValueError(f"--augment {' and '.join(levels)}: give one level, and parts as name=value")
    parts = dict(_named(word, "--augment") for word in words if "=" in word)
    return augment_parts({"level": levels[0]} | parts if levels else parts)


def _named(word: str, flag: str) -> tuple[str, Any]:
    """Name and value of ``name=value``. Raises ``ValueError`` where it is something else."""
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise ValueError(f"{flag} {word!r}: write name=value")
    try:
        return name.replace("-", "_"), yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{flag} {word[:80]!r}: the value is not YAML ({first_line(error)})") from error


class Word(str):
    """A word of the command line that a converter makes something else of.

    Where pydantic happens to be imported, cyclopts checks what was made against the flag's type. It has no schema for this one.
    """


if TYPE_CHECKING:
    Options = dict[str, Any] | None
    Augmentation = str | dict[str, Any] | Callable[..., Any] | None
else:  # cyclopts hands a converter all repetitions of a flag only where it sees a list; of other types the last one wins
    Options = Annotated[list[Word] | None, Parameter(name="--option", converter=parse_options)]
    Augmentation = Annotated[list[Word] | None, Parameter(name="--augment", converter=parse_augment)]


def option_word(name: str, value: Any) -> str:
    """``name=value`` such that ``--option`` reads the same value back: YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return f"{name}={text.removesuffix('...' + chr(10)).strip()}"


def check_workers(workers: int | None) -> None:
    """Raise ``UserError`` for a number of processes that no machine like this one can use."""
    cores = os.cpu_count() or 1
    most = max(4 * cores, 16)
    if workers is not None and not 0 <= workers <= most:
        raise UserError(f"workers={workers}: choose 0 to {most}; each is a process of its own, and this machine has {cores} cores")


def check_seed(seed: int) -> None:
    """Raise ``UserError`` for a seed that PyTorch's generators do not take."""
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed={seed}: must fit into 64 bits")


def is_hub_id(source: str) -> bool:
    """Whether a name may be owner/name on the hub: what is here wins, and so does a folder that it would be in."""
    # os.path's checks are false where Path's own raise: for a name that is too long
    if source.startswith((".", "/", "~", "runs/")) or os.path.exists(Path(source).parent):
        return False
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source, re.ASCII) is None:
        return False
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def is_exported(source: str) -> bool:
    """Whether a name is that of an exported model, a file for ``boxquery.runtime``."""
    return source.lower().endswith((".onnx", ".xml"))


def check_model(source: str, *, exported: bool = False) -> None:
    """Raise ``UserError``, at once and without loading anything, for what is neither a folder nor can be a hub id.

    Args:
        exported: whether it may also be an exported model.
    """
    if exported and is_exported(source):
        if not os.path.isfile(source):
            raise UserError(f"{source}: no such file; give a model that boxquery export has written")
        return
    if os.path.isfile(source):
        if is_exported(source):
            raise UserError(f"{source}: is exported already; give the run or model folder that it comes from")
        others = ", or an exported model (.onnx, .xml)" if exported else ""
        raise UserError(f"{source}: is a file; give a run or model folder{others} (import-official makes one from an authors' checkpoint)")
    if not os.path.isdir(source) and source not in BUNDLED and not is_hub_id(source):
        raise UserError(f"{source}: no such folder; give a run folder, a model folder or a hub id (owner/name)")
