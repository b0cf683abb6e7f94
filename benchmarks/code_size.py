"""Count the code of the library: lines without blanks, comments and docstrings; files, model files, import circles.

    python benchmarks/code_size.py [--json] [FOLDER ...]       # default: src/boxquery; several are printed side by side

A line of Python counts if it holds a token other than a comment or a docstring (any string that stands alone as a statement); a line of
HTML (also jinja2 templates), CSS or JavaScript counts if anything is left of it without comments. A model file is one in ``models/`` whose
docstring has "Paper:"; its length is that of the whole file.

An import circle is a set of modules (or of rooms: the folders and files directly in FOLDER) that reach one another by imports, those
inside functions included; imports under ``if TYPE_CHECKING:`` and modules named in strings do not count.
"""

import argparse
import ast
import io
import json
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {".py": "py", ".html": "html", ".j2": "html", ".css": "css", ".js": "js"}
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
#: what holds no comment (strings), or is one
_STRING = r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
_COMMENTS = {
    "html": re.compile(r"(?P<comment><!--.*?-->|\{#.*?#\})", re.DOTALL),
    "css": re.compile(rf"{_STRING}|(?P<comment>/\*.*?\*/)", re.DOTALL),
    "js": re.compile(rf"{_STRING}|`(?:\\.|[^`\\])*`|(?P<comment>/\*.*?\*/|//[^\n]*)", re.DOTALL),
}


def code_lines(path: Path) -> int:
    text, kind = path.read_text(encoding="utf-8"), KINDS[path.suffix]
    if kind == "py":
        return len(python_lines(text))
    bare = _COMMENTS[kind].sub(lambda match: "" if match["comment"] else match[0], text)
    return sum(bool(line.strip()) for line in bare.splitlines())


def python_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code."""
    statements = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    docstrings = {(s.lineno, s.col_offset): s.end_lineno for s in statements if isinstance(s.value.value, str)}
    lines, source, skipped = set(), text.splitlines(), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        (first, column), (last, _) = token.start, token.end
        if token.type == tokenize.STRING:
            skipped = max(skipped, docstrings.get((first, column), 0))
        if token.type not in _NO_CODE and first > skipped:
            lines |= {n for n in range(first, last + 1) if source[n - 1].strip()}
    return lines


def imported(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, also inside functions, except those for the type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported(ast.Module(node.orelse, []))
        else:
            yield from imported(node)


def module_imports(folder: Path) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports."""
    paths = {".".join((folder.name, *path.relative_to(folder).with_suffix("").parts)): path for path in sorted(folder.rglob("*.py"))}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        parts = name.split(".")
        for node in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & modules.keys()
                continue
            above = parts[: len(parts) - node.level + (path.name == "__init__.py")] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                graph[name] |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base} & modules.keys()
        graph[name].discard(name)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node: whoever reaches one another."""
    reached = {}
    for node in graph:
        seen, open_ = set(), [node]
        while open_:
            new = graph[open_.pop()] - seen
            seen |= new
            open_ += new
        reached[node] = seen
    groups = {frozenset({node, *(other for other in reached[node] if node in reached[other])}) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def between_rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    room = {module: ".".join(module.split(".")[:2]) for module in graph}
    rooms: dict[str, set[str]] = {name: set() for name in room.values()}
    for module, others in graph.items():
        rooms[room[module]] |= {room[other] for other in others} - {room[module]}
    return rooms


def measure(folder: Path) -> dict[str, Any]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in KINDS]
    counts = {kind: sum(code_lines(path) for path in files if KINDS[path.suffix] == kind) for kind in dict.fromkeys(KINDS.values())}
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((folder / "models").glob("*.py"))}
    papers = {path.name: len(text.splitlines()) for path, text in texts.items() if "Paper:" in (ast.get_docstring(ast.parse(text)) or "")}
    graph = module_imports(folder)
    return {
        **counts,
        "total": sum(counts.values()),
        "files": len(files),
        "model_files": len(papers),
        "median_model_file": statistics.median(papers.values()) if papers else 0,
        "longest_model_file": max(papers.values(), default=0),
        "module_circles": circles(graph),
        "room_circles": circles(between_rooms(graph)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", default=[Path("src/boxquery")])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if missing := [str(folder) for folder in arguments.folders if not folder.is_dir()]:
        parser.error(f"no such folder: {', '.join(missing)}")
    found = [measure(folder.resolve()) for folder in arguments.folders]
    if arguments.json:
        print(json.dumps(dict(zip(map(str, arguments.folders), found, strict=True)), indent=1))
        return
    for number, folder in enumerate(arguments.folders):
        print(f"({number + 1}) {folder}")
    print(f"{'':24}" + "".join(f"{f'({number + 1})':>8}" for number in range(len(found))) + f"{'change':>8}" * (len(found) == 2))
    for key in found[0]:
        values = [len(each[key]) if key.endswith("circles") else each[key] for each in found]
        change = f"{values[1] - values[0]:>+8g}" if len(values) == 2 else ""
        print(f"{key.replace('_', ' '):24}" + "".join(f"{value:>8g}" for value in values) + change)
    for number, each in enumerate(found):
        for circle in each["module_circles"] + each["room_circles"]:
            print(f"({number + 1}) circle: {', '.join(circle)}")


if __name__ == "__main__":
    main()
