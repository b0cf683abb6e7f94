"""What the runs of a comparison by minutes spent, and how the time per step drifted.

    boxquery compare path/to/data --models deformable-detr,fcos --preset tiny --seeds 1 --minutes 0.5 --out comparisons/half
    python benchmarks/budgets.py comparisons/half

One line per run: seconds of its clock that were allowed and spent, steps done and planned, and milliseconds per step in each epoch without
an evaluation (what happens between two steps included).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from boxquery.report.run_files import read_run
from boxquery.training.config import RunConfig
from boxquery.training.timing import counts_cpu


def summary(run: Path) -> str:
    config, rows = RunConfig.read(run), read_run(run).epochs
    length = config.length
    clock = "cpu_seconds" if counts_cpu(config) else "seconds"
    paces = []
    for before, row in zip([{}, *rows], rows, strict=False):
        if "AP" not in row:
            paces.append(1000 * (row[clock] - before.get(clock, 0)) / (row["step"] - before.get("step", 0)))
    drift = f"; {min(paces):.0f} to {max(paces):.0f} ms per step: {', '.join(f'{pace:.0f}' for pace in paces)}" if paces else ""
    spent = f"{rows[-1][clock]:.1f} of {length.seconds:.1f} s"
    return f"{run.name}: {spent}, {length.total_steps:,} of {length.schedule_steps[0]:,} steps{drift}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        for run in sorted((folder / "runs").iterdir()):
            print(summary(run))


if __name__ == "__main__":
    main()
