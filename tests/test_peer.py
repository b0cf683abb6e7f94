"""benchmarks/peer.py: both systems get the same images and boxes, tuning leaves val alone, and tables say what was measured."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from boxquery.data.open import open_data
from boxquery.data.shapes import shapes_data

from .data.writers import pictures, write_voc

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peer")


def test_the_copy_for_the_peer_has_the_same_images_and_boxes(peer, tmp_path):
    data = open_data(write_voc(tmp_path / "photos", pictures(20)))
    parts = {name: data.splits[name] for name in ("train", "val")}
    settings = peer.write_yolo(tmp_path / "copy", data.names, parts)
    copy = open_data(settings)
    assert copy.names == data.names
    for name, split in parts.items():
        assert len(copy.splits[name]) == len(split)
        for place, record in enumerate(split):
            other = next(i for i, each in enumerate(copy.splits[name]) if str(each.id).endswith(f"{place:06}"))
            kept = ~record.ignore
            assert copy.splits[name][other].labels.tolist() == record.labels[kept].tolist()
            assert np.abs(copy.splits[name][other].boxes - record.boxes[kept]).max(initial=0) < 0.01
            assert copy.splits[name].read(other).tobytes() == split.read(place).tobytes()
    written = settings.stat().st_mtime_ns
    assert peer.write_yolo(tmp_path / "copy", data.names, parts).stat().st_mtime_ns == written
    assert peer.write_yolo(tmp_path / "copy", data.names, {**parts, "val": parts["train"]}) != settings


def test_tuning_holds_out_part_of_train_and_leaves_val_alone(peer):
    data = shapes_data(train=50, val=9, size=32)
    train, held_out = peer.splits(data, tune=True)
    ids = [record.id for record in (*train, *held_out)]
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted(ids) == sorted(record.id for record in data.splits["train"])
    assert [record.id for record in peer.splits(data, tune=True)[1]] == [record.id for record in held_out]
    assert peer.splits(data, tune=False)[1] is data.splits["val"]


def test_what_the_peer_detects_is_scored_by_our_evaluator(peer, tmp_path):
    data = shapes_data(train=2, val=3, size=64)
    val = data.splits["val"]
    found = [
        {"image_id": place, "category_id": int(label) + 1, "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)], "score": 0.9}
        for place, record in enumerate(val) for label, (x1, y1, x2, y2) in zip(record.labels, record.boxes, strict=True)
    ]  # fmt: skip
    (tmp_path / "nms.json").write_text(json.dumps(found))
    score = peer.score(val, peer.read_detections(tmp_path / "nms.json"), data)
    assert (score["AP"], score["AP50"], score["AP75"], score["interval"]) == (1, 1, 1, [1, 1])
    assert score["resampled"].split() == ["1000"] * peer.RESAMPLES


def test_tables_give_means_over_seeds_and_name_what_is_missing(peer):
    def row(system, seconds, seed, ap, spent, processor="fast"):
        own = {
            "AP": ap,
            "AP50": 2 * ap,
            "cpu_seconds": spent,
            "resampled": " ".join(str(1000 * ap + i) for i in (-20, 0, 20)).replace(".0", ""),
        }
        return {"set": "cats", "split": "val", "system": system, "seconds": seconds, "seed": seed, "processor": processor, **own}

    runs = [row("auto", 500, 0, 0.3, 500), row("auto", 500, 1, 0.4, 500), row(peer.PEER, 500, 0, 0.2, 460)]
    facts = {"training_images": 9, "images": 4, "objects": 5, "median_box": {"AP": 0.1, "AP50": None}}
    lines = peer.show({"sets": {"cats, val": facts}, "runs": runs}, [500, 2000]).splitlines()
    assert "| 0.350 / 0.700 (0.331 to 0.369; seeds 0.300 to 0.400) | not measured |" in lines[4]
    assert "| 0.200 / 0.400 (0.181 to 0.219; 460 CPU s) | not measured |" in lines[5]
    assert lines[6] == "| yolo26n 320 | not measured | not measured |"
    assert "auto minus yolo26n | +0.150 (+0.150 to +0.150) | not measured |" in lines[7]
    assert lines[9] == "| median box per class | 0.100 / - | 0.100 / - |"


def test_processors_have_tables_of_their_own(peer):
    facts = {"training_images": 9, "images": 4, "objects": 5, "median_box": {"AP": 0.1, "AP50": None}}
    own = {"set": "cats", "split": "val", "seconds": 500, "seed": 0, "AP": 0.3, "AP50": 0.5, "cpu_seconds": 500, "resampled": "300 310"}
    runs = [own | {"system": system, "processor": processor} for system, processor in (("auto", "fast"), (peer.PEER, "slow"))]
    text = peer.show({"sets": {"cats, val": facts}, "runs": runs}, [500])
    assert [line for line in text.splitlines() if "**" in line] == [
        f"**cats, val**, {processor}: 4 images, 5 objects; trained on 9 images" for processor in ("fast", "slow")
    ]
    assert "+0.000" not in text, "a difference between processors says nothing"


def test_our_place_can_be_taken_by_any_model(peer):
    parse = peer.arguments().parse_args
    args = parse(["--model", "fcos", "--preset", "tiny", "--option", "levels=2"])
    assert peer.systems(args, None) == ["fcos tiny levels=2", peer.PEER, peer.WIDE[0]]
    assert [peer.systems(args, only) for only in ("auto", peer.PEER)] == [["fcos tiny levels=2"], [peer.PEER]]
    assert peer.systems(parse(["--scenes"]), "auto") == ["auto from scenes"]
    assert peer.systems(parse(["--image-size", "256", "--batch-size", "8"]), "auto") == ["auto 256 px 8 per batch"]


def test_the_peer_has_our_image_size_in_multiples_of_its_stride(peer):
    rows = [{"set": "cats", "split": "val", "system": "auto", "long_side": 213}]
    assert peer.input_of_ours({"runs": rows}, "cats", "val", "auto") == 224
    with pytest.raises(SystemExit, match="measure it first"):
        peer.input_of_ours({"runs": rows}, "dogs", "val", "auto")
