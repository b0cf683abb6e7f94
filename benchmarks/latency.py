"""Compare the latency of every model between two checkouts.

    python benchmarks/latency.py OLD NEW [--models detr,smca-detr] [--presets tiny,small] [--rounds 3] [--json]

Milliseconds of CPU time of a forward pass in eval mode, of the last layer's predictions alone, one image, one thread, float32. Each round
starts a process for OLD and one for NEW, the order changing from round to round, which takes the median of several passes of each model; a
machine that slows down for a while then does so for both, and the least median of all rounds counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BASELINES = ["faster-rcnn", "fcos", "retinanet"]
#: preset -> height and width of the image
SIZES = {"paper": (800, 1066), "small": (240, 320), "tiny": (160, 160)}
WARM, TIMED = 3, 15


def measure(models: str, presets: str) -> dict[str, float]:
    """In a process of a checkout: model and preset -> median milliseconds."""
    import torch

    import boxquery as bq

    if not Path(bq.__file__).is_relative_to(os.environ["PYTHONPATH"]):
        sys.exit(f"{os.environ['PYTHONPATH']}: no boxquery there; {bq.__file__} would be measured")
    torch.set_num_threads(1)
    found = {}
    for name in models.split(",") if models else [*bq.list_models(), *BASELINES]:
        for preset in presets.split(","):
            torch.manual_seed(0)
            model, images, seconds = bq.create_model(name, classes=80, preset=preset).eval(), torch.randn(1, 3, *SIZES[preset]), []
            with torch.inference_mode():
                for _ in range(WARM + TIMED):
                    started = time.process_time()
                    model(images, None, last_only=True)
                    seconds.append(time.process_time() - started)
            found[f"{name} {preset}"] = 1000 * statistics.median(seconds[WARM:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--models", default="", help="names, separated by commas")
    parser.add_argument("--presets", default="tiny,small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sides = [arguments.old.resolve(), arguments.new.resolve()]
    least: list[dict[str, float]] = [{}, {}]
    for number in range(arguments.rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            environment = {**os.environ, "PYTHONPATH": str(sides[side] / "src"), "OMP_NUM_THREADS": "1"}
            words = [sys.executable, "-P", __file__, "--measure", arguments.models, arguments.presets]
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            for name, value in json.loads(done.stdout).items():
                least[side][name] = min(value, least[side].get(name, value))
    if arguments.json:
        print(json.dumps({"old": least[0], "new": least[1]}, indent=1))
        return
    print(f"{'milliseconds':28}{'old':>8}{'new':>8}{'ratio':>8}")
    for name in sorted(least[0].keys() & least[1].keys()):
        old, new = least[0][name], least[1][name]
        print(f"{name:28}{old:8.1f}{new:8.1f}{new / old:8.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
