"""Which cells become queries: the best, or first the peaks among their neighbours."""

import torch

import boxquery as bq
from boxquery.parts.queries import peaks_first

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
