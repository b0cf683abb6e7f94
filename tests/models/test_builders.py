"""What several papers build alike."""

import torch
from torch import nn

from boxquery.models.builders import look_forward_twice
from boxquery.parts.heads import Head
from boxquery.parts.state import QueryState


def test_look_forward_twice():
    """The loss of a layer reaches the update of the layer before it and no further; a reference carries no gradient at all."""
    torch.manual_seed(0)
    head, norm = Head(8, 3, zero_boxes=False).double(), nn.LayerNorm(8).double()
    contents = [torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    start = torch.randn(1, 4, 4, dtype=torch.float64)
    state, predictions, anchors = QueryState(contents[0], reference=start, box_anchor=start), [], [start]
    for content in contents:
        state = state.with_content(content)
        predictions.append(head(norm(content), state))
        state = look_forward_twice(state, predictions[-1], head)
        assert not state.reference.requires_grad
        torch.testing.assert_close(state.reference, state.box_anchor)
        # the update is made of content before the norm, the prediction of content after it
        torch.testing.assert_close(state.reference, head.boxes(content) + anchors[-1])
        torch.testing.assert_close(predictions[-1].box, head.boxes(norm(content)) + anchors[-1])
        anchors.append(state.reference)
    for layer, prediction in enumerate(predictions):
        gradients = torch.autograd.grad(prediction.boxes.sum(), contents, retain_graph=True, allow_unused=True)
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert reached == [layer - 1 <= each <= layer for each in range(3)]
