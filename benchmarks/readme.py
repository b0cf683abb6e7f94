"""Do what the README says, in a fresh clone and a fresh environment, and write down each command's outcome.

    python benchmarks/readme.py --data path/to/data --out result.json                # every command, as it stands there: hours
    python benchmarks/readme.py --data path/to/data --minutes 2 --without make       # two minutes a run, neither demo nor tests

The commands are those of the README's code blocks, in their order (a block of Python is one command). Names that stand for the reader's own
are replaced: path/to/data and other/data by --data, photos/*.jpg by eight of its images. --minutes replaces the README's (and
epochs=1 its epochs); what was replaced is in the result. Status 1 if a command failed.

The environment is a new one of ``python -m venv``; packages come from where pip is configured to take them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMAGES = (".jpg", ".jpeg", ".png")


def commands(readme: str) -> list[tuple[str, str]]:
    """What the code blocks say to run, in order: ("shell" or "python", text)."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        if language == "python":
            found.append(("python", block))
        elif not language:
            lines = [re.sub(r"\s+# .*", "", line).strip() for line in block.splitlines()]
            found += [("shell", line) for line in lines if line]
    return found


def with_own_names(text: str, data: Path, minutes: float | None) -> str:
    """The command with the reader's own data in place of the README's names."""
    text = re.sub(r"path/to/data|other/data", str(data), text).replace("street.jpg", "photos/one.jpg")
    if minutes is None:
        return text
    return re.sub(r"epochs=\d+", "epochs=1", re.sub(r"--minutes [\d.]+", f"--minutes {minutes:g}", text))


def megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6)


def execute(kind: str, text: str, place: Path, environment: dict[str, str]) -> dict[str, Any]:
    words = ["bash", "-c", text] if kind == "shell" else ["python", "-c", text]
    started = time.monotonic()
    done = subprocess.run(words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    last = [line for line in done.stdout.splitlines() if line.strip()][-3:]
    return {"status": done.returncode, "seconds": round(time.monotonic() - started, 1), "last": last}


def main() -> int:
    parser = argparse.ArgumentParser(description="Do what the README says in a fresh clone and environment.")
    parser.add_argument("--data", type=Path, required=True, help="data set in place of path/to/data")
    parser.add_argument("--out", type=Path, default=Path("readme.json"))
    parser.add_argument("--minutes", type=float, help="in place of the README's --minutes")
    parser.add_argument("--without", nargs="*", default=[], help="leave out commands that begin so, for example: make")
    given = parser.parse_args()
    data, rows = given.data.resolve(), []
    with tempfile.TemporaryDirectory() as folder:
        place, own = Path(folder) / "boxquery", Path(folder) / "own"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(own)], check=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PATH"] = f"{own / 'bin'}{os.pathsep}{environment['PATH']}"
        photos = [path for path in sorted(data.rglob("*")) if path.suffix.lower() in IMAGES][:8]
        (place / "photos").mkdir()
        for number, photo in enumerate(photos):
            shutil.copy(photo, place / "photos" / ("one.jpg" if number == 0 else f"{number}.jpg"))
        for kind, text in commands((place / "README.md").read_text(encoding="utf-8")):
            run = with_own_names(text, data, given.minutes)
            if run.startswith("git clone") or (given.without and run.startswith(tuple(given.without))):
                rows.append({"command": text, "left out": True})
                continue
            rows.append({"command": text, **({"as": run} if run != text else {}), **execute(kind, run, place, environment)})
            print(f"{rows[-1]['status']:4} {rows[-1]['seconds']:8.1f} s  {text.splitlines()[0][:100]}", flush=True)
            if rows[-1]["status"]:
                print("\n".join(rows[-1]["last"]), flush=True)
            if text.startswith("pip install"):
                rows[-1]["environment in MB"] = megabytes(own)
            given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    failed = [row for row in rows if row.get("status")]
    print(f"{len(rows)} commands, {sum('left out' in row for row in rows)} left out, {len(failed)} failed; see {given.out}")
    return min(len(failed), 1)


if __name__ == "__main__":
    raise SystemExit(main())
