"""Two processes of which one has no object in its batch: no parameter is left without a gradient, and both end with the same weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.models.builders import batch, objects
from tests.models.test_matching import KINDS, SIZES, build, fits
from tests.training.processes import apart, in_two

RICH = ("group+one-to-many+dense", "hybrid+denoising+one-to-many+dense")


class WithLoss(nn.Module):
    """As training calls a model: gradients are exchanged for what one forward pass has used."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, mask, targets):
        return self.model.loss(self.model(images, mask, targets=targets), targets)[0]


def two_steps(written: Path) -> None:
    """For every model and strategies, two steps; the rank's loss and weights afterwards go into a file. A parameter without a gradient in
    the first step makes the second fail."""
    distributed.init_process_group("gloo")
    rank, outcome = distributed.get_rank(), {}
    for system in KINDS:
        for matching in RICH:
            if not fits(system, matching):
                continue
            torch.manual_seed(0)
            model = WithLoss(build(system, matching).train())
            parallel = DistributedDataParallel(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            images, mask = batch(*SIZES)
            targets = objects(*((0, 0) if rank else (2, 1)))
            for _ in range(2):
                optimizer.zero_grad()
                loss = parallel(images, mask, targets)
                loss.backward()
                optimizer.step()
            total = sum(parameter.double().abs().sum().item() for parameter in model.parameters())
            outcome[f"{system} {matching}"] = [loss.item(), total]
    written.with_suffix(f".{os.environ['RANK']}.json").write_text(json.dumps(outcome))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_one_of_two_processes_has_no_object(tmp_path):
    apart(tmp_path / "log", in_two, 0, two_steps, tmp_path / "out")
    one, other = (json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in (0, 1))
    assert len(one) == sum(fits(system, matching) for system in KINDS for matching in RICH)
    for name, (loss, total) in one.items():
        assert torch.isfinite(torch.tensor(loss)), name
        assert other[name][1] == total, name
        assert other[name][0] != loss, name
