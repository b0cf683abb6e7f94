"""Run the tests of evaluation with other versions of hotcoco, so that boxquery fits into one environment with libraries that pin one.

    python benchmarks/versions.py                     # 1.0.1 (pinned by rfdetr[train]), 1.1.0, 1.2.0 and the newest one
    python benchmarks/versions.py 1.0.0               # others

Each version is installed by pip into a temporary folder that comes first on the path; the environment stays as it is. Status 1 if tests
fail with one of them.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("1.0.1", "1.1.0", "1.2.0", "")


def main(versions: tuple[str, ...]) -> int:
    failed = 0
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            wanted = f"hotcoco=={version}" if version else "hotcoco"
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
                "--target",
                folder,
                wanted,
            ]
            subprocess.run(pip, check=True)
            path = os.pathsep.join([folder, str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
            tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "tests" / "evaluation")]
            run = subprocess.run(tests, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True)
            found = next(Path(folder).glob("hotcoco-*.dist-info")).name.split("-")[1].removesuffix(".dist")
            print(f"hotcoco {found}: {'all tests of evaluation pass' if run.returncode == 0 else run.stdout[-2000:]}", flush=True)
            failed += run.returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main(tuple(sys.argv[1:]) or VERSIONS))
