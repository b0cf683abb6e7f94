"""The built-in scenes in place of a path: ``shapes``, or with options ``shapes:objects=12,train=200,size=320``."""

from __future__ import annotations

import inspect
from typing import Any

from boxquery.data.shapes.scenes import shapes_data
from boxquery.errors import UserError

WORD = "shapes"
_KNOWN = inspect.signature(shapes_data).parameters
_EXAMPLE = f"{WORD}:objects=12,train=200,size=320"


def names_scenes(source: str) -> bool:
    """Whether it is the word for the built-in scenes, with or without options, and not a path."""
    return source.partition(":")[0] == WORD


def scene_options(source: str) -> dict[str, Any]:
    """The keywords of ``shapes_data`` that the options of ``shapes:NAME=VALUE,...`` are. Raises ``UserError``."""
    options: dict[str, Any] = {}
    words = source.partition(":")[2]
    for word in words.split(",") if words else ():
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or name not in _KNOWN:
            raise UserError(f"{source}: no option {word!r}; the options of the scenes are {', '.join(_KNOWN)}, as in {_EXAMPLE}")
        if name in options:
            raise UserError(f"{source}: {name} is given twice; give it once")
        try:
            options[name] = float(value) if isinstance(_KNOWN[name].default, float) else int(value)
        except ValueError:
            kind = "a number" if isinstance(_KNOWN[name].default, float) else "a whole number"
            raise UserError(f"{source}: {name}={value} is not {kind}; write it as in {_EXAMPLE}") from None
    if {"objects", "max_objects"} <= options.keys():
        raise UserError(
            f"{source}: objects and max_objects exclude each other; objects is the exact number per scene, max_objects the most"
        )
    return options
