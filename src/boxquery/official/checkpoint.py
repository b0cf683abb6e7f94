"""An authors' checkpoint file -> a model of ours."""

from __future__ import annotations

import collections
import pickle
import re
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from boxquery.errors import UserError, first_line, some
from boxquery.models import create_model
from boxquery.models.interface import Model
from boxquery.official import authors_of, list_official, load_official

#: options that change a model's output, but none of its tensors
UNSEEN = ("dilation", "gaussian_smooth", "sampling")

#: names that training wrappers put into the names of tensors
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: what stands beside the model's tensors in a file, and may hold tensors too
NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|random|loops|callbacks")
#: what every transformer has, or Sparse R-CNN, after a prefix
BELOW_PREFIX = re.compile(r"((?:.+?\.)?)(?:transformer\.(?:encoder|decoder|level)|head\.head_series\.)")
#: averaged or second copies of the model: taken only if there is no other
COPIES = re.compile(r"ema|teacher|swa")
#: values of the standard library that stand beside tensors; what else of it a file names would run something
VALUES = ("argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid")
TYPES = ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple")
#: what a file of the format before torch 1.6 may name; in later files the names are looked up
USUAL = (
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
)  # fmt: skip


class _Values(type):
    def __call__(cls, *args: Any) -> Any:
        return object.__new__(cls)


class _StandIn(metaclass=_Values):
    """Takes the place of an object beside the tensors (a command line, a path, a NumPy scalar): nothing of its class is imported or run.

    torch's safe reader makes an instance where the file calls a function, and a dictionary where it builds an object from its attributes.
    """

    def __new__(cls, *args: Any) -> Any:
        return collections.OrderedDict()

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in_dict(*args: Any) -> dict[Any, Any]:
    return {}


def read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint under their authors' names, and what was taken off to get them, one line each.

    The file is one of torch or safetensors. Dictionaries, whole models and prefixes around the tensors are opened. Nothing in the file is
    executed. Raises ``UserError`` if there are no tensors in it.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the checkpoint file in it")
    content = _load(path)
    tables = sorted(_tables(content), key=lambda each: len(each[1]), reverse=True)
    if not tables:
        raise UserError(f"{path}: {_describe(content)}; save the model's state_dict()")
    large = [name for name, tensors in tables if 2 * len(tensors) >= len(tables[0][1])]
    taken = min(large, key=lambda name: bool(COPIES.search(name)))
    notes = []
    if taken not in ("", "model"):
        others = [f"'{name}'" for name in large if name != taken]
        notes.append(f"the tensors are those under '{taken}'" + (f"; {', '.join(others)} is left out" if others else ""))
    tensors, more = _unprefixed(dict(tables)[taken])
    return tensors, [f"{path.name}: {line}" for line in notes + more]


def _load(path: Path) -> Any:
    """What the file holds, with stand-ins for everything but plain values and tensors. Raises ``UserError``."""
    try:
        with path.open("rb") as file:
            begin = file.read(100)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from error
    refused: list[str] = []
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        since_1_6 = begin.startswith(b"PK\x03\x04")
        names = {*USUAL, *(torch.serialization.get_unsafe_globals_in_checkpoint(path) if since_1_6 else ())}
        refused = sorted(name for name in names if _runs(name))
        allowed: list[Any] = [
            (_stand_in_dict if name == "collections.defaultdict" else _StandIn, name) for name in names.difference(refused)
        ]
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not begin.startswith((b"PK", b"\x80")):
            raise UserError(f"{path}: {_unreadable(begin)}") from error
        named = (refused or re.findall(r"GLOBAL ([\w.]+)", str(error)))[:3]
        raise UserError(
            f"{path}: would have to be executed to be read{', since it names ' if named else ''}{', '.join(named)}; "
            "load it where it was written and save the model's state_dict() alone"
        ) from error
    except (
        SafetensorError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError, TypeError, IndexError, AssertionError,
        struct.error,
    ) as error:  # fmt: skip
        what = "a TorchScript program; save the model's state_dict()" if "torchscript" in str(error).lower() else _unreadable(begin)
        raise UserError(f"{path}: {what}") from error


def _unreadable(begin: bytes) -> str:
    """What a file is that torch and safetensors cannot read, by its first bytes."""
    begin = begin.lstrip()
    if begin.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file; get the file itself (git lfs pull)"
    what = "empty" if not begin else "a web page" if begin.startswith(b"<") else "not readable by torch or safetensors"
    return f"not a checkpoint, or one that was cut short ({what}); copy or download it again"


def _runs(name: str) -> bool:
    """Whether a name that a file holds is of the standard library and no plain value."""
    room, _, rest = name.partition(".")
    return room in sys.stdlib_module_names and room not in VALUES and not (room == "builtins" and rest in TYPES)


def _tables(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of named tensors, also those of whole models, with the place in the file ("ema.module")."""
    if not isinstance(content, Mapping) or depth > 4:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    tensors |= dict(_module_tensors(content))
    if tensors:
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and not NOT_WEIGHTS.search(key):
            yield from _tables(value, f"{name}.{key}" if name else key, depth + 1)


def _module_tensors(module: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """What ``state_dict`` of a torch module gave that was saved as a whole: its stand-in has its attributes."""
    state = getattr(module, "__dict__", {})
    buffers, unsaved = state.get("_buffers", {}), state.get("_non_persistent_buffers_set", ())
    for key, value in {**state.get("_parameters", {}), **{k: v for k, v in buffers.items() if k not in unsaved}}.items():
        if isinstance(value, Tensor):
            yield f"{name}{key}", value
    for key, part in state.get("_modules", {}).items():
        yield from _module_tensors(part, f"{name}{key}.")


def _describe(content: Any) -> str:
    """What is wrong with a file that has no dictionary of named tensors."""
    if isinstance(content, Mapping):
        if unnamed := [repr(key) for key, value in content.items() if isinstance(value, Tensor)]:
            return f"the keys of its tensors are no names of a model's parameters ({some(unnamed)})"
        found = f"a dictionary with {', '.join(map(repr, list(content)[:6]))}" if content else "an empty dictionary"
    else:
        found = f"a {type(content).__name__}"
    return f"holds no tensors, but {found}"


def _unprefixed(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors without what wrappers put before the authors' names, and what that was: what all have (``BELOW_PREFIX``) is found."""
    notes, clean = [], {}
    found = [word for word in WRAPPERS if any(word in key.split(".") for key in tensors)]
    for key, value in tensors.items():
        clean[".".join(part for part in key.split(".") if part not in WRAPPERS)] = value
    prefixes = collections.Counter(m[1] for key in clean if (m := BELOW_PREFIX.match(key)))
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    others = tuple(other for other in prefixes if other != prefix and not prefix.startswith(other))
    kept = {key: value for key, value in clean.items() if key.startswith(prefix) and not (others and key.startswith(others))}
    if taken := [*found, *([prefix.rstrip(".")] if prefix else [])]:
        notes.append(f"taken off the names of the tensors: {', '.join(f'{word}.' for word in taken)}")
    if left := [key for key in clean if key not in kept]:
        notes.append(f"left out, not under {prefix or 'the names of the model'}: {some(left)}")
    return {key.removeprefix(prefix): value for key, value in kept.items()}, notes


def open_checkpoint(path: Path, name: str, given: dict[str, Any], classes: int = 1) -> tuple[Model, dict[str, Any]]:
    """Build the model that the tensors describe and fill it.

    Args:
        given: options that the tensors do not show; they win over what was read.
        classes: of a new class head, if the file has none.

    The report has the options, under ``"assumed"`` those that neither the tensors nor ``given`` show, under ``"rows"`` the class count of
    the file's head (None if it has none), and under ``"notes"`` a line for everything that was taken off or assumed. Raises ``UserError``.
    """
    authors = authors_of(name)
    tensors, notes = read(path)
    try:
        rows, options = authors.options(tensors)
    except (KeyError, ValueError, IndexError) as error:
        lacking = f"it has no tensor {error}" if isinstance(error, KeyError) else f"its tensors have other shapes ({first_line(error)})"
        raise UserError(f"{path}: not a checkpoint of {name}: {lacking}; {_whose(tensors, name)}") from error
    options |= given
    with torch.random.fork_rng(devices=[]):  # a new class head is the same every time
        torch.manual_seed(0)
        model = create_model(name, classes=classes if rows is None else rows, **options)
    try:
        counts = {kind: len(keys) for kind, keys in load_official(model, tensors, new_head=True).items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    built = model.config["options"]
    assumed = {key: built[key] for key in UNSEEN if key in built and key not in options}
    notes += [f"the tensors do not show {key}; taken as {value} (--option {key}=...)" for key, value in assumed.items()]
    return model, {"model": name, "options": options, "assumed": assumed, "rows": rows, **counts, "notes": notes}


def _whose(tensors: dict[str, Tensor], name: str) -> str:
    """What tensors may be of that are not of ``name``, in words."""
    if any(key.startswith(("queries.", "heads.", "tokens.")) for key in tensors):
        return "its names are boxquery's own: give the run or model folder"
    if any(".encoder_attn." in key or key.startswith("class_labels_classifier") for key in tensors):
        return "its names are those of Hugging Face's transformers: give the folder with its config.json"
    others = [other for other in list_official() if other != name and _fits(other, tensors)]
    return f"its names would fit --model {' or '.join(others)}" if others else f"it holds {some(list(tensors))}"


def _fits(name: str, tensors: dict[str, Tensor]) -> bool:
    try:
        authors_of(name).options(tensors)
    except (KeyError, ValueError, IndexError):
        return False
    return True
