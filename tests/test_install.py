"""What an installed package holds: the pages that --help and messages name are in it, and what it requires is enough for it."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = builder.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(path)


def named_pages() -> set[str]:
    """Every page that a text in the code names, in --help, messages and docstrings; the log of experiments stays in the repository."""
    files = [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".html")]
    return {page for path in files for page in re.findall(r"docs/[\w/.-]+\.md", path.read_text(encoding="utf-8"))} - {"docs/LOG.md"}


def test_the_wheel_holds_every_page_that_is_named(wheel):
    names = set(wheel.namelist())
    assert len(named_pages()) >= 3
    assert {f"boxquery/{page}" for page in named_pages()} <= names
    linked = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert {f"boxquery/docs/{link}" for link in re.findall(r"\]\((\w+\.md)", linked)} <= names


def test_the_wheel_holds_all_of_the_code_and_no_pictures(wheel):
    names = set(wheel.namelist())
    source = ROOT / "src"
    code = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert code <= names
    assert not [name for name in names if name.endswith((".png", ".jpg", ".svg")) or name.startswith(("tests", "benchmarks"))]
    small = [entry for entry in wheel.infolist() if not entry.filename.endswith(".safetensors")]
    assert sum(entry.compress_size for entry in small) < 1_000_000
    assert sum(entry.compress_size for entry in wheel.infolist()) < 6_000_000


def test_help_of_an_installed_package_says_where_its_pages_are(wheel, tmp_path):
    wheel.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "300"}
    words = [sys.executable, "-m", "boxquery", "train", "--help"]
    said = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"Pages that are called docs/... are in {tmp_path / 'boxquery' / 'docs'}" in " ".join(said.split())
    assert all((tmp_path / "boxquery" / page).is_file() for page in re.findall(r"docs/\w+\.md", said))


@pytest.mark.parametrize(
    ("name", "too_old", "why"),
    [
        ("filelock", "3.24.0", "it does not notice that the file of a lock was removed while it waited, so two processes could hold it"),
        ("cyclopts", "4.25.3", "its Parameter lacks arguments that the commands use"),
        ("pillow", "11.2.1", "it reads no AVIF"),
    ],
)
def test_what_is_too_old_is_not_accepted(name, too_old, why):
    assert not REQUIRED[name].specifier.contains(too_old), why


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_required_is_installed(name):
    assert REQUIRED[name].specifier.contains(version(name), prereleases=True)


def test_other_libraries_that_pin_hotcoco_fit_in():
    assert REQUIRED["hotcoco"].specifier.contains("1.0.1")
