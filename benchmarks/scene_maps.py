"""Whether queries of a run on scenes of several cameras read their own objects, and which headings they say.

    python benchmarks/scene_maps.py RUN [DATA] [--scenes 100]

Of every object that a detection of its class is within 2 m of: the share of the query's map, over all cameras, that lies on the object's
box as it is projected, with half a cell of margin, by layer, and the share of all pixels that this is; the error of the heading, and of
the axis alone, which is the heading without telling front from rear.
"""

from __future__ import annotations

import numpy as np

from boxquery.api import load_scenes
from boxquery.boxes3d import NEAR, corners, project
from boxquery.data.scenes import SceneRecord
from boxquery.data.scenes.open import open_scenes
from boxquery.explain.scenes import SceneExplanation, explain_scene
from cameras import run_and_scenes

#: of the map that is measured, per camera; half a cell in pixels of it; metres
SIZE, MARGIN, FOUND = (48, 80), 2.0, 2.0


def main() -> None:
    args = run_and_scenes(__doc__)
    detector, split = load_scenes(args.run), open_scenes(args.data).split("val")
    rows, headings = [], []
    for i, record in enumerate(split[: args.scenes]):
        found = explain_scene(detector, split.read(i), record.lidar2img, name=record.id, threshold=0.0)
        for n, place in own_detections(record, found):
            shown = on_object(record, n)
            maps = [found.heatmap(int(found.queries[place]), layer, SIZE) for layer in range(found.layers)]
            rows.append([shown.mean(), *(float(each[shown].sum()) for each in maps)])
            error = abs((found.result.boxes[place, 6] - record.boxes[n, 6] + np.pi) % (2 * np.pi) - np.pi)
            headings.append((record.labels[n], error, min(error, np.pi - error)))
    area, *layers = np.mean(rows, 0)
    print(f"{len(rows)} objects, {area:.1%} of all pixels each; on their object: " + ", ".join(f"{share:.0%}" for share in layers))
    labels, errors, axes = np.array(headings).T
    print("| class | objects | error of the heading (rad) | of its axis | turned round |\n|---|---|---|---|---|")
    for label, name in enumerate(detector.classes):
        own = labels == label
        print(f"| {name} | {own.sum()} | {errors[own].mean():.2f} | {axes[own].mean():.2f} | {(errors[own] > np.pi / 2).mean():.0%} |")


def own_detections(record: SceneRecord, found: SceneExplanation) -> list[tuple[int, int]]:
    """Objects and the best detection of each that is of its class and near."""
    r = found.result
    near = np.linalg.norm(record.boxes[:, None, :2] - r.boxes[None, :, :2], axis=2) < FOUND
    own = near & (record.labels[:, None] == r.labels[None])
    return [(n, int(own[n].argmax())) for n in range(len(own)) if own[n].any()]


def on_object(record: SceneRecord, n: int) -> np.ndarray:
    """bool [V, *SIZE]: where a box is in each camera, as an upright rectangle."""
    pixels, depth = project(corners(record.boxes[n : n + 1])[0], record.lidar2img)
    out = np.zeros((len(pixels), *SIZE), bool)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for v in np.flatnonzero((depth > NEAR).all(1)):
        left, top = pixels[v].min(0) * SIZE[::-1] / record.sizes[v] - MARGIN
        right, bottom = pixels[v].max(0) * SIZE[::-1] / record.sizes[v] + MARGIN
        out[v] = (x > left) & (x < right) & (y > top) & (y < bottom)
    return out


if __name__ == "__main__":
    main()
