"""A folder that grows: every file once, when it is complete."""

import os
from pathlib import Path

import pytest
from PIL import Image

from boxquery.errors import UserError
from boxquery.predict.watch import WatchedFolders


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(name: str, old: bool = True) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(name)
    if old:
        os.utime(name, (1, 1))


def watch(monkeypatch, *steps) -> list[tuple[str, str, int | str]]:
    """What comes while the steps happen, one at each look; then it is interrupted."""
    waiting, come = list(steps), []

    def sleep(_seconds: float) -> None:
        if not waiting:
            raise KeyboardInterrupt
        waiting.pop(0)()

    monkeypatch.setattr("boxquery.predict.watch.time.sleep", sleep)
    sources = iter(WatchedFolders(["in"], Path("in/out")))
    with pytest.raises(KeyboardInterrupt):
        come.extend((source.name, source.stem, source.id) for source in sources)
    return come


def test_what_is_there_and_what_comes(monkeypatch):
    picture("in/a.png")
    picture("in/b/7.png")
    picture("in/out/pictures/a.jpg")
    come = watch(monkeypatch, lambda: picture("in/c.png"), lambda: picture("in/b/a.png"), lambda: picture("in/a.jpg"))
    assert come == [("a.png", "a", "a"), ("b/7.png", "b/7", 7), ("c.png", "c", "c"), ("b/a.png", "b/a", "b/a"), ("a.jpg", "a.jpg", "a.jpg")]


def test_a_file_that_grows_is_waited_for(monkeypatch):
    picture("in/a.png", old=False)

    def grow() -> None:
        with open("in/a.png", "ab") as file:
            file.write(bytes(9))

    Path("in/notes.txt").touch()
    assert watch(monkeypatch, grow, grow) == []
    assert watch(monkeypatch, grow, lambda: None) == [("a.png", "a", "a")]
    assert watch(monkeypatch, lambda: os.remove("in/a.png")) == []


def test_only_folders_are_watched():
    with pytest.raises(UserError, match=r"--watch: a.png is no folder"):
        WatchedFolders(["a.png"], Path("out"))
