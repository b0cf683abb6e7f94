"""Data as people have it: every kind of oddity crossed with the formats and met by the commands.

For each, the exit status, that every box that was given is either kept or counted as skipped, and the words of the message. The data sets
are made by code from ``tests/data/writers.py`` and then bent; a correct one is twelve images, eight of them for training.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import boxquery as bq
from boxquery.api import Detector
from boxquery.cli import run
from boxquery.data.open import read
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.validation import validate
from tests.data.writers import FORMATS, NAMES, Picture, Thing, coco_content, pictures, write_voc_folders

COUNT = 12
FAULTY = Thing("cat", [30, 30, 10, 40])  # negative width


@dataclass(frozen=True)
class Variant:
    """A kind of oddity in a format.

    Attributes:
        build: writes the data set into a folder and returns it.
        status: 2 where the data cannot be opened, else 0.
        words: what the output must hold, all of them.
        lost: number of boxes that are skipped.
        images: number of images that remain; None where the data is refused.
        unsaid: words that must not appear.
        untrained: what ``train`` says of data that opens but cannot be trained on; "" where it can be.
    """

    kind: str
    format: str
    build: Callable[[Path], Path]
    status: int = 0
    words: tuple[str, ...] = ()
    lost: int = 0
    images: int | None = COUNT
    unsaid: tuple[str, ...] = ()
    untrained: str = ""


VARIANTS: list[Variant] = []


def kind(
    name: str, *formats: str, status: int = 0, words=(), lost: int = 0, images: int | None = COUNT, unsaid=(), untrained=""
) -> Callable[[Callable[[Path, str], Path | None]], Callable[[Path, str], Path | None]]:
    """Register a builder for formats (default: all); ``words`` may differ by format, as a dictionary."""

    def register(build: Callable[[Path, str], Path | None]) -> Callable[[Path, str], Path | None]:
        for each in formats or tuple(FORMATS):
            said = words.get(each, ()) if isinstance(words, dict) else words
            said = (said,) if isinstance(said, str) else said

            def make(root: Path, each: str = each) -> Path:
                return build(root, each) or root

            VARIANTS.append(Variant(name, each, make, status, said, lost, None if status else images, unsaid, untrained))
        return build

    return register


# -- helpers --------------------------------------------------------------------------------------------------------------------------


def write(root: Path, format: str, images: list[Picture] | None = None) -> Path:
    """A data set in which no two images are alike."""
    images = pictures(COUNT) if images is None else images
    for number, picture in enumerate(images):
        if picture.data is None and not picture.missing:
            stream = BytesIO()
            noise(picture.size, number).save(stream, "PNG")
            picture.data = stream.getvalue()
    return FORMATS[format](root, images)


def image_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))


def annotation_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".yaml") and "ImageSets" not in path.parts)


def rename(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def renamed_pictures(pattern: str) -> list[Picture]:
    """The pictures with other stems; ``pattern`` has the place of the number."""
    images = pictures(COUNT)
    for i, picture in enumerate(images):
        picture.stem = pattern.format(i)
    return images


def edit(root: Path, change: Callable[[str], str], ending: str = "") -> None:
    for path in annotation_files(root):
        if path.suffix.endswith(ending):
            path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def edit_json(root: Path, change: Callable[[dict], None]) -> None:
    for path in root.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")


def noise(size: tuple[int, int] = (64, 48), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def first_with_boxes(images: list[Picture], count: int) -> list[Picture]:
    return [picture for picture in images if picture.things][:count]


# -- names that are right but for something ---------------------------------------------------------------------------------------------


# In VOC the XML's own name says which image it is of, whatever the image's ending and the path inside: nothing is inferred there.


@kind("ending in upper case", words={"coco": "in another case"})
def _(root, format):
    write(root, format)
    for path in image_files(root):
        rename(path, path.stem + ".PNG")


@kind("stem in another case", words={"coco": "in another case", "voc": "in another case"})
def _(root, format):
    write(root, format)
    for path in image_files(root):
        rename(path, path.stem.upper() + ".png")


@kind("another ending than stated", "coco", "voc", words={"coco": "with another ending"})
def _(root, format):
    write(root, format)
    for path in image_files(root):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()


@kind("percent-encoded names", words={"coco": "percent-encoding", "voc": "percent-encoding"})
def _(root, format):
    write(root, format, renamed_pictures("my%20p{:03d}%20(1)"))
    for path in image_files(root):
        rename(path, path.name.replace("%20", " "))


@kind("decomposed Unicode in file names", words={"coco": "Unicode", "voc": "Unicode"})
def _(root, format):
    write(root, format, renamed_pictures(unicodedata.normalize("NFC", "café p{:03d}")))
    for path in image_files(root):
        rename(path, unicodedata.normalize("NFD", path.name))


@kind("spaces, brackets and other scripts", unsaid=("note: 2 images",))
def _(root, format):
    write(root, format, renamed_pictures("[b] hütte 漢字 🐶 ({:03d}) & 'x'"))


@kind("dots in stems")
def _(root, format):
    write(root, format, renamed_pictures("cam.1.2024-05-01.p{:03d}"))


@kind("paths of Windows", "coco", "voc", words={"coco": "found by their file name alone"})
def _(root, format):
    write(root, format)
    edit(
        root,
        lambda text: re.sub(r"p(\d{3})\.png", r"C:\\\\data\\\\img\\\\p\1.png" if format == "coco" else r"C:\\data\\img\\p\1.png", text),
    )


@kind("absolute paths of another machine", "coco", "voc", words={"coco": "found by their file name alone"})
def _(root, format):
    write(root, format)
    edit(root, lambda text: re.sub(r"p(\d{3})\.png", r"/content/drive/My Drive/set/p\1.png", text))


@kind("addresses", "coco", words="found by their file name alone")
def _(root, format):
    write(root, format)
    edit(root, lambda text: re.sub(r"p(\d{3})\.png", r"https://example.org/set/p\1.png?size=full", text))


# -- what lies beside ------------------------------------------------------------------------------------------------------------------


@kind("hidden files of other systems", unsaid=("._", "DS_Store"))
def _(root, format):
    write(root, format)
    for path in [*image_files(root), *annotation_files(root)]:
        path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7")
        (path.parent / ".DS_Store").write_bytes(b"\0")
        (path.parent / "Thumbs.db").write_bytes(b"\0")
    shutil.copytree(root, root / "__MACOSX", ignore=shutil.ignore_patterns("__MACOSX"))


@kind("one folder too many")
def _(root, format):
    write(root / "export" / "my set", format)
    (root / "export" / "README.txt").write_text("thanks")


@kind("__MACOSX beside the only folder")
def _(root, format):
    write(root / "data", format)
    (root / "__MACOSX" / "data").mkdir(parents=True)
    (root / "__MACOSX" / "data" / "._data").write_bytes(b"\0")


@kind("links inside the folder")
def _(root, format):
    write(root, format)
    for path in image_files(root)[:4]:
        moved = root / "store" / (path.stem + ".bin")
        moved.parent.mkdir(exist_ok=True)
        path.rename(moved)
        path.symlink_to(moved)


@kind("links out of the folder", status=2, words="leaves the data folder")
def _(root, format):
    write(root / "set", format)
    for path in image_files(root / "set")[:4]:
        moved = root / "elsewhere" / path.name
        moved.parent.mkdir(exist_ok=True)
        path.rename(moved)
        path.symlink_to(moved)
    return root / "set"


@kind("a folder that cannot be written")
def _(root, format):
    write(root, format)
    for path in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        path.chmod(0o555)


# -- files that are missing or broken ----------------------------------------------------------------------------------------------------


@kind("an image that is missing", "coco", "voc", words=("no such file", "1 of 12 images"), lost=1, images=COUNT - 1)
def _(root, format):
    images = pictures(COUNT)
    first_with_boxes(images, 1)[0].missing = True
    first_with_boxes(images, 1)[0].things[1:] = []
    write(root, format, images)


@kind("most images are missing", "coco", "voc", status=2, words=("more than 10%", "no such file"))
def _(root, format):
    images = pictures(COUNT)
    for picture in images[:6]:
        picture.missing = True
    write(root, format, images)


@kind("an image that is none", words=("1 of 12 images",), lost=1, images=COUNT - 1)
def _(root, format):
    images = pictures(COUNT)
    first = first_with_boxes(images, 1)[0]
    first.things[1:], first.data = [], b"<html>404</html>"
    write(root, format, images)


@kind("an empty file", words=("1 of 12 images",), lost=1, images=COUNT - 1)
def _(root, format):
    images = pictures(COUNT)
    first = first_with_boxes(images, 1)[0]
    first.things[1:], first.data = [], b""
    write(root, format, images)


@kind("a photograph that lacks its last bytes")
def _(root, format):
    write(root, format)
    path = image_files(root)[0]
    noise().save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes()[:-40])


@kind("another format than the ending says")
def _(root, format):
    write(root, format)
    for path in image_files(root)[:3]:
        Image.open(path).convert("RGB").save(path, "JPEG")


@kind("photographs that the camera turned", words="")
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.stated = None
    write(root, format, images)
    for number, path in enumerate(image_files(root)):
        exif = Image.Exif()
        exif[274] = 6
        noise((48, 64), number).save(path, "JPEG", exif=exif)  # shown as 64 x 48


@kind("a wrong stated size", "coco", "voc", words=("stated 99 x 99", "the file's size is used"))
def _(root, format):
    images = pictures(COUNT)
    images[0].stated = (99, 99)
    write(root, format, images)


@kind("wrong stated sizes everywhere", "coco", "voc", status=2, words=("stated 99 x 99", "all 12 images"))
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.stated = (99, 99)
    write(root, format, images)


@kind("images of other endings", "yolo")
def _(root, format):
    write(root, format)
    for path, ending in zip(image_files(root), (".jpeg", ".webp", ".bmp", ".tif", ".jfif", ".gif"), strict=False):
        Image.open(path).save(path.with_suffix(ending), {".jfif": "JPEG"}.get(ending))
        path.unlink()


# -- splits ----------------------------------------------------------------------------------------------------------------------------


@kind("splits in upper case", unsaid=("held out",))
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.split = picture.split.upper() if format != "voc" else {"train": "TRAIN", "val": "Val"}[picture.split]
    write(root, format, images)


@kind("valid in place of val", unsaid=("held out",))
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.split = {"val": "valid"}.get(picture.split, picture.split)
    write(root, format, images)


@kind("folders of splits with annotations inside", "voc", unsaid=("held out",))
def _(root, format):
    write_voc_folders(root, pictures(COUNT))


@kind("a split that was not exported", "yolo", words="test")
def _(root, format):
    write(root, format)
    with (root / "data.yaml").open("a") as file:
        file.write("\ntest: images/test\n")


@kind("no val split", words="held out as val")
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.split = "train"
    write(root, format, images)


@kind("val without boxes", words="val")
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.things = [] if picture.split == "val" else picture.things
    write(root, format, images)


@kind("no boxes to train on", words="no boxes", untrained="no boxes")
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.things = [] if picture.split == "train" else picture.things
    write(root, format, images)


@kind("one image", images=1, untrained="one image")
def _(root, format):
    images = first_with_boxes(pictures(), 1)
    images[0].split = "train"
    write(root, format, images)


@kind("two images", images=2, words="held out")
def _(root, format):
    images = [picture for picture in pictures() if picture.things and picture.split == "train"][:2]
    write(root, format, images)


# -- boxes and classes -------------------------------------------------------------------------------------------------------------------


@kind("a few invalid boxes", words=("box has no size", "2 skipped"), lost=2)
def _(root, format):
    images = pictures(COUNT)
    for picture in first_with_boxes(images, 2):
        picture.things.append(FAULTY)
    write(root, format, images)


@kind("many invalid boxes", status=2, words=("more than 10%", "box has no size"))
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.things.append(FAULTY)
    write(root, format, images)


@kind("boxes that are no numbers", words=("1 skipped",), lost=1)
def _(root, format):
    images = pictures(COUNT)
    images[0].things.append(Thing("cat", ["a", "b", "c", "d"]))
    write(root, format, images)


@kind("boxes outside their image", words=("lies outside its image (64 x 48", "1 skipped"), lost=1)
def _(root, format):
    images = pictures(COUNT)
    images[0].things.append(Thing("cat", [70, 5, 90, 20]))
    write(root, format, images)


@kind("boxes that reach beyond their image", words="clipped")
def _(root, format):
    images = pictures(COUNT)
    images[0].things.append(Thing("cat", [50, 5, 80, 20]))
    write(root, format, images)


@kind("a class that is not in the list", "coco", "yolo", words=("1 skipped",), lost=1)
def _(root, format):
    images = pictures(COUNT)
    images[0].things.append(Thing("ghost", [5, 5, 20, 20]))
    write(root, format, images)


@kind("a class that is not in the list, often", "coco", "yolo", status=2, words="more than 10%")
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.things.append(Thing("ghost", [5, 5, 20, 20]))
    write(root, format, images)


@kind("one class")
def _(root, format):
    images = pictures(COUNT)
    for picture in images:
        picture.things = [Thing("cat", thing.box) for thing in picture.things]
    write(root, format, images)


@kind("names that YAML takes for values", words=("yes", "no", "off"), unsaid=("True", "False"))
def _(root, format):
    write(root, format)
    words = dict(zip(NAMES, ("yes", "no", "off"), strict=True))
    if format == "yolo":
        (root / "data.yaml").write_text((root / "data.yaml").read_text().replace(str(NAMES), "[yes, no, off]"))
    else:
        edit(root, lambda text: re.sub(r"\b(cat|dog|owl)\b", lambda match: words[match[0]], text))


@kind("names that are numbers", words=("1", "2.0", "007"))
def _(root, format):
    write(root, format)
    words = dict(zip(NAMES, ("1", "2.0", "007"), strict=True))
    if format == "yolo":
        (root / "data.yaml").write_text((root / "data.yaml").read_text().replace(str(NAMES), "[1, 2.0, 007]"))
    else:
        edit(root, lambda text: re.sub(r"\b(cat|dog|owl)\b", lambda match: words[match[0]], text))


@kind("names with markup", words=("[red]cat[/red]",))
def _(root, format):
    write(root, format)
    edit(root, lambda text: re.sub(r"\bcat\b", "[red]cat[/red]", text) if format != "yolo" else text.replace("'cat'", "'[red]cat[/red]'"))


# -- text files ------------------------------------------------------------------------------------------------------------------------


@kind("a byte order mark")
def _(root, format):
    write(root, format)
    for path in annotation_files(root):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


@kind("line ends of Windows")
def _(root, format):
    write(root, format)
    for path in [path for path in root.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".yaml")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


@kind("an encoding of its own", "voc")
def _(root, format):
    write(root, format)
    for path in annotation_files(root):
        text = path.read_text().replace("<name>cat</name>", "<name>猫</name>")
        path.write_bytes(f"<?xml version='1.0' encoding='gb2312'?>{text}".encode("gb2312"))


@kind("UTF-16", "coco", "voc")
def _(root, format):
    write(root, format)
    for path in annotation_files(root):
        begin = "<?xml version='1.0' encoding='utf-16'?>" if format == "voc" else ""
        path.write_text(begin + path.read_text(), encoding="utf-16")


@kind("broken annotations", status=2, words={"coco": "broken JSON", "voc": "broken XML", "yolo": "broken YAML"})
def _(root, format):
    write(root, format)
    path = {"coco": "annotations/instances_train2017.json", "voc": "Annotations/p000.xml", "yolo": "data.yaml"}[format]
    text = (root / path).read_text()
    (root / path).write_text(text[: len(text) // 2] + ("\n}]" if format == "yolo" else ""))


@kind("entries listed twice", "voc", status=2, words="is listed twice")
def _(root, format):
    write(root, format)
    for path in (root / "ImageSets" / "Main").iterdir():
        path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")


@kind("labels listed twice", "yolo")
def _(root, format):
    write(root, format)
    path = next(path for path in sorted((root / "labels" / "train").iterdir()) if path.read_text().strip())
    path.write_text(path.read_text().rstrip("\n") + "\n" + path.read_text().splitlines()[0] + "\n")


@kind("ids as text and as fractions", "coco")
def _(root, format):
    write(root, format)

    def change(content: dict) -> None:
        for entry in content["annotations"]:
            entry["image_id"], entry["category_id"] = str(entry["image_id"]), float(entry["category_id"])

    edit_json(root, change)


@kind("annotations twice", "coco")
def _(root, format):
    write(root, format)
    edit_json(root, lambda content: content["images"].append(dict(content["images"][0])))


@kind("polygons without boxes", "coco")
def _(root, format):
    write(root, format)

    def change(content: dict) -> None:
        for entry in content["annotations"]:
            x, y, w, h = entry.pop("bbox")
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    edit_json(root, change)


@kind("images in data/ beside labels.json", "coco", words="its images are in data/")
def _(root, format):
    images = pictures(COUNT)
    write(root, "coco", images)
    shutil.rmtree(root / "annotations")
    for folder in ("train2017", "val2017"):
        shutil.copytree(root / folder, root / "data", dirs_exist_ok=True)
        shutil.rmtree(root / folder)
    (root / "labels.json").write_text(json.dumps(coco_content(images)))


@kind("lists with a foreign prefix", "yolo", words="note")
def _(root, format):
    write(root, format)
    for split in ("train", "val"):
        names = sorted(path.name for path in (root / "images" / split).iterdir())
        (root / f"{split}.txt").write_text("".join(f"data/images/{split}/{name}\n" for name in names))
    (root / "data.yaml").write_text(f"names: {NAMES}\ntrain: train.txt\nval: val.txt\n")


@kind("an absolute root of another machine", "yolo", words="note")
def _(root, format):
    write(root, format)
    (root / "data.yaml").write_text(f"path: /content/set\nnames: {NAMES}\ntrain: images/train\nval: images/val\n")


@kind("key points behind the box", "yolo")
def _(root, format):
    write(root, format)
    with (root / "data.yaml").open("a") as file:
        file.write("\nkpt_shape: [2, 3]\n")
    for path in (root / "labels").rglob("*.txt"):
        path.write_text("".join(f"{line} .9 .9 2 .8 .8 1\n" for line in path.read_text().splitlines() if line))


@kind("polygons and boxes mixed", "yolo")
def _(root, format):
    write(root, format)
    path = next(path for path in sorted((root / "labels" / "train").iterdir()) if path.read_text().strip())
    path.write_text(path.read_text() + "0 .1 .1 .4 .1 .4 .4 .1 .4\n")


# -- the tests -----------------------------------------------------------------------------------------------------------------------------


def given_boxes(root: Path, format: str) -> int:
    """Counted in the files, without the library."""
    if format == "coco":
        files = [path for path in root.rglob("*.json") if not path.name.startswith(".") and "__MACOSX" not in path.parts]
        return sum(len(json.loads(path.read_bytes())["annotations"]) for path in files)
    if format == "voc":
        files = [path for path in root.rglob("*.xml") if not path.name.startswith(".") and "__MACOSX" not in path.parts]
        return sum(len(re.findall(rb"<object>", path.read_bytes().replace(b"\0", b""))) for path in files)
    files = [
        path for path in root.rglob("*.txt") if "labels" in path.parts and not path.name.startswith(".") and "__MACOSX" not in path.parts
    ]
    return sum(len([line for line in path.read_bytes().splitlines() if line.strip(b"\xef\xbb\xbf \r")]) for path in files)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A detector of anything that the variants call their classes, untrained, too small to be slow."""
    torch.manual_seed(0)
    names = ["cat", "dog", "owl", "yes", "no", "off", "1", "2.0", "007", "[red]cat[/red]", "猫"]
    options = {
        "backbone": "resnet10t",
        "num_queries": 5,
        "hidden_dim": 32,
        "heads": 2,
        "ffn_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    built = bq.create_model("detr", classes=len(names), **options)
    folder = tmp_path_factory.mktemp("model") / "model"
    Detector(built, names, range(len(names)), Preprocessing(32)).save(folder)
    return folder


@pytest.fixture
def data(request, tmp_path):
    """The variant's data set; folders can be removed again afterwards."""
    variant: Variant = request.param
    (tmp_path / "data").mkdir()
    yield variant, variant.build(tmp_path / "data")
    for path in [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir() and not p.is_symlink())]:
        path.chmod(0o755)


def said_by(words: list[str], capfd) -> tuple[int, str]:
    status = run(words)
    out, err = capfd.readouterr()
    return status, " ".join((out + err).split())


EACH = pytest.mark.parametrize("data", VARIANTS, indirect=True, ids=[f"{each.kind}-{each.format}" for each in VARIANTS])


@EACH
def test_kept_and_skipped_are_what_was_given(data):
    variant, root = data
    if variant.status:
        with pytest.raises(bq.UserError) as raised:
            validate(read(root))
        assert all(word in str(raised.value) for word in variant.words), raised.value
        return
    given = given_boxes(root, variant.format)
    found, report = validate(read(root))
    kept = sum(len(record.boxes) for split in found.splits.values() for record in split)
    assert (report.boxes_total, report.boxes_kept + report.boxes_skipped) == (given, given)
    assert (kept, report.boxes_skipped) == (given - variant.lost, variant.lost), report.lines
    assert sum(len(split) for split in found.splits.values()) == variant.images
    assert found.format == variant.format


@EACH
def test_check_says_what_it_is(data, capfd, tmp_path, monkeypatch):
    variant, root = data
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    status, said = said_by(["check", str(root), "--image-size", "64", "--out", str(tmp_path / "checked")], capfd)
    assert status == (variant.status or int(variant.kind == "no boxes to train on")), said
    assert all(word in said for word in variant.words), said
    assert not any(word in said for word in (*variant.unsaid, "Traceback")), said
    assert (said.count("error:"), (tmp_path / "checked").exists()) == ((1, False) if status == 2 else (0, True)), said


@EACH
def test_train_opens_it_alike(data, capfd, tmp_path, monkeypatch):
    """Up to the model: data that is refused is refused before anything is written, and what is found is said as by check."""
    import boxquery.training.fit

    def model_of(*_):
        raise bq.UserError("here the model would be built")

    monkeypatch.setattr(boxquery.training.fit, "Run", model_of)
    variant, root = data
    words = ["train", str(root), "--preset", "tiny", "--pretrained", "none", "--device", "cpu", "--out", str(tmp_path / "run")]
    status, said = said_by(words, capfd)
    assert status == 2
    assert ("here the model would be built" in said) is not bool(variant.status or variant.untrained), said
    assert all(word in said for word in variant.words), said
    assert variant.untrained in said, said
    assert not any(word in said for word in (*variant.unsaid, "Traceback")), said
    assert not (tmp_path / "run" / "config.yaml").exists()


SPOKEN = [each for each in VARIANTS if each.words and not each.untrained]


@pytest.mark.parametrize("data", SPOKEN, indirect=True, ids=[f"{each.kind}-{each.format}" for each in SPOKEN])
def test_evaluate_opens_it_alike(data, model, capfd):
    variant, root = data
    status, said = said_by(["evaluate", str(model), str(root), "--device", "cpu", "--json"], capfd)
    assert status == variant.status, said
    if status:
        assert all(word in said for word in variant.words), said


SHOWN = [
    each
    for each in VARIANTS
    if "name" in each.kind or each.kind.startswith(("spaces", "dots", "stem", "hidden", "links inside", "an image"))
]


@pytest.mark.parametrize("data", SHOWN, indirect=True, ids=[f"{each.kind}-{each.format}" for each in SHOWN])
def test_predict_takes_every_image_once(data, model, capfd, tmp_path):
    _, root = data
    photos = [path for path in image_files(root) if not path.name.startswith("._") and "__MACOSX" not in path.parts]
    words = ["predict", str(model), str(root), "--out", str(tmp_path / "found"), "--threshold", "0", "--device", "cpu", "--json"]
    status = run(words)
    out, err = capfd.readouterr()
    assert status == 0, err
    values = json.loads(out)
    assert values["images"] + values["unreadable"] == len(photos)
    rows = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert len({row["file_name"] for row in rows}) == values["images"]


def test_there_are_enough_of_them():
    assert len(VARIANTS) >= 80
    assert len({(each.kind, each.format) for each in VARIANTS}) == len(VARIANTS)
