"""benchmarks/recipe.py: cells are measured once, nothing reported is chosen on, and the rule of the ladder holds."""

import importlib
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from boxquery.locks import Lock

from .data.writers import SIZE, Picture, Thing, write_voc

ROOT = Path(__file__).parents[1]
HEADER = "epoch,step,images,cpu_seconds,AP,AP50\n"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("recipe")


class Trainer:
    """Writes a run's table in place of training it."""

    def __init__(self, quality):
        self.quality, self.trained = quality, []

    def __call__(self, train, cell, out):
        self.trained.append(cell)
        best = self.quality[cell.variant, cell.set]
        if best is None:
            raise RuntimeError(f"{cell}: failed")
        out.mkdir(parents=True, exist_ok=True)
        rows = f"1,30,120,18.2,,\n2,60,240,39.3,{best},{2 * best}\n3,80,320,54.1,{best / 2},{best}\n"
        (out / "metrics.csv").write_text(HEADER + rows)


@pytest.fixture
def ladder(recipe, monkeypatch, tmp_path):
    """A ladder of three variants on two kinds of scenes: ``run(quality, ...)`` gives the fake trainer and the counted cells."""
    rungs = importlib.import_module("recipe_variants")
    variants = {
        "root": rungs.Variant(None),
        "good": rungs.Variant("root", options={"class_loss": "mal"}, why="scores"),
        "bad": rungs.Variant("good", recipe={"augment": replace(rungs.ROOT_RECIPE.augment, flip=0.0), "lr": 2e-3}),
    }
    monkeypatch.setattr(rungs, "VARIANTS", variants)
    monkeypatch.setattr(recipe, "VARIANTS", variants)
    monkeypatch.setattr(recipe, "SCREENED", ("scenes1", "scenes2"))
    monkeypatch.setattr(recipe, "SETS", ("scenes1", "scenes2"))
    results = tmp_path / "recipe.json"

    def run(quality, seeds=(0,)):
        trainer = Trainer(quality)
        monkeypatch.setattr("cells.run_apart", trainer)
        cells = [recipe.Cell(each, name, 500, seed) for seed in seeds for name in variants for each in recipe.SETS]
        recipe.measure(cells, {}, tmp_path / "runs", results)
        return trainer.trained, recipe.counted(recipe.read_results(results))

    run.results, run.variants = results, variants
    return run


QUALITY = {
    ("root", "scenes1"): 0.1, ("root", "scenes2"): 0.2, ("good", "scenes1"): 0.15, ("good", "scenes2"): 0.195,
    ("bad", "scenes1"): 0.155, ("bad", "scenes2"): 0.196,
}  # fmt: skip


def test_cells_are_measured_once(recipe, ladder):
    trained, cells = ladder(QUALITY)
    assert len(trained) == len(cells) == 6
    row = cells["scenes1", "good", 500, 0]
    assert (row["AP"], row["AP50"], row["AP_last"]) == (0.15, 0.3, 0.075)
    assert (row["best_epoch"], row["last_epoch"], row["steps"], row["images_seen"], row["cpu_seconds"]) == (2, 3, 80, 320, 54.1)
    assert row["settings"] == {"class_loss": "mal"}
    assert row["commit"]
    trained, again = ladder(QUALITY)
    assert not trained
    assert again == cells
    trained, _ = ladder(QUALITY, seeds=(0, 1))
    assert {cell.seed for cell in trained} == {1}


def test_a_failed_cell_stops_no_other_and_is_tried_again(recipe, ladder, capsys):
    trained, cells = ladder(QUALITY | {("good", "scenes1"): None})
    assert len(trained) == 6
    assert len(cells) == 5
    assert "scenes1-good-500-0: failed" in capsys.readouterr().out
    text = recipe.table(recipe.read_results(ladder.results))
    assert "| good | class_loss=mal: scores | not measured | 0.195, -0.005 | not measured |" in text
    trained, cells = ladder(QUALITY)
    assert trained == [("scenes1", "good", 500, 0)]
    assert len(cells) == 6


def test_a_cell_that_another_process_works_on_is_left_to_it(recipe, ladder, tmp_path, capsys):
    lock = Lock.take(tmp_path / "runs" / "scenes1-root-500-0.lock")
    trained, _ = ladder(QUALITY)
    assert len(trained) == 5
    assert "scenes1-root-500-0: another process" in capsys.readouterr().out
    lock.release()


def test_cells_of_a_variant_that_has_changed_do_not_count(recipe, ladder):
    ladder(QUALITY)
    ladder.variants["good"] = replace(ladder.variants["good"], options={"class_loss": "vfl"})
    trained, cells = ladder(QUALITY | {("good", "scenes1"): 0.3})
    assert {cell.variant for cell in trained} == {"good", "bad"}, "a child changes with its parent"
    assert cells["scenes1", "good", 500, 0]["AP"] == 0.3
    assert len(json.loads(ladder.results.read_text())["cells"]) == 6, "replaced"


def test_what_passes_is_measured_with_more_seeds_and_its_parent(recipe, ladder):
    _, cells = ladder(QUALITY)
    assert recipe.verdict(cells, "root", 500) == "root"
    assert recipe.verdict(cells, "bad", 500) == "does not pass"
    assert recipe.verdict(cells, "good", 500) == "passes; 2 of 6 cells measured"
    assert recipe.finalists(cells, 500) == ["root", "good"]
    _, cells = ladder(QUALITY, seeds=recipe.SEEDS)
    assert recipe.verdict(cells, "good", 500) == "passes; better on 1 of 2 sets, +0.022 in the mean"
    text = recipe.table(recipe.read_results(ladder.results))
    assert "| good | class_loss=mal: scores | 0.150 (0.150 to 0.150), +0.050 | 0.195 (0.195 to 0.195), -0.005 |" in text
    assert "| bad | augment flip=0.0, lr=0.002 |" in text


@pytest.mark.parametrize(
    ("gains", "passes"),
    [((0.03, -0.005), True), ((0.03, -0.015), False), ((0.015, 0.015), False), ((-0.005, 0.021), True), ((0.03, None), None)],
)
def test_the_rule(recipe, gains, passes):
    known = {name: gain for name, gain in zip(recipe.SCREENED, gains, strict=True) if gain is not None}
    assert recipe.passes(known) is passes


def test_every_variant_is_a_preset_that_a_model_can_have(recipe):
    for name in recipe.VARIANTS:
        recipe.paper(name).PRESETS["small"].options.check()
        assert recipe.settings(name) == json.loads(json.dumps(recipe.settings(name)))


def picture(stem, split, shade):
    stream = BytesIO()
    Image.new("RGB", SIZE, (shade, 0, 0)).save(stream, "PNG")
    return Picture(stem, split, [Thing("cat", [4, 5, 20, 19])], data=stream.getvalue())


def test_what_is_held_out_is_of_train_and_copies_stay_together(recipe, tmp_path):
    train = [picture(f"t{i}", "train", i) for i in range(19)] + [picture("copy", "train", 0)]
    path = write_voc(tmp_path, train + [picture(f"v{i}", "val", 100 + i) for i in range(5)])
    for name, count in (("cards", 4), ("raccoon", 5)):
        data = recipe.held_out(name, str(path))
        assert set(data.splits) == {"train", "val"}
        kept, out = ({record.id for record in data.splits[split]} for split in ("train", "val"))
        assert kept | out == {each.stem for each in train}
        assert not kept & out
        assert count <= len(out) <= count + 1
        assert ({"t0", "copy"} <= kept) or ({"t0", "copy"} <= out)
        assert data.splits["val"].read(0).size == SIZE


def test_scenes_are_held_out_of_train_too(recipe):
    data = recipe.held_out("scenes2", "")
    parts = {name: [record.id for record in split] for name, split in data.splits.items()}
    assert {name: len(ids) for name, ids in parts.items()} == {"train": recipe.SCENES, "val": recipe.SCENES_HELD_OUT}
    assert all(str(id_).startswith("train/") for ids in parts.values() for id_ in ids)
    assert not set(parts["train"]) & set(parts["val"])
    assert {len(record.boxes) for record in data.splits["val"]} == {2}
    assert data.splits["val"].read(0).size == (recipe.SIDE, recipe.SIDE)


def test_the_page_shows_the_results_that_are_kept(recipe):
    page = recipe.PAGE.read_text()
    assert recipe.table(recipe.read_results(recipe.RESULTS)) in page, "python benchmarks/recipe.py --show"
    assert "](recipe.md)" in (recipe.PAGE.parent / "README.md").read_text()
