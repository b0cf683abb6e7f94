"""What ``boxquery predict`` writes: pictures, videos, COCO's result format, YOLO, VOC, a table, a picture per box. Imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import BinaryIO, Literal, Self, get_args
from xml.etree import ElementTree

from boxquery.errors import UserError, encodable, printable
from boxquery.files import atomic_open, atomic_write, csv_lines
from boxquery.pages.images import encode
from boxquery.predict.sources import Item, Source
from boxquery.predict.video_output import VideoWriter
from boxquery.result import Result

Kind = Literal["pictures", "video", "json", "txt", "xml", "csv", "crops"]
#: what is written of each kind, in the output folder
PLACES: dict[Kind, str] = {
    "pictures": "pictures", "video": "videos", "json": "predictions.json", "txt": "labels", "xml": "annotations", "csv": "predictions.csv",
    "crops": "crops",
}  # fmt: skip
_CLASSES = "classes.txt"
_COLUMNS = (
    "file_name", "image_id", "width", "height", "class", "category_id", "score", "x1", "y1", "x2", "y2", "frame", "time", "track_id",
)  # fmt: skip
#: what a folder cannot be called on some file system
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


def check_kinds(words: Sequence[str]) -> list[Kind]:
    """``pictures,json`` or several words -> kinds. Raises ``UserError`` for one that does not exist."""
    kinds = [word.strip() for each in words for word in each.split(",") if word.strip()]
    for kind in kinds:
        if kind not in get_args(Kind):
            raise UserError(f"--save {kind}: choose from {', '.join(get_args(Kind))}")
    if not kinds:
        raise UserError(f"--save: name at least one of {', '.join(get_args(Kind))}")
    return [kind for kind in get_args(Kind) if kind in kinds]


def chosen_kinds(words: Sequence[str] | None, sources: Sequence[Source] | None) -> list[Kind]:
    """What is written: ``check_kinds``, or by default json, pictures of images and videos of videos.

    Args:
        sources: None: those that come are not known.

    Raises ``UserError`` where nothing of a kind could be written.
    """
    if sources is None:
        return check_kinds(words or ["pictures", "json"])
    moving = [source.has_frames for source in sources]
    if words is None:
        missing = {"pictures": all(moving), "video": not any(moving)}
        return [kind for kind in get_args(Kind) if not missing.get(kind, kind != "json")]
    kinds = check_kinds(words)
    if "video" in kinds and not any(moving):
        raise UserError("--save video: none of the sources is a video, camera or stream")
    return kinds


def new_folder(out: Path | None) -> Path:
    """The folder to write to; for None the first of ``predictions``, ``predictions-2``, ... that is free.

    Raises ``UserError`` for one that holds another result: the two would be mixed.
    """
    if out is None:
        number, out = 1, Path("predictions")
        while out.exists():
            number += 1
            out = Path(f"predictions-{number}")
        return out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder as --out")
    if held := [name for name in PLACES.values() if (out / name).exists()]:
        raise UserError(f"{out}: holds another result ({', '.join(held)}); choose another --out, or delete that one")
    return out


class ResultWriter:
    """Writes the results of images, one after the other, into a folder. Where that fails, what it has written is removed.

    Args:
        out: the folder.
        classes: class names by label.
        frame_pictures: whether "pictures" means those of frames, too.
    """

    def __init__(self, out: Path, kinds: Sequence[Kind], classes: Sequence[str | None], *, frame_pictures: bool = True):
        self.out, self.kinds, self.rows = out, kinds, 0
        self.classes, self.frame_pictures = list(classes), frame_pictures
        self.video: VideoWriter | None = None
        self.video_source: Source | None = None
        self.folders = _folder_names(classes)
        self.written: list[Path] = []
        self.stack = ExitStack()
        self.tables: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for kind in self.kinds:
                if kind in ("json", "csv"):
                    self.tables[kind] = stack.enter_context(atomic_open(self.out / PLACES[kind]))
                else:
                    _make_folder(self.out / PLACES[kind])
            stack.push(self._finish)
            self.stack = stack.pop_all()
        if "json" in self.kinds:
            self.tables["json"].write(b"[")
        if "csv" in self.kinds:
            self.tables["csv"].write(csv_lines([_COLUMNS]))
        if "txt" in self.kinds:
            self._write(self.out / _CLASSES, "".join(f"{_one_line(name)}\n" for name in self.classes).encode())
        return self

    def add(self, item: Item, result: Result) -> None:
        """Write what was found in an image or frame."""
        moment = {} if item.frame is None or item.time is None else {"frame": item.frame, "time": round(float(item.time), 4)}
        rows = [{"image_id": item.id, "file_name": item.name, **moment, **row} for row in result.to_coco(item.id)]
        drawn = result.draw() if self._draws(item) else None
        for kind in self.kinds:
            match kind:
                case "pictures":
                    if drawn is not None and (item.frame is None or self.frame_pictures):
                        self._write(self.out / "pictures" / f"{item.stem}.jpg", encode(drawn, quality=90))
                case "video":
                    if drawn is not None and item.time is not None:
                        self._video_of(item).add(drawn, item.time)
                case "json":
                    for number, row in enumerate(rows, self.rows):
                        self.tables["json"].write(("," if number else "").encode() + b"\n" + json.dumps(row).encode())
                case "txt":
                    self._write(self.out / "labels" / f"{item.stem}.txt", _yolo_lines(result).encode())
                case "xml":
                    self._write(self.out / PLACES["xml"] / f"{item.stem}.xml", voc_xml(item, result))
                case "csv":
                    for row, name, box in zip(rows, result.names, result.boxes.tolist(), strict=True):
                        corners = [round(value, 2) for value in box]
                        size = result.size[1], result.size[0]
                        moment = row.get("frame"), row.get("time"), row.get("track_id")
                        cells = (item.name, item.id, *size, name, row["category_id"], row["score"], *corners, *moment)
                        self.tables["csv"].write(csv_lines([cells]))
                case "crops":
                    self._crops(item, result)
        self.rows += len(rows)

    def _draws(self, item: Item) -> bool:
        """Whether a picture with boxes is needed."""
        if item.frame is None:
            return "pictures" in self.kinds
        return "video" in self.kinds or ("pictures" in self.kinds and self.frame_pictures)

    def _video_of(self, item: Item) -> VideoWriter:
        """The video that an item's frame goes into; that of the source before it is completed."""
        if self.video is None or self.video_source is not item.source:
            self._end_video(None, None, None)
            self.video = VideoWriter(self.out / PLACES["video"] / f"{item.source.stem}.mp4", item.rate, item.time_base).__enter__()
            self.video_source = item.source
        return self.video

    def _end_video(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        video, self.video = self.video, None
        if video is not None:
            video.__exit__(kind, error, trace)
            self.written.append(video.path)

    def _crops(self, item: Item, result: Result) -> None:
        image = result.pixels()
        for number, (label, (x1, y1, x2, y2)) in enumerate(zip(result.labels.tolist(), result.boxes.tolist(), strict=True)):
            left, top = min(int(x1), image.width - 1), min(int(y1), image.height - 1)
            crop = image.crop((left, top, max(left + 1, round(x2)), max(top + 1, round(y2))))
            self._write(self.out / "crops" / self.folders[label] / f"{item.stem}-{number}.jpg", encode(crop, quality=95))

    def _write(self, path: Path, content: bytes) -> None:
        self.written.append(atomic_write(path, content))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stack.__exit__(kind, error, trace)
        except BaseException:
            self._remove()
            raise
        if error is not None:
            self._remove()

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_video(kind, error, trace)
        if error is None and "json" in self.tables:
            self.tables["json"].write(b"\n]\n")

    def _remove(self) -> None:
        for path in self.written:
            path.unlink(missing_ok=True)
        for folder, _, _ in os.walk(self.out, topdown=False):
            with suppress(OSError):  # what is not empty is not ours
                os.rmdir(folder)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room, or write elsewhere") from error


def voc_xml(item: Item, result: Result) -> bytes:
    """Pascal VOC's file of an image; corners are pixel edges, as our reader and most tools take them. ``score`` is not VOC's."""
    height, width = result.size
    root = ElementTree.Element("annotation")
    _child(root, "folder", PurePath(item.name).parent.as_posix())
    _child(root, "filename", PurePath(item.name).name if item.frame is None else f"{PurePath(item.stem).name}.jpg")
    size = _child(root, "size")
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        _child(size, name, str(value))
    for name, (x1, y1, x2, y2), score in zip(result.names, result.boxes.tolist(), result.scores.tolist(), strict=True):
        found = _child(root, "object")
        for tag, text in (("name", _one_line(name)), ("truncated", "0"), ("difficult", "0"), ("score", f"{score:.5f}")):
            _child(found, tag, text)
        box = _child(found, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1, y1, x2, y2), strict=True):
            _child(box, tag, f"{value:.2f}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _child(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    return child


def _yolo_lines(result: Result) -> str:
    """Label, centre, size in shares of the image, and score, a line per box."""
    height, width = result.size
    lines = []
    for label, (x1, y1, x2, y2), score in zip(result.labels.tolist(), result.boxes.tolist(), result.scores.tolist(), strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values), f"{score:.5f}"]))
    return "".join(f"{line}\n" for line in lines)


def _one_line(name: str | None) -> str:
    return "" if name is None else printable(" ".join(name.split()))


def _folder_names(classes: Sequence[str | None]) -> list[str]:
    """A folder name per class, safe on every file system, and unique even where case is ignored."""
    names: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(classes):
        safe = _UNSAFE.sub("_", encodable(name or "")).strip(" .").encode()[:100].decode(errors="ignore") or f"class {label}"
        while safe.casefold() in taken:
            safe = f"{safe} ({label})"
        taken.add(safe.casefold())
        names.append(safe)
    return names
