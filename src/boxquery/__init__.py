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
    "SceneDetector": "boxquery.api",
    "load": "boxquery.api",
    "train": "boxquery.api",
    "pretrain": "boxquery.api",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'boxquery' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("boxquery."):
            raise
        raise ImportError(
            f"boxquery.{name} is not in boxquery-runtime, which has boxquery.runtime.load; install boxquery in its place"
        ) from error


def _version() -> str:
    """Of the one that is installed: boxquery, or boxquery-runtime, which holds a part of it."""
    metadata = import_module("importlib.metadata")
    try:
        return metadata.version("boxquery")
    except metadata.PackageNotFoundError:
        return metadata.version("boxquery-runtime")


def __dir__() -> list[str]:
    return __all__
