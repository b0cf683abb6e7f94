"""An image is found by its exact path, or by the one file in the data folder that its name can mean; anything else is named."""

import os
import unicodedata

import pytest
from PIL import Image

from boxquery import UserError
from boxquery.data.find import ImageFinder
from boxquery.data.folder import Folder, split_name
from boxquery.data.raw import RawDataset, RawImage


def found(root, names, files, base=".", split=""):
    """The paths relative to ``root`` that names lead to (None: none), and what is said of them."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")
    finder, raw = ImageFinder(Folder(root)), RawDataset("coco", [], [], {"": []})
    for i, name in enumerate(names):
        raw.splits[""].append(RawImage(i, finder.find(root / base, name, f"image {i}", split), f"image {i}"))
    finder.finish(raw)
    paths = [None if image.fault else os.path.relpath(image.path, root) for image in raw.splits[""]]
    assert all(image.path.is_file() for image in raw.splits[""] if not image.fault)
    return paths, raw.notes, [str(image.fault) for image in raw.splits[""] if image.fault]


SPELLINGS = {  # name in the annotations, file on disk, words of the note
    "exact": ("images/a0.png", "images/a0.png", None),
    "back slashes": ("images\\a0.png", "images/a0.png", None),
    "other folder": ("images/1/a0.png", "images/a0.png", "file name alone"),
    "deeper": ("a0.png", "all/of/them/a0.png", "another folder"),
    "upwards": ("..\\..\\media\\upload\\4\\a0.png", "images/a0.png", "file name alone"),
    "dead absolute": ("/content/drive/My Drive/images/a0.png", "images/a0.png", "end of their path"),
    "home": ("~/images/a0.png", "images/a0.png", "images/a0.png"),
    "drive": ("C:\\Users\\me\\a0.png", "images/a0.png", "file name alone"),
    "drive without root": ("D:a0/b0.png", "images/b0.png", "file name alone"),
    "share": ("\\\\server\\share\\a0.png", "images/a0.png", "file name alone"),
    "URL": ("http://host:8080/data/upload/3/a0.png", "images/a0.png", "file name alone"),
    "signed URL": ("https://host/b/a0.png?X-Signature=3f&b=c/d.png#x", "images/a0.png", "file name alone"),
    "query": ("/data/local-files/?d=mine/a0.png", "mine/a0.png", "a0.png"),
    "encoded query": ("/data/local-files/?d=mine%2Fmy%20a0.png", "mine/my a0.png", "percent-encoding"),
    "bucket": ("s3://bucket/a0.png", "images/a0.png", "file name alone"),
    "file URL": ("file:///C:/x/a0.png", "images/a0.png", "file name alone"),
    "percent": ("my%20a0%20(1).png", "images/my a0 (1).png", "percent-encoding"),
    "percent twice": ("my%2520a0.png", "my a0.png", "percent-encoding"),
    "percent on disk": ("my a0.png", "my%20a0.png", "percent-encoding"),
    "encoded slashes": ("images%2Fa0.png", "images/a0.png", "percent-encoding"),
    "decomposed": (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.png"), "Unicode form"),
    "composed": (unicodedata.normalize("NFC", "ünder.png"), unicodedata.normalize("NFD", "ünder.png"), "Unicode form"),
    "upper case": ("A0.PNG", "a0.png", "another case"),
    "folder in upper case": ("Images/a0.png", "images/a0.png", "another folder"),
    "no ending": ("a0", "images/a0.png", "another ending"),
    "other ending": ("a0.JPG", "a0.png", "another ending"),
    "dots": ("v1.2", "v1.2.png", "another ending"),
    "spaces": ("my a0 (1).png", "my_a0_(1).png", "spaces and underscores"),
    "upload prefix in the name": ("3f2a1bcd-a0.png", "images/a0.png", "a tool added"),
    "upload prefix on disk": ("a0.png", "images/3f2a1bcd-a0.png", "a tool added"),
    "Roboflow's hash on disk": ("a0.png", "images/a0_png.rf.0123456789abcdef.png", "a tool added"),
    "white space around": (" a0.png\r", "a0.png", "a0.png"),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_one_file_that_a_name_can_mean(tmp_path, kind):
    name, file, words = SPELLINGS[kind]
    paths, notes, faults = found(tmp_path / "data", [name], [file, "images/other.png"])
    assert (paths, faults) == ([file], [])
    assert len(notes) == (words is not None)
    assert words is None or words in notes[0]


def test_one_note_per_kind(tmp_path):
    names = ["x/a0.png", "x/a1.png", "B0.png", "x/A2.png"]
    paths, notes, faults = found(tmp_path, names, ["i/a0.png", "i/a1.png", "i/b0.png", "i/a2.png"])
    assert paths == ["i/a0.png", "i/a1.png", "i/b0.png", "i/a2.png"]
    assert faults == []
    assert notes == [
        "2 images are found by their file name alone: 'x/a0.png' is i/a0.png",
        "1 image is found in another case: 'B0.png' is i/b0.png",
        "1 image is found by their file name alone, in another case: 'x/A2.png' is i/a2.png",
    ]


def test_the_longest_end_of_the_path_decides(tmp_path):
    files = ["cam1/a.png", "cam2/a.png", "cam2/left/a.png"]
    assert found(tmp_path, ["/x/cam1/a.png", "/x/cam2/a.png", "/y/left/a.png"], files)[0] == files
    paths, _, faults = found(tmp_path, ["/x/cam3/a.png"], files)
    assert paths == [None]
    assert faults == ["no such file ('/x/cam3/a.png'; 3 files could be meant (cam1/a.png and cam2/a.png))"]


def test_two_names_of_one_file(tmp_path):
    paths, notes, faults = found(tmp_path, ["upload/4/a.png", "upload/5/a.png", "b.png", "B.PNG"], ["a.png", "b.png"])
    assert paths == [None, None, "b.png", None]
    assert notes == []
    assert "a.png would fit, but 'upload/5/a.png' means it too" in faults[0]
    assert "an exact path means it too" in faults[2]


def test_images_of_another_split_are_not_taken(tmp_path):
    files = ["train/a.png", "train/b.png", "val/b.png"]
    assert found(tmp_path, ["a.png"], files, split="val")[2] == ["no such file ('a.png'; train/a.png is of another split)"]
    assert found(tmp_path, ["/x/val/a.png"], files)[0] == [None]
    assert found(tmp_path, ["a.jpg"], files, base="val")[0] == [None]
    assert found(tmp_path, ["/x/b.png", "/y/valid/b.png"], files, split="val")[0] == [None, None]  # both are the same file
    assert found(tmp_path, ["/testing/me/b.png"], files, split="val")[0] == ["val/b.png"]
    assert found(tmp_path, ["train/a.png"], files, split="val")[0] == ["train/a.png"]  # exactly


def test_what_is_not_there_is_named_in_full(tmp_path):
    _, _, faults = found(tmp_path, ["x/y/a.png", ""], ["b.png", "._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a.png"], base="images")
    assert faults[0] == "no such file ('x/y/a.png'; looked in images/, and for 'a.png' in all folders of the data)"
    assert "no such file" in faults[1]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "C:\\x.png", "a\0b.png", "../../set/../x.png"])
def test_what_leaves_the_folder_is_fatal(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"leaves the data folder|not a path inside"):
        found(tmp_path / "set", ["b.png", name], ["b.png"])


def test_of_a_dead_folder_some_may_be_missing(tmp_path):
    paths, _, faults = found(tmp_path / "set", ["/colab/gone.png", "/colab/b.png"], ["b.png"])
    assert paths == [None, "b.png"]
    assert "no such file ('/colab/gone.png'" in faults[0]


def test_links_out_are_never_followed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "set" / "a.png")
    assert found(tmp_path / "set", ["x/a.png"], ["b.png"])[0] == [None]
    with pytest.raises(UserError, match="link that leaves"):
        found(tmp_path / "set", ["a.png"], ["b.png"])


@pytest.mark.parametrize(
    ("text", "split"),
    [("Train", "train"), ("instances_train2017", "train"), ("trn", "train"), ("TrainImages", "train"), ("VALID", "val"), ("dev", "val"),
     ("valset", "val"), ("eval", "val"), ("testing", "test"), ("my-test-dev2017", "test"), ("strain", None), ("contest", None),
     ("values", None), ("device", None), ("all", None)],
)  # fmt: skip
def test_words_for_splits(text, split):
    assert split_name(text) == split
