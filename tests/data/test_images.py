"""Every kind of file to the pixels that a viewer shows."""

import io
import re
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from boxquery import UserError
from boxquery.data.images import CUT, FRAMES, IMAGE_SUFFIXES, Header, read_header, read_image, turn_boxes, upright_rgb
from boxquery.data.raw import Fault

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(path):
    """Rows of RGB triples."""
    image = read_image(path)
    assert image.mode == "RGB"
    assert type(image) is Image.Image
    assert image.size == (header(path).width, header(path).height)
    return [[tuple(int(v) for v in pixel) for pixel in row] for row in np.asarray(image)]


def header(path):
    """The header of a file that has one."""
    found = read_header(path)
    assert isinstance(found, Header)
    return found


def saved(path, array, mode=None, **options):
    image = Image.fromarray(np.asarray(array)) if mode is None else Image.fromarray(np.asarray(array)).convert(mode)
    image.save(path, **options)
    return path


def test_rgb(tmp_path):
    assert pixels(saved(tmp_path / "a.png", np.uint8([[RED, GREEN]]))) == [[RED, GREEN]]


def test_grey(tmp_path):
    assert pixels(saved(tmp_path / "a.png", np.uint8([[0, 100, 255]]))) == [[BLACK, (100,) * 3, WHITE]]


def test_bilevel(tmp_path):
    assert pixels(saved(tmp_path / "a.png", np.uint8([[0, 255]]), "1")) == [[BLACK, WHITE]]


def test_alpha_is_laid_on_white(tmp_path):
    rows = np.uint8([[(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 255, 51)]])
    assert pixels(saved(tmp_path / "a.png", rows)) == [[RED, WHITE, (204, 204, 255)]]


def test_grey_with_alpha(tmp_path):
    image = Image.new("LA", (3, 1))
    for x, value in enumerate([(10, 255), (10, 0), (0, 51)]):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [[(10,) * 3, WHITE, (204,) * 3]]


@pytest.mark.parametrize(("transparent", "expected"), [(None, [[RED, BLUE]]), (1, [[RED, WHITE]]), (b"\xff\x33", [[RED, (204, 204, 255)]])])
def test_palette(tmp_path, transparent, expected):
    image = Image.fromarray(np.uint8([[0, 1]])).convert("P")
    image.putdata([0, 1])
    image.putpalette([*RED, *BLUE])
    image.save(tmp_path / "a.png", **({} if transparent is None else {"transparency": transparent}))
    assert pixels(tmp_path / "a.png") == expected


def test_one_colour_of_rgb_transparent(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.uint8([[RED, GREEN]])).save(path, transparency=GREEN)
    assert pixels(path) == [[RED, WHITE]]


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "a.jpg")), np.full((16, 16, 3), RED), atol=6)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.uint16([[0, 257 * 10, 257 * 128, 65535]])
    expected = [[BLACK, (10,) * 3, (128,) * 3, WHITE]]
    assert pixels(saved(tmp_path / "a.png", values)) == expected
    assert pixels(saved(tmp_path / "a.tif", values)) == expected
    dark = np.uint16([[0, 257, 40_000]])  # the same value is the same grey in every image of one depth
    assert pixels(saved(tmp_path / "dark.png", dark)) == [[BLACK, (1,) * 3, (156,) * 3]]


def test_32_bit_and_float_grey(tmp_path):
    assert pixels(saved(tmp_path / "a.tif", np.int32([[0, 257 * 9, 65535]]))) == [[BLACK, (9,) * 3, WHITE]]
    assert pixels(saved(tmp_path / "b.tif", np.int32([[0, 2**31 - 1]]))) == [[BLACK, WHITE]]
    assert pixels(saved(tmp_path / "c.tif", np.float32([[0, 0.2, 1]]))) == [[BLACK, (51,) * 3, WHITE]]
    assert pixels(saved(tmp_path / "d.tif", np.float32([[-5, 51, 300]]))) == [[BLACK, (51,) * 3, WHITE]]
    saved(tmp_path / "e.tif", np.float32([[0, np.nan]]))
    with pytest.raises(UserError, match="not finite"):
        read_image(tmp_path / "e.tif")


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_spaces_become_rgb(mode):
    image = Image.new("RGB", (2, 2), (200, 30, 30))
    if mode == "LAB":
        srgb = ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, srgb, ImageCms.createProfile("LAB"), outputMode="LAB")
        assert upright_rgb(image).mode == "RGB"
    else:
        np.testing.assert_allclose(np.asarray(upright_rgb(image.convert(mode))), np.full((2, 2, 3), (200, 30, 30)), atol=4)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0][0] == RED


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, ending):
    """The stored file is turned back; boxes of the stored image follow by ``turn_boxes``."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[4:12, 6:20] = 255
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),  # stored turned left, shown turned right
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    stored = np.ascontiguousarray(turn[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if ending in ("jpg", "webp") else {}
    path = tmp_path / f"a.{ending}"
    Image.fromarray(stored).save(path, exif=exif, **options)
    image = read_image(path)
    head = header(path)
    assert image.size == (48, 32) == (head.width, head.height)
    np.testing.assert_allclose(np.asarray(image).astype(int), upright, atol=60)
    assert image.getexif().get(0x0112, 1) == 1
    if ending != "tif":  # Pillow turns TIFF by itself
        assert head.orientation == orientation
        rows, columns = np.nonzero(stored[..., 0] > 127)
        box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=float)
        np.testing.assert_array_equal(turn_boxes(box, orientation, 48, 32), [[6, 4, 20, 12]])


def refused(path, word=""):
    """Neither its pixels nor its header can be read, for the same reason."""
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert word in str(caught.value)
    fault = read_header(path)
    assert isinstance(fault, Fault)
    assert word in str(fault)


def test_bomb(tmp_path, monkeypatch):
    saved(tmp_path / "a.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(tmp_path / "a.png", "bomb")


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "webp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated(tmp_path, ending, share):
    path = tmp_path / f"a.{ending}"
    saved(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


def test_bytes_after_the_end_are_no_fault(tmp_path):
    for ending in ("jpg", "png"):
        path = saved(tmp_path / f"a.{ending}", np.zeros((8, 8, 3), np.uint8))
        path.write_bytes(path.read_bytes() + b"\0" * 40)
        assert header(path).width == 8


def test_broken_inside(tmp_path):
    """Lengths and sums in a PNG that lie: a UserError, whatever Pillow raises."""
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        spoilt = bytearray(data)
        for at in rng.integers(8, len(data), 4):
            spoilt[at] = rng.integers(256)
        path.write_bytes(bytes(spoilt))
        try:
            read_image(path)
        except UserError:
            refused += 1
    assert refused > 100


def test_no_pixels(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    refused(tmp_path / "a.png")


def test_missing_and_folder(tmp_path):
    refused(tmp_path / "a.png", "no such file")
    refused(tmp_path, "is a folder")


def test_header_does_not_decode_what_ends_well(tmp_path, monkeypatch):
    paths = [saved(tmp_path / f"a.{ending}", np.zeros((8, 8, 3), np.uint8)) for ending in ("jpg", "png")]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for path in paths:
        assert header(path).height == 8


def photograph(height=200, width=300):
    rows = np.add.outer(np.arange(height), np.arange(width))[..., None] * [1, 2, 3] + np.random.default_rng(0).integers(
        0, 20, (height, width, 3)
    )
    return Image.fromarray((rows % 256).astype(np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 3, 50, 400])
def test_a_jpeg_that_lacks_its_last_bytes_is_used(tmp_path, progressive, lost):
    path = tmp_path / "a.jpg"
    photograph().save(path, progressive=progressive, quality=90)
    whole = np.asarray(read_image(path)).astype(int)
    path.write_bytes(path.read_bytes()[:-lost])
    assert header(path).remarks == (CUT,)
    assert header(path).width == 300
    left = np.asarray(read_image(path)).astype(int)
    assert (np.abs(left - whole).max(2) > 8).mean() < 0.1
    path.write_bytes(path.read_bytes() + bytes(500))  # a download that was cut in a file of full length
    np.testing.assert_array_equal(np.asarray(read_image(path)), left)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_is_not(tmp_path, progressive):
    path = tmp_path / "a.jpg"
    photograph().save(path, progressive=progressive, quality=90)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "truncated")


FORMS = {
    "JPEG": "jpg jpeg jpe jfif jif pjpeg pjp JPG", "MPO": "mpo", "PNG": "png apng PNG", "WEBP": "webp", "AVIF": "avif", "BMP": "bmp dib",
    "TIFF": "tif tiff", "GIF": "gif", "PPM": "ppm pnm", "JPEG2000": "jp2 j2k jpx", "TGA": "tga", "HEIF": "heic heif hif",
}  # fmt: skip


@pytest.mark.parametrize(("form", "ending"), [(form, ending) for form in FORMS for ending in FORMS[form].split()])
def test_every_ending_and_every_content_under_a_wrong_ending(tmp_path, form, ending):
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    assert f".{ending.lower()}" in IMAGE_SUFFIXES
    stream = io.BytesIO()
    photograph(40, 60).save(stream, form)
    for name in (f"a.{ending}", "b.png", "c.dat"):
        (tmp_path / name).write_bytes(stream.getvalue())
        assert (header(tmp_path / name).width, header(tmp_path / name).height) == (60, 40)
        difference = np.asarray(read_image(tmp_path / name)).astype(int) - np.asarray(photograph(40, 60))
        assert np.abs(difference).mean() < 40


def test_a_heic_photograph_without_the_library(tmp_path, monkeypatch):
    pytest.importorskip("pillow_heif").register_heif_opener()
    photograph(40, 60).save(tmp_path / "a.heic")
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: None, lambda prefix: False))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    refused(tmp_path / "a.heic", "HEIC photographs need pillow-heif")


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (14, 16_383), (16, 65_535)])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_fewer_bits_is_scaled_by_them(tmp_path, bits, top, ending):
    path = saved(tmp_path / f"a.{ending}", np.uint16([[0, top // 2, top]]))
    assert pixels(path) in [[[BLACK, (grey,) * 3, WHITE]] for grey in (127, 128)]
    assert header(path).remarks == (() if bits == 16 else (f"of 16 bits with {bits} significant ones, scaled by these",))


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_the_first_of_several_frames(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    first, second = (Image.new("RGB", (20, 10), colour) for colour in (RED, BLUE))
    first.save(path, save_all=True, append_images=[second], **({"lossless": True} if ending == "webp" else {}))
    assert header(path).remarks == (FRAMES,)
    assert pixels(path)[0][0] == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3000, 1), (2, 3)])
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_small_and_narrow(tmp_path, size, ending):
    Image.new("RGB", size, WHITE).save(tmp_path / f"a.{ending}")
    assert (
        read_image(tmp_path / f"a.{ending}").size
        == size
        == (header(tmp_path / f"a.{ending}").width, header(tmp_path / f"a.{ending}").height)
    )


def test_a_git_lfs_pointer(tmp_path):
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert read_header(tmp_path / "a.jpg") == Fault("a Git LFS pointer, not the image", remedy="run git lfs pull")
    with pytest.raises(UserError, match="a Git LFS pointer, not the image; run git lfs pull"):
        read_image(tmp_path / "a.jpg")
