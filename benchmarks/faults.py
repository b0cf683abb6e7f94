"""Run every fault of ``tests/faults.py`` through the command that meets it, and write the table of docs/reliability.md.

python benchmarks/faults.py            # writes the table; status 1 where a promise does not hold
python benchmarks/faults.py bomb       # only faults whose name holds the word, printed
"""

from __future__ import annotations

import collections
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults import FAULTS, Place, Stock, meet  # noqa: E402

from boxquery.errors import printable  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: benchmarks/faults.py -->", "<!-- end of table -->"
LONGEST = 170


def row(number: int, fault, met) -> str:
    said = re.sub(r"\b\d+ s$", "... s", printable(met.shown).replace(f"{ROOT}/", ""))  # nothing of the machine, nor of the moment
    line = "".join(each if each.isprintable() else "?" for each in said).replace("|", "\\|").replace("`", "'")
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 70]} ... {line[-65:]}"
    return f"| {number} | {fault.kind} | {fault.what} | {fault.promise} | `{line}` | {'yes' if met.kept else '**no**'} |"


def main() -> int:
    warnings.simplefilter("ignore")
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [(number, fault) for number, fault in enumerate(FAULTS, 1) if word in f"{fault.kind} {fault.what}"]
    rows, broken, started = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        stock = Stock(Path(place) / "stock")
        for number, fault in chosen:
            try:
                met = meet(fault, Place(Path(place) / f"{number}", stock))
            except Exception as error:  # noqa: BLE001  (an exception that leaves the command is what this looks for)
                print(f"{number} {fault.kind}: {fault.what}: {type(error).__name__}: {str(error)[:300]}")
                broken += 1
                continue
            rows.append(row(number, fault, met))
            if word or not met.kept:
                print(rows[-1], "" if met.kept else f"status {met.status} {met.lines[-3:]}")
            broken += not met.kept
        if Path("executed").exists():
            print("a file was executed")
            return 1
    causes = collections.Counter(fault.kind for _, fault in chosen)
    print(f"{len(rows)} faults, {broken} not as promised, {time.monotonic() - started:.0f} s")
    if not word:
        counts = ", ".join(f"{count} {kind}" for kind, count in causes.items())
        head = f"{len(rows)} faults ({counts}); {len(rows) - broken} as promised.\n\n"
        head += "| | where | fault | promise | what it says | kept |\n|--:|---|---|---|---|---|\n"
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{head}" + "\n".join(rows) + f"\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
