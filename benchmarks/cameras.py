"""What a run on scenes of several cameras needs of its cameras: the calibration of others, and one camera less.

    python benchmarks/cameras.py RUN [DATA] [--scenes 100]

Printed are mAP as it is, with the calibration of another camera for each image, and of the same boxes in every scene; then, for each
camera that is taken away, the recall (within 2 m, at the run's threshold) of objects whose centre it alone has in its image, and of all
others, with it and without.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from boxquery.api import load_scenes
from boxquery.boxes3d import NEAR, project
from boxquery.data.scenes import SceneRecord
from boxquery.data.scenes.open import open_scenes
from boxquery.evaluation.scene_predictions import predict_scenes, with_labels_of, without_camera
from boxquery.report.scenes import above, judge


def run_and_scenes(doc: str) -> argparse.Namespace:
    """The command line of a script about a run and scenes, whose docstring ``--help`` shows."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data", nargs="?", default="surround")
    parser.add_argument("--scenes", type=int, default=100, help="scenes of the val split that are looked at")
    return parser.parse_args()


def main() -> None:
    args = run_and_scenes(__doc__)
    detector, data = load_scenes(args.run), open_scenes(args.data)
    split = data.split("val")
    split = replace(split, records=split[: args.scenes])
    data = replace(data, splits={"val": split})
    whole, shuffled = detector.evaluate(data), detector.evaluate(data, shuffle_calibration=True)
    fixed = whole["fixed_boxes"] or {"mAP": float("nan")}
    print(f"{len(split)} scenes: mAP {whole['mAP']:.3f}; calibration shuffled {shuffled['mAP']:.3f}; fixed boxes {fixed['mAP']:.3f}")
    blind = "cameras" in detector.model.config["options"]

    def found_in(scenes) -> list[np.ndarray]:
        found = with_labels_of(predict_scenes(detector, scenes, one_label=True), detector.classes, data)
        return [~judge(record, above(found[i], detector.threshold), data.protocol).missed for i, record in enumerate(split)]

    everything = found_in(split)
    print("| without | objects that it alone sees | their recall, before and after | recall of all others, before and after | mAP |")
    print("|---|---|---|---|---|")
    for v, camera in enumerate(split[0].cameras):
        left = found_in(without_camera(split, camera, blind=blind))
        alone = [sees(record)[v] & (sees(record).sum(0) == 1) for record in split]
        counted = [np.hypot(record.boxes[:, 0], record.boxes[:, 1]) < 50 for record in split]
        rates = [recall(which, counted, [own if one else ~own for own in alone]) for one in (True, False) for which in (everything, left)]
        objects = sum(int((own & kept).sum()) for own, kept in zip(alone, counted, strict=True))
        less = detector.evaluate(data, without_camera=camera)["mAP"]
        print(f"| {camera} | {objects} | {rates[0]:.2f}, {rates[1]:.2f} | {rates[2]:.2f}, {rates[3]:.2f} | {less:.3f} |")


def sees(record: SceneRecord) -> np.ndarray:
    """bool [V, N]: whether an object's centre is in a camera's image."""
    pixels, depth = project(record.boxes[:, :3], record.lidar2img)
    return (depth > NEAR) & ((pixels >= 0) & (pixels < record.sizes[:, None])).all(-1)


def recall(found: list[np.ndarray], counted: list[np.ndarray], chosen: list[np.ndarray]) -> float:
    kept = [a & b for a, b in zip(counted, chosen, strict=True)]
    return sum(int((a & b).sum()) for a, b in zip(found, kept, strict=True)) / max(sum(int(own.sum()) for own in kept), 1)


if __name__ == "__main__":
    main()
