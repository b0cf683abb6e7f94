"""boxquery and boxquery-runtime, built from the same files, each installed alone."""

import ast
import importlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.test_imports import FILES, SRC, imports

from . import handmade

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
#: what onnxruntime needs itself, by import name
SEEN = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime", "flatbuffers", "google", "packaging")


def modules() -> set[str]:
    """Those of the second wheel."""
    places = [target.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for target in LISTED.values()]
    return {module for module in FILES if any(module == place or module.startswith("boxquery.runtime") for place in places)}


def test_the_list_is_complete_and_has_nothing_more():
    for source, target in LISTED.items():
        assert (ROOT / "runtime" / source).exists(), source
        assert source == f"../src/{target}" or source == "../LICENSE"
    inside = modules()
    assert {module: sorted(imports(module) - inside) for module in inside if imports(module) - inside} == {}
    packages = {module.rpartition(".")[0] for module in inside} & FILES.keys()
    needed = {imported for module in inside for imported in imports(module)} | packages | {"boxquery.runtime.__main__"}
    assert inside - needed - {"boxquery"} == set()


def test_it_imports_what_it_requires():
    required = {"numpy", "PIL", "onnxruntime", "openvino", "pillow_heif", "supervision", "av", "boxquery"}
    for module in modules():
        for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= required | sys.stdlib_module_names, module


def test_both_have_one_version_and_neither_requires_the_other():
    assert PROJECT["project"]["version"] == WHOLE["version"]
    assert not any("boxquery-runtime" in each for each in WHOLE["dependencies"])
    assert set(PROJECT["project"]["dependencies"]) - set(WHOLE["dependencies"]) == {"onnxruntime>=1.22"}


def installed(project: Path, target: Path) -> Path:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, which builds the wheel, is not installed")
    (wheel,) = builder.WheelBuilder(str(project)).build(directory=str(target.parent / f"{target.name}.wheel"), versions=["standard"])
    with zipfile.ZipFile(wheel) as file:  # all that installing a wheel of pure Python is, as these are
        assert "Root-Is-Purelib: true" in next(file.read(name).decode() for name in file.namelist() if name.endswith("/WHEEL"))
        file.extractall(target)
    return target


@pytest.mark.slow
def test_each_alone_predicts_the_same(tmp_path):
    model, photo = handmade.write(tmp_path / "model.onnx"), tmp_path / "7.png"
    Image.effect_noise((80, 48), 90).convert("RGB").save(photo)
    seen = tmp_path / "seen"
    seen.mkdir()
    site = Path(str(importlib.import_module("numpy").__file__)).parents[1]
    for name in SEEN:
        if (site / name).exists():
            (seen / name).symlink_to(site / name)
    code = """
import sys
sys.path[:0] = sys.argv[1:3]
class Forbid:
    def find_spec(self, name, *_):
        assert name.partition(".")[0] not in ("torch", "torchvision", "scipy", "timm"), name
sys.meta_path.insert(0, Forbid())
import boxquery, runpy
assert boxquery.__file__.startswith(sys.argv[1]), boxquery.__file__
try:
    boxquery.load
except ImportError as error:
    print(error, file=sys.stderr)
print(boxquery.__version__, file=sys.stderr)
sys.argv = ["runtime", *sys.argv[3:], "--json"]
runpy.run_module("boxquery.runtime", run_name="__main__")
"""
    target = installed(ROOT / "runtime", tmp_path / "small")
    assert sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) < 200_000
    words = [sys.executable, "-I", "-S", "-c", code, str(target), str(seen), str(model), str(photo)]
    alone = subprocess.run(words, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert "boxquery.load is not in boxquery-runtime, which has boxquery.runtime.load; install boxquery in its place\n0.1.0" in alone.stderr
    whole = installed(ROOT, tmp_path / "whole")
    environment = {**os.environ, "PYTHONPATH": str(whole)}
    words = [sys.executable, "-m", "boxquery.runtime", str(model), str(photo), "--json"]
    other = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(alone.stdout) == json.loads(other.stdout)
    assert len(json.loads(alone.stdout)["images"][0]["detections"]) > 0
    assert SRC not in whole.parents
