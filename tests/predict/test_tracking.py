"""Objects keep their number through a video."""

import sys
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from boxquery.errors import UserError
from boxquery.predict.sources import Item, Source
from boxquery.predict.tracking import Tracker, require_trackers
from boxquery.result import Result


def test_without_the_package_one_line_says_so():
    with (
        mock.patch("boxquery.predict.tracking.find_spec", return_value=None),
        pytest.raises(UserError, match=r"pip install 'boxquery\[track\]'"),
    ):
        require_trackers()
    with mock.patch.dict(sys.modules, {"trackers": None}), pytest.raises(UserError, match="the package trackers cannot be imported"):
        Tracker(0.5)


def found(*rows: tuple[float, float, float, int]) -> Result:
    """Boxes of 16 x 16 pixels: left, top, score, label."""
    table = np.array(rows, np.float64).reshape(-1, 4)
    boxes = np.concatenate([table[:, :2], table[:, :2] + 16], axis=1).astype(np.float32)
    labels = table[:, 3].astype(np.int64)
    names, ids = [f"class {label}" for label in labels], labels.tolist()
    return Result(boxes, table[:, 2].astype(np.float32), labels, names, ids, (64, 200), None, Image.new("RGB", (200, 64)))


def frame(number: int, name: str = "a.mp4") -> Item:
    return Item(Source(Path(name), name, name[:-4], name[:-4], "video"), number, Fraction(number, 10), Fraction(10))


@pytest.fixture
def tracker() -> Tracker:
    pytest.importorskip("trackers")
    return Tracker(0.5)


def test_what_moves_keeps_its_number(tracker):
    """Two objects pass each other; in some frames one is seen weakly, in others not at all."""
    seen: list[dict[int, int]] = []
    for number in range(20):
        there = [(4 * number, 8, 0.9, 0), (150 - 5 * number, 40, 0.2 if number in (6, 7) else 0.8, 1)]
        there += [(100, 0, 0.2, 0)]  # weak, and never followed
        if number in (11, 12):
            del there[0]
        result = tracker.update(frame(number), found(*there))
        assert result.tracks is not None
        assert len(result) == len(result.names) == len(result.tracks) == 2 - (number in (11, 12))
        seen.append(dict(zip(result.ids, result.tracks.tolist(), strict=True)))
    assert set(seen[0].values()) == {-1}
    assert {each[0] for each in seen[1:] if 0 in each} == {seen[-1][0]}
    assert {each[1] for each in seen[1:]} == {seen[-1][1]}
    assert seen[-1][0] != seen[-1][1]


def test_frames_that_are_passed_over_count_by_their_time(tracker):
    tracks = [tracker.update(frame(number), found((3 * number, 8, 0.9, 0))).tracks for number in range(0, 30, 4)]
    assert {int(track[0]) for track in tracks[1:] if track is not None} == {0}


def test_each_video_begins_anew(tracker):
    for name in ("a.mp4", "b.mp4"):
        tracks = [tracker.update(frame(number, name), found((number, 8, 0.9, 0))).tracks for number in range(3)]
        assert [each.tolist() for each in tracks if each is not None] == [[-1], [0], [0]]


def test_numbers_are_drawn_and_written():
    plain = found((4, 30, 0.9, 0))
    followed = Result(plain.boxes, plain.scores, plain.labels, plain.names, plain.ids, plain.size, None, plain.image, tracks=np.array([7]))
    assert "track_id" not in plain.to_coco()[0]
    assert followed.to_coco()[0]["track_id"] == 7
    assert np.asarray(followed.draw()).tolist() != np.asarray(plain.draw()).tolist()
    assert followed.to_supervision().tracker_id.tolist() == [7]


def test_a_moving_object_of_a_video_keeps_one_number(tmp_path, monkeypatch):
    """From the file to the rows, with a detector that sees bright pixels."""
    pytest.importorskip("trackers")
    import json

    from boxquery.predict.outputs import ResultWriter
    from boxquery.predict.run import run
    from boxquery.predict.sources import find_sources
    from boxquery.predict.summary import Summary

    from .films import FRAMES, write_film

    monkeypatch.chdir(tmp_path)

    def predict(images):
        for image in images:
            ys, xs = np.nonzero(np.asarray(image)[..., 0] > 140)
            box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
            yield Result(box, np.array([0.9], np.float32), np.array([0]), ["square"], [1], (64, 64), None, image)

    sources, _ = find_sources([str(write_film(Path("a.mp4")))])
    summary = Summary(0.5, given=True)
    finished = run(predict, sources, ResultWriter(Path("out"), ["json"], ["square"]), summary, tracker=Tracker(0.5))
    rows = json.loads(Path("out/predictions.json").read_text())
    assert finished.interrupted == ""
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    assert [row.get("track_id") for row in rows] == [None] + [0] * (FRAMES - 1)
    assert summary.values()["tracks"] == 1
