"""What fewer queries in later layers save: processor time of the decoder, with one number for all layers and with one for each.

    python benchmarks/queries.py [--models detr,deformable-detr] [--numbers 300,300,200,100,50,50] [--repetitions 9]

Preset "paper" with random weights, one image of 800 x 1066 pixels, one thread, float32, answers of the last layer. The memory is made
once and handed to the queries and the decoder, without backbone and encoder, so it is the decoder's time alone. Repetitions are
interleaved and timed as CPU time of this process; the ratio is the median over neighbours. Which queries go on makes no difference to
the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

import boxquery as bq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="detr,deformable-detr,dab-detr")
    parser.add_argument("--numbers", default="300,300,200,100,50,50")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--size", default="800x1066", help="height x width of the image")
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers = [int(n) for n in given.numbers.split(",")]
    height, width = (int(n) for n in given.size.split("x"))
    found = []
    for name in given.models.split(","):
        torch.manual_seed(0)
        models = [
            bq.create_model(name, classes=91, num_queries=n, encoder_layers=0, decoder_layers=len(numbers)).eval()
            for n in (numbers[0], numbers)
        ]
        with torch.no_grad():
            memory = models[0].embed_image(torch.randn(1, 3, height, width))
        seconds = [[], []]
        for model in models:
            model.backbone = nn.Identity()
            _decode(model, memory)
        for i in range(given.repetitions):
            for which in (0, 1) if i % 2 == 0 else (1, 0):
                start = time.process_time()
                _decode(models[which], memory)
                seconds[which].append(time.process_time() - start)
        ratios = [few / all_ for all_, few in zip(*seconds, strict=True)]
        row = {
            "model": name,
            "numbers": numbers,
            "all_ms": 1e3 * min(seconds[0]),
            "fewer_ms": 1e3 * min(seconds[1]),
            "ratio": statistics.median(ratios),
        }
        found.append(row)
        print(f"{name:20} {numbers[0]} everywhere {row['all_ms']:8.1f} ms   {numbers} {row['fewer_ms']:8.1f} ms   ratio {row['ratio']:.3f}")
    print(json.dumps(found))


@torch.inference_mode()
def _decode(model, memory) -> None:
    model.forward_transformer(memory, last_only=True)


if __name__ == "__main__":
    main()
