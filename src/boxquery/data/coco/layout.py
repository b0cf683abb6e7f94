"""Which files of a data folder are COCO annotations, and which splits they are of."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from boxquery.data.folder import Folder, folders, read_bytes, split_name, split_of, visible
from boxquery.data.images import IMAGE_SUFFIXES

LISTS = ("images", "annotations", "categories")
FOLDERS = re.compile(r"annot|ann|label|json|coco", re.IGNORECASE)  # names of folders that are looked into before the data folder itself
_SMALL = 4 << 20  # bytes of a file that is read wholly to see what it is
_HEAD = 1 << 16  # bytes of a larger one
_OTHER_TASKS = re.compile(r"(captions|person_keypoints|stuff|panoptic|image_info)_", re.IGNORECASE)
_WHOLE = re.compile(r"(trainval|all|full)\d*$", re.IGNORECASE)
_JSON = "*.[jJ][sS][oO][nN]"
_FEW = 20  # JSON files in a folder; where there are more, there is one per image, and a few are looked at


@dataclass(frozen=True, slots=True)
class Found:
    """The COCO files of a data folder, and others of the same splits, which are left out."""

    files: list[Path]
    left: list[Path]


def find(root: Path) -> Found:
    """The COCO files of a data folder: those of the first place where there are any, and of others for splits that it lacks."""
    roboflow = visible(root, "*/_annotations.coco.json") or visible(root, "_annotations.coco.json")
    inner = folders(root)
    named = [place for place in inner if FOLDERS.match(place.name) and not any(Folder(place).files(place, IMAGE_SUFFIXES))]
    splits = [place for place in inner if split_name(place.name)]
    of_splits, of_named = ([deep for place in places for deep in folders(place)] for places in (splits, named))
    return _of_groups(root, roboflow, [*([place] for place in named), splits, of_splits, [root], of_named])


def find_deeper(root: Path) -> Found:
    """The COCO files of the folders inside a data folder, for where the images are elsewhere in it."""
    inner = folders(root)
    return _of_groups(root, [], [*([place] for place in inner), [deep for place in inner for deep in folders(place)]])


def _of_groups(root: Path, first: list[Path], groups: list[list[Path]]) -> Found:
    """The JSON files of the first of these groups of folders that holds COCO files, and COCO files of the others for further splits."""
    folder, files, left = Folder(root), first, []
    splits = {split_of_file(folder, file) for file in first}
    for group in groups:
        if "" in splits:  # a file of all images
            break
        here = [file for place in group for file in visible(place, _JSON) if file not in files]
        inside = list(filter(folder.holds, here))  # a link out is not opened to recognise it; beside COCO files it is refused
        sample = inside if len(inside) <= _FEW * max(1, len(group)) else inside[:3]
        known = list(filter(looks_like_coco, sample))
        if known and not files:
            files = here
            splits = {split_of_file(folder, file) for file in known if file.stem.lower().startswith("instances")} or {
                split_of_file(folder, file) for file in known
            }
            if splits >= {"train", "val"}:
                splits.discard("")
        else:
            new = [file for file in known if split_of_file(folder, file)]
            files = files + [file for file in new if split_of_file(folder, file) not in splits]
            left += [file for file in new if split_of_file(folder, file) in splits]
            splits |= {split_of_file(folder, file) for file in new}
    return Found(*_preferred(folder, files, left))


def _preferred(folder: Folder, files: list[Path], left: list[Path]) -> tuple[list[Path], list[Path]]:
    """Of several files of a split, those called "instances"; of those without a split, none where there are train and val."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of_file(folder, file), []).append(file)
    instances = {split: [file for file in own if file.stem.lower().startswith("instances")] for split, own in splits.items()}
    kept = [file for split, own in splits.items() for file in instances[split] or own]
    if any(instances.values()):
        kept = [file for file in kept if not _OTHER_TASKS.match(file.stem)]
    if splits.keys() >= {"train", "val"} or (any(instances.values()) and not instances.get("")):
        unclear = [file for file in instances.get("", []) if not _WHOLE.search(file.stem)]
        kept = [
            file for file in kept if split_of_file(folder, file) or file in unclear or not folder.holds(file) or not looks_like_coco(file)
        ]
    return kept, left + [file for file in files if file not in kept and folder.holds(file) and looks_like_coco(file)]


def looks_like_coco(file: Path) -> bool:
    """True if a JSON file holds two of COCO's three lists, or, where it is large or broken, begins like one.

    Raises:
        OSError: it cannot be read.
    """
    if not file.is_file():
        return False
    head = read_bytes(file, _SMALL)
    try:
        if len(head) < _SMALL:
            content = json.loads(head)
            return isinstance(content, dict) and sum(isinstance(content.get(key), list) for key in LISTS) > 1
    except (ValueError, RecursionError):
        pass
    return re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head[:_HEAD]) is not None


def split_of_file(folder: Folder, file: Path) -> str:
    """The split that a file's name, or else a folder above it, speaks of."""
    return split_of((file.stem, *reversed(file.relative_to(folder.root).parts[:-1])))
