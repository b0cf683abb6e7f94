"""Images without labels as a data set: every image of a folder, some held out, each with fixed patches in place of objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from boxquery.data import shapes
from boxquery.data.builtin import names_scenes
from boxquery.data.dataset import Data, Split
from boxquery.data.open import open_data
from boxquery.data.raw import RawDataset, RawImage
from boxquery.data.validation import fail_if_too_many, validate
from boxquery.errors import UserError
from boxquery.pretraining.find import find_unlabelled
from boxquery.pretraining.patches import LEAST, too_small, with_patches

#: images that are held out at most, to see how well patches are found in new images
MOST_HELD_OUT = 200


def open_images(source: str | Data, patches: int, *, strict: bool = False) -> Data:
    """Images to learn from, with the splits "train" and "val" and so many patches as objects, each of a class of its own.

    Args:
        source: a folder, searched recursively, a glob, the word ``shapes``, or a data set that was opened, whose annotations are ignored.
            Of a folder all images are used, of the other two the splits "train" and "val".
        strict: images that cannot be read, or are too small, are fatal instead of skipped.

    Raises ``UserError``.
    """
    if isinstance(source, str) and names_scenes(source, shapes.WORD):
        source = open_data(source)
    data = source if isinstance(source, Data) else _found(source, strict)
    names, splits = [f"patch {i}" for i in range(1, patches + 1)], {}
    small: list[str] = []
    for name in ("train", "val"):
        split = data.split(name)
        kept = [record for record in split if not too_small(record)]
        small += [f"{record.id}: {record.width} x {record.height}" for record in split if too_small(record)]
        splits[name] = with_patches(Split(name, kept, split.reader), patches)
    if small:
        kind = f"has no room for patches, which takes {2 * LEAST + 1} pixels on each side"
        lines = [f"image {line} {kind}; skipped" for line in small]
        if strict:
            raise UserError(f"{data.source}: {lines[0]}; remove it, or go without --strict")
        fail_if_too_many(len(small), sum(map(len, splits.values())) + len(small), "images are too small", f"{data.source}: ", lines[0])
        data = replace(data, skipped=[*data.skipped, *lines], kinds=[*data.kinds, *[kind] * len(small)])
    for name, split in splits.items():
        if not len(split):
            raise UserError(f"{data.source}: no image of {name} has room for patches; give larger images")
    return replace(data, names=names, ids=list(range(1, patches + 1)), splits=splits)


def _found(source: str, strict: bool) -> Data:
    """All images of a folder, to learn from and held out, without objects."""
    found, notes = find_unlabelled(source)
    images = [RawImage(each.id, Path(each.path), each.name) for each in found]
    raw = RawDataset("images", [], [], {"": images}, notes, source=source, labelled=False, most_held_out=MOST_HELD_OUT)
    return validate(raw, strict=strict)[0]
