"""Finding the image that annotations name: the exact path, or else the one file inside the data folder that the name can mean.

Tools write names that are right but for their folder, case, ending or encoding: URLs, paths of another machine, upload prefixes. Such a
name is looked up by its last parts among the image files of the data folder, and used where only one file fits. Nothing outside the
folder is opened.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from boxquery.data.folder import Folder, is_of_masks, path_parts, split_words
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import NO_FILE, Fault, RawDataset

_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}$")
_UPLOAD = re.compile(r"^[0-9a-f]{6,32}[-_]")  # Label Studio's
_ROBOFLOW = re.compile(r"_(?:jpe?g|png|bmp|webp|tiff?)[._]rf\.[0-9a-z]{8,}$")


@dataclass(frozen=True, slots=True)
class _Inference:
    """A file that was found otherwise than by its exact path: the name as given, and what had to be passed over."""

    name: str
    path: Path
    how: str


class ImageFinder:
    """Looks for images by the names that annotations give; create one per data folder, and end with ``finish``.

    The files of the folder are listed once, and only when an exact path does not exist.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self._files: list[Path] | None = None
        self._tables: dict[int, dict[str, list[Path]]] = {}
        self._exact: set[Path] = set()
        self._inferred: dict[str, _Inference] = {}
        self._missing: dict[str, Fault] = {}
        self._outside: dict[str, tuple[Path, str]] = {}

    def find(self, base: Path, name: str, where: str, split: str = "") -> Path:
        """The file of an image, which does not exist if none fits or several do: ``finish`` then sets ``RawImage.fault``.

        Args:
            base: the folder that names are relative to.
            name: as the annotations have it.
            where: the image in messages; ``RawImage.where`` of the image must be the same.
            split: "train", "val" or "test" where it is known; files in folders of another split are not used, unless named exactly.

        Raises:
            UserError: the exact path is a link that leaves the data folder.
        """
        folder = self.folder
        if outside := folder.leaves(base, name):
            exact = folder.root.joinpath(*(part.replace("\0", "") for part in path_parts(name)))
        else:
            exact = folder.join(base, name, where)
            if os.path.isfile(exact):
                self._exact.add(exact)
                return exact
        path, words = self._look_up(base, name, split)
        if path is not None:
            self._inferred[where] = _Inference(name, path, words)
            return path
        if outside and not words:
            self._outside[where] = base, name
        place, last = folder.show(base), (path_parts(name) or [name])[-1]
        near = f"looked in {'the data folder' if place == '.' else place + '/'}, and for {_quoted(last)} in all folders of the data"
        self._missing[where] = Fault(NO_FILE, f"{_quoted(name)}; {words or near}")
        return exact

    def best_base(self, names: list[str], split: str = "") -> Path | None:
        """The folder from which most of the names are exact paths; None if there is none, or several."""
        counts: Counter[Path] = Counter()
        for parts in filter(None, map(path_parts, names)):
            for path in self._table(0).get(_name_key(parts[-1]), []):
                if path.parts[-len(parts) :] == tuple(parts) and not self._other_split(path, {split} if split else set()):
                    counts[Path(*path.parts[: -len(parts)])] += 1
        most = counts.most_common(2)
        return most[0][0] if most and (len(most) == 1 or most[0][1] > most[1][1]) else None

    def finish(self, raw: RawDataset) -> None:
        """Add a note per kind of inference, and say of every image that was not found why (``RawImage.fault``).

        Two names that lead to one file lead to none: their images are invalid, unless the name is the exact path.

        Raises:
            UserError: a name leaves the data folder, nothing inside fits it, nor any other name with the same leading folders.
        """
        served = {_prefix(entry.name) for entry in self._inferred.values()}
        for where, (base, name) in self._outside.items():
            if _prefix(name) not in served:
                self.folder.join(base, name, where)
        names: dict[Path, set[str]] = defaultdict(set)
        for entry in self._inferred.values():
            names[entry.path].add(entry.name)
        kinds: dict[str, list[_Inference]] = defaultdict(list)
        for where, entry in self._inferred.items():
            rivals = sorted(names[entry.path] - {entry.name})
            if rivals or entry.path in self._exact:
                other = _quoted(rivals[0]) if rivals else "an exact path"
                near = f"{self.folder.show(entry.path)} would fit, but {other} means it too"
                self._missing[where] = Fault(NO_FILE, f"{_quoted(entry.name)}; {near}")
            else:
                kinds[entry.how].append(entry)
        for how, entries in kinds.items():
            count = "1 image is" if len(entries) == 1 else f"{len(entries)} images are"
            example = f"{_quoted(entries[0].name)} is {self.folder.show(entries[0].path)}"
            raw.notes.append(f"{count} found {how}: {example}")
        for images in raw.splits.values():
            for image in images:
                image.fault = image.fault or self._missing.get(image.where)
        gone = {split for split, images in raw.splits.items() if images and all(image.where in self._missing for image in images)}
        for split in gone if any(raw.splits[split] for split in set(raw.splits) - gone) else ():
            images = raw.splits[split]
            example, boxes = images[0].fault, sum(len(image.objects) for image in images)
            raw.absent[split] = f"none of its {len(images)} images is there ({example})"
            raw.notes.append(f"none of the {len(images)} images of {split} is there ({example}): left out with its {boxes} boxes")
            del raw.splits[split]

    def _look_up(self, base: Path, name: str, split: str) -> tuple[Path | None, str]:
        """The file that a name can mean, and what was passed over; or None, and why the files that come near are not used."""
        variants = [parts for parts in _variants(name) if parts]
        wanted = {split} if split else self._splits(base).union(*(split_words(parts[:-1]) for parts in variants))
        other: list[Path] = []
        for level, keys in enumerate(_LEVELS):
            ranks: dict[Path, tuple[int, bool, bool, bool]] = {}
            used: dict[Path, list[str]] = {}
            for parts in variants:
                for path in (path for key in keys.of_name(parts[-1]) for path in self._table(level).get(key, [])):
                    if self._other_split(path, wanted):
                        other.append(path)
                        continue
                    photograph = not is_of_masks(path.relative_to(self.folder.root).parts[:-1])
                    rank = _common_folders(parts, path), photograph, path.is_relative_to(base), parts[-1] == path.name
                    if path not in ranks or rank > ranks[path]:
                        ranks[path], used[path] = rank, parts
            best = [path for path, rank in ranks.items() if rank == max(ranks.values())]
            if len(best) == 1:
                return best[0], _how(name, used[best[0]], best[0], level, ranks[best[0]][0])
            if best:
                shown = " and ".join(self.folder.show(path) for path in sorted(best)[:2])
                return None, f"{len(best)} files could be meant ({shown})"
        return None, f"{self.folder.show(other[0])} is of another split" if other else ""

    def _table(self, level: int) -> dict[str, list[Path]]:
        """The image files of the folder by their keys of a level (see ``_LEVELS``)."""
        if self._files is None:
            files = self.folder.walk(self.folder.root)
            self._files = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and self.folder.holds(path)]
        if level not in self._tables:
            table = self._tables[level] = defaultdict(list)
            for path in self._files:
                for key in _LEVELS[level].of_file(path.name):
                    table[key].append(path)
        return self._tables[level]

    def _splits(self, path: Path) -> set[str]:
        return split_words(path.relative_to(self.folder.root).parts if path.is_relative_to(self.folder.root) else ())

    def _other_split(self, path: Path, wanted: set[str]) -> bool:
        found = self._splits(path.parent)
        return bool(found and wanted and not found & wanted)


def _quoted(name: str) -> str:
    """A name in quotes, with back slashes as they are."""
    return repr(name).replace("\\\\", "\\")


def _prefix(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[0]


def _variants(name: str) -> Iterator[list[str]]:
    """Parts of the path that a name can mean: itself, without a query, and what a query names (``?d=folder/a.png``)."""
    yield path_parts(name)
    if "?" in name or "#" in name:
        yield path_parts(re.split(r"[?#]", name)[0])
        for value in re.split(r"[?&]", name)[1:]:
            yield path_parts(unquote(value.partition("=")[2]))
    if "%" in name:
        yield path_parts(_decoded(name))


def _decoded(text: str) -> str:
    for _ in range(3):  # %2520 is an encoded %20
        text = unquote(text)
    return text


def plain(text: str) -> str:
    """A file name, or a part of one, without case, percent-encoding and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", _decoded(text)).casefold()).strip()


def _name_key(text: str) -> str:
    """Without case, percent-encoding and Unicode form; of a file whose own name holds a path with back slashes, the last part."""
    return plain(text.replace("\\", "/").rpartition("/")[2])


def _stem(key: str) -> str:
    return _ENDING.sub("", key)


def _spaces(key: str) -> str:
    return re.sub(r"[\s+_]+", "_", key)


def _without_prefix(key: str) -> list[str]:
    """What a tool that renames files added to a stem is taken away; empty if there is nothing of the kind."""
    short = (_UPLOAD.sub("", key), _ROBOFLOW.sub("", key))
    return [_spaces(text) for text in short if text not in ("", key)]


@dataclass(frozen=True, slots=True)
class _Level:
    """Under which keys a file is listed, under which a name is looked up, and how a file found so is spoken of."""

    of_file: Callable[[str], list[str]]
    of_name: Callable[[str], list[str]]
    words: str


def _stems(text: str) -> list[str]:
    return [_stem(_name_key(text))]


def _spaced_stems(text: str) -> list[str]:
    return [_spaces(stem) for stem in _stems(text)]


def _short_stems(text: str) -> list[str]:
    return _without_prefix(_stem(_name_key(text)))


_LEVELS = (
    _Level(lambda text: [_name_key(text)], lambda text: [_name_key(text)], ""),
    _Level(_stems, lambda text: list(dict.fromkeys((_name_key(text), *_stems(text)))), "with another ending"),
    _Level(_spaced_stems, _spaced_stems, "with other spaces and underscores"),
    _Level(_spaced_stems, _short_stems, "without what a tool added to the name"),
    _Level(_short_stems, _spaced_stems, "with what a tool added to the file's name"),
)
"""From strict to loose: but for case and encoding, ending, spaces; with something added in the name, or in the file's."""


def _common_folders(parts: list[str], path: Path) -> int:
    """How many last folders of a name are those of a file."""
    pairs = zip(reversed(parts[:-1]), reversed(path.parts[:-1]), strict=False)
    return len(list(itertools.takewhile(lambda pair: plain(pair[0]) == plain(pair[1]), pairs)))


def _how(name: str, parts: list[str], path: Path, level: int, common: int) -> str:
    """How a file was found, in words: which folders of its name were passed over, and what differs in the last part."""
    words = []
    if common < len(parts) - 1:
        words.append("by the end of their path" if common else "by their file name alone")
    last = parts[-1]
    if level:
        words.append(_LEVELS[level].words)
    elif (last != path.name or parts != path_parts(name)) and "%" in name + path.name:
        words.append("with percent-encoding undone")
    elif last.casefold() != path.name.casefold():
        words.append("in another Unicode form")
    elif last != path.name:
        words.append("in another case")
    return ", ".join(words) or "in another folder"
