"""Numbers, axes and labels of the charts."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from boxquery.pages.charts import line_chart, spread, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 0.9, [0, 0.25, 0.5, 0.75, 1]), (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]), (3, 3, [3, 4, 5, 6]),
     (-5, 5, [-5, -2.5, 0, 2.5, 5])],
)  # fmt: skip
def test_ticks(low, high, expected):
    assert ticks(low, high) == expected


@pytest.mark.parametrize(("low", "high"), [(0, 0), (1e-9, 3e-9), (-1e6, 1e6), (0.0371, 0.0372), (1, 50)])
def test_ticks_cover_the_range(low, high):
    values = ticks(low, high)
    assert values[0] <= low
    assert values[-1] >= high
    assert 2 <= len(values) <= 8


def test_labels_move_apart():
    places = spread([50, 52, 51, 200], 15, 0, 200)
    assert sorted(places) == sorted(set(places))
    ordered = sorted(places)
    assert all(b - a >= 15 for a, b in pairwise(ordered))
    assert places[0] < places[2] < places[1] < places[3] <= 200
    assert spread([200, 200], 15, 0, 200) == [185, 200]


def test_chart_is_well_formed_and_inside_its_frame():
    series = {"AP<": [(e, 0.01 * e) for e in range(1, 40)], "AP50": [(e, 0.02 * e) for e in range(2, 40, 2)]}
    text = line_chart(series, title="A & B", best="AP<")
    root = ElementTree.fromstring(text)  # noqa: S314
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in root.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    names = [element for element in root.iter("text") if "name" in element.attrib["class"]]
    assert [name.text for name in names] == ["AP< 0.39", "AP50 0.76"]
    assert len(list(root.iter("polyline"))) == 2
    assert "epoch 2 · AP&lt; 0.02 · AP50 0.04" in text


@pytest.mark.parametrize(("ends", "last"), [((496, 496), ["496"]), ((496, 480), [])])
def test_an_end_that_all_lines_share_has_a_tick(ends, last):
    series = {name: [(62, 0.01), (end, 0.5)] for name, end in zip("ab", ends, strict=True)}
    root = ElementTree.fromstring(line_chart(series, title="t", unit="images"))  # noqa: S314
    ticks = [element for element in root.iter("text") if element.attrib["class"] == "tick mid"]
    places = [float(element.attrib["x"]) for element in ticks]
    assert [element.text for element in ticks] == ["200", "400", *last]
    assert all(b - a > 30 for a, b in pairwise(places))


def test_lines_begin_at_their_first_point():
    root = ElementTree.fromstring(line_chart({"a": [(496, 0.3), (992, 0.4)], "b": [(496, 0.1), (992, 0.2)]}, title="t"))  # noqa: S314
    assert all(len(line.attrib["points"].split()) == 2 for line in root.iter("polyline"))


def test_one_series_is_named_by_its_caption():
    assert '<text class="name s0"' in line_chart({"loss": [(1, 2.0), (2, 1.0)]}, title="Loss")
    assert ">loss 1<" not in line_chart({"loss": [(1, 2.0), (2, 1.0)]}, title="Loss")


def test_many_series_have_rows_of_values_above_the_lines():
    series = {f"layer {i}": [(1, 0.1 * i), (2, 0.123456 * i)] for i in range(1, 8)}
    root = ElementTree.fromstring(line_chart(series, title="t", kinds={name: f"k{i}" for i, name in enumerate(series)}))  # noqa: S314
    shown = [e for e in root.iter("text") if e.text and "·" in e.text]
    rows = {float(e.attrib["y"]) for e in shown}
    assert len(rows) == 2
    assert all(len(e.text or "") * 6.5 < 420 for e in shown)
    assert [e.attrib["class"] for e in root.iter("polyline")] == [f"line k{i}" for i in range(7)]
    highest = min(float(pair.split(",")[1]) for e in root.iter("polyline") for pair in e.attrib["points"].split())
    assert highest > max(rows) + 8


def test_long_names_leave_half_of_the_chart_to_the_lines():
    long = "deformable-detr, refined, two stages, with five hundred queries and denoising"
    root = ElementTree.fromstring(line_chart({long: [(1, 0.1), (9, 0.2)], "b": [(1, 0.1), (9, 0.3)]}, title="t"))  # noqa: S314
    for line in root.iter("polyline"):
        (left, _), (right, _) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
        assert right - left > 420 / 3
    assert [e.text for e in root.iter("text") if "name" in e.attrib["class"]] == [f"{long[:24]}.. 0.2", "b 0.3"]


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(5, -3.0), (9, 4.0)], [(1, 1e12), (2, 1e-12)]])
def test_unusual_series(points):
    ElementTree.fromstring(line_chart({"x": points}, title="t"))  # noqa: S314


def test_no_points():
    with pytest.raises(ValueError, match="at least one point"):
        line_chart({"x": []}, title="t")
