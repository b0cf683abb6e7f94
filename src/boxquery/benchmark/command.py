"""``boxquery benchmark``: how long detection takes on this machine, in every runtime. Imports no torch until it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from boxquery.benchmark import machine
from boxquery.benchmark.measure import Measured, measure
from boxquery.benchmark.plan import CAMERA, Wanted, plan, takes_scenes
from boxquery.benchmark.process import PARTS, WARM_UP, Job, SceneFiles
from boxquery.data.images import Header, read_header
from boxquery.errors import UserError, count
from boxquery.flags import Device, Switch
from boxquery.limits import check_above_zero
from boxquery.progress import stderr_console

#: what is measured where nothing is named: what ``auto`` trains
DEFAULT = "deformable-detr"
#: width and height of the scene that is the image where none is given
SCENE = (640, 480)
#: images that are read of many
MOST_IMAGES = 64
#: predictions below which a 95th percentile is next to the largest
FEW = 20
#: minutes where neither these nor runs are given
MINUTES = 0.5


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured: a table with its conditions on the terminal, JSON with ``--json``."""

    values: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        return self.values

    def show(self) -> None:
        console = Console(highlight=False)
        console.print(_table(self.values["runtimes"], self.values["unit"]))
        for line in _lines(self.values):
            console.print(line, markup=False, soft_wrap=not console.is_terminal)


def benchmark(
    run: str = DEFAULT,
    /,
    *,
    preset: str | None = None,
    image_size: int | None = None,
    batch_size: int = 1,
    threads: int | None = None,
    images: list[str] | None = None,
    runs: int | None = None,
    minutes: float | None = None,
    precision: list[str] | None = None,
    runtimes: list[str] | None = None,
    device: Device = "auto",
    download: Switch = False,
) -> BenchmarkResult:
    """Measure latency, images per second and memory of detection, split into preprocessing, model and post-processing.

    From the image file to its detections, as predict does it. Each runtime and precision has a process of its own, and they predict in
    turn, so that whatever else the machine does meets all of them. What was measured under which conditions is printed with it.

    Args:
        run: A run folder, a model folder (ours or one of transformers), a hub id, an exported file (.onnx, .xml), or a model's name, which
            gives random weights.
        preset: Preset of a model that is named. Default: small.
        image_size: Short side of the model's input in pixels. Default: that of its training.
        batch_size: Images, or scenes of several cameras, that are predicted together.
        threads: CPU threads per runtime. Default: one per physical core.
        images: Image files, folders or globs, separated by commas; of a model of several cameras nuScenes' folder, or the word
            ``surround``. At most 64 images are used. Default: a built-in scene of 640 x 480 pixels, or of six cameras of 800 x 480.
        runs: Timed predictions per runtime. Default: as many as fit into the minutes.
        minutes: Duration of the timed predictions of all runtimes together, without exporting, loading and warming up. Default: 0.5.
        precision: What to compute in, separated by commas: fp32, fp16, bf16, int8. Default: fp32, and bf16 where the hardware has it.
        runtimes: Which of pytorch, onnxruntime and openvino, separated by commas; exported files run on the CPU. Default: all installed.
        device: Where PyTorch runs; auto takes CUDA, else MPS, else the CPU.
        download: Fetch a model from the hub also if it has more than 200 MB.
    """
    check_above_zero(image_size=image_size, batch_size=batch_size, threads=threads, runs=runs, minutes=minutes)
    console = stderr_console()

    def say(line: str) -> None:
        console.print(line, markup=False)

    load, threads = machine.load(), threads or machine.physical_cores()
    seconds = 60 * minutes if minutes is not None else 60 * MINUTES if runs is None else None
    wanted = Wanted.of(runtimes, precision)
    with TemporaryDirectory(prefix="boxquery-benchmark-") as folder:
        scenes = takes_scenes(run, download=download, say=say)
        pictures = _scenes(images, Path(folder)) if scenes else _pictures(images, Path(folder), say)
        make = partial(Job, threads=threads, image_size=image_size, batch_size=batch_size, images=pictures)
        jobs, left_out = plan(run, preset, wanted, make, Path(folder), device=device, download=download, say=say)
        found = [*measure(jobs, runs, seconds, say), *left_out]
    done, failed = [each for each in found if not each.failed], [each for each in found if each.failed]
    reasons = [f"{each.job} is left out: {each.failed}" for each in failed]
    if not done:
        raise UserError(f"{run}: nothing could be measured; {'; '.join(reasons)}")
    for reason in reasons:
        say(f"warning: {reason}")
    return BenchmarkResult(
        {
            "model": run,
            "preset": preset,
            "unit": "scene" if scenes else "image",
            "runtimes": [each.row() for each in done],
            "failed": [{"runtime": each.job.runtime, "precision": each.job.precision, "why": each.failed} for each in failed],
            "conditions": _conditions(done, _described(pictures, built_in=images is None), load),
        }
    )


def _pictures(sources: Sequence[str] | None, folder: Path, say: Callable[[str], None]) -> tuple[Path, ...]:
    """The image files that are predicted; those that cannot be read are named. Raises ``UserError`` where none can."""
    if sources is None:
        from boxquery.data.shapes import shapes_data

        path = folder / "scene.jpg"
        shapes_data(size=max(SCENE)).splits["val"].read(0).resize(SCENE).save(path, quality=90)
        return (path,)
    from boxquery.predict.sources import find_images

    files, notes = find_images([name for word in sources for name in word.split(",")])
    for note in notes:
        say(f"note: {note}")
    readable: list[Path] = []
    for file in files[:MOST_IMAGES]:
        header = read_header(path := Path(file.path))
        if isinstance(header, Header):
            readable.append(path)
        else:
            say(f"skipped: {path}: {header}")
    if not readable:
        raise UserError(f"{', '.join(sources)}: none of {count(len(files[:MOST_IMAGES]), 'image')} can be read")
    if len(files) > MOST_IMAGES:
        say(f"note: the first {MOST_IMAGES} of {len(files):,} images are used")
    return tuple(readable)


def _scenes(sources: Sequence[str] | None, folder: Path) -> tuple[SceneFiles, ...]:
    """The scenes that are predicted; the images of built-in ones are written as files. Raises ``UserError`` for other data."""
    from boxquery.data.scenes.open import open_scenes

    if sources is not None and len(sources) > 1:
        raise UserError(f"--images {sources[1]}: of a model of scenes, one data set at a time")
    data = open_scenes(sources[0] if sources else f"surround:train=1,val=1,test=1,width={CAMERA[0]}")
    split = next(data.splits[name] for name in ("val", *data.splits) if name in data.splits and len(data.splits[name]))
    found: list[SceneFiles] = []
    for i, scene in enumerate(split):
        if (len(found) + 1) * len(scene.cameras) > MOST_IMAGES:
            break
        paths = scene.paths
        if paths is None:
            paths = tuple(folder / f"{i}-{camera}.jpg" for camera in scene.cameras)
            for path, image in zip(paths, split.read(i), strict=True):
                image.save(path, quality=90)
        found.append(SceneFiles(paths, scene.lidar2img))
    return tuple(found)


def _described(pictures: Sequence[Path | SceneFiles], *, built_in: bool) -> str:
    """What is looked at, in words."""
    first = pictures[0]
    if isinstance(first, SceneFiles):
        cameras = f"of {len(first.images)} cameras"
        width, height = CAMERA
        return f"a built-in scene {cameras}, {width} x {height} pixels" if built_in else f"{count(len(pictures), 'scene')} {cameras}"
    return f"a built-in scene of {SCENE[0]} x {SCENE[1]} pixels" if built_in else count(len(pictures), "image")


def _conditions(done: Sequence[Measured], described: str, load: float | None) -> dict[str, Any]:
    """What the numbers hold for: plain values."""
    job, ready = done[0].job, [each.ready for each in done if each.ready]
    inputs = ready[0].inputs
    return {
        "processor": machine.processor(),
        "load": load,
        "threads": job.threads,
        "batch_size": job.batch_size,
        "images": described,
        "input_sizes": [list(size) for size in inputs],
        "warm_up": WARM_UP,
        "versions": machine.versions() | {name: version for each in ready for name, version in each.versions.items()},
    }


def _table(rows: Sequence[dict[str, Any]], unit: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("runtime", "ms", "p95", "CPU ms", f"{unit}s/s", *("pre", "model", "post"), "MB"):
        table.add_column(column, justify="left" if column == "runtime" else "right", no_wrap=True)
    for row in rows:
        place = "" if row["device"] == "cpu" else f", {row['device']}"
        memory = row["memory_mb"] if row["gpu_memory_mb"] is None else row["gpu_memory_mb"]
        times = row["latency_ms"]["median"], row["latency_ms"]["p95"], row["cpu_ms"]["all"]
        parts = (row["parts_ms"][part] for part in PARTS)
        table.add_row(
            f"{row['runtime']} {row['precision']}{place}", *map(_number, times), _number(row[f"{unit}s_per_second"]), *map(_number, parts),
            "-" if memory is None else f"{memory:,.0f}",
        )  # fmt: skip
    return table


def _lines(values: dict[str, Any]) -> list[str]:
    """The conditions in words, and what the columns are."""
    known, rows = values["conditions"], values["runtimes"]
    cpu, preset = known["processor"], f", preset {values['preset']}" if values["preset"] else ""
    sizes = ", ".join(f"{width} x {height}" for height, width in known["input_sizes"][:3])
    more = len(known["input_sizes"]) - 3
    runs = sorted({row["runs"] for row in rows})
    load = "" if known["load"] is None else f", load {known['load']:g} before it began"
    lines = [
        "",
        f"{values['model']}{preset}; {known['images']}, {sizes}{f' and {more} other sizes' * (more > 0)} at the model, "
        f"batch {known['batch_size']}",
        f"{cpu['name']}, {count(cpu['physical_cores'], 'core')}, {count(known['threads'], 'thread')}{load}",
        ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
        f"{' to '.join(str(n) for n in dict.fromkeys((runs[0], runs[-1])))} timed predictions each, in turn, after {known['warm_up']} "
        "that are not counted",
        "ms: median from file to detections, its p95, and CPU time of all threads; pre, model, post: parts of the ms; MB: growth of the "
        "process's peak" + (", on a GPU PyTorch's own peak" if any(row["gpu_memory_mb"] is not None for row in rows) else ""),
    ]
    if runs[0] < FEW:
        lines.append(f"note: p95 of fewer than {FEW} predictions is nearly the slowest one; --runs or --minutes allows more")
    return lines


def _number(value: float) -> str:
    return f"{value:,.{2 if value < 10 else 1 if value < 1000 else 0}f}"
