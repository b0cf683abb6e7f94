"""The way in: a word or a path to a data set, checked."""

from __future__ import annotations

import os
from pathlib import Path

from boxquery.data import coco, voc, yolo
from boxquery.data.dataset import Data
from boxquery.data.raw import RawDataset
from boxquery.data.shapes import shapes_data
from boxquery.data.validation import checked
from boxquery.errors import UserError

_ABOVE = frozenset({"annotations", "labels"})  # a JSON in such a folder speaks of images beside the folder


def open_data(source: str | Path, *, strict: bool = False, seed: int = 0) -> Data:
    """A data set in COCO, Pascal VOC or YOLO layout, recognised by looking, or the built-in scenes.

    Args:
        source: a folder; a COCO ``.json``; a YOLO ``.yaml``; or the word ``shapes``.
        strict: boxes and images at fault are fatal instead of skipped and named in ``Data.skipped``.
        seed: decides which images are held out as "val" where the data has none, and what the scenes are.

    Returns:
        Data with contiguous labels, in which every file was found and every box is inside its image.

    Raises:
        UserError: the path or its content cannot be used.
    """
    if str(source) == "shapes":
        return shapes_data(seed=seed)
    data, _ = checked(list_data(source), str(source), strict=strict, seed=seed)
    return data


def list_data(source: str | Path) -> RawDataset:
    """What the files of a data set say, before anything is checked.

    Raises:
        UserError: the path or its content cannot be used.
    """
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a path that can be read ({error})") from error
    if not exists:
        raise UserError(f"{source}: no such file or folder; give a data folder, a COCO .json, a YOLO .yaml, or the word shapes")
    path = Path(os.path.abspath(path))  # the readers compare paths, so theirs have no ".." left
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except OSError as error:  # no right to read, names longer than any file's
        name = str(error.filename)
        name = name if len(name) < 200 else f"{name[:100]}...{name[-80:]}"
        raise UserError(f"{path}: cannot be read ({error.strerror}: {name}); correct the path or the rights") from error


def _file(path: Path) -> RawDataset:
    match path.suffix.lower():
        case ".json":
            root = path.parent.parent if path.parent.name.lower() in _ABOVE else path.parent
            return coco.read(root, [path], whole=True)
        case ".yaml" | ".yml":
            return yolo.read(path.parent, path)
    raise UserError(f"{path}: not a data set; give a data folder, a COCO .json, a YOLO .yaml, or the word shapes")


def _folder(root: Path) -> RawDataset:
    """Reads a folder in the first layout it shows, or the only folder inside it."""
    listing = _layout(root)
    inner = [place for place in root.iterdir() if place.is_dir() and not place.name.startswith(".")]
    if listing is None and len(inner) == 1:
        listing = _layout(inner[0])
        if listing is not None:
            listing.notes.append(f"the data is in {inner[0].name}/")
    if listing is None:
        raise UserError(f"{root}: no annotations found; looked for COCO .json, Pascal VOC .xml, YOLO data.yaml or classes.txt")
    return listing


def _layout(root: Path) -> RawDataset | None:
    """COCO and YOLO by their own files, VOC by its folders; then COCO by any JSON in the folder, the weakest sign."""
    files = coco.find(root)
    head = yolo.find(root)
    signs = {
        "coco": bool(files) and files[0].parent != root,
        "voc": voc.find(root),
        "yolo": head is not None,
    }
    seen = [name for name, sign in signs.items() if sign]
    if not seen and files:
        seen = ["coco"]
    if not seen:
        return None
    match seen[0]:
        case "coco":
            listing = coco.read(root, files, whole=len(files) == 1 and files[0].parent == root)
        case "voc":
            listing = voc.read(root)
        case _:
            assert head is not None
            listing = yolo.read(root, head)
    if len(seen) > 1:
        listing.notes.append(f"{root.name}/ looks like {' and like '.join(seen)}; read as {seen[0]}")
    return listing
