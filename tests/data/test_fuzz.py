"""Annotations and images changed at random: a result or a ``UserError`` in one line, and no box of the files is lost without a word.

``BOXQUERY_FUZZ=5000`` tries so many examples of each test, other ones every time; without it, the same few.
"""

import copy
import io
import json
import os
import random
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from boxquery import UserError
from boxquery.data.images import read_header, read_image
from boxquery.data.open import read
from boxquery.data.raw import Fault
from boxquery.data.validation import validate

from . import writers
from .writers import Thing, pictures

MANY = int(os.environ.get("BOXQUERY_FUZZ", 0))


def tries(count: int):
    return settings(max_examples=MANY or count, derandomize=not MANY, deadline=None, database=None, suppress_health_check=list(HealthCheck))


NASTY = [
    None, True, False, 0, -1, 3, 1.5, -0.0, 1e308, 1e-320, 10**30, 10**400, float("nan"), float("inf"), "", " ", "nan", "1e999", "0x10",
    "٣", "a\0b", "../../x", "/etc/passwd", "C:\\x", "\ud83d", "é" * 300, "&amp;", "<a>", "\n", [], [[]], {}, {"id": 1}, [1, 2, 3, 4],
]  # fmt: skip
WORDS = [str(value) for value in NASTY if not isinstance(value, (list, dict)) and value != 10**400] + [
    "9" * 400,
    "1 2",
    "0.5,0.5",
    "１",
    "--1",
]


def full() -> list:
    """Images with enough valid boxes that a few broken ones are not too many."""
    images = pictures(16)
    for picture in images:
        picture.things += [Thing("dog", [1, 1, 9, 9])] * 12
    return images


def boxes_of(root: Path) -> dict[str, int]:
    """The boxes that the files hold, counted by other means than the readers'."""
    found = {"coco": 0, "voc": 0, "yolo": 0}
    for path in root.rglob("*"):
        if path.suffix == ".json":
            found["coco"] += len(json.loads(path.read_bytes())["annotations"])
        elif path.suffix == ".xml":
            tree = ET.fromstring(path.read_bytes())  # noqa: S314  (what the reader has refused never comes here)
            objects = tree.findall("object") or [element for element in tree.iter() if element.findall("bndbox")]
            found["voc"] += sum(max(1, len(entry.findall("bndbox"))) for entry in objects)
        elif path.suffix == ".txt" and path.parent.parent.name == "labels":
            found["yolo"] += sum(line.strip()[:1] not in ("", "#") for line in text_of(path).splitlines())
    return found


def text_of(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return "" if b"\0" in content else content.decode("cp1252")
    except UnicodeDecodeError:
        return ""  # no text: its image is skipped


def one_line(error: UserError) -> str:
    assert error.line() == str(error), "more than one line"
    return "refused"


def judged(root: Path, counted: bool = True) -> str:
    """What became of a data set; fails where a promise does not hold. ``counted``: the files say which boxes belong to it."""
    try:
        raw = read(root)
        data, report = validate(raw)
    except UserError as error:
        return one_line(error)
    kept = [record for split in data.splits.values() for record in split]
    assert not counted or report.boxes_total == boxes_of(root)[raw.format]
    assert report.boxes_kept + report.boxes_skipped == report.boxes_total
    assert report.boxes_kept == sum(len(record.boxes) for record in kept)
    assert bool(report.lines) == bool(report.boxes_skipped or report.images_invalid)
    json.dumps([data.names, data.notes, data.skipped, [r.id for r in kept]], ensure_ascii=False).encode()
    for record in kept:
        assert np.isfinite(record.boxes).all()
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert (record.boxes >= 0).all()
        assert (record.boxes <= [record.width, record.height] * 2).all()
        assert ((record.labels >= 0) & (record.labels < len(data.names))).all()
    return "read"


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    ways = {"coco": writers.write_coco_file, "voc": writers.write_voc_lower_case, "yolo": writers.write_yolo}
    made = {}
    for kind, way in ways.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        way(made[kind], full())
        assert judged(made[kind]) == "read"
    return made


def with_files(root: Path, changed: dict[Path, bytes]) -> str:
    """The judgement of a data set with some of its files replaced; they are put back."""
    before = {path: path.read_bytes() for path in changed}
    try:
        for path, content in changed.items():
            path.write_bytes(content)
        # other settings may name other folders
        return judged(root, counted=not any(path.suffix == ".yaml" for path in changed))
    finally:
        for path, content in before.items():
            path.write_bytes(content)


# -- what the formats say ----------------------------------------------------------------------------------------------------------------


def json_changed(rng: random.Random, content: dict) -> dict:
    """Somewhere in the tree, a value replaced, removed or duplicated."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        node = content
        while True:
            if not isinstance(node, (dict, list)) or not node:
                break
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            inner = node[key]
            if isinstance(inner, (dict, list)) and inner and rng.random() < 0.85:
                node = inner
                continue
            match rng.randrange(4):
                case 0:
                    del node[key]
                case 1 if isinstance(node, list):
                    node.insert(key, copy.deepcopy(rng.choice([inner, *NASTY])))
                case _:
                    node[key] = copy.deepcopy(rng.choice(NASTY))
            break
    return content


def xml_changed(rng: random.Random, content: bytes) -> bytes:
    """An element's text or name replaced, the element removed or duplicated."""
    tree = ET.fromstring(content)  # noqa: S314  (our own)
    for _ in range(rng.randint(1, 3)):
        parents = [element for element in tree.iter() if len(element)]
        if not parents:
            break
        parent = rng.choice(parents)
        child = rng.choice(list(parent))
        match rng.randrange(5):
            case 0:
                parent.remove(child)
            case 1:
                parent.append(copy.deepcopy(child))
            case 2:
                child.tag = rng.choice(["object", "bndbox", "xmin", "name", "filename", "x"])
            case _:
                child.text = rng.choice(WORDS).replace("\0", "").encode("utf-8", "ignore").decode()
    return ET.tostring(tree)


def text_changed(rng: random.Random, content: bytes) -> bytes:
    """A word of a line replaced, removed or duplicated; a line ended elsewhere."""
    lines = content.decode().split("\n")
    for _ in range(rng.randint(1, 3)):
        number = rng.randrange(len(lines))
        words = lines[number].split(" ")
        at = rng.randrange(len(words))
        match rng.randrange(4):
            case 0:
                del words[at]
            case 1:
                words.insert(at, rng.choice(WORDS))
            case 2:
                words[at] += rng.choice(["\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "#"])
            case _:
                words[at] = rng.choice(WORDS)
        lines[number] = " ".join(words)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """Cut, overwritten, or with bytes inserted or removed."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content) + 1)
        some = rng.choice([b"[[[", b"<a>", b"nan", b"..", b"/", b"\0", b"1e999", b"-", b"\xff", b"{", b"\n", b":", b"&x;", b"*a", b"!!x "])
        match rng.randrange(5):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + rng.randbytes(rng.randint(1, 4)) + content[at + 4 :]
            case 2:
                content = content[:at] + bytes([content[at % len(content)] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b""
            case 3:
                content = content[:at] + some + content[at:]
            case _:
                content = content[:at] + content[at + rng.randint(1, 20) :]
    return content


def shaken(rng: random.Random, root: Path, endings: set[str], change: Callable[[random.Random, bytes], bytes], most: int = 2) -> str:
    files = sorted(path for path in root.rglob("*") if path.suffix in endings)
    return with_files(root, {path: change(rng, path.read_bytes()) for path in rng.sample(files, min(rng.randint(1, most), len(files)))})


ANY = st.integers(0, 2**32 - 1).map(random.Random)


@given(rng=ANY)
@tries(60)
def test_coco_values(roots, rng):
    shaken(rng, roots["coco"], {".json"}, lambda r, content: json.dumps(json_changed(r, json.loads(content))).encode())


@given(rng=ANY)
@tries(60)
def test_voc_elements(roots, rng):
    shaken(rng, roots["voc"], {".xml"}, xml_changed)


@given(rng=ANY)
@tries(60)
def test_yolo_words(roots, rng):
    shaken(rng, roots["yolo"], {".txt", ".yaml"}, text_changed)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
@given(rng=ANY)
@tries(40)
def test_bytes_of_annotations(roots, kind, rng):
    shaken(rng, roots[kind], {".json", ".xml", ".txt", ".yaml"}, bytes_changed)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
@given(rng=ANY)
@tries(15)
def test_bytes_of_images_in_a_data_set(roots, kind, rng):
    shaken(rng, roots[kind], {".png"}, bytes_changed, most=3)


def test_most_small_changes_are_read(roots):
    """Otherwise these tests would only see errors."""
    ways = {"coco": ({".json"}, lambda r, c: json.dumps(json_changed(r, json.loads(c))).encode()), "voc": ({".xml"}, xml_changed)}
    for kind, (endings, change) in {**ways, "yolo": ({".txt"}, text_changed)}.items():
        outcomes = [shaken(random.Random(seed), roots[kind], endings, change) for seed in range(30)]
        assert outcomes.count("read") >= 10, kind


# -- image files -------------------------------------------------------------------------------------------------------------------------

FORMS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP", "ppm": "PPM"}


def picture(form: str) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}))
    return stream.getvalue()


@pytest.mark.parametrize("ending", FORMS)
@given(rng=ANY)
@tries(60)
def test_bytes_of_an_image(tmp_path_factory, ending, rng):
    """Its header and its pixels: what is wrong, in one line, or the size; where both can be read they agree."""
    path = tmp_path_factory.getbasetemp() / f"shaken.{ending}"
    path.write_bytes(bytes_changed(rng, picture(FORMS[ending])))
    header = read_header(path)
    try:
        image = read_image(path)
    except UserError as error:
        one_line(error)
    else:
        assert isinstance(header, Fault) or image.size == (header.width, header.height)
