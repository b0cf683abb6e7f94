"""Frames of video files, cameras and streams, one after the other. Imports PyAV (the extra ``video``) only when one is opened."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from PIL import Image

from boxquery.errors import UserError, count, one_line

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".mjpeg",
    ".mjpg",
})  # fmt: skip
"""Suffixes, in lower case, of files that count as videos when they are named or a folder is listed."""
STREAM_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp", "http", "https"})
#: seconds to wait for a camera or the network, at the beginning and for each frame
TIMEOUT = 10.0

_CAMERA = re.compile(r"(?:camera|webcam)(?::(?P<which>.+))?|/dev/video(?P<device>\d+)|(?P<number>\d{1,2})")
#: a header may state more than a whole file holds by this share, and (where it does not count frames) these seconds
_SLACK, _SLACK_SECONDS = 0.02, 0.5
#: degrees counterclockwise of a frame's rotation metadata -> what makes it upright
_TURN = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Frame(NamedTuple):
    """Upright RGB pixels; the frame's number from 0, those that were passed over or damaged counted; seconds since the first frame."""

    image: Image.Image
    number: int
    time: Fraction


def is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_stream(word: str) -> bool:
    """Whether it is the address of a stream, or of anything on the web."""
    return "://" in word and word.partition("://")[0].lower() in STREAM_SCHEMES


def camera_of(word: str) -> str | None:
    """Which camera is meant by ``camera``, ``camera:1``, ``camera:NAME``, ``webcam``, ``/dev/video1`` or ``1``; None: none."""
    found = _CAMERA.fullmatch(word)
    return None if found is None else next((part for part in found.groups() if part), "0")


def split_address(address: str) -> SplitResult:
    """An address in its parts. Raises ``UserError``."""
    try:
        return urlsplit(address)
    except ValueError as error:
        raise UserError(f"{address}: no address ({error}); an IPv6 host stands in brackets, as in rtsp://[::1]/stream") from error


def ascii_address(address: str) -> str:
    """The address as servers are asked for it: a host in other letters as IDNA has it, spaces and letters of the path in UTF-8 with percent
    signs. Raises ``UserError``."""
    if address.isascii() and " " not in address:
        return address
    parts = split_address(address)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, port = host.partition(":") if not host.startswith("[") else (host, "", "")
    try:
        host = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError as error:
        raise UserError(f"{without_password(address)}: no address ({one_line(error)}); check the name of the host") from error
    safe = "%/:?@!$&'()*+,;=~[]"
    netloc = f"{quote(user, safe)}{at}{host}{colon}{port}"
    return parts._replace(netloc=netloc, path=quote(parts.path, safe), query=quote(parts.query, safe), fragment="").geturl()


def without_password(address: str) -> str:
    """The address without the user and password in it, for files and messages. Raises ``UserError``."""
    parts = split_address(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def require_av(what: str) -> None:
    """Raise ``UserError`` where PyAV is not installed, without importing it."""
    if find_spec("av") is None:
        raise UserError(f"{what}: videos, cameras and streams need the package av; pip install av")


class Video:
    """A video file, camera or stream, open; iterating it once gives its frames, as they are needed.

    Args:
        source: a video file; as a string also what ``camera_of`` knows, or an address.
        every: only each n-th frame, from the first on.

    Attributes:
        name: what it is called in messages.
        live: whether it has no end of its own: a camera, or a stream that does not say how long it is.
        total: frames that it will give, by its header; None if that does not say.
        rate: frames per second, of all. ``time_base``: the unit of its time stamps in seconds.
        remark: after the last frame, in what way that was not the end; empty if it was.

    Raises ``UserError`` for what cannot be opened, or has no frame that can be decoded.
    """

    def __init__(self, source: str | Path, *, every: int = 1):
        self.name, self.every, self.remark = str(source), every, ""
        require_av(without_password(self.name))
        import av

        camera = None if isinstance(source, Path) else camera_of(source)
        if camera is None and not is_stream(str(source)):
            source = Path(source)
        remote = not isinstance(source, Path)
        form, options = None, {}
        if camera is not None:
            self.name = f"camera:{camera}"
            form, place, options = _device(camera)
            remedy = f"check that it is connected and that no other program uses it{_cameras(form)}"
        elif isinstance(source, Path):
            place, remedy = f"file:{source}", "it is no video, or is cut short; copy or export it again"
            with suppress(OSError):
                if not stat.S_ISREG(os.stat(source).st_mode):  # reading from a pipe may never end
                    raise UserError(f"{self.name}: is not a file")
        else:
            self.name, place, remedy = without_password(source), ascii_address(source), "check the address and the network"
            options = {"rtsp_transport": "tcp"} if place.startswith("rtsp") else {}
        try:
            self._container: Any = av.open(place, format=form, options=options, timeout=TIMEOUT if remote else None)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.name}: cannot be opened ({error.strerror or error}); {remedy}") from error
        if not self._container.streams.video:
            has_sound = bool(self._container.streams.audio)
            self._container.close()
            raise UserError(
                f"{self.name}: has sound alone, no pictures; name a video" if has_sound else f"{self.name}: no video in it; {remedy}"
            )
        self._stream: Any = self._container.streams.video[0]
        self._stream.thread_type = "SLICE" if remote else "AUTO"  # which decodes frames ahead
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.time_base = Fraction(self._stream.time_base or 1 / self.rate)
        self._seconds = None if camera is not None else _seconds(self._container, self._stream)
        self.live = remote and not self._seconds
        frames: int = self._stream.frames or round((self._seconds or 0) * self.rate)
        self.total = None if self.live or not frames else -(-frames // every)

    def close(self) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        read, first, last = 0, None, Fraction(0)
        self._damaged, self._lost = 0, ""
        with closing(self._container):
            for frame in self._decoded():
                number = read + self._damaged  # a frame that is damaged has its number, too
                read += 1
                stamp = number / self.rate if frame.pts is None else frame.pts * Fraction(frame.time_base or self.time_base)
                first = stamp if first is None else first
                last = max(last, stamp - first)
                if number % self.every == 0:
                    yield Frame(_upright(frame), number, stamp - first)
        self.remark = self._ending(read, float(last + (last / (read - 1) if read > 1 else 1 / self.rate)))
        if not read:
            raise UserError(f"{self.name}: no frame can be decoded{self._lost and f' ({self._lost})'}; it is damaged or cut short")

    def _decoded(self) -> Iterator[Any]:
        """Every frame that can be decoded; what cannot is counted, and why it ended is kept."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:
                self._lost, packet = str(error.strerror or error), None
            try:
                yield from self._stream.decode(packet)
            except av.EOFError:  # it was flushed before
                return
            except av.FFmpegError:
                self._damaged += 1
            if packet is None:
                return

    def _ending(self, read: int, seconds: float) -> str:
        frames = count(read, "frame")
        if self.live:
            return f"ended after {frames}{self._lost and f' ({self._lost})'}; what was found until then is kept"
        stated, missing = self._stream.frames, ""
        slack = 1.5 / self.rate if stated else _SLACK_SECONDS
        whole_seconds = max(self._seconds or 0.0, float(stated / self.rate))  # FFmpeg shortens the first for a truncated AVI
        if seconds < whole_seconds * (1 - _SLACK) - slack:
            whole = f"{stated:,} frames" if stated else f"{whole_seconds:.1f} seconds"
            missing = f"{read if stated else round(seconds, 1):,} of the {whole} that its header states could be read"
        elif self._lost:
            missing = f"{self._lost} after {frames}"
        elif self._damaged:
            missing = f"{frames} could be read, and {count(self._damaged, 'damaged part')} left out"
        return missing and f"{missing}; it is cut short or damaged, and what was read is used"


def _upright(frame: Any) -> Image.Image:
    image = frame.to_image()
    turn = _TURN.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


def _seconds(container: Any, stream: Any) -> float | None:
    """How long a file says that its video is."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if found := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, found.groups())
        return hours * 3600 + minutes * 60 + seconds
    return container.duration / 1e6 if container.duration else None


def _device(which: str) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's input device, the camera's name there, and options."""
    if sys.platform == "darwin":
        return "avfoundation", which, {"framerate": "30"}
    if sys.platform == "win32":
        names = _names("dshow") if which.isdecimal() else []
        return "dshow", f"video={names[int(which)] if which.isdecimal() and int(which) < len(names) else which}", {}
    return "v4l2", f"/dev/video{which}" if which.isdecimal() else which, {}


def _names(form: str) -> list[str]:
    """The cameras of this machine, where its system lists them."""
    import av

    if form == "v4l2":
        return sorted(map(str, Path("/dev").glob("video*")))
    try:
        return [device.name for device in av.enumerate_input_devices(form)]
    except (av.FFmpegError, OSError, ValueError):
        return []


def _cameras(form: str) -> str:
    names = _names(form)
    return f"; cameras here: {', '.join(names)}" if names else "; this machine has no camera that can be seen"
