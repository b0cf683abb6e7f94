"""Without a cluster: which images there are at an address, and shards that are read back."""

import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from boxquery.errors import UserError
from boxquery.predict.sources import find_images
from boxquery.result import Result
from boxquery.scale.shards import Shards, line_of, result_of, skipped_line
from boxquery.scale.sources import find_anywhere, read_from

pytest.importorskip("pyarrow")

NAMES = ("a.jpg", "b.PNG", "notes.txt", "night/c.jpg", "night/.d.jpg", "night/deep/e #1.jpg")


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6 + number)).save(path, "PNG") if name != "notes.txt" else path.write_text("notes")
    return tmp_path / "photos"


class Bucket(http.server.BaseHTTPRequestHandler):
    """What of S3 is needed to list a bucket and to read from it."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        _, _, key = unquote(url.path).strip("/").partition("/")
        if not key and "list-type" in query:
            self._send(self._listed(query.get("prefix", [""])[0], query.get("delimiter", [""])[0]).encode())
        elif key in self.objects:
            self._send(self.objects[key])
        else:
            self._send(b"", 404)

    def do_HEAD(self) -> None:
        _, _, key = unquote(urlsplit(self.path).path).strip("/").partition("/")
        known = not key or key in self.objects
        self._send(self.objects.get(key, b""), 200 if known else 404)

    def _listed(self, prefix: str, delimiter: str) -> str:
        names = sorted(name for name in self.objects if name.startswith(prefix))
        inner = sorted({prefix + name[len(prefix) :].partition("/")[0] + "/" for name in names if "/" in name[len(prefix) :]})
        shown = [name for name in names if not delimiter or "/" not in name[len(prefix) :]]
        files = "".join(f"<Contents><Key>{escape(name)}</Key><Size>{len(self.objects[name])}</Size></Contents>" for name in shown)
        folders = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in inner if delimiter)
        return f"<ListBucketResult><KeyCount>{len(shown)}</KeyCount><IsTruncated>false</IsTruncated>{files}{folders}</ListBucketResult>"

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *given) -> None:
        pass


@pytest.fixture
def bucket(folder, monkeypatch):
    monkeypatch.setattr(Bucket, "objects", {f"photos/{name}": (folder / name).read_bytes() for name in NAMES})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"s3://key:secret@bucket/photos?scheme=http&endpoint_override=127.0.0.1:{server.server_port}&region=us-east-1"
    server.shutdown()
    server.server_close()


def read(system: str, images, tmp_path) -> list[bytes]:
    place = tmp_path / "fetched"
    place.mkdir(exist_ok=True)
    found = [file.read_bytes() for _, file in read_from(system, [str(image.path) for image in images], place)]
    assert system == "" or not list(place.iterdir())
    return found


@pytest.mark.parametrize("scheme", ["file://{}", "fsspec+local://{}", "bucket"])
def test_an_address_is_what_its_folder_is(scheme, folder, tmp_path, request):
    expected, _ = find_images([str(folder)])
    address = request.getfixturevalue("bucket") if scheme == "bucket" else scheme.format(folder)
    images, system, notes = find_anywhere([address])
    assert [(image.name, image.id) for image in images] == [(image.name, image.id) for image in expected]
    assert "1 .txt" in notes[0]
    assert read(system, images, tmp_path) == [(folder / image.name).read_bytes() for image in expected]
    assert read("", expected, tmp_path) == read(system, images, tmp_path)


def test_globs_single_files_and_what_is_not_there(folder, tmp_path):
    assert [image.name for image in find_anywhere([f"file://{folder}/night/*.jpg"])[0]] == ["c.jpg"]
    assert [image.name for image in find_anywhere([f"file://{folder}/a.jpg", f"file://{folder}/night"])[0]] == [
        "a.jpg",
        "night/c.jpg",
        "night/deep/e #1.jpg",
    ]
    for sources, message in (
        ([f"file://{folder}/nothing"], "nothing there"),
        ([f"file://{folder}", str(folder)], "on one file system"),
        (["nosuch://place"], "cannot be listed"),
        ([f"file://{folder}/notes.txt"], "no image"),
    ):
        with pytest.raises(UserError, match=message):
            find_anywhere(sources)
    with pytest.raises(UserError, match="has no such folder; share it"):
        list(read_from("", ["/nowhere/a.jpg"], tmp_path))
    gone, here = read_from(f"file://{folder}", [f"{folder}/gone.jpg", f"{folder}/a.jpg"], tmp_path)
    assert [path.rpartition("/")[2] for path, _ in (gone, here)] == ["gone.jpg", "a.jpg"]


def make_result(path: str, number: int) -> Result:
    rng = np.random.default_rng(number)
    boxes = np.float32(rng.uniform(0, 300, (number, 4)))
    labels = rng.integers(0, 3, number)
    return Result(boxes, np.float32(rng.random(number)), labels, [f"é{i}" for i in labels], [7 * int(i) for i in labels], (480, 640), path)


def test_shards_keep_every_bit_and_are_continued(tmp_path):
    results = [make_result(f"photos/{number}.jpg", number) for number in range(4)]
    lines = [line_of(str(result.path), result, ["with several frames"]) + "\n" for result in results]
    shards = Shards(tmp_path, {"threshold": 0.5})
    shards.begin()
    shards.write(lines[2] + lines[0])
    shards.write(lines[3] + skipped_line("photos/broken.jpg", "broken") + "\n")

    again = Shards(tmp_path, {"threshold": 0.5})
    assert sorted(again.shard_of) == sorted(["photos/0.jpg", "photos/2.jpg", "photos/3.jpg", "photos/broken.jpg"])
    again.write(lines[1])
    *found, broken = again.read([str(result.path) for result in results] + ["photos/broken.jpg"])
    assert broken == {"path": "photos/broken.jpg", "skipped": "broken"}
    for line, result in zip(found, results, strict=True):
        for name in ("boxes", "scores", "labels"):
            ours, theirs = getattr(result_of(line), name), getattr(result, name)
            assert ours.dtype == theirs.dtype
            assert ours.tobytes() == theirs.tobytes()
        assert (result_of(line).names, result_of(line).ids, result_of(line).size) == (result.names, result.ids, result.size)
    again.finish()
    index = json.loads((tmp_path / "shards/index.json").read_text())
    assert index["complete"]
    assert [shard["images"] for shard in index["shards"]] == [2, 2, 1]

    with pytest.raises(UserError, match=r"was begun with threshold=0.5, not 0.3"):
        Shards(tmp_path, {"threshold": 0.3})
    file = tmp_path / "shards/predictions-00001.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    damaged = Shards(tmp_path, {"threshold": 0.5})
    assert damaged.damaged == [file.name]
    damaged.begin()
    assert not file.exists()
    assert "photos/3.jpg" not in damaged.shard_of
