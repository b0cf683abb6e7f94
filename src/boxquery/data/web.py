"""Pictures on the web, by their address."""

from __future__ import annotations

import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from boxquery.data.images import IMAGE_SUFFIXES, read_image
from boxquery.data.video import TIMEOUT, VIDEO_SUFFIXES, without_password
from boxquery.errors import UserError, one_line

#: bytes of a picture at most
_LIMIT = 500 * 2**20
_PLAYLISTS = frozenset({".m3u8", ".mpd", ".sdp"})


def is_web_image(address: str) -> bool:
    """Whether an address leads to a picture, and not to a video: by its ending, else by what the server says of it."""
    if not address.lower().startswith(("http://", "https://")):
        return False
    suffix = PurePosixPath(urlsplit(address).path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in VIDEO_SUFFIXES | _PLAYLISTS:
        return False
    with _response(address) as response:
        return response.headers.get_content_type().startswith("image/")


def read_web_image(address: str) -> Image.Image:
    """As ``read_image``, of an address. Raises ``UserError``."""
    name = without_password(address)
    with _response(address) as response:
        try:
            content = response.read(_LIMIT + 1)
        except (OSError, HTTPException) as error:
            raise UserError(f"{name}: cannot be read ({one_line(error)}); check the address and the network") from error
    if len(content) > _LIMIT:
        raise UserError(f"{name}: more than {_LIMIT >> 20} MB; download it, and name the file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            return read_image(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from error


@contextmanager
def _response(address: str) -> Iterator[Any]:
    name = without_password(address)
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "boxquery"})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = one_line(error).removeprefix("<urlopen error ").removesuffix(">")
        raise UserError(f"{name}: cannot be read ({reason}); check the address and the network") from error
    with response:
        yield response
