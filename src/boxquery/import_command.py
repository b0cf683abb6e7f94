"""The command import-official. Imports no torch: ``--help`` must be instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from boxquery.command_result import CommandResult
from boxquery.errors import UserError
from boxquery.flags import Options, Switch, is_hub_id
from boxquery.limits import check_above_zero
from boxquery.progress import note


def import_official(
    checkpoint: str,
    /,
    *,
    out: Path,
    model: str | None = None,
    classes: str | None = None,
    image_size: int | None = None,
    options: Options = None,
    download: Switch = False,
) -> CommandResult:
    """Convert a released checkpoint to a model folder: of a paper's authors or their code, or of Hugging Face's transformers.

    Wrappers around the tensors (``state_dict``, ``ema``, ``module.``) are opened; what was taken off is printed.

    Args:
        checkpoint: A file of torch or safetensors from the authors' code; or a folder that transformers wrote, or its hub id. Only tensors
            and values are read from it, nothing in it is executed.
        model: Model that a file is of (detr, dab-detr, ...); its options are read from the tensors. A folder says it itself.
        out: Model folder to write.
        classes: Class names by row of the class head, as a,b,c; an empty name is a row without a class. Default: a folder's own; COCO's
            for a head of COCO's size, otherwise class 0, class 1, ...
        image_size: Shortest side of the input in pixels, or side of the square. Default: a folder's own, or as published.
        options: An option that the tensors of a file do not show, as name=value; may be repeated. ``dilation=true`` for a DC5 checkpoint.
        download: Fetch a model from the hub also if it has more than 200 MB.
    """
    from boxquery.model_folder import save

    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    check_above_zero(image_size=image_size)
    names = [] if classes is None else [name.strip() or None for name in classes.split(",")]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"--classes names {', '.join(twice)} twice")
    if os.path.isdir(checkpoint) or is_hub_id(checkpoint):
        detector, report = _read_folder(checkpoint, model, options, names, image_size, download)
    else:
        detector, report = _read_file(Path(checkpoint), model, options, names, image_size)
    save(detector, out)
    for line in report["notes"]:
        note(line)
    text = f"{report['used']} tensors used, {report['constants']} known constants left out; the model is in {out}"
    return CommandResult({**report, "out": str(out)}, text=text)


def _read_file(path: Path, model: str | None, options: Any, names: list[str | None], image_size: int | None) -> tuple[Any, dict[str, Any]]:
    """The detector in a checkpoint of the authors' code, and a report."""
    from boxquery.model_folder import open_official
    from boxquery.official import list_official

    if model is None and not os.path.exists(path):
        raise UserError(
            f"{path}: no such file or folder; give a checkpoint file, a folder that transformers wrote, or its hub id (owner/name)"
        )
    if model is None:
        raise UserError(f"{path}: the file does not say which model it is; add --model, one of {', '.join(list_official())}")
    detector, report = open_official(path, model, options or {}, names, image_size)
    if not any(detector.classes):
        if report["rows"] is None:
            raise UserError(f"{path}: has no class head (class_embed); name the classes of a new one with --classes a,b,c")
        detector.classes[:] = [f"class {i}" for i in detector.ids]
        report["notes"].append(f"{path.name}: has no class names: they are called class 0, class 1, ... (--classes a,b,c names them)")
    return detector, report


def _read_folder(
    source: str, model: str | None, options: Any, names: list[str | None], image_size: int | None, download: bool
) -> tuple[Any, dict[str, Any]]:
    """The detector in a folder of transformers, and a report."""
    from boxquery.model_folder import find_folder
    from boxquery.transformers_folder import open_folder, read_config

    folder = find_folder(source, download=download)
    if (config := read_config(folder)) is None:
        raise UserError(f"{source}: is a folder, and not one of transformers with a config.json; give the checkpoint file in it")
    detector, report = open_folder(folder, config, image_size=image_size, names=names)
    if model not in (None, report["model"]):
        raise UserError(f"{source}: is a {report['model']}, not a {model}; leave --model out")
    if options:
        raise UserError(f"{source}: its {config.where} says its options; leave --option out")
    return detector, report
