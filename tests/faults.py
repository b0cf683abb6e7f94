"""What can go wrong, each fault built in a folder of its own and met by the public command; ``benchmarks/faults.py`` makes a table of it.

A fault is

- ``refused``: status 2, one ``error:`` line that holds ``says``, nothing written;
- ``named``: status 0, a line on stderr that holds ``says``;
- ``gone on``: status 0, what was damaged is made again, and a line says so;
- ``stopped``: status 2 and one ``error:`` line in the middle of a run, which can be resumed;
- ``interrupted``: status 130.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from unittest import mock

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import boxquery as bq
from boxquery.api import Detector
from boxquery.benchmark.process import Worker
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing
from boxquery.training.state import StateFiles

from .data import writers
from .data.writers import NAMES, Thing, pictures
from .runtime import handmade
from .training.runs import SMALL

TRAIN = ["--model", "detr", "--preset", "tiny", "--epochs", "1", "--image-size", "64", "--batch-size", "8", "--device", "cpu"]
TRAIN += ["--option", "hidden_dim=32", "--option", "heads=4", "--option", "num_queries=9"]


def over(*words: str) -> list[str]:
    """``TRAIN`` with flags of its own in place of those."""
    pairs = zip(TRAIN[::2], TRAIN[1::2], strict=True)
    own = {part.partition("=")[0] for part in words}
    return [
        part for flag, value in pairs if (value.partition("=")[0] if flag == "--option" else flag) not in own for part in (flag, value)
    ] + [*words]


class Stock:
    """What faults are made from, built once: a model, a run that could be resumed."""

    def __init__(self, root: Path):
        self.root = root
        torch.manual_seed(0)
        self.model = root / "model"
        self.detector("detr").save(self.model)
        self.photos = writers.write_voc(root / "photos", pictures())
        self.run = root / "run"
        with contextlib.redirect_stderr(io.StringIO()):
            assert run(["train", str(self.photos), *over("--epochs", "2"), "--out", str(self.run)]) == 0

    @staticmethod
    def detector(name: str) -> Detector:
        return Detector(bq.create_model(name, classes=NAMES, preset="tiny", **SMALL), NAMES, [3, 17, 90], Preprocessing(64), 0.0)


@dataclass
class Place:
    """A folder for one fault, and copies of the stock in it."""

    root: Path
    stock: Stock
    #: what must not exist when the command was refused
    out: Path = field(init=False)
    #: in force while the command runs
    around: list[contextlib.AbstractContextManager] = field(default_factory=list)

    def __post_init__(self):
        self.root.mkdir(parents=True)
        self.out = self.root / "out"

    def model(self) -> Path:
        return Path(shutil.copytree(self.stock.model, self.root / "model"))

    def run(self) -> Path:
        return Path(shutil.copytree(self.stock.run, self.root / "run"))

    def evaluate(self, data: Path) -> list[str]:
        return ["evaluate", str(self.stock.model), str(data), "--device", "cpu"]

    def train(self, *words: str) -> list[str]:
        return ["train", str(self.stock.photos), *over(*words), "--out", str(self.out)]

    def predict(self, *sources: Path) -> list[str]:
        return ["predict", str(self.stock.model), *map(str, sources), "--out", str(self.out), "--device", "cpu"]

    def resume(self, folder: Path) -> list[str]:
        return ["train", str(self.stock.photos), "--resume", "--out", str(folder)]


@dataclass(frozen=True)
class Fault:
    kind: str
    what: str
    promise: str
    says: str
    words: Callable[[Place], list[str]]


@dataclass(frozen=True)
class Met:
    """What a command did."""

    status: int
    lines: list[str]
    shown: str
    kept: bool


FAULTS: list[Fault] = []


def add(kind: str, what: str, promise: str, says: str, words: Callable[[Place], list[str]]) -> None:
    FAULTS.append(Fault(kind, what, promise, says, words))


def meet(fault: Fault, place: Place) -> Met:
    """Build the fault, run the command, judge the promise."""
    words = fault.words(place)
    before = files(place.root)
    err, out = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for manager in place.around:
            stack.enter_context(manager)
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(contextlib.redirect_stdout(out))
        status = run(words)
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    naming = [line for line in lines if fault.says in line]
    shown = next(iter(naming or errors or lines), "")
    if fault.promise == "refused":
        kept = status == 2 and len(errors) == 1 and fault.says in errors[0] and files(place.root) == before and not out.getvalue()
    elif fault.promise == "stopped":
        kept = status == 2 and len(errors) == 1 and fault.says in errors[0] and not any(place.root.rglob(".*"))
    elif fault.promise == "interrupted":
        kept = status == 130 and bool(naming)
    else:
        kept = status == 0 and not errors and bool(naming) and not any(place.root.rglob(".*"))
    kept = kept and "Traceback" not in err.getvalue()
    return Met(status, lines, shown.replace(str(place.root) + "/", "").replace(str(place.stock.root) + "/", ""), kept)


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.rglob("*")
        if not path.is_dir() and path.name != ".lock"
    }


# -- data, in three layouts ----------------------------------------------------------------------------------------------------------


def coco(what: str, promise: str, says: str, change: Callable[[dict], object]) -> None:
    """A COCO file whose content is changed, or replaced by what the change returns."""

    def words(place: Place) -> list[str]:
        root = writers.write_coco_file(place.root / "data", pictures())
        content = writers.coco_content(pictures())
        other = change(content)
        data = other if isinstance(other, bytes) else (other if isinstance(other, str) else json.dumps(content)).encode()
        (root / "data.json").write_bytes(data)
        return place.evaluate(root)

    add("data: COCO", what, promise, says, words)


def box(**values: object) -> Callable[[dict], None]:
    return lambda content: content["annotations"][5].update(values)


def entry(**values: object) -> Callable[[dict], None]:
    return lambda content: content["images"][4].update(values)


coco("the file is cut short", "refused", "broken JSON", lambda c: json.dumps(c)[:-30])
coco("the file is empty", "refused", "broken JSON", lambda c: b"")
coco("lists nested 200,000 deep", "refused", "nested too deeply", lambda c: "[" * 200_000)
coco("a number of 5,000 digits", "refused", "broken JSON", lambda c: '{"images": ' + "1" * 5000 + "}")
coco("not UTF-8", "refused", "broken JSON", lambda c: b'{"images": "\xff\xfe"}')
coco("holds a list", "refused", "not COCO annotations", lambda c: "[]")
coco("no annotations", "refused", "no list 'annotations'", lambda c: c.pop("annotations").clear())
coco("annotations are an object", "refused", "no list 'annotations'", lambda c: c.update(annotations={}))
coco("no images", "refused", "has no images", lambda c: c["images"].clear())
coco("no categories", "refused", "no categories", lambda c: c["categories"].clear())
coco("two images with one id", "refused", "image id 101 is already taken", lambda c: c["images"][5].update(id=101))
coco("two categories with one id", "refused", "category id 3 is already taken", lambda c: c["categories"][1].update(id=3))
coco("a category without id", "refused", "categories[1]: needs an integer 'id'", lambda c: c["categories"][1].pop("id") and None)
coco("a category id in words", "refused", "categories[1]: category id 3 is already taken", lambda c: c["categories"][1].update(id="3"))
coco("a category whose name is a list", "refused", "categories[1]", lambda c: c["categories"][1].update(name=["cat"]))
coco("an image without id", "refused", "images[4]: needs an 'id'", lambda c: c["images"][4].pop("id") and None)
coco("an image id that is a list", "refused", "images[4]: needs an 'id'", entry(id=[1]))
coco("an image that is a number", "refused", "images[4]: needs an 'id'", lambda c: c["images"].__setitem__(4, 7))
coco("a path up and out", "refused", "leaves the data folder", entry(file_name="../../x.png"))
coco("an absolute path", "refused", "leaves the data folder", entry(file_name="/etc/hostname"))
coco("a path on a Windows drive", "refused", "is not a path inside", entry(file_name="C:\\x.png"))
coco("a path up and out by backslashes", "refused", "leaves the data folder", entry(file_name="..\\..\\x.png"))
coco("a NUL in a path", "refused", "is not a path inside", entry(file_name="a\0b.png"))
coco("a path of 5,000 characters", "named", "no such file", entry(file_name="a" * 5000 + ".png"))
coco("an image without file name", "named", "has no file name", entry(file_name=None))
coco("a file name that does not exist", "named", "no such file", entry(file_name="gone.png"))
coco("a file name that is half a character", "named", "no such file", entry(file_name="\ud83d.png"))
coco("a stated size that is not the file's", "named", "stated 100 x 100, the file is 64 x 48", entry(width=100, height=100))
coco("a box with a NaN", "named", "not finite", box(bbox=[1, float("nan"), 5, 5]))
coco("a box with an infinite number", "named", "not finite", box(bbox=[1, 1, float("inf"), 5]))
coco("a box whose corner overflows", "named", "not finite", box(bbox=[1e308, 1, 1e308, 5]))
coco("a box with a number of 400 digits", "named", "not finite", box(bbox=[10**400, 1, 5, 5]))
coco("a box without width", "named", "box has no size", box(bbox=[5, 5, 0, 4]))
coco("a box too thin for a float32", "named", "box has no size", box(bbox=[50, 5, 1e-9, 4]))
coco("a box of negative height", "named", "box has no size", box(bbox=[5, 9, 4, -4]))
coco("a box right of the image", "named", "lies outside its image (64 x 48", box(bbox=[64, 5, 4, 4]))
coco("a box of words", "named", "not four numbers", box(bbox=["a", "b", "c", "d"]))
coco("a box of truth values", "named", "not four numbers", box(bbox=[True, True, True, True]))
coco("a box of three numbers", "named", "not four numbers", box(bbox=[1, 2, 3]))
coco("no box", "named", "no bbox", box(bbox=None))
coco("an unknown category", "named", "unknown category", box(category_id=4))
coco("a category that is a list", "named", "unknown category", box(category_id=[3]))
coco("an unknown image", "named", "unknown image (7)", box(image_id=7))
coco("an annotation that is a text", "named", "not an object", lambda c: c["annotations"].__setitem__(5, "what?"))
coco(
    "more than a tenth of the boxes broken",
    "refused",
    "boxes are invalid, more than 10%",
    lambda c: [a.update(bbox=[]) for a in c["annotations"][:9]],
)
coco("no boxes at all", "refused", "no boxes in any image", lambda c: c["annotations"].clear())
coco(
    "one image",
    "refused",
    "one image cannot be split",
    lambda c: [c[key].__delitem__(slice(1, None)) for key in ("images", "annotations")].clear(),
)


def laid(
    kind: str, what: str, promise: str, says: str, spoil: Callable[[Path], object], change: Callable[[list], object] = id, count: int = 24
) -> None:
    """A data set whose pictures are changed before it is written and whose files are spoilt after."""

    def words(place: Place) -> list[str]:
        images = pictures(count)
        change(images)
        root = writers.FORMATS[kind](place.root / "data", images)
        spoil(root)
        return place.evaluate(root)

    add(f"data: {kind.upper() if kind != 'voc' else 'VOC'}", what, promise, says, words)


def write(path: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def outside(pattern: str) -> Callable[[Path], None]:
    def move(root: Path) -> None:
        target = next(root.rglob(pattern))
        target.rename(root.parent / "elsewhere")
        os.symlink(root.parent / "elsewhere", target)

    return move


def object_of(*corners: object, name: str = "cat") -> Callable[[list], None]:
    return lambda images: images[2].things.append(Thing(name, list(corners)))


def categories_differ(root: Path) -> None:
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "cow"
    file.write_text(json.dumps(content))


laid("coco", "categories that differ between splits", "refused", "category 3 is", categories_differ)
laid(
    "coco",
    "two files for one split",
    "refused",
    "are both val",
    lambda r: shutil.copy(r / "annotations/instances_val2017.json", r / "annotations/instances_valid.json"),
)
laid(
    "coco",
    "a file that is of no split",
    "refused",
    "is it train, val or test?",
    lambda r: shutil.copy(r / "annotations/instances_val2017.json", r / "annotations/instances_more.json"),
)
laid("coco", "an image that is a link out", "refused", "is a link that leaves the data folder", outside("p000.png"))
laid("coco", "an image folder that is a link out", "refused", "is a link that leaves the data folder", outside("train2017"))
laid("coco", "an annotation file that is a link out", "refused", "is a link that leaves the data folder", outside("instances_val2017.json"))

BOMB = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
laid("voc", "XML cut short", "refused", "p001.xml: broken XML", write("Annotations/p001.xml", "<annotation><object>"))
laid("voc", "an empty XML file", "refused", "p001.xml: broken XML", write("Annotations/p001.xml", ""))
laid(
    "voc",
    "an XML encoding that does not exist",
    "refused",
    "broken XML",
    write("Annotations/p001.xml", '<?xml version="1.0" encoding="klingon"?><annotation/>'),
)
laid(
    "voc",
    "an XML entity bomb",
    "refused",
    "entities are not accepted",
    write("Annotations/p001.xml", f'<!DOCTYPE a [<!ENTITY a "ha">{BOMB}]><annotation>&i;</annotation>'),
)
laid(
    "voc",
    "an external XML entity",
    "refused",
    "entities are not accepted",
    write("Annotations/p001.xml", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'),
)
laid("voc", "other XML", "refused", "its first element is <svg>", write("Annotations/p001.xml", "<svg/>"))
laid(
    "voc",
    "a file name that leads out",
    "refused",
    "leaves the data folder",
    write("Annotations/p001.xml", "<annotation><filename>../../x.png</filename></annotation>"),
)
laid(
    "voc", "an image listed twice", "refused", "'p002' is listed twice", lambda r: (r / "ImageSets/Main/val.txt").open("a").write("p002\n")
)
laid("voc", "an empty list", "named", "the data has no images in val", write("ImageSets/Main/val.txt", "\n"))
laid(
    "voc",
    "a list that leads out",
    "refused",
    "leaves the data folder",
    lambda r: (r / "ImageSets/Main/val.txt").open("a").write("../../x\n"),
)
laid("voc", "a list that is not UTF-8", "refused", "cannot be read as UTF-8", write("ImageSets/Main/val.txt", b"\xff\xfe\xff"))
laid("voc", "no annotations", "refused", "no .xml annotations", lambda r: [f.unlink() for f in (r / "Annotations").iterdir()])
laid("voc", "no object with a name", "refused", "no categories", id, lambda images: [p.things.clear() for p in images])
laid(
    "voc",
    "an XML file that is a folder",
    "named",
    "1 listed image without an annotation file used as without objects",
    lambda r: ((r / "Annotations/p001.xml").unlink(), (r / "Annotations/p001.xml").mkdir()),
)
laid(
    "voc",
    "a listed image without annotation",
    "named",
    "1 listed image without an annotation file used as without objects",
    lambda r: (r / "Annotations/p004.xml").unlink(),
)
laid("voc", "a corner in words", "named", "not four numbers", id, object_of("left", 5, 9, 9))
laid("voc", "an object without box", "named", "not four numbers", id, object_of())
laid("voc", "an object without name", "named", "unknown category", id, object_of(5, 5, 9, 9, name="cow"))
laid("voc", "corners in the wrong order", "named", "box has no size", id, object_of(9, 9, 5, 5))
laid("voc", "a corner of 1e999", "named", "not finite", id, object_of(5, 5, "1e999", 9))
laid("voc", "a box below the image", "named", "lies outside", id, object_of(5, 50, 9, 60))
laid("voc", "an image that is a link out", "refused", "is a link that leaves the data folder", outside("p000.png"))

TAG = 'names: !!python/object/apply:os.mkdir ["executed"]\ntrain: images/train\nval: images/val'
ALIASES = "a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
laid("yolo", "YAML that is broken", "refused", "data.yaml: broken YAML", write("data.yaml", "names: [cat, dog\ntrain: images/train"))
laid("yolo", "YAML nested 5,000 deep", "refused", "data.yaml: broken YAML", write("data.yaml", "[" * 5000))
laid("yolo", "a YAML tag that would run a function", "refused", "data.yaml: broken YAML", write("data.yaml", TAG))
laid(
    "yolo",
    "a YAML bomb of aliases",
    "refused",
    "data.yaml",
    write("data.yaml", ALIASES + "names: [*i, cat]\ntrain: images/train\nval: images/val"),
)
laid("yolo", "settings that are a list", "refused", "should hold 'names'", write("data.yaml", "- cat"))
laid("yolo", "no class names", "refused", "no categories", write("data.yaml", "train: images/train\nval: images/val"))
laid(
    "yolo",
    "class numbers in words",
    "refused",
    "no categories",
    write("data.yaml", "names: {a: cat}\ntrain: images/train\nval: images/val"),
)
laid(
    "yolo",
    "a split folder with a typing mistake, where another is evaluated",
    "named",
    "there is no images/trian: left out",
    write("data.yaml", f"names: {NAMES}\ntrain: images/trian\nval: images/val"),
)
laid("yolo", "a split that is a number", "refused", "should be a folder", write("data.yaml", "names: [cat]\ntrain: 3"))
laid("yolo", "a split that leads out", "refused", "leaves the data folder", write("data.yaml", "names: [cat]\ntrain: ../../elsewhere"))
laid(
    "yolo",
    "a split of 5,000 characters",
    "refused",
    "File name too long",
    write("data.yaml", f"names: [cat]\ntrain: {'a' * 5000}\nval: images/val"),
)
laid("yolo", "a split with an absolute path", "refused", "leaves the data folder", write("data.yaml", "names: [cat]\ntrain: /etc"))
laid(
    "yolo",
    "a path entry that leads out",
    "refused",
    "leaves the data folder",
    write("data.yaml", "path: ../..\nnames: [cat]\ntrain: somewhere"),
)
laid("yolo", "no label files", "refused", "no label files", lambda r: [f.unlink() for f in (r / "labels").rglob("*.txt")])
laid("yolo", "a label file that is not text", "named", "label file cannot be read", write("labels/train/p000.txt", b"\xff\xfe"))
laid("yolo", "a split without images", "named", "has no images in val", lambda r: [f.unlink() for f in (r / "images/val").iterdir()])
laid("yolo", "two images of one name, one without bytes", "named", "p002.jpg: not an image", write("images/val/p002.jpg", b""))
laid("yolo", "a label folder that is a link out", "refused", "is a link that leaves the data folder", outside("labels"))
laid("yolo", "a class number that no name has", "named", "unknown category", id, object_of(5, 5, 9, 9, name="cow"))
laid(
    "yolo",
    "a class number that is a word",
    "named",
    "unknown category",
    lambda r: (r / "labels/val/p002.txt").open("a").write("cow 0.5 0.5 0.1 0.1\n"),
)
laid(
    "yolo", "a line of three numbers", "named", "not four numbers", lambda r: (r / "labels/val/p002.txt").open("a").write("0 0.5 0.5 0.1\n")
)
laid(
    "yolo",
    "a polygon with half a corner",
    "named",
    "not four numbers",
    lambda r: (r / "labels/val/p002.txt").open("a").write("0 .1 .1 .2 .2 .3 .3 .4\n"),
)
laid(
    "yolo",
    "a box in pixels instead of shares",
    "named",
    "lies outside",
    lambda r: (r / "labels/val/p002.txt").open("a").write("0 32 24 10 10\n"),
)
laid("yolo", "a NaN", "named", "not four numbers", lambda r: (r / "labels/val/p002.txt").open("a").write("0 nan 0.5 0.1 0.1\n"))
laid(
    "yolo",
    "a label file without image",
    "named",
    "no such file (no image is called extra)",
    write("labels/val/extra.txt", "0 0.5 0.5 0.1 0.1\n"),
)
laid("yolo", "an image without label file", "named", "1 of 24 images have no label file", lambda r: (r / "labels/val/p002.txt").unlink())
laid(
    "yolo",
    "a file name that is not UTF-8",
    "named",
    "not an image (images/val/caf\\udce9.png)",
    lambda r: open(os.fsencode(r / "images/val") + b"/caf\xe9.png", "w").close(),
)


def folder(what: str, says: str, words: Callable[[Place], list[str]]) -> None:
    add("data: folders", what, "refused", says, words)


def made(place: Place, name: str) -> Path:
    (place.root / name).mkdir()
    return place.root / name


folder("no such folder", "no such file or folder", lambda p: p.evaluate(p.root / "nothing"))
folder("an empty folder", "no annotations found", lambda p: p.evaluate(made(p, "empty")))
folder("a file that is no data set", "not a data set", lambda p: p.evaluate(p.stock.model / "model.safetensors"))
folder("a path with a NUL", "no such file or folder", lambda p: p.evaluate(Path("a\0b")))
folder("a path of 5,000 characters", "not a path that can be read", lambda p: p.evaluate(Path("a" * 5000)))
folder("a split that the data does not have", "no split 'test'", lambda p: [*p.evaluate(p.stock.photos), "--split", "test"])


# -- images ---------------------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"", *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 4)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + bytes(8)


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 48), 90).convert("RGB").save(stream, form)
    return stream.getvalue()


def broken(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(60) + content[middle + 60 :]


def image(what: str, says: str, content: bytes, name: str = "a.png") -> None:
    """The file alone is refused; among others it is named and left out; in a data set it is skipped."""

    def words(place: Place) -> list[str]:
        (place.root / name).write_bytes(content)
        return place.predict(place.root / name)

    add("images: predict", what, "refused", says, words)


BOMBED = "more pixels than Pillow allows"
image("a PNG that claims 60,000 x 60,000 pixels", BOMBED, png(60_000, 60_000))
image("a TIFF that claims 60,000 x 60,000 pixels", BOMBED, tiff(60_000, 60_000), "a.tif")
image("a GIF that claims 65,535 x 65,535 pixels", BOMBED, b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;", "a.gif")
image(
    "a BMP that claims 60,000 x 60,000 pixels",
    BOMBED,
    b"BM" + struct.pack("<IHHIIiiHHIIIIII", 60, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "a.bmp",
)
image("a PPM that claims 99,999 x 99,999 pixels", BOMBED, b"P6\n99999 99999\n255\n", "a.ppm")
image(
    "a PNG whose text unpacks to 100 MB",
    "a.png: cannot be read",
    png(8, 8, bytes(200), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
)
image("a PNG without width", "a.png: not an image", png(0, 5))
image("a PNG with fewer pixels than it claims", "a.png: cannot be read", png(64, 64, bytes(99)))
image("a PNG damaged in the middle", "a.png: cannot be read", broken(encoded("PNG")))
image("a JPEG cut in half", "a.jpg: cannot be read", encoded("JPEG")[:900], "a.jpg")
image("a WebP cut in half", "a.webp: cannot be read", encoded("WEBP")[:300], "a.webp")
image("an empty file", "a.png: not an image", b"")
image("a web page named .jpg", "a.jpg: not an image", b"<html>404 not found</html>", "a.jpg")


def sources(what: str, promise: str, says: str, words: Callable[[Place], list[str]]) -> None:
    add("images: predict", what, promise, says, words)


def fifo(place: Place) -> Path:
    os.mkfifo(place.root / "a.png")
    return place.root / "a.png"


def spoilt_one(place: Place) -> Path:
    shutil.copytree(place.stock.photos / "JPEGImages", place.root / "many")
    (place.root / "many" / "p003.png").write_bytes(broken(encoded("PNG")))
    return place.root / "many"


sources(
    "one of many is damaged in the middle", "named", "p003.png: cannot be read", lambda p: [*p.predict(spoilt_one(p)), "--save", "json"]
)
sources("a pipe that nobody writes to", "refused", "not a file", lambda p: p.predict(fifo(p)))
sources("a device without end", "refused", "no image or video there", lambda p: p.predict(Path("/dev/zero")))
sources("no such image", "refused", "no such image or folder", lambda p: p.predict(p.root / "none.jpg"))
sources("a folder without images", "refused", "no image or video there", lambda p: p.predict(made(p, "empty")))
sources("no image named", "refused", "name images", lambda p: ["predict", str(p.stock.model)])
for kind in writers.FORMATS:
    laid(
        kind,
        "an image damaged in the middle, of the split that is read",
        "named",
        "cannot be read",
        lambda r: next(r.rglob("p002.png")).write_bytes(broken(encoded("PNG"))),
        count=36,
    )
    laid(kind, "an image that is an empty file", "named", "not an image (", lambda r: next(r.rglob("p002.png")).write_bytes(b""))
laid("coco", "an image that is a bomb", "named", BOMBED, lambda r: next(r.rglob("p002.png")).write_bytes(png(60_000, 60_000)))
laid(
    "voc", "an image that is a folder", "named", "p002", lambda r: (next(r.rglob("p002.png")).unlink(), (r / "JPEGImages/p002.png").mkdir())
)
laid(
    "yolo",
    "an image that is a pipe",
    "named",
    "not a file",
    lambda r: (next(r.rglob("p002.png")).unlink(), os.mkfifo(r / "images/val/p002.png")),
)
laid(
    "coco",
    "more than a tenth of the images missing",
    "refused",
    "images are invalid, more than 10%",
    lambda r: [f.unlink() for f in sorted((r / "train2017").iterdir())[:3]],
)


# -- checkpoints ----------------------------------------------------------------------------------------------------------------------


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def spoilt(what: str, says: str, spoil: Callable[[Path], object]) -> None:
    """A model folder that is spoilt, then asked."""

    def words(place: Place) -> list[str]:
        model = place.model()
        spoil(model)
        return ["predict", str(model), str(place.stock.photos / "JPEGImages" / "p000.png"), "--out", str(place.out), "--device", "cpu"]

    add("checkpoints: model", what, "refused", says, words)


def config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        content = json.loads((model / "config.json").read_text())
        change(content)
        (model / "config.json").write_text(json.dumps(content))

    return spoil


def weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors")

    return spoil


def bytes_of(change: Callable[[bytes], bytes], name: str = "model.safetensors") -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes())) and None


def flipped(content: bytes) -> bytes:
    middle = len(content) - 1000
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def first(tensors: dict, value: float) -> None:
    next(t for n, t in tensors.items() if n.endswith("weight")).view(-1)[0] = value


spoilt("no configuration", "neither a run nor a model folder", lambda m: (m / "config.json").unlink())
spoilt("no weights", "neither a run nor a model folder", lambda m: (m / "model.safetensors").unlink())
spoilt("configuration cut short", "config.json", bytes_of(lambda b: b[:99], "config.json"))
spoilt("configuration nested 200,000 deep", "config.json", bytes_of(lambda b: b"[" * 200_000, "config.json"))
spoilt("configuration is not text", "config.json", bytes_of(lambda b: b"\xff\xfe\x00", "config.json"))
spoilt("a model that is none of the library's", "registered first", config(lambda c: c["model"].update(name="../../evil")))
spoilt("an option that does not exist", "option", config(lambda c: c["model"]["options"].update(evil=1)))
spoilt("10^12 queries", "config.json", config(lambda c: c["model"]["options"].update(num_queries=10**12)))
spoilt("more names than classes", "names", config(lambda c: c["classes"].append("cow")))
spoilt("a class name that is a number", "config.json", config(lambda c: c["classes"].__setitem__(0, 7)))
spoilt("a threshold in words", "config.json", config(lambda c: c.update(threshold="high")))
spoilt("a threshold that is NaN", "config.json", config(lambda c: c.update(threshold=float("nan"))))
spoilt("a negative image size", "image_size=-5", config(lambda c: c["preprocessing"].update(image_size=-5)))
spoilt("weights cut short", "model.safetensors", bytes_of(lambda b: b[:-500]))
spoilt("weights are zeros", "model.safetensors", bytes_of(lambda b: bytes(len(b))))
spoilt("weights with a header of 2^60 bytes", "model.safetensors", bytes_of(lambda b: struct.pack("<Q", 2**60) + b[8:]))
spoilt("one flipped bit in the weights", "damaged, its check sum is another", bytes_of(flipped))
spoilt("a pickle in place of the weights", "model.safetensors", bytes_of(lambda b: pickle.dumps(Hostile())))
spoilt("a weight that is NaN", "NaN or inf", weights(lambda t: first(t, float("nan"))))
spoilt("a weight that is infinite", "NaN or inf", weights(lambda t: first(t, float("inf"))))
spoilt("a tensor missing", "does not hold the weights", weights(lambda t: t.popitem()))
spoilt("a tensor too many", "does not hold the weights", weights(lambda t: t.update(evil=torch.zeros(2))))
spoilt("weights of another size of model", "does not hold the weights", config(lambda c: c["model"]["options"].update(num_queries=10)))
add("checkpoints: model", "no such run", "refused", "no such folder", lambda p: ["predict", "no/such/run", "a.jpg"])


def official(what: str, says: str, content: object) -> None:
    def words(place: Place) -> list[str]:
        path = place.root / "theirs.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return ["import-official", str(path), "--model", "detr", "--out", str(place.out)]

    add("checkpoints: authors'", what, "refused", says, words)


official("a pickle that would run a function", "would have to be executed", Hostile())
official("a plain pickle that would run a function", "would have to be executed", pickle.dumps(Hostile()))
official("such a pickle beside tensors", "would have to be executed", {"model": {"a": torch.zeros(1)}, "args": Hostile()})
official("a list", "holds no tensors", [1, 2])
official("no tensors", "holds no tensors", {"model": {}})
official("tensors of something else", "not a checkpoint of detr", {"model": {"conv.weight": torch.zeros(3)}})
official("a web page", "not a checkpoint, or", b"<html>404 not found</html>")
official("an empty file", "not a checkpoint, or", b"")
add(
    "checkpoints: authors'",
    "no such file",
    "refused",
    "no such file",
    lambda p: ["import-official", "no.pth", "--model", "detr", "--out", str(p.out)],
)


def resumed(what: str, promise: str, says: str, spoil: Callable[[Path], object], *words: str) -> None:
    """The run's own folder, spoilt, then resumed."""

    def given(place: Place) -> list[str]:
        folder = place.run()
        spoil(folder)
        return [*place.resume(folder), *words]

    add("checkpoints: resume", what, promise, says, given)


def both(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [spoil(folder / name) for name in ("last.ckpt", "previous.ckpt")]


def foreign(folder: Path) -> None:
    """A sound state, of another model."""
    state = {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "callbacks": {"EpochEnd": {}}, "state_dict": {"a": torch.zeros(1)}}
    StateFiles({}).save_checkpoint(state, folder / "last.ckpt")


def settings(**values: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(content | values))

    return spoil


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


resumed("last.ckpt cut short", "gone on", "resuming from previous.ckpt", lambda f: cut(f / "last.ckpt"))
resumed("one flipped bit in last.ckpt", "gone on", "its digest is another; resuming from previous.ckpt", bytes_of(flipped, "last.ckpt"))
resumed("last.ckpt gone", "gone on", "resuming from previous.ckpt", lambda f: (f / "last.ckpt").unlink())
resumed("both states cut short", "refused", "restore it from a copy", both(cut))
resumed("both states gone", "refused", "is missing, though 2 epochs were finished", both(Path.unlink))
resumed("a state that would run a function", "refused", "would have to be executed", lambda f: torch.save(Hostile(), f / "last.ckpt"))
resumed("the state of another model", "refused", "the state of another model", foreign)
resumed("a state that is a list", "refused", "not the state of a run", lambda f: torch.save([1], f / "last.ckpt"))
resumed("no configuration", "refused", "no run to resume", lambda f: (f / "config.yaml").unlink())
resumed(
    "a configuration with a YAML tag that would run a function",
    "refused",
    "not a run's configuration",
    write("config.yaml", "data: !!python/object/apply:os.mkdir [executed]"),
)
resumed("a configuration nested 5,000 deep", "refused", "not a run's configuration", write("config.yaml", "[" * 5000))
resumed("a configuration that is not text", "refused", "not a run's configuration", write("config.yaml", b"\xff\xfe\x00"))
resumed("a configuration without a model", "refused", "not a run's configuration", write("config.yaml", "data: shapes"))
resumed("a configuration whose epochs are a word", "refused", "not a run's configuration", settings(length={"epochs": "many"}))
resumed("a configuration whose options are a list", "refused", "not a run's configuration", settings(options=[1]))
resumed("a run of two processes on one", "refused", "was started with 2 processes", settings(world_size=2))
resumed("other settings than the run's", "refused", "was started with seed=0", id, "--seed", "9")
resumed("metrics.csv is not text", "gone on", "epoch 2/2", lambda f: (cut(f / "last.ckpt"), (f / "metrics.csv").write_bytes(b"\xff")))
resumed("evaluation.json cut short", "refused", "evaluation.json: cannot be read", lambda f: (f / "evaluation.json").write_text('{"val":'))
resumed("half-written files of a process that died", "gone on", "report:", lambda f: (f / ".metrics.csv.abc.new").write_text("epo"))


# -- options --------------------------------------------------------------------------------------------------------------------------


def option(what: str, says: str, *words: str) -> None:
    add("options", what, "refused", says, lambda place: place.train(*words))


option("a model that does not exist", "no model 'dert'", "--model", "dert")
option("a preset that does not exist", "choose one of paper, small, tiny", "--preset", "huge")
option("an option that does not exist", "unknown option 'layers'", "--option", "layers=3")
option("an option of the wrong type", "must be a whole number", "--option", "num_queries=many")
option("heads that do not divide the width", "heads", "--option", "heads=5")
option("no queries", "num_queries", "--option", "num_queries=0")
option("an option without a value", "name=value", "--option", "levels")
option("an option that is a YAML tag", "--option", "--option", "levels=!!python/object/apply:os.mkdir [executed]")
option("an option of broken YAML", "--option", "--option", "levels=[1")
option("epochs in words", "--epochs", "--epochs", "many")
option("no epochs", "epochs=0", "--epochs", "0")
option("a negative batch", "--batch-size=-1", "--batch-size", "-1")
option("negative minutes", "minutes=-1.0", "--minutes", "-1")
option("minutes that are NaN", "minutes=nan", "--minutes", "nan")
option("infinite minutes", "minutes=inf", "--minutes", "inf")
option("a rate of 0", "lr=0", "--lr", "0")
option("a rate that is NaN", "lr=nan", "--lr", "nan")
option("an infinite rate", "lr=inf", "--lr", "inf")
option("images of 3 pixels", "--image-size=3", "--image-size", "3")
option("a device that does not exist", 'Choose from: "auto", "cpu", "cuda"', "--device", "tpu")
option("a precision that does not exist", 'Choose from: "auto", "float32"', "--precision", "fp8")
option("negative patience", "patience=-2", "--patience", "-2")
option("negative workers", "workers=-1", "--workers", "-1")
option("nothing to accumulate", "accumulate=0", "--accumulate", "0")
option("a flag with a typing mistake", "--modell", "--modell", "detr")
option("starting from a run that does not exist", "no/such/run: no such folder", "--from", "no/such/run")
option("starting from a file that is no checkpoint", "not a checkpoint, or one that was cut short", "--from", __file__)
add("options", "resuming without a folder", "refused", "--resume needs --out", lambda p: ["train", str(p.stock.photos), "--resume"])
add("options", "no data", "refused", "DATA", lambda p: ["train"])
add("options", "a command that does not exist", "refused", "frobnicate", lambda p: ["frobnicate"])
add(
    "options",
    "a threshold above 1",
    "refused",
    "threshold=1.5",
    lambda p: [*p.predict(p.stock.photos / "JPEGImages/p000.png"), "--threshold", "1.5"],
)
add(
    "options",
    "a threshold that is NaN",
    "refused",
    "threshold=nan",
    lambda p: [*p.predict(p.stock.photos / "JPEGImages/p000.png"), "--threshold", "nan"],
)
add("options", "a batch of 0 in evaluation", "refused", "--batch-size=0", lambda p: [*p.evaluate(p.stock.photos), "--batch-size", "0"])
add(
    "options",
    "a fault, and --strict",
    "refused",
    "go without --strict",
    lambda p: ["train", str(strictly(p)), *TRAIN, "--strict", "--out", str(p.out)],
)


def strictly(place: Place) -> Path:
    images = pictures()
    object_of(9, 9, 5, 5)(images)
    return writers.write_voc(place.root / "data", images)


# -- disk -----------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full(size: int) -> Iterator[None]:
    """The operating system refuses every file larger than ``size`` bytes."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def no_room(number: int) -> contextlib.AbstractContextManager:
    """What a full disk says when the ``number``-th file is written to it."""
    calls, real = [], os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    return mock.patch("os.fsync", fsync)


def read_only() -> contextlib.AbstractContextManager:
    return mock.patch("tempfile.mkstemp", side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS)))


def disk(
    what: str, promise: str, says: str, words: Callable[[Place], list[str]], *around: Callable[[], contextlib.AbstractContextManager]
) -> None:
    def given(place: Place) -> list[str]:
        place.around += [make() for make in around]
        return words(place)

    add("disk", what, promise, says, given)


def at(path: str) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        (place.root / "file").write_text("kept")
        return [*place.train()[:-1], path if path.startswith("/") else str(place.root / path)]

    return words


def one(place: Place) -> list[str]:
    return place.predict(place.stock.photos / "JPEGImages/p000.png")


def predict_to_file(place: Place) -> list[str]:
    place.out.write_text("kept")
    return one(place)


def explain(place: Place) -> list[str]:
    return ["explain", str(place.stock.model), str(place.stock.photos / "JPEGImages/p000.png"), "--out", str(place.out), "--device", "cpu"]


def imported(place: Place) -> list[str]:
    from .test_detector import official_names

    model = bq.create_model("detr", classes=91, num_queries=9, hidden_dim=64, ffn_dim=64, encoder_layers=1, decoder_layers=2)
    torch.save({"model": official_names(model)}, place.root / "detr.pth")
    return ["import-official", str(place.root / "detr.pth"), "--model", "detr", "--out", str(place.out)]


disk("--out is a file", "refused", "is a file", at("file"))
disk("--out lies below a file", "refused", "cannot be written to", at("file/run"))
disk("--out where nothing can be made", "refused", "cannot be written to", at("/proc/boxquery/run"))
disk("--out of 300 characters", "refused", "cannot be written to", at("a" * 300))
disk("--out holds another run", "refused", "holds another run", lambda p: [*p.train()[:-1], str(p.run())])
disk("a read-only folder, training (the system's answer, planted)", "refused", "Read-only file system", lambda p: p.train(), read_only)
disk("a read-only folder, predicting (planted)", "refused", "Read-only file system", one, read_only)
disk("a read-only folder, explaining (planted)", "refused", "Read-only file system", explain, read_only)
disk(
    "no room for config.yaml (planted)",
    "refused",
    "config.yaml: cannot be written (No space left on device)",
    lambda p: p.train(),
    lambda: no_room(1),
)
disk("no room for the predictions (planted)", "refused", "No space left on device", one, lambda: no_room(1))
disk("no room for the page (planted)", "refused", "No space left on device", explain, lambda: no_room(1))
disk(
    "no room for an imported model (a limit of the system)",
    "refused",
    "cannot be written (File too large)",
    imported,
    lambda: full(200_000),
)
disk("predictions to a file", "refused", "is a file", predict_to_file)
disk(
    "an explanation below a file",
    "refused",
    "is a file",
    lambda p: [*explain(p)[:4], str(p.stock.model / "config.json" / "x"), "--device", "cpu"],
)


# -- processes ------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def somebody_else(folder: Path) -> Iterator[None]:
    """Another process trains in the folder."""
    script = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a+')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('process 7 on this machine')\nfile.flush()\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield
        finally:
            assert other.stdin is not None
            other.stdin.close()
    (folder / ".lock").unlink(missing_ok=True)


def while_training(place: Place, resume: bool) -> list[str]:
    folder = place.run() if resume else made(place, "out")
    (folder / ".lock").touch()
    place.around.append(somebody_else(folder))
    return place.resume(folder) if resume else place.train()


def stale(place: Place) -> list[str]:
    folder = place.run()
    (folder / ".lock").write_text("process 1 on another machine")
    return place.resume(folder)


def patched(target: str, error: BaseException) -> Callable[[Place], list[str]]:
    def words(place: Place) -> list[str]:
        place.around.append(mock.patch(target, side_effect=error))
        return place.train()

    return words


DIED = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
add(
    "processes",
    "a second run in the folder of one that lives",
    "refused",
    "is being trained by process 7",
    lambda p: while_training(p, False),
)
add("processes", "resuming a run that lives", "refused", "is being trained by process 7", lambda p: while_training(p, True))
add("processes", "the lock of a process that died", "gone on", "report:", stale)
add("processes", "Ctrl-C", "interrupted", "interrupted", patched("boxquery.training.fit.open_checked", KeyboardInterrupt()))
add("processes", "a process that reads images is killed (planted)", "stopped", "--resume", patched("lightning.Trainer.fit", DIED))


# -- benchmark ------------------------------------------------------------------------------------------------------------------------


def killed() -> contextlib.AbstractContextManager:
    """A process that measures is killed before its first timed prediction, as the system does when memory is short."""
    run_ = Worker.run

    def killed_first(worker: Worker, number: int):
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        return run_(worker, number)

    return mock.patch.object(Worker, "run", killed_first)


def benchmark(place: Place, *words: str) -> list[str]:
    return ["benchmark", str(place.stock.model), "--device", "cpu", "--threads", "1", "--runs", "2", "--runtimes", "pytorch", *words]


def measured_and_killed(place: Place) -> list[str]:
    place.around.append(killed())
    return benchmark(place, "--images", str(place.stock.photos / "JPEGImages/p000.png"))


add("benchmark", "the process of the only runtime is killed (planted)", "refused", "was killed by signal 9", measured_and_killed)
add(
    "benchmark",
    "images of which none can be read",
    "refused",
    "none of 1 image can be read",
    lambda p: benchmark(p, "--images", str(shutil.copy(__file__, p.root / "code.png"))),
)


# -- videos ---------------------------------------------------------------------------------------------------------------------------


def film(place: Place, share: float = 1.0, index_first: bool = True) -> list[str]:
    """A video of twenty frames, of which the file holds a share."""
    from .predict.films import cut, write_film

    return place.predict(cut(write_film(place.root / "film.mp4", noise=40, index_first=index_first), share))


def unplugged(place: Place) -> list[str]:
    """A camera that is pulled out after ten frames: FFmpeg's test picture in its place."""
    picture = "testsrc=size=64x64:rate=25:duration=0.4"
    place.around.append(mock.patch("boxquery.data.video._device", return_value=("lavfi", picture, {})))
    return place.predict(Path("camera:0"))


def full_film(place: Place) -> list[str]:
    words = [*film(place), "--save", "video"]
    place.around.append(full(900))
    return words


def untracked(place: Place) -> list[str]:
    place.around.append(mock.patch("boxquery.predict.tracking.find_spec", return_value=None))
    return [*one(place), "--track"]


def video(what: str, promise: str, says: str, words: Callable[[Place], list[str]]) -> None:
    add("videos: predict", what, promise, says, words)


video("a video that ends in the middle", "named", "of the 20 frames that its header states could be read", lambda p: film(p, 0.6))
video("a video cut short before the index at its end", "refused", "is cut short; copy or export it again", lambda p: film(p, 0.6, False))
video("a camera that is pulled out (planted)", "named", "ended after 10 frames; what was found until then is kept", unplugged)
video("a camera that is not there", "refused", "camera:97: cannot be opened", lambda p: p.predict(Path("camera:97")))
video(
    "a stream that nobody serves",
    "refused",
    "rtsp://127.0.0.1:9/live: cannot be opened (Connection refused)",
    lambda p: [*p.predict()[:2], "rtsp://127.0.0.1:9/live", *p.predict()[2:]],
)
video("no room while a video is written (a limit of the system)", "refused", "film.mp4: cannot be written (File too large)", full_film)
video("--track without its package (planted)", "refused", "pip install 'boxquery[track]'", untracked)


# -- exported models ------------------------------------------------------------------------------------------------------------------


def exported(
    what: str, says: str, *words: str, spoil: Callable[[Path], object] = id, ending: str = ".onnx", missing: str = "", **changes: object
) -> None:
    """An exported model, perhaps with another record, that is spoilt after it was written, or whose runtime is not installed."""

    def line(place: Place) -> list[str]:
        path = handmade.write(place.root / f"model{ending}", **changes)
        spoil(path)
        if missing:
            place.around.append(mock.patch.dict(sys.modules, {missing: None}))
        return ["predict", str(path), str(place.stock.photos / "JPEGImages/p000.png"), "--out", str(place.out), *words]

    add("exported models", what, "refused", says, line)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


exported("an .onnx file that is cut short", "cannot open it", spoil=half)
exported("weights in a .bin that is cut short", "it or its .bin is damaged", spoil=lambda p: half(p.with_suffix(".bin")), ending=".xml")
exported("an .xml without its .bin", "model.bin must lie beside it", spoil=lambda p: p.with_suffix(".bin").unlink(), ending=".xml")
exported("an .xml that is another document", "not a model of OpenVINO", spoil=lambda p: p.write_text("<annotation/>"), ending=".xml")
exported("an ONNX file of another program", "not exported by boxquery", record=None)
exported("a file of a newer boxquery", "format 3 is of a newer boxquery, this one reads up to 2", format=3)
exported("a record that was edited", "its record cannot be read", threshold="half")
exported("a flipped bit in a file", "it is damaged or was edited", spoil=flipped)
exported("weights that are no numbers", "no finite numbers", factor=float("nan"))
exported("a record of other classes than its graph's", "names 1 classes, its graph has 3", classes=["cat"], ids=[1])
exported("a record of scenes that does not say of what size and area", "(KeyError: 'scenes')", format=2)
exported(
    "a record of scenes on a graph of images", "no input 'images' of uint8 and 5 dimensions", format=2,
    scenes={"images": [48, 80], "area": [-50, -50, -3, 50, 50, 5], "cameras": 6},
)  # fmt: skip
exported("a number in the record that no computer holds", "longest_ratio=1e+308", preprocessing={"image_size": 64, "longest_ratio": 1e308})
exported("another size than the one it was exported for", "exported for 64x96 alone", "--image-size", "80", size=[64, 96])
exported("onnxruntime is not installed (planted)", "needs the package onnxruntime: pip install", missing="onnxruntime")
exported("OpenVINO is not installed (planted)", "needs the package openvino: pip install", missing="openvino", ending=".xml")
exported("a device that it cannot run on", "runs on auto, cpu or cuda", "--device", "mps")


# -- a Ray cluster --------------------------------------------------------------------------------------------------------------------


def by_ray(place: Place, *sources: str, **environment: str) -> list[str]:
    place.around.append(mock.patch.dict(os.environ, environment))
    given = sources or (str(place.stock.photos),)
    return ["predict", str(place.stock.model), *given, "--out", str(place.out), "--device", "cpu", "--engine", "ray"]


def without_ray(place: Place) -> list[str]:
    place.around.append(mock.patch.dict(sys.modules, {"ray": None}))
    return by_ray(place)


def cluster(what: str, says: str, words: Callable[[Place], list[str]]) -> None:
    add("Ray: predict", what, "refused", says, words)


cluster("--engine ray without its package (planted)", "pip install 'boxquery[ray]'", without_ray)
cluster("an address where no cluster is", "no Ray cluster can be joined there", lambda p: by_ray(p, RAY_ADDRESS="127.0.0.1:9"))
cluster("a bucket without anything", "nothing there; check the address", lambda p: by_ray(p, f"file://{p.root}/nothing"))
cluster("a file system that nobody knows", "cannot be listed (Protocol not known: nosuch)", lambda p: by_ray(p, "nosuch://bucket/photos"))


# -- exported files -------------------------------------------------------------------------------------------------------------------


def export(place: Place, name: str = "model.onnx", *words: str) -> list[str]:
    return ["export", str(place.stock.model), "--to", "onnx", "--out", str(place.root / name), *words]


def without_onnxscript(place: Place) -> list[str]:
    def installed(name: str) -> str:
        if name == "onnxscript":
            raise PackageNotFoundError(name)
        return "99.0"

    place.around.append(mock.patch("boxquery.export.packages.version", installed))
    return export(place)


def under_a_file(place: Place) -> list[str]:
    (place.root / "file").write_text("here")
    return export(place, "file/model.onnx")


add("export", "a file of another runtime's ending", "refused", "ends in .onnx; choose another --out", lambda p: export(p, "model.xml"))
add("export", "bf16 for a runtime without it", "refused", "no bf16 kernels for CPUs", lambda p: export(p, "m.onnx", "--precision", "bf16"))
add("export", "a package that is missing (planted)", "refused", "pip install 'boxquery[export]'", without_onnxscript)
add("export", "a file where the folder should be", "refused", "cannot be written (File exists)", under_a_file)
add("export", "int8 without images", "refused", "give --calibrate DATA", lambda p: export(p, "m.onnx", "--precision", "int8"))
add("export", "images for a precision without ranges", "refused", "for int8 alone", lambda p: export(p, "m.onnx", "--calibrate", "x"))


# -- learning without labels ----------------------------------------------------------------------------------------------------------


def pretrain(place: Place, *words: str) -> list[str]:
    return ["pretrain", str(place.stock.photos), *over(*words), "--out", str(place.out)]


def with_a_strip(place: Place) -> list[str]:
    photos = Path(shutil.copytree(place.stock.photos, place.root / "photos"))
    Image.new("RGB", (300, 12)).save(photos / "JPEGImages" / "strip.png")
    return ["pretrain", str(photos), *over("--patches", "3"), "--out", str(place.out)]


def labels_of_another(place: Place) -> list[str]:
    place.out.mkdir()
    (place.out / "pseudo-labels.json").write_text('{"info": {"threshold": 0.9}}')
    return ["pretrain", str(place.stock.photos), "--teacher", str(place.stock.model), "--out", str(place.out), "--device", "cpu"]


add("pretrain", "a model without queries", "refused", "has no queries that could be told", lambda p: pretrain(p, "--model", "fcos"))
add("pretrain", "more patches than queries", "refused", "more than the 9 queries", pretrain)
add("pretrain", "an image that has no room for patches", "named", "no room for patches", with_a_strip)
add("pretrain", "labels of another teacher", "refused", "of another teacher, threshold or folder", labels_of_another)
