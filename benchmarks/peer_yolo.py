"""One run of ultralytics' YOLO for benchmarks/peer.py, with the Python of an environment of its own, which has that package.

    runs/peer/venv/bin/python benchmarks/peer_yolo.py DATA.yaml OUT --seconds 500 --seed 0 --imgsz 320 --batch 16

Trains yolo26n from its yaml (random weights, the package's defaults, no validation while it trains) on one thread for so many CPU seconds
of this process, counted from the first batch on. Its schedule is one of epochs, so their number comes from some timed batches, with
mosaic and without (the package ends mosaic ten epochs before the last); those batches are not counted and not kept. It stops with the
last epoch or when the seconds are spent, whichever is first. The moving average of the weights then is evaluated by the package on the
val split at a score of .001, once with its default (NMS on the one-to-many head) and once with the end-to-end head. Writes
OUT/result.json and the detections.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO, __version__, settings

MODEL = "yolo26n.yaml"
WARM, TIMED = 4, 12


class Stopped(Exception):
    """Training is over."""


class Watch:
    """CPU seconds from the first batch on, and when to stop.

    Args:
        seconds: so many CPU seconds; None: no limit.
        batches: so many batches; None: no limit.
    """

    def __init__(self, seconds: float | None, batches: int | None):
        self.seconds, self.batches = seconds, batches
        self.begun, self.marks = 0.0, [0.0]

    def start(self, trainer: Any) -> None:
        torch.set_num_threads(1)
        self.begun = time.process_time()

    def after_batch(self, trainer: Any) -> None:
        self.marks.append(time.process_time() - self.begun)
        done = len(self.marks) - 1
        over = self.seconds is not None and self.marks[-1] >= self.seconds
        if over or done == self.batches or done == trainer.epochs * len(trainer.train_loader):
            raise Stopped


def train(args: argparse.Namespace, name: str, watch: Watch, **changed: Any) -> Any:
    """The package's trainer after a run that ``watch`` ends."""
    model = YOLO(MODEL)
    model.add_callback("on_train_start", watch.start)
    model.add_callback("on_train_batch_end", watch.after_batch)
    fixed = {"pretrained": False, "device": "cpu", "workers": 0, "val": False, "save": False, "plots": False, "verbose": False}
    try:
        model.train(
            data=str(args.data), imgsz=args.imgsz, batch=args.batch, seed=args.seed, project=str(args.out), name=name, exist_ok=True,
            **fixed, **changed,
        )  # fmt: skip
    except Stopped:
        return model.trainer
    raise SystemExit("the package's training ended by itself: its callbacks are not called as they were in 8.4.190")


def time_batches(args: argparse.Namespace, **changed: Any) -> tuple[float, Any]:
    """CPU seconds per batch, and the trainer that they were timed with.

    Without the package's warm-up, in whose first batches the optimizer steps after each of them and not after every fourth.
    """
    watch = Watch(None, WARM + TIMED)
    trainer = train(args, "timing", watch, epochs=1000, warmup_epochs=0, **changed)
    return (watch.marks[-1] - watch.marks[WARM]) / TIMED, trainer


def evaluate(args: argparse.Namespace, weights: Path, name: str, nms: bool | None) -> float:
    """Write the package's detections on the val split; returns the AP that it gives itself."""
    metrics = YOLO(weights).val(
        data=str(args.data), imgsz=args.imgsz, batch=1, device="cpu", workers=0, conf=0.001, max_det=100, nms=nms, save_json=True,
        plots=False, verbose=False, project=str(args.out), name=name, exist_ok=True,
    )  # fmt: skip
    shutil.copy(args.out / name / "predictions.json", args.out / f"{name}.json")
    return float(metrics.box.map)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    args = parser.parse_args()
    args.out = args.out.resolve()
    settings.update(sync=False)
    (without, _), (with_mosaic, timed) = time_batches(args, mosaic=0.0), time_batches(args)
    batches, images, last = len(timed.train_loader), len(timed.train_loader.dataset), int(timed.args.close_mosaic)
    closing = min(last * batches * without, args.seconds / 2)
    epochs = max(last + round((args.seconds - closing) / (batches * with_mosaic)), 1)
    watch = Watch(args.seconds, None)
    trainer = train(args, "run", watch, epochs=epochs)
    trainer.save_model()
    whole, rest = divmod(len(watch.marks) - 1, batches)
    result = {
        "epochs": epochs,
        "epochs_done": round(whole + rest / batches, 2),
        "images_seen": whole * images + min(rest * args.batch, images),
        "cpu_seconds": round(watch.marks[-1], 1),
        "ms_per_image": round(1000 * with_mosaic / args.batch, 1),
        "ms_per_image_without_mosaic": round(1000 * without / args.batch, 1),
        "optimizer": trainer.args.optimizer,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "package": f"ultralytics {__version__}, torch {torch.__version__}",
        "own_AP": {name: round(evaluate(args, trainer.last, name, nms), 4) for name, nms in (("nms", None), ("end_to_end", False))},
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
