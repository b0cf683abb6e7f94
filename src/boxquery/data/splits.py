"""Which images are trained on and which are evaluated on: the data's own splits, and "val" held out where there is none."""

from __future__ import annotations

import hashlib
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from boxquery.data.folder import SPLITS, split_name
from boxquery.data.raw import RawDataset, RawImage
from boxquery.errors import UserError, count

HELD_OUT = 0.20
"""Share of the training images that becomes "val" where the data has none."""
_SAMPLE = 4096  # bytes from a file's middle that are compared before all of it is read


def make_splits(raw: RawDataset, seed: int, notes: list[str]) -> tuple[dict[str, list[RawImage]], dict[str, str]]:
    """The splits that have images, in the order train, val, test, and why others of these have none.

    Raises:
        UserError: no images at all; two images of one id in a split.
    """
    found = raw.splits
    if list(found) == [""] and (named := _by_file_name(found[""])):
        found = named
        sizes = ", ".join(f"{len(named[name])} {name}" for name in SPLITS if name in named)
        notes.append(f"every image's name begins or ends with the name of a split: these are the splits ({sizes})")
    given = {name: found[name] for name in SPLITS if name in found}
    if "" in found:
        if given and found[""]:
            notes.append(f"{count(len(found['']), 'image')} in no split: used for training")
        given["train"] = [*found[""], *given.get("train", ())]
    splits = {name: images for name, images in given.items() if images}
    if not splits:
        what = f"split {' and '.join(map(repr, given))} has no images" if given and "" not in found else "it has no images"
        raise UserError(f"{raw.source}: {what}; check that this is the data folder")
    absent = raw.absent | {name: "it has no images" for name in given if name not in splits}
    if "train" in splits and "val" not in splits:
        if len(images := splits["train"]) < 2:
            absent["val"] = "one image cannot be split into train and val; add images or a val split"
        else:
            train, val = _hold_out(images, seed, notes, raw.most_held_out)
            splits = {"train": train, "val": val} | {name: splits[name] for name in splits if name != "train"}
            which = "no splits" if "" in found else "no images in val" if absent.pop("val", None) else "no val split"
            notes.append(
                f"the data has {which}: {len(val)} of its {count(len(images), 'training image')} are held out as val (seed {seed})"
            )
    if empty := [name for name in absent if name in given]:
        notes.append(f"no images in {' and '.join(empty)}: left out")
    uses = Counter(path for images in splits.values() for path in {image.path for image in images})
    if shared := sum(number > 1 for path, number in uses.items() if path is not None):
        notes.append(f"{count(shared, 'image file')} in more than one split: evaluation does not measure performance on new images")
    for name, images in splits.items():
        seen: dict[int | str, str] = {}
        for image in images:
            if image.id in seen:
                raise UserError(f"{image.where}: image id {image.id!r} is already taken in {name} by {seen[image.id]}; make ids unique")
            seen[image.id] = image.where
    return splits, absent


def _by_file_name(images: list[RawImage]) -> dict[str, list[RawImage]]:
    """Splits by image names that begin or end with the word (``train_001.jpg``, ``img-12-val.png``): {} unless all do, one with train."""
    splits: dict[str, list[RawImage]] = defaultdict(list)
    for image in images:
        tokens = re.findall(r"[a-z0-9]+", PurePath(image.path or str(image.id)).stem.lower())
        words = {word for token in (tokens[:1] + tokens[-1:]) if (word := split_name(token))}
        if len(words) != 1:
            return {}
        splits[words.pop()].append(image)
    return splits if "train" in splits and len(splits) > 1 else {}


def _hold_out(images: list[RawImage], seed: int, notes: list[str], most: float) -> tuple[list[RawImage], list[RawImage]]:
    """Images to train on and to hold out. Files of equal content stay together: otherwise evaluation would be on known images."""
    wanted = max(1, int(min(round(HELD_OUT * len(images)), most)))
    order = sorted(range(len(images)), key=lambda i: _random_key(seed, images[i].id))
    groups = equal_files(image.path for image in images if image.path is not None)
    twins = {path: group for group in groups for path in group}
    members: dict[Path | None, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        members[image.path].append(i)
    held_out: set[int] = set()
    for i in order:
        path = images[i].path
        group = {i} if path is None else {j for twin in twins.get(path, [path]) for j in members[twin]}
        if i not in held_out and len(held_out) + len(group) <= wanted:
            held_out |= group
    apart = 2 * len(held_out) >= wanted
    if not apart:  # nearly all images are copies of few
        held_out = set(order[:wanted])
    if groups:
        what = "copies are kept on one side of the split" if apart else "too many to keep all on one side of the split"
        notes.append(f"{count(sum(map(len, groups)), 'image')} with copies under other names: {what}")
    train, val = ([image for i, image in enumerate(images) if (i in held_out) == held] for held in (False, True))
    return train, val


def _random_key(seed: int, image_id: int | str) -> bytes:
    """Depends on seed and image alone, so that adding images moves few others between splits."""
    return hashlib.blake2b(f"{seed}/{image_id!r}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def equal_files(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of two or more files with the same bytes. Only files of one size are read, and wholly only where a sample is equal too."""
    groups = [list(dict.fromkeys(paths))]
    for key in (_size, _middle, _digest):
        groups = [group for old in groups for group in _grouped(old, key)]
    return groups


def _grouped(paths: list[Path], key) -> list[list[Path]]:
    found: dict[object, list[Path]] = defaultdict(list)
    for path in paths:
        with suppress(OSError, ValueError):  # who needs the file says why it cannot be read
            found[key(path)].append(path)
    return [group for group in found.values() if len(group) > 1]


def _size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a file")  # reading from a pipe may never end
    return status.st_size


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, (path.stat().st_size - _SAMPLE) // 2))
        return file.read(_SAMPLE)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
