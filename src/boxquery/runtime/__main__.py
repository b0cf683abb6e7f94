"""``python -m boxquery.runtime model.onnx street.jpg``: what an exported model detects in images."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from boxquery.errors import UserError
from boxquery.result import Result
from boxquery.runtime import load


def main(words: list[str] | None = None) -> int:
    """Run one command line. Returns the exit status: 0 done, 2 the input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m boxquery.runtime", description="Detect objects in images with an exported model.")
    parser.add_argument("model", help=".onnx, or .xml with its .bin beside it")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--threshold", type=float, help="minimum score, from 0 to 1; default: the model's own")
    parser.add_argument("--nms", type=float, help="IoU threshold of class-wise NMS; default: none")
    parser.add_argument("--classes", type=lambda text: text.split(","), help="only these classes, separated by commas; default: all")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--threads", type=int, help="threads; default: OMP_NUM_THREADS, else as the runtime chooses")
    parser.add_argument("--json", action="store_true", help="print one machine-readable object")
    given = parser.parse_args(words)
    try:
        detector = load(given.model, device=given.device, threads=given.threads)
        stream = detector.predict(iter(given.images), threshold=given.threshold, nms=given.nms, classes=given.classes)
        if given.json:
            print(json.dumps({"images": [_plain(result) for result in stream]}))
        else:
            for result in stream:
                print(*_lines(result), sep="\n")
    except UserError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        return error.status
    return 0


def _plain(result: Result) -> dict[str, Any]:
    height, width = result.size
    rows = [{"class": name, **row} for name, row in zip(result.names, result.to_coco(), strict=True)]
    return {"file": result.path, "width": width, "height": height, "detections": rows}


def _lines(result: Result) -> list[str]:
    height, width = result.size
    boxes = zip(result.names, result.scores.tolist(), result.boxes.tolist(), strict=True)
    return [
        f"{result.path}: {width} x {height}, {len(result)} found",
        *(f"  {name} {score:.3f} at {x1:.1f}, {y1:.1f} to {x2:.1f}, {y2:.1f}" for name, score, (x1, y1, x2, y2) in boxes),
    ]


if __name__ == "__main__":
    sys.exit(main())
