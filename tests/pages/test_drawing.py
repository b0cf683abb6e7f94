"""Boxes on pictures: colours, sizes from tiny to large, tags that stay inside and out of each other's way."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from boxquery.pages import drawing
from boxquery.pages.drawing import _contrast, _fit, _place, colour, draw, font_for, writes

GREY = (128, 128, 128)


def changed(picture):
    """Bool [H, W]: where a grey picture was painted on."""
    return (np.asarray(picture) != GREY[0]).any(axis=2)


def test_colours_are_stable_and_apart():
    first = [colour(label) for label in range(28)]
    assert first == [colour(label) for label in range(28)]
    assert len(set(first)) == 28
    assert colour(28) == first[0]
    assert all(0 <= value <= 255 for ink in first for value in ink)


@pytest.mark.parametrize("label", range(28))
def test_tag_text_contrasts(label):
    def luminance(ink):
        linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in ink]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(colour(label)), luminance(_contrast(colour(label)))), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize("size", [(100, 80), (640, 480), (4000, 3000), (40, 900), (1, 1)])
def test_every_size(size):
    width, height = size
    box = [[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]]
    original = Image.new("RGB", size, GREY)
    begin = time.perf_counter()
    result = draw(original, box, [2], ["cat", "dog", "a rather long name of a class"], scores=[0.5])
    assert time.perf_counter() - begin < 3
    assert result.size == size
    assert result.mode == "RGB"
    assert not changed(original).any()
    if min(size) >= 80:
        assert result.getpixel((width // 4 + 1, height // 2)) == colour(2) or size[0] == 100
        assert 0.005 < changed(result).mean() < 0.5


def test_lines_and_letters_grow_with_the_picture():
    shares = []
    for width in (400, 4000):
        box = [[0.1 * width, 0.5 * width, 0.6 * width, 0.9 * width]]
        shares.append(changed(draw(Image.new("RGB", (width, width), GREY), box, [0], ["cat"])).mean())
    assert shares[1] == pytest.approx(shares[0], rel=0.35)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_modes(mode):
    assert draw(Image.new(mode, (50, 50)), [[5, 5, 20, 20]], [0], ["a"]).mode == "RGB"


def test_what_is_not_in_the_picture_is_not_drawn():
    boxes = [[-50, -50, -10, -10], [200, 0, 250, 50], [np.nan, 0, 10, 10], [0, 0, np.inf, 10], [30, 30, 20, 20], [0, 0, 0, 0]]
    picture = draw(Image.new("RGB", (100, 100), GREY), boxes, [0] * 6, ["a"], scores=[0.5] * 6)
    assert not changed(picture).any()
    assert changed(draw(Image.new("RGB", (100, 100), GREY), [[-500, -500, 500, 50]], [0], ["a"])).any()


def test_nothing_to_draw():
    assert not changed(draw(Image.new("RGB", (64, 64), GREY), np.zeros((0, 4)), [], ["a"])).any()


def test_dashed_has_gaps():
    box, label = np.array([[20, 20, 180, 180]]), np.array([0])
    blank = Image.new("RGB", (200, 200), GREY)
    solid = changed(draw(blank, box, label, ["a"], tags=False))[100:160, 20]
    dashes = changed(draw(blank, np.zeros((0, 4)), [], ["a"], dashed=(box, label), tags=False))[100:160, 20]
    assert solid.all()
    assert 0.3 < dashes.mean() < 0.95


def test_names_may_be_missing_or_odd():
    blank = Image.new("RGB", (200, 200), GREY)
    for names in ([None], [], ["line\nbreak"], ["日本語"], [""]):
        assert changed(draw(blank, [[20, 40, 150, 180]], [0], names)).any()


def test_names_in_other_letters(monkeypatch):
    from matplotlib import get_data_path

    here = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # has Cyrillic, and no Chinese
    box, blank = [[20, 40, 150, 120]], Image.new("RGB", (200, 150))
    monkeypatch.setattr(drawing, "_FONTS", (here,))
    assert font_for(["cat", "(dog)_1"], 14).path != here, "Pillow's own can write it"
    assert font_for(["cat", "кот"], 14).path == here
    assert writes(font_for(["кот"], 14), "кот")
    written, number = draw(blank, box, [0], ["кот"]), draw(blank, box, [0], [None])
    assert written.tobytes() != number.tobytes()
    assert draw(blank, box, [0], ["猫"]).tobytes() == number.tobytes(), "no font has it: the number is better than a row of empty boxes"
    monkeypatch.setattr(drawing, "_FONTS", ("no-such-font.ttf",))
    assert draw(blank, box, [0], ["кот"]).tobytes() == number.tobytes()
    assert draw(blank, box, [0], ["étoile"]).tobytes() == draw(blank, box, [0], ["etoile"]).tobytes()


def test_mismatched_lengths_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        draw(Image.new("RGB", (20, 20)), [[1, 1, 5, 5]], [0, 1], ["a", "b"])


@pytest.mark.parametrize("box", [(0, 0, 99, 99), (90, 90, 99, 99), (0, 95, 5, 99), (95, 0, 99, 4), (40, 0, 60, 99), (0, 40, 99, 60)])
def test_tags_stay_inside(box):
    x, y = _place((100, 100), box, 40, 12, 1, [])
    assert 0 <= x <= 60
    assert 0 <= y <= 88


def test_tags_avoid_each_other():
    taken = []
    for _ in range(6):  # the same box six times over
        x, y = _place((300, 300), (100, 100, 220, 200), 50, 14, 2, taken)
        for a, b, c, d in taken:
            assert x + 50 <= a or c <= x or y + 14 <= b or d <= y
        taken.append((x, y, x + 50, y + 14))


def test_long_names_are_cut_and_the_score_kept():
    pen, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(size=10)
    assert _fit(pen, font, "dog", " 0.50", 200) == "dog 0.50"
    text = _fit(pen, font, "an extraordinarily long name", " 0.50", 80)
    assert text.endswith(".. 0.50")
    assert pen.textlength(text, font=font) <= 80
    assert _fit(pen, font, "word", " 0.50", 5) == "wor"
