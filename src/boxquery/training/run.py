"""The main job, as Python and the command line call it. Imports no torch: what is heavy waits until it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from boxquery.errors import UserError
from boxquery.flags import Options, check_above_zero
from boxquery.training.config import RunConfig

if TYPE_CHECKING:
    from boxquery.data.dataset import Data
    from boxquery.detector import Detector

    Source = str | Path | Data
else:  # the command line reads these at run time, where torch must not be loaded for them
    Source, Detector = str, Any


def train(
    data: Source,
    /,
    *,
    start_from: Annotated[str | Path | None, Parameter(name="--from")] = None,
    model: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    clock: str = "wall",
    images_seen: int | None = None,
    schedule_steps: int | None = None,
    options: Options = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    lr: float | None = None,
    patience: int = 0,
    val_every: int | None = None,
    pretrained: bool = False,
    freeze_backbone: bool = False,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    strict: bool = False,
    resume: bool = False,
    force: bool = False,
) -> Detector:
    """Train a detector; classes and their ids come from the data.

    Args:
        data: a folder or file in COCO, Pascal VOC or YOLO layout, or the word ``shapes``.
        start_from: a trained model to start from (docs/transfer.md): a run or model folder, a hub id, or a paper's released checkpoint.
            Classes are matched by name; they and any option may be others. Options that are not given are as there.
        model: what to train, see ``list_models()`` and ``boxquery.models.list_baselines()``; None: "deformable-detr".
        preset: its size and recipe: "paper", "small" or "tiny"; None: "small". With ``start_from`` the recipe alone.
        out: the run folder; None: a new one under ``runs/``.
        epochs: passes over the training images; None: the preset's, or as many as fit into ``minutes``.
        minutes: about how long; becomes a number of steps after a few timed ones. With ``epochs`` what is over first counts.
        clock: of the minutes: "wall", or "processor", which a busy machine does not shorten. The wall's are planned, the processor's (what
            ``compare`` uses; on CUDA the wall's, too) are kept: it ends the run when nine tenths are spent, at about the planned steps.
        images_seen: instead of both, how many training images to see in all; the last epoch is cut short.
        schedule_steps: updates that the rate's schedule is made for; None: those of the run.
        options: the model's own knobs, as ``create_model`` takes them; on the command line ``--option name=value``, repeated.
        image_size: short side in pixels; the long side is at most 5/3 of it.
        batch_size: images a step of one process.
        accumulate: steps that make one update.
        lr: rate of the transformer; the backbone's keeps its ratio to it.
        patience: stop after so many evaluations without a better AP; 0: never.
        val_every: epochs from one evaluation to the next; None: chosen, about 50 evaluations in all.
        pretrained: start from backbone weights of the hub.
        freeze_backbone: train none of the backbone.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "float32" or "bf16".
        workers: processes that read images; None: chosen.
        seed: of start values, order, augmentation and dropout; never of a split, which ``evaluate`` has to make again.
        strict: boxes and images at fault are fatal instead of skipped.
        resume: go on with the run in ``out`` from its last finished epoch; settings are the run's own, and others are refused, except
            ``device`` and ``workers``.
        force: train even where the check before the first epoch says that it is worth nothing.

    Returns the best model. The run folder then holds ``config.yaml``, ``metrics.csv``, ``model/``, ``last.ckpt`` and ``report.html``.
    Under ``torchrun`` every process calls this and each takes its share. Raises ``UserError``.
    """
    check_above_zero(
        epochs=epochs, minutes=minutes, images_seen=images_seen, schedule_steps=schedule_steps, image_size=image_size,
        batch_size=batch_size, accumulate=accumulate, lr=lr, val_every=val_every,
    )  # fmt: skip
    if workers is not None and workers < 0:
        raise UserError(f"workers={workers}: must be 0 or more")
    wish = RunConfig(
        data=str(data) if isinstance(data, str | Path) else data.source,
        model=model or "",
        preset=preset or "",
        options=options or {},
        pretrained=pretrained,
        freeze_backbone=freeze_backbone,
        start_from="" if start_from is None else str(start_from),
        image_size=image_size or 0,
        batch_size=batch_size or 0,
        accumulate=accumulate,
        epochs=epochs or 0,
        minutes=minutes,
        clock=clock,
        images_seen=images_seen,
        schedule_steps=schedule_steps or 0,
        lr=lr or 0.0,
        val_every=val_every or 0,
        patience=patience,
        device=device,
        precision=precision,
        workers=-1 if workers is None else workers,
        seed=seed,
        strict=strict,
        force=force,
    )
    from boxquery.training.fit import start

    return start(data, None if out is None else Path(out), wish, resume)
