"""The page is one file that needs nothing else, holds the maps of the explanation to 8 bits, and stays small."""

import base64
import io
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

from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.explain.explanation import Explanation, explain
from boxquery.explain.page import kept_queries, map_size, write_page
from boxquery.parts.trace import LayerTrace, Trace
from tests.models.builders import create, shaken, systems

NAMES = ["disc", "<script>alert('x')</script>", "a & b"]


def explained(name="detr", threshold=0.0, size=(96, 128), seed=0, **options):
    model = shaken(create(name, **options), 0.1).eval()
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return explain(Detector(model, NAMES, [1, 2, 3], Preprocessing(96)), image, threshold=threshold)


def data_of(path):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    return json.loads(zlib.decompress(base64.b64decode(json.loads(text[1]))))


def maps_of(model, name, *leading):
    """Maps, and what of each is outside the image."""
    packed = model[name]
    values = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).reshape(*leading, *packed["size"])
    return values / 255 * np.reshape(packed["top"], (*leading, 1, 1)), np.reshape(packed["lost"], leading)


def assert_close(found, expected):
    """To a step of 8 bits."""
    step = expected.amax((-2, -1), keepdim=True).numpy() / 255
    assert (np.abs(found - expected.numpy()) <= 1.01 * step + 1e-7).all()


@pytest.mark.parametrize("system", systems())
def test_maps_are_the_explanations(system, tmp_path):
    name, options = systems()[system]
    known = explained(name, **options)
    [image] = data_of(write_page([known], tmp_path / "page.html"))
    [model] = image["models"]
    layers, queries, heads, kept = model["layers"], model["queries"], model["heads"], model["kept"]
    assert (layers, queries) == known.scores.shape
    maps, lost = maps_of(model, "all_maps", layers, queries)
    head_maps, heads_lost = maps_of(model, "head_maps", layers, len(kept), 1 + heads)
    small, grid = maps.shape[-2:], head_maps.shape[-2:]
    for layer in range(layers):
        exact = known.heatmaps(range(queries), layer, small)
        assert_close(maps[layer], exact.map)
        np.testing.assert_allclose(lost[layer], exact.lost, atol=1e-5)
        assert_close(head_maps[layer, :, 0], known.heatmaps(kept, layer, grid).map)
        exact = known.heatmaps(kept, layer, grid, heads=True)
        assert_close(head_maps[layer, :, 1:], exact.map)
        np.testing.assert_allclose(heads_lost[layer, :, 1:], exact.lost, atol=1e-5)


@pytest.mark.parametrize("system", ["detr", "anchor-detr", "dab-detr", "sam-detr", "deformable-detr-refined"])
def test_boxes_and_predictions(system, tmp_path):
    name, options = systems()[system]
    known = explained(name, **options)
    [image] = data_of(write_page([known], tmp_path / "page.html"))
    [model] = image["models"]
    assert (image["height"], image["width"]) == known.size
    np.testing.assert_allclose(model["boxes"], known.boxes, atol=0.01)
    np.testing.assert_allclose(model["scores"], known.scores, atol=1e-5)
    np.testing.assert_array_equal(model["labels"], known.labels)
    if known.references is None:
        assert model["references"] is None
    else:
        np.testing.assert_allclose(model["references"], known.references, atol=0.01)
    assert (model["salient"] is not None) == (name == "sam-detr")
    if name == "sam-detr":
        points = np.stack([layer.salient_points[0, model["kept"]] for layer in known.trace.layers])
        np.testing.assert_allclose(model["salient"], points * [image["width"], image["height"]], atol=0.01)
    assert model["order"] == np.argsort(-known.scores[-1], kind="stable").tolist()
    assert model["found"] == known.found
    assert kept_queries(known) == model["kept"] == known.found[:20]
    assert model["present"] == [len(known.boxes)] * model["queries"]


@pytest.mark.parametrize("system", ["detr", "anchor-detr", "deformable-detr-two-stage"])
def test_origins(system, tmp_path):
    name, options = systems()[system]
    known = explained(name, **options)
    [model] = data_of(write_page([known], tmp_path / "page.html"))[0]["models"]
    layers, kept = model["layers"], model["kept"]
    maps, lost = maps_of(model, "origins", layers, len(kept))
    for layer in range(layers):
        for place in (0, len(kept) - 1):
            expected = known.origin(kept[place], layer, maps.shape[-2:])
            assert_close(maps[layer, place], expected.map)
            assert lost[layer, place] == pytest.approx(expected.lost, abs=1e-5)
    assert (maps != maps_of(model, "all_maps", layers, model["queries"])[0][:, kept]).any()


def test_no_origins_without_an_encoder(tmp_path):
    [model] = data_of(write_page([explained("detr", encoder_layers=0)], tmp_path / "page.html"))[0]["models"]
    assert model["origins"] is None


def test_rivals(tmp_path):
    known = explained("dab-detr")
    boxes = known.boxes.copy()
    boxes[:, :9] = boxes[:, :1]  # more on one object than the page shows
    known = replace(known, boxes=boxes, threshold=float(np.median(known.scores)))
    [model] = data_of(write_page([known], tmp_path / "page.html"))[0]["models"]
    fates = set()
    for query, found in enumerate(model["rivals"]):
        rivals = known.rivals(query)
        assert len(found["shown"]) == min(len(rivals), 6)
        assert found["more"] == (len(rivals) > 6)
        for shown, rival in zip(found["shown"], rivals, strict=False):
            fate = f"{rival.fate} from layer {rival.silent_from + 1} on" if rival.silent_from else rival.fate
            assert (shown["query"], shown["fate"]) == (rival.query, fate)
            np.testing.assert_allclose(
                [shown["attends_to"], shown["attended_by"]], [rival.attention_to_winner, rival.attention_from_winner], atol=1e-5
            )
            fates.add(rival.fate)
    assert any(found["more"] for found in model["rivals"])
    assert len(fates) >= 3


def test_nothing_found_keeps_the_ten_best(tmp_path):
    known = explained(threshold=1.0)
    [image] = data_of(write_page([known], tmp_path / "page.html"))
    assert image["models"][0]["found"] == []
    assert image["models"][0]["kept"] == np.argsort(-known.scores[-1], kind="stable").tolist()[:10]


def test_query_that_was_asked_for_has_its_heads(tmp_path):
    known = explained("anchor-detr", threshold=1.0)
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
    text = write_page([explained()], tmp_path / "page.html", titles=[title]).read_text(encoding="utf-8")
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
    first, second, other = explained(), explained(), explained(seed=1)
    images = data_of(write_page([first, other, second], tmp_path / "page.html"))
    assert [[m["title"] for m in image["models"]] for image in images] == [["detr (1)", "detr (2)"], ["detr"]]
    images = data_of(write_page([first, second], tmp_path / "page.html", titles=["early", "late"]))
    assert [m["title"] for m in images[0]["models"]] == ["early", "late"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        write_page([], tmp_path / "page.html")
    with pytest.raises(UserError, match="one for each"):
        write_page([explained()], tmp_path / "page.html", titles=["a", "b"])
    assert not list(tmp_path.iterdir())


def stand_in(queries=900, layers=6, heads=8, cells=(25, 42), factors=False):
    """What a paper's model would leave on an 800 x 1333 image, of noise: nothing that a page holds compresses worse."""
    rng = torch.Generator().manual_seed(0)
    memory = SimpleNamespace(shapes=(cells,), valid_ratios=torch.ones(1, 1, 2), views=1, cameras=None)

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


@pytest.mark.parametrize(("size", "stretched"), [((4, 2000), True), ((600, 1), True), ((96, 960), False)])
def test_a_strip_is_stretched_until_it_can_be_seen(size, stretched, tmp_path):
    text = (path := write_page([explained(size=size)], tmp_path / "page.html")).read_text(encoding="utf-8")
    [image] = data_of(path)
    assert (image["height"], image["width"], image["stretched"]) == (*size, stretched)
    assert ("its short side stretched" in text) == stretched
    picture = Image.open(io.BytesIO(base64.b64decode(image["source"].partition(",")[2])))
    assert max(picture.size) <= 20.5 * min(picture.size)
