"""Small videos, made with PyAV: a bright square that moves to the right, two pixels a frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE, FRAMES, RATE = 64, 20, 10


def picture(number: int, noise: int = 0) -> np.ndarray:
    """RGB of a frame: the square's left edge is at 2 x ``number``."""
    pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
    pixels[24:40, 2 * number : 2 * number + 16] = 230
    if noise:
        pixels += np.random.default_rng(number).integers(0, noise, pixels.shape, np.uint8)
    return pixels


def write_film(
    path: Path,
    *,
    frames: int = FRAMES,
    noise: int = 0,
    turned: int = 0,
    stamps: list[int] | None = None,
    codec: str = "libx264",
    index_first: bool = True,
) -> Path:
    """A video of 64 x 64 pixels and 10 frames per second.

    Args:
        noise: of the pixels, so that the file is larger.
        turned: degrees counterclockwise by which its metadata wants it to be shown.
        stamps: the time of each frame in hundredths of a second.
        index_first: whether an .mp4 file can be read without its end.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first and path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE if path.suffix == ".avi" else 100)  # which has no uneven times
        stream.codec_context.gop_size = 5
        if turned:
            stream.set_display_rotation(turned)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, noise))
            frame.pts, frame.time_base = 10 * number if stamps is None else stamps[number], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    """The file without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path
