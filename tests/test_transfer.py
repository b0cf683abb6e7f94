"""A model that starts from a trained one takes over what means the same there, and says what it did not."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor

import boxquery as bq
from boxquery.cli import app
from boxquery.cli import run as command_line
from boxquery.models.base import DetectionTransformer
from boxquery.official import authors_of, load_official, rename
from boxquery.official.coco import CATEGORIES
from boxquery.parts.positions import LearnedPosition
from boxquery.training.config import RunConfig
from boxquery.transfer import Group, Transfer, fingerprint, read_source, transfer
from tests.models import test_official as official
from tests.models.builders import VARIANTS, batch, create, shaken, systems
from tests.training.runs import SMALL, Stop, rows, scenes

SYSTEMS = systems()
NAMES = ["person", "traffic light", "car"]


def build(system: str, *, seed: int, **more) -> DetectionTransformer:
    name, options = SYSTEMS[system]
    return create(name, seed=seed, **{**options, **more}).eval()


def trained(system: str, **more) -> DetectionTransformer:
    """As if it had learned: nothing stands at its start value, and batch norm has seen something."""
    model = shaken(build(system, seed=1, **more))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer))
    return model


@torch.no_grad()
def answers(model: DetectionTransformer):
    return model(*batch((96, 128), (64, 80)))


def group(report: Transfer, name: str) -> Group:
    return next(g for g in report.groups if g.name == name)


def sums(report: Transfer) -> tuple[int, int, int]:
    return sum(g.kept for g in report.groups), sum(g.moved for g in report.groups), sum(g.new for g in report.groups)


@pytest.fixture(params=SYSTEMS)
def system(request) -> str:
    return request.param


def test_the_same_model_gives_the_same_answers(system):
    source, target = trained(system), build(system, seed=2)
    report = transfer(source, target, NAMES, NAMES)
    numbers = sum(v.numel() for k, v in target.state_dict().items() if not k.endswith("num_batches_tracked"))
    assert sums(report) == (numbers, 0, 0)
    assert (report.unused, report.left, report.notes, report.backbone) == ([], [], [], True)
    assert not any(g.how for g in report.groups)
    before, after = answers(source), answers(target)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.boxes, after.boxes)


def test_classes_are_matched_by_name(system):
    """Ours in another order and spelling, one that is new, one left behind."""
    ours = ["Traffic_Light", "horse", "CAR", "dog"]
    source, target = trained(system), build(system, seed=2, classes=4)
    width = target.config["options"]["hidden_dim"]
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = transfer(source, target, NAMES, ours)
    assert report.classes == {"Traffic_Light": "traffic light", "horse": None, "CAR": "car", "dog": None}
    assert report.left == ["person"]
    before, after = answers(source), answers(target)
    by_class = before.proposals is not None and not source.criterion.class_agnostic_proposals
    if by_class:  # new classes may choose other proposals
        ours_of, theirs_of = target.queries.head.classes, source.queries.head.classes
        assert torch.equal(ours_of.weight[[0, 2]], theirs_of.weight[[1, 2]])
        assert torch.equal(ours_of.bias[[0, 2]], theirs_of.bias[[1, 2]])
    else:
        assert torch.equal(before.boxes, after.boxes)
        torch.testing.assert_close(after.logits[..., [0, 2]], before.logits[..., [1, 2]])
    if source.criterion.classification.has_no_object:
        torch.testing.assert_close(after.logits[..., -1], before.logits[..., -1])
    if before.proposals is not None and not by_class:
        torch.testing.assert_close(after.proposals.logits[..., :3], before.proposals.logits)
    for name, value in target.state_dict().items():
        if re.match(r"heads\.\d\.classes|queries\.denoising\.labels" + r"|queries\.head\.classes" * by_class, name):
            assert torch.equal(value[[1, 3]], fresh[name][[1, 3]]), name
    if "denoising" in system:
        assert torch.equal(target.queries.denoising.labels[[0, 2]], source.queries.denoising.labels[[1, 2]])
        assert (group(report, "denoising labels").moved, group(report, "denoising labels").new) == (width, 2 * width)
    others = {"class heads", "denoising labels", "proposal head"}
    assert sum(g.new + g.moved for g in report.groups if g.name not in others) == 0
    # "Traffic_Light" and "no object" move, "CAR" stays in its column; a row is a number for each of the content and a bias
    moves, heads = group(report, "class heads"), len(target.heads)
    spare = source.criterion.classification.has_no_object
    one = (width + 1) * heads
    assert (moves.kept, moves.moved, moves.new) == (one, one * (1 + spare), 2 * one)


@pytest.mark.parametrize("queries", [8, 60])
def test_queries_are_cut_or_extended(system, queries):
    source, target = trained(system, num_queries=30), build(system, seed=2, num_queries=queries)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = transfer(source, target, NAMES, NAMES)
    kept = min(queries, 30)
    theirs, counted = source.state_dict(), []
    for name, value in target.state_dict().items():
        if len(value.shape) and value.shape != theirs[name].shape:
            counted.append(name)
            assert torch.equal(value[:kept], theirs[name][:kept]), name
            assert torch.equal(value[kept:], fresh[name][kept:]), name
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, theirs[name]), name
    assert {name.partition(".")[0] for name in counted} <= {"queries"}
    assert sums(report)[1:] == (0, sum(target.state_dict()[name][kept:].numel() for name in counted))


@pytest.mark.parametrize(("name", "options"), [("anchor-detr", {}), ("dab-detr", {"patterns": 2})])
@torch.no_grad()
def test_patterns_stay_patterns(name, options):
    """Queries are counted pattern by pattern: each pattern keeps its first anchors, not the first of all queries."""
    source, target = (create(name, num_queries=count, seed=seed, **options).eval() for count, seed in ((10, 1), (4, 2)))
    transfer(source, target, NAMES, NAMES)
    images, mask = batch((64, 80))
    states = []
    for model in (source, target):
        state = model.queries(model.encoder(model.embed_image(images, mask)), None)
        patterns = options.get("patterns", 3)
        states.append([t.unflatten(1, (patterns, -1)) for t in (state.content, state.reference)])
    for theirs, ours in zip(*states, strict=True):
        assert torch.equal(ours, theirs[:, :, :4])


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("deformable-detr", {"levels": 3}, {"levels": 4}),
        ("deformable-detr", {"levels": 1}, {"levels": 4}),
        ("deformable-detr", {"levels": 4}, {"levels": 2}),
        ("dab-deformable-detr", {"levels": 2}, {"levels": 3}),
        ("smca-detr", {"levels": 2, "dilation": False}, {"levels": 4, "dilation": False}),
        ("sam-detr", {"levels": 1, "dilation": False}, {"levels": 3, "dilation": False}),
    ],
)
def test_levels_are_told_by_what_they_show(name, before, now):
    """The backbone's last map is the same level, however many finer or coarser ones stand beside it."""
    source, target = shaken(create(name, seed=1, **before)), create(name, seed=2, **now)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = transfer(source, target, NAMES, NAMES)
    shift = target.neck.inputs - source.neck.inputs
    here = [i for i in range(now["levels"]) if 0 <= i - shift < before["levels"]]
    there = [i - shift for i in here]
    new = [i for i in range(now["levels"]) if i not in here]
    assert here
    for i, j in zip(here, there, strict=True):
        assert torch.equal(target.neck.projections[i][0].weight, source.neck.projections[j][0].weight)
    for i in new:
        assert torch.equal(target.neck.projections[i][0].weight, fresh[f"neck.projections.{i}.0.weight"])
    if target.tokens.level_embedding is not None and source.tokens.level_embedding is not None:
        assert torch.equal(target.tokens.level_embedding[here], source.tokens.level_embedding[there])
        assert torch.equal(target.tokens.level_embedding[new], fresh["tokens.level_embedding"][new])
    if "deformable" in name:
        for ours, theirs, key in ((m, n, k) for k, (m, n) in reads(target, source)):
            for part, each in (("sampling_offsets", 2), ("attention_weights", 1)):
                for kind in ("weight", "bias"):
                    a, b = getattr(getattr(ours, part), kind), getattr(getattr(theirs, part), kind)
                    a, b = (t.unflatten(0, (ours.heads, -1, ours.points[0] * each)) for t in (a, b))
                    start = fresh[f"{key}.{part}.{kind}"].unflatten(0, (ours.heads, -1, ours.points[0] * each))
                    assert torch.equal(a[:, here], b[:, there])
                    assert torch.equal(a[:, new], start[:, new])
        assert (group(report, "decoder").new > 0) == (new != [])
    if name == "smca-detr":
        read, other = target.layers[0].read, source.layers[0].read
        assert torch.equal(read.selection.weight[here], other.selection.weight[there])
        assert all(torch.equal(read.keys[i].weight, other.keys[j].weight) for i, j in zip(here, there, strict=True))
    assert group(report, "decoder").kept > 0
    assert bool(torch.isfinite(answers(target.eval()).boxes).all())


def reads(target, source):
    """Name -> the sampled attention there, in both."""
    names = [n for n, m in target.named_modules() if type(m).__name__ == "DeformableAttention"]
    assert names
    return [(n, (target.get_submodule(n), source.get_submodule(n))) for n in names]


def test_other_heads_or_points_cannot_be_compared():
    """4 heads of 2 points and 2 heads of 4 points have tensors of one shape, which mean something else."""
    source, target = create("deformable-detr", seed=1, heads=4, points=2), create("deformable-detr", seed=2, heads=2, points=4)
    fresh = target.layers[0].read.sampling_offsets.bias.clone()
    report = transfer(shaken(source), target, NAMES, NAMES)
    assert torch.equal(target.layers[0].read.sampling_offsets.bias, fresh)
    assert report.notes == ["heads: 4 became 2", "points: 2 became 4"]


def test_a_table_of_positions_is_resampled():
    source, target = (create("detr", seed=seed, position="learned") for seed in (1, 2))
    source.tokens.position = LearnedPosition(128, cells=5)
    with torch.no_grad():
        source.tokens.position.row.copy_(torch.linspace(0, 4, 5)[:, None].expand(-1, 64))
    target.tokens.position = LearnedPosition(128, cells=9)
    report = transfer(source, target, NAMES, NAMES)
    torch.testing.assert_close(target.tokens.position.row[:, 7], torch.linspace(0, 4, 9))
    assert group(report, "positions and levels").how == ["resampled from 5 to 9 cells"]
    assert group(report, "positions and levels").moved == 2 * 9 * 64


def test_another_backbone_is_new_as_a_whole():
    """Layers of two ResNets have tensors of one shape, which belong to other networks."""
    plain_stem = {"channels": [16, 16, 32, 32], "stem_width": 16, "stem_type": ""}
    source, target = (
        create("deformable-detr", seed=seed, backbone=name, backbone_options=plain_stem)
        for seed, name in ((1, "resnet18"), (2, "resnet26"))
    )
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = transfer(source, target, NAMES, NAMES)
    assert not report.backbone
    assert (group(report, "backbone").kept, group(report, "neck").kept) == (0, 0)
    assert group(report, "decoder").new == group(report, "encoder").new == 0
    assert all(torch.equal(v, fresh[k]) for k, v in target.state_dict().items() if k.startswith(("backbone.", "neck.")))


def test_a_shared_head_serves_every_layer():
    options = VARIANTS["deformable-detr"]
    source = shaken(create("deformable-detr", seed=1, **options["deformable-detr-points"]))
    target = create("deformable-detr", seed=2, **options["deformable-detr-refined"])
    later = target.heads[1].boxes.layers[0].weight.clone()
    report = transfer(source, target, NAMES, NAMES)
    assert all(torch.equal(head.classes.weight, source.heads[0].classes.weight) for head in target.heads)
    assert torch.equal(target.heads[0].boxes.layers[0].weight, source.heads[0].boxes.layers[0].weight)
    assert torch.equal(target.heads[1].boxes.layers[0].weight, later)
    assert group(report, "class heads").new == 0


def test_layers_go_by_number():
    source, target = shaken(create("detr", seed=1)), create("detr", seed=2, decoder_layers=5)
    fresh = target.layers[3].ffn.linear1.weight.clone()
    transfer(source, target, NAMES, NAMES)
    assert torch.equal(target.layers[2].ffn.linear1.weight, source.layers[2].ffn.linear1.weight)
    assert torch.equal(target.layers[3].ffn.linear1.weight, fresh)


def test_only_between_models_of_one_name():
    with pytest.raises(bq.UserError, match="the source: its model is detr, the new one dab-detr"):
        transfer(create("detr"), create("dab-detr"), NAMES, NAMES)
    with pytest.raises(bq.UserError, match="3 classes, but 2 names"):
        transfer(create("detr"), create("detr"), NAMES, NAMES[:2])


@pytest.mark.parametrize("system", official.SYSTEMS)
def test_from_a_released_checkpoint(system):
    """Their keys, our model, other classes: what was known by name answers as before."""
    name, options, _ = official.SYSTEMS[system]
    _, tensors = official.checkpoint(system)
    source = official.build(system, seed=2)
    load_official(source, tensors)
    torch.manual_seed(3)
    target = bq.create_model(name, classes=2, **official.SMALL, **options)
    transfer(source, target, [None, "person", "bicycle", "car"], ["Car", "person"])
    target.freeze()
    if not source.criterion.class_agnostic_proposals:  # classes that are left behind may have chosen other proposals
        for theirs, ours in ((source.heads[0], target.heads[0]), (source.queries.head, target.queries.head)):
            assert torch.equal(ours.classes.weight, theirs.classes.weight[[3, 1]])
        return
    before, after = answers(source.eval()), answers(target.eval())
    torch.testing.assert_close(after.logits[..., :2], before.logits[..., [3, 1]])
    assert torch.equal(before.boxes, after.boxes)


def released_detr(path: Path) -> dict[str, Tensor]:
    small = {key: value for key, value in official.SMALL.items() if key not in ("backbone", "heads")}
    torch.manual_seed(0)
    source = shaken(bq.create_model("detr", classes=91, **small))
    rules = authors_of("detr").keys(source)
    own = source.state_dict()
    keys = [*official.detr_keys(), *(f"backbone.0.body.{k.removeprefix('backbone.body.')}" for k in own if k.startswith("backbone."))]
    tensors = {key: own[rename(key, rules)].clone() for key in keys if not key.endswith("num_batches_tracked")}
    torch.save({"model": tensors}, path)
    return tensors


def test_the_file_of_a_released_checkpoint(tmp_path):
    tensors = released_detr(tmp_path / "theirs.pth")
    detector, assumed = read_source(tmp_path / "theirs.pth", "detr")
    coco, dilation = (
        "theirs.pth: its class head has COCO's 91 rows",
        "the tensors do not show dilation; taken as False (--option dilation=...)",
    )
    assert assumed[0] == dilation
    assert assumed[1].startswith(coco)
    assert len(assumed) == 2
    assert [line.startswith(coco) for line in read_source(tmp_path / "theirs.pth", "detr", {"dilation": True, "num_queries": 3})[1]] == [
        True
    ]
    assert (detector.image_size, detector.model.config["frozen"], detector.classes[1]) == (800, True, "person")
    small = {**detector.model.config["options"], "num_queries": 9}
    target = bq.create_model("detr", classes=2, **small)
    report = transfer(detector.model, target, detector.classes, ["Person", "helmet"])
    assert report.classes == {"Person": "person", "helmet": None}
    assert len(report.left) == len(CATEGORIES) - 1
    assert torch.equal(target.heads[0].classes.weight[[0, 2]], tensors["class_embed.weight"][[1, 91]])
    with pytest.raises(bq.UserError, match="does not say which model it is; add --model"):
        read_source(tmp_path / "theirs.pth")
    with pytest.raises(bq.UserError, match="not a checkpoint of deformable-detr"):
        read_source(tmp_path / "theirs.pth", "deformable-detr")
    (tmp_path / "theirs.pth").write_bytes((tmp_path / "theirs.pth").read_bytes()[:5000])
    with pytest.raises(bq.UserError, match="not a checkpoint, or one that was cut short"):
        read_source(tmp_path / "theirs.pth", "detr")


# -- runs ---------------------------------------------------------------------------------------------------------------------------

SETTINGS = {"batch_size": 4, "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    bq.train(scenes(), model="detr", preset="tiny", epochs=12, image_size=64, out=folder, options=SMALL, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def second(first) -> Path:
    """The same scenes once more, from there."""
    folder = first.parent / "second"
    bq.train(scenes(), start_from=first, epochs=2, out=folder, options={"num_queries": 8}, **SETTINGS)
    return folder


def test_a_run_that_starts_from_another_is_ahead(first, second, tmp_path):
    bq.train(scenes(), model="detr", preset="tiny", epochs=2, image_size=64, out=tmp_path / "fresh", options=SMALL, **SETTINGS)
    fresh, ahead = (float(rows(folder)[0]["loss"]) for folder in (tmp_path / "fresh", second))
    learned = [float(row["loss"]) for row in rows(first)]
    assert fresh == pytest.approx(learned[0], rel=0.2)
    assert ahead < learned[0] - 0.5 * (learned[0] - learned[-1])


@pytest.mark.parametrize(("pretrained", "said"), [(False, "none"), ("auto", None)])
def test_a_source_counts_before_other_weights_of_the_backbone_and_says_so(first, tmp_path, capsys, pretrained, said):
    bq.train(scenes(), start_from=first, pretrained=pretrained, freeze_backbone=True, images_seen=4, out=tmp_path / "run", **SETTINGS)
    note = f"note: --from counts before --pretrained {said}: a backbone that fits is that of {first}"
    assert (note in capsys.readouterr().err.splitlines()) == (said is not None)
    before, after = (bq.load(folder).model.backbone.state_dict() for folder in (first, tmp_path / "run"))
    assert all(torch.equal(before[name], ours) for name, ours in after.items())


def test_what_is_not_said_is_as_there(first, second):
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert (config["model"], config["preset"], config["image_size"]) == ("detr", "tiny", 64)
    assert config["options"] == {**json.loads(json.dumps(SMALL)), "num_queries": 8}
    assert (config["start_from"], config["start_hash"]) == (str(first), fingerprint(bq.load(first)))
    assert config["frozen"] is False
    assert f"--from {first}" in config["command"]
    words = config["command"].split()[1:]
    app.parse_args(words[: words.index("--option")], exit_on_error=False, print_error=False)
    assert bq.load(second).model.config["options"]["num_queries"] == 8


def test_the_table_is_kept_and_shown(first, second):
    found = json.loads((second / "transfer.json").read_text())
    assert (found["from"], found["model"], found["unused"]) == (str(first), "detr", [])
    queries = next(g for g in found["groups"] if g["name"] == "queries")
    assert queries == {"name": "queries", "kept": 8 * 32, "moved": 0, "new": 0, "how": ["the first 8 of 12 queries"]}
    assert found["notes"] == ["num_queries: 12 became 8"]
    page = (second / "report.html").read_text()
    assert '<section id="transfer">' in page
    assert "the first 8 of 12 queries" in page
    assert "transfer" not in (first / "report.html").read_text()


def test_the_table_fits_a_terminal(first):
    source, target = bq.load(first), bq.create_model("detr", classes=2, preset="tiny", **SMALL)
    report = transfer(source.model, target, source.classes, [source.classes[1].upper(), "[odd]"])
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(report.table("from [first]"))
    text = console.export_text()
    assert "class heads" in text
    assert "from [first]" in text
    assert "1 of 2 classes by name" in text
    assert report.summary().startswith(f"classes taken over: {source.classes[1].upper()} (from {source.classes[1]}); new: [odd]")


def test_stopped_and_resumed_it_is_the_same_run(first, second, tmp_path, monkeypatch):
    """Also where the source has gone, and whether or not the source and options are said again."""
    from boxquery.training.epoch_end import EpochEnd

    keep = EpochEnd.keep
    source = tmp_path / "source"
    bq.load(first).save(source)

    def pull_the_plug(self, trainer):
        keep(self, trainer)
        raise Stop

    monkeypatch.setattr(EpochEnd, "keep", pull_the_plug)
    with pytest.raises(Stop):
        bq.train(scenes(), start_from=source, epochs=2, out=tmp_path / "run", options={"num_queries": 8}, **SETTINGS)
    monkeypatch.setattr(EpochEnd, "keep", keep)
    (source / "model.safetensors").unlink()
    for wrong in ({"start_from": first}, {"options": {"num_queries": 9}}):
        with pytest.raises(bq.UserError, match="was started with"):
            bq.train(scenes(), out=tmp_path / "run", resume=True, **wrong)
    bq.train(scenes(), start_from=source, out=tmp_path / "run", options={"num_queries": 8}, resume=True)
    assert rows(tmp_path / "run") == rows(second)


@pytest.mark.parametrize("how", [{"preset": "paper"}, {"freeze_backbone": True}], ids=["paper", "freeze-backbone"])
def test_trained_statistics_stay(first, tmp_path, how, capsys):
    """As published for trained weights; a backbone that is not trained keeps everything."""
    folder = tmp_path / "run"
    bq.train(scenes(), start_from=first, epochs=2, image_size=64, lr=1e-2, out=folder, **how, **SETTINGS)
    part = "stem, first stage and batch norm of the backbone stay frozen, its other layers are trained"
    assert ("the backbone stays frozen" if "freeze_backbone" in how else part) in capsys.readouterr().err.splitlines()
    config = RunConfig.read(folder)
    assert config.frozen
    assert config.preset == how.get("preset", "tiny")
    before, after = (bq.load(f).model for f in (first, folder))
    assert after.config["frozen"] is True
    theirs, ours = before.backbone.state_dict(), after.backbone.state_dict()
    fixed = {n for n in ours if "running_" in n or n.startswith(("body.conv1", "body.bn1", "body.layer1"))}
    fixed |= set(ours) if "freeze_backbone" in how else set()
    assert all(torch.equal(ours[n], theirs[n]) for n in fixed)
    assert any(not torch.equal(ours[n], theirs[n]) for n in ours) == ("freeze_backbone" not in how)
    frozen = tmp_path / "again"
    bq.train(scenes(), start_from=folder, preset="tiny", epochs=1, image_size=64, out=frozen, **SETTINGS)
    assert RunConfig.read(frozen).frozen  # its features were learned under fixed statistics


def test_nothing_is_written_for_a_source_that_cannot_be_used(first, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "damaged"
    bq.load(first).save(damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    for words, said in (
        (["--from", "no/such/run"], "no/such/run"),
        (["--from", str(damaged)], "does not hold the weights"),
        (["--from", str(first / "last.ckpt")], "give the folder"),
        (["--from", str(first / "config.yaml"), "--model", "detr"], "not a checkpoint, or one that was cut short"),
        (["--from", str(first), "--model", "dab-detr"], f"--from {first}: its model is detr, the new one dab-detr"),
        (["--from", str(first), "--option", "levels=3"], "unknown option 'levels'"),
    ):
        assert command_line(["train", "shapes", *words, "--out", "run"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert said in line
    assert [p.name for p in tmp_path.iterdir()] == ["damaged"]


def test_the_page_names_commands_that_exist():
    text = (Path(__file__).parents[1] / "docs/transfer.md").read_text(encoding="utf-8")
    commands = [shlex.split(line.split("#")[0]) for line in re.findall(r"^boxquery .+$", text, re.MULTILINE)]
    assert len(commands) >= 5
    for words in commands:
        parsed = app.parse_args(words[1:], exit_on_error=False, print_error=False)[1].arguments
        source = getattr(parsed.get("flags"), "start_from", None)
        assert source == (words[words.index("--from") + 1] if "--from" in words else None)
