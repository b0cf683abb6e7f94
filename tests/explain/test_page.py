"""The page is one file that needs nothing else, holds the maps of the explanation to 8 bits, and stays small."""

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.explain.explanation import Explanation, explain
from boxquery.explain.page import kept_queries, map_size, write_page
from boxquery.parts.trace import LayerTrace, Trace
from tests.models.builders import create, shaken, systems

NAMES = ["disc", "<script>alert('x')</script>", "a & b"]
BYTES = ("small", "mean", "heads", "down", "across", "origins", "rival_counts", "fates", "silent_from")
TYPES = dict.fromkeys(BYTES, "u1")


def story(name="detr", threshold=0.0, size=(96, 128), seed=0, **options):
    model = shaken(create(name, **options), 0.1).eval()
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return explain(Detector(model, NAMES, [1, 2, 3], 96), image, threshold=threshold)


def data_of(path):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    return json.loads(text[1])["images"]


def array(model, name):
    kind = TYPES.get(name, "<f4" if name.endswith("_top") else "<u2")
    return np.frombuffer(zlib.decompress(base64.b64decode(model["arrays"][name])), kind)


@pytest.mark.parametrize("system", systems())
def test_maps_are_the_explanations(system, tmp_path):
    name, options = systems()[system]
    known = story(name, **options)
    [image] = data_of(write_page([known], tmp_path / "page.html"))
    [model] = image["models"]
    layers, queries, heads, kept = model["layers"], model["queries"], model["heads"], model["kept"]
    grid, small = model["grid"], model["small"]
    assert (layers, queries) == known.scores.shape

    def told(name, *shape):
        top = array(model, f"{name}_top")
        values = array(model, name).reshape(*shape)
        return values / 255 * top.reshape(*top_shape(shape, top.size))

    def near(found, expected):
        top = expected.amax((-2, -1), keepdim=True).numpy()
        assert (np.abs(found - expected.numpy()) <= top * 1.01 / 255 + 1e-9).all()

    means, coarse = told("mean", layers, len(kept), *grid), told("small", layers, queries, *small)
    if "heads" in model["arrays"]:
        every = told("heads", layers, len(kept), heads, *grid)
    else:
        every = told("down", layers, len(kept), heads, grid[0])[..., None] * told("across", layers, len(kept), heads, grid[1])[..., None, :]
    lost, heads_lost = array(model, "lost").reshape(layers, queries), array(model, "heads_lost").reshape(layers, len(kept), heads)
    for layer in range(layers):
        near(means[layer], known.heatmaps(kept, layer, grid).map)
        near(coarse[layer], known.heatmaps(range(queries), layer, small).map)
        exact = known.heatmaps(kept, layer, grid, heads=True)
        near(every[layer], exact.map)
        np.testing.assert_allclose(heads_lost[layer] / 65535, exact.lost.numpy(), atol=1e-5)
        np.testing.assert_allclose(lost[layer] / 65535, known.heatmaps(range(queries), layer, (1, 1)).lost.numpy(), atol=1e-5)


def top_shape(shape, size):
    """The leading sides of ``shape`` that hold ``size`` values, and ones for the rest."""
    for leading in range(len(shape)):
        if np.prod(shape[:leading]) == size:
            return (*shape[:leading], *[1] * (len(shape) - leading))
    raise AssertionError(f"{size} maxima do not fit {shape}")


@pytest.mark.parametrize("system", ["detr", "anchor-detr", "dab-detr", "sam-detr", "deformable-detr-refined"])
def test_places_and_answers(system, tmp_path):
    name, options = systems()[system]
    known = story(name, **options)
    [image] = data_of(write_page([known], tmp_path / "page.html"))
    [model] = image["models"]
    sides = np.array([image["width"], image["height"]] * 2)
    assert (image["height"], image["width"]) == known.size

    def pixels(name, last):
        return (array(model, name).reshape(-1, last) / 65535 * 2 - 0.5) * sides[:last]

    np.testing.assert_allclose(pixels("boxes", 4), known.boxes.reshape(-1, 4), atol=0.01)
    np.testing.assert_allclose(array(model, "scores") / 65535, known.scores.ravel(), atol=1e-5)
    np.testing.assert_array_equal(array(model, "labels"), known.labels.ravel())
    if known.references is None:
        assert model["reference_size"] == 0
        assert "references" not in model["arrays"]
    else:
        last = known.references.shape[-1]
        assert model["reference_size"] == last
        np.testing.assert_allclose(pixels("references", last), known.references.reshape(-1, last), atol=0.01)
    assert ("salient" in model["arrays"]) == (name == "sam-detr")
    if name == "sam-detr":
        points = np.stack([layer.salient_points[0, model["kept"]] for layer in known.trace.layers]) * sides[:2]
        np.testing.assert_allclose(pixels("salient", 2), points.reshape(-1, 2), atol=0.01)
    assert model["order"] == np.argsort(-known.scores[-1], kind="stable").tolist()
    assert model["found"] == known.found
    assert kept_queries(known) == model["kept"] == known.found[:20]


@pytest.mark.parametrize("system", ["detr", "anchor-detr", "deformable-detr-two-stage"])
def test_where_readings_came_from(system, tmp_path):
    name, options = systems()[system]
    known = story(name, **options)
    [model] = data_of(write_page([known], tmp_path / "page.html"))[0]["models"]
    layers, kept, size = model["layers"], model["kept"], model["small"]
    maps = array(model, "origins").reshape(layers, len(kept), *size) / 255 * array(model, "origins_top").reshape(layers, len(kept), 1, 1)
    lost = array(model, "origins_lost").reshape(layers, len(kept)) / 65535
    for layer in range(layers):
        for place in (0, len(kept) - 1):
            expected = known.origin(kept[place], layer, size)
            np.testing.assert_allclose(maps[layer, place], expected.map, atol=float(expected.map.max()) * 1.01 / 255)
            assert lost[layer, place] == pytest.approx(expected.lost, abs=1e-5)
    assert (array(model, "origins") != array(model, "small").reshape(layers, -1, *size)[:, kept].ravel()).any()


def test_no_origins_without_an_encoder(tmp_path):
    [model] = data_of(write_page([story("detr", encoder_layers=0)], tmp_path / "page.html"))[0]["models"]
    assert "origins" not in model["arrays"]


def test_rivals(tmp_path):
    known = story("dab-detr")
    boxes = known.boxes.copy()
    boxes[:, :9] = boxes[:, :1]  # more on one object than the page tells of
    known = replace(known, boxes=boxes, threshold=float(np.median(known.scores)))
    [model] = data_of(write_page([known], tmp_path / "page.html"))[0]["models"]
    layers, queries = known.scores.shape
    most, counts = model["most_rivals"], array(model, "rival_counts")
    others, fates, silent = (array(model, key).reshape(queries, most) for key in ("rival_queries", "fates", "silent_from"))
    reads = array(model, "reads").reshape(queries, most, 2, layers) / 65535
    for query in range(queries):
        rivals = known.rivals(query)
        assert counts[query] == min(len(rivals), most + 1)
        for place, rival in enumerate(rivals[:most]):
            assert others[query, place] == rival.query
            assert model["fates"][fates[query, place]] == rival.fate
            assert silent[query, place] == (layers if rival.silent_from is None else rival.silent_from)
            np.testing.assert_allclose(reads[query, place], [rival.read_winner, rival.read_by_winner], atol=1e-5)
    assert counts.max() == most + 1
    assert len(np.unique(fates)) >= 3


def test_nothing_found_keeps_the_ten_best(tmp_path):
    known = story(threshold=1.0)
    [image] = data_of(write_page([known], tmp_path / "page.html"))
    assert image["models"][0]["found"] == []
    assert image["models"][0]["kept"] == np.argsort(-known.scores[-1], kind="stable").tolist()[:10]


def test_query_that_was_asked_for_has_its_heads(tmp_path):
    known = story("anchor-detr", threshold=1.0)
    worst = int(known.scores[-1].argmin())
    [image] = data_of(write_page([replace(known, chosen=worst)], tmp_path / "page.html"))
    assert image["models"][0]["chosen"] == worst
    assert image["models"][0]["kept"][-1] == worst
    assert len(image["models"][0]["kept"]) == 11


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_nothing_from_outside_and_names_are_escaped(tmp_path):
    title = "<script>alert(1)</script>"
    text = write_page([story()], tmp_path / "page.html", titles=[title]).read_text(encoding="utf-8")
    tags = Tags(text).tags
    assert [tag for tag, _ in tags].count("script") == 2
    for tag, attributes in tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not {"src", "href"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    addresses = set(re.findall(r"https?://[^\s\"'<]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, which is never fetched
    assert "alert('x')</script>" not in text
    assert title not in text
    assert NAMES[1] in data_of(tmp_path / "page.html")[0]["models"][0]["classes"]


def test_same_image_stands_side_by_side(tmp_path):
    first, second, other = story(), story(), story(seed=1)
    images = data_of(write_page([first, other, second], tmp_path / "page.html"))
    assert [[m["title"] for m in image["models"]] for image in images] == [["detr (1)", "detr (2)"], ["detr"]]
    images = data_of(write_page([first, second], tmp_path / "page.html", titles=["early", "late"]))
    assert [m["title"] for m in images[0]["models"]] == ["early", "late"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        write_page([], tmp_path / "page.html")
    with pytest.raises(UserError, match="one for each"):
        write_page([story()], tmp_path / "page.html", titles=["a", "b"])
    assert not list(tmp_path.iterdir())


def stand_in(queries=900, layers=6, heads=8, cells=(25, 42), factors=False):
    """What a paper's model would leave on an 800 x 1333 image, of noise: nothing that a page holds compresses worse."""
    rng = torch.Generator().manual_seed(0)
    memory = SimpleNamespace(shapes=(cells,), valid_ratios=torch.ones(1, 1, 2))

    def read():
        if factors:
            across, down = (torch.rand(1, heads, queries, n, generator=rng).softmax(-1) for n in reversed(cells))
            return ((across, down),)
        attention = (3 * torch.randn(1, heads, queries, cells[0] * cells[1], generator=rng)).softmax(-1)
        return (attention.unflatten(-1, cells),)

    noise = np.random.default_rng(0)
    corners = np.sort(noise.random((layers, queries, 2, 2)), axis=-2) * [1333, 800]
    boxes = corners.reshape(layers, queries, 4).astype(np.float32)
    image = Image.fromarray(noise.integers(0, 255, (100, 167, 3), dtype=np.uint8)).resize((1333, 800), Image.Resampling.BICUBIC)
    scores = noise.random((layers, queries)).astype(np.float32)
    labels = noise.integers(0, 91, (layers, queries))
    exchange = torch.rand(1, heads, queries, queries, generator=rng).softmax(-1)
    trace = Trace([LayerTrace(memory=memory, attention=read(), self_attention=exchange)] * layers)
    found = np.argsort(-scores[-1]).tolist()
    return Explanation(image, "stand-in", [f"class {i}" for i in range(91)], 0.0, boxes, scores, labels, boxes, found, trace)


@pytest.mark.parametrize(("cells", "factors"), [((25, 42), False), ((50, 84), True)])
def test_page_of_900_queries_stays_below_5_mb(cells, factors, tmp_path):
    known = stand_in(cells=cells, factors=factors)
    assert write_page([known], tmp_path / "page.html").stat().st_size < 5e6
    assert max(map_size(known, 48)) <= 48
    assert max(map_size(known, 24)) <= 24
