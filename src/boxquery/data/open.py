"""Opening a data set: which layout a path is in, what its files say, and the validated result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from boxquery.data import coco, shapes, tools, voc, yolo
from boxquery.data.builtin import names_scenes
from boxquery.data.dataset import Data
from boxquery.data.folder import Folder, folders, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import RawDataset
from boxquery.data.scenes.open import holds_scenes
from boxquery.data.validation import validate
from boxquery.errors import UserError, some

_EXPECTED = "give a data folder, a COCO .json, a YOLO .yaml, or the word shapes or surround"
_LOOKED_FOR = (
    "looked for COCO .json, Pascal VOC .xml, YOLO data.yaml or classes.txt with .txt labels, and the formats of VIA, labelme, Supervisely, "
    "CVAT, Label Studio, CreateML and keras-yolo3"
)
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"})
_DEPTH = 3  # folders that are looked into for one that can be read
_LISTS = 20  # text files of a folder that may be lists of boxes
_LISTED = 5  # of what is there, in the message where nothing was found

Reader = Callable[[], RawDataset]


def open_data(
    source: str | Path, *, strict: bool = False, seed: int = 0, images: str | Path | None = None, annotations: str | Path | None = None
) -> Data:
    """A data set in COCO, Pascal VOC or YOLO layout or an annotation tool's own, or the built-in scenes: ``read`` and ``validate``.

    Labels are contiguous, every file was found, and every box is inside its image. Raises ``UserError`` as the two steps do.
    """
    return validate(read(source, images=images, annotations=annotations), strict=strict, seed=seed)[0]


def read(source: str | Path, *, images: str | Path | None = None, annotations: str | Path | None = None) -> RawDataset:
    """A data set as its files have it, before validation. The layout is recognised by looking.

    Args:
        source: a folder; a COCO ``.json``; a YOLO ``.yaml``; a file that an annotation tool wrote; or the word ``shapes`` for the built-in
            scenes, with options as in ``shapes:objects=12,size=320`` (the keywords of ``boxquery.data.shapes.shapes_data``).
        images: the folder of the images, where it is not found by itself: inside the data folder, relative to it or to the working
            directory, or an absolute path to anywhere.
        annotations: the folder or file of the annotations, likewise.

    Raises:
        UserError: the path or its content cannot be used.
    """
    if holds_scenes(source):
        raise UserError(f"{source}: scenes of several cameras, and this takes images; docs/surround.md says what takes scenes")
    if names_scenes(str(source), shapes.WORD):
        shapes.shapes_options(str(source))
        if images is not None or annotations is not None:
            raise UserError("shapes are drawn, not read: leave out --images and --annotations")
        raw = RawDataset("shapes", [], [], {})
    else:
        raw = _read_path(source, images, annotations)
    raw.source = str(source)
    return raw


def check_exists(source: str | Path) -> None:
    """Raise ``UserError`` for a path that is not there, and is no word for built-in scenes: at once, before anything large is imported."""
    if names_scenes(str(source), shapes.WORD) or holds_scenes(source):
        return
    try:
        exists = Path(source).expanduser().exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a path that can be read ({error})") from error
    if not exists:
        raise UserError(f"{source}: no such file or folder; {_EXPECTED}")


def _read_path(source: str | Path, images: str | Path | None, annotations: str | Path | None) -> RawDataset:
    check_exists(source)
    path = Path(os.path.abspath(Path(source).expanduser()))  # the readers compare paths, so theirs have no ".." left
    try:
        root = path if path.is_dir() else path.parent
        image_folder = None if images is None else _named(root, images, "--images")
        if image_folder is not None and not image_folder.is_dir():
            raise UserError(f"--images {images}: not a folder; give the one that holds the images")
        if annotations is not None and path.is_file():
            raise UserError(f"{source}: a file of annotations itself; give the data folder, or leave out --annotations")
        if annotations is not None:
            return _read_annotations(root, _named(root, annotations, "--annotations"), image_folder)
        if path.is_dir():
            os.scandir(path).close()  # is there the right to?
            return _read_folder(path, image_folder)
        return _read_file(path, image_folder)
    except OSError as error:  # no right to read, names longer than any file's
        name = str(error.filename)
        name = name if len(name) < 200 else f"{name[:100]}...{name[-80:]}"
        raise UserError(f"{path}: cannot be read ({error.strerror}: {name}); correct the path or the permissions") from error


def _named(root: Path, name: str | Path, flag: str) -> Path:
    """A place that the user names: inside the data folder, or absolute. Raises ``UserError`` if it is neither, or not there."""
    path = Path(name).expanduser()
    if path.is_absolute():
        if path.exists():
            return Path(os.path.abspath(path))
        raise UserError(f"{flag} {name}: no such file or folder")
    found = [place for place in (Path(os.path.abspath(root / path)), Path(os.path.abspath(path))) if place.exists()]
    inside = [place for place in found if place.is_relative_to(root)]
    if not found:
        raise UserError(f"{flag} {name}: no such file or folder in {root} or in the working directory")
    if not inside:
        raise UserError(f"{flag} {name}: {found[0]} is outside of the data folder {root}; give its absolute path if that is meant")
    Folder(root).check_link(inside[0], flag)
    return inside[0]


def _read_file(path: Path, images: Path | None, root: Path | None = None) -> RawDataset:
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES:
        raise UserError(f"{path}: an archive; unpack it, and give the folder")
    if suffix in (".yaml", ".yml", ".data"):
        return yolo.read(path.parent if root is None else root, path, images=images)
    if root is None:
        root = path.parent
        if images is None and coco.FOLDERS.match(root.name) and not _has_images(root):  # annotations/train.json: images beside the folder
            root = root.parent
    if suffix == ".json" and coco.looks_like_coco(path):
        return coco.read(root, [path], whole=True, images=images)
    if (kind := tools.recognise(path)) is not None:
        return tools.read(root, {kind: [path]}, images)
    if suffix == ".json":
        return coco.read(root, [path], whole=True, images=images)
    raise UserError(f"{path}: not a data set; {_EXPECTED}")


def _read_annotations(root: Path, place: Path, images: Path | None) -> RawDataset:
    """Annotations that the user names, of images in the data folder or in ``images``."""
    if not place.is_relative_to(root):
        root, images = (place if place.is_dir() else place.parent), images or root
    if place.is_file():
        return _read_file(place, images, root)
    for find in (coco.find, coco.find_deeper):
        if (found := find(place)).files:
            return coco.read(root, found.files, whole=len(found.files) == 1, images=images, left=found.left)
    if written := tools.find(place):
        return tools.read(root, written, images)
    kinds = {path.suffix.lower() for path in Folder(place).walk(place)}
    if ".xml" in kinds:
        return voc.read(root, images=images, annotations=place)
    if ".txt" in kinds:
        return yolo.read(root, yolo.find(root) or root, images=images, labels=place)
    raise UserError(f"{place}: no annotations found: {_content(place)}; {_LOOKED_FOR}")


def _read_folder(root: Path, images: Path | None) -> RawDataset:
    """A folder in the first layout that it matches, or else the only folder inside it that can be read."""
    if formats := _formats(root, images):
        return _read_first(root, formats)
    folder = Folder(root)
    level = [place for place in folders(root) if folder.holds(place)]
    for _ in range(_DEPTH):
        inner = {place: formats for place in level if (formats := _formats(place, images)) and (images or _has_images(place))}
        if len(inner) > 1:
            names = [f"{place.relative_to(root).as_posix()}/" for place in inner]
            raise UserError(f"{root}: several folders hold annotations: {some(names, _LISTED)}; give one of them")
        for place, formats in inner.items():
            raw = _read_first(place, formats)
            raw.notes.append(f"the data is in {place.relative_to(root).as_posix()}/")
            return raw
        level = [deep for place in level for deep in folders(place) if folder.holds(deep)]
    found = coco.find_deeper(root)
    if files := found.files or [file for file in visible(root, "*.json") if folder.holds(file)]:
        return coco.read(root, files, whole=len(files) == 1, images=images, left=found.left)
    if links := [folder.show(path) for path in _links(folder)]:
        raise UserError(
            f"{root}: no annotations found but {some(links, _LISTED)}: a link that leaves the data folder; put the files themselves there"
        )
    if voc.is_named_so(root):
        return voc.read(root, images=images)  # which says what is missing or broken
    raise UserError(f"{root}: no annotations found: {_content(root)}; {_LOOKED_FOR}")


def _links(folder: Folder) -> list[Path]:
    """What leads out of the data folder, in it or in the folders directly in it: nothing of it was opened."""
    return [path for place in (folder.root, *folders(folder.root)) for path in (*visible(place), *folders(place)) if not folder.holds(path)]


def _read_first(root: Path, formats: dict[str, Reader]) -> RawDataset:
    first, *others = formats
    raw = formats[first]()
    if others:
        raw.notes.append(f"{root.name}/ looks like {' and like '.join(formats)}; read as {first}")
    return raw


def _formats(root: Path, images: Path | None) -> dict[str, Reader]:
    """The formats that a folder itself is in, in the order of how sure their signs are, with what reads it."""
    formats: dict[str, Reader] = {}
    found = coco.find(root)
    files = found.files
    beside = bool(files) and files[0].parent == root  # the weakest sign
    if files and not beside:
        formats["coco"] = lambda: coco.read(root, files, images=images, left=found.left)
    if voc.find(root) and not any(tools.recognise(file) for file in visible(root, "*.xml")[:1]):
        formats["voc"] = lambda: voc.read(root, images=images)
    listed = any(tools.recognise(file) for file in visible(root, "*.txt")[:_LISTS])
    if (head := yolo.find(root)) is not None and not listed and ("voc" not in formats or yolo.holds_labels(Folder(root))):
        formats["yolo"] = lambda: yolo.read(root, head, images=images)
    if not (formats or beside) and (written := tools.find(root)):
        formats[next(iter(written))] = lambda: tools.read(root, written, images)
    if beside:
        formats["coco"] = lambda: coco.read(root, files, whole=len(files) == 1, images=images, left=found.left)
    return formats


def _has_images(root: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in Folder(root).walk(root))


def _content(root: Path) -> str:
    """What is in a folder, in words."""
    counts: Counter[str] = Counter()
    for path in Folder(root).walk(root):
        suffix = path.suffix.lower()
        counts["image" if suffix in IMAGE_SUFFIXES else suffix or "without ending"] += 1
    found = [f"{count} {kind}{'s' if kind == 'image' and count > 1 else ''}" for kind, count in counts.most_common(_LISTED)]
    inner = [f"{place.name}/" for place in folders(root)]
    text = f"there are {', '.join(found)}" if found else "it has no files"
    archives = [path.name for path in visible(root) if path.suffix.lower() in _ARCHIVES]
    if archives:
        return f"{text}; unpack {some(archives, _LISTED)}"
    return f"{text}, in {some(inner, _LISTED)}" if inner and found else text
