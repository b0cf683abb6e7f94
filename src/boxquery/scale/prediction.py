"""Prediction by the workers of a Ray cluster, in shards; whenever it dies, the same command continues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from boxquery.cluster import ray_cluster, resources, without_stdout
from boxquery.errors import UserError, count, some
from boxquery.progress import Progress
from boxquery.scale.shards import Shards

#: images of a shard at most, and shards per worker at least where there are fewer
_IMAGES, _SHARDS = 256, 8


def predict_in_shards(
    shards: Shards,
    paths: Sequence[str],
    model: Mapping[str, bytes],
    *,
    options: Mapping[str, Any],
    image_size: int | None,
    device: str,
    system: str,
    workers: int | None,
) -> float:
    """Look at the images that no shard has; returns images per second.

    A shard is written when all of it is there: a worker that dies is replaced and its shards are begun again by another.

    Args:
        model: its files, name -> bytes.
        options: keyword arguments of ``Detector.predict``.
        image_size, device, system: see ``boxquery.scale.worker.Job``.
        workers: how many; None: as many as the cluster has GPUs, or else cores.

    Raises ``UserError`` for what a worker cannot do, and at the end for images whose workers died each time.
    """
    left = [path for path in paths if path not in shards.shard_of]
    if not left:
        return 0.0
    with without_stdout(), ray_cluster(workers, sum(map(len, model.values()))) as ray:
        from boxquery.scale.worker import ATTEMPTS, Attempts, Job, Worker

        most, each = resources(ray, device)
        workers = workers or most
        if workers > most:
            raise UserError(f"--workers {workers}: the Ray cluster has room for {most}")
        shards.begin()
        chunks = _chunks(left, workers, options["batch_size"])
        job = Job(version("boxquery"), dict(options), image_size, device, system)
        attempts = ray.remote(num_cpus=0)(Attempts).remote()
        rows = ray.data.from_items(
            [{"number": number, "paths": chunk} for number, chunk in enumerate(chunks)], override_num_blocks=len(chunks)
        ).map(
            Worker,
            fn_constructor_args=[ray.put(dict(model)), attempts, job],
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(chunks)), max_tasks_in_flight_per_actor=2),
            **each,
        )  # fmt: skip
        with Progress("predict", len(left)) as progress:
            for row in rows.iter_rows():
                if row["wrong"]:
                    raise UserError(row["wrong"])
                if row["bug"]:
                    raise RuntimeError(f"a worker failed:\n{row['bug']}")
                for line in shards.write(row["lines"]) if row["lines"] else ():
                    if "skipped" in line:
                        progress.warn(f"skipped: {line['skipped']}")
                    progress.advance()
            rate = progress.rate
    if lost := [path for path in left if path not in shards.shard_of]:
        raise UserError(
            f"{count(len(lost), 'image')} not looked at, since the worker died each of {ATTEMPTS} times (out of memory?): "
            f"{some(lost)}; the others are in {shards.folder}, and the same command tries these again"
        )
    return rate


def _chunks(paths: Sequence[str], workers: int, batch_size: int) -> list[list[str]]:
    """Shards small enough that all workers have work until the end, of whole batches."""
    size = min(max(len(paths) // (_SHARDS * workers), 1), _IMAGES)
    size = -(-size // batch_size) * batch_size
    return [list(paths[start : start + size]) for start in range(0, len(paths), size)]
