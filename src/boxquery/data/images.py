"""Reading image files as upright 8-bit RGB pixels, and their headers without decoding."""

from __future__ import annotations

import io
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

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga", ".heic", ".heif", ".hif",
})  # fmt: skip
"""Suffixes, in lower case, of files that count as images when a folder is listed; what a file is decides its content."""
FILLED = 0.05
"""Share of a JPEG's pixels that may be missing at its end; with more it is skipped."""
CUT = "lacking the end of the file, used as far as it goes"
FRAMES = "with several frames or pages, of which the first is used"

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
    """Of an image file: upright ``width`` and ``height`` in pixels, and the EXIF ``orientation`` (1..8) that makes it upright.

    ``remarks`` say how the pixels are read where that is not plain, in words that follow "3 images".
    """

    width: int
    height: int
    orientation: int
    remarks: tuple[str, ...] = ()


class _LfsPointer(OSError):
    """What stands in a Git repository for a file that is kept elsewhere."""


class _HeifMissing(OSError):
    """A HEIC photograph, without the library that reads it."""


def read_image(path: str | Path, *, at_least: int | None = None) -> Image.Image:
    """The file as an upright 8-bit RGB image; with ``at_least``, a JPEG may come smaller, its long side no shorter than that (much faster).

    EXIF orientation is applied. Transparent pixels are laid on white, as a viewer shows them. Of an animation or of several pages, the
    first. Grey of more than 8 bits is scaled by the bits that its brightest pixel needs (8, 10, 12, 14 or 16 in 16): what cameras with
    10 to 14 bits write would else be nearly black. Two images of one depth keep equal pixels equal, and a file alone decides, so that
    prediction sees what training saw. A JPEG that lacks its last bytes is used if no more than ``FILLED`` of its pixels are missing;
    those are grey.

    Raises:
        UserError: the file is missing, not an image, truncated, too large (Pillow's decompression bomb limit), or of a
            pixel type that has no RGB meaning. The message names the file.
    """
    try:
        with _open(path) as image:
            if at_least is not None:
                scale = at_least / max(image.size)
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            try:
                return upright_rgb(image)
            except OSError:
                if (completed := _completed(path, image)) is None:
                    raise
                return upright_rgb(completed)
    except _BROKEN as error:
        fault = _fault(error)
        raise UserError(f"{path}: {fault}; {fault.remedy or 'check the path'}") from error


def read_header(path: str | Path) -> Header | Fault:
    """Upright size and orientation, or why ``read_image`` would fail.

    A cheap check that the file ends where its format ends; pixels are decoded only in doubt.
    """
    try:
        with _open(path) as image:
            width, height = image.size
            orientation = _orientation(image)
            remarks = _remarks(image)
            if not _ends_well(path, image.format):
                try:
                    image.load()
                except OSError:
                    if _completed(path, image) is None:
                        raise
                    remarks.append(CUT)
    except _BROKEN as error:
        return _fault(error)
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, tuple(remarks))


def _open(path: str | Path) -> Image.Image:
    """The image of a file, whatever its ending, not yet decoded."""
    try:
        return Image.open(_file(path))
    except Image.UnidentifiedImageError:
        if _head(path, 24) == b"version https://git-lfs.":
            raise _LfsPointer from None
        if not _is_heif(path):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise _HeifMissing from error
    register_heif_opener()
    return Image.open(path)


def _is_heif(path: str | Path) -> bool:
    head = _head(path, 12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def _head(path: str | Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def _remarks(image: Image.Image) -> list[str]:
    remarks = []
    if image.format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF") and getattr(image, "is_animated", False):
        remarks.append(FRAMES)
    if image.mode.startswith("I") and (bits := _bits(np.asarray(image))) < 16:
        remarks.append(f"of 16 bits with {bits} significant ones, scaled by these")
    return remarks


def _completed(path: str | Path, image: Image.Image) -> Image.Image | None:
    """A JPEG without its end, decoded with an end mark added; None for another format, or where too much is missing."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    data = Path(path).read_bytes().rstrip(b"\0")
    with Image.open(io.BytesIO(data + b"\xff\xd9")) as completed:
        completed.load()
    if completed.info.get("progressive"):  # each scan covers the whole image: the last refines to the last bit
        scan = data.rfind(b"\xff\xda") + 5
        first, last_bit = data[scan + 2 * data[scan - 1] : scan + 2 * data[scan - 1] + 3 : 2]
        return completed if first > 0 and last_bit & 15 == 0 else None
    grey = (np.asarray(completed).reshape(completed.height, completed.width, -1) == 128).all(2)  # what libjpeg fills in
    rows = int(np.cumprod(grey[::-1, -1]).sum())  # that end in it, from below
    return completed if grey[completed.height - rows :].sum() <= FILLED * grey.size else None


def _file(path: str | Path) -> str | Path:
    """The path itself. Raises OSError for a pipe, a device or a folder, reading from which may never end."""
    kind = os.stat(path).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(kind):
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

    Integers: by ``_bits``. Floats: 0..1 if they fit in it, else 0..255 with the rest clipped.
    """
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    full = (1.0 if values.max() <= 1 else 255.0) if values.dtype.kind == "f" else 2.0 ** _bits(values) - 1
    return np.clip(np.rint(values.astype(np.float64) * (255.0 / full)), 0, 255).astype(np.uint8)


def _bits(values: np.ndarray) -> int:
    """Bits that the largest of some integers needs, as cameras and sensors have them."""
    return next((bits for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits), 31)


def _fault(error: BaseException) -> Fault:
    if isinstance(error, FileNotFoundError):
        return Fault(NO_FILE)
    if isinstance(error, IsADirectoryError):
        return Fault("is a folder", remedy="give the images in it")
    if isinstance(error, Image.UnidentifiedImageError):
        return Fault("not an image", remedy="replace what is not an image by the image itself")
    if isinstance(error, Image.DecompressionBombError):
        return Fault("more pixels than Pillow allows (decompression bomb)", remedy="save a smaller copy")
    if isinstance(error, _LfsPointer):
        return Fault("a Git LFS pointer, not the image", remedy="run git lfs pull")
    if isinstance(error, _HeifMissing):
        return Fault("HEIC photographs need pillow-heif", remedy='pip install "boxquery[heif]", or save them as JPEG')
    return Fault("cannot be read", one_line(error), "copy or export it again")
