"""How many steps each model needs before anything can be expected of it, into src/boxquery/check/floors.json, which ships with the package.

    python benchmarks/floors.py                          # everything, resumable: what stands in the file is not measured again
    python benchmarks/floors.py --learn --models detr    # one part, some models
    python benchmarks/floors.py --seconds 300            # starts nothing new after so long

Three things, all at preset "tiny", batch 4, one thread:

- ``learn``: the steps of ``boxquery check --overfit`` (four of the built-in scenes, AP50 above 0.9 on them), for two seeds;
  ``learn_steps``, what the command allows, is three times the larger, rounded up to 50.
- ``floor.random``: whole runs from random weights on 1,000 scenes of 160 pixels, each with the schedule of its own length: 250 steps, 500,
  1,000, ... up to ``MOST``. ``left`` is the first that reaches AP50 0.02 on 100 other scenes, ``not_within`` the longest that does not.
- ``floor.trained``: the same question to the curves of ``benchmarks/convergence.py`` (a trained backbone, evaluated every 500
  steps of a run of 2,000), read from docs/convergence/results.json: nothing is trained for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import boxquery as bq
from boxquery.check.floors import FILE
from boxquery.check.overfit import SECONDS, overfit_batch
from boxquery.data.shapes import shapes_data
from boxquery.files import atomic_write
from boxquery.report.run_files import read_run

LEFT = 0.02
LADDER = (250, 500, 1000, 2000, 4000, 8000)
TRAIN, BATCH, SEEDS = 1000, 4, (0, 1)
#: the proof's steps may be so many while they are measured
TRIED = 1200
CURVES = Path(__file__).parents[1] / "docs" / "convergence" / "results.json"


def learn(name: str, seed: int) -> dict[str, Any]:
    proof = overfit_batch(shapes_data(seed=seed), name, {}, steps=TRIED, seconds=10 * SECONDS, seed=seed)
    return {"seed": seed, "steps": proof.steps, "seconds": proof.seconds, "AP50": round(proof.AP50, 5), "reached": proof.reached}


def floor(name: str, steps: int) -> dict[str, Any]:
    """A run of so many steps from random weights."""
    data = shapes_data(train=TRAIN, val=100, test=1)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "run"
        settings: dict[str, Any] = {"model": name, "preset": "tiny", "device": "cpu", "precision": "float32", "workers": 0, "force": True}
        bq.train(data, out=where, epochs=steps * BATCH // TRAIN, batch_size=BATCH, pretrained=False, **settings)
        last = read_run(where).epochs[-1]
    return {"steps": int(last["step"]), "AP50": round(last["AP50"], 4), "cpu_seconds": last["cpu_seconds"]}


def trained(name: str, curves: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The earliest and the latest step that decide, over all runs of this model from a trained backbone."""
    points = [(p["images"] / BATCH, p["AP50"]) for run, line in curves.items() if run.rsplit("-", 3)[0] == name for p in line]
    left = [steps for steps, score in points if score >= LEFT]
    not_within = [steps for steps, score in points if score < LEFT and (not left or steps < min(left))]
    return {"left": int(min(left)) if left else None, "not_within": int(max(not_within)) if not_within else 0} if points else {}


def decided(runs: list[dict[str, Any]]) -> dict[str, Any]:
    left = [run["steps"] for run in runs if run["AP50"] >= LEFT]
    return {"runs": runs, "left": min(left, default=None), "not_within": max((r["steps"] for r in runs if r["AP50"] < LEFT), default=0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(bq.list_models()))
    parser.add_argument("--learn", action="store_true", help="this part alone")
    parser.add_argument("--floor", action="store_true", help="this part alone")
    parser.add_argument("--most", type=int, default=LADDER[-1], help="steps of the longest run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing new after so long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started, both = time.monotonic(), not (given.learn or given.floor)
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"models": {}}
    known["protocol"] = {
        "preset": "tiny", "batch_size": BATCH, "data": "built-in scenes, 160 px", "left": f"AP50 {LEFT} on 100 scenes",
        "learn": "AP50 above 0.9 on four images; learn_steps is 3 x the larger of two seeds",
        "trained": "benchmarks/convergence.py, 128 px",
    }  # fmt: skip

    def over() -> bool:
        return time.monotonic() - started > given.seconds

    def keep(name: str) -> None:
        print(name, json.dumps(known["models"][name]), flush=True)
        atomic_write(FILE, json.dumps(known, indent=1) + "\n")

    curves = json.loads(CURVES.read_text(encoding="utf-8"))["curves"]
    for name in given.models.split(","):
        entry = known["models"].setdefault(name, {})
        if both or given.learn:
            for seed in SEEDS:
                done = entry.setdefault("learn", [])
                if all(run["seed"] != seed for run in done) and not over():
                    done.append(learn(name, seed))
                    if all(run["reached"] for run in done):
                        entry["learn_steps"] = -(-3 * max(run["steps"] for run in done) // 50) * 50
                    keep(name)
        floors = entry.setdefault("floor", {})
        floors["trained"] = trained(name, curves)
        if both or given.floor:
            for steps in LADDER:
                runs = floors.get("random", {}).get("runs", [])
                if steps > given.most or over() or any(run["AP50"] >= LEFT for run in runs):
                    break
                if all(run["steps"] != steps for run in runs):
                    floors["random"] = decided([*runs, floor(name, steps)])
                    keep(name)
        keep(name)


if __name__ == "__main__":
    main()
