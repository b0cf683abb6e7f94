"""Our models beside those of `transformers`: seconds of a training step and of inference, on the same weights and the same batch; and what
it costs that a running training watches itself.

    python benchmarks/bench.py [--quick] [--only NAME]

What is measured, for each model (DETR and Deformable DETR) at two sizes, in one thread of the CPU, float32:

- training: forward, matching, loss of every decoder layer, backward and one AdamW step, on a batch of two images of different size
  (padded and masked); dropout at the same rate in the same places, batch norm and the shallow backbone frozen as published;
- inference: forward of one image without padding, answers of the last layer (`last_only=True`; there `auxiliary_loss=False`), without
  post-processing;
- each with the backbone, which is timm's module with the same weights on both sides, and without it: its maps are computed once and fed in.

The real-time models (RT-DETR, RT-DETRv2, D-FINE) are those of `transformers`' default configurations, on two square images of 320 pixels
without padding, training with about 200 noised queries on both sides. `transformers` has its own backbone there, which is part of what is
measured, and its own loss: D-FINE's is another one than the authors' and ours (docs/who-computes-what.md).

"paper" is the published R50 architecture; "small" a ResNet-18 with a narrower transformer, where Deformable DETR refines its boxes. Both
sides run as they come: `transformers` with its own choice of attention (sdpa) and its pure PyTorch deformable attention.

Repetitions are interleaved (ours, theirs, theirs, ours, ...) and timed as CPU time of this process; the ratio ours / theirs is the median
over neighbours, so a machine that slows down for a while slows down both. Below 1 we are faster. Before timing, answers are compared.

"exported" is benchmarks/exported.py: inference of our exported files beside transformers, eager and as ONNX.

"diagnosis" is the hooks of `boxquery.training.module.Training` around a model that answers at once (its loss and terms are those of a real
step, its gradients too), less the same without clocks, lists, the name of the step and the norm that is kept: a few in ten thousand of a
step, which no difference between whole steps would show. The step is Deformable DETR's, preset `tiny`, four images of 160 pixels.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share with this file
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm
import torch
import transformers
from tests.models.builders import batch, objects
from tests.models.transformers_weights import labels, ours, theirs
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

import exported
from boxquery.data.loading import Batch, generator
from boxquery.models import create_model, preset
from boxquery.models.base import DetectionTransformer
from boxquery.official.transformers import build
from boxquery.official.transformers.config import Config
from boxquery.optimization import training_step
from boxquery.parts.backbone import Backbone
from boxquery.training.config import RunConfig
from boxquery.training.module import Training
from boxquery.training.run_length import RunLength

CLASSES = 80
SMALL: dict[str, Any] = {"backbone": "resnet18", "hidden_dim": 128, "heads": 8, "ffn_dim": 512, "decoder_layers": 3, "num_queries": 100}


@dataclass(frozen=True)
class Setting:
    name: str
    options: dict[str, Any]
    size: tuple[int, int]
    repetitions: int

    @property
    def model(self) -> str:
        return self.name.split()[0]

    @property
    def real_time(self) -> str | None:
        """The name in `transformers` of a model that is read as a whole."""
        return REAL_TIME.get(self.model)


REAL_TIME = {name: exported.PEERS[name] for name in exported.REAL_TIME}
SETTINGS = (
    Setting("detr paper", {"backbone": "resnet50"}, (320, 416), 7),
    Setting("deformable-detr paper", {"backbone": "resnet50"}, (320, 416), 7),
    Setting("detr small", SMALL | {"encoder_layers": 2, "dilation": True}, (192, 256), 25),
    *(Setting(f"{name} paper", {}, (320, 320), 7) for name in REAL_TIME),
    Setting("deformable-detr small", SMALL | {"encoder_layers": 1, "levels": 3, "box_refine": True}, (192, 256), 25),
)


@dataclass(frozen=True)
class Row:
    """Milliseconds are the best of all repetitions; ``ratio`` is the median over neighbours, ``low`` and ``high`` its quartiles."""

    name: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    low: float
    high: float


class Maps(nn.Module):
    """A backbone that has already seen its images."""

    def __init__(self, maps: list[Tensor]):
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps


def pair(setting: Setting) -> tuple[DetectionTransformer, nn.Module]:
    """Both models with the same weights, and the very same kind of backbone."""
    torch.manual_seed(0)
    if setting.real_time:
        settings = getattr(transformers, f"{setting.real_time}Config")(num_labels=CLASSES)
        peer = getattr(transformers, f"{setting.real_time}ForObjectDetection")(settings)
        return cast(DetectionTransformer, build(Config(settings.to_dict(), "config"), peer.state_dict(), CLASSES, "peer")[0]), peer
    published = dict(vars(preset(setting.model).options)) | {"backbone_options": {}}
    options = published | setting.options
    peer = theirs(setting.model, CLASSES, options)
    model = ours(setting.model, CLASSES, options, peer)
    peer.model.backbone.model = plain(model.backbone)
    return model, peer


def plain(backbone: Backbone) -> nn.Module:
    """timm's own module with the same weights, frozen as ours, whose convolutions apply the fixed norms themselves."""
    stride = {} if backbone.channels_last else {"output_stride": 16}
    body = timm.create_model(backbone.name, features_only=True, out_indices=tuple(range(-len(backbone.channels), 0)), **stride)
    body.load_state_dict(backbone.body.state_dict(), strict=False)
    body = freeze_batch_norm_2d(body)
    for own, other in zip(body.parameters(), backbone.body.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)
    return body


@torch.no_grad()
def check_same_answers(model: DetectionTransformer, peer: nn.Module, images: Tensor, mask: Tensor | None) -> None:
    for side in (model, peer):
        side.eval()
    peer.config.auxiliary_loss = False
    out, result = model(images, mask, last_only=True), peer(pixel_values=images, pixel_mask=seen_of(mask))
    torch.testing.assert_close(out.logits[-1], result.logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(out.boxes[-1], result.pred_boxes, atol=1e-3, rtol=1e-3)


def seen_of(mask: Tensor | None) -> Tensor | None:
    """A mask as `transformers` has it."""
    return None if mask is None else (~mask).long()


def training(
    model: DetectionTransformer, peer: nn.Module, images: Tensor, mask: Tensor | None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One step of each."""
    for side in (model, peer):
        side.train()
    peer.config.auxiliary_loss = True
    targets = objects(7, 12, classes=CLASSES)
    answers, seen = labels(targets), seen_of(mask)
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-6) for m in (model, peer)]

    def step_ours() -> None:
        optimizers[0].zero_grad()
        model.loss(model(images, mask, targets=targets), targets)[0].backward()
        optimizers[0].step()

    def step_theirs() -> None:
        optimizers[1].zero_grad()
        peer(pixel_values=images, pixel_mask=seen, labels=answers).loss.backward()
        optimizers[1].step()

    return step_ours, step_theirs


def inference(model: DetectionTransformer, peer: nn.Module, images: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    for side in (model, peer):
        side.eval()
    peer.config.auxiliary_loss = False

    @torch.inference_mode()
    def run_ours() -> None:
        model(images, last_only=True)

    @torch.inference_mode()
    def run_theirs() -> None:
        peer(pixel_values=images)

    return run_ours, run_theirs


def seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(name: str, run_ours: Callable[[], None], run_theirs: Callable[[], None], repetitions: int) -> Row:
    """Interleaved, each pair in the other order than the one before."""
    for run in (run_ours, run_theirs):
        run()
    a, b = [], []
    gc.disable()
    for i in range(repetitions):
        for mine in (True, False) if i % 2 == 0 else (False, True):
            (a if mine else b).append(seconds(run_ours if mine else run_theirs))
        gc.collect()
    gc.enable()
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Row(name, 1e3 * min(a), 1e3 * min(b), middle, low, high)


def rows(setting: Setting, quick: bool) -> Iterator[Row]:
    """With backbone and, where it is the same module on both sides, without; training and inference."""
    model, peer = pair(setting)
    height, width = setting.size
    images, mask = batch(setting.size, setting.size if setting.real_time else (height * 3 // 4, width * 7 // 8))
    mask = None if setting.real_time else mask
    check_same_answers(model, peer, images, mask)
    repetitions = 3 if quick else setting.repetitions
    yield measure(f"{setting.name} training", *training(model, peer, images, mask), repetitions)
    yield measure(f"{setting.name} inference", *inference(model, peer, images[:1]), 2 * repetitions)
    if setting.real_time:
        return
    with torch.no_grad():
        maps = model.backbone(images)
    model.backbone.body = peer.model.backbone.model = Maps(maps)
    yield measure(f"{setting.name} training, without backbone", *training(model, peer, images, mask), repetitions)
    model.backbone.body = peer.model.backbone.model = Maps([m[:1].contiguous() for m in maps])
    yield measure(f"{setting.name} inference, without backbone", *inference(model, peer, images[:1]), 2 * repetitions)


@dataclass(frozen=True)
class Watching:
    """Microseconds that the diagnosis adds to a step (median, quartiles), milliseconds of the step, and the share."""

    name: str
    extra_us: float
    low: float
    high: float
    step_ms: float
    share: float


WATCHED = "deformable-detr"
#: calls that are timed together, since one is shorter than the clock is fine
CALLS = 100


def diagnosis(repetitions: int) -> Watching:
    torch.manual_seed(0)
    model, recipe = create_model(WATCHED, classes=CLASSES, preset="tiny"), preset(WATCHED, "tiny").recipe
    images, _ = batch(*[(recipe.image_size, recipe.image_size)] * 4)
    drawn = Batch(images, None, objects(7, 3, 5, 2, classes=CLASSES), [0, 1, 2, 3])
    length = RunLength(epochs=1, schedule_steps={0: 1000}).with_data(1000, 4)
    config = RunConfig(
        data="", model=WATCHED, preset="tiny", image_size=recipe.image_size, batch_size=4, lr=recipe.lr, precision="float32", length=length
    )
    module = Training(model, replace(recipe, ema=0.0), config, ["a", "b", "c", "d"])
    optimization = module.configure_optimizers() and module.optimization
    module.trainer = SimpleNamespace(current_epoch=0, global_rank=0, is_last_batch=False)  # pyright: ignore[reportAttributeAccessIssue]
    module.manual_backward = Tensor.backward
    module.on_train_epoch_start()

    def step() -> None:
        module.on_train_batch_start(drawn, 0)
        module.training_step(drawn, 0)
        module.on_train_batch_end(None, drawn, 0)

    step()
    whole = min(seconds(step) for _ in range(repetitions))
    out = model(images, targets=drawn.targets)
    ready = model.loss(out, drawn.targets)
    model.forward, model.loss = lambda *_, **__: out, lambda *_: ready
    still: Any = SimpleNamespace(param_groups=optimization.optimizer.param_groups, zero_grad=lambda: None, step=lambda: None, last_epoch=0)
    optimization.optimizer = optimization.schedule = still
    module.manual_backward = lambda loss: None

    def watched() -> None:
        for _ in range(CALLS):
            step()

    def unwatched() -> None:
        sums: dict[str, Tensor] = {}
        for _ in range(CALLS):
            torch.manual_seed(generator(0, 0, "step 0 of 0").initial_seed())
            result = training_step(model, drawn, still, clip=recipe.clip, backward=lambda loss: None)
            for name, value in {"loss": result.loss, **result.terms}.items():
                value = value[-1] if value.dim() else value
                sums[name] = sums[name] + value if name in sums else value

    extra = []
    for run in (watched, unwatched):
        run()
    for _ in range(repetitions):
        module.on_train_epoch_start()
        extra.append((seconds(watched) - seconds(unwatched)) / CALLS)
    low, middle, high = statistics.quantiles(extra, n=4)
    return Watching("diagnosis", 1e6 * middle, 1e6 * low, 1e6 * high, 1e3 * whole, middle / whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repetitions each")
    parser.add_argument("--only", default="", help='parts whose name starts with this, for example "detr paper", "diagnosis" or "exported"')
    given = parser.parse_args()
    torch.set_num_threads(1)
    watching = diagnosis(3 if given.quick else 25) if "diagnosis".startswith(given.only) else None
    if watching is not None:
        print(
            f"diagnosis: {watching.extra_us:.0f} us ({watching.low:.0f} .. {watching.high:.0f}) of a step of {watching.step_ms:.0f} ms: "
            f"{watching.share:.2%}",
            flush=True,
        )
    print(f"{'':56}{'ours':>10}{'theirs':>10}{'ratio':>8}   quartiles")
    found = []
    for setting in SETTINGS:
        if not setting.name.startswith(given.only):
            continue
        for row in rows(setting, given.quick):
            found.append(row)
            print(f"{row.name:56}{row.ours_ms:8.1f}ms{row.theirs_ms:8.1f}ms{row.ratio:8.3f}   {row.low:.3f} .. {row.high:.3f}", flush=True)
    beside = {}
    for name in exported.PEERS if "exported".startswith(given.only) else ():
        beside[name] = exported.measure(name, given.quick, exported.FILES)
        exported.show(name, beside[name])
    told = {"ratio": "ours / theirs, median of neighbours", "rows": [asdict(row) for row in found]}
    print(json.dumps(told | {"diagnosis": watching and asdict(watching), "exported": beside}))


if __name__ == "__main__":
    main()
