"""boxquery: the whole family of detection transformers in one small library.

Names are loaded when they are first used: importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "UserError": "boxquery.errors",
    "Result": "boxquery.result",
    "list_models": "boxquery.models",
    "create_model": "boxquery.models",
    "load_official": "boxquery.official",
    "Detector": "boxquery.api",
    "load": "boxquery.api",
    "train": "boxquery.api",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("boxquery")
    if name not in _HOME:
        raise AttributeError(f"module 'boxquery' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
