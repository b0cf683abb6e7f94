"""What the built-in scenes of six cameras hold: how large objects appear, how many are hidden, and what boxes reach that ignore images.

python benchmarks/surround.py --scenes 300 --sheet sheet.jpg
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image

from boxquery.boxes3d import NEAR, corners, project
from boxquery.data.surround import surround_data
from boxquery.pages.cameras import draw_scene

RANGES = ((4, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 71))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="scenes of the val split that are looked at")
    parser.add_argument("--sheet", help="a picture of six scenes to write")
    args = parser.parse_args()
    data = surround_data(val=args.scenes)
    split = data.split("val")
    rows, start = [], time.process_time()
    for record in split:
        rows.append(measured(record, split.records.render(record)[1]))
    cost = (time.process_time() - start) / len(split)
    distance, height, pixels, cameras = np.concatenate(rows).T
    print(f"{len(distance)} objects in {len(split)} scenes, {1000 * cost:.1f} ms CPU per scene")
    print("| distance (m) | objects | height in pixels: 10 %, median, 90 % | pixels seen: median | by no camera | by two or more |")
    print("|---|---|---|---|---|---|")
    for low, high in (*RANGES, (0, 50)):
        own = (distance >= low) & (distance < high)
        tall = np.percentile(height[own & (pixels > 0)], (10, 50, 90))
        print(
            f"| {low} - {high} | {own.mean():.0%} | {tall[0]:.1f}, {tall[1]:.1f}, {tall[2]:.1f} | {np.median(pixels[own]):.0f} | "
            f"{(pixels[own] == 0).mean():.1%} | {(cameras[own] > 1).mean():.0%} |"
        )
    if args.sheet:
        sheet(data, args.sheet)


def measured(record, met: np.ndarray) -> np.ndarray:
    """Per object its distance, its height in the image that shows most of it, the pixels of it that are seen, and by how many cameras."""
    pixels, depth = project(corners(record.boxes), record.lidar2img)
    height = np.where((depth > NEAR).all(2), np.ptp(pixels[..., 1], axis=2), np.nan)
    best = met.argmax(0)
    tall = height[best, np.arange(len(best))]
    distance = np.hypot(record.boxes[:, 0], record.boxes[:, 1])
    return np.column_stack((distance, np.nan_to_num(tall, nan=record.sizes[0, 1]), met.sum(0) / 4, (met > 0).sum(0)))


def sheet(data, path: str) -> None:
    split = data.split("train")
    pictures = [
        draw_scene(split.read(i), one.lidar2img, one.boxes, one.labels, names=data.names, cameras=one.cameras)
        for i, one in enumerate(split[:6])
    ]
    width, height = pictures[0].size
    canvas = Image.new("RGB", (2 * width + 10, 3 * (height + 10)), "black")
    for i, picture in enumerate(pictures):
        canvas.paste(picture, (i % 2 * (width + 10), i // 2 * (height + 10)))
    canvas.save(path, quality=88)


if __name__ == "__main__":
    main()
