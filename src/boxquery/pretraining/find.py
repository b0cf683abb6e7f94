"""The images that pre-training learns from, before they are read. Imports no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

from boxquery.data import shapes
from boxquery.data.builtin import names_scenes
from boxquery.data.folder import is_of_masks, split_name
from boxquery.data.scenes import open as scenes
from boxquery.errors import UserError, count
from boxquery.predict.sources import Source, check_there, find_images

_REMEDY = f"give a folder of images, a glob, or without --teacher the word {shapes.WORD}"


def check_images(source: str) -> None:
    """Raise ``UserError`` for what is not there, and is no word for built-in images: at once, before anything large is imported."""
    if names_scenes(source, shapes.WORD):
        return
    if names_scenes(source, scenes.WORD):
        raise UserError(f"{source}: scenes of several cameras, and pretrain learns from single images; {_REMEDY}")
    try:
        check_there(source)
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from error


def find_unlabelled(source: str) -> tuple[list[Source], list[str]]:
    """The images of a folder or glob, without masks, and notes on what was decided. Raises ``UserError`` where there is none."""
    check_images(source)
    try:
        found, notes = find_images([source])
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from error
    images = [each for each in found if not is_of_masks(PurePath(each.name).parts[:-1])]
    if masks := len(found) - len(images):
        notes.append(f"{count(masks, 'image')} in folders of masks left out")
    others = Counter(split_name(part) for image in images for part in PurePath(image.name).parts[:-1])
    if held := {name: others[name] for name in ("val", "test") if others[name]}:
        where = " and ".join(f"{number:,} of {name}" for name, number in held.items())
        notes.append(f"images of all folders are used, {where} too: a model that is evaluated on them later has seen them, though no label")
    return images, notes
