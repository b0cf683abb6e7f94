"""Released weights of a backbone: found on the hub, in its cache or in a file, and read without executing anything."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from boxquery.errors import UserError, first_line
from boxquery.hub import Unavailable, fetch_file

#: file names under which weights are released, the better one first
FILES = ("model.safetensors", "pytorch_model.bin")
#: keys under which training programs keep a state dict beside other things
WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class BackboneWeights:
    """A file with a backbone's weights.

    Attributes:
        source: the hub id, or the path as it was given.
        file: where it is here.
        sha256: of the file.
    """

    source: str
    file: str
    sha256: str

    @classmethod
    def of(cls, source: str, file: Path) -> Self:
        """Raises ``UserError`` for a file that cannot be read."""
        try:
            with file.open("rb") as content:
                return cls(source, os.path.abspath(file), hashlib.file_digest(content, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from error

    def __str__(self) -> str:
        return f"{self.source} (sha256 {self.sha256[:12]})"

    def checked(self) -> Self:
        """The same file, which is still what it was. Raises ``UserError`` where it is not."""
        again = self.of(self.source, Path(self.file))
        if again.sha256 != self.sha256:
            raise UserError(f"{self.file}: not the backbone weights that the run started from (another sha256); restore them")
        return again

    def tensors(self) -> dict[str, Tensor]:
        """The file's tensors by name, without the wrappers around them. Raises ``UserError`` where it holds none."""
        file = Path(self.file)
        try:
            with file.open("rb") as opened:
                safe = opened.read(9).endswith(b"{")  # after eight bytes of length a header in JSON, whatever the file's name
            # training programs keep their command line beside the tensors: plain values, allowed by name
            with torch.serialization.safe_globals([argparse.Namespace]):
                content: Any = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
            raise UserError(f"{file}: not a file of weights, or one that would have to be executed ({first_line(error)[:80]})") from error
        while isinstance(content, dict) and (inner := [content[k] for k in WRAPPERS if isinstance(content.get(k), dict)]):
            content = inner[0]
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
        if not tensors:
            raise UserError(f"{file}: holds no tensors; give a state dict as timm or torchvision saves it")
        return tensors


def find_weights(backbone: str, wanted: bool | str | Path, progress: Callable[[str], Any] = lambda line: None) -> BackboneWeights:
    """The weights to start a backbone from.

    Args:
        backbone: its timm name.
        wanted: True for the released ones, from the hub's cache or else the hub; or a file, or a folder that holds one.
        progress: is called with a line about a download that begins.

    Raises:
        Unavailable: the released ones cannot be had; within about three seconds where the hub does not answer.
        UserError: a file or folder that is no such thing.
    """
    return _released(backbone, progress) if wanted is True else _local(backbone, str(wanted))


def _local(backbone: str, given: str) -> BackboneWeights:
    path = Path(given).expanduser()
    if not path.exists():
        raise UserError(f"{given}: no such file or folder; --pretrained takes weights as timm or torchvision saves them, auto or none")
    if not path.is_dir():
        return BackboneWeights.of(given, path)
    if (path / "snapshots").is_dir():  # a repository in the hub's cache
        main = path / "refs" / "main"
        snapshots = sorted((path / "snapshots").iterdir())
        path = path / "snapshots" / main.read_text().strip() if main.is_file() else snapshots[0] if len(snapshots) == 1 else path
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{given}: no weights in this folder ({' or '.join(FILES)} is looked for); name the file itself")
    config = path / "config.json"
    try:
        made = json.loads(config.read_text(encoding="utf-8")).get("architecture") if config.is_file() else None
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{config}: cannot be read ({first_line(error)})") from error
    if made and made != (own := backbone.partition(".")[0]):
        raise UserError(f"{given}: holds weights of {made}, and the backbone is {own}; choose it by --option backbone={made}")
    return BackboneWeights.of(given, file)


def _released(backbone: str, progress: Callable[[str], Any]) -> BackboneWeights:
    try:
        known: Any = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    except RuntimeError as error:
        name = backbone.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{name}.*")[:5]) or "none"
        raise UserError(f"backbone {backbone!r}: timm knows no weights with this tag; of {name} it knows {tags}") from error
    if known is None or not known.hf_hub_id:
        raise Unavailable(f"no weights of {backbone} are released on the hub; give a file of them, or choose another backbone")
    repository = known.hf_hub_id + (f"{known.architecture}.{known.tag}" if known.hf_hub_id.endswith("/") else "")
    names = (known.hf_hub_filename,) if known.hf_hub_filename else FILES
    return BackboneWeights.of(repository, fetch_file(repository, names, lambda what: progress(f"downloading {what}")))


def fitted(tensors: dict[str, Tensor], body: nn.Module, backbone: str, file: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names of a feature extractor's body, and the modules of the file that it has no use for, such as a classifier.

    The file may be of the backbone alone, or of a larger model that has it (``module.``, ``backbone.body.``). Raises ``UserError`` where it
    lacks tensors, or is of another network.
    """
    own, flat = body.state_dict(), {_flat(name): name for name in tensors}
    wanted = {_flat(name): name for name in own}
    first = next(iter(wanted))
    starts = {"", *(name[: -len(first)] for name in flat if name.endswith("." + first))}
    start = max(sorted(starts), key=lambda start: sum(start + name in flat for name in wanted))
    given = {name: flat[start + key] for key, name in wanted.items() if start + key in flat}
    other = f"give the file that fits, or its backbone by --option backbone=NAME (now {backbone}), without backbone_options that reshape it"
    if lacking := [name for name in own if name not in given and not name.endswith("num_batches_tracked")]:
        raise UserError(f"{file}: lacks {len(lacking)} of the {len(own)} tensors of {backbone}, first {lacking[0]}; {other}")
    used, parts = set(given.values()), {re.sub(r"_\d+$", "", name.split(".")[0]) for name in own}
    left = [name[len(start) - len(key) :] for key, name in flat.items() if key.startswith(start) and name not in used]
    if deeper := [name for name in left if name.split(".")[0] in parts]:
        raise UserError(f"{file}: has tensors that {backbone} lacks, first {deeper[0]}; {other}")
    for name, theirs in given.items():
        there, here = list(tensors[theirs].shape), list(own[name].shape)
        if there != here:
            raise UserError(f"{file}: {name} is {there} there and {here} in {backbone}; {other}")
        if not tensors[theirs].isfinite().all():
            raise UserError(f"{file}: {theirs} contains NaN or inf; use another file")
    return {name: tensors[theirs] for name, theirs in given.items()}, sorted({name.split(".")[0] for name in left})


def _flat(name: str) -> str:
    """A parameter's name in a feature extractor and in the whole network: ``stages_0.x`` is ``stages.0.x``, and some are in ``model``."""
    return name.removeprefix("model.").replace("_", ".")
