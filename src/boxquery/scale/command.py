"""``boxquery predict --engine ray``: what the ordinary one finds, found by the workers of a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boxquery.errors import UserError, count
from boxquery.flags import is_exported
from boxquery.hub import model_files
from boxquery.predict.outputs import Kind, ResultWriter, new_folder
from boxquery.predict.sources import Item, Source
from boxquery.predict.summary import Summary
from boxquery.progress import note
from boxquery.runtime.predictor import Predictor
from boxquery.scale.prediction import predict_in_shards
from boxquery.scale.shards import FOLDER, INDEX, Shards, result_of

#: what is written without the images' pixels
KINDS: tuple[Kind, ...] = ("json", "txt", "xml", "csv")


def predict_by_ray(
    model: Path,
    detector: Predictor,
    images: Sequence[Source],
    system: str,
    *,
    out: Path | None,
    kinds: Sequence[Kind],
    options: Mapping[str, Any],
    image_size: int | None,
    device: str,
    workers: int | None,
) -> tuple[Summary, Path, float]:
    """Look at images in shards, and write what the ordinary prediction writes; returns what was found, where it is, images per second.

    Args:
        model: its folder, or the file that was exported.
        detector: the same model, for threshold and classes.
        images, system: from ``find_anywhere``.
        out: None: a new folder; one with shards is continued.
        options: keyword arguments of ``Detector.predict``.
        image_size: of the model's input; None: that of its training.
        device, workers: see ``predict_in_shards``.

    Raises ``UserError``.
    """
    if pixels := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--save {','.join(pixels)}: --engine ray writes {', '.join(KINDS)}; leave the flag out, or the engine")
    content = _read_model(model)
    settings = {
        "model_sha256": hashlib.sha256(b"".join(content[name] for name in sorted(content))).hexdigest(),
        **{name: value for name, value in options.items() if name != "batch_size"},
        "threshold": detector.min_score(options["threshold"]),
        "image_size": image_size or detector.image_size,
    }
    folder = out if out is not None and (out / FOLDER / INDEX).is_file() else new_folder(out)
    shards, paths = Shards(folder, settings), [str(image.path) for image in images]
    for name in shards.damaged:
        note(f"{shards.folder / name} is damaged; its images are looked at again")

    def known() -> str:
        return f"{sum(path in shards.shard_of for path in paths):,} of {count(len(paths), 'image')}"

    if shards.shard_of:
        note(f"{known()} are in {shards.folder} already")
    try:
        rate = predict_in_shards(
            shards, paths, content, options=options, image_size=image_size, device=device, system=system, workers=workers
        )  # fmt: skip
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{known()} were looked at, see {shards.folder}; the same command with --out {folder} continues") from error
    summary = Summary(settings["threshold"], given=options["threshold"] is not None, named=any(detector.classes))
    with ResultWriter(folder, kinds, detector.classes) as writer:
        for image, line in zip(images, shards.read(paths), strict=True):
            if "skipped" in line:
                summary.unreadable += 1
                continue
            for words in line["remarks"]:
                summary.remarks[words].append(image.name)
            item, result = Item(image), result_of(line)
            writer.add(item, result)
            summary.add(item, result)
        if summary.unreadable == len(images):
            raise UserError(f"none of {count(len(images), 'image')} could be read")
    shards.finish()
    return summary, folder, rate


def _read_model(model: Path) -> dict[str, bytes]:
    """The files of a model, for workers on machines that cannot see them."""
    if is_exported(str(model)):
        return {path.name: path.read_bytes() for path in (model, model.with_suffix(".bin")) if path.is_file()}
    folder = model / "model" if (model / "model").is_dir() else model
    return {name: (folder / name).read_bytes() for name in model_files([path.name for path in folder.iterdir() if path.is_file()])}
