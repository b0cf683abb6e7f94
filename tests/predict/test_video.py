"""Videos, cameras and streams as sources: every frame once, upright, in time; what ends too early is said and kept."""

import csv
import json
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import av
import numpy as np
import pytest
from PIL import Image

from boxquery.cli import run
from boxquery.data import video
from boxquery.data.video import Video, ascii_address, camera_of, is_stream, without_password
from boxquery.data.web import read_web_image
from boxquery.errors import UserError
from boxquery.predict import video_output
from boxquery.predict.sources import find_sources
from boxquery.predict.video_output import VideoWriter

from .films import FRAMES, cut, write_film


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def left_edges(frames) -> list[int]:
    return [int((np.asarray(frame.image)[32, :, 0] > 140).argmax()) for frame in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm"])
def test_every_frame_comes_once_in_order(name):
    codec = {"avi": "mpeg4", "webm": "libvpx"}.get(name[2:], "libx264")
    film = Video(write_film(Path(name), codec=codec))
    assert film.total == FRAMES
    frames = list(film)
    assert [frame.number for frame in frames] == list(range(FRAMES))
    assert np.abs(np.array(left_edges(frames)) - 2 * np.arange(FRAMES)).max() <= 1
    assert [round(float(frame.time), 3) for frame in frames] == [i / 10 for i in range(FRAMES)]
    assert film.remark == ""


def test_every_nth_frame():
    film = Video(write_film(Path("a.mp4")), every=6)
    assert film.total == 4
    assert [(frame.number, float(frame.time)) for frame in film] == [(0, 0), (6, 0.6), (12, 1.2), (18, 1.8)]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_frames_are_turned_upright(degrees):
    """As a player shows it: ``degrees`` counterclockwise."""
    plain, turned = (next(iter(Video(write_film(Path(f"{turn}.mp4"), turned=turn)))).image for turn in (0, degrees))
    assert np.abs(np.asarray(turned).astype(int) - np.asarray(plain.rotate(degrees))).mean() < 3


def test_uneven_time_stamps_are_kept():
    stamps = [0, 5, 6, 30, 90]
    film = write_film(Path("a.mkv"), frames=5, stamps=stamps)
    assert [round(float(frame.time), 3) for frame in Video(film)] == [0, 0.05, 0.06, 0.3, 0.9]


@pytest.mark.parametrize(
    ("name", "said"), [("a.mp4", "of the 20 frames that its header states"), ("a.mkv", "of the 2.0 seconds that its header states")]
)
def test_a_video_that_is_cut_short_gives_what_it_has(name, said):
    film = Video(cut(write_film(Path(name), noise=40)))
    assert 4 < len(list(film)) < FRAMES
    assert said in film.remark
    assert "what was read is used" in film.remark


def test_what_is_no_video_is_refused():
    Path("text.mp4").write_text("no film")
    with pytest.raises(UserError, match=r"text.mp4: cannot be opened .* it is no video, or is cut short"):
        Video(Path("text.mp4"))
    with pytest.raises(UserError, match=r"none.mp4: cannot be opened \(No such file or directory\)"):
        Video(Path("none.mp4"))
    with pytest.raises(UserError, match=r"short.mp4: no frame can be decoded"):
        list(Video(cut(write_film(Path("short.mp4")), 0.5)))


def test_frames_keep_their_numbers_after_damaged_ones():
    content = bytearray(write_film(Path("film.avi"), codec="mjpeg").read_bytes())
    starts = [place for place in range(len(content)) if content[place : place + 3] == b"\xff\xd8\xff"]
    assert len(starts) == FRAMES
    for number in (6, 7):
        content[starts[number] : starts[number + 1] - 8] = bytes(starts[number + 1] - 8 - starts[number])
    Path("film.avi").write_bytes(content)
    film = Video(Path("film.avi"))
    frames = list(film)
    assert [frame.number for frame in frames] == [*range(6), *range(8, FRAMES)]
    assert left_edges(frames) == [2 * frame.number for frame in frames]
    assert film.remark.startswith("18 frames could be read, and 2 damaged parts left out")


def test_a_file_with_sound_alone_is_named():
    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"^sound.mp4: has sound alone, no pictures; name a video$"):
        Video(Path("sound.mp4"))


@pytest.mark.parametrize(
    ("word", "camera"),
    [("camera", "0"), ("camera:1", "1"), ("camera:/dev/video2", "/dev/video2"), ("webcam", "0"), ("/dev/video3", "3"), ("0", "0"),
     ("cameras", None), ("photo.jpg", None), ("2024", None)],
)  # fmt: skip
def test_words_for_a_camera(word, camera):
    assert camera_of(word) == camera


def test_addresses():
    assert is_stream("rtsp://10.0.0.5/live")
    assert is_stream("https://example.org/a.jpg")
    assert not is_stream("photos/http.jpg")
    assert without_password("rtsp://me:secret@10.0.0.5:554/live?x=1") == "rtsp://10.0.0.5:554/live?x=1"


@pytest.fixture
def camera(monkeypatch):
    """A camera that shows FFmpeg's test picture for ten frames, and is then pulled out."""
    source = "testsrc=size=64x64:rate=25:duration=0.4"
    monkeypatch.setattr(video, "_device", lambda which: ("lavfi", source, {}))


def test_a_camera_that_goes_ends_with_what_was_seen(camera):
    film = Video("camera:0")
    assert (film.live, film.total) == (True, None)
    assert len(list(film)) == 10
    assert film.remark == "ended after 10 frames; what was found until then is kept"


def test_a_camera_that_is_not_there():
    with pytest.raises(UserError, match=r"camera:97: cannot be opened \(.*\); check that it is connected"):
        Video("camera:97")


class Server(ThreadingHTTPServer):
    """The working folder on the web; what is called half is cut off in the middle of sending."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = Path(unquote(self.path.lstrip("/")))
            if not path.is_file():
                return self.send_error(404)
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "image/png" if path.suffix in (".png", "") else "video/mp4")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if "half" in path.name else content)

        def log_message(self, *_):
            pass


@pytest.fixture
def web(here):
    with Server(("127.0.0.1", 0), Server.Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_in_other_letters(web):
    assert ascii_address("rtsp://me:gehe%20im@b\xfccher.example:554/stra\xdfe 1?x=\xe9") == (
        "rtsp://me:gehe%20im@xn--bcher-kva.example:554/stra%C3%9Fe%201?x=%C3%A9"
    )
    assert ascii_address("http://[::1]:80/\xe9") == "http://[::1]:80/%C3%A9"
    with pytest.raises(UserError, match="no address"):
        ascii_address("http://" + "\xfc" * 70 + ".example/")
    Image.new("RGB", (8, 6)).save("a caf\xe9.png")
    assert read_web_image(f"{web}/a caf\xe9.png").size == (8, 6)


def test_sources_on_the_web(web, monkeypatch):
    Image.new("RGB", (8, 8)).save("a.png")
    Path("picture").write_bytes(Path("a.png").read_bytes())
    sources, _ = find_sources([f"{web}/a.png", f"{web}/picture", f"{web}/film.mp4", "rtsp://me:secret@10.0.0.5/live", "camera"])
    assert [source.kind for source in sources] == ["web image", "web image", "live", "live", "live"]
    assert sources[3].name == "rtsp://10.0.0.5/live"
    assert sources[3].stem == "rtsp-10.0.0"  # file names, without a password
    assert len({source.stem for source in sources}) == len({source.id for source in sources}) == 5
    with pytest.raises(UserError, match="HTTP Error 404"):
        find_sources([f"{web}/nothing"])
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rtsp://10.0.0.5/live: .* need the package av; pip install av"):
        find_sources(["rtsp://me:secret@10.0.0.5/live"])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    import boxquery as bq
    from boxquery.data.preprocessing import Preprocessing

    made = bq.create_model("detr", classes=2, preset="tiny", backbone="resnet10t", num_queries=3, hidden_dim=32, heads=2)
    return str(bq.Detector(made, ["cat", "owl"], [1, 2], Preprocessing(32), 0.0).save(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def predict(model, capsys):
    """Runs the command; its status, its JSON, its stderr."""

    def predict(*words: str) -> tuple[int, dict, str]:
        status = run(["predict", model, *words, "--json", "--device", "cpu"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else {}, captured.err

    return predict


def test_a_video_becomes_a_video_and_rows_with_their_time(predict):
    write_film(Path("a.mp4"))
    assert predict("a.mp4", "--out", "out", "--save", "video,json,csv,xml", "--batch-size", "4")[0] == 0
    with av.open("out/videos/a.mp4") as written:
        stream = written.streams.video[0]
        frames = list(written.decode(stream))
        assert (stream.average_rate, stream.codec_context.name, stream.width, stream.height) == (10, "h264", 64, 64)
        assert [float(frame.pts * stream.time_base) for frame in frames] == [i / 10 for i in range(FRAMES)]
    rows = json.loads(Path("out/predictions.json").read_text())
    assert {(row["image_id"], row["file_name"], row["frame"], row["time"]) for row in rows} == {
        (f"a#{i}", "a.mp4", i, i / 10) for i in range(FRAMES)
    }
    with Path("out/predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 3 * FRAMES
    assert (table[-1]["frame"], table[-1]["time"], table[-1]["track_id"]) == ("19", "1.9", "")
    assert sorted(path.name for path in Path("out/annotations/a").iterdir())[-1] == "000019.xml"


def test_in_python(model, web):
    import boxquery as bq

    detector = bq.load(model)
    write_film(Path("a.mp4"), noise=40)
    results = list(detector.predict("a.mp4", every=6, batch_size=3))
    assert [(result.frame, result.time) for result in results] == [(0, 0), (6, 0.6), (12, 1.2), (18, 1.8)]
    (image,) = detector.predict([next(iter(Video(Path("a.mp4")))).image])
    assert np.allclose(image.boxes, results[0].boxes, atol=1e-3)
    cut(Path("a.mp4"))
    with pytest.warns(UserWarning, match=r"a.mp4: .* that its header states could be read"):
        assert 4 < len(list(detector.predict(Path("a.mp4")))) < FRAMES
    Image.new("RGB", (40, 30)).save("b.png")
    assert detector.predict(f"{web}/b.png").size == (30, 40)
    with pytest.raises(UserError, match="HTTP Error 404"):
        detector.predict(f"{web}/c.png")


def test_what_is_written_by_default(predict):
    Image.new("RGB", (64, 64)).save("b.png")
    write_film(Path("a.mp4"), frames=2)
    status, told, _ = predict("a.mp4", "b.png")
    assert (status, told["images"], told["frames"]) == (0, 1, 2)
    files = sorted(str(path) for path in Path("predictions").rglob("*") if path.is_file())
    assert files == ["predictions/pictures/b.jpg", "predictions/predictions.json", "predictions/videos/a.mp4"]
    assert predict("a.mp4", "--save", "pictures", "--every", "2", "--out", "frames")[0] == 0
    assert [str(path) for path in Path("frames").rglob("*.jpg")] == ["frames/pictures/a/000000.jpg"]
    status, _, err = predict("b.png", "--save", "video", "--out", "none")
    assert (status, "none of the sources is a video" in err, Path("none").exists()) == (2, True, False)


def test_uneven_times_survive(predict):
    write_film(Path("a.mkv"), frames=5, stamps=[0, 5, 6, 30, 90])
    assert predict("a.mkv", "--out", "out")[0] == 0
    with av.open("out/videos/a.mp4") as written:
        assert [round(frame.time, 3) for frame in written.decode(video=0)] == [0, 0.05, 0.06, 0.3, 0.9]


def test_a_video_of_odd_size_with_a_clock_that_stands_still():
    image = Image.new("RGB", (65, 49), (200, 30, 30))
    with VideoWriter(Path("a.mp4"), Fraction(10), Fraction(1, 1000)) as writer:
        for time in (0.0, 0.1, 0.1, 0.05, 0.3):
            writer.add(image, Fraction(time).limit_denominator(1000))
        writer.add(image.resize((80, 80)), Fraction(2, 5))  # as a stream may change
    with av.open("a.mp4") as written:
        frames = list(written.decode(video=0))
    assert [round(frame.time, 3) for frame in frames] == [0, 0.1, 0.101, 0.102, 0.3, 0.4]
    assert {(frame.width, frame.height) for frame in frames} == {(66, 50)}
    assert np.abs(np.asarray(frames[0].to_image())[:49, :64] - np.array([200, 30, 30])).mean() < 6


def test_without_h264_it_is_mpeg4(monkeypatch):
    monkeypatch.setattr(video_output, "_CODECS", {"no such codec": {}, "mpeg4": {"qscale": "3"}})
    with VideoWriter(Path("a.mp4"), Fraction(30_000, 1001), Fraction(1, 90_000)) as writer:
        for number in range(5):
            writer.add(Image.new("RGB", (64, 64)), number * Fraction(1001, 30_000))
    with av.open("a.mp4") as written:
        assert written.streams.video[0].codec_context.name == "mpeg4"
        assert [round(frame.time, 4) for frame in written.decode(video=0)] == [round(i * 1001 / 30_000, 4) for i in range(5)]


def test_a_video_that_ends_in_the_middle(predict):
    cut(write_film(Path("a.mp4"), noise=40))
    status, told, err = predict("a.mp4", "--out", "out")
    assert (status, told["unreadable"]) == (0, 0)
    assert "warning: a.mp4: " in err
    assert "of the 20 frames that its header states could be read" in err
    with av.open("out/videos/a.mp4") as written:
        assert sum(1 for _ in written.decode(video=0)) == told["frames"] > 4


def test_a_whole_video_on_the_web_ends_without_a_warning(predict, web):
    write_film(Path("a.mp4"))
    status, told, err = predict(f"{web}/a.mp4", "--out", "out")
    assert (status, told["frames"], "warning" in err) == (0, FRAMES, False)


def test_a_stream_that_breaks_off_and_one_that_is_not_there(predict, web):
    write_film(Path("half.mp4"), noise=40)
    status, told, err = predict(f"{web}/half.mp4", "--out", "out")
    assert (status, told["frames"] > 4) == (0, True)
    assert f"{web}/half.mp4: {told['frames']} of the 20 frames that its header states could be read" in err
    status, _, err = predict("rtsp://127.0.0.1:9/live", "--out", "none")
    assert status == 2
    assert "rtsp://127.0.0.1:9/live: cannot be opened (Connection refused); check the address and the network" in err.splitlines()[-1]
    assert not Path("none").exists()


def test_one_source_that_cannot_be_read_is_named_once(predict):
    Path("a.mp4").write_text("no film")
    status, _, err = predict("a.mp4", "--out", "out")
    assert status == 2
    assert err.count("cannot be opened") == 1


def test_a_video_that_cannot_be_read_among_images(predict):
    Image.new("RGB", (64, 64)).save("b.png")
    Path("a.mp4").write_text("no film")
    status, told, err = predict(".", "--out", "out")
    assert (status, told["images"], told["unreadable"]) == (0, 1, 1)
    assert "skipped: a.mp4: cannot be opened" in err


def test_a_camera_on_the_command_line(predict, camera):
    status, told, err = predict("camera:1", "--out", "out", "--every", "3", "--save", "csv,video")
    assert (status, told["frames"]) == (0, 4)
    assert "warning: camera:1: ended after 10 frames; what was found until then is kept" in err
    assert Path("out/videos/camera-1.mp4").is_file()


def test_a_watched_folder_on_the_command_line(predict, monkeypatch):
    Path("in").mkdir()
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 3:
            raise KeyboardInterrupt
        Image.new("RGB", (64, 64)).save(f"in/{min(len(looks), 2)}.png")

    monkeypatch.setattr("boxquery.predict.watch.time.sleep", sleep)
    monkeypatch.setattr("boxquery.predict.watch.time.time", lambda: 1e12)
    status, _, err = predict("in", "--watch", "--out", "in/out", "--threshold", "0")
    assert (status, "interrupted: 2 images were looked at; what was found in them is in in/out" in err) == (130, True)
    assert {row["image_id"] for row in json.loads(Path("in/out/predictions.json").read_text())} == {1, 2}
    assert sorted(path.name for path in Path("in/out/pictures").iterdir()) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("size", [900, 3000])
def test_a_full_disk_leaves_nothing(predict, size):
    from tests.faults import full

    write_film(Path("a.mp4"), noise=40)
    with full(size):
        status, _, err = predict("a.mp4", "--out", "out", "--save", "video")
    assert status == 2
    assert [line for line in err.splitlines() if line.startswith("error:")] == [
        "error: out/videos/a.mp4: cannot be written (File too large); make room, or write elsewhere"
    ]
    assert not Path("out").exists()


def test_memory_does_not_grow_with_the_video():
    """One frame is decoded when one is asked for."""
    film = Video(write_film(Path("a.mp4"), frames=50))
    film._container = Counting(film._container)
    frames = iter(film)
    next(frames)
    first = film._container.packets
    next(frames)
    assert first < 40
    assert film._container.packets <= first + 2


class Counting:
    """A container that counts the packets that were read."""

    def __init__(self, container):
        self.container, self.packets = container, 0
        self.close = container.close

    def demux(self, stream):
        for packet in self.container.demux(stream):
            self.packets += 1
            yield packet
