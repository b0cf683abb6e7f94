"""Imports go one way: CONTRIBUTING.md's table of rooms says who may import whom, and the code does what it says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
FILES = {".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in (SRC / "boxquery").rglob("*.py")}


def imports(module: str) -> set[str]:
    """The library's modules that one imports anywhere: at the top, inside functions, under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found & FILES.keys() - {module}


EDGES = {(module, imported) for module in FILES for imported in imports(module)}


def table() -> list[tuple[list[str], list[str]]]:
    """The rows of the table in order: the modules and packages of a room, and what it may import beside itself and the first room."""
    rows = re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    rooms = [[name.strip("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", room)] for room, _ in rows]
    listed = [[name.strip("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", cell)] for _, cell in rows]
    above = [[name for room in rooms[:i] for name in room] if cell == "all above" else listed[i] for i, (_, cell) in enumerate(rows)]
    return list(zip(rooms, above, strict=True))


def room_of(module: str) -> int:
    """The row of the table that a module belongs to, by the longest name that fits."""
    names = [(name, i) for i, (room, _) in enumerate(table()) for name in room]
    inside = module.removeprefix("boxquery").strip(".").replace(".", "/") or "__init__"
    fitting = [(len(name), i) for name, i in names if inside == name or inside.startswith(f"{name}/")]
    assert fitting, f"{module} is in no room of CONTRIBUTING.md's table"
    return max(fitting)[1]


def test_the_table_names_what_exists_and_points_up():
    rows = table()
    assert len(rows) > 10
    for i, (room, listed) in enumerate(rows):
        for name in room:
            assert (SRC / "boxquery" / name).is_dir() or (SRC / "boxquery" / f"{name}.py").is_file(), name
        for name in listed:
            assert any(name in other for other, _ in rows[:i]), f"{room} may not import {name}, which does not stand above it"


def test_imports_are_those_of_the_table():
    """A room imports the first row, itself, and the rooms that the table names for it: all of these."""
    rows = table()
    allowed = {(i, j) for i, (_, listed) in enumerate(rows) for j, (room, _) in enumerate(rows) if j in (0, i) or set(listed) & set(room)}
    rooms = {module: room_of(module) for module in FILES}
    wrong = {(module, imported) for module, imported in EDGES if (rooms[module], rooms[imported]) not in allowed}
    assert sorted(wrong) == []
    used = {(rooms[module], rooms[imported]) for module, imported in EDGES}
    everything = {i for i, (_, listed) in enumerate(rows) if len(listed) == sum(len(room) for room, _ in rows[:i])}
    unused = [(rows[i][0], rows[j][0]) for i, j in allowed - used if j not in (0, i) and i not in everything]
    assert unused == [], "the table allows what nothing needs"


def test_no_circles():
    left = EDGES
    while True:
        inner = {(a, b) for a, b in left if any(b == other for other, _ in left) and any(a == other for _, other in left)}
        if inner == left:
            break
        left = inner
    assert sorted(left) == []
