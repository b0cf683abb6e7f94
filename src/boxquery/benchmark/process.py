"""A detector in a process of its own, which predicts when it is told to and says how long each part took.

A process per runtime: each has its own threads, its memory is its own, and one that dies takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from boxquery.data.images import Header, read_header
from boxquery.errors import UserError
from boxquery.runtime.predictor import Predictor
from boxquery.runtime.scene_predictor import ScenePredictor

T = TypeVar("T")
#: predictions before the first that counts: they allocate memory and choose kernels
WARM_UP = 3
PARTS = ("preprocessing", "model", "postprocessing")


class SceneFiles(NamedTuple):
    """The images of V cameras, and their calibration [V, 4, 4]."""

    images: tuple[Path, ...]
    lidar2img: np.ndarray


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        runtime: "pytorch", "onnxruntime" or "openvino".
        precision: what it computes in; of an exported file its own.
        source: a run or model folder, or an exported file.
        device: where it runs.
        threads: of its operators.
        image_size: short side of the model's input; None: the model's own.
        batch_size: images that are predicted together, all of one shape; or scenes.
        images: files that are predicted in turn, decoded every time; or scenes of several cameras.
    """

    runtime: str
    precision: str
    source: str
    device: str
    threads: int
    image_size: int | None
    batch_size: int
    images: tuple[Path, ...] | tuple[SceneFiles, ...]

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}"

    @property
    def scenes(self) -> list[SceneFiles]:
        """``images`` where these are scenes."""
        return [each for each in self.images if isinstance(each, SceneFiles)]


class Ready(NamedTuple):
    """What a process says once it is warm: versions of what it runs on, and the shapes [height, width] of the model's inputs."""

    versions: dict[str, str]
    inputs: list[tuple[int, int]]


class Timing(NamedTuple):
    """Seconds of the ``PARTS`` of one prediction, by the wall clock and as CPU time of the process."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


class Memory(NamedTuple):
    """Bytes: how much the peak of the process grew from before the model was loaded, None where the system does not say; and the
    peak that PyTorch allocated on the GPU, None without one."""

    process: int | None
    gpu: int | None


class Worker:
    """The other end of a process; as a context manager it ends it."""

    def __init__(self, job: Job):
        self.job = job
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(job, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ready(self) -> Ready:
        """Wait until it is warm. Raises ``UserError`` where it cannot run."""
        return self._answer()

    def run(self, number: int) -> Timing:
        """The prediction of that number. Raises ``UserError`` where the process has died."""
        self._tell(number)
        return self._answer()

    def finish(self) -> Memory:
        """End it. Raises ``UserError`` where the process has died."""
        self._tell(None)
        return self._answer()

    def _tell(self, number: int | None) -> None:
        try:
            self.pipe.send(number)
        except OSError:
            raise self._died() from None

    def _answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def _died(self) -> UserError:
        self.process.join(10)
        code = self.process.exitcode or 0
        how = f"was killed by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with status {code}"
        return UserError(f"its process {how}; try a smaller --image-size or --batch-size")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _serve(job: Job, pipe: Connection) -> None:
    """The process itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this
    os.environ["OMP_NUM_THREADS"] = str(job.threads)  # read when torch is loaded
    try:
        with _load(job) as loaded:
            for number in range(WARM_UP):
                loaded.run(number)
            pipe.send(Ready(loaded.versions, loaded.inputs))
            while (number := pipe.recv()) is not None:
                pipe.send(loaded.run(number))
            pipe.send(loaded.memory())
    except UserError as error:
        pipe.send(error.line())
    except (EOFError, BrokenPipeError):  # the command has gone
        pass


@dataclass(frozen=True)
class _Loaded:
    """What the measurement of a detector needs; ``predictions`` are made in turn."""

    stopwatch: _Stopwatch
    predictions: list[Callable[[], Any]]
    inputs: list[tuple[int, int]]
    versions: dict[str, str]
    memory: Callable[[], Memory]

    def run(self, number: int) -> Timing:
        """One prediction, from files to results."""
        predict = self.predictions[number % len(self.predictions)]
        self.stopwatch.start()
        predict()
        return self.stopwatch.stop()


class _Stopwatch:
    """Reads both clocks at the beginning and end of a prediction, and of the model's part of it.

    Attributes:
        synchronize: waits for the GPU, if there is one.
    """

    def __init__(self) -> None:
        self.synchronize: Callable[[], None] = lambda: None
        self.marks: list[tuple[float, float]] = []

    def start(self) -> None:
        self.marks = []
        self.mark()

    def mark(self, *_: Any) -> None:
        self.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def stop(self) -> Timing:
        self.mark()
        assert len(self.marks) == len(PARTS) + 1, "a prediction of images of one shape calls its model once"
        wall, cpu = zip(*self.marks, strict=True)
        return Timing(_differences(wall), _differences(cpu))


def _differences(marks: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(after - before for before, after in pairwise(marks))


@contextmanager
def _load(job: Job) -> Iterator[_Loaded]:
    """The detector of a job. Raises ``UserError``."""
    import_module({"pytorch": "boxquery.model_folder"}.get(job.runtime, job.runtime))  # a library's own memory is not the model's
    before, stopwatch = peak_memory(), _Stopwatch()
    with _in_pytorch(job, stopwatch) if job.runtime == "pytorch" else _exported(job, stopwatch) as (predictor, versions, gpu_memory):
        if job.image_size is not None:
            predictor.image_size = job.image_size
        predictions, inputs = _batches(job, predictor) if isinstance(predictor, Predictor) else _scene_batches(job, predictor)

        def memory() -> Memory:
            after = peak_memory()
            return Memory(None if before is None or after is None else after - before, gpu_memory())

        yield _Loaded(stopwatch, predictions, inputs, versions, memory)


#: a detector, versions of what it runs on, and what tells the peak of the GPU's memory
_Opened = tuple[Predictor | ScenePredictor, dict[str, str], Callable[[], int | None]]


@contextmanager
def _in_pytorch(job: Job, stopwatch: _Stopwatch) -> Iterator[_Opened]:
    import torch

    from boxquery.model_folder import open_model

    torch.set_num_threads(job.threads)
    detector, versions, memory = open_model(job.source).to(job.device), {"torch": str(torch.__version__)}, _no_gpu
    if job.device == "cuda":
        stopwatch.synchronize, memory = torch.cuda.synchronize, torch.cuda.max_memory_allocated
        versions |= {"CUDA": str(torch.version.cuda), "GPU": torch.cuda.get_device_name()}
    detector.model.register_forward_pre_hook(stopwatch.mark)
    detector.model.register_forward_hook(stopwatch.mark)
    with torch.autocast(job.device, torch.bfloat16, enabled=job.precision == "bf16"):
        yield detector, versions, memory


@contextmanager
def _exported(job: Job, stopwatch: _Stopwatch) -> Iterator[_Opened]:
    from boxquery import runtime

    load = runtime.load_scenes if job.scenes else runtime.load
    detector = load(job.source, device=job.device, threads=job.threads)
    run = detector.engine.run

    def timed(*given: Any) -> Any:
        stopwatch.mark()
        found = run(*given)
        stopwatch.mark()
        return found

    detector.engine = replace(detector.engine, run=timed)
    name, _, version = detector.engine.runtime.partition(" ")
    yield detector, {name: version}, _no_gpu


def _no_gpu() -> int | None:
    return None


def _batches(job: Job, predictor: Predictor) -> tuple[list[Callable[[], Any]], list[tuple[int, int]]]:
    """What predicts a batch per image, of it and of the next ones of the same shape as the model sees them, in a circle; and these
    shapes."""
    shapes: dict[Path, tuple[int, int]] = {}
    for path in (each for each in job.images if isinstance(each, Path)):
        header = read_header(path)
        if not isinstance(header, Header):
            raise UserError(f"{path}: {header}; it was readable when the measurement began")
        shapes[path] = predictor.resize.size(header.height, header.width)
    predictions = []
    for path, shape in shapes.items():
        alike = [other for other, its in shapes.items() if its == shape]
        predictions.append(partial(predictor.predict, _circle(alike, alike.index(path), job.batch_size), batch_size=job.batch_size))
    return predictions, sorted(set(shapes.values()))


def _scene_batches(job: Job, predictor: ScenePredictor) -> tuple[list[Callable[[], Any]], list[tuple[int, int]]]:
    """As ``_batches``, of scenes."""
    scenes = [(scene.images[: predictor.cameras], scene.lidar2img[: predictor.cameras]) for scene in job.scenes]
    predictions: list[Callable[[], Any]] = []
    for i in range(len(scenes)):
        predictions.append(partial(predictor.predict_batch, _circle(scenes, i, job.batch_size)))
    return predictions, [predictor.resize.size]


def _circle(values: Sequence[T], first: int, count: int) -> list[T]:
    return [values[(first + i) % len(values)] for i in range(count)]


def peak_memory() -> int | None:
    """Most bytes of memory that this process has held; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # the peak of resource.getrusage begins with that of the parent process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
