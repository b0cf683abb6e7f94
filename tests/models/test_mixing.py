"""The page on mixing parts: its model is built from the page's own text and must keep every promise; its tables say what is so."""

import functools
import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import boxquery as bq
from boxquery import api, models
from boxquery.cli import run as command_line
from boxquery.data.shapes import shapes_data
from boxquery.models import d_fine, sam_detr
from boxquery.models.anchor_detr import PatternQueries, Positions
from boxquery.models.base import DetectionTransformer
from boxquery.models.conditional_detr import ConditionalLocate
from boxquery.parts.attention.conditional import ConditionalCrossAttention, ConditionalSelfAttention
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import DenseAttention
from boxquery.parts.attention.gaussian import GaussianLocate
from boxquery.parts.attention.rcda import RowColumnDecoupledAttention
from boxquery.parts.attention.regions import DynamicConvolution
from boxquery.parts.attention.scales import ScaleSelectionAttention
from boxquery.parts.attention.semantic_aligned import SemanticAlignedAttention
from boxquery.parts.box_locate import BoxLocate, DABLocate, PlainBoxLocate, locate_at_box
from boxquery.parts.geometry import QueryGeometry, locate_at_position
from boxquery.parts.heads import Head
from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.queries import BoxQueries, LearnedQueries, ProposalQueries, ReferencePointQueries, WholeImageQueries
from boxquery.parts.state import QueryState
from tests.models import test_sweep as sweep
from tests.models import test_trace as traces
from tests.models.builders import CLASSES, NARROW, batch, create, objects, shaken
from tests.models.test_overfit import learned
from tests.parts.memories import pixel_mask

NAME = "anchor-smca"
PAGE = (Path(__file__).parents[2] / "docs" / "mixing.md").read_text(encoding="utf-8")
PAPER, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SIZES = ((96, 128), (64, 80))


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The page's first block as the file that it says it is; afterwards everything is as before."""
    folder = tmp_path_factory.mktemp("mixing")
    (folder / "anchor_smca.py").write_text(PAPER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("anchor_smca")
    del sys.modules["anchor_smca"]


@pytest.fixture
def unregistered(monkeypatch):
    monkeypatch.setattr(models, "_own", {})


@pytest.fixture
def registered(paper, unregistered):
    models.register(NAME, paper)


@pytest.fixture
def small(registered) -> DetectionTransformer:
    torch.manual_seed(0)
    return bq.create_model(NAME, classes=CLASSES, preset="tiny", **NARROW)


@pytest.fixture
def model(small) -> DetectionTransformer:
    """Double precision, every parameter away from its start value."""
    return shaken(small).double().eval()


# -- the model of the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "promise",
    [
        sweep.test_no_mask_is_a_mask_of_nothing,
        sweep.test_images_do_not_see_each_other,
        sweep.test_last_only,
        sweep.test_boxes_and_detections,
        sweep.test_double_precision,
    ],
)
def test_it_keeps_the_promises_of_the_family(promise, model):
    promise(model)


@pytest.mark.parametrize("promise", [sweep.test_every_parameter_is_trained, sweep.test_padding_changes_nothing])
def test_gradients_and_padding(promise, model):
    assert NAME not in (*sweep.NO_GRADIENT, *sweep.AFFECTED_BY_PADDING)
    promise(NAME, model)


def test_bfloat16(small):
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = small.loss(small(*batch(*SIZES)), objects(2, 1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert sweep.finite_gradients(small)


@torch.no_grad()
def test_the_trace_shows_attention_under_gaussians_around_the_points(small):
    """At the start all widths are one: exp(-(dx^2 + dy^2) / 8), in cells of 16 pixels from the point; offsets are set to zero."""
    model = small.double().eval()
    for layer in model.place.offsets:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    out = model(*batch(*SIZES, dtype=torch.float64), trace=True)
    points, count = model.queries.points, len(model.queries.points)
    for layer in out.trace.layers:
        traces.check_attention(layer, 2, 3 * count, 8)
        (gaussian,), (attention,) = layer.gaussian, layer.attention
        assert gaussian.shape == attention.shape == (2, 8, 3 * count, 6, 8)
        for image, (height, width) in enumerate(SIZES):
            for query in (0, 17, count + 17, 3 * count - 1):
                x, y = points[query % count].tolist()
                assert layer.reference[image, query].tolist() == pytest.approx([x, y])
                dx, dy = torch.arange(8) - x * width / 16, torch.arange(6) - y * height / 16
                expected = torch.exp(-(dx[None] ** 2 + dy[:, None] ** 2) / 8).double()
                torch.testing.assert_close(gaussian[image, :, query], expected.expand(8, -1, -1), atol=1e-6, rtol=1e-5)


def test_points_are_trained_through_their_positions(model):
    """Also without the boxes measured from them and without their embeddings."""
    state = model.queries(_memory(128), None)
    _, geometry = model.place(QueryState(state.content, state.position.detach(), reference=state.reference), _memory(128), 0)
    geometry.bias.sum().backward()
    points = model.queries.points
    assert torch.equal(points.grad != 0, (points > 0) & (points < 1))


@pytest.mark.slow
def test_learns_one_image_by_heart(small):
    assert learned(small.train()) == pytest.approx(1.0)


def test_the_page_trains_saves_and_loads_it(paper, unregistered, tmp_path, monkeypatch, capsys):
    """The page's second block as it stands, on few scenes."""
    few = functools.partial(api.train, image_size=64, device="cpu", precision="float32")
    data = shapes_data(train=16, val=4, test=4, size=64)
    monkeypatch.setattr(api, "train", lambda _, **settings: few(data, **settings))
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(compile(USE, "docs/mixing.md", "exec"), namespace)
    detector, image = namespace["detector"], data.splits["val"].read(0)
    first, again = (d.predict(image, threshold=0.0) for d in (detector, bq.load("runs/anchor-smca")))
    assert len(first) > 0
    assert (first.boxes == again.boxes).all()
    assert (first.scores == again.scores).all()
    assert first.names == again.names
    assert len(Path("runs/anchor-smca/metrics.csv").read_text().splitlines()) == 3
    # a process that has not registered it
    models._own.clear()
    with pytest.raises(bq.UserError, match=r"config\.json: no model 'anchor-smca'; .*must be registered first") as raised:
        bq.load("runs/anchor-smca")
    assert "\n" not in str(raised.value)
    capsys.readouterr()
    assert command_line(["evaluate", "runs/anchor-smca", "shapes"]) == 2
    assert "registered first" in capsys.readouterr().err


# -- registering ----------------------------------------------------------------------------------------------------------------


def test_registered_it_is_one_of_the_family(registered, paper, capsys):
    assert bq.list_models() == sorted([*models.papers(), NAME])
    assert [line.partition(":")[0] for line in models.differences(NAME)] == ["queries", "locate", "head"]
    assert models.preset(NAME, "tiny") == paper.PRESETS["tiny"]
    model = bq.create_model(NAME, classes=["a", "b"], preset="tiny", patterns=2, backbone="resnet10t")
    assert (model.config["name"], model.config["classes"], model.config["options"]["patterns"]) == (NAME, 2, 2)
    assert model.queries.patterns.shape[0] == 2
    with pytest.raises(bq.UserError, match=r"anchor-smca: unknown option 'pattern'; known: .*patterns"):
        bq.create_model(NAME, classes=2, pattern=2)
    with pytest.raises(bq.UserError, match="anchor-smca has no preset 'huge'"):
        bq.create_model(NAME, classes=2, preset="huge")
    models.register(NAME, paper)
    # the command line shows the library's papers
    assert command_line(["models", "--json"]) == 0
    assert NAME not in capsys.readouterr().out


def test_unknown_it_must_be_registered_first(unregistered):
    for use in (lambda: bq.create_model(NAME, classes=2), lambda: bq.train("shapes", model=NAME)):
        with pytest.raises(bq.UserError, match=r"no model 'anchor-smca'; .* must be registered first"):
            use()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("detr", {}, "name='detr': the library has a model of this name"),
        ("Anchor_SMCA", {}, "lower-case"),
        ("", {}, "lower-case"),
        ("mine", {"PRESETS": {}}, "mine: a model's module needs PRESETS"),
        ("mine", {"build": None}, "mine: a model's module needs PRESETS"),
    ],
)
def test_what_cannot_be_registered(paper, unregistered, name, given, said):
    with pytest.raises(bq.UserError) as raised:
        models.register(name, SimpleNamespace(**{"PRESETS": paper.PRESETS, "build": paper.build} | given))
    assert said in str(raised.value)
    assert bq.list_models() == models.papers()


# -- what fits ------------------------------------------------------------------------------------------------------------------

DIM, HEADS, QUERIES = 32, 2, 6


def _memory(dim: int = DIM, axes: bool = False) -> Memory:
    torch.manual_seed(1)
    tokens = Tokens(Positions(dim, axes), dim).double()
    return tokens([torch.randn(2, dim, 4, 6, dtype=torch.float64)], pixel_mask(), (64, 96))


def points(axes: bool) -> PatternQueries:
    return PatternQueries(3, 2, DIM, Positions(DIM, axes).double().of_points)


def under_gaussians(locate, predicts: bool = False) -> GaussianLocate:
    return GaussianLocate(locate, DIM, HEADS, 2, stride=16, predicts=predicts)


#: as the page names them
PAIRS = {
    "`LearnedQueries`, `locate_at_position` (DETR)": lambda: (LearnedQueries(QUERIES, DIM), locate_at_position),
    "`LearnedQueries`, `GaussianLocate` (SMCA)": lambda: (LearnedQueries(QUERIES, DIM), under_gaussians(locate_at_position, predicts=True)),
    "`ReferencePointQueries`, `ConditionalLocate` (Conditional)": lambda: (ReferencePointQueries(QUERIES, DIM), ConditionalLocate(DIM)),
    "`ReferencePointQueries` with learned content, `locate_at_position` (Deformable)": lambda: (
        ReferencePointQueries(QUERIES, DIM, "learned"),
        locate_at_position,
    ),
    "`PatternQueries`, `locate_at_position` (Anchor)": lambda: (points(axes=True), locate_at_position),
    "`BoxQueries`, `DABLocate` (DAB, DN)": lambda: (BoxQueries(QUERIES, DIM), DABLocate(DIM)),
    "`BoxQueries`, `BoxLocate` (DAB-Deformable)": lambda: (BoxQueries(QUERIES, DIM, "learned"), BoxLocate(DIM)),
    "`ProposalQueries` with learned content, `BoxLocate` (DINO)": lambda: (
        ProposalQueries(QUERIES, DIM, Head(DIM, CLASSES), "learned", class_agnostic=False, learning="chosen"),
        BoxLocate(DIM, scaled=False),
    ),
    "`ProposalQueries` with tokens as content, `PlainBoxLocate` (RT-DETR)": lambda: (
        ProposalQueries(QUERIES, DIM, Head(DIM, CLASSES), "tokens", class_agnostic=False, learning="chosen"),
        PlainBoxLocate(DIM),
    ),
    "`ProposalQueries` with tokens as content, `d_fine.Locate` (D-FINE)": lambda: (
        ProposalQueries(QUERIES, DIM, Head(DIM, CLASSES), "tokens", class_agnostic=False, learning="chosen"),
        d_fine.Locate(DIM),
    ),
    "`ProposalQueries`, `locate_at_position` (Deformable, two-stage)": lambda: (
        ProposalQueries(QUERIES, DIM, Head(DIM, CLASSES)),
        locate_at_position,
    ),
    "`BoxQueries`, `sam_detr.locate` (SAM)": lambda: (BoxQueries(QUERIES, DIM), sam_detr.locate),
    "`WholeImageQueries`, `locate_at_box` (Sparse R-CNN)": lambda: (WholeImageQueries(QUERIES, DIM), locate_at_box),
}
ATTENTIONS = {
    "`DenseAttention`": lambda: DenseAttention(DIM, HEADS),
    "`ScaleSelectionAttention`": lambda: ScaleSelectionAttention(DIM, HEADS, 1),
    "`ConditionalCrossAttention`": lambda: ConditionalCrossAttention(DIM, HEADS, first=True),
    "`RowColumnDecoupledAttention`": lambda: RowColumnDecoupledAttention(DIM, HEADS),
    "`DeformableAttention`": lambda: DeformableAttention(DIM, HEADS, 1, 2),
    "`SemanticAlignedAttention`": lambda: SemanticAlignedAttention(DIM, HEADS),
    "`DynamicConvolution`": lambda: DynamicConvolution(DIM, 8, (16,)),
}


def rows(first: str) -> dict[str, list[str]]:
    """A table of the page by its first column; ``first`` is that column's heading."""
    table = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {name: values for name, *values in cells if not name.startswith("---")}


def located(pair) -> tuple[QueryState, QueryGeometry]:
    """What queries and their locate give for the second layer."""
    queries, locate = (part.double() if isinstance(part, nn.Module) else part for part in pair)
    state = queries(_memory(), None)
    state, _ = locate(state, _memory(), 0)
    return locate(state, _memory(), 1)


def test_the_tables_are_complete():
    assert list(rows("queries, locate"))[1:] == list(PAIRS)
    assert list(rows("cross-attention"))[1:] == list(ATTENTIONS)


@pytest.mark.parametrize("name", PAIRS)
def test_what_locate_gives(name):
    table = rows("queries, locate")
    _, geometry = located(PAIRS[name]())
    for field, said in zip(table["queries, locate"], table[name], strict=True):
        value = getattr(geometry, field.strip("`"))
        assert (value is not None) == bool(said), field
        if said in ("point", "box"):
            assert value.shape == (2, QUERIES, 2 if said == "point" else 4)


def test_points_without_axes_have_none():
    assert located((points(axes=False), locate_at_position))[1].axes is None


@torch.no_grad()
@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_attentions_need(name):
    """With what the page says and no more an attention works; without any of it, or with what it cannot use, it raises."""
    needs, uses, _ = rows("cross-attention")[name]
    attention, content = ATTENTIONS[name]().double(), torch.randn(2, QUERIES, DIM, dtype=torch.float64)
    axes = (content + 1, content - 1)
    every = {
        "position": content + 2, "self_position": content + 3, "axes": axes,
        "reference": torch.rand(2, QUERIES, 4, dtype=torch.float64), "bias": -torch.rand(2, HEADS, QUERIES, 24, dtype=torch.float64),
    }  # fmt: skip
    needed = [f for f in every if f"`{f}`" in needs]
    memory = _memory(axes="`Memory.axes`" in needs)

    def output(memory: Memory = memory, **fields: Tensor) -> Tensor:
        return attention(content, QueryGeometry(**fields), memory)

    least = {f: every[f] for f in needed}
    plain = output(**least)
    for field in every:
        if field in needed:
            with pytest.raises(bq.UserError, match=rf"{name.strip('`')}.* needs QueryGeometry\.{field}.*docs/mixing\.md"):
                output(**{f: v for f, v in least.items() if f != field})
        elif field == "bias" and f"`{field}`" not in uses:
            with pytest.raises(bq.UserError, match=rf"{name.strip('`')} cannot use the QueryGeometry\.bias"):
                output(**least, bias=every["bias"])
        else:
            assert torch.allclose(output(**least, **{field: every[field]}), plain) == (f"`{field}`" not in uses), field
    if "`Memory." in needs:
        with pytest.raises(bq.UserError, match=r"needs Memory\."):
            output(memory=_memory(axes="`Memory.axes`" not in needs), **least)
    if "(box)" in needs:
        with pytest.raises(bq.UserError, match="of four numbers"):
            output(**{**least, "reference": every["reference"][..., :2]})


@pytest.mark.parametrize(
    ("locate", "without"),
    [
        (lambda: ConditionalLocate(DIM), "QueryState.reference"),
        (lambda: DABLocate(DIM), "QueryState.reference of four numbers"),
        (lambda: BoxLocate(DIM), "QueryState.reference of four numbers"),
        (lambda: sam_detr.locate, "QueryState.reference"),
        (lambda: locate_at_box, "QueryState.reference of four numbers"),
        (lambda: under_gaussians(locate_at_position), "QueryState.reference"),
    ],
)
def test_locate_without_the_reference_that_it_needs(locate, without):
    with pytest.raises(bq.UserError, match=f"needs {without}, which"):
        located((LearnedQueries(QUERIES, DIM), locate()))


@pytest.mark.parametrize("name", [name for name in PAIRS if "GaussianLocate" not in name])
def test_gaussians_wrap_any_locate(name):
    """They add the bias and change nothing else; what has no reference gets one."""
    queries, locate = PAIRS[name]()
    predicts = "DETR" in name
    torch.manual_seed(0)
    state, geometry = located((queries, under_gaussians(locate, predicts)))
    _, bare = located((queries, locate))
    assert geometry.bias.shape == (2, HEADS, QUERIES, 24)
    for field in ("position", "self_position", "self_mask"):
        ours, theirs = getattr(geometry, field), getattr(bare, field)
        assert ours is theirs is None or torch.equal(ours, theirs)
    if predicts:
        assert state.box_anchor is state.reference
    assert torch.equal(geometry.reference, state.reference.sigmoid() if bare.reference is None else bare.reference)


@pytest.mark.parametrize("name", ["conditional-detr", "dab-detr", "detr"])
def test_other_papers_under_gaussians(name):
    """A locate with parameters, refined boxes, and conditional cross-attention: every Gaussian is trained."""
    model = shaken(create(name))
    o = model.config["options"]
    model.place = GaussianLocate(model.place, o["hidden_dim"], o["heads"], o["decoder_layers"], stride=16, predicts=name == "detr")
    shaken(model.place)
    out = model(*batch(*SIZES), trace=True)
    assert all(layer.gaussian is not None and layer.attention is not None for layer in out.trace.layers)
    model.loss(out, objects(2, 1))[0].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.place.parameters())


def test_gaussians_over_rows_and_columns_are_refused():
    """Found on the first image, not after a training in which they were ignored."""
    model = create("anchor-detr")
    o = model.config["options"]
    model.place = GaussianLocate(model.place, o["hidden_dim"], o["heads"], o["decoder_layers"], stride=16, predicts=False)
    with pytest.raises(bq.UserError, match="RowColumnDecoupledAttention cannot use"):
        model(*batch(*SIZES))


def test_self_positions_fit_conditional_self_attention():
    attention = ConditionalSelfAttention(DIM, HEADS).double()
    for name, pair in PAIRS.items():
        state, geometry = located(pair())
        if "Sparse R-CNN" in name:
            assert geometry.own_position is None
            continue
        assert attention(state.content, geometry).shape == (2, QUERIES, DIM), name
    with pytest.raises(bq.UserError, match=r"ConditionalSelfAttention needs QueryGeometry\.position or QueryGeometry\.self_position"):
        attention(state.content, QueryGeometry())
