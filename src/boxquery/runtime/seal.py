"""A check sum over an exported file and its weights, kept in its record, so that a damaged copy is not used without a word."""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path

from boxquery.errors import UserError

#: the record's key, and what stands there until the file is written
KEY, EMPTY = "crc32", "0" * 8
#: as JSON has it, in an .xml with its quotation marks escaped
_PLACE = re.compile(rb'(?:"|&quot;)crc32(?:"|&quot;): (?:"|&quot;)([0-9a-f]{8})(?:"|&quot;)')
#: bytes at the end of the file in which the record is
_TAIL = 1 << 20


def seal(path: Path) -> str:
    """Put the CRC-32 of a file, and of the .bin that belongs to an .xml, in place of ``EMPTY`` in its record. Returns it."""
    place, _, found = _look(path)
    if place is None:
        raise AssertionError(f"{path}: its record has no {KEY}")
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(found.encode())
    return found


def check_seal(path: Path) -> None:
    """Raise ``UserError`` where the check sum is not that of the content. A file without one, from before there were any, passes."""
    place, stated, found = _look(path)
    if place is not None and stated != found:
        files = "it or its .bin" if path.suffix.lower() == ".xml" else "it"
        raise UserError(
            f"{path}: its check sum is {found}, and was {stated} when it was exported: "
            f"{files} is damaged or was edited; copy or export it again"
        )


def _look(path: Path) -> tuple[int | None, str, str]:
    """Where the check sum is, what it says, and what it should be."""
    if not path.stat().st_size:
        return None, "", ""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = max(0, len(content) - _TAIL)
        places = list(_PLACE.finditer(content[start:]))
        if not places:
            return None, "", ""
        place = start + places[-1].start(1)
        with memoryview(content) as view:
            total = _crc(view, 0, place, 0)
            total = _crc(view, place + len(EMPTY), len(view), zlib.crc32(EMPTY.encode(), total))
    weights = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and weights.stat().st_size:
        with open(weights, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            total = _crc(view, 0, len(view), total)
    return place, places[-1][1].decode(), f"{total:08x}"


def _crc(view: memoryview, start: int, end: int, total: int) -> int:
    with view[start:end] as part:
        return zlib.crc32(part, total)
