"""Prove that two checkouts train alike: the same losses, weights and predictions, bit by bit.

    python benchmarks/same_numbers.py OLD NEW [--models detr,smca-detr] [--old-runs FOLDER] [--new-seed 1] [--json]

Each checkout trains every model, the baselines and variants that take other paths through the code, as its command line does: two epochs of
a few generated images, preset "tiny" where a variant does not say otherwise, float32, one thread of the CPU. Compared are all columns of
``metrics.csv`` but clocks, every tensor of ``model/model.safetensors`` and ``last.ckpt``, and what the saved model predicts. Status 1 where
anything differs. ``--training`` compares losses, rates and ``last.ckpt`` alone: where evaluation changed on purpose, the best of
them may be that of another epoch. ``--old-runs`` keeps the runs of OLD, and a later call does not train them again; ``--new-seed`` trains
NEW from another seed, to see that the comparison can fail.
"""

import argparse
import csv
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BASELINES = ["faster-rcnn", "fcos", "retinanet"]
#: flags of every run, unless a variant has its own
USUAL = {"--preset": "tiny", "--image-size": "96", "--batch-size": "2", "--precision": "float32", "--device": "cpu", "--workers": "0"}
NARROW = "'backbone_options={channels: [8, 8, 16, 16], stem_width: 8, stem_type: null}'"
PAPER = f"--preset paper backbone=resnet10t {NARROW} hidden_dim=64 ffn_dim=64 num_queries=20 encoder_layers=1 decoder_layers=2"
#: model -> variant -> flags, and options as name=value
VARIANTS = {
    "anchor-detr": {"dense": "attention=dense", "grid": "spatial_prior=grid patterns=1", "learned": "query_position=learned"},
    "conditional-detr": {"dropped": "num_queries=[40,20,10]", "sine": "query_position=sine", "bias": "relative_bias=true"},
    "dab-deformable-detr": {"fixed": "fixed_xy=true", "hybrid": "encoder=hybrid", "dropped": "num_queries=[40,30,20]"},
    "dab-detr": {"patterns": "patterns=2 fixed_xy=true", "dropped": "patterns=2 num_queries=[20,20,10]", "bias": "relative_bias=true"},
    "deformable-detr": {
        "points": "box_refine=false two_stage=false matching=one-to-one",
        "refined": "two_stage=false matching=one-to-one",
        "dropped": "num_queries=[40,20,10]",
        "hybrid": "encoder=hybrid",
        "paper": f"{PAPER} levels=2 box_refine=true",
        "from": "--from runs/deformable-detr num_queries=30",
    },
    "detr": {
        "pre-norm": "pre_norm=true position=learned",
        "convolutional": "encoder_ffn=convolutional",
        "accumulate": "--accumulate 2 --freeze-backbone",
        "images-seen": "--images-seen 12",
        "bf16": "--precision bf16",
        "small": "--preset small",
        "paper": PAPER,
    },
    "sam-detr": {"gaussian": "smca=true", "resampled": "cross_attention=false", "levels": "levels=3 dilation=false"},
    "smca-detr": {"levels": "levels=3 dilation=false centre_stride=32 encoder_layers=3", "type4": "dynamic_scale=type4"},
}


def write_images(folder: Path) -> None:
    """A data set in COCO layout: images of two shapes with coloured boxes on noise, one without objects, a crowd; ids with gaps."""
    rng = np.random.default_rng(0)
    categories = [{"id": i, "name": name} for i, name in ((3, "red"), (17, "green"), (90, "blue"))]
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for image in range(count):
            width, height = (128, 96) if image % 3 else (96, 120)
            pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if image == 2 else rng.integers(1, 5)):
                x, y, w, h, label = (int(n) for n in rng.integers((0, 0, 16, 16, 0), (60, 40, 60, 50, 3)))
                pixels[y : y + h, x : x + w, label] = 250
                annotation = {"image_id": image, "category_id": categories[label]["id"], "bbox": [x, y, min(w, width - x), h]}
                annotations.append(annotation | {"id": len(annotations), "iscrowd": int(len(annotations) == 1)})
            images.append({"id": image, "file_name": f"{image}.png", "width": width, "height": height})
            (folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / split / f"{image}.png")
        (folder / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def train_all(models: str, seed: str) -> None:
    """In a process of a checkout, whose working directory has the images: train what is not in ``runs/`` yet, each in a fork."""
    import lightning  # noqa: F401 (what takes long to import is imported once)
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    import boxquery as bq

    if not Path(bq.__file__).is_relative_to(os.environ["PYTHONPATH"]):
        sys.exit(f"{os.environ['PYTHONPATH']}: no boxquery there; {bq.__file__} would be trained")
    for model in [*bq.list_models(), *BASELINES]:
        for variant, words in {"": "", **VARIANTS.get(model, {})}.items():
            run = Path("runs", f"{model} {variant}".strip())
            if (model in models.split(",") or not models) and not (run / "predictions.npz").exists():
                process = multiprocessing.get_context("fork").Process(target=train, args=(model, words, seed, run))
                process.start()
                process.join()


def train(model: str, words: str, seed: str, run: Path) -> None:
    import boxquery as bq

    sys.stdout = sys.stderr = run.with_name(f"{run.name}.txt").open("w")
    shutil.rmtree(run, ignore_errors=True)
    flags = USUAL | {"--model": model, "--seed": seed, "--out": str(run)} | ({} if "--images-seen" in words else {"--epochs": "2"})
    usual = [word for flag, value in flags.items() if flag not in words for word in (flag, value)]
    own = [word for part in shlex.split(words) for word in (["--option", part] if "=" in part else [part])]
    sys.argv = ["boxquery", "train", "images", "--pretrained=false", *usual, *own]
    try:
        runpy.run_module("boxquery", run_name="__main__")
    except SystemExit as done:
        if done.code:
            return  # its error is in the log
    results = bq.load(run).predict(sorted(Path("images/val").glob("*.png")), threshold=0.0)
    arrays = {f"{i} {name}": getattr(result, name) for i, result in enumerate(results) for name in ("boxes", "scores", "labels")}
    np.savez(run / "predictions.npz", **arrays)


def numbers(run: Path, training: bool) -> Iterator[tuple[str, Any]]:
    """Everything that has to be the same (of ``training`` alone), by name: text, or bytes with their type and shape."""
    import torch
    from safetensors.torch import load_file

    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            learned = list(row)[: list(row).index("AP")] if training and "AP" in row else list(row)
            yield from ((f"{k} of epoch {row['epoch']}", row[k]) for k in learned if not k.endswith("seconds"))
    weights = {"last.ckpt": torch.load(run / "last.ckpt", weights_only=True)["state_dict"]}
    if not training:
        weights["model.safetensors"] = load_file(run / "model/model.safetensors")
        for name, array in np.load(run / "predictions.npz").items():
            yield f"prediction {name}", (array.dtype, array.shape, array.tobytes())
    for file, tensors in weights.items():
        for name, tensor in tensors.items():
            flat = tensor.contiguous().reshape(-1)
            yield f"{name} in {file}", (tensor.dtype, tensor.shape, flat.view(torch.uint8).numpy().tobytes())


def compare(old: Path, new: Path, training: bool) -> str:
    """How many numbers and tensors of two runs are equal, or the first that is not."""
    for side, run in (("old", old), ("new", new)):
        if not (run / "predictions.npz").exists():
            log = run.with_name(f"{run.name}.txt")
            return f"{side}: {(log.read_text().splitlines() or ['?'])[-1]}" if log.exists() else f"{side}: no such model"
    a, b = dict(numbers(old, training)), dict(numbers(new, training))
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            values = (side.get(name, "missing") for side in (a, b))
            return f"{name}: " + ", ".join(value if isinstance(value, str) else f"{value[0]} {list(value[1])}" for value in values)
    return f"equal ({len(a)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--old-runs", type=Path, help="a folder that keeps what OLD trained")
    parser.add_argument("--new-seed", default="0")
    parser.add_argument("--training", action="store_true", help="compare losses, rates and the weights of last.ckpt alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [(arguments.old_runs or Path(scratch, "old")).resolve(), Path(scratch, "new")]
        processes = []
        for folder, checkout, seed in zip(folders, (arguments.old, arguments.new), ("0", arguments.new_seed), strict=True):
            write_images(folder / "images")
            (folder / "runs").mkdir(exist_ok=True)
            set_up = {"PYTHONPATH": str(checkout.resolve() / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            words = [sys.executable, "-P", str(Path(__file__).resolve()), "--train", arguments.models, seed]
            processes.append(subprocess.Popen(words, cwd=folder, env={**os.environ, **set_up}))
        if max([process.wait() for process in processes]):
            return 1
        names = sorted({log.stem for folder in folders for log in (folder / "runs").glob("*.txt")})
        chosen = [name for name in names if name.split()[0] in arguments.models.split(",") or not arguments.models]
        found = {name: compare(folders[0] / "runs" / name, folders[1] / "runs" / name, arguments.training) for name in chosen}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for name, line in found.items():
            print(f"{name:28}{line}")
    return int(not found or any(not line.startswith("equal") for line in found.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_all(*sys.argv[2:])
    else:
        sys.exit(main())
