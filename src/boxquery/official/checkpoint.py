"""An authors' checkpoint file -> a model of ours."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from boxquery.errors import UserError
from boxquery.models import create_model
from boxquery.models.interface import Model
from boxquery.official import authors_of, load_official


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint; nothing in the file is executed. Raises ``UserError`` where it is none."""
    try:
        # the authors keep their command line beside the tensors: plain values, allowed by name
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint, or one that would have to be executed; give the authors' own file") from error
    tensors = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
        raise UserError(f"{path}: holds no tensors under 'model'; give the file as its authors released it")
    return tensors


#: options that change a model's output, but none of its tensors
UNSEEN = ("dilation", "gaussian_smooth")


def open_checkpoint(path: Path, name: str, given: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """Build the model that the tensors describe and fill it.

    ``given`` are options that the tensors do not show; they win over what was read. The report's ``"assumed"`` has those not given.
    """
    authors, tensors = authors_of(name), read(path)
    try:
        classes, options = authors.options(tensors)
    except KeyError as error:
        raise UserError(f"{path}: no tensor {error} in it: not a checkpoint of {name}") from error
    options |= given
    model = create_model(name, classes=classes, **options)
    counts = {kind: len(keys) for kind, keys in load_official(model, tensors).items()}
    built = model.config["options"]
    assumed = {key: built[key] for key in UNSEEN if key in built and key not in options}
    return model, {"model": name, "options": options, "assumed": assumed, **counts}


def assumptions(report: dict[str, Any]) -> list[str]:
    """What ``open_checkpoint`` assumed, one line per option."""
    return [f"the tensors do not show {name}; taken as {value} (--option {name}=...)" for name, value in report["assumed"].items()]
