"""The hub and its cache: what is there, and fetching it. What the cache has is used without asking, and no answer is never waited for long.

Imports no torch.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from boxquery.errors import UserError, first_line, printable
from boxquery.locks import Lock

#: seconds that the hub has for its first answer; HF_HUB_ETAG_TIMEOUT replaces it where a network is slower
PATIENCE = 2.0
#: bytes from which a model is only fetched where that was asked for
LARGE = 200_000_000
#: files of a model, beside its weights, and the weights in the order in which they are preferred
DESCRIPTION = ("config.json", "preprocessor_config.json", "README.md")
WEIGHTS = (
    ("model.safetensors",), ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",), ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)  # fmt: skip
#: what the hub's client can raise before the hub has responded
_NO_ANSWER = (HTTPError, OSError, ValueError, RuntimeError, ImportError)
#: libraries that remark on every attempt
_TALKATIVE = ("huggingface_hub", "timm", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")

T = TypeVar("T")


class Unavailable(UserError):
    """Neither the hub nor its cache has it now."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub or in its cache.

    Attributes:
        name: owner/name.
        size: of its files in bytes.
        licence: as its model card says, or "unknown".
        files: their names.
        folder: where the cache has them; None: they are to be fetched.
    """

    name: str
    size: int
    licence: str
    files: Sequence[str]
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} (licence {self.licence}, {_megabytes(self.size)})"

    def fetch(self, *, large: bool = False, say: Callable[[str], Any] = lambda line: None) -> Path:
        """Its folder, downloaded if the cache lacks it. Raises ``Unavailable``, also for more than ``LARGE`` bytes unless ``large``."""
        if self.folder is not None:
            return self.folder
        if self.size > LARGE and not large:
            raise Unavailable(f"{self}: more than {_megabytes(LARGE)} are only downloaded with --download (in Python download=True)")
        say(f"downloading {self} from {constants.ENDPOINT}")
        with quiet():
            try:
                found = [Path(hf_hub_download(self.name, file, etag_timeout=patience())) for file in self.files]
                return found[0].parent
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                raise Unavailable(f"{self.name}: the download broke off ({first_line(error)[:80]}); try again") from error


def find_model(name: str) -> HubModel:
    """A model by its name on the hub. Raises ``Unavailable``, within about three seconds where the hub does not answer."""
    if (found := _cached_model(name)) is not None:
        return found
    missing = f"{name} is not in the hub's cache"
    if constants.HF_HUB_OFFLINE:
        raise Unavailable(f"{missing}, and HF_HUB_OFFLINE is set")
    with quiet():
        info: Any = ask(lambda: HfApi().model_info(name, files_metadata=True, timeout=patience()), missing)
    if info is None:
        raise Unavailable(f"{missing}, and {constants.ENDPOINT} has no such model, or not for everybody; check the name")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    files = model_files(list(sizes))
    if len(files) == len(set(files) & set(DESCRIPTION)):
        raise Unavailable(f"{name} on {constants.ENDPOINT} has no weights: {' or '.join(names[0] for names in WEIGHTS[::2])} is looked for")
    card = info.card_data
    return HubModel(name, sum(sizes[file] for file in files), printable(str((card and card.get("license")) or "unknown")), files)


def _cached_model(name: str) -> HubModel | None:
    """What the cache has of a model's newest state that it knows, if that has weights."""
    config = cached_file(name, "config.json")
    if config is None:
        return None
    folder = config.parent
    files = model_files([path.name for path in folder.iterdir() if path.is_file()])  # a link may lead nowhere
    if len(files) == len(set(files) & set(DESCRIPTION)):
        return None
    return HubModel(name, sum((folder / file).stat().st_size for file in files), _licence(folder), files, folder)


def model_files(names: Sequence[str]) -> list[str]:
    """Those of a repository's files that a model is read from: its description, and its weights in one format."""
    for patterns in WEIGHTS:
        weights = [[name for name in names if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns]
        if all(weights):
            return [*(name for name in DESCRIPTION if name in names), *(name for group in weights for name in group)]
    return [name for name in DESCRIPTION if name in names]


def _licence(folder: Path) -> str:
    """What the front matter of a model card says."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = yaml.safe_load(matter[1]) if matter else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return "unknown"
    return printable(str(found.get("license") or "unknown")) if isinstance(found, dict) else "unknown"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.1g} MB"


def cached_file(repository: str, name: str) -> Path | None:
    """A file of a repository, if the cache has it."""
    found = try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None


def fetch_file(repository: str, names: Sequence[str], say: Callable[[str], Any]) -> Path:
    """The first of these files that a repository has, from the cache or else from the hub.

    Args:
        say: is called with what is downloaded, "47 MB", and from where, before that begins.

    Raises ``Unavailable``, within about three seconds where the hub does not answer.
    """
    for name in names:
        if (file := cached_file(repository, name)) is not None:
            return file
    missing = f"{repository} is not in the hub's cache"
    if constants.HF_HUB_OFFLINE:
        raise Unavailable(f"{missing}, and HF_HUB_OFFLINE is set")
    with quiet():
        for name in names:
            found = ask(lambda name=name: get_hf_file_metadata(hf_hub_url(repository, name), timeout=patience()), missing)
            if found is None:
                continue
            say(f"{(found.size or 0) / 1e6:.0f} MB of backbone weights: {constants.ENDPOINT}/{repository}")
            try:
                return Path(hf_hub_download(repository, name, etag_timeout=patience()))
            except (HTTPError, OSError, RuntimeError) as error:
                raise Unavailable(f"{missing}, and the download broke off ({first_line(error)[:80]}); try again") from error
    raise Unavailable(f"{missing}, and {constants.ENDPOINT} has none of {', '.join(names)} there")


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Other processes that want the same wait until this one has it, and then find it in the cache."""
    lock = None
    with suppress(OSError):  # a cache that cannot be written to has what it has
        if not constants.HF_HUB_OFFLINE:
            lock = Lock.take(Path(constants.HF_HUB_CACHE) / ".locks" / f"boxquery--{name.replace('/', '--')}.lock", wait=-1)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def patience() -> float:
    return float(constants.HF_HUB_ETAG_TIMEOUT) if os.environ.get("HF_HUB_ETAG_TIMEOUT") else PATIENCE


def ask(question: Callable[[], T], missing: str) -> T | None:
    """The hub's answer, None where it says that there is no such thing.

    In a thread, since a look-up of the host's name cannot be given a limit; it is left behind.

    Args:
        missing: what is not in the cache, the beginning of the message.

    Raises ``Unavailable`` where there is no answer in time.
    """
    found: list[T | Exception] = []

    def run() -> None:
        try:
            found.append(question())
        except _NO_ANSWER as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience() + 0.5)
    if not found:
        raise Unavailable(f"{missing}, and {constants.ENDPOINT} does not answer within {patience():g} s (HF_HUB_ETAG_TIMEOUT allows more)")
    if not isinstance(found[0], Exception):
        return found[0]
    if getattr(getattr(found[0], "response", None), "status_code", None) in (401, 404):
        return None
    raise Unavailable(f"{missing}, and {constants.ENDPOINT} cannot be reached ({first_line(found[0])[:80]})") from found[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of libraries on what we report ourselves, and with their bars only on a terminal."""
    bars = not (sys.stderr.isatty() or are_progress_bars_disabled())
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        if bars:
            disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            enable_progress_bars()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
