"""Pictures on the web by their address, and whether a word means a picture or a video."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from PIL import Image

from boxquery.data.images import IMAGE_SUFFIXES, read_image
from boxquery.data.video import TIMEOUT, VIDEO_SUFFIXES, ascii_address, camera_of, is_stream, is_video_file, split_address, without_password
from boxquery.errors import UserError, one_line

#: bytes of a picture at most
_LIMIT = 500 * 2**20
_PLAYLISTS = frozenset({".m3u8", ".mpd", ".sdp"})


def is_web_image(address: str) -> bool:
    """Whether an address leads to a picture, and not to a video: by its ending, else by what the server says of it."""
    if not address.lower().startswith(("http://", "https://")):
        return False
    suffix = PurePosixPath(split_address(address).path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in VIDEO_SUFFIXES | _PLAYLISTS:
        return False
    return _fetch(address, 0)[0].startswith("image/")


def is_moving(source: str | Path) -> bool:
    """Whether it is a video file, a camera or a stream, and not an image. Raises ``UserError`` for an address that cannot be reached."""
    if isinstance(source, str) and not os.path.exists(source) and (is_stream(source) or camera_of(source) is not None):
        return not is_web_image(source)
    return is_video_file(Path(source))


def read_web_image(address: str) -> Image.Image:
    """As ``read_image``, of an address. Raises ``UserError``."""
    import tempfile

    name = without_password(address)
    content = _fetch(address, _LIMIT + 1)[1]
    if len(content) > _LIMIT:
        raise UserError(f"{name}: more than {_LIMIT >> 20} MB; download it, and name the file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            return read_image(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from error


def _fetch(address: str, most: int) -> tuple[str, bytes]:
    """The type of what is there, and up to so many bytes of it."""
    import urllib.request  # not above: it takes longer to import than all of this room, and most images are files
    from http.client import HTTPException

    try:
        request = urllib.request.Request(ascii_address(address), headers={"User-Agent": "boxquery"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.headers.get_content_type(), response.read(most)
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = one_line(error).removeprefix("<urlopen error ").removesuffix(">")
        raise UserError(f"{without_password(address)}: cannot be read ({reason}); check the address and the network") from error
