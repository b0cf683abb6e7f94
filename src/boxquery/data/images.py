"""Reading image files as upright 8-bit RGB pixels, and their headers without decoding."""

from __future__ import annotations

import math
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from boxquery.data.raw import NO_FILE, Fault
from boxquery.errors import UserError, one_line

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""Suffixes, in lower case, of files that count as images when a folder is listed."""

#: what Pillow raises for broken files, beside OSError (which includes a truncated file and PIL.UnidentifiedImageError)
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, MemoryError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class Header:
    """Of an image file: upright ``width`` and ``height`` in pixels, and the EXIF ``orientation`` (1..8) that makes it upright."""

    width: int
    height: int
    orientation: int


def read_image(path: str | Path, *, at_least: int | None = None) -> Image.Image:
    """The file as an upright 8-bit RGB image; with ``at_least``, a JPEG may come smaller, its long side no shorter than that (much faster).

    EXIF orientation is applied. Transparent pixels are laid on white, as a viewer shows them. 16-bit grey is scaled by 1/257 (65535
    becomes 255) whatever its content, so that equal pixels stay equal across a data set. Of an animation, the first frame.

    Raises:
        UserError: the file is missing, not an image, truncated, too large (Pillow's decompression bomb limit), or of a
            pixel type that has no RGB meaning. The message names the file.
    """
    try:
        with Image.open(_file(path)) as image:
            if at_least is not None:
                scale = at_least / max(image.size)
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            return upright_rgb(image)
    except _BROKEN as error:
        fault = _fault(error)
        raise UserError(f"{path}: {fault}; {fault.remedy or 'check the path'}") from error


def read_header(path: str | Path) -> Header | Fault:
    """Upright size and orientation, or why ``read_image`` would fail.

    A cheap check that the file ends where its format ends; pixels are decoded only in doubt.
    """
    try:
        with Image.open(_file(path)) as image:
            width, height = image.size
            orientation = _orientation(image)
            if not _ends_well(path, image.format):
                image.load()
    except _BROKEN as error:
        return _fault(error)
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation)


def _file(path: str | Path) -> str | Path:
    """The path itself. Raises OSError for a pipe, a device or a folder, reading from which may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a file")
    return path


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as a new upright 8-bit RGB one, by the rules of ``read_image``, without EXIF.

    Raises ValueError for a mode without RGB meaning, and whatever Pillow raises for a broken file.
    """
    turn = _TURN.get(_orientation(image))
    if image.mode.startswith("I") or image.mode == "F":
        rgb = Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    elif "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "PA"):
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info.clear()
    return rgb


def turn_boxes(boxes: np.ndarray, orientation: int, width: int, height: int) -> np.ndarray:
    """Boxes of the stored image as boxes of the upright image.

    Args:
        boxes: float [N, 4], xyxy in pixels of the stored image.
        orientation: EXIF, 1..8.
        width, height: pixels of the upright image.
    """
    x1, y1, x2, y2 = boxes.T
    if orientation >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack((x1, y1, x2, y2), axis=1)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8, from what precedes the pixels, without decoding."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1  # Pillow turns TIFF itself; for PNG it would decode everything to look for a late chunk
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in _TURN else 1


def _ends_well(path: str | Path, kind: str | None) -> bool:
    """True if the last bytes are the format's own end mark, so that the file is not truncated."""
    if kind not in ("JPEG", "MPO", "PNG"):
        return False
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(-min(file.tell(), 12), 2)
        tail = file.read()
    return tail.endswith(b"\xff\xd9") if kind != "PNG" else tail == b"\0\0\0\0IEND\xaeB`\x82"


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits, [H, W] integer or float, to uint8.

    Integers: 16-bit range if they fit in it, else 31-bit. Floats: 0..1 if they fit in it, else 0..255 with the rest clipped.
    """
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    top = values.max()
    usual, larger = (1.0, 255.0) if values.dtype.kind == "f" else (65535.0, 2.0**31 - 1)
    full = usual if top <= usual else larger
    return np.clip(np.rint(values.astype(np.float64) * (255.0 / full)), 0, 255).astype(np.uint8)


def _fault(error: BaseException) -> Fault:
    if isinstance(error, FileNotFoundError):
        return Fault(NO_FILE)
    if isinstance(error, Image.UnidentifiedImageError):
        return Fault("not an image", remedy="replace what is not an image by the image itself")
    if isinstance(error, Image.DecompressionBombError):
        return Fault("more pixels than Pillow allows (decompression bomb)", remedy="save a smaller copy")
    return Fault("cannot be read", one_line(error), "copy or export it again")
