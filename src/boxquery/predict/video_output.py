"""Writes a video with what was found drawn into it. Imports PyAV only when there is one to write."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from boxquery.errors import UserError
from boxquery.files import atomic_open

#: the first one that FFmpeg was built with; their options
_CODECS = {"libx264": {"preset": "veryfast", "crf": "20"}, "libopenh264": {}, "mpeg4": {"qscale": "3"}}
#: the finest unit of time that MPEG-4 Part 2 can express
_FINEST = 65_535


class VideoWriter:
    """An .mp4 file (H.264, else MPEG-4) that takes its place when it is complete, and not at all where that fails.

    Args:
        rate: frames per second of the original.
        time_base: the unit of its time stamps in seconds, which is kept.
    """

    def __init__(self, path: Path, rate: Fraction, time_base: Fraction):
        self.path, self.rate, self.time_base = path, rate, time_base
        self._file = atomic_open(path)
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Self:
        import av

        self._container = av.open(self._file.__enter__(), "w", format="mp4")
        return self

    def add(self, image: Image.Image, time: Fraction) -> None:
        """A frame, ``time`` seconds after the first one. All have the size of the first, made even, as the codecs want it."""
        import av

        if self._stream is None:
            self._stream = self._open(image.width + image.width % 2, image.height + image.height % 2)
        size = self._stream.width, self._stream.height
        if image.size != size:
            whole = abs(image.width - size[0]) <= 1 and abs(image.height - size[1]) <= 1
            image = image.crop((0, 0, *size)) if whole else image.resize(size)
        frame = av.VideoFrame.from_image(image)
        self._last = frame.pts = max(round(time / self.time_base), self._last + 1)  # a broken clock may stand still
        frame.time_base = self.time_base
        self._container.mux(self._stream.encode(frame))

    def _open(self, width: int, height: int) -> Any:
        from av.codec.codec import UnknownCodecError

        for codec, options in _CODECS.items():
            with suppress(UnknownCodecError):
                if codec != "libx264" and self.time_base.denominator > _FINEST:
                    self.time_base = Fraction(1, 60_000)
                stream: Any = self._container.add_stream(codec, rate=self.rate, options=options)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = stream.time_base = self.time_base
                return stream
        raise UserError(f"{self.path}: FFmpeg has none of {', '.join(_CODECS)} here; --save pictures writes a picture per frame")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                if self._stream is not None:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
        except BaseException as failed:
            self._leave(type(failed), failed, failed.__traceback__)
            raise
        self._leave(kind, error, trace)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            with suppress(OSError):  # the same that was raised, since it tries to write what is left
                self._container.close()
        self._file.__exit__(kind, error, trace)
