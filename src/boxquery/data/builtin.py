"""Built-in scenes in place of a path: their word, or with options ``WORD:NAME=VALUE,NAME=VALUE``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from boxquery.errors import UserError


def names_scenes(source: str, word: str) -> bool:
    """Whether it is the word for some built-in scenes, with or without options, and not a path."""
    return source.partition(":")[0] == word


def scene_options(source: str, scenes: Callable[..., Any], example: str) -> dict[str, Any]:
    """The keywords of what makes the scenes that the options of a word are. Raises ``UserError``, with an example."""
    known = inspect.signature(scenes).parameters
    options: dict[str, Any] = {}
    words = source.partition(":")[2]
    for word in words.split(",") if words else ():
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or name not in known:
            raise UserError(f"{source}: no option {word!r}; the options of the scenes are {', '.join(known)}, as in {example}")
        if name in options:
            raise UserError(f"{source}: {name} is given twice; give it once")
        try:
            options[name] = float(value) if isinstance(known[name].default, float) else int(value)
        except ValueError:
            kind = "a number" if isinstance(known[name].default, float) else "a whole number"
            raise UserError(f"{source}: {name}={value} is not {kind}; write it as in {example}") from None
    return options
