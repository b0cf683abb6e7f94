"""Papers are short differences: what the page of the family prints, and what the rules of the house measure."""

import ast
import importlib.util
import statistics
from pathlib import Path

import pytest

import boxquery as bq
from boxquery.models import HERE, describe, differences, facts, list_baselines, list_scene_models, sizes
from tests.models.builders import create

ROOT = Path(__file__).parents[2]
FILES = {name: HERE / f"{name.replace('-', '_')}.py" for name in bq.list_models()}
FILES |= {name: HERE / "scenes" / f"{name}.py" for name in list_scene_models()}
AXES = ("Queries", "Encoder", "Cross-attention", "Refinement", "Matching")


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_it_is(name):
    said = facts(name)
    assert set(said) == {"Paper", "Year", *AXES, "Published"}
    assert "arXiv:" in said["Paper"]
    assert said["Year"].isdigit()
    assert "README" in said["Published"]  # a figure has its source
    headings = ["queries", "encoder", "locate", "cross-attention", "refine", "head"]
    bullets = differences(name)
    named = [bullet.partition(":")[0] for bullet in bullets]
    assert named == (["nothing"] if name == "detr" else [h for h in headings if h in named])
    section = describe(name).partition("Differs from DETR in:")[2]
    assert " ".join(f"- {bullet}" for bullet in bullets) == " ".join(section.split())


def code_lines(path: Path) -> int:
    """Lines that hold code: neither empty, nor a comment, nor of a docstring."""
    text = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    rows = enumerate(text.splitlines(), 1)
    return sum(1 for i, line in rows if i not in docstrings and line.strip() and not line.strip().startswith("#"))


def test_files_are_read_once(monkeypatch):
    """Reading them for every model that is made took longer than making it."""
    known = list_baselines(), list_scene_models()
    monkeypatch.setattr(ast, "parse", None)
    assert (list_baselines(), list_scene_models()) == known
    assert create("detr").config["name"] == "detr"
    assert bq.list_models() + list_scene_models() == list(FILES)


def test_papers_are_short():
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values()) <= 250
    assert statistics.median(code_lines(path) for path in FILES.values()) <= 150


def test_no_paper_imports_another():
    modules = {".".join(("boxquery", *path.relative_to(HERE.parent).with_suffix("").parts)) for path in FILES.values()}
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                assert node.module not in modules, path
                assert not {f"{node.module}.{alias.name}" for alias in node.names} & modules, path


def test_no_six_lines_stand_in_two_papers():
    places: dict[tuple[str, ...], str] = {}
    for name, path in FILES.items():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("from ", "import "))]
        for i in range(len(lines) - 5):
            run = tuple(lines[i : i + 6])
            assert places.setdefault(run, name) == name, (name, places[run], run)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_sizes_are_counted_anew(name, preset):
    spec = importlib.util.spec_from_file_location("sizes", ROOT / "benchmarks" / "sizes.py")
    counting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counting)
    assert counting.count(name, preset) == sizes(name)[preset]
