"""Images as files and as part of a page."""

import io

import numpy as np
import pytest
from PIL import Image

from boxquery.pages.images import LONGEST, data_uri, encode, encode_within, resize_to


def test_jpeg_but_png_for_transparency():
    image = Image.new("RGB", (4, 3), "red")
    jpeg, png = encode(image), encode(image.convert("RGBA"))
    assert (data_uri(jpeg)[:23], data_uri(png)[:22]) == ("data:image/jpeg;base64,", "data:image/png;base64,")
    assert Image.open(io.BytesIO(png)).mode == "RGBA"


def test_a_limit_costs_quality_first_and_then_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    sizes = []
    for limit in (200_000, 60_000, 10_000):
        data = encode_within(noise, limit)
        assert len(data) <= limit
        sizes.append(Image.open(io.BytesIO(data)).size)
    assert sizes[0] == sizes[1] == (400, 300)
    assert sizes[2][0] < 400
    assert max(Image.open(io.BytesIO(encode_within(noise, 1))).size) <= 64


def test_long_side():
    image, scale = resize_to(Image.new("L", (50, 100)), 640)
    assert (image.size, image.mode, scale) == ((320, 640), "RGB", 6.4)


@pytest.mark.parametrize("size", [(5000, 10), (10, 5000), (1, 400), (40_000, 1)])
def test_a_strip_fits_into_its_room_and_leaves_some_for_names(size):
    image, scale = resize_to(Image.new("RGB", size, "red"), 600, 240)
    assert max(image.width / 600, image.height / 240) <= 1
    assert min(image.width / 600, image.height / 240) >= 0.16
    long = size.index(max(size))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert round(size[long] * scale) == image.size[long]


@pytest.mark.parametrize("size", [(100_000, 20), (3, 70_000)])
def test_no_picture_has_a_side_that_its_format_cannot_hold(size):
    shown = Image.open(io.BytesIO(encode(Image.new("RGB", size))))
    assert max(shown.size) == LONGEST
