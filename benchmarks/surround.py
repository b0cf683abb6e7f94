"""What the built-in scenes of six cameras hold: how large objects appear, how many are hidden, what boxes reach that ignore images, and
what is reached by boxes that are as wrong as some pixels of an image make them.

    python benchmarks/surround.py --scenes 400 --sheet docs/surround.jpg
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image

from boxquery.boxes3d import NEAR, corners, project
from boxquery.data.scenes import SceneDetections
from boxquery.data.surround import surround_data
from boxquery.evaluation.fixed_boxes import evaluate_fixed_boxes, fixed_boxes
from boxquery.evaluation.nuscenes import DISTANCES, evaluate_scenes
from boxquery.pages.cameras import draw_scene

RANGES = ((4, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 71))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="scenes of the val split that are looked at")
    parser.add_argument("--sheet", help="a picture of two scenes to write")
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
    fixed = fixed_boxes(data.split("train"), data.protocol)
    reached = evaluate_fixed_boxes(fixed, split, data.protocol)
    print(f"{len(fixed.scores)} fixed boxes: mAP {reached['mAP']:.3f}, NDS {reached['NDS']:.3f}")
    print("| error in pixels | mAP | " + " | ".join(f"AP at {distance:g} m" for distance in DISTANCES) + " |")
    print("|---|---|---|---|---|---|")
    for error in (0.3, 0.5, 1.0, 1.5, 2.0):
        metrics = evaluate_scenes(split, {i: wrong_by(one, error, i) for i, one in enumerate(split)}, data.protocol)
        print(f"| {error} | {metrics['mAP']:.2f} | " + " | ".join(f"{metrics[f'AP@{distance:g}']:.2f}" for distance in DISTANCES) + " |")
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


def wrong_by(record, error: float, seed: int) -> SceneDetections:
    """Nine of ten objects, where one would measure them from an image with so many pixels of error (standard deviation) in the place and in
    the height of what is seen: the distance follows from where an object stands and from how tall it looks, both together."""
    rng, boxes = np.random.default_rng(seed), record.boxes.copy()
    focal = np.linalg.norm(record.lidar2img[0, 1, :3] - record.sizes[0, 1] / 2 * record.lidar2img[0, 2, :3])
    camera = -np.linalg.solve(record.lidar2img[0, :3, :3], record.lidar2img[0, :3, 3])
    distance = np.hypot(boxes[:, 0], boxes[:, 1])
    by_place, by_height = distance**2 / (focal * camera[2]) * error, distance**2 / (focal * boxes[:, 5]) * error * 2**0.5
    spread = (by_place**-2 + by_height**-2) ** -0.5
    outwards = boxes[:, :2] / distance[:, None]
    aside = outwards[:, ::-1] * (-1, 1)
    boxes[:, :2] += outwards * (rng.standard_normal(len(boxes)) * spread)[:, None]
    boxes[:, :2] += aside * (rng.standard_normal(len(boxes)) * distance / focal * error)[:, None]
    found = rng.random(len(boxes)) < 0.9
    return SceneDetections(boxes[found], 1 / (1 + spread[found]), record.labels[found])


def sheet(data, path: str) -> None:
    split = data.split("train")
    pictures = [
        draw_scene(split.read(i), one.lidar2img, one.boxes, one.labels, names=data.names, cameras=one.cameras)
        for i, one in enumerate(split[:2])
    ]
    width, height = pictures[0].size
    canvas = Image.new("RGB", (width, len(pictures) * (height + 10) - 10), "white")
    for i, picture in enumerate(pictures):
        canvas.paste(picture, (0, i * (height + 10)))
    canvas.save(path, quality=85, optimize=True)


if __name__ == "__main__":
    main()
