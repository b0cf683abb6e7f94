"""A worker of a cluster: it holds a detector and looks at the images of one shard after the other."""

from __future__ import annotations

import tempfile
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from boxquery.data.images import Header, read_header, read_image
from boxquery.errors import UserError
from boxquery.flags import is_exported
from boxquery.runtime.predictor import Predictor
from boxquery.scale.shards import line_of, skipped_line
from boxquery.scale.sources import read_from

#: how often a shard is begun whose workers die
ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """What all workers of a prediction do.

    Attributes:
        version: of boxquery, the same on all machines.
        options: keyword arguments of ``Detector.predict``.
        image_size: of the model's input; None: that of its training.
        device: where the model runs.
        system: an address of the file system that has the images; empty for the machine's own.
    """

    version: str
    options: dict[str, Any]
    image_size: int | None
    device: str
    system: str


class Attempts:
    """An actor that counts how often each shard was begun: Ray gives those of a worker that died to another, without end."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        self.begun[shard] += 1
        return self.begun[shard]


class Worker:
    """Called with shards by Ray Data.

    Args:
        model: a reference to the model's files, name -> bytes: machines need not share a folder, and one process asks the hub.
        attempts: a handle of an actor of that class.
    """

    def __init__(self, model: Any, attempts: Any, job: Job):
        self.model, self.attempts, self.job = model, attempts, job

    def __call__(self, shard: dict[str, Any]) -> dict[str, str]:
        """``lines`` of the shard (see ``boxquery.scale.shards``), empty where its workers died each time.

        What is raised comes back in words: ``wrong`` is an error that the user can cause, ``bug`` one of ours.
        """
        import ray

        found = {"lines": "", "wrong": "", "bug": ""}
        attempt: Any = ray.get(self.attempts.begin.remote(int(shard["number"])))
        if attempt > ATTEMPTS:
            return found
        try:
            return found | {"lines": self._look([str(path) for path in shard["paths"]])}
        except UserError as error:
            return found | {"wrong": error.line()}
        except Exception:  # noqa: BLE001  (raised again where it is seen)
            return found | {"bug": traceback.format_exc()}

    @cached_property
    def detector(self) -> Predictor:
        """Loaded with the first shard, so that its errors are reported like those of images; an exported one without torch."""
        import ray

        if (own := version("boxquery")) != self.job.version:
            raise UserError(f"a worker has boxquery {own}, not {self.job.version}; install the same on all machines")
        files: dict[str, bytes] = ray.get([self.model])[0]
        with tempfile.TemporaryDirectory(prefix="boxquery-model-") as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            detector = _load(Path(folder), next(filter(is_exported, files), ""), self.job.device)
        if self.job.image_size is not None:
            detector.image_size = self.job.image_size
        return detector

    def _look(self, paths: Sequence[str]) -> str:
        lines: dict[str, str] = {}
        reading: deque[tuple[str, tuple[str, ...]]] = deque()

        def images() -> Iterator[Image.Image]:
            with tempfile.TemporaryDirectory(prefix="boxquery-images-") as folder:
                for path, file in read_from(self.job.system, paths, Path(folder)):
                    try:
                        image = read_image(file)
                    except UserError as error:
                        lines[path] = skipped_line(path, error.line().replace(str(file), path))
                        continue
                    header = read_header(file)
                    reading.append((path, header.remarks if isinstance(header, Header) else ()))
                    yield image

        for result in self.detector.predict(images(), **self.job.options):
            path, remarks = reading.popleft()
            lines[path] = line_of(path, result, remarks)
        return "".join(lines[path] + "\n" for path in paths)


def _load(folder: Path, exported: str, device: str) -> Predictor:
    if exported:
        from boxquery import runtime

        return runtime.load(folder / exported, device=device)
    from boxquery.device import choose_device
    from boxquery.model_folder import load

    return load(folder, say=lambda line: None).to(choose_device(device))
