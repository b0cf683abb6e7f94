"""The course in docs/learn: its code runs and prints what it says, both languages share it, links and figures are there."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest

COURSE = Path(__file__).parents[1] / "docs" / "learn"
NAMES = sorted(page.name for page in COURSE.glob("*.md"))
PAGES = [folder / name for folder in (COURSE, COURSE / "zh") for name in NAMES]
#: of these, figures.py needs trained models
TRAINED = {"layers", "duplicates", "after", "winners", "one-and-six", "calibration"}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def pictures(page: Path) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def figures():
    """figures.py as a module."""
    pytest.importorskip("matplotlib", reason="figures need the viz extra")
    specification = importlib.util.spec_from_file_location("learn_figures", COURSE / "figures.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [name for name in NAMES if name != "README.md"])
def test_the_code_of_a_page_runs_and_prints_what_stands_below_it(name):
    found = [block for block in blocks((COURSE / name).read_text(encoding="utf-8")) if block[0]]
    assert [language for language, _ in found] == ["python", "text"] * (len(found) // 2)
    assert found
    names: dict = {"__name__": "page"}
    for (_, code), (_, printed) in zip(found[::2], found[1::2], strict=True):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, name, "exec"), names)
        assert out.getvalue() == printed


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_code_equations_figures_and_structure(name):
    english, chinese = ((folder / name).read_text(encoding="utf-8") for folder in (COURSE, COURSE / "zh"))
    assert blocks(english) == blocks(chinese)
    assert [Path(p).name for p in pictures(COURSE / name)] == [Path(p).name for p in pictures(COURSE / "zh" / name)]
    levels = [[len(h) for h in re.findall(r"^(#+) ", text, re.MULTILINE)] for text in (english, chinese)]
    assert levels[0] == levels[1]
    assert english.count("$$") == chinese.count("$$")


def test_the_chinese_course_has_a_page_for_each_english_one():
    assert sorted(page.name for page in (COURSE / "zh").glob("*.md")) == NAMES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_figure_is_drawn_by_the_script_and_shown_on_a_page(figures):
    shown = {Path(link).name for page in PAGES for link in pictures(page)}
    assert shown == {f"{name}.png" for name in figures.FIGURES}
    assert shown == {file.name for file in (COURSE / "figures").iterdir()}


def test_the_script_draws_and_leaves_what_has_no_run(figures, tmp_path, capsys):
    quick = ["attention", "matching", "row-column", "queries-start"]
    figures.main([*quick, *sorted(TRAINED), "--runs", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert sorted(file.stem for file in tmp_path.glob("*.png")) == sorted(quick)
    assert not list(tmp_path.glob("*.part"))
    printed = capsys.readouterr()
    assert {line.split(":")[0] for line in printed.out.splitlines()} == set(quick)
    assert {line.split(":")[0] for line in printed.err.splitlines()} == TRAINED


def test_the_numbers_of_the_text_are_those_of_the_figures(figures):
    _, example = figures.attention(Path())
    assert "output [1.88, 8.12]" in example
    _, matched = figures.matching(Path())
    assert "predictions [1, 2, 3] for objects ['b', 'a', 'c']: 2.21; greedy: 2.99" in matched


def test_an_unfinished_run_is_not_drawn(figures, tmp_path):
    folder = tmp_path / "detr-0.0005-0-4"
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 4\n")
    (folder / "metrics.csv").write_text("epoch,AP\n1,0.1\n")
    with pytest.raises(figures.Missing, match="detr"):
        figures.trained("detr", tmp_path)


def test_entropy_and_share_inside_by_their_definitions(figures):
    torch = pytest.importorskip("torch")
    assert figures.normalised_entropy(torch.full((4, 5), 1 / 20)) == pytest.approx(1)
    assert figures.normalised_entropy(torch.eye(1, 20)) == pytest.approx(0)
    half = torch.tensor([0.5, 0.5, 0, 0])
    assert figures.normalised_entropy(half) == pytest.approx(0.5)
    heat = torch.zeros(10, 10)
    heat[2:4, 5:7] = 0.25
    assert figures.inside(heat, np.array([5.0, 3, 10, 10])) == pytest.approx((0.5, 0.35))
