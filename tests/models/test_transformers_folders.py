"""Folders of Hugging Face's transformers: the same logits, boxes and class names, and one line for what is not read."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import boxquery as bq
from boxquery.cli import run
from boxquery.data.preprocessing import Preprocessing
from boxquery.models import papers, preset
from boxquery.official import named_there, rename
from boxquery.official.transformers import build, kind_of, list_kinds, module_of
from boxquery.official.transformers.config import Config
from boxquery.official.transformers.patterns import packed
from boxquery.transformers_folder import read_config
from tests.data.writers import pictures, write_coco
from tests.models.builders import batch
from tests.models.transformers_folders import CASES, NAMES, edit, model, save


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_same_predictions_and_names(case, tmp_path):
    theirs = model(case)
    # its real-time models resize to squares, and attend to what is padded
    batches = [((96, 128),), ((128, 96),)] if case.startswith(("rt-detr", "d-fine")) else [((96, 128), (64, 80)), ((128, 96),)]
    for version in (4, 5):
        detector = bq.load(save(theirs, tmp_path / str(version), version=version))
        for sizes in batches:
            images, mask = batch(*sizes)
            expected = theirs(pixel_values=images, pixel_mask=(~mask).long())
            found = detector.model(images, mask, last_only=True)
            torch.testing.assert_close(found.logits[-1], expected.logits, atol=2e-4, rtol=0)
            torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=2e-4, rtol=0)
        assert detector.classes == [None if name == "N/A" else name for name in NAMES]
        assert detector.ids == [0, 1, 2, 3, 4]


@torch.no_grad()
@pytest.mark.parametrize("case", ["deformable-detr-refined", "deformable-detr-two-stage"])
def test_heads_that_are_not_shared(case, tmp_path):
    """As released checkpoints have them; a fresh model of the library shares its heads, and its files have one."""
    theirs, images = model(case), batch((96, 128))[0]
    for name in ("class_embed", "bbox_embed"):
        own = nn.ModuleList(copy.deepcopy(head) for head in getattr(theirs, name))
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        setattr(theirs, name, own)
        decoder = theirs.get_submodule("model.decoder")
        if getattr(decoder, name) is not None:
            setattr(decoder, name, own)
    for version in (4, 5):
        found = bq.load(save(theirs, tmp_path / str(version), version=version)).model(images, last_only=True)
        expected = theirs(pixel_values=images)
        torch.testing.assert_close(found.logits[-1], expected.logits, atol=2e-4, rtol=0)
        torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=2e-4, rtol=0)


def test_squares_without_normalisation_come_along(tmp_path):
    """As released models of RT-DETR have them, with their file of preprocessing or without."""
    for processor in ("RTDetrImageProcessor", None):
        folder = save(model("rt-detr-basic"), tmp_path / str(processor), processor=processor)
        assert bq.load(folder).preprocessing == Preprocessing(640, square=True, mean=None, std=None)


def test_every_kind_has_a_case():
    assert set(list_kinds()) == {name for name in papers() if any(case.startswith(name) for case in CASES)}


#: of D-FINE's published sizes: stem, stages (in, mid, out), blocks and layers of the backbone, and what else differs from the defaults
PUBLISHED: dict[str, tuple[list[int], list[int], list[int], list[int], list[int], int, dict[str, Any]]] = {
    "n": (
        [3, 16, 16], [16, 64, 256, 512], [16, 32, 64, 128], [64, 256, 512, 1024], [1, 1, 2, 1], 3,
        {
            "num_feature_levels": 2, "encoder_ffn_dim": 512, "encode_proj_layers": [1], "d_model": 128, "encoder_hidden_dim": 128,
            "decoder_ffn_dim": 512, "encoder_in_channels": [512, 1024], "decoder_n_points": [6, 6], "decoder_in_channels": [128, 128],
            "feat_strides": [16, 32], "depth_mult": 0.5, "decoder_layers": 3, "hidden_expansion": 0.34,
        },
    ),
    "s": (
        [3, 16, 16], [16, 64, 256, 512], [16, 32, 64, 128], [64, 256, 512, 1024], [1, 1, 2, 1], 3,
        {"encoder_in_channels": [256, 512, 1024], "depth_mult": 0.34, "decoder_layers": 3, "hidden_expansion": 0.5},
    ),
    "m": (
        [3, 24, 32], [32, 96, 384, 768], [32, 64, 128, 256], [96, 384, 768, 1536], [1, 1, 3, 1], 4,
        {"encoder_in_channels": [384, 768, 1536], "depth_mult": 0.67, "decoder_layers": 4},
    ),
    "paper": (
        [3, 32, 48], [48, 128, 512, 1024], [48, 96, 192, 384], [128, 512, 1024, 2048], [1, 1, 3, 1], 6,
        {"encoder_in_channels": [512, 1024, 2048]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_configurations_are_our_presets(size):
    """As the library's conversion of the authors' checkpoints sets them; what auto starts from has them."""
    stem, entering, mid, out, blocks, layers, own = PUBLISHED[size]
    library: Any = transformers  # whose configurations have parameters that are not declared
    backbone = library.HGNetV2Config(
        hidden_sizes=out, stem_channels=stem, stage_in_channels=entering, stage_mid_channels=mid, stage_out_channels=out,
        stage_num_blocks=blocks, stage_downsample=[False, True, True, True], stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5], stage_numb_of_layers=[layers] * 4, out_indices=[3, 4] if size == "n" else [2, 3, 4],
        use_learnable_affine_block=size in "nsm",
    )  # fmt: skip
    values = {"hidden_expansion": 1.0, "decoder_layers": 6, "decoder_n_points": [3, 6, 3], **own}
    config = library.DFineConfig(backbone_config=backbone, num_labels=80, **values)
    options = module_of("d-fine").options(Config(json.loads(json.dumps(config.to_dict())), "config.json"))
    published = preset("d-fine", size).options
    assert {name: value for name, value in options.items() if getattr(published, name) != value} == {}


# -- what a folder may lack or have wrong -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Conditional DETR, whose files are small, too."""
    return save(model("conditional-detr-resnet"), tmp_path_factory.mktemp("theirs") / "hf")


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "hf"))


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(bq.UserError) as raised:
        bq.load(folder)
    line = str(raised.value)
    assert "\n" not in line
    assert str(folder) in line
    assert [word for word in said if word not in line] == [], line


def test_another_kind_is_one_line_with_the_known_ones(copied, capsys):
    edit(copied / "config.json", lambda c: c.update(model_type="yolos", architectures=["YolosForObjectDetection"]))
    known = "conditional_detr, "
    refused(copied, "a model of transformers of the kind 'yolos' (YolosForObjectDetection) is not read; known: " + known)
    assert run(["import-official", str(copied), "--out", str(copied.parent / "out")]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert not (copied.parent / "out").exists()
    edit(copied / "config.json", lambda c: c.update(model_type="detr", architectures=["DetrForSegmentation"]))
    refused(copied, "DetrForSegmentation is no object detector")
    edit(copied / "config.json", lambda c: c.update(model_type=None, architectures=None))
    refused(copied, "config.json: has no model_type", "known: " + known)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another width": ({"d_model": 64}, "conditional-detr"),
    "more layers": ({"decoder_layers": 4}, "missing: model.decoder.layers.3."),
    "fewer layers": ({"encoder_layers": 1}, "not understood: model.encoder.layers.1."),
    "more queries": ({"num_queries": 8}, "'model.query_position_embeddings.weight' is [7, 32] there"),
    "more classes": (
        {"id2label": {str(i): f"c{i}" for i in range(6)}},
        "config.json: id2label has 6 names, the class head of model.safetensors has 5 rows",
    ),
    "different widths": ({"encoder_ffn_dim": 32}, "encoder_ffn_dim=32, decoder_ffn_dim=48: only equal ones are supported"),
    "another activation": ({"activation_function": "gelu"}, "activation_function='gelu': only 'relu' is supported"),
    "a word for a number": ({"num_queries": "many"}, "num_queries='many': must be a whole number"),
    "nothing": ({"decoder_layers": 0}, "decoder_layers=0: must be at least 1"),
    "heads that do not divide": ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "must be a multiple of 4 and of heads=5"),
    "another backbone": ({"backbone_config": {"model_type": "swin"}}, "a backbone of the kind 'swin' is not read; known: timm"),
    "another position": ({"position_embedding_type": "rope"}, "position='rope'"),
    "classes as a list": ({"id2label": ["a"]}, "id2label should be an object of ids and class names"),
    "a gap in the ids": ({"id2label": {"0": "a", "2": "b"}}, "id2label should have an id for every row of the class head, 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_configuration_that_does_not_fit(change, copied):
    values, said = CHANGES[change]
    edit(copied / "config.json", lambda c: c.update(values))
    refused(copied, said)


#: of RT-DETR and D-FINE; those of the backbone have their own names
REAL_TIME_CHANGES = [
    ("rt-detr-basic", {"encoder_hidden_dim": 0}, "encoder_hidden_dim=0: must be at least 1"),
    ("d-fine", {"encoder_hidden_dim": 0}, "encoder_hidden_dim=0: must be at least 1"),
    ("rt-detr-basic", {"depths": [0, 0, 0, 0]}, "depths[0]=0: must be at least 1"),
    ("rt-detr-basic", {"depths": [1, 2, 1]}, "depths=[1, 2, 1]: must be 4 whole numbers"),
    ("rt-detr-basic", {"hidden_sizes": [0, 0, 0, 0]}, "hidden_sizes[0]=0: must be at least 1"),
    ("rt-detr-basic", {"hidden_sizes": [16, 24, 32, 40]}, "has 64 channels before and 16 after it, so it has a shortcut already"),
    ("rt-detr-basic", {"hidden_expansion": "1"}, "hidden_expansion='1': must be a finite number"),
    ("rt-detr-basic", {"num_denoising": "x"}, "num_denoising='x': must be a whole number"),
    ("rt-detr-basic", {"num_feature_levels": "3"}, "num_feature_levels='3': must be a whole number"),
    ("d-fine", {"depth_mult": float("nan")}, "depth_mult=nan: must be a finite number"),
]  # fmt: skip


@pytest.fixture(scope="module")
def real_time_folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("real_time")
    return {case: save(model(case), place / case, processor=None) for case in ("rt-detr-basic", "d-fine")}


@pytest.mark.parametrize(("case", "values", "said"), REAL_TIME_CHANGES, ids=str)
def test_a_real_time_configuration_that_does_not_fit(case, values, said, real_time_folders, tmp_path):
    copied = Path(shutil.copytree(real_time_folders[case], tmp_path / "hf"))
    inner = [name for name in values if name in ("depths", "hidden_sizes")]
    edit(copied / "config.json", lambda c: (c["backbone_config"] if inner else c).update(values))
    refused(copied, "config.json", said)


def test_a_constant_that_a_d_fine_lacks(real_time_folders, tmp_path):
    path = Path(shutil.copytree(real_time_folders["d-fine"], tmp_path / "d-fine")) / "model.safetensors"
    for value in (torch.ones(2), None):
        tensors = load_file(path)
        del tensors["model.decoder.up"]
        save_file(tensors if value is None else tensors | {"model.decoder.up": value}, path)
        found = "is missing" if value is None else "is [2] there"
        refused(path.parent, f"model.safetensors: the tensor 'model.decoder.up' {found}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.to(torch.float8_e4m3fn), "has values of type torch.float8_e4m3fn: only floating point of 16 bits or more"),
        (lambda value: value.to(torch.complex64), "has values of type torch.complex64"),
        (lambda value: value.to(torch.int32), "has values of type torch.int32"),
        (lambda value: -torch.ones_like(value), "has a negative variance"),
    ],
    ids=["float8", "complex", "int", "variance"],
)
def test_tensors_whose_values_cannot_be_weights(change, said, copied):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("running_var"))
    save_file(tensors | {name: change(tensors[name])}, path)
    refused(copied, f"model.safetensors: {name!r} {said}")


def test_our_weights_in_eight_bits(folder, tmp_path):
    bq.load(folder).save(tmp_path / "ours")
    path = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"queries.position": tensors["queries.position"].to(torch.float8_e4m3fn)}, path)
    refused(tmp_path / "ours", "queries.position is [7, 32] of torch.float8_e4m3fn in the file, [7, 32] in the model")


def test_another_resnet(copied):
    edit(copied / "config.json", lambda c: c["backbone_config"].update(downsample_in_bottleneck=True))
    refused(copied, "downsample_in_bottleneck=True: only False is supported")
    edit(copied / "config.json", lambda c: c["backbone_config"].update(downsample_in_bottleneck=False, layer_type="dense"))
    refused(copied, "layer_type='dense': only 'basic' and 'bottleneck' are supported")


def test_tensors_too_few_and_too_many(copied):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if not k.startswith("bbox_predictor.layers.1")}, path)
    refused(copied, "model.safetensors: this is not a checkpoint of conditional-detr", "missing: bbox_predictor.layers.1.")
    save_file(tensors | {"mask_head.weight": torch.zeros(3)}, path)
    refused(copied, "not understood: mask_head.weight", "config.json is of another model or the file incomplete: save the model again")
    lost = "model.encoder.layers.1.self_attn.k_proj.bias"
    save_file({k: v for k, v in tensors.items() if k != lost}, path)
    with pytest.raises(bq.UserError, match=rf"with these options; missing: {lost}; "):  # its siblings are understood
        bq.load(copied)
    save_file(tensors | {"bbox_predictor.layers.0.bias": torch.full((32,), torch.nan)}, path)
    refused(copied, "bbox_predictor.layers.0.bias contains NaN or inf")


def test_a_backbone_that_the_configuration_lacks_is_named(copied):
    edit(copied / "config.json", lambda c: c.update(backbone_config=None, backbone=None))
    refused(copied, "config.json has no backbone_config, so the backbone was assumed to be resnet50")


def test_a_missing_tensor_is_called_what_the_file_would_call_it(folder, real_time_folders):
    for each in (folder, *real_time_folders.values()):
        config, tensors = read_config(each), load_file(each / "model.safetensors")
        assert config is not None
        kind, (whole, _) = module_of(kind_of(config)), build(config, tensors, len(NAMES), "file")
        own, rules, known = whole.state_dict(), kind.keys(whole), list(packed(tensors))
        for key in known:
            if (ours := rename(key, rules)) in own and ".in_proj." not in key:
                assert named_there(ours, rules, [name for name in known if name != key]) == [key]


def test_files_that_are_broken_or_missing(copied):
    weights, config = copied / "model.safetensors", copied / "config.json"
    whole = weights.read_bytes()
    for content, said in (
        (whole[: len(whole) // 2], "not a checkpoint, or one that was cut short"),
        (b"", "not a checkpoint, or one that was cut short (empty)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    ):
        weights.write_bytes(content)
        refused(copied, said)
    weights.unlink()
    refused(copied, "has a config.json of transformers, but no weights; model.safetensors or pytorch_model.bin is looked for")
    text = config.read_text()
    for broken, said in ((text[:100], "not JSON, or cut short"), ("[1]", "should be an object"), ("\xff", "")):
        config.write_bytes(broken.encode("latin-1"))
        refused(copied, said)


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickled_file_is_read_and_not_executed(folder, copied, capsys):
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(tensors, copied / "pytorch_model.bin")
    assert equal(bq.load(copied), bq.load(folder))
    torch.save({**tensors, "hook": Hostile()}, copied / "pytorch_model.bin")
    refused(copied, "would have to be executed")
    assert "executed" not in capsys.readouterr().out


def equal(one, other) -> bool:
    tensors = other.model.state_dict()
    return all(torch.equal(value, tensors[name]) for name, value in one.model.state_dict().items())


def test_tensors_in_several_files(folder, tmp_path):
    theirs = model("conditional-detr-resnet")
    parts = save(theirs, tmp_path / "parts", max_shard_size="100KB")
    index = parts / "model.safetensors.index.json"
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    assert equal(bq.load(parts), bq.load(folder))
    for wrong in ("../hf/model.safetensors", [1], 3):
        edit(index, lambda values, wrong=wrong: values["weight_map"].update({"x": wrong}))
        refused(parts, "weight_map should say which file beside it has which tensor")
    for missing in ("a\0b", "a" * 5000):
        edit(index, lambda values, missing=missing: values["weight_map"].update({"x": missing}))
        refused(parts, "weight_map names a", ": no such file")
    edit(index, lambda values: values["weight_map"].pop("x"))
    next(parts.glob("model-*.safetensors")).unlink()
    refused(parts, "no such file")


# -- preprocessing ------------------------------------------------------------------------------------------------------------------------


def test_preprocessing_comes_along(folder, tmp_path, capsys):
    assert bq.load(folder).preprocessing.to_dict() == Preprocessing(800).to_dict()
    theirs, square = model("conditional-detr-resnet"), tmp_path / "square"
    found = bq.load(save(theirs, square, processor="RTDetrImageProcessor"))
    assert (found.preprocessing.square, found.image_size, found.preprocessing.mean, found.preprocessing.std) == (True, 640, None, None)
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    assert found.transform(Image.fromarray(pixels)).shape == (3, 640, 640)
    assert found.transform(Image.fromarray(pixels)).max() == 1.0
    assert run(["import-official", str(square), "--out", str(tmp_path / "ours"), "--image-size", "96"]) == 0
    ours = bq.load(tmp_path / "ours")
    assert ours.preprocessing == replace(found.preprocessing, image_size=96)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 640, "max_size": 960}, {"image_size": 640, "longest_ratio": 1.5}),
        ({"size": {"shortest_edge": 480}}, {"image_size": 480, "longest_ratio": 1000.0}),
        ({"size": {"shortest_edge": 480, "longest_edge": 400}}, {"image_size": 480, "longest_ratio": 1.0}),
        ({"size": {"shortest_edge": 480, "longest_edge": 10**400}}, {"image_size": 480, "longest_ratio": 1000.0}),
        ({"image_mean": [0.5, 0.5, 0.5], "resample": 3}, {"mean": (0.5, 0.5, 0.5), "interpolation": "bicubic"}),
        ({"do_normalize": False, "image_mean": None}, {"mean": None, "std": None}),
        ({"do_normalize": None}, {}),
    ],
    ids=str,
)
def test_preprocessing_as_files_have_it(values, expected, copied):
    edit(copied / "preprocessor_config.json", lambda file: file.update(values))
    assert bq.load(copied).preprocessing == Preprocessing(**expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": {"height": 640, "width": 480}}, "a shortest_edge, or one height and width, is supported"),
        ({"size": {"max_height": 640, "max_width": 480}}, "a shortest_edge, or one height and width, is supported"),
        ({"size": {"shortest_edge": 0, "longest_edge": 9}}, "shortest_edge=0: must be at least 1"),
        ({"size": {"shortest_edge": 4}}, "image_size=4 is out of range"),
        ({"do_resize": False}, "do_resize=False: only True is supported"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0: only 1/255 is supported"),
        ({"resample": 0}, "resample=0: only 2 (bilinear) and 3 (bicubic) are supported"),
        ({"image_mean": "grey"}, "should be"),
        ({"image_std": 3}, "is no list of numbers"),
        ({"image_std": [1e-300, 1, 1]}, "std=(1e-300, 1, 1) should be numbers from 1e-06 to 1e+06"),
        ({"image_mean": [10**400, 0, 0]}, "should be numbers from -1e+06 to 1e+06"),
        ({"size": {"shortest_edge": 64, "longest_edge": -3}}, "longest_edge=-3: must be at least 1"),
        ({"size": {"shortest_edge": 64, "longest_edge": "x"}}, "longest_edge='x': must be a whole number"),
        ({"do_normalize": "false"}, "do_normalize='false': must be true or false"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan: must be a finite number"),
    ],
    ids=str,
)
def test_preprocessing_that_is_not_supported(values, said, copied):
    edit(copied / "preprocessor_config.json", lambda file: file.update(values))
    refused(copied, "preprocessor_config.json", said)


def test_names_that_classes_share_are_noted(copied, capsys):
    edit(copied / "config.json", lambda c: c.update(id2label={str(i): "a" if i < 3 else f"b{i}" for i in range(5)}))
    bq.load(copied)
    assert f"note: {copied / 'config.json'}: several classes are called a\n" in capsys.readouterr().err


def test_what_is_not_done_is_noted(copied, capsys):
    edit(copied / "preprocessor_config.json", lambda file: file.update(do_center_crop=True, pad_size={"height": 99, "width": 99}))
    bq.load(copied)
    assert "do_center_crop=True, pad_size={'height': 99, 'width': 99} is not read: whole images" in capsys.readouterr().err


def test_without_preprocessing_it_is_what_is_usual_and_a_note_says_so(copied, tmp_path, capsys):
    (copied / "preprocessor_config.json").unlink()
    assert bq.load(copied).preprocessing == Preprocessing(800)
    note = f"note: {copied} has no preprocessor_config.json: images are resized and normalised as is usual for conditional-detr\n"
    assert capsys.readouterr().err == note
    assert run(["import-official", str(copied), "--out", str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().err == note


# -- commands -----------------------------------------------------------------------------------------------------------------------------


def test_import_makes_a_folder_of_ours(folder, tmp_path, capsys):
    words = ["import-official", str(folder), "--out", str(tmp_path / "ours"), "--json"]
    assert run(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["rows"], report["options"]["num_queries"]) == ("conditional-detr", 5, 7)
    theirs, ours = bq.load(folder), bq.load(tmp_path / "ours")
    assert equal(ours, theirs)
    assert (ours.classes, ours.ids, ours.preprocessing) == (theirs.classes, theirs.ids, theirs.preprocessing)
    assert run(["import-official", str(folder), "--out", str(tmp_path / "named"), "--classes", "a,b,,c,d"]) == 0
    assert bq.load(tmp_path / "named").classes == ["a", "b", None, "c", "d"]
    assert run(["import-official", str(folder), "--out", str(tmp_path / "x"), "--classes", "a,b"]) == 2
    assert "has 5 classes, but --classes has 2 names" in capsys.readouterr().err
    assert run(["import-official", str(folder), "--out", str(tmp_path / "x"), "--model", "detr"]) == 2
    assert "is a conditional-detr, not a detr; leave --model out" in capsys.readouterr().err
    assert run(["import-official", str(folder), "--out", str(tmp_path / "x"), "--option", "dilation=true"]) == 2
    assert "leave --option out" in capsys.readouterr().err
    assert run(["import-official", str(folder / "model.safetensors"), "--out", str(tmp_path / "x")]) == 2
    assert "the file does not say which model it is; add --model" in capsys.readouterr().err
    assert run(["import-official", str(tmp_path / "nothing"), "--out", str(tmp_path / "x")]) == 2
    assert f"error: {tmp_path / 'nothing'}: no such file or folder; give a checkpoint file" in capsys.readouterr().err
    assert run(["import-official", str(folder / "model.safetensors"), "--out", str(tmp_path / "x"), "--model", "detr"]) == 2
    assert "its names are those of Hugging Face's transformers: give the folder with its config.json" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_predict_explain_and_evaluate_take_it(folder, tmp_path, capsys):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.jpg")
    small = ["--image-size", "64", "--device", "cpu"]
    assert run(["predict", str(folder), str(tmp_path / "a.jpg"), "--out", str(tmp_path / "found"), "--threshold", "0", *small]) == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {each["category_id"] for each in found} <= {0, 2, 3, 4}
    assert run(["explain", str(folder), str(tmp_path / "a.jpg"), "--out", str(tmp_path / "page")]) == 0
    data = write_coco(tmp_path / "data", pictures(6))
    assert run(["evaluate", str(folder), str(data), "--json", *small]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "warn" in line.lower() or "transformers" in line] == []
