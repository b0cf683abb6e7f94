"""What the first prediction costs from a cold shell: interpreter, imports, opening the model, and one image.

python benchmarks/cold_start.py model.onnx street.jpg [--python PYTHON] [--runs 5]

Prints the median of each in milliseconds, by the wall clock and as CPU time of the process; ``--python`` is that of another environment,
such as one that holds boxquery-runtime alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

API = "import sys; from boxquery import runtime; runtime.load(sys.argv[1], threads=1).predict(sys.argv[2])"
SHELLS = {
    "python alone": ["-c", "pass"],
    "import boxquery.runtime": ["-c", "from boxquery import runtime"],
    "import boxquery.runtime.exported": ["-c", "import boxquery.runtime.exported"],
    "runtime.load(...).predict(...)": ["-c", API, "MODEL", "IMAGE"],
    "python -m boxquery.runtime": ["-m", "boxquery.runtime", "MODEL", "IMAGE"],
    "boxquery predict": ["-m", "boxquery", "predict", "MODEL", "IMAGE", "--save", "json", "--out", "OUT"],
}


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    print(f"{given.model}, median of {given.runs} after one that is not counted, one thread\n\n| shell | wall ms | CPU ms |\n|---|--:|--:|")
    for name, words in SHELLS.items():
        line = [{"MODEL": given.model, "IMAGE": given.image}.get(word, word) for word in words]
        try:
            times = []
            for _ in range(given.runs + 1):
                with tempfile.TemporaryDirectory() as folder:
                    times.append(seconds([given.python, *(f"{folder}/found" if word == "OUT" else word for word in line)]))
        except subprocess.CalledProcessError:
            print(f"| {name} | not installed there | |")
            continue
        wall, cpu = (1000 * statistics.median(column) for column in zip(*times[1:], strict=True))
        print(f"| {name} | {wall:.0f} | {cpu:.0f} |")


if __name__ == "__main__":
    main()
