"""Make the weights that come with the library: ``deformable-detr`` "tiny", trained on the built-in scenes alone.

    python benchmarks/bundled.py --runs runs/finetune                # twenty minutes of CPU time, or less where the run is there already

It is the run that benchmarks/finetune.py starts from. Its best weights are stored in half precision; AP on the scenes' val split is
printed before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import boxquery as bq
from boxquery.data.open import open_data
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import predict_split
from boxquery.fine_tuning import SHAPES
from boxquery.model_folder import WEIGHTS, bundled, save
from finetune import scenes_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune"), help="folder of the run (default: %(default)s)")
    folder, data = bundled(SHAPES), open_data("shapes")
    detector = bq.load(scenes_model(parser.parse_args().runs))
    detector.model.half()
    save(detector, folder)
    for name, each in (("as trained", bq.load(scenes_model(parser.parse_args().runs))), ("in half precision", bq.load(folder))):
        split = data.split("val")
        print(f"{name}: AP {evaluate(split, predict_split(each, split), data.names, data.ids)['AP']:.4f} on val of the scenes")
    print(f"{folder}: {(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
