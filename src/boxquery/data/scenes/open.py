"""Opening scenes of several cameras: the built-in ones, or nuScenes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxquery.data import nuscenes
from boxquery.data.builtin import names_scenes, scene_options
from boxquery.data.scenes.records import SceneData
from boxquery.data.surround import surround_data
from boxquery.errors import UserError

WORD = "surround"


def holds_scenes(source: str | Path) -> bool:
    """Whether it names scenes of several cameras, and not images: the word ``surround``, or a folder in nuScenes' layout."""
    try:
        return names_scenes(str(source), WORD) or nuscenes.find(Path(os.path.expanduser(source))) is not None
    except OSError:  # a name that is too long, no right to look: what opens it says so
        return False


def only_images(flags: Mapping[str, Any], source: str | Path) -> None:
    """Raises ``UserError`` for flags that were given although only data sets of images have them; None and False are not given."""
    if given := [name for name, value in flags.items() if value not in (None, False)]:
        flag = "--" + given[0].replace("_", "-")
        raise UserError(f"{flag}: is of images, and {source} holds scenes of several cameras; leave it out")


def open_scenes(source: str | Path, *, strict: bool = False) -> SceneData:
    """Scenes of several cameras as a data set.

    Args:
        source: the word ``surround``, with options as in ``surround:train=500,objects=6,noise=0.5`` (the keywords of
            ``boxquery.data.surround.surround_data``); or nuScenes' folder, the one that holds ``samples`` and ``v1.0-...``, or the latter.
        strict: what is invalid is fatal instead of skipped and named in ``SceneData.skipped``.

    Raises:
        UserError: the path or its content cannot be used, as ``boxquery.data.nuscenes.read`` says.
    """
    if names_scenes(str(source), WORD):
        options = scene_options(str(source), surround_data, f"{WORD}:train=500,objects=6,noise=0.5")
        return replace(surround_data(**options), source=str(source))
    folder = Path(source).expanduser()
    if (tables := nuscenes.find(folder)) is None:
        what = "no folder v1.0-mini, v1.0-trainval or v1.0-test with sample.json in it" if folder.exists() else "no such file or folder"
        raise UserError(f"{source}: {what}; give nuScenes' folder, which holds samples and v1.0-mini, or the word {WORD}")
    return nuscenes.read(tables, str(source), strict=strict)
