"""Images as files of a limited size, and as part of a page."""

from __future__ import annotations

import base64
import io

from PIL import Image


def encode(image: Image.Image, quality: int = 85) -> bytes:
    """The bytes of an image file: PNG if the image has transparency, else JPEG."""
    file = io.BytesIO()
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
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)


def resize_to(image: Image.Image, side: int) -> tuple[Image.Image, float]:
    """The image with its long side at ``side`` pixels (small ones grow, so that letters fit), and the scale."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), scale


def data_uri(data: bytes) -> str:
    """The bytes of a PNG or JPEG file as the ``src`` of an ``<img>``."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
