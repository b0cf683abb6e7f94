"""A few built-in scenes as a COCO folder (a compared run reads its data in a process of its own), and a model for them."""

import json
from pathlib import Path

from boxquery.data.shapes import shapes_data

#: options of a model that learns nothing much, quickly
SMALL = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""},
    "hidden_dim": 32,
    "heads": 4,
    "ffn_dim": 32,
    "num_queries": 12,
}


def write_scenes(folder: Path, train: int = 12, val: int = 6) -> Path:
    data = shapes_data(train=train, val=val, test=4, size=64)
    for name in ("train", "val"):
        content = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in zip(data.ids, data.names, strict=True)]}
        for number, record in enumerate(data.splits[name]):
            file = f"{name}/{number}.png"
            (folder / name).mkdir(parents=True, exist_ok=True)
            data.splits[name].read(number).save(folder / file)
            content["images"].append({"id": number, "file_name": file, "width": record.width, "height": record.height})
            for label, (x1, y1, x2, y2) in zip(record.labels.tolist(), record.boxes.tolist(), strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": data.ids[label], "bbox": box, "iscrowd": 0}
                )
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/instances_{name}.json").write_text(json.dumps(content))
    return folder
