"""The built-in scenes in place of a path: ``shapes``, or with options ``shapes:objects=12,train=200,size=320``."""

from __future__ import annotations

from typing import Any

from boxquery.data.builtin import scene_options
from boxquery.data.shapes.scenes import shapes_data
from boxquery.errors import UserError

WORD = "shapes"


def shapes_options(source: str) -> dict[str, Any]:
    """The keywords of ``shapes_data`` that the options of ``shapes:NAME=VALUE,...`` are. Raises ``UserError``."""
    options = scene_options(source, shapes_data, f"{WORD}:objects=12,train=200,size=320")
    if {"objects", "max_objects"} <= options.keys():
        raise UserError(
            f"{source}: objects and max_objects exclude each other; objects is the exact number per scene, max_objects the most"
        )
    return options
