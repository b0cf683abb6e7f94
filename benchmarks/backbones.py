"""Which backbone the presets "small" and "tiny" should have: what each costs per step, and what AP it gives at equal CPU time.

    python benchmarks/backbones.py bccd=path/to/bccd cards=path/to/cards          # resumable: what stands in --out is not measured again
    python benchmarks/backbones.py --show                                         # only the tables
    python benchmarks/backbones.py --only speed

``speed``: milliseconds of CPU time of a training step and of a forward pass of Deformable DETR with each of ``BACKBONES``, a batch of four
images of the preset's size, one thread; the median of ``TIMED`` steps, all backbones in turn, so that other load falls on all alike.

``AP``: ``boxquery train`` of Deformable DETR from random weights, ``SECONDS`` of CPU time per run, one thread, ``COMPARED`` backbones, two
seeds. AP is that of the best model on val, as in ``evaluation.json``. Released weights are not loaded: these runs say what a backbone costs
where there are none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import boxquery as bq
from boxquery.files import atomic_write
from boxquery.models import preset
from boxquery.models.recipes import NARROW_RESNET10, NARROW_RESNET18
from boxquery.optimization import Optimization
from boxquery.report.run_files import read_run

MODEL = "deformable-detr"
#: name -> backbone and its options; of the last six weights are released
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "narrow resnet10": ("resnet18", NARROW_RESNET10),
    "narrow resnet18": ("resnet18", NARROW_RESNET18),
    "resnet10t": ("resnet10t", {}),
    "resnet14t": ("resnet14t", {}),
    "resnet18": ("resnet18", {}),
    "mobilenetv3_small_100": ("mobilenetv3_small_100", {}),
    "mobilenetv3_large_100": ("mobilenetv3_large_100", {}),
    "resnet50": ("resnet50", {}),
}
COMPARED = {"tiny": ("narrow resnet10", "resnet18"), "small": ("narrow resnet18", "resnet18")}
SECONDS = {"tiny": 150, "small": 240}
SEEDS = (0, 1)
TIMED, WARM_UP = 5, 1
OUT = Path(__file__).parents[1] / "docs" / "experiments" / "results" / "backbones.json"


def speeds(size: str) -> dict[str, dict[str, float]]:
    """Milliseconds of a step and of a forward pass with every backbone."""
    recipe, made = preset(MODEL, size).recipe, {}
    for name, (backbone, options) in BACKBONES.items():
        torch.manual_seed(0)
        model = bq.create_model(MODEL, classes=3, preset=size, backbone=backbone, backbone_options=_plain(options)).train()
        made[name] = model, Optimization(model, recipe, {0: 1000})
    side = recipe.image_size
    images = torch.randn(4, 3, side, side * 4 // 3)
    targets = [{"labels": torch.tensor([0, 1, 2]), "boxes": torch.rand(3, 4) * 0.3 + 0.3} for _ in images]
    steps: dict[str, list[float]] = {name: [] for name in made}
    forward: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(WARM_UP + TIMED):
        for name, (model, optimization) in made.items():
            started = time.process_time()
            loss, _ = model.train().loss(model(images, targets=targets), targets)
            optimization.optimizer.zero_grad()
            loss.backward()
            optimization.optimizer.step()
            steps[name].append(time.process_time() - started)
            with torch.inference_mode():
                started = time.process_time()
                model.eval()(images, last_only=True)
                forward[name].append(time.process_time() - started)
    return {
        name: {
            "step_ms": round(1000 * statistics.median(steps[name][WARM_UP:]), 1),
            "forward_ms": round(1000 * statistics.median(forward[name][WARM_UP:]), 1),
            "parameters": sum(p.numel() for p in model.parameters()),
            "backbone_parameters": sum(p.numel() for p in model.backbone.parameters()),
        }
        for name, (model, _) in made.items()
    }


def train(data: str, size: str, name: str, seed: int, folder: Path) -> dict[str, Any]:
    backbone, options = BACKBONES[name]
    shutil.rmtree(folder, ignore_errors=True)
    bq.train(
        data, model=MODEL, preset=size, options={"backbone": backbone, "backbone_options": _plain(options)}, seed=seed, out=folder,
        minutes=SECONDS[size] / 60, clock="cpu", device="cpu", precision="float32", workers=0, pretrained=False, force=True,
    )  # fmt: skip
    run = read_run(folder)
    last, metrics = run.epochs[-1], json.loads((folder / "evaluation.json").read_text())["val"]
    return {"AP": metrics["AP"], "AP50": metrics["AP50"], "steps": int(last["step"]), "cpu_seconds": last["cpu_seconds"]}


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """With lists in place of tuples, as in a run's settings."""
    return json.loads(json.dumps(options))


def show(known: dict[str, Any]) -> None:
    for size, rows in known["speed"].items():
        print(f"\n| {MODEL} {size} | ms per step | ms per forward pass | M parameters, of these the backbone's |\n|---|---|---|---|")
        for name, row in rows.items():
            millions = f"{row['parameters'] / 1e6:.1f}, {row['backbone_parameters'] / 1e6:.1f}"
            print(f"| {name} | {row['step_ms']:.0f} | {row['forward_ms']:.0f} | {millions} |")
    print("\n| AP (AP50) on val | preset, CPU s | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | steps |\n|---|---|---|---|---|")
    for data in dict.fromkeys(key.split("/")[0] for key in known["AP"]):
        for size, names in COMPARED.items():
            for name in names:
                runs = [known["AP"].get(f"{data}/{size}/{name}/{seed}") for seed in SEEDS]
                cells = ["-" if run is None else f"{run['AP']:.3f} ({run['AP50']:.3f})" for run in runs]
                steps = " / ".join(f"{run['steps']:,}" for run in runs if run)
                print(f"| {data}, {name} | {size}, {SECONDS[size]} | {' | '.join(cells)} | {steps} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help="name=folder of a data set")
    parser.add_argument("--only", choices=("speed", "AP"))
    parser.add_argument("--show", action="store_true", help="only print the tables")
    parser.add_argument("--runs", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(given.out.read_text()) if given.out.is_file() else {"speed": {}, "AP": {}}
    if not given.show:
        for size in COMPARED if given.only != "AP" else ():
            if size not in known["speed"]:
                known["speed"][size] = speeds(size)
                atomic_write(given.out, json.dumps(known, indent=1) + "\n")
        for seed in SEEDS if given.only != "speed" else ():
            for size, names in COMPARED.items():
                for label, _, folder in (text.partition("=") for text in given.data):
                    for name in names:
                        key = f"{label}/{size}/{name}/{seed}"
                        if key not in known["AP"]:
                            known["AP"][key] = train(folder, size, name, seed, given.runs / key.replace("/", "-").replace(" ", "-"))
                            print(key, known["AP"][key], flush=True)
                            atomic_write(given.out, json.dumps(known, indent=1) + "\n")
    show(known)


if __name__ == "__main__":
    main()
