"""Detectors in files: a folder with ``config.json`` and ``model.safetensors``, on disk or on the hub. Nothing in it is executed."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.errors import UserError, first_line
from boxquery.files import atomic_write
from boxquery.flags import BUNDLED, check_model
from boxquery.hub import Unavailable, find_model, one_at_a_time
from boxquery.models import create_model, list_scene_models, preset
from boxquery.models.interface import Model
from boxquery.models.options import migrate_options
from boxquery.official import is_real
from boxquery.official.checkpoint import open_checkpoint
from boxquery.official.coco import CATEGORIES, ROWS
from boxquery.progress import note
from boxquery.scene_detector import SceneDetector
from boxquery.transformers_folder import open_folder, read_config

CONFIG, WEIGHTS = "config.json", "model.safetensors"
Loaded = Detector | SceneDetector
#: version of ``config.json``, see ``migrate``
FORMAT = 3
CHECK_SUM = "crc32"
"""Key of the weights' metadata: the format has no check sum, and a flipped bit would give wrong detections. The only key, since safetensors
writes several in any order and equal weights would become different files."""


def save(detector: Loaded, folder: str | Path, *, epoch: Mapping[str, Any] | None = None) -> Path:
    """Write ``config.json`` and ``model.safetensors``, each atomically. Raises ``UserError`` if they cannot be written.

    Args:
        epoch: of a run, whose weights these are: its number, and why it was kept. For readers.
    """
    folder = Path(folder)
    weights = {k: v.detach().cpu().contiguous() for k, v in detector.model.state_dict().items()}
    config = {
        "library": "boxquery",
        "format": FORMAT,
        "model": detector.model.config,
        "classes": detector.classes,
        "ids": detector.ids,
        "preprocessing": detector.preprocessing.to_dict(),
        "threshold": detector.threshold,
        **({"size": list(detector.resize.images)} if isinstance(detector, SceneDetector) else {}),
        **({"epoch": dict(epoch)} if epoch else {}),
    }
    atomic_write(folder / WEIGHTS, to_bytes(weights, metadata={CHECK_SUM: _check_sum(weights)}))
    atomic_write(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    return folder


def push_to_hub(detector: Loaded, repo_id: str, *, private: bool = False) -> str:
    """Upload to the hub; returns the address. Needs a login there."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return str(api.upload_folder(repo_id=repo_id, folder_path=save(detector, Path(folder) / "model")))


def load(source: str | Path, *, download: bool = False, say: Callable[[str], Any] = note) -> Detector:
    """``open_model`` for a model of images. Raises ``UserError`` for one of scenes."""
    detector = open_model(source, download=download, say=say)
    if not isinstance(detector, Detector):
        kind = "finds 3-D boxes in scenes of several cameras"
        raise UserError(f"{source}: {detector.name} {kind}; give it such scenes (docs/surround.md), or take a model of images")
    return detector


def load_scenes(source: str | Path, *, download: bool = False, say: Callable[[str], Any] = note) -> SceneDetector:
    """``open_model`` for a model of scenes. Raises ``UserError`` for one of images."""
    detector = open_model(source, download=download, say=say)
    if not isinstance(detector, SceneDetector):
        names = " or ".join(list_scene_models())
        raise UserError(f"{source}: {detector.name} finds boxes in images; scenes of several cameras need {names}")
    return detector


def open_model(source: str | Path, *, download: bool = False, say: Callable[[str], Any] = note) -> Loaded:
    """Load a detector from a run folder, a model folder, a folder of Hugging Face's transformers, a hub id of either, or ``shapes``.

    ``shapes`` is the model that comes with the library, trained on drawn scenes (docs/transfer.md).

    Args:
        download: fetch a model from the hub also if it has more than 200 MB.
        say: is called with a line for everything that is fetched or assumed; printed on stderr if it is left out.

    A model of your own must be registered first (``boxquery.models.register``): the file holds its name alone. Raises ``UserError``.
    """
    folder, run = find_folder(source, download=download, say=say), None
    if (folder / "model" / CONFIG).is_file():
        run, folder = folder, folder / "model"
    if (config := read_config(folder)) is not None:
        detector, report = open_folder(folder, config)
        for line in report["notes"]:
            say(line)
        return detector
    if not (folder / CONFIG).exists() and (folder / "config.yaml").is_file():
        raise UserError(f"{source}: no epoch of this run has finished yet, so it has no model; let it train on (boxquery train --resume)")
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{source}: neither a run nor a model folder ({CONFIG} and {WEIGHTS} are looked for, also under model/)")
    detector = _build(folder / CONFIG)
    _fill(detector.model, folder / WEIGHTS)
    detector.run = run
    return detector


def find_folder(source: str | Path, *, download: bool = False, say: Callable[[str], Any] = note) -> Path:
    """The folder that ``source`` is, or that the hub's cache has of it, fetched if need be. Raises ``UserError`` where there is none."""
    check_model(str(source))
    if (folder := Path(source)).is_dir():
        return folder
    if str(source) in BUNDLED:
        return bundled(str(source))
    try:
        with one_at_a_time(str(source)):
            model = find_model(str(source))
            if model.folder is not None:
                say(f"{model}, from the hub's cache")
            return model.fetch(large=download, say=say)
    except Unavailable as error:
        advice = "; unset it to ask the hub, or give the path of a folder" if constants.HF_HUB_OFFLINE else ""
        raise Unavailable(f"{source}: no such folder here, and as a hub id: {error}{advice}") from error


def holds_scene_model(folder: Path) -> bool:
    """Whether a run or model folder is of a model of scenes of several cameras, without loading it; no where that cannot be read."""
    for path in (folder / "model" / CONFIG, folder / CONFIG):
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))["model"]["name"] in list_scene_models()
            except (OSError, ValueError, RecursionError, KeyError, TypeError):  # what loads it says so
                return False
    return False


def bundled(name: str) -> Path:
    """Where a model that comes with the library is; benchmarks/bundled.py makes it."""
    return Path(__file__).parent / BUNDLED[name]


def migrate(config: dict[str, Any]) -> dict[str, Any]:
    """What any version wrote into ``config.json``, as this one writes it. Raises ``UserError`` for a newer format.

    Format 1, without a number: ``image_size`` in place of ``preprocessing``. Until format 2 the option ``denoising`` was 0 for none.
    """
    if (found := config.get("format", 1)) > FORMAT:
        raise UserError(f"format {found} is of a newer boxquery, this one reads up to {FORMAT}; update it")
    if found == 1:
        config = {**config, "preprocessing": {"image_size": config["image_size"]}}
    if found < FORMAT:
        config = {**config, "model": {**config["model"], "options": migrate_options(config["model"]["options"])}}
    return config


def _build(path: Path) -> Loaded:
    """The detector that ``config.json`` describes, with random weights. Raises ``UserError``."""
    try:
        config = migrate(json.loads(path.read_text(encoding="utf-8")))
        made, classes = config["model"], config["classes"]
        if not all(name is None or isinstance(name, str) for name in classes):
            raise TypeError("classes should be words")
        # all options of then are in the file: what it lacks came later, and a preset may have changed with it
        options = {**asdict(type(preset(made["name"], made["preset"]).options)()), **made["options"]}
        model = create_model(made["name"], classes=made["classes"], preset=made["preset"], **options)
        if made["frozen"]:
            model.freeze()
        parts = model.eval(), classes, config["ids"], Preprocessing.from_dict(config["preprocessing"])
        if model.task == "boxes3d":
            return SceneDetector(*parts, tuple(config["size"]), config["threshold"])
        return Detector(*parts, config["threshold"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a boxquery model's configuration ({type(error).__name__}: {first_line(error)})") from error


def _fill(model: Model, path: Path) -> None:
    """Load weights whose check sum matches and which are finite. Raises ``UserError``."""
    try:
        with safe_open(path, "pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if metadata.get(CHECK_SUM, "") not in ("", _check_sum(weights)):
            raise UserError(f"{path}: damaged, its check sum is another; copy it again")
        if wrong := first_mismatch(weights, model.state_dict()):
            raise UserError(f"{path}: does not hold the weights that {CONFIG} describes: {wrong}")
        for name, tensor in weights.items():
            if is_real(tensor) and not tensor.isfinite().all():
                raise UserError(f"{path}: {name} contains NaN or inf; use another state of this model")
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: does not hold the weights that {CONFIG} describes ({first_line(error)})") from error


def open_official(
    path: Path, name: str, given: dict[str, Any], classes: Sequence[str | None] = (), image_size: int | None = None
) -> tuple[Detector, dict[str, Any]]:
    """A detector from a checkpoint in the names of a paper's authors, with the report of ``open_checkpoint``.

    Images are resized as published, to ``image_size`` if that is given.

    Without ``classes``, a head with a row per id of COCO, or per category, has COCO's names (none for an unused id), and any other has
    none: the file does not say what it was trained on. A class head that is missing is new, with a row per name in ``classes``, or one.
    Raises ``UserError``.
    """
    model, report = open_checkpoint(path, name, given, max(len(classes), 1))
    rows, ids = report["rows"], list(range(model.config["classes"]))
    names = list(classes)
    if rows is None:
        report["notes"].append(f"{path.name}: has no class head (class_embed): a new one, which has to be trained")
    elif not names and rows in (ROWS, len(CATEGORIES)):
        ids = list(range(ROWS)) if rows == ROWS else list(CATEGORIES)
        names = [CATEGORIES.get(i) for i in ids]
        report["notes"].append(f"{path.name}: its class head has COCO's {rows} rows, so its classes get COCO's names")
    elif names and len(names) != rows:
        raise UserError(
            f"{path}: its class head has {rows} rows, but --classes has {len(names)} names; a row without a class is an empty name"
        )
    recipe = preset(name).recipe
    preprocessing = Preprocessing.of(image_size or recipe.image_size, square=recipe.square, normalize=recipe.normalize)
    return Detector(model, names or [None] * len(ids), ids, preprocessing), report


def first_mismatch(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing on one side or differs in shape or kind of values, in words; empty if there is none."""
    for name in [*expected, *found]:
        there, here = (_describe(tensors[name]) if name in tensors else "missing" for tensors in (found, expected))
        if there != here:
            return f"{name} is {there} in the file, {here} in the model"
    return ""


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" + ("" if is_real(tensor) else f" of {tensor.dtype}")


def _check_sum(weights: Mapping[str, Tensor]) -> str:
    """CRC-32 over the bytes of all tensors, by name."""
    total = 0
    for name in sorted(weights):
        total = zlib.crc32(weights[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
