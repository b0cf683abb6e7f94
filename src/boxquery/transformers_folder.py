"""A folder that Hugging Face's transformers wrote (``config.json``, ``model.safetensors``, ``preprocessor_config.json``) -> a detector.

The library is not needed, and nothing in the folder is executed. What is read is in ``boxquery.official.transformers``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.errors import UserError, first_line, printable, some
from boxquery.official import is_real
from boxquery.official.checkpoint import read
from boxquery.official.transformers import build, kind_of, processor_of
from boxquery.official.transformers.config import Config

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
#: files of weights, the better one first; an index lists those that the tensors are spread over
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
#: what the library calls a row of a class head that is no class
NO_CLASS = ("N/A", "n/a", "")
#: PIL's numbers of what is resized by
RESAMPLE = {2: "bilinear", 3: "bicubic"}
#: in place of no limit to an image's longer side, as a multiple of the shorter one
UNLIMITED = 1000
#: what ``preprocessor_config.json`` may have that is not done here
NOT_READ = ("do_center_crop", "pad_size")


def read_config(folder: Path) -> Config | None:
    """The configuration of a model of transformers; None for another folder. Raises ``UserError`` for one that cannot be read."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    values = _read_json(path)
    return Config(values, str(path)) if "model_type" in values or "architectures" in values else None


def open_folder(
    folder: Path, config: Config, *, image_size: int | None = None, names: Sequence[str | None] = ()
) -> tuple[Detector, dict[str, Any]]:
    """A detector from a folder of transformers.

    Args:
        config: its configuration.
        image_size: in place of the folder's own.
        names: of its classes, in place of the folder's own.

    The report has ``model``, ``options``, ``rows`` (how many classes the head has), the numbers of tensors, and ``notes``: a line for
    everything that was assumed. Raises ``UserError`` where a file is missing or cut short, or the model is one that is not read.
    """
    kind, classes = kind_of(config), _class_names(config)
    preprocessing, notes = _preprocessing(folder, kind)
    if image_size is not None:
        preprocessing = Preprocessing(**{**preprocessing.to_dict(), "image_size": image_size})
    if names and len(names) != len(classes):
        raise UserError(f"{config.where}: has {len(classes)} classes, but --classes has {len(names)} names; one without a class is empty")
    path, tensors, more = _weights(folder)
    try:
        model, report = build(config, tensors, len(classes), str(path))
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError, MemoryError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{config.where}: no model can be built from it ({type(error).__name__}: {first_line(error)})") from error
    if twice := sorted({name for name in classes if name and classes.count(name) > 1} if not names else ()):
        notes.append(f"{config.where}: several classes are called {printable(some(twice))}")
    detector = Detector(model.eval(), names or classes, range(len(classes)), preprocessing)
    return detector, {**report, "assumed": {}, "rows": len(classes), "notes": [*more, *notes]}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or cut short ({first_line(error)}); copy or download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: should be an object of names and values, found a {type(values).__name__}")
    return values


def _class_names(config: Config) -> list[str | None]:
    """Per row of the class head its name; None for a row that is no class."""
    labels = config.get("id2label", {str(i): f"LABEL_{i}" for i in range(2)})
    if not isinstance(labels, Mapping) or not all(isinstance(name, str) for name in labels.values()):
        raise UserError(f"{config.where}: id2label should be an object of ids and class names")
    if not labels or set(labels) != {str(i) for i in range(len(labels))}:
        raise UserError(f"{config.where}: id2label should have an id for every row of the class head, 0 to {len(labels) - 1}")
    return [None if (name := labels[str(i)].strip()) in NO_CLASS else name for i in range(len(labels))]


def _weights(folder: Path) -> tuple[Path, dict[str, Tensor], list[str]]:
    """The file of the weights, or the index of several; the tensors; and notes."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has a {CONFIG} of transformers, but no weights; {' or '.join(WEIGHTS[::2])} is looked for")
    parts = [path]
    if path.suffix == ".json":
        placed = _read_json(path).get("weight_map")
        names = list(placed.values()) if isinstance(placed, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise UserError(f"{path}: weight_map should say which file beside it has which tensor")
        names = sorted(set(names))
        if missing := sorted(set(names) - {file.name for file in folder.iterdir()}):
            raise UserError(f"{path}: weight_map names {printable(missing[0][:100])}: no such file beside it; copy or download it again")
        parts = [folder / name for name in names]
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for part in parts:
        found, more = read(part)
        tensors |= found
        notes += more
    for name, tensor in tensors.items():
        if is_real(tensor) and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} contains NaN or inf; use another state of this model")
    return path, tensors, notes


def _preprocessing(folder: Path, kind: str) -> tuple[Preprocessing, list[str]]:
    """What ``preprocessor_config.json`` says, or where that is missing what is usual for the kind, with a note."""
    path, usual = folder / PROCESSOR, processor_of(kind)
    notes = [] if path.is_file() else [f"{folder} has no {PROCESSOR}: images are resized and normalised as is usual for {kind}"]
    given = _read_json(path) if path.is_file() else {}
    values = usual | {name: value for name, value in given.items() if value is not None}
    config = Config(values, str(path))
    config.require(do_resize=True, do_rescale=True)
    if abs(config.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise UserError(f"{path}: rescale_factor={values['rescale_factor']!r}: only 1/255 is supported")
    if values["do_normalize"] not in (True, False):
        raise UserError(f"{path}: do_normalize={values['do_normalize']!r}: must be true or false")
    if values["resample"] not in list(RESAMPLE):
        raise UserError(f"{path}: resample={values['resample']!r}: only 2 (bilinear) and 3 (bicubic) are supported")
    if unread := [f"{name}={values[name]!r}" for name in NOT_READ if values.get(name)]:
        notes.append(f"{path}: {', '.join(unread)} is not read: whole images are resized, and padded to the largest of their batch")
    try:
        mean, std = values["image_mean"], values["image_std"]
        preprocessing = Preprocessing(
            **_size(values["size"], values.get("max_size"), path),
            mean=tuple(mean) if values["do_normalize"] else None,
            std=tuple(std) if values["do_normalize"] else None,
            interpolation=RESAMPLE[values["resample"]],
        )
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    except TypeError as error:
        raise UserError(f"{path}: image_mean or image_std is no list of numbers ({first_line(error)})") from error
    return preprocessing, notes


def _size(size: Any, longest: Any, path: Path) -> dict[str, Any]:
    """The values of a ``Preprocessing`` that say how an image is resized."""
    if isinstance(size, int):  # as files before 4.27 have it
        size = {"shortest_edge": size, "longest_edge": 1333 if longest is None else longest}
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys() and size["height"] == size["width"]:
        return {"image_size": size["height"], "square": True}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edges = Config({"longest_edge": longest, **size}, f"{path}: size")
        shortest = edges.whole("shortest_edge", 800)
        most = edges.whole("longest_edge", UNLIMITED * shortest)
        return {"image_size": shortest, "longest_ratio": max(min(most, UNLIMITED * shortest) / shortest, 1.0)}
    raise UserError(f"{path}: size={size!r}: a shortest_edge, or one height and width, is supported")
