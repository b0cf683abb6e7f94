"""``boxquery explain`` as its users meet it, and the figures that it writes."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageFont

import boxquery as bq
from boxquery.cli import run
from boxquery.data.open import open_data
from boxquery.explain.figure import draw_map, write_figure
from boxquery.pages.drawing import colour
from boxquery.parts.trace import LayerTrace
from tests.data import writers
from tests.explain.tiny import detector, photo

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two models, two readable images and one that is none."""
    folder = tmp_path_factory.mktemp("explain")
    detector("detr", threshold=0.3).save(folder / "first")
    detector("dab-detr").save(folder / "second")
    photo().save(folder / "a.png")
    photo(80, 60, seed=3).save(folder / "b.jpg")
    (folder / "broken.jpg").write_text("no image")
    return folder


def parsed(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_bytes())  # noqa: S314 - written by the test itself


def texts_of(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def explained(words: list[str], capsys) -> dict:
    assert run(["explain", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_page_for_each_image(place, tmp_path, capsys):
    words = [str(place / name) for name in ("second", "a.png", "b.jpg", "a.png")]
    result = explained([*words, "shapes:17", "--out", str(tmp_path / "out"), "--threshold", "0"], capsys)
    files = ["a.html", "b.html", "a-2.html", "shapes-17.html"]
    assert [Path(path).name for path in result["files"]] == files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)
    assert [each["image"] for each in result["explanations"]] == [*words[1:], "shapes:17"]
    model = bq.load(place / "second")
    first = model.explain(place / "a.png", threshold=0.0)
    assert [row["query"] for row in result["explanations"][0]["detections"]] == first.found
    assert result["explanations"][0]["detections"][0]["box"] == pytest.approx(first.boxes[-1, first.found[0]].tolist(), abs=1e-3)


def test_two_runs_on_one_page_and_in_one_figure(place, tmp_path, capsys):
    words = [str(place / name) for name in ("first", "a.png")]
    more = ["--against", str(place / "second"), "--query", "3", "--figure", str(tmp_path / "f.svg"), "--out", str(tmp_path / "p.html")]
    result = explained([*words, *more], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.svg", "p.html"]
    first, second = result["explanations"]
    assert (first["chosen"], first["model"], second["model"]) == (3, "detr", "dab-detr")
    explanation = bq.load(place / "second").explain(place / "a.png")
    assert second["chosen"] == explanation.at(np.array(first["detections"][0]["box"], np.float32))
    texts = texts_of(parsed(tmp_path / "f.svg"))
    assert {"first", "second", "query 3", f"query {second['chosen']}"} <= set(texts)


def test_a_query_by_a_point(place, tmp_path, capsys):
    explanation = bq.load(place / "first").explain(place / "a.png")
    result = explained([str(place / "first"), str(place / "a.png"), "--box", "20,30.5", "--out", str(tmp_path)], capsys)
    assert result["explanations"][0]["chosen"] == explanation.nearest(20, 30.5)
    assert [row["query"] for row in result["explanations"][0]["detections"]] == [explanation.nearest(20, 30.5)]


def test_opinions_beside_the_maps(place, tmp_path, capsys):
    words = [str(place / "first"), str(place / "a.png"), "--query", "2", "--relevance", "--faithful", "--out", str(tmp_path)]
    figure = tmp_path / "f.png"
    (each,) = explained([*words, "--figure", str(figure)], capsys)["explanations"]
    (row,) = each["relevance"]
    explanation = bq.load(place / "first").explain(place / "a.png")
    assert row["query"] == 2
    assert row["share_of_image"] == pytest.approx(explanation.share(2))
    assert row["attention_inside"] == pytest.approx(explanation.inside(2, explanation.heatmap(2).map), abs=1e-5)
    assert set(each["faithfulness"]["deletion"]) == {"map", "box", "random"}
    assert run(["explain", *words]) == 0
    assert "of its relevance" in " ".join(capsys.readouterr().out.split())


def test_a_query_that_was_pruned_has_the_layers_that_it_took_part_in(place, tmp_path, capsys):
    detector("dab-detr", num_queries=[12, 7, 4]).save(tmp_path / "model")
    explanation = bq.load(tmp_path / "model").explain(place / "a.png")
    present = [explanation.present(query) for query in range(12)]
    assert sorted(present) == [1] * 5 + [2] * 3 + [3] * 4
    query, figure = present.index(2), tmp_path / "f.svg"
    words = [str(tmp_path / "model"), str(place / "a.png"), "--query", str(query), "--figure", str(figure), "--out", str(tmp_path / "out")]
    explained(words, capsys)
    texts = texts_of(parsed(figure))
    assert [text.split(":")[0] for text in texts if text.startswith("layer")] == ["layer 1", "layer 2"]
    assert f"query {query}, pruned after layer 2" in texts
    (each,) = explained([*words, "--relevance", "--faithful"], capsys)["explanations"]
    assert (each["relevance"], each["faithfulness"]) == (None, None)
    texts = texts_of(parsed(figure))
    assert "relevance by gradient, all layers" not in texts
    assert run(["explain", *words, "--relevance"]) == 0
    assert f"query {query} was pruned after layer 2" in capsys.readouterr().out


def test_people_see_a_table_and_where_the_page_is(place, tmp_path, capsys):
    assert run(["explain", str(place / "second"), str(place / "a.png"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "score by layer" in printed
    assert f"written: {tmp_path / 'out' / 'a.html'}" in printed


@pytest.mark.parametrize("kind", ["missed", "usage"])
def test_over_a_data_set(kind, tmp_path, capsys, monkeypatch):
    from boxquery.data import shapes

    few = shapes.shapes_data(val=2, size=64)
    monkeypatch.setattr("boxquery.data.validation.shapes_data", lambda **_: few)
    detector("detr", classes=few.names).save(tmp_path / "model")
    result = explained([str(tmp_path / "model"), f"--{kind}", "shapes", "--out", str(tmp_path / "out")], capsys)
    assert result["explanations"] == []
    assert result[kind]["images"] == 2
    assert all(Path(path).is_file() for path in result["files"])


@pytest.mark.parametrize("kind", ["missed", "usage"])
def test_an_image_damaged_in_its_pixels_is_named_and_skipped(kind, tmp_path, capsys):
    """Its header and its end are whole, so that only reading shows it."""
    photos = writers.write_voc(tmp_path / "photos", writers.pictures(36))
    data = open_data(photos)
    broken = data.splits["val"][2].path
    content = bytearray(broken.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    broken.write_bytes(content)
    detector("detr", classes=data.names).save(tmp_path / "model")
    words = [str(tmp_path / "model"), f"--{kind}", str(photos), "--out", str(tmp_path / "out")]
    assert run(["explain", *words, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)[kind]
    assert printed.err.count(f"skipped: {broken}: cannot be read") == 1
    assert result["images"] == 11
    assert result["objects"] == sum(len(record.boxes) for record in data.splits["val"]) - len(data.splits["val"][2].boxes)
    assert len(result["skipped"]) == 1
    assert "1 image could not be read" in (tmp_path / f"out/{kind}.html").read_text(encoding="utf-8")
    assert run(["explain", *words, "--strict"]) == 2
    assert f"error: {broken}: cannot be read" in capsys.readouterr().err


def test_an_image_that_is_called_as_another_page(place, tmp_path, capsys, monkeypatch):
    from boxquery.data import shapes

    few = shapes.shapes_data(val=1, size=64)
    monkeypatch.setattr("boxquery.data.validation.shapes_data", lambda **_: few)
    detector("detr", classes=few.names).save(tmp_path / "model")
    photo().save(tmp_path / "missed.png")
    result = explained(
        [str(tmp_path / "model"), str(tmp_path / "missed.png"), "--missed", "shapes", "--out", str(tmp_path / "out")], capsys
    )
    assert [Path(path).name for path in result["files"]] == ["missed-2.html", "missed.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name images"),
        (["none.png"], "no such file"),
        (["a.png", "broken.jpg"], "broken.jpg"),
        (["a.png", "--query", "12"], "queries 0 to 11"),
        (["a.png", "--query", "-1"], "queries 0 to 11"),
        (["a.png", "--box", "97,3"], "96 x 72"),
        (["a.png", "b.jpg", "--box", "90,3"], "80 x 60"),
        (["a.png", "--box", "5"], "x,y"),
        (["a.png", "--box", "nan,3"], "nan"),
        (["a.png", "--box", "5,5", "--query", "1"], "one of them"),
        (["a.png", "--figure", "f.pdf"], ".svg"),
        (["a.png", "--threshold", "2"], "threshold=2"),
        (["a.png", "--out", "b.jpg"], "is a file"),
        (["a.png", "--out", "b.jpg/page.html"], "is a file"),
        (["a.png", "--figure", "b.jpg/f.png"], "is a file"),
        (["a.png", "--against", "nothing"], "nothing"),
        (["shapes:200"], "0 to 199"),
        (["shapes:x"], "0 to 199"),
        (["--missed", "shapes", "--query", "1"], "name some"),
        (["--missed", "no/data"], "no/data"),
        (["a.png", "--missed", "no/data"], "no/data"),
        (["a.png", "--usage", "shapes"], "does not know"),
        (["--usage", "shapes", "--split", "third"], "third"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words, message, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert run(["explain", "first", *words]) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert printed.out == ""
    assert sorted(place.rglob("*")) == before


def test_an_output_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "a.html").mkdir()
    assert run(["explain", str(place / "first"), str(place / "a.png"), "--out", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


# -- figures ----------------------------------------------------------------------------------------------------------------------------


def attending_to(cell: tuple[int, int]):
    """An explanation whose queries attend to one cell alone and predict a box in the lower right quarter."""
    explanation = detector("detr").explain(photo())
    layers = []
    for layer in explanation.trace.layers:
        attention = torch.zeros_like(layer.attention[0])
        attention[..., cell[0], cell[1]] = 1
        layers.append(LayerTrace(memory=layer.memory, attention=(attention,)))
    boxes = np.tile(np.array([60, 40, 90, 66], np.float32), (*explanation.scores.shape, 1))
    return replace(explanation, boxes=boxes, trace=replace(explanation.trace, layers=layers))


def test_colours_rise_on_a_logarithmic_scale_from_uniform_attention():
    heat = torch.full((20, 30), 1 / 600)
    heat[3, :3] = torch.tensor([1, 10, 100]) / 600
    axis = Figure().subplots()
    draw_map(axis, photo(60, 40), heat)
    grey, drawn = axis.get_images()
    assert grey.get_extent() == drawn.get_extent() == [0, 60, 40, 0]
    colours = drawn.to_rgba(drawn.get_array())
    assert not colours[4:, :, 3].any()
    assert colours[3, :3, 3] == pytest.approx([0, 0.85 * 0.5**0.5, 0.85], abs=0.01)
    light = drawn.to_rgba(np.geomspace(1, 100, 256))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.003).all()
    assert light[-1] > 0.9


def test_png_shows_the_map_and_the_box(tmp_path):
    explanation = attending_to((0, 0))
    path = write_figure([explanation, explanation], tmp_path / "f.png", queries=[0, 1])
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[1] == 2 * 480
    bright = picture[..., 0] - picture[..., 2] > 50  # yellow
    inked = (picture == colour(int(explanation.labels[0, 0]))).all(-1)
    ((_, w),) = explanation.trace.layers[0].memory.shapes
    for found, low, high in ((bright[:200], 0, 1 / w), (inked[:400], 60 / 96, 90 / 96)):  # the box is below row 200
        columns = np.flatnonzero(found[:, :480].any(0))
        assert [columns.min() / 480, columns.max() / 480] == pytest.approx([low, high], abs=0.03)


def test_svg_has_every_layer_with_its_box_and_names_as_they_are(tmp_path):
    explanation = replace(attending_to((1, 1)), classes=["a & b", "<i>", "$q_1^2$"])
    root = parsed(write_figure([explanation], tmp_path / "f.SVG", titles=["<run & co>"]))
    texts = texts_of(root)
    query = explanation.shown[0]
    layers = len(explanation.boxes)
    assert "<run & co>" in texts
    for layer in range(layers):
        assert f"layer {layer + 1}: {explanation.name(query, layer)} {explanation.scores[layer, query]:.2f}" in texts
    pictures = list(root.iter(f"{SVG}image"))
    assert len(pictures) == layers + 1  # and the scale
    left, width, height = (float(pictures[0].attrib[key]) for key in ("x", "width", "height"))
    assert width / height == pytest.approx(96 / 72, rel=0.01)
    box = next(path for path in root.iter(f"{SVG}path") if "stroke: #" in path.attrib["style"] and "clip-path" in path.attrib)
    corners = [float(value) for value in box.attrib["d"].replace("\n", " ").split() if value not in "MLz"][::2]
    assert [(min(corners) - left) / width, (max(corners) - left) / width] == pytest.approx([60 / 96, 90 / 96], abs=0.01)


def test_captions_of_neighbouring_columns_do_not_meet(tmp_path):
    explanation = replace(detector("detr").explain(photo(40, 96)), classes=["a very long name of a class, as some data sets have them"] * 3)
    root = parsed(write_figure([explanation, explanation], tmp_path / "f.svg"))
    font, middle = ImageFont.truetype(findfont("DejaVu Sans"), 9), float(root.attrib["viewBox"].split()[2]) / 2
    captions = [text for text in root.iter(f"{SVG}text") if "translate" in text.attrib["transform"]]
    assert len(captions) == 2 * (2 * len(explanation.boxes) + 2)
    for text in captions:
        left = float(text.attrib["transform"].removeprefix("translate(").split()[0])
        assert left + font.getlength(text.text) < (middle if left < middle else 2 * middle)


@pytest.mark.parametrize(
    ("name", "dashed", "crossed"), [("detr", False, False), ("conditional-detr", False, True), ("dab-detr", True, False)]
)
def test_references_are_dashed_boxes_or_crosses(name, dashed, crossed, tmp_path):
    root = parsed(write_figure([detector(name).explain(photo())], tmp_path / "f.svg"))
    styles = [path.attrib.get("style", "") for path in root.iter(f"{SVG}path") if "clip-path" in path.attrib]
    assert any("stroke-dasharray" in style for style in styles) == dashed
    assert any("fill: #ffffff; stroke: #ffffff" in style for style in styles) == crossed


def test_columns_of_different_length_and_a_last_row(tmp_path):
    explanations = [detector("detr", decoder_layers=n).explain(photo()) for n in (1, 3)]
    root = parsed(write_figure(explanations, tmp_path / "f.svg", relevances=[torch.full((6, 8), 1 / 48)] * 2))
    texts = texts_of(root)
    assert sum(text.startswith("layer") for text in texts) == 4
    assert texts.count("relevance by gradient, all layers") == 2
    with pytest.raises(bq.UserError, match="png"):
        write_figure(explanations, tmp_path / "f.gif")


def test_without_matplotlib_a_figure_says_what_to_install(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["explain", str(place / "first"), str(place / "a.png"), "--figure", "f.png", "--out", str(tmp_path)]) == 2
    assert "pip install 'boxquery[viz]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
