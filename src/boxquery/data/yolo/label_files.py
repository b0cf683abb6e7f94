"""Which text file holds the labels of an image, and which text files are label files at all."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from boxquery.data.find import plain
from boxquery.data.folder import Folder, split_name, split_words, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.yolo.lines import begins_like_labels, looks_like_labels
from boxquery.data.yolo.settings import is_class_list
from boxquery.data.yolo.splits import ListedImage, SplitSource, without_case
from boxquery.errors import UserError, count, some

TEXT = frozenset({".txt"})
_LABELS = ("labels", "labeltxt", "label", "labels_txt")
_LOOKS = 200  # text files whose first line is looked at, to tell whether a folder holds labels
_LISTS_OF_IMAGES = frozenset({"train", "val", "valid", "validation", "test", "trainval", "all", "list", "images"})


class LabelFiles:
    """The label file of each image: where it belongs, or in the folder that fits."""

    def __init__(self, folder: Folder, pictures: Folder, labels: Path | None):
        self._folder = folder
        self._pictures = pictures
        self._labels = labels
        self._listings: dict[Path, dict[str, Path]] = {}
        self._places: dict[Path, list[Path]] = {}
        self._used: set[Path] = set()
        self._siblings: dict[Path, Path] = {}
        self._strays: dict[Path, Path] = {}
        self._areas: set[Path] = set()
        self._unused = 0
        self._prose: list[Path] = []

    def of(self, image: Path) -> Path | None:
        """The label file, or None where there is none."""
        for place in self._where(image.parent):
            found = self._in(place, image.name)
            if found is not None:
                self._used.add(found)
                return found
        return self._strays.get(image)

    def pair(self, groups: Iterable[Iterable[ListedImage]]) -> None:
        """For folders of images none of which has a label file where it belongs, take the one folder of text files whose names fit."""
        members: dict[Path, set[str]] = defaultdict(set)
        for image in (image for group in groups for image in group):
            members[image.path.parent].add(image.path.name)
        bare = {place: names for place, names in members.items() if not any(self.of(place / name) for name in names)}
        if not bare:
            return
        taken = {path.parent for path in self._used}
        places = {path.parent for path in self._folder.files(self._labels or self._folder.root, TEXT)} - taken
        for place, names in bare.items():
            fits: dict[Path, tuple[int, int]] = {}
            for other in places:
                shared = sum(self._in(other, name) is not None for name in names)
                if shared and not _contradict(self._parts(place), self._parts(other)):
                    fits[other] = shared, len(set(self._parts(place)) & set(self._parts(other)))
            best = [other for other, fit in fits.items() if fit == max(fits.values())]
            if len(best) == 1:
                self._siblings[place] = best[0]
            self._areas |= {other.parent for other in best if len(fits) > 1} - {self._folder.root}

    def gather(self, groups: Iterable[Iterable[ListedImage]]) -> None:
        """For images that still have no label file, take the only one of their name below the folders of labels, but of no other split."""
        images = [image.path for group in groups for image in group]
        bare: dict[str, set[Path]] = defaultdict(set)
        for path in images:
            if self.of(path) is None:
                bare[plain(path.stem)].add(path)
        if not bare:
            return
        areas = {self._labels} if self._labels else self._areas | {root for path in self._used if (root := self._labels_root(path.parent))}
        if not self._labels:
            areas |= {place for images_at in {path.parent for path in images} for place in self._swapped(images_at)}
        found: dict[str, set[Path]] = defaultdict(set)
        for path in {path for area in areas if area is not None for path in self._folder.files(area, TEXT)} - self._used:
            if plain(path.stem) in bare:
                found[plain(path.stem)].add(path)
        for key, texts in found.items():
            for image in bare[key] if len(bare[key]) == 1 or len({path.parent for path in bare[key]}) == 1 else ():
                fits = [text for text in texts if not _contradict(self._parts(image.parent), self._parts(text.parent))]
                if len(fits) == 1:
                    self._strays[image] = fits[0]
                    self._used.add(fits[0])

    def _labels_root(self, place: Path) -> Path | None:
        """The folder ``labels`` that a place is in."""
        parts = self._parts(place) if place.is_relative_to(self._folder.root) else ()
        ends = [i for i, part in enumerate(parts, 1) if part.casefold() in _LABELS]
        return self._folder.root.joinpath(*parts[: ends[-1]]) if ends else None

    def split_of(self, text: Path) -> str | None:
        """The split that the folder of a label file is named after."""
        return next((name for part in reversed(self._parts(text.parent)) if (name := split_name(part))), None)

    def orphans(self, splits: dict[str, SplitSource]) -> dict[str, list[tuple[Path, str]]]:
        """By split, the label files in the folders of its labels that belong to no image of the data, and what is missing."""
        places: dict[Path, str] = {}
        for split, source in splits.items():
            for image in source.images.values():
                places |= {path.parent: split for path in [self.of(image.path)] if path is not None and path.parent not in places}
        for split, source in splits.items():
            for start in source.folders:
                for place in [self._siblings[start]] if start in self._siblings else self._swapped(start):
                    places |= {path.parent: split for path in self._folder.files(place, TEXT) if path.parent not in places}
        unused = {place: sorted(set(self._listing(place).values()) - self._used) for place in sorted(places)}
        images = {plain(path.stem): path for path in self._pictures.images(self._pictures.root)} if any(unused.values()) else {}
        result: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for place, paths in unused.items():
            split = places[place]
            alone = place != self._folder.root and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in place.iterdir())
            for path in paths:
                if not splits[split].images or not is_label_file(self._folder, path, alone=alone):
                    continue
                other = images.get(plain(path.stem))
                if other is None and is_prose(self._folder, path):
                    self._prose.append(path)
                elif other is not None and not splits[split].folders:
                    self._unused += 1  # of an image that no list names
                elif other is not None:
                    result[split].append((path, f"no image {path.stem} belongs to it; {self._pictures.show(other)} has another place"))
                else:
                    result[split].append((path, f"no image is called {path.stem}"))
        return result

    def notes(self) -> Iterator[str]:
        if self._siblings:
            pairs = ", ".join(f"of {self._show(images)} in {self._show(labels)}" for images, labels in self._siblings.items())
            yield f"labels were found by their names: {pairs}"
        if self._strays:
            image, text = next(iter(self._strays.items()))
            example = f"{self._pictures.show(image)} has {self._folder.show(text)}"
            are = "1 image has its label file" if len(self._strays) == 1 else f"{len(self._strays)} images have their label files"
            yield f"{are} in another folder, found by name: {example}"
        if self._prose:
            shown = some(map(self._folder.show, self._prose))
            is_none = "is no label file" if len(self._prose) == 1 else "are no label files"
            yield f"{count(len(self._prose), 'text file')} among the labels {is_none}, passed over: {shown}"
        if self._unused:
            yield f"{count(self._unused, 'image')} with a label file {'is' if self._unused == 1 else 'are'} in none of the lists: left out"

    def _show(self, place: Path) -> str:
        return (
            "the data folder"
            if place == self._folder.root
            else f"{self._folder.show(place)}/"
            if place.is_relative_to(self._folder.root)
            else str(place)
        )

    def _parts(self, place: Path) -> tuple[str, ...]:
        """The folders on the way to a place, from the data folder or from that of the images."""
        root = next((root for root in (self._folder.root, self._pictures.root) if place.is_relative_to(root)), place)
        return place.relative_to(root).parts

    def _where(self, images: Path) -> list[Path]:
        """The folders in which the label files of an image folder belong."""
        if images not in self._places:
            self._places[images] = [] if self._labels else [*self._swapped(images), images]
        return [*self._places[images], *([self._siblings[images]] if images in self._siblings else [])]

    def _swapped(self, images: Path) -> list[Path]:
        """The folder with the last part "images" replaced by "labels", in any case, if there is one."""
        parts = self._parts(images) if images.is_relative_to(self._folder.root) else ()
        for i in reversed([i for i, part in enumerate(parts) if part.casefold() == "images"]):
            start = self._folder.root.joinpath(*parts[:i])
            for name in _LABELS:
                place = without_case(start, [name, *parts[i + 1 :]])
                if place is not None and place.is_dir():
                    self._folder.check_link(place, self._folder.show(place))
                    return [place]
        return []

    def _in(self, place: Path, image: str) -> Path | None:
        listing = self._listing(place)
        stem = os.path.splitext(image)[0]
        return next((listing[key] for key in (stem, plain(stem), image) if key in listing), None)

    def _listing(self, place: Path) -> dict[str, Path]:
        """The text files of a folder by their stems, and by their stems without case."""
        if place not in self._listings:
            files = [path for path in visible(place) if path.suffix.lower() in TEXT] if place.is_dir() else []
            self._listings[place] = {plain(path.stem): path for path in files} | {path.stem: path for path in files}
        return self._listings[place]


def _contradict(images: tuple[str, ...], labels: tuple[str, ...]) -> bool:
    """True if the two folders are of different splits."""
    one, other = split_words(images), split_words(labels)
    return bool(one and other and not one & other)


def holds_labels(folder: Folder) -> bool:
    """True if text files in the folder look like label files of images in it."""
    texts: list[Path] = []
    stems: set[str] = set()
    listed = False
    for path in folder.walk(folder.root):
        ending = path.suffix.lower()
        if ending in IMAGE_SUFFIXES:
            stems.add(plain(path.stem))
        elif is_class_list(path.name):
            listed = True
        elif ending in TEXT:
            texts.append(path)
    inner = {path: {part.casefold() for part in path.parent.relative_to(folder.root).parts} for path in texts}
    named = [path for path in texts if plain(path.stem) in stems or inner[path] & set(_LABELS)]
    return bool(named and listed) or any(folder.holds(path) and path.is_file() and _first_looks_right(path) for path in named[:_LOOKS])


def _first_looks_right(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return looks_like_labels(next((line for line in file if line.strip() and not line.lstrip().startswith("#")), ""))


def is_prose(folder: Folder, path: Path) -> bool:
    """True for a file that is no text, or has text, but no line that begins with two numbers or looks like a label."""
    try:
        lines = folder.lines(path)
    except UserError:
        return True
    return bool(lines) and not any(begins_like_labels(line) for _, line in lines)


def is_label_file(folder: Folder, path: Path, *, alone: bool = False) -> bool:
    """False for lists of classes and images, and, unless a folder is for label files alone, for text without labels."""
    if is_class_list(path.name) or path.stem.casefold() in _LISTS_OF_IMAGES or path.stem.casefold().startswith(("readme", "license")):
        return False
    return alone or any(looks_like_labels(line) for _, line in folder.lines(path))
