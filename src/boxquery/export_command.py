"""The command export. Imports no torch: ``--help`` must be instant."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

from boxquery.command_result import CommandResult
from boxquery.errors import UserError, count
from boxquery.export.packages import ENDINGS, check_calibration, check_combination
from boxquery.flags import Switch, check_model
from boxquery.limits import check_above_zero


def export(
    run: str,
    /,
    *,
    to: Literal["onnx", "openvino"],
    out: Path,
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    size: str | None = None,
    verify: str | None = None,
    split: str = "val",
    calibrate: str | None = None,
    calibration_images: int | None = None,
    image_size: int | None = None,
    download: Switch = False,
) -> CommandResult:
    """Write a model as a file that runs without Python or torch: pixels in, detections out (docs/export.md).

    Class names, ids, the threshold and the way images are resized are in the file. For a model of several cameras, the file
    takes the images of all of them and their calibration.

    Args:
        run: A run folder, a model folder (ours or one of transformers) or a hub id.
        to: Runtime that the file is for.
        out: File to write, .onnx or .xml; OpenVINO has its weights beside it in a file .bin.
        precision: fp16 stores weights in half the space; bf16 also computes in it, on processors that can (both OpenVINO only). int8
            computes large products in 8 bits, by ranges that it measures on the images of --calibrate.
        size: Height x width that every image is resized to, which is faster. Take those of most images once their short side is
            the model's: images 640 wide and 480 high are 160x213 for a model of short side 160. Others are stretched. Default: any size,
            by the model's own rule.
        verify: A data set on which file and model are compared: AP (of scenes mAP and NDS), outputs and latency. If they differ too much,
            the status is 1 and the file is not written.
        split: Split to verify on.
        calibrate: Images for --precision int8, like those to come: a data set, of which it takes the training split, or a folder of images.
            For a model of several cameras, a data set of scenes.
        calibration_images: Number of images, or scenes, that are taken from --calibrate, evenly spaced. Default: 100.
        image_size: Short side of the model's input in pixels. Default: that of its training.
        download: Fetch a model from the hub also if it has more than 200 MB.
    """
    if out.suffix != ENDINGS[to]:
        raise UserError(f"{out}: a file for {to} ends in {ENDINGS[to]}; choose another --out or --to")
    check_combination(to, precision)
    check_calibration(precision, calibrate, calibration_images)
    sides = None if size is None else parse_size(size)
    check_above_zero(image_size=image_size)
    check_model(run)
    from boxquery.compare.runner import stopping
    from boxquery.data.open import open_data
    from boxquery.data.scenes.open import holds_scenes, open_scenes
    from boxquery.export.writer import check_free, export
    from boxquery.model_folder import open_model

    check_free(out)
    data = None if verify is None else open_scenes(verify) if holds_scenes(verify) else open_data(verify)
    for line in [] if data is None else data.messages():
        print(line, file=sys.stderr)
    if data is not None:
        data.split(split)
    detector = open_model(run, download=download)
    if image_size is not None:
        detector.image_size = image_size
    print(f"tracing {detector.name}, which takes ten seconds to a few minutes, longest with deformable attention", file=sys.stderr)
    with stopping():
        values = export(
            detector, out, precision=precision, size=sides, data=data, split=split, calibrate=calibrate,
            calibration_images=calibration_images,
        )  # fmt: skip
    shape = "any size" if sides is None else f"{sides[0]}x{sides[1]}"
    unit = "scene" if "scenes" in values else "image"
    ranges = "" if values["calibration_images"] is None else f" (ranges of {count(values['calibration_images'], unit)})"
    text = f"{out}: {values['model']} for {to} in {precision}{ranges}, {shape}, {values['bytes'] / 1e6:.1f} MB, "
    text += f"in {values['seconds']:.0f} seconds"
    if values["verified"] is not None:
        text += f"\n{_verified(values['verified'], str(verify), precision)}"
    return CommandResult(values, text=text)


def _verified(seen: dict[str, Any], data: str, precision: str) -> str:
    """What a file and its model have in common, in a line."""
    from boxquery.export.verify import TOLERANCE

    apart = (
        f"boxes and scores differ by up to {seen['difference']:.1g}, {seen['differing']:.2%} of the queries by more than {TOLERANCE:g}; "
    )
    if "scenes" in seen:
        unit, total, metrics = "scene", seen["scenes"], ("mAP", "NDS")
    else:
        unit, total, metrics = "image", seen["images"], ("AP",)
    measured = ", ".join(f"{name} {seen[f'{name}_exported']:.4f}, of the model {seen[name]:.4f}" for name in metrics)
    return (
        f"{count(total, unit)} of {data}: {measured}; {apart if precision == 'fp32' else ''}"
        f"{seen['ms_exported']:.1f} ms per {unit}, of the model {seen['ms']:.1f}"
    )


def parse_size(text: str) -> tuple[int, int]:
    """``480x640`` -> (height, width). Raises ``UserError``."""
    if (found := re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)) is None:
        raise UserError(f"--size {text}: write height x width in pixels, as 480x640")
    return int(found[1]), int(found[2])
