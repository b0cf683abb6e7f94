"""Make the weights that come with the library: ``deformable-detr`` "tiny", trained on varied built-in scenes alone.

    python benchmarks/bundled.py --runs runs/bundled        # 72 minutes of CPU time on one thread; goes on where it was stopped

A hundred classes, random outlines with parts and colours of their own on rough grounds, teach more about photographs than five shapes do
(docs/LOG.md, "Drawn scenes of a hundred classes"). The best weights are stored in half precision; AP on the scenes' val split is printed
before and after.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import boxquery as bq
from boxquery.data.open import open_data
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import predict_split
from boxquery.fine_tuning import SHAPES
from boxquery.model_folder import WEIGHTS, bundled, save

SCENES = "shapes:classes=100,train=12000,val=200"
TRAINING: dict[str, Any] = {
    "model": "deformable-detr", "preset": "tiny", "image_size": 160, "square": True, "lr": 1e-3, "pretrained": False,
    "augment": {"level": "strong", "scales": [1.0]}, "minutes": 80, "clock": "cpu", "device": "cpu", "workers": 0, "seed": 0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/bundled"), help="folder of the run (default: %(default)s)")
    run, folder = parser.parse_args().runs, bundled(SHAPES)
    torch.set_num_threads(1)
    if not (run / "report.html").is_file():
        bq.train(SCENES, out=run, resume=(run / "last.ckpt").is_file(), **TRAINING)
    detector, data = bq.load(run), open_data(SCENES)
    detector.model.half()
    save(detector, folder)
    for name, each in (("as trained", bq.load(run)), ("in half precision", bq.load(folder))):
        split = data.split("val")
        print(f"{name}: AP {evaluate(split, predict_split(each, split), data.names, data.ids)['AP']:.4f} on val of the scenes")
    print(f"{folder}: {(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
