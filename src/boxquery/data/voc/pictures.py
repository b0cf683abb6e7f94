"""The image files of Pascal VOC data, and which one an annotation file means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from boxquery.data.find import ImageFinder
from boxquery.data.folder import Folder, folders, is_of_masks, split_words
from boxquery.data.voc.files import FOLDER

_IMAGES = re.compile(r"jpeg_?images?|images?|imgs?|pictures?|photos?", re.IGNORECASE)


class Pictures:
    """The image files of the data."""

    def __init__(self, folder: Folder):
        self.folder, self.finder = folder, ImageFinder(folder)
        self.files = folder.images(folder.root)
        self._stems: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            self._stems[path.stem].append(path)
        self.base = next((place for place in folders(folder.root) if _IMAGES.fullmatch(place.name)), folder.root)

    def find(self, folder: Folder, image_id: str, file: Path, filename: str, where: str, split: str) -> Path:
        """The image of an annotation file: the one of the same name, or else the one that its ``filename`` names.

        Of several of the same name it is the very ``filename``, then one in no folder of annotations, then the nearest. A mask is used only
        if it is the very ``filename`` and there is nothing else.
        """
        last = PureWindowsPath(filename.replace("\\", "/")).name
        beside = {part.casefold() for part in file.relative_to(folder.root).parts[:-1]} if file.is_relative_to(folder.root) else set()
        ranks: dict[Path, tuple[bool, bool, bool, int]] = {}
        for path in self._stems.get(image_id.rpartition("/")[2], []):
            parts = path.relative_to(self.folder.root).parts[:-1]
            other = split_words(parts)
            mask, named = is_of_masks(parts), path.name == last
            if not (split and other and split not in other) and (named or not mask):
                near = len(beside & {part.casefold() for part in parts}) * 2 + (path.parent == file.parent)
                ranks[path] = not mask, named, not any(map(FOLDER.fullmatch, parts)), near
        best = [path for path, rank in ranks.items() if rank == max(ranks.values())]
        same_folder = len({path.parent for path in best}) == 1
        if best and same_folder and (not self.folder.leaves(self.base, filename) or Path(last).stem == best[0].stem):
            return best[0]  # of a.jpg and a.png, the one that a.xml means
        beside_it = file.parent / filename
        base = (
            file.parent
            if file.is_relative_to(self.folder.root) and not self.folder.leaves(file.parent, filename) and beside_it.is_file()
            else self.base
        )
        return self.finder.find(base, filename or f"{image_id}.jpg", where, split)

    def has(self, stem: str) -> bool:
        """Whether there is an image file of a name."""
        return stem in self._stems

    def of_name(self, image_id: str, split: str) -> Path | None:
        """The only image file of a name that is no mask and in no folder of another split."""
        found = []
        for path in self._stems.get(image_id.replace("\\", "/").rpartition("/")[2], []):
            parts = path.relative_to(self.folder.root).parts[:-1]
            other = split_words(parts)
            if not is_of_masks(parts) and not (split and other and split not in other):
                found.append(path)
        return found[0] if len(found) == 1 else None

    def without(self, used: Iterable[Path | None], files: list[Path]) -> list[Path]:
        """Image files in the folders of those used that are not among them, nor called like one of the annotation files."""
        known, stems = set(used), {file.stem for file in files}
        places = {path.parent for path in known if path is not None}
        return [path for path in self.files if path not in known and path.parent in places and path.stem not in stems]
