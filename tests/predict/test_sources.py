"""Which images are looked at, and that what is written for one is never written over by another."""

from pathlib import Path

import pytest
from PIL import Image

from boxquery.errors import UserError
from boxquery.predict.sources import find_sources


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pictures(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)


def found(*sources: str) -> list[tuple[str, str, int | str]]:
    return [(image.name, image.stem, image.id) for image in find_sources(sources)[0]]


def test_one_folder():
    pictures("photos/a.png", "photos/b/0017.jpg")
    assert found("photos") == [("a.png", "a", "a"), ("b/0017.jpg", "b/0017", 17)]
    assert find_sources(["photos"])[1] == []


@pytest.mark.parametrize(
    ("names", "sources"),
    [
        (["cam1/frame.png", "cam2/frame.png"], ["cam1/frame.png", "cam2/frame.png"]),
        (["cam1/frame.png", "cam2/frame.png"], ["cam1", "cam2"]),
        (["cam1/frame.png", "cam2/frame.png"], ["cam*/frame.png"]),
        (["cam1/frame.png", "cam2/frame.png"], ["cam*"]),
        (["cam1/frame.png", "cam2/frame.png"], ["."]),
        (["a/b/frame.png", "a/frame.png"], ["a/b", "a/frame.png"]),
        (["a.png", "a.jpg"], ["."]),
        (["1.png", "001.png", "1.jpg"], ["."]),
        (["x/1.png", "y/001.png"], ["x", "y"]),
        (["a.png", "a.png.jpg"], ["."]),
        (["A.png", "a.jpg"], ["."]),
        (["x.png", "x.jpg/a.png", "x.jpg/a.jpg"], ["."]),
        (["b/" + "long" * 60 + "1.png", "b/" + "long" * 60 + "2.png"], ["b"]),
    ],
)
def test_nothing_shares_a_name_or_an_id(names, sources):
    pictures(*names)
    images, _ = find_sources(sources)
    assert len(images) == len(names)
    for kind in ("name", "id"):
        assert len({getattr(image, kind) for image in images}) == len(names)
    stems = {image.stem.casefold() for image in images}
    assert len(stems) == len(names)
    for image in images:  # all can be files of one folder
        Path("out", f"{image.stem}.jpg").parent.mkdir(parents=True, exist_ok=True)
        Path("out", f"{image.stem}.jpg").touch(exist_ok=False)


def test_a_clash_of_names_is_said():
    pictures("cam1/frame.png", "cam2/frame.png", "1.png", "01.png")
    assert find_sources(["cam1", "cam2"])[1] == [
        "image_id is the path without its ending, since names alone do not tell images apart: cam1/frame.png, cam2/frame.png"
    ]
    assert "1.png, 01.png" in find_sources(["1.png", "01.png"])[1][0]


def test_an_image_that_is_named_twice_is_looked_at_once():
    pictures("photos/a.png", "photos/b.png")
    images, notes = find_sources(["photos/b.png", "photos", "./photos/../photos/a.png"])
    assert [image.name for image in images] == ["b.png", "a.png"]
    assert notes == ["2 images named more than once, looked at once: photos/b.png, photos/../photos/a.png"]


def test_what_is_no_image_is_counted():
    pictures("photos/a.png")
    pictures("photos/found/pictures/a.jpg", "photos/found/crops/cat/a-0.jpg", "photos/.thumbnails/a.png", "photos/__MACOSX/a.png")
    for name in ("notes.txt", "more.txt", "film.mp3", "._a.png", "Thumbs.db", "found/predictions.json"):
        Path("photos", name).touch()
    images, notes = find_sources(["photos"])
    assert [image.name for image in images] == ["a.png"]
    assert notes == [
        "skipped files that are no images or videos: 2 .txt, 1 .mp3, "
        "1 crops/ of an earlier result, 1 pictures/ of an earlier result, 1 .json"
    ]
    assert [image.name for image in find_sources(["photos/found/pictures"])[0]] == ["a.jpg"]
    Path("photos/a.png").unlink()
    with pytest.raises(UserError, match=r"photos: no image or video there .* there are 2 \.txt, 1 \.mp3"):
        find_sources(["photos"])


def test_numbers_that_json_readers_would_round_stay_text():
    pictures("12345678901234567890.png", "7.png")
    assert [id_ for _, _, id_ in found(".")] == ["12345678901234567890", 7]


@pytest.mark.parametrize("address", ["http://[::1/x.jpg", "rtsp://[bad", "https://[1.2]/x.mp4"])
def test_what_is_no_address_is_an_error_of_one_line(address, tmp_path, capsys):
    from boxquery.cli import run

    (tmp_path / "model").mkdir()
    assert run(["predict", str(tmp_path / "model"), address, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert "no address" in said
