"""``boxquery explain`` as its users meet it, and the figures that it writes."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import boxquery as bq
from boxquery.cli import run
from boxquery.data.open import open_data
from boxquery.explain.figure import above_even, heat_colours, laid_over, write_figure
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


def explained(words: list[str], capsys) -> dict:
    assert run(["explain", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_page_for_each_image(place, tmp_path, capsys):
    words = [str(place / name) for name in ("second", "a.png", "b.jpg", "a.png")]
    told = explained([*words, "shapes:17", "--out", str(tmp_path / "out"), "--threshold", "0"], capsys)
    files = ["a.html", "b.html", "a-2.html", "shapes-17.html"]
    assert [Path(path).name for path in told["files"]] == files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)
    assert [each["image"] for each in told["explanations"]] == [*words[1:], "shapes:17"]
    model = bq.load(place / "second")
    first = model.explain(place / "a.png", threshold=0.0)
    assert [row["query"] for row in told["explanations"][0]["detections"]] == first.found
    assert told["explanations"][0]["detections"][0]["box"] == pytest.approx(first.boxes[-1, first.found[0]].tolist(), abs=1e-3)


def test_two_runs_on_one_page_and_in_one_figure(place, tmp_path, capsys):
    words = [str(place / name) for name in ("first", "a.png")]
    more = ["--against", str(place / "second"), "--query", "3", "--figure", str(tmp_path / "f.svg"), "--out", str(tmp_path / "p.html")]
    told = explained([*words, *more], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.svg", "p.html"]
    first, second = told["explanations"]
    assert (first["chosen"], first["model"], second["model"]) == (3, "detr", "dab-detr")
    story = bq.load(place / "second").explain(place / "a.png")
    assert second["chosen"] == story.at(np.array(first["detections"][0]["box"], np.float32))
    words_in = [text.text for text in parsed(tmp_path / "f.svg").iter(f"{SVG}text")]
    assert words_in[:2] == ["first", "query 3"]
    assert f"query {second['chosen']}" in words_in


def test_a_query_by_a_point(place, tmp_path, capsys):
    story = bq.load(place / "first").explain(place / "a.png")
    told = explained([str(place / "first"), str(place / "a.png"), "--box", "20,30.5", "--out", str(tmp_path)], capsys)
    assert told["explanations"][0]["chosen"] == story.nearest(20, 30.5)
    assert [row["query"] for row in told["explanations"][0]["detections"]] == [story.nearest(20, 30.5)]


def test_opinions_beside_the_maps(place, tmp_path, capsys):
    words = [str(place / "first"), str(place / "a.png"), "--query", "2", "--relevance", "--faithful", "--out", str(tmp_path)]
    figure = tmp_path / "f.png"
    (each,) = explained([*words, "--figure", str(figure)], capsys)["explanations"]
    (row,) = each["relevance"]
    story = bq.load(place / "first").explain(place / "a.png")
    assert row["query"] == 2
    assert row["share_of_image"] == pytest.approx(story.share(2))
    assert row["attention_inside"] == pytest.approx(story.inside(2, story.heatmap(2).map), abs=1e-5)
    assert set(each["faithfulness"]["deletion"]) == {"map", "box", "random"}
    assert run(["explain", *words]) == 0
    assert "of the relevance" in " ".join(capsys.readouterr().out.split())


def test_a_query_that_was_dropped_has_the_layers_that_it_took_part_in(place, tmp_path, capsys):
    detector("dab-detr", num_queries=[12, 7, 4]).save(tmp_path / "model")
    story = bq.load(tmp_path / "model").explain(place / "a.png")
    present = [story.present(query) for query in range(12)]
    assert sorted(present) == [1] * 5 + [2] * 3 + [3] * 4
    query, figure = present.index(2), tmp_path / "f.svg"
    words = [str(tmp_path / "model"), str(place / "a.png"), "--query", str(query), "--figure", str(figure), "--out", str(tmp_path / "out")]
    explained(words, capsys)
    texts = [text.text for text in parsed(figure).iter(f"{SVG}text")]
    assert [text.split(":")[0] for text in texts if text.startswith("layer")] == ["layer 1", "layer 2"]
    assert f"query {query}, dropped after layer 2" in texts
    (each,) = explained([*words, "--relevance", "--faithful"], capsys)["explanations"]
    assert (each["relevance"], each["faithfulness"]) == (None, None)
    texts = [text.text for text in parsed(figure).iter(f"{SVG}text")]
    assert "relevance by gradient, all layers" not in texts
    assert run(["explain", *words, "--relevance"]) == 0
    assert f"query {query} was dropped after layer 2" in capsys.readouterr().out


def test_people_see_a_table_and_where_the_page_is(place, tmp_path, capsys):
    assert run(["explain", str(place / "second"), str(place / "a.png"), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "score by layer" in told
    assert f"written: {tmp_path / 'out' / 'a.html'}" in told


@pytest.mark.parametrize("kind", ["missed", "usage"])
def test_over_a_data_set(kind, tmp_path, capsys, monkeypatch):
    from boxquery.data import shapes

    few = shapes.shapes_data(val=2, size=64)
    monkeypatch.setattr("boxquery.data.open.shapes_data", lambda **_: few)
    detector("detr", classes=few.names).save(tmp_path / "model")
    told = explained([str(tmp_path / "model"), f"--{kind}", "shapes", "--out", str(tmp_path / "out")], capsys)
    assert told["explanations"] == []
    assert told[kind]["images"] == 2
    assert all(Path(path).is_file() for path in told["files"])


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
    said = capsys.readouterr()
    told = json.loads(said.out)[kind]
    assert said.err.count(f"skipped: {broken}: cannot be read") == 1
    assert told["images"] == 11
    assert told["objects"] == sum(len(record.boxes) for record in data.splits["val"]) - len(data.splits["val"][2].boxes)
    assert len(told["skipped"]) == 1
    assert "1 image could not be read" in (tmp_path / f"out/{kind}.html").read_text(encoding="utf-8")
    assert run(["explain", *words, "--strict"]) == 2
    assert f"error: {broken}: cannot be read" in capsys.readouterr().err


def test_an_image_that_is_called_as_another_page(place, tmp_path, capsys, monkeypatch):
    from boxquery.data import shapes

    few = shapes.shapes_data(val=1, size=64)
    monkeypatch.setattr("boxquery.data.open.shapes_data", lambda **_: few)
    detector("detr", classes=few.names).save(tmp_path / "model")
    photo().save(tmp_path / "missed.png")
    told = explained([str(tmp_path / "model"), str(tmp_path / "missed.png"), "--missed", "shapes", "--out", str(tmp_path / "out")], capsys)
    assert [Path(path).name for path in told["files"]] == ["missed-2.html", "missed.html"]


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_wrong_input_is_one_line_and_writes_nothing(words, said, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert run(["explain", "first", *words]) == 2
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert told.out == ""
    assert sorted(place.rglob("*")) == before


def test_an_output_that_cannot_be_written(place, tmp_path, capsys):
    (tmp_path / "a.html").mkdir()
    assert run(["explain", str(place / "first"), str(place / "a.png"), "--out", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


# -- figures ----------------------------------------------------------------------------------------------------------------------------


def looking_at(cell: tuple[int, int]):
    """A story whose query 0 reads one cell of the memory and nothing else, and has its box in the lower right quarter."""
    story = detector("detr").explain(photo())
    layers = []
    for layer in story.trace.layers:
        attention = torch.zeros_like(layer.attention[0])
        attention[..., cell[0], cell[1]] = 1
        layers.append(LayerTrace(memory=layer.memory, attention=(attention,)))
    boxes = np.tile(np.array([60, 40, 90, 66], np.float32), (*story.scores.shape, 1))
    return replace(story, boxes=boxes, trace=replace(story.trace, layers=layers))


def test_colours_rise_evenly():
    ramp = heat_colours(np.linspace(0, 1, 256)).astype(np.float64)
    light = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.5).all()
    assert light[0] < 5
    assert light[-1] > 220
    assert heat_colours(np.array([-1, 0, 1, 2])).tolist() == [[0, 0, 4], [0, 0, 4], [252, 255, 164], [252, 255, 164]]


def test_an_even_reading_is_clear_and_a_hundred_times_it_is_full():
    even = np.full((20, 30), 1 / 600)
    assert not above_even(even).any()
    sharp = np.zeros((20, 30))
    sharp[3, 4], sharp[5, 6] = 100 / 600, 10 / 600
    assert above_even(sharp)[3, 4] == pytest.approx(1)
    assert above_even(sharp)[5, 6] == pytest.approx(0.5)
    grey = np.asarray(laid_over(photo(30, 20), even))
    assert (grey == grey[..., :1]).all()


def test_png_shows_the_map_and_the_box(tmp_path):
    story = looking_at((0, 0))
    path = write_figure([story, story], tmp_path / "f.png", queries=[0, 1], panel=96)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    left, top = 16, 16 + 2 * 26  # of the first panel
    panel = picture[top : top + 72, left : left + 96]
    red = panel[..., 0] - panel[..., 2]
    ((h, w),) = story.trace.layers[0].memory.shapes
    assert red[2, 2] > 50
    assert abs(red[72 // h + 4 :, : 96 // w - 2]).max() == 0
    ink = colour(int(story.labels[0, 0]))
    assert picture[top + 52, left + 60].tolist() == list(ink)
    assert picture[top + 40, left + 75].tolist() == list(ink)


def test_svg_is_whole_and_names_are_escaped(tmp_path):
    story = looking_at((1, 1))
    story = replace(story, classes=["a & b", "<i>", '"q"'])
    path = write_figure([story], tmp_path / "f.SVG", panel=96, titles=["<run & co>"])
    root = parsed(path)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[0] == "<run & co>"
    query = story.shown[0]
    layers = len(story.boxes)
    for layer in range(layers):
        assert f"layer {layer + 1}: {story.name(query, layer)} {story.scores[layer, query]:.2f}" in texts
    pictures = list(root.iter(f"{SVG}image"))
    assert len(pictures) == layers + 1  # and the scale
    data = base64.b64decode(pictures[0].attrib["href"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (96, 72)
    frames = [rect for rect in root.iter(f"{SVG}rect") if rect.attrib.get("stroke") not in (None, "#000")]
    assert [frame.attrib[key] for frame in frames[:1] for key in ("x", "y", "width", "height")] == ["60.0", "40.0", "30.0", "26.0"]


def test_words_of_narrow_columns_do_not_meet(tmp_path):
    story = replace(detector("detr").explain(photo(40, 96)), classes=["a very long name of a class"] * 3)
    root = parsed(write_figure([story, story], tmp_path / "f.svg", panel=96))
    font = ImageFont.load_default(size=18)
    ends = {}
    for text in sorted(root.iter(f"{SVG}text"), key=lambda text: float(text.attrib["x"])):
        left, row = float(text.attrib["x"]), text.attrib["y"]
        assert left > ends.get(row, 0)
        ends[row] = left + font.getlength(text.text)
    assert max(ends.values()) < float(root.attrib["width"])


@pytest.mark.parametrize(("name", "drawn"), [("detr", "none"), ("conditional-detr", "path"), ("dab-detr", "dashed")])
def test_references_are_dashed_boxes_or_crosses(name, drawn, tmp_path):
    root = parsed(write_figure([detector(name).explain(photo())], tmp_path / "f.svg", panel=64))
    dashed = any("stroke-dasharray" in rect.attrib for rect in root.iter(f"{SVG}rect"))
    crossed = next(root.iter(f"{SVG}path"), None) is not None
    assert {"none": (False, False), "path": (False, True), "dashed": (True, False)}[drawn] == (dashed, crossed)


def test_columns_of_different_length_and_a_last_row(tmp_path):
    stories = [detector("detr", decoder_layers=n).explain(photo()) for n in (1, 3)]
    even = [lambda size: torch.full(size, 1 / (size[0] * size[1]))] * 2
    root = parsed(write_figure(stories, tmp_path / "f.svg", panel=64, relevances=even))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert sum(text.startswith("layer") for text in texts) == 4
    assert texts.count("relevance by gradient, all layers") == 2
    with pytest.raises(bq.UserError, match="png"):
        write_figure(stories, tmp_path / "f.gif")
