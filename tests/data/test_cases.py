"""Every data folder of the cases that users met (in the reference material), with the outcome that was expected there."""

import pytest

from boxquery.cli import run
from boxquery.data.open import read
from boxquery.data.validation import validate

RGB, VOC = ("red", "green", "blue"), ("blue", "green", "red")
YOLO, COCO, HELD_OUT = {"train": 8, "val": 4}, {"train": 6, "val": 2}, {"train": 10, "val": 2}

#: folder: boxes kept, images per split, class names, words of what is printed
READ = {
    "01_val_without_boxes/data": (16, YOLO, RGB, ["no boxes at all in val"]),
    "01_val_without_boxes/same_with_labels": (24, YOLO, RGB, []),
    "02_predict_same_names/data": (24, YOLO, RGB, []),
    "03_finetuned_checkpoint/data": (24, YOLO, ("helmet", "vest", "person"), []),
    "04_yolo_pose/xy": (24, YOLO, RGB, ["kpt_shape [4, 2]", "the first four numbers are the box"]),
    "04_yolo_pose/xyv": (24, YOLO, RGB, ["kpt_shape [4, 3]", "the first four numbers are the box"]),
    "04_yolo_pose/xyv17": (24, YOLO, RGB, ["kpt_shape [17, 3]", "the first four numbers are the box"]),
    "06_voc_splits_ignored/folders": (24, YOLO, VOC, []),
    "06_voc_splits_ignored/lists": (24, YOLO, VOC, []),
    "06_voc_splits_ignored/lower": (24, YOLO, VOC, []),
    "07_strips/data": (18, {"train": 4, "val": 2}, RGB, []),
    "09_more_than_100/data": (750, {"train": 4, "val": 1}, ("cell",), ["150 objects", "num_queries"]),
    "10_coco_images_in_data/data": (16, COCO, RGB, ["images are in data/"]),
    "11_coco_file_names/case": (16, COCO, RGB, ["in another case", "images/a0.png"]),
    "11_coco_file_names/ls_116": (16, COCO, RGB, ["images/a0.png"]),
    "11_coco_file_names/ls_local_files": (16, COCO, RGB, ["images/a0.png"]),
    "11_coco_file_names/ls_project_id": (16, COCO, RGB, ["images/a0.png"]),
    "11_coco_file_names/nfd": (16, COCO, RGB, ["Unicode form"]),
    "11_coco_file_names/no_ending": (16, COCO, RGB, ["with another ending"]),
    "11_coco_file_names/percent": (16, COCO, RGB, ["percent-encoding"]),
    "11_coco_file_names/url_path": (16, COCO, RGB, ["images/a0.png"]),
    "13_yolo_lists/colab": (24, YOLO, RGB, ["'/content/drive/mine/images/train/a0.png' is images/train/a0.png"]),
    "13_yolo_lists/cvat": (24, YOLO, RGB, ["'data/images/train/a0.png' is images/train/a0.png"]),
    "13_yolo_lists/list": (24, YOLO, RGB, []),
    "14_roboflow_paths/colab": (24, YOLO, RGB, ["'/content/mine-1/train/images' as train/images"]),
    "14_roboflow_paths/mine-1": (24, YOLO, RGB, ["'mine-1/train/images' as train/images"]),
    "14_roboflow_paths/neighbour/mine": (24, YOLO, RGB, ["'../train/images' as train/images"]),
    "14_roboflow_paths/no_test": (24, YOLO, RGB, ["there is no test/images in the data folder"]),
    "14_roboflow_paths/path_name": (24, YOLO, RGB, ["'path_name' as the data folder"]),
    "15_coco_values/category_listed_twice": (16, COCO, RGB, ["used once"]),
    "15_coco_values/float_category": (16, COCO, RGB, ["category_id is a decimal number"]),
    "15_coco_values/float_image_id": (16, COCO, RGB, ["image_id is a decimal number"]),
    "15_coco_values/float_images": (16, COCO, RGB, ["id is a decimal number"]),
    "15_coco_values/image_listed_twice": (16, COCO, RGB, ["used once"]),
    "15_coco_values/name_is_number": (16, COCO, ("1", "2", "3"), ["name is a number"]),
    "15_coco_values/polygons_only": (16, COCO, RGB, ["the box around it is used"]),
    "15_coco_values/string_bbox": (16, COCO, RGB, ["bbox is text"]),
    "15_coco_values/string_category": (16, COCO, RGB, ["category_id is text"]),
    "15_coco_values/string_image_id": (16, COCO, RGB, ["image_id is text"]),
    "16_names_yes_no/flow": (24, YOLO, ("no", "yes", "on"), []),
    "16_names_yes_no/list_of_maps": (24, YOLO, RGB, []),
    "16_names_yes_no/map": (24, YOLO, ("red", "off", "1_000"), []),
    "16_names_yes_no/quoted_keys": (24, YOLO, RGB, []),
    "18_macos_leftovers/json": (24, YOLO, RGB, []),
    "18_macos_leftovers/zip": (24, YOLO, RGB, ["the data is in mine/"]),
    "21_evaluate_fewer_classes/data": (64, {"train": 24, "val": 8}, RGB, []),
    "23_image_endings/data": (24, YOLO, RGB, []),
    "23_image_endings/mixed": (24, YOLO, RGB, []),
    "26_voc_layouts/comment": (24, YOLO, VOC, []),
    "26_voc_layouts/gb2312": (24, HELD_OUT, ("红", "绿", "蓝"), []),
    "26_voc_layouts/labels_xml": (24, HELD_OUT, VOC, []),
    "26_voc_layouts/rotated": (24, HELD_OUT, VOC, ["24 rotated boxes (robndbox)"]),
    "26_voc_layouts/train_annotations": (24, YOLO, VOC, []),
}
REFUSED = {"09_more_than_100/data"}  # by a fact: a model that is named has fewer queries than most images have objects
VAL_ALONE = {"21_evaluate_fewer_classes/capitals": 16, "21_evaluate_fewer_classes/greens": 6}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """``check`` writes its pictures into the working directory."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


def folder_of(shared, name):
    folder = shared / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"no cases/{name} in the reference material")
    return folder


@pytest.mark.shared
@pytest.mark.parametrize("name", READ)
def test_case_is_read(shared, capsys, name):
    kept, images, names, words = READ[name]
    folder = folder_of(shared, name)
    assert run(["check", str(folder), *(["--model", "deformable-detr"] if name in REFUSED else [])]) == (name in REFUSED)
    text = "".join(capsys.readouterr())
    assert [word for word in words if word not in text] == [], text
    assert "error:" not in text
    data, report = validate(read(folder), strict=True)
    assert (report.boxes_kept, report.boxes_total) == (kept, kept)
    assert {split: len(records) for split, records in data.splits.items()} == images
    assert tuple(data.names) == names


@pytest.mark.shared
@pytest.mark.parametrize("name", VAL_ALONE)
def test_case_without_train(shared, capsys, name):
    """It can be evaluated; a check of what will be trained says that there is nothing."""
    folder = folder_of(shared, name)
    _, report = validate(read(folder), strict=True)
    assert report.boxes_kept == report.boxes_total == VAL_ALONE[name]
    assert run(["check", str(folder)]) == 2
    assert "no split 'train'; it has val" in capsys.readouterr().err
