"""Kill -9 a tiny run at many moments, resume it until it has finished, and compare all that it left with an undisturbed run.

    python benchmarks/kills.py --kills 30

Half of the kills come from outside at a random moment; the other half are planted between two steps of writing a file (before and after
its content is on the disk, before and after it takes its name), where a moment is too short to be met by chance. After every kill all
files of the run folder are read: none may be damaged.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from boxquery.data.shapes import shapes_data
from boxquery.model_folder import load
from boxquery.training import fit  # noqa: F401  (loaded once, before the forks)
from boxquery.training.run import train
from boxquery.training.state import LAST, PREVIOUS, damage

SETTINGS = {
    "model": "detr",
    "preset": "tiny",
    "options": {
        "backbone": "resnet10t",
        "backbone_options": {"channels": (8, 8, 16, 16), "stem_width": 8, "stem_type": ""},
        "hidden_dim": 32, "heads": 4, "ffn_dim": 32, "num_queries": 12,
    },
    "image_size": 64, "batch_size": 4, "device": "cpu", "precision": "float32", "workers": 0, "pretrained": False,
}  # fmt: skip
EPOCHS = 4
#: what writing a file is made of; a kill may come before and after each
STEPS = ("fsync", "replace", "unlink")


def attempt(folder: Path, resume: bool, plant: int | None = None) -> int:
    """Start training in a process of its own; with ``plant`` it dies at that step of writing files. Returns its number."""
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        count = planted(plant)
        data = shapes_data(train=12, val=6, test=4, size=64)
        train(data, out=folder, resume=True) if resume else train(data, out=folder, epochs=EPOCHS, **SETTINGS)
        (folder.parent / "steps.txt").write_text(str(count()))
        status = 0
    finally:
        os._exit(status)


def planted(at: int | None) -> Callable[[], int]:
    """Count the steps of writing files, two of each (before and after), and die at one. Returns the count so far as a function."""
    seen = 0

    def around(name: str) -> None:
        real = getattr(os, name)

        def step(*args, **kwargs):
            nonlocal seen
            for after in (False, True):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not after:
                    result = real(*args, **kwargs)
            return result

        setattr(os, name, step)

    for name in STEPS:
        around(name)
    return lambda: seen


def ended(process: int) -> bool:
    """Whether it finished (True) or was killed (False). Raises where it failed."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit(f"a run failed with status {status}")
    return True


def damaged(folder: Path) -> list[str]:
    """Files of a run that are not what somebody wrote."""
    found = []
    for name in (LAST, PREVIOUS):
        if (folder / name).exists() and (wrong := damage(folder / name)):
            found.append(f"{name} {wrong}")
    readers = {".json": json.loads, ".yaml": yaml.safe_load, ".csv": lambda text: list(csv.DictReader(text.splitlines(), strict=True))}
    for path in folder.rglob("*"):
        if path.suffix in readers and not path.name.startswith("."):
            try:
                assert readers[path.suffix](path.read_text(encoding="utf-8"))
            except (ValueError, AssertionError, yaml.YAMLError) as error:
                found.append(f"{path.name} {error!r}")
    if (folder / "model" / "config.json").exists() and (folder / "model" / "model.safetensors").exists():
        load(folder)
    return found


def outcome(folder: Path) -> dict[str, str]:
    """All that a run is judged by: its metrics without clocks, its evaluation, its weights, bit by bit."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in csv.DictReader(file)]
    hidden = [path.name for path in folder.rglob(".*")]
    assert not hidden, f"left behind: {hidden}"
    return {
        "loss by epoch": " ".join(row["loss"] for row in rows),
        "metrics.csv": _digest(json.dumps(rows).encode()),
        "evaluation.json": _digest((folder / "evaluation.json").read_bytes()),
        "model.safetensors": _digest((folder / "model" / "model.safetensors").read_bytes()),
        "data.json": _digest((folder / "data.json").read_bytes()),
    }


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="*", help="plant the kills at these steps of writing, instead of drawing moments")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        assert ended(attempt(root / "whole" / "run", resume=False))
        started = time.monotonic()  # the second run is not the first to touch anything: its time is what a moment is drawn from
        assert given.steps or ended(attempt(root / "again" / "run", resume=False))
        seconds = time.monotonic() - started
        whole = outcome(root / "whole" / "run")
        steps = int((root / "whole" / "steps.txt").read_text())
        print(f"undisturbed: {seconds:.1f} s, {steps} steps of writing; {whole}")
        wrong = not given.steps and whole != outcome(root / "again" / "run")
        plans = given.steps or [None if i % 2 else rng.randint(1, steps) for i in range(given.kills)]
        for number, plan in enumerate(plans, 1):
            folder = root / f"run{number}" / "run"
            folder.parent.mkdir()
            moment = rng.uniform(0, seconds)
            while True:
                process = attempt(folder, resume=False, plant=plan)
                if plan is None:
                    time.sleep(moment)
                    os.kill(process, signal.SIGKILL)
                if not ended(process):
                    break
                moment *= 0.8  # it had finished before that
                shutil.rmtree(folder)
            spoilt = damaged(folder)
            rows = len((folder / "metrics.csv").read_text().splitlines()) - 1 if (folder / "metrics.csv").exists() else 0
            ended(attempt(folder, resume=(folder / "config.yaml").exists()))
            result = outcome(folder)
            same = result == whole and not spoilt
            wrong |= not same
            when = f"at step {plan} of writing" if plan else f"after {moment:.2f} s"
            judged = f"the same, {result['loss by epoch']}" if same else f"DIFFERENT {result} {spoilt}"
            print(f"{number:3d} killed {when} ({rows} epochs in metrics.csv): {judged}")
            sys.stdout.flush()
    print(f"{len(plans)} kills: {'something differs' if wrong else 'all runs ended the same, no file was damaged'}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
