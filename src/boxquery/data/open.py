"""Opening a data set: which layout a path is in, what its files say, and the validated result."""

from __future__ import annotations

import os
from pathlib import Path

from boxquery.data import coco, voc, yolo
from boxquery.data.dataset import Data
from boxquery.data.folder import folders
from boxquery.data.raw import RawDataset
from boxquery.data.validation import validate
from boxquery.errors import UserError

_EXPECTED = "give a data folder, a COCO .json, a YOLO .yaml, or the word shapes"
_ABOVE = frozenset({"annotations", "labels"})  # a JSON in such a folder describes images beside the folder


def open_data(source: str | Path, *, strict: bool = False, seed: int = 0) -> Data:
    """A data set in COCO, Pascal VOC or YOLO layout, or the built-in scenes: ``read`` and ``validate``.

    Labels are contiguous, every file was found, and every box is inside its image. Raises ``UserError`` as the two steps do.
    """
    return validate(read(source), strict=strict, seed=seed)[0]


def read(source: str | Path) -> RawDataset:
    """A data set as its files have it, before validation. The layout is recognised by looking.

    Args:
        source: a folder; a COCO ``.json``; a YOLO ``.yaml``; or the word ``shapes`` for the built-in scenes.

    Raises:
        UserError: the path or its content cannot be used.
    """
    raw = RawDataset("shapes", [], [], {}) if str(source) == "shapes" else _read_path(source)
    raw.source = str(source)
    return raw


def _read_path(source: str | Path) -> RawDataset:
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a path that can be read ({error})") from error
    if not exists:
        raise UserError(f"{source}: no such file or folder; {_EXPECTED}")
    path = Path(os.path.abspath(path))  # the readers compare paths, so theirs have no ".." left
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except OSError as error:  # no right to read, names longer than any file's
        name = str(error.filename)
        name = name if len(name) < 200 else f"{name[:100]}...{name[-80:]}"
        raise UserError(f"{path}: cannot be read ({error.strerror}: {name}); correct the path or the permissions") from error


def _read_file(path: Path) -> RawDataset:
    match path.suffix.lower():
        case ".json":
            root = path.parent.parent if path.parent.name.lower() in _ABOVE else path.parent
            return coco.read(root, [path], whole=True)
        case ".yaml" | ".yml":
            return yolo.read(path.parent, path)
    raise UserError(f"{path}: not a data set; {_EXPECTED}")


def _read_folder(root: Path) -> RawDataset:
    """A folder in the first layout that it matches, or else the only folder inside it."""
    if (raw := _read_layout(root)) is not None:
        return raw
    inner = folders(root)
    if len(inner) == 1 and (raw := _read_layout(inner[0])) is not None:
        raw.notes.append(f"the data is in {inner[0].name}/")
        return raw
    raise UserError(f"{root}: no annotations found; looked for COCO .json, Pascal VOC .xml, YOLO data.yaml or classes.txt")


def _read_layout(root: Path) -> RawDataset | None:
    """COCO and YOLO by their own files, VOC by its folders; last, COCO by any JSON in the folder, the weakest sign."""
    files, head = coco.find(root), yolo.find(root)
    signs = {"coco": bool(files) and files[0].parent != root, "voc": voc.find(root), "yolo": head is not None}
    formats = [name for name, sign in signs.items() if sign]
    if not formats and not files:
        return None
    match formats[:1]:
        case ["voc"]:
            raw = voc.read(root)
        case ["yolo"] if head is not None:
            raw = yolo.read(root, head)
        case _:
            raw = coco.read(root, files, whole=len(files) == 1 and files[0].parent == root)
    if len(formats) > 1:
        raw.notes.append(f"{root.name}/ looks like {' and like '.join(formats)}; read as {formats[0]}")
    return raw
