"""What PETR and DETR3D learn of the built-in scenes of six cameras in some CPU seconds, and whether it comes from geometry: metrics on the
val split as it is, with each camera's calibration given to the next one, with that of another scene, and with one camera black.

    python benchmarks/surround_models.py detr3d petr --cpu 560 --out DIR

A trained model is kept in DIR and not trained again. Scenes are rendered before the clock starts.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import boxquery as bq
from boxquery.boxes3d import project
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes import SceneDetections
from boxquery.data.scenes.loading import SceneAugment, SceneDataset, SceneTransform, collate_scenes
from boxquery.data.surround import surround_data
from boxquery.evaluation.fixed_boxes import evaluate_fixed_boxes, fixed_boxes
from boxquery.evaluation.nuscenes import evaluate_scenes
from boxquery.models import preset
from boxquery.models.scenes.base import SceneTransformer
from boxquery.optimization import Optimization

#: detections of a scene among which an object is looked for, and metres within which it is found
BEST, NEAR = 20, 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--cpu", type=float, default=560.0, help="CPU seconds of training")
    parser.add_argument("--scenes", type=int, default=2800, help="scenes of the train split")
    parser.add_argument("--val", type=int, default=200, help="scenes of the val split")
    parser.add_argument("--out", type=Path, required=True, help="folder of trained models and results.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = surround_data(train=args.scenes, val=args.val)
    val = data.split("val")
    fixed = evaluate_fixed_boxes(fixed_boxes(data.split("train"), data.protocol), val, data.protocol)
    results = {"fixed boxes": {"mAP": fixed["mAP"]}}
    for name in args.models:
        model, cost = trained(name, args, data)
        dataset = SceneDataset(val, transform(data), cache=True)
        results[name] = {"training": cost} | conditions(model.eval(), dataset, data.protocol)
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def transform(data) -> SceneTransform:
    return SceneTransform(Preprocessing(96), 96, 160, data.area)


def trained(name: str, args: argparse.Namespace, data) -> tuple[SceneTransformer, dict[str, float]]:
    """The moving average of a model that learned for so many CPU seconds, or what an earlier call kept of it."""
    torch.manual_seed(0)
    model = bq.create_model(name, classes=data.names, preset=args.preset, area=list(data.area))
    kept = args.out / f"{name}-{args.preset}-{args.cpu:g}-{args.scenes}.pt"
    if kept.is_file():
        saved = torch.load(kept, weights_only=True)
        model.load_state_dict(saved["model"])
        return model, saved["cost"]
    recipe = preset(name, args.preset).recipe
    augment = SceneAugment(flip=recipe.augment.flip, rotation=0.0, scales=(1.0, 1.0), colour=0.0)
    scenes = SceneDataset(data.split("train"), transform(data), augment=augment, cache=True)
    for i in range(len(scenes)):
        scenes[i]
    average, schedule = copy.deepcopy(model), {0: 10**6}
    optimization, chance = Optimization(model, recipe, schedule, average=average), np.random.default_rng(0)
    start, step, order = time.process_time(), 0, []
    while (spent := time.process_time() - start) < args.cpu:
        if len(order) < recipe.batch_size:
            order = list(chance.permutation(len(scenes)))
        # so many steps as there will be at this pace
        schedule[0] = round(step / spent * args.cpu) if step > 20 else round(15 * args.cpu)
        epoch = step * recipe.batch_size // len(scenes)
        optimization.step(collate_scenes([scenes[epoch, int(order.pop())] for _ in range(recipe.batch_size)]), step)
        step += 1
    cost = {"CPU seconds": round(spent), "steps": step, "parameters": sum(p.numel() for p in model.parameters())}
    torch.save({"model": average.state_dict(), "cost": cost}, kept)
    return average, cost


@torch.no_grad()
def detections(model: SceneTransformer, dataset: SceneDataset, lidar2img=lambda i, own: own, black: int | None = None):
    """Position -> detections, with another calibration or a black camera."""
    found = {}
    for i in range(len(dataset)):
        batch = collate_scenes([dataset[i]])
        images: Tensor = batch.images
        if black is not None:
            images = images.clone()
            images[:, black] = images.min()
        result = model.postprocess(model(images, lidar2img(i, batch.lidar2img), last_only=True))[0]
        found[i] = SceneDetections(*(result[key].double().numpy() for key in ("boxes", "scores")), result["labels"].numpy())
    return found


def conditions(model: SceneTransformer, dataset: SceneDataset, protocol) -> dict:
    records = list(dataset.split)
    found = detections(model, dataset)
    metrics = evaluate_scenes(records, found, protocol)
    kept = ("mAP", "NDS", "AP@0.5", "AP@1", "AP@2", "AP@4", "mATE", "mASE", "mAOE")
    out: dict = {"as it is": {key: round(metrics[key], 4) for key in kept}}
    shuffles = {
        "calibration of the next camera": lambda i, own: own.roll(1, 1),
        "calibration of another scene": lambda i, own: collate_scenes([dataset[(i + 1) % len(dataset)]]).lidar2img,
    }
    for name, shuffle in shuffles.items():
        out[name] = {"mAP": round(evaluate_scenes(records, detections(model, dataset, shuffle), protocol)["mAP"], 4)}
    # of all objects: which cameras have their centres, and whether they are found
    seen = np.concatenate([visible(record) for record in records])
    hit, lost = np.concatenate([is_found(records[i], found[i]) for i in found]), []
    for camera in range(seen.shape[1]):
        without = detections(model, dataset, black=camera)
        now = np.concatenate([is_found(records[i], without[i]) for i in without])
        alone, never = seen[:, camera] & (seen.sum(1) == 1), ~seen[:, camera] & seen.any(1)
        shared = seen[:, camera] & (seen.sum(1) > 1)
        lost.append([[own.sum(), hit[own].sum(), now[own].sum()] for own in (alone, shared, never)])
    total = np.sum(lost, 0)
    for name, (count, before, after) in zip(("it alone has", "another has, too", "it has not"), total, strict=True):
        out[f"one camera black: objects that {name}"] = {"found before": round(before / count, 3), "after": round(after / count, 3)}
    return out


def visible(record) -> np.ndarray:
    """Which cameras [N, V] have an object's centre in their image."""
    pixels, depth = project(record.boxes[:, :3], record.lidar2img)
    inside = (depth > 0.1) & (pixels > 0).all(2) & (pixels < record.sizes[:, None]).all(2)
    return inside.T


def is_found(record, detections: SceneDetections) -> np.ndarray:
    """Bool [N]: whether one of the best detections is of the object's class and near."""
    boxes, _, labels = (values[:BEST] for values in detections[:3])
    apart = np.linalg.norm(record.boxes[:, None, :2] - boxes[None, :, :2], axis=2)
    return ((apart < NEAR) & (record.labels[:, None] == labels)).any(1)


if __name__ == "__main__":
    main()
