"""The report is one file that needs nothing else, says what there is, and survives what there is not."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from boxquery.errors import UserError
from boxquery.report.page import write_report
from boxquery.report.sections import flatten

from .fake_run import write_metrics

VOID = {"meta", "img", "br", "link", "input", "hr"}
SECTIONS = ["headline", "curves", "scores", "classes", "pictures", "data", "configuration"]


class Page(HTMLParser):
    """Collects what a test asks about, and fails on tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def html(run):
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("report.html"))


def test_sections_in_order(html):
    assert Page(html).ids == SECTIONS


def test_nothing_from_outside(html):
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/jpeg;base64,")
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?://", html)
    assert not any("style" in attributes for _, attributes in page.tags)  # the page's policy forbids them


def test_size(html):
    assert 100_000 < len(html.encode()) < 2_000_000


def test_names_from_the_data_are_escaped(html):
    assert "<script" not in html
    assert "<b>odd" not in html
    text = Page(html).text
    assert "<script>alert('x')</script>" in text
    assert "a & b" in text
    assert "train/<b>odd</b>.jpg: cannot be read" in text


def test_what_it_says(html, run):
    result = json.loads((run / "evaluation.json").read_text())["val"]
    text = Page(html).text
    assert "dab-detr on shapes & more" in text
    assert f"{result['AP']:.3f}" in text
    assert f"{100 * result['recall']:.0f} %" in text
    assert "No test list was given" in text
    assert "8 things were left out" in text
    assert "optimizer.weight_decay" in text
    assert "boxquery train 'datasets/shapes & more' --model dab-detr --preset small --epochs 50" in text
    assert "right ·" in text
    for column in ("epoch", "duplicate_rate", "giou"):
        assert column in text


def test_accessible(html):
    tags = Page(html).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 24
    assert all(len(image["alt"]) > 10 and image["width"] and image["height"] for image in images)
    charts = [attributes for tag, attributes in tags if tag == "svg" and attributes["class"] == "chart"]
    assert len(charts) == 5
    assert all(chart["role"] == "img" and "Last:" in chart["aria-label"] for chart in charts)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert ("html", {"lang": "en"}) in tags
    assert [tag for tag, _ in tags].count("h1") == 1
    assert [tag for tag, _ in tags].count("figcaption") == 5 + 12


def test_themes_print_and_phones(html):
    for query in ("prefers-color-scheme: dark", "@media print", "max-width: 760px"):
        assert query in html
    assert 'name="viewport"' in html


def test_an_empty_folder(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert page.ids == ["headline"]
    assert "Nothing was measured in this run yet." in page.text


@pytest.mark.parametrize(
    ("missing", "section"),
    [("metrics.csv", "curves"), ("evaluation.json", "scores"), ("data.json", "data"), ("pictures.json", "pictures"),
     ("pictures", "pictures"), ("config.yaml", "configuration")],
)  # fmt: skip
def test_a_piece_is_missing(copy, missing, section):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    gone = {section, "classes"} if missing == "evaluation.json" else {section}
    assert Page(write_report(copy).read_text()).ids == [name for name in SECTIONS if name not in gone]


def test_not_evaluated_yet(copy):
    (copy / "evaluation.json").unlink()
    assert "Trained for 50 epochs; not evaluated yet." in Page(write_report(copy).read_text()).text


def test_one_epoch_has_numbers_but_no_curves(copy):
    write_metrics(copy, 1)
    page = Page(write_report(copy).read_text())
    assert not any(tag == "svg" and attributes["class"] == "chart" for tag, attributes in page.tags)
    assert "Curves appear from the second epoch on." in page.text
    assert ("details", {"open": None}) in page.tags


def test_odd_cells_and_rows_written_twice(copy):
    (copy / "metrics.csv").write_text("epoch,loss,AP,note\n1,3,,x\n2,nan,0.1,\n2,2.5,0.2,\n3,inf,0.3\n4,1,0.25,y,surplus\n")
    text = write_report(copy).read_text()
    assert not re.search(r"\b(nan|inf)\b", Page(text).text)
    assert 'aria-label="Loss by epoch. Last: loss 1."' in text
    assert text.count('class="best s0"') == 1


def write_alignment(run, epochs, layers, reference=True):
    """Columns as training writes them; the first epoch has no earlier one to compare its queries with."""
    names = [f"{m}_{i}" for m in ("inside", "entropy", *["distance"] * reference) for i in range(1, layers + 1)]
    lines = [",".join(["epoch", "loss", *names, "inside_even", "query_changes"])]
    for epoch in range(1, epochs + 1):
        values = [f"{0.9 - 0.01 * epoch - 0.02 * i:.3f}" for i in range(len(names))]
        lines.append(",".join([str(epoch), "1", *values, "0.05", "" if epoch == 1 else "0.25"]))
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("layers", [1, 3, 6, 12])
@pytest.mark.parametrize("reference", [True, False])
def test_what_queries_read(copy, layers, reference):
    write_alignment(copy, 5, layers, reference)
    text = write_report(copy).read_text()
    page = Page(text)
    assert page.ids == [*SECTIONS[:2], "alignment", *SECTIONS[2:]]
    section = text[text.index('<section id="alignment">') : text.index('<section id="scores">')]
    assert section.count("<svg") == 3 + reference
    assert ("diagonals of the image" in section) == reference
    assert section.count("<polyline") == (2 + reference) * layers + 2
    assert section.count('<polyline class="line even"') == 1
    assert f"layer {layers}" in section or layers == 1
    assert "even 0.05" in section
    shades = re.findall(r'<polyline class="line (k\d)"', section)
    assert set(shades) <= {f"k{i}" for i in range(6)}
    assert all(f".{shade} {{ --this" in text for shade in set(shades))
    if layers in (3, 6):
        assert len(set(shades)) == layers


def test_one_measurement_is_no_curve(copy):
    write_alignment(copy, 1, 3)
    assert Page(write_report(copy).read_text()).ids == SECTIONS
    write_alignment(copy, 2, 3)  # queries were compared once
    text = write_report(copy).read_text()
    assert "alignment" in Page(text).ids
    assert "changed their query" not in text


def test_many_epochs_stay_small(copy):
    write_metrics(copy, 2000)
    assert write_report(copy).stat().st_size < 2_000_000


def test_numbers_that_are_not_defined(copy):
    result = json.loads((copy / "evaluation.json").read_text())
    for value in result.values():
        value.update(dict.fromkeys([key for key in value if key.startswith(("A", "best", "prec", "rec", "f1", "dup", "false"))]))
        for item in value["per_class"]:
            item.update(AP=None, AP50=None, name=None)
    (copy / "evaluation.json").write_text(json.dumps(result))
    page = Page(write_report(copy).read_text())
    assert "It finds nothing yet" in page.text
    assert "(no name)" in page.text
    assert "None" not in page.text
    for value in result.values():
        value["objects"] = 0
    (copy / "evaluation.json").write_text(json.dumps(result))
    assert "There are no objects in the 60 images" in Page(write_report(copy).read_text()).text


def test_only_test_was_evaluated(copy):
    result = json.loads((copy / "evaluation.json").read_text())
    (copy / "evaluation.json").write_text(json.dumps({"test": result["test"]}))
    assert "the 40 images of the test split" in Page(write_report(copy).read_text()).text


@pytest.mark.parametrize(
    ("file", "content"), [("config.yaml", "a: [1"), ("evaluation.json", "{"), ("data.json", "[]"), ("pictures.json", b"\xff\xfe")]
)
def test_broken_files_are_named(copy, file, content):
    path = copy / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=file):
        write_report(copy)
    assert not (copy / "report.html").exists()


def test_a_folder_in_the_place_of_a_file(copy):
    (copy / "data.json").unlink()
    (copy / "data.json").mkdir()
    with pytest.raises(UserError, match=r"data\.json: cannot be read"):
        write_report(copy)


def test_no_such_run(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_flatten():
    assert list(flatten({"a": 1, "b": {"c": {"d": [1]}, "e": None}, "f": {}})) == [("a", 1), ("b.c.d", [1]), ("b.e", None)]
