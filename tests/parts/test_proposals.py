"""Which cells become queries, the best or first the peaks among their neighbours, and with what content."""

import numpy as np
import pytest
import torch

import boxquery as bq
from boxquery.matching.groups import FurtherQueries
from boxquery.parts.boxes import chosen_rows
from boxquery.parts.heads import Head
from boxquery.parts.memory import Memory
from boxquery.parts.queries import ProposalQueries, peaks_first, propose
from boxquery.parts.state import QueryState

from .memories import memory


def order(scores: torch.Tensor, *shapes: tuple[int, int], invalid: list[int] = ()) -> list[int]:
    mask = torch.zeros(1, scores.numel(), dtype=torch.bool)
    mask[0, list(invalid)] = True
    kept = memory(*shapes, padded=False)
    return peaks_first(scores.view(1, -1), kept, mask)[0].argsort(descending=True).tolist()


def test_peaks_come_before_all_others_and_each_kind_stays_in_its_order():
    """A ridge of 9, 8, 7 has one peak; 3 is one of its own, two cells away, and so is 1 on the other level, which has no neighbours."""
    fine = torch.tensor([[9.0, 8.0, 7.0, 6.0], [0.0, 0.5, 0.2, 0.1], [-1.0, -2.0, -3.0, 3.0]])
    assert order(torch.cat((fine.flatten(), torch.tensor([1.0]))), (3, 4), (1, 1))[:6] == [0, 11, 12, 1, 2, 3]


def test_an_invalid_cell_hides_no_peak_and_is_none():
    scores = torch.tensor([5.0, 4.0, 1.0, 0.0])
    assert order(scores, (1, 4)) == [0, 1, 2, 3]
    assert order(scores, (1, 4), invalid=[0])[0] == 1


def test_equal_neighbours_are_all_peaks():
    assert sorted(order(torch.tensor([2.0, 2.0, 1.0, 1.5]), (1, 4))[:3]) == [0, 1, 3]


def test_the_model_starts_at_peaks_and_padding_changes_nothing():
    torch.manual_seed(0)
    model = bq.create_model("deformable-detr", classes=3, preset="tiny", proposals="peaks", num_queries=12).eval()
    image = torch.randn(1, 3, 96, 96)
    padded, mask = torch.zeros(1, 3, 96, 128), torch.ones(1, 96, 128, dtype=torch.bool)
    padded[..., :96], mask[..., :96] = image, False
    with torch.inference_mode():
        alone, beside = model(image), model(padded, mask)
        memory = model.encoder(model.embed_image(image))
        state = model.queries(memory)
        best = bq.create_model("deformable-detr", classes=3, preset="tiny", proposals="best", num_queries=12).eval()
        best.load_state_dict(model.state_dict())
        assert not torch.equal(best.queries(memory).reference, state.reference)
    assert alone.boxes.shape == beside.boxes.shape
    scores, maps = state.proposals.logits[0, ..., 0], memory.maps(torch.arange(memory.tokens.shape[1])[None])
    chosen = (model.queries.head.coder.boxes(state.reference)[:, :, None] - state.proposals.boxes[0][:, None]).abs().sum(-1).argmin(-1)[0]
    for cell in chosen[:3].tolist():
        level = next(m[0] for m in maps if cell in m[0])
        row, column = ((level == cell).nonzero()[0]).tolist()
        around = level[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].flatten()
        assert scores[0, cell] >= scores[0, around].max() - 1e-6 or bool(torch.isinf(scores[0, around]).any())


def test_cells_without_a_box_come_last_where_ratios_are_exact():
    """Of 100 pixels the last of seven cells of 16, and of four of 32, has its centre outside."""
    torch.manual_seed(0)
    model = bq.create_model("deformable-detr", classes=3, preset="tiny", num_queries=100).eval()
    image, outside = torch.randn(1, 3, 100, 100), []
    for valid_first in (True, False):
        model.queries.valid_first = valid_first
        with torch.inference_mode():
            memory = model.encoder(model.embed_image(image))
            outside.append(int(model.queries(memory).reference.isinf().any(-1).sum()))
    assert outside[0] == 0
    assert outside[1] > 0


def started(content: str, learning: str, strategy: str | None = None) -> tuple[ProposalQueries, Memory, QueryState]:
    """Queries of five of the 12 + 4 cells, and in training of six more of them, in parts of two for "group"."""
    torch.manual_seed(0)
    queries = ProposalQueries(5, 16, Head(16, 3), content, class_agnostic=False, learning=learning)
    for parameter in queries.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if strategy is not None:
        queries.further = FurtherQueries(strategy, 6, queries.draw(6), peers=3 if strategy == "group" else 0)
    queries, seen = queries.double(), memory((3, 4), (2, 2), padded=False)
    return queries, seen, queries(seen, None if strategy is None else [])


def ranked(queries: ProposalQueries, seen: Memory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, boxes and class logits of all cells by their best class, best first."""
    tokens, anchors = propose(seen)
    tokens = queries.memory_norm(queries.memory_proj(tokens))
    logits, boxes = queries.head.classes(tokens), queries.head.boxes(tokens) + anchors
    order = logits.amax(-1).argsort(1, descending=True)
    return tuple(chosen_rows(values, order) for values in (tokens, boxes, logits))


@pytest.mark.parametrize("content", ["boxes", "tokens", "learned"])
@pytest.mark.parametrize("learning", ["all", "chosen"])
def test_content_of_the_best_by_their_best_class(content, learning):
    queries, seen, state = started(content, learning)
    tokens, boxes, logits = ranked(queries, seen)
    torch.testing.assert_close(state.reference, boxes[:, :5])
    assert not state.reference.requires_grad
    assert state.proposals.logits.shape[2] == (5 if learning == "chosen" else 16)
    assert state.proposals.boxes.requires_grad
    if learning == "chosen":
        torch.testing.assert_close(state.proposals.logits[0], logits[:, :5])
        torch.testing.assert_close(state.proposals.boxes[0], boxes[:, :5].sigmoid())
    if content == "boxes":
        assert state.position is not None
        return
    assert state.position is None
    assert queries.embed(state.reference) == (state.reference, None, None)
    expected = tokens[:, :5] if content == "tokens" else queries.content.expand(len(tokens), -1, -1)
    torch.testing.assert_close(state.content, expected)
    assert state.content.requires_grad == (content == "learned")


@pytest.mark.parametrize("content", ["boxes", "tokens", "learned"])
@pytest.mark.parametrize("strategy", ["group", "hybrid"])
def test_further_queries_start_from_the_next_best(content, strategy):
    """Group by group: the first of three has the 6th and 9th best of all cells."""
    queries, seen, state = started(content, "chosen", strategy)
    tokens, boxes, _ = ranked(queries, seen)
    ranks = [5, 8, 6, 9, 7, 10] if strategy == "group" else [5, 6, 7, 8, 9, 10]
    torch.testing.assert_close(state.reference, torch.cat((boxes[:, ranks], boxes[:, :5]), 1))
    if content == "tokens":
        torch.testing.assert_close(state.content, torch.cat((tokens[:, ranks], tokens[:, :5]), 1))
    elif content == "learned":
        rows = torch.cat((queries.further.content, queries.content))
        torch.testing.assert_close(state.content, rows.expand(len(tokens), -1, -1))


def test_where_cells_run_out_the_best_ranks_of_each_group_are_learned():
    queries, seen, _ = started("learned", "chosen")
    queries.further = FurtherQueries("group", 30, queries.draw(30), peers=3).double()
    state = queries(seen, [])
    assert state.training_only() == 9
    rows = queries.further.content.view(3, 10, 16)[:, :3].flatten(0, 1)
    torch.testing.assert_close(state.content, torch.cat((rows, queries.content)).expand(len(state.content), -1, -1))


def test_proposals_are_as_large_as_the_median_object_where_that_is_asked_for():
    model = bq.create_model("deformable-detr", classes=1, preset="tiny", proposal_size=0.0)
    shares = np.array([[0.4, 0.4], [0.2, 0.8], [0.1, 0.1]])
    assert model.fit_to_data(shares * 160, shares) == {"proposal_size": 0.2} == {"proposal_size": model.config["options"]["proposal_size"]}
    proposed = model.eval().embed_image(torch.rand(1, 3, 160, 160))
    widths = propose(proposed, 0.2)[1][..., 2].sigmoid()
    levels = [level[level < 1].unique() for level in proposed.maps(widths)]
    assert [level.item() for level in levels] == pytest.approx([0.2, 0.4, 0.8])
    assert model.fit_to_data(shares * 160, shares / 2) == {}  # it stays what it is


def test_proposals_of_objects_that_fill_the_image_leave_a_model_that_can_be_built_again():
    model = bq.create_model("deformable-detr", classes=1, preset="tiny", proposal_size=0.0, levels=1)
    measured = model.fit_to_data(np.full((3, 2), 160.0), np.ones((3, 2)))
    assert measured == {"proposal_size": 0.9}
    assert bq.create_model("deformable-detr", classes=1, preset="tiny", levels=1, **measured)
