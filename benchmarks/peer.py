"""Our default beside ultralytics' YOLO26n, without released weights, on one thread, for the same CPU seconds.

    python benchmarks/peer.py raccoon=path/to/raccoon bccd=path/to/bccd cards=path/to/cards        # resumable
    python benchmarks/peer.py raccoon=path/to/raccoon --seconds 500 --seeds 0 --only yolo26n       # a part of it
    python benchmarks/peer.py bccd=path/to/bccd --tune --model fcos --preset tiny                   # another model, on part of train
    python benchmarks/peer.py --show                                                               # tables of what was measured

Every run is a process of its own on one CPU thread and without released weights; the two systems take turns by set, seed and seconds.
What is counted is the CPU time of that process while it trains, reading of images included; imports and the evaluation that is reported
are not. Each number of seconds is a run of its own, since the learning rate schedule ends with it. Processors differ in what they
do in a CPU second, so each has runs and a table of its own.

- ours: ``boxquery train DATA --model auto --minutes M --clock cpu``, with M such that the CPU seconds are spent (the command by itself
  plans for 90 % of M). ``--model``, ``--preset`` and ``--option`` put another model in its place. It evaluates once, at the end, within
  its seconds: what is reported is the last model, and nothing was chosen on the split that it is reported on. It starts from random
  weights as the peer does, or with ``--scenes`` as it does by itself: from the drawn scenes of benchmarks/bundled.py.
- YOLO26n (benchmarks/peer_yolo.py): its package's defaults, batch 16, installed into ``--runs``/venv. The long side of its input is ours,
  rounded up to its stride of 32, so ours must have been measured first; that of "yolo26n 320" is 320 pixels. Its schedule is one of
  epochs; their number is planned from timed batches, which are not counted. Without validation while it trains; the moving average of the
  weights at the end is what is reported. ``AP`` is with the package's default (NMS), ``end_to_end`` with its end-to-end head.

Both learn from the same images and boxes (YOLO26n from a copy that our reader wrote in YOLO's layout), and both are evaluated by our
evaluator on raw boxes, at most 100 per image. ``--tune`` holds out a fifth of the training images in place of the val split, which it
never opens: choices are made on these. Beside both is the training images' median box of each class, predicted in every image.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from boxquery.benchmark.machine import processor
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.open import open_data
from boxquery.data.splits import equal_files
from boxquery.evaluation.bootstrap import image_weights, interval, resampled_ap
from boxquery.evaluation.coco_matching import ImageDetections
from boxquery.evaluation.median_box import evaluate_median_boxes, median_boxes
from boxquery.evaluation.metrics import evaluate
from boxquery.files import write_json
from boxquery.training.config import RunConfig
from boxquery.training.run_length import PLANNED

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "experiments" / "results" / "peer.json"
PEER = "yolo26n"
#: the peer with another image size than ours, in pixels
WIDE = (f"{PEER} 320", 320)
PACKAGES = ("ultralytics==8.4.190", "torch==2.14.1", "torchvision==0.29.1")
HELD_OUT, RESAMPLES = 5, 200
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true"}
NOT_MEASURED = "not measured"
Detections = Mapping[int, ImageDetections]


def splits(data: Data, tune: bool) -> tuple[Split, Split]:
    """What is trained on, and what is evaluated on: val, or with ``tune`` a fifth of train."""
    train = data.training_split()
    if not tune:
        return train, data.split("val")
    twins = {path: group[0] for group in equal_files(record.path for record in train if record.path) for path in group}
    groups: dict[Any, list[Record]] = {}  # copies of one file stay on one side
    for place, record in enumerate(train):
        groups.setdefault(twins.get(record.path, place), []).append(record)
    order = random.Random(0).sample(list(groups.values()), len(groups))
    count = len(order) // HELD_OUT
    kept, held_out = ([record for group in part for record in group] for part in (order[count:], order[:count]))
    return replace(train, records=kept), replace(train, records=held_out)


def write_yolo(folder: Path, names: Sequence[str], parts: Mapping[str, Split]) -> Path:
    """The images and boxes in YOLO's layout, named by their position, unless they are there: the file of settings.

    Boxes to be ignored are left out.
    """
    digest = hashlib.blake2b(repr([*names, *parts]).encode(), digest_size=4)
    for record in (record for split in parts.values() for record in split):
        digest.update(
            f"{record.path} {record.id} {record.width} {record.height}".encode() + record.labels.tobytes() + record.boxes.tobytes()
        )
    folder = folder / digest.hexdigest()
    settings = folder / "data.yaml"
    if settings.exists():  # it is written last
        return settings
    for part, split in parts.items():
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for place, record in enumerate(split):
            image = folder / "images" / part / f"{place:06}{'.png' if record.path is None else record.path.suffix.lower()}"
            if record.path is None:
                split.read(place).save(image)
            else:
                shutil.copyfile(record.path, image)
            kept = ~record.ignore
            boxes = record.boxes[kept].astype(np.float64) / np.array([record.width, record.height] * 2)
            centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
            lines = [
                f"{label} {' '.join(f'{value:.8f}' for value in box)}" for label, box in zip(record.labels[kept], centred, strict=True)
            ]
            (folder / "labels" / part / f"{place:06}.txt").write_text("".join(f"{line}\n" for line in lines))
    places = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    settings.write_text(json.dumps(places))  # JSON is YAML
    return settings


def run_ours(data: str, val: Split, out: Path, seconds: float, seed: int, args: argparse.Namespace) -> tuple[dict[str, Any], Detections]:
    """Train, and detect in the val split with the last model: facts of the run, and its detections."""
    import boxquery as bq
    from boxquery.evaluation.predictions import predict_split

    command = [sys.executable, "-m", "boxquery", "train", data, "--model", args.model, "--minutes", str(seconds / 60 / PLANNED),
               "--clock", "cpu", "--val-every", "1000000", "--pretrained", "auto" if args.scenes else "none", "--device", "cpu",
               "--seed", str(seed), "--out", str(out)]  # fmt: skip
    command += [word for name in ("preset", "image_size", "batch_size") if (value := getattr(args, name)) is not None
                for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    command += [word for flag in ("option", "augment") for value in getattr(args, flag) for word in (f"--{flag}", value)]
    call(command, out)
    detector = bq.load(out)
    last = list(csv.DictReader((out / "metrics.csv").open()))[-1]
    facts = {
        "cpu_seconds": round(float(last["cpu_seconds"]), 1),
        "images_seen": int(float(last["images"])),
        "parameters": sum(p.numel() for p in detector.model.parameters()),
        "image_size": detector.image_size,
        "long_side": max(max(detector.preprocessing.size(record.height, record.width)) for record in val),
        "precision": RunConfig.read(out).precision,
    }
    return facts, predict_split(detector, val)


def run_peer(
    data: Path, val: Split, out: Path, seconds: float, seed: int, image_size: int, args: argparse.Namespace
) -> tuple[dict[str, Any], list[Detections]]:
    """Train the peer and evaluate it: facts of the run, and its detections with NMS and of its end-to-end head."""
    python = environment(args)
    call([str(python), str(HERE / "peer_yolo.py"), str(data), str(out), "--seconds", str(seconds), "--seed", str(seed),
          "--imgsz", str(image_size), "--batch", str(args.peer_batch)], out)  # fmt: skip
    facts = json.loads((out / "result.json").read_text())
    return {**facts, "image_size": image_size}, [read_detections(out / f"{name}.json") for name in ("nms", "end_to_end")]


def read_detections(path: Path) -> Detections:
    """COCO's result format, with images named by their position and categories counted from 1."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for found in json.loads(path.read_text()):
        by_image.setdefault(int(found["image_id"]), []).append(found)
    result = {}
    for place, some in by_image.items():
        boxes = np.array([found["bbox"] for found in some])
        boxes[:, 2:] += boxes[:, :2]
        result[place] = boxes, np.array([found["score"] for found in some]), np.array([found["category_id"] - 1 for found in some])
    return result


def environment(args: argparse.Namespace) -> Path:
    """The Python of the peer's own environment, which is made first where it is missing."""
    python = args.venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(args.venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def call(command: Sequence[str], out: Path) -> None:
    """Run a training process on one thread, from the start; what it says is in OUT.log. Ends this program if it fails."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    settings = {"YOLO_CONFIG_DIR": str(out.parent.resolve() / "settings")}
    with log.open("w") as file:
        process = subprocess.run(command, env={**os.environ, **ONE_THREAD, **settings}, stdout=file, stderr=subprocess.STDOUT)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed; its last lines, of {log}:\n{''.join(log.read_text().splitlines(True)[-15:])}")


def score(val: Split, found: Detections, data: Data) -> dict[str, Any]:
    """AP, AP50 and AP75, the 95 % interval of AP over resampled images, and the resampled APs in thousandths."""
    metrics = evaluate(val, found, data.names, data.ids)
    resampled, _ = resampled_ap(val, found, len(data.names), image_weights(len(val))[:RESAMPLES])
    bounds = interval(resampled)
    return {
        **{name: round(metrics[name], 4) for name in ("AP", "AP50", "AP75")},
        "interval": None if bounds is None else [round(bound, 4) for bound in bounds],
        "resampled": " ".join(f"{1000 * value:.0f}" for value in np.nan_to_num(resampled)),
    }


def measure(name: str, path: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """All runs of one data set that are not in the results."""
    data, where = open_data(path), "held out of train" if args.tune else "val"
    train, val = splits(data, args.tune)
    folder = args.runs / ("tune" if args.tune else "val") / name
    yolo = write_yolo(folder.resolve() / "data", data.names, {"train": train, "val": val})
    fixed = evaluate_median_boxes(median_boxes(train, len(data.names)), val, data.names, data.ids)
    results["sets"][f"{name}, {where}"] = {
        "training_images": len(train), "images": len(val), "objects": sum(int((~record.ignore).sum()) for record in val),
        "median_box": {k: v and round(v, 4) for k, v in fixed.items()},
    }  # fmt: skip
    for seconds in args.seconds:
        for seed in args.seeds:
            for system in systems(args, args.only):
                key = {"set": name, "split": where, "system": system, "seconds": seconds, "seed": seed, "processor": processor()["name"]}
                if any(key.items() <= row.items() for row in results["runs"]):
                    continue
                print(f"{name} ({where}): {system}, {seconds} s, seed {seed}", flush=True)
                out, version = folder / f"{system.replace(' ', '-')}-{seconds}-{seed}", commit()
                if system in (PEER, WIDE[0]):
                    image_size = WIDE[1] if system == WIDE[0] else input_of_ours(results, name, where, systems(args, only=None)[0])
                    facts, (found, end_to_end) = run_peer(yolo, val, out, seconds, seed, image_size, args)
                    facts["end_to_end"] = {k: v for k, v in score(val, end_to_end, data).items() if k != "resampled"}
                else:
                    facts, found = run_ours(str(yolo.parent) if args.tune else path, val, out, seconds, seed, args)
                row = {**key, **score(val, found, data), **facts, "commit": version}
                results["runs"].append(row)
                write_json(args.results, results)
                print(f"  AP {row['AP']:.3f} {row['interval']}, AP50 {row['AP50']:.3f}, {row['cpu_seconds']} CPU s", flush=True)


def input_of_ours(results: Mapping[str, Any], name: str, where: str, ours: str) -> int:
    """The long side of our model's images, rounded up to the peer's stride. Ends this program where ours is not measured."""
    sides = [row["long_side"] for row in results["runs"] if (row["set"], row["split"], row["system"]) == (name, where, ours)]
    if not sides:
        raise SystemExit(f"{name} ({where}): {PEER} has the image size of {ours}, which is not measured; measure it first, or {WIDE[0]}")
    return -(-sides[-1] // 32) * 32


def systems(args: argparse.Namespace, only: str | None) -> list[str]:
    """Those that are measured, ours first."""
    sizes = [f"{value} {unit}" for value, unit in ((args.image_size, "px"), (args.batch_size, "per batch")) if value is not None]
    ours = " ".join([args.model, *filter(None, [args.preset]), *args.option, *sizes, *args.augment, *["from scenes"] * args.scenes])
    return [ours, PEER, WIDE[0]] if only is None else [ours if only == "auto" else only]


def commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def show(results: Mapping[str, Any], seconds: Sequence[int]) -> str:
    """Markdown: a table per set and processor, with the mean over seeds, the lowest and the highest, and what ours is better by."""
    parts = []
    places = dict.fromkeys((f"{row['set']}, {row['split']}", row["processor"]) for row in results["runs"])
    for title, where in sorted(places, key=lambda place: [*results["sets"]].index(place[0])):
        facts = results["sets"][title]
        runs = [row for row in results["runs"] if (f"{row['set']}, {row['split']}", row["processor"]) == (title, where)]
        columns = sorted({*seconds, *(row["seconds"] for row in runs)})
        peers = [PEER, WIDE[0]]
        names = sorted({row["system"] for row in runs}.difference(peers))
        heading = f"**{title}**, {where}"
        lines = [f"{heading}: {facts['images']} images, {facts['objects']} objects; trained on {facts['training_images']} images", "",
                 f"| AP / AP50 (95 % interval of AP over images) | {' | '.join(f'{s:,} CPU s' for s in columns)} |",
                 "|---" * (1 + len(columns)) + "|"]  # fmt: skip
        for system in [*(names or ["auto"]), *peers]:
            lines.append(f"| {system} | {' | '.join(_cell(_of(runs, system, s)) for s in columns)} |")
        for system, other in product(names, peers):
            lines.append(f"| {system} minus {other} | {' | '.join(_gain(_of(runs, system, s), _of(runs, other, s)) for s in columns)} |")
        fixed = " / ".join(_three(facts["median_box"][key]) for key in ("AP", "AP50"))
        lines.append(f"| median box per class | {' | '.join([fixed] * len(columns))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _of(runs: Sequence[Mapping[str, Any]], system: str, seconds: int) -> list[Mapping[str, Any]]:
    return [row for row in runs if row["system"] == system and row["seconds"] == seconds]


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return NOT_MEASURED
    ap = [row["AP"] for row in rows]
    spread = f"; seeds {_three(min(ap))} to {_three(max(ap))}" if len(ap) > 1 else ""
    low, high = _bounds(_resampled(rows))
    spent = mean(row["cpu_seconds"] for row in rows)
    spread += f"; {spent:,.0f} CPU s" if abs(spent / rows[0]["seconds"] - 1) > 0.03 else ""
    return f"{_three(mean(ap))} / {_three(mean(row['AP50'] for row in rows))} ({_three(low)} to {_three(high)}{spread})"


def _gain(ours: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]]) -> str:
    """The difference of the means over seeds, on the same resampled images."""
    if not ours or not peers:
        return NOT_MEASURED
    low, high = _bounds(_resampled(ours) - _resampled(peers))
    return f"{mean(row['AP'] for row in ours) - mean(row['AP'] for row in peers):+.3f} ({low:+.3f} to {high:+.3f})"


def _resampled(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[int(value) for value in row["resampled"].split()] for row in rows]).mean(axis=0) / 1000


def _bounds(values: np.ndarray) -> tuple[float, float]:
    found = interval(values)
    assert found is not None
    return found


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="NAME=PATH", help="data sets, each with a name")
    parser.add_argument("--seconds", nargs="+", type=int, default=[500, 1000, 2000], help="CPU seconds (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: %(default)s)")
    parser.add_argument("--only", choices=["auto", PEER, WIDE[0]], help="one of them; auto is ours, whichever --model is in its place")
    parser.add_argument("--tune", action="store_true", help="evaluate on a fifth of train, which is not trained on; val is not opened")
    parser.add_argument("--model", default="auto", help="our model (default: %(default)s)")
    parser.add_argument("--preset", help="its preset")
    parser.add_argument("--option", action="append", default=[], help="an option of it as name=value; may be repeated")
    parser.add_argument("--augment", action="append", default=[], help="of our model, as train has it; may be repeated")
    parser.add_argument("--image-size", type=int, help="of our model, and with it of the peer (default: its own choice)")
    parser.add_argument("--batch-size", type=int, help="of our model (default: its own choice)")
    parser.add_argument(
        "--scenes", action="store_true", help="ours starts from the drawn scenes that come with the library, as is its default"
    )
    parser.add_argument("--peer-batch", type=int, default=16, help="of the peer (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/peer"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--venv", type=Path, help="environment of the peer (default: venv in --runs)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="only print the tables")
    return parser


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    args.venv = args.venv or args.runs / "venv"
    named = [word.partition("=") for word in args.sets]
    if wrong := [word for (name, _, path), word in zip(named, args.sets, strict=True) if not (name and path)]:
        parser.error(f"{wrong[0]}: write NAME=PATH")
    results = json.loads(args.results.read_text()) if args.results.exists() else {"sets": {}, "runs": []}
    if not args.show:
        for name, _, path in named:
            measure(name, path, args, results)
    print(show(results, args.seconds))


if __name__ == "__main__":
    main()
