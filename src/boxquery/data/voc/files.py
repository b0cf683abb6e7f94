"""Which files are Pascal VOC annotations, and the content of one as a tree."""

from __future__ import annotations

import codecs
import itertools
import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from boxquery.data.folder import Folder, folders, read_bytes, split_name, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.errors import UserError, one_line

FOLDER = re.compile(r"annotations?|annots?|annos?|anns?|labels?|xmls?|annotations?_?xmls?|voc_?labels?|bbox(es)?", re.IGNORECASE)
XML = frozenset({".xml"})
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""")
_HEAD = 2048  # bytes that tell what an XML file is
_LOOKED_AT = 20  # files of a folder


def find(root: Path) -> bool:
    """True if the folder is in one of the layouts."""
    folder = Folder(root)
    if holds_voc(folder, root):
        return True
    for place in folders(root):
        named = FOLDER.fullmatch(place.name) is not None or split_name(place.name) is not None
        if place.name.lower() == "annotations" and any(map(is_voc, itertools.islice(Folder(root).files(place, XML), _LOOKED_AT))):
            return True
        if holds_voc(folder, place) and (named or not any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible(place))):
            return True
        if named and any(holds_voc(folder, inner) for inner in folders(place)):
            return True
    return False


def is_named_so(root: Path) -> bool:
    """True if the folder has folders of VOC's names, whatever is in them."""
    return any(place.name.lower() in ("imagesets", "annotations") for place in folders(root))


def holds_voc(folder: Folder, place: Path) -> bool:
    """Whether one of the first XML files in a folder begins like an annotation; links that leave the data folder are not opened."""
    return any(map(is_voc, filter(folder.holds, visible(place, "*.[xX][mM][lL]")[:_LOOKED_AT])))


def is_voc(file: Path) -> bool:
    return re.search(rb"<annotation[\s>]", read_bytes(file, _HEAD).replace(b"\0", b"")) is not None


def parse(folder: Folder, file: Path) -> Element:
    """The root element, without namespaces."""
    where = folder.show(file)
    try:
        data = read_bytes(file)
        tree = fromstring(_decoded(data))
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)})") from error
    except DefusedXmlException as error:
        raise UserError(f"{where}: XML entities are not accepted ({type(error).__name__}); remove the document type declaration") from error
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{where}: broken XML ({one_line(error)}); export it again") from error
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    return tree


def _decoded(data: bytes) -> bytes | str:
    """The text of a file in an encoding that the XML parser does not know but Python does; otherwise the bytes as they are."""
    declared = _ENCODING.match(data.removeprefix(codecs.BOM_UTF8).lstrip())
    if declared is None:
        return data.removeprefix(codecs.BOM_UTF8).lstrip() if data.startswith((codecs.BOM_UTF8, b" ", b"\n", b"\r")) else data
    name = codecs.lookup(declared[1].decode()).name
    if name.startswith(("utf-8", "utf-16", "utf_16")):
        return data.lstrip()
    name = "gb18030" if name in ("gb2312", "gbk") else name  # what writes the smaller sets uses the larger one
    body = data.removeprefix(codecs.BOM_UTF8).lstrip()[declared.end() :]
    try:
        return body.decode(name)
    except UnicodeDecodeError:
        return body.decode("utf-8")  # declared, but not used; an error is one of broken XML
