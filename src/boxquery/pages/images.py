"""Images as files of a limited size, and as part of a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

#: pixels of a picture's side at most: what browsers show, a quarter of what JPEG can hold
LONGEST = 16_384
_MARGIN = (235, 235, 235)


def encode(image: Image.Image, quality: int = 85) -> bytes:
    """The bytes of an image file: PNG if the image has transparency, else JPEG. Sides above ``LONGEST`` shrink to it, with the other."""
    file = io.BytesIO()
    if max(image.size) > LONGEST:
        image = image.resize(_scaled(image, LONGEST / max(image.size)), Image.Resampling.LANCZOS)
    if image.mode == "RGBA":
        image.save(file, "PNG", optimize=True)
    else:
        image.convert("RGB").save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def encode_within(image: Image.Image, limit: int) -> bytes:
    """``encode`` to at most ``limit`` bytes: at a lower quality if need be, then at a smaller size, down to 64 pixels."""
    while True:
        for quality in (88, 80, 70, 60, 48):
            data = encode(image, quality)
            if len(data) <= limit:
                return data
        if max(image.size) <= 64:
            return data
        image = image.resize(_scaled(image, 0.75), Image.Resampling.LANCZOS)


def resize_to(image: Image.Image, width: int, height: int | None = None) -> tuple[Image.Image, float]:
    """The image as large as fits into ``width`` x ``height`` pixels (None: a square), and the scale; small ones grow, so that letters fit.

    Its aspect ratio is kept. A strip gets a margin, with which no side is below a sixth of the room.
    """
    height = height or width
    scale = min(width / image.width, height / image.height)
    resized = image.convert("RGB").resize(_scaled(image, scale), Image.Resampling.LANCZOS)
    return with_margin(resized, width // 6, height // 6), scale


def with_margin(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image, with an empty margin at its right or below it where it has less than that size, so that tags have room."""
    size = max(image.width, width), max(image.height, height)
    if size == image.size:
        return image
    canvas = Image.new("RGB", size, _MARGIN)
    canvas.paste(image.convert("RGB"))
    return canvas


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def data_uri(data: bytes) -> str:
    """The bytes of a PNG or JPEG file as the ``src`` of an ``<img>``."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
