"""Exported files give what the model gives, for any size and batch and in both runtimes, and a file that does not is not written."""

import json
import os
import re
import signal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import boxquery as bq
from boxquery import cli
from boxquery.api import Detector
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes.silhouettes import NAMES
from boxquery.errors import CheckFailed, UserError
from boxquery.export import int8, packages, verify, writer
from boxquery.export.graph import ExportGraph, pinned, trace
from boxquery.export.metadata import metadata
from boxquery.export.onnx import to_onnx, write_onnx
from boxquery.export.openvino import read_graph, write_openvino
from boxquery.export.verify import compare, image_rows, run_file, run_graph
from boxquery.parts.queries import ProposalQueries
from boxquery.runtime.exported import ExportedDetector
from tests.training.runs import SMALL

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("openvino", reason="the extra openvino is not installed")

#: batches and shapes that no graph was traced with
SHAPES = ((1, 64, 64), (3, 61, 95), (1, 130, 47))
#: with proposals, fewer levels than a model of the command ``train``
TWO_STAGE = {
    "deformable-detr": {"two_stage": True, "encoder_layers": 1, "levels": 2},
    "rt-detr": {"levels": 2},
}


def detector(name: str, **options) -> Detector:
    """Of one decoder layer, as tracing takes time for each; one class has no name, as in an imported head."""
    torch.manual_seed(0)
    names = [*NAMES, None]
    model = bq.create_model(name, classes=len(names), preset="tiny", **{**SMALL, "decoder_layers": 1, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return Detector(model, names, [10 * i for i in range(len(names))], Preprocessing(64), 0.25)


def written(made: Detector, folder: Path) -> tuple[ExportGraph, list[ExportedDetector]]:
    """Both files from one trace, which is what takes time."""
    graph = ExportGraph(made)
    return graph, files(made, trace(graph, None), folder)


def files(made: Detector, traced: torch.export.ExportedProgram, folder: Path) -> list[ExportedDetector]:
    model = to_onnx(traced)
    write_onnx(model, folder / "model.onnx", metadata(made, "onnx", "fp32", None))
    write_openvino(read_graph(folder / "model.onnx"), folder / "model.xml", metadata(made, "openvino", "fp32", None), half=False)
    return [ExportedDetector.open(folder / f"model{ending}", threads=1) for ending in (".onnx", ".xml")]


def assert_equal(graph: ExportGraph, exported: ExportedDetector, shapes=SHAPES) -> None:
    random = np.random.default_rng(0)
    for batch, height, width in shapes:
        images = random.integers(0, 256, (batch, 3, height, width), np.uint8)
        sizes = np.array([[2 * height, 2 * width]] * batch)
        ours, theirs = run_graph(graph, images, sizes), run_file(exported.engine, images, sizes)
        assert [each.shape for each in ours.values()] == [each.shape for each in theirs.values()]
        for i in range(batch):
            rows = [{name: each[i : i + 1] for name, each in side.items()} for side in (ours, theirs)]
            assert compare(*(image_rows(each, (2 * height, 2 * width)) for each in rows)) == (pytest.approx(0, abs=1e-4), 0)
        assert (theirs["scores"][:, :-1] >= theirs["scores"][:, 1:]).all()
        assert theirs["labels"].max() < len(NAMES)
        assert np.abs(theirs["class_scores"][..., -1]).max() == 0


def test_softmax_and_pruned_queries_agree_on_any_size_and_batch_and_the_file_names_no_folder(tmp_path):
    made = detector("detr", num_queries=[12, 7], decoder_layers=2)
    graph, both = written(made, tmp_path)
    for exported in both:
        assert_equal(graph, exported)
        assert (exported.classes, exported.ids, exported.threshold) == (made.classes, made.ids, made.threshold)
        scene = np.random.default_rng(1).integers(0, 256, (90, 60, 3), np.uint8)
        ours, theirs = made.predict(scene, threshold=0), exported.predict(scene, threshold=0)
        np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-2)
        np.testing.assert_array_equal(theirs.labels, ours.labels)
    text = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(bq.__file__).parent).encode() not in text
    data = open_data("shapes:size=64,train=2,val=3,test=2")
    found = verify.verify(graph, tmp_path / "model.onnx", data, "val")
    assert found["images"] == 3
    assert found["AP"] == found["AP_exported"]


@pytest.fixture(scope="module", params=TWO_STAGE)
def proposals(request) -> tuple[Detector, ExportGraph, torch.export.ExportedProgram]:
    """What ``train`` makes without further options, which has proposals, and its trace."""
    made = detector(request.param, **TWO_STAGE[request.param])
    assert isinstance(made.transformer.queries, ProposalQueries)
    graph = ExportGraph(made)
    return made, graph, trace(graph, None)


def test_a_trace_of_proposals_is_that_of_any_size_and_batch(proposals):
    _, graph, traced = proposals
    module = traced.module()
    for batch, height, width in SHAPES:
        images, sizes = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8), torch.tensor([[height, width]] * batch)
        with torch.inference_mode():
            for ours, theirs in zip(graph(images, sizes), module(images, sizes), strict=True):
                torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("proposals", ["rt-detr"], indirect=True)
def test_proposals_and_samples_of_several_levels_agree_on_any_size_and_batch(proposals, tmp_path):
    made, graph, traced = proposals
    for exported in files(made, traced, tmp_path):
        assert_equal(graph, exported)


@pytest.mark.slow
def test_one_size_agrees_on_any_batch_and_stretches_other_images(tmp_path):
    made = detector("deformable-detr", **TWO_STAGE["deformable-detr"])
    graph = ExportGraph(made)
    write_onnx(to_onnx(trace(graph, (64, 96))), tmp_path / "model.onnx", metadata(made, "onnx", "fp32", (64, 96)))
    exported = ExportedDetector.open(tmp_path / "model.onnx", threads=1)
    assert_equal(graph, exported, ((1, 64, 96), (3, 64, 96)))
    scene = np.random.default_rng(1).integers(0, 256, (90, 60, 3), np.uint8)
    assert exported.predict(scene, threshold=0).boxes.shape == (12, 4)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Of several shapes, and one that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, shape in enumerate([(90, 60), (60, 100), (64, 64), (80, 70)]):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "5.png").write_text("none")
    return folder


@pytest.fixture(scope="module")
def traced() -> tuple[Detector, object]:
    made = detector("detr")
    return made, to_onnx(trace(ExportGraph(made), None))


def test_int8_is_near_in_both_runtimes_for_any_size_and_batch(tmp_path, photos, traced, capsys):
    made, model = traced
    quantised, used = int8.quantize(model, int8.inputs_of(int8.calibration_images(photos, None), made.resize))
    assert used == 4
    said = capsys.readouterr().err
    assert "5.png: not an image" in said
    assert "note: --calibrate: all 5 images of the folder" in said
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in quantised.graph}
    values = metadata(made, "onnx", "int8", None, used)
    write_onnx(quantised, tmp_path / "model.onnx", values)
    write_openvino(read_graph(tmp_path / "model.onnx"), tmp_path / "model.xml", values, half=False)
    graph = ExportGraph(made)
    for ending in (".onnx", ".xml"):
        exported = ExportedDetector.open(tmp_path / f"model{ending}", threads=1)
        assert exported.record.precision == "int8"
        for batch, height, width in SHAPES:
            images = np.random.default_rng(0).integers(0, 256, (batch, 3, height, width), np.uint8)
            sizes = np.array([[height, width]] * batch)
            ours, theirs = run_graph(graph, images, sizes), run_file(exported.engine, images, sizes)
            assert 1e-6 < np.abs(ours["class_scores"] - theirs["class_scores"]).max() < 0.05
            assert np.abs(ours["query_boxes"] - theirs["query_boxes"]).max() < 0.05 * max(height, width)


def test_int8_of_images_none_of_which_can_be_read(tmp_path, photos, traced):
    made, model = traced
    with pytest.raises(UserError, match="none of the images could be read"):
        int8.quantize(model, int8.inputs_of(int8.calibration_images(photos / "5.png", None), made.resize))


def test_what_makes_coordinates_stays_in_float32(traced):
    chosen = int8.in_8_bits(traced[1])
    assert [name for name in chosen if "backbone" in name]
    assert [name for name in chosen if "layers.0.ffn.linear1" in name]
    assert not [name for name in chosen if "heads" in name]
    modules = [
        f"model.{name}/MatMul" for name, _ in detector("deformable-detr", **TWO_STAGE["deformable-detr"]).transformer.named_modules()
    ]
    kept = [name for name in modules if int8.FLOAT.search(name)]
    assert {part for name in kept for part in name.replace("/", ".").split(".")} >= {
        "heads",
        "queries",
        "sampling_offsets",
        "attention_weights",
    }
    assert not [name for name in kept if re.search("value_proj|out_proj|ffn|backbone|neck", name)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"precision": "int8"}, "give --calibrate DATA"),
        ({"calibrate": "photos"}, "--calibrate is for int8 alone"),
        ({"calibration_images": 5}, "--calibration-images is for int8 alone"),
        ({"precision": "int8", "calibrate": "photos", "calibration_images": 0}, "calibration_images=0"),
        ({"precision": "int8", "calibrate": "empty"}, "empty: no image or video there"),
        ({"precision": "int8", "calibrate": "nowhere"}, "nowhere: no such image or folder"),
    ],
)
def test_int8_and_its_images_go_together(given, says, tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        detector("detr").export(tmp_path / "model.onnx", **given)
    assert names(tmp_path) == ["empty", "photos"]


def test_a_data_set_is_calibrated_on_its_training_images():
    images = int8.calibration_images("shapes:size=64,train=7,val=3,test=2", 3)
    data = open_data("shapes:size=64,train=7,val=3,test=2").split("train")
    assert [read() for read in images] == [data.read(i) for i in (0, 2, 4)]


@pytest.mark.parametrize(
    ("branch", "says"),
    [
        (lambda batch, height, width: height // 8 == 9, True),
        (lambda batch, height, width: (batch * min(0, 1 - min(40, height // 8))) % batch == 0, False),
        (lambda batch, height, width: (8 * width + height // 9) % (2 * height) > 7, False),
    ],
)
def test_what_is_computed_from_one_size_is_told_from_what_holds_for_all(branch, says):
    class Branch(torch.nn.Module):
        def forward(self, images, sizes):
            return images + 1 if branch(images.shape[0], *images.shape[-2:]) else images + 2

    side = torch.export.Dim.DYNAMIC
    dims = {0: side, 2: side, 3: side}, {0: side}
    program = torch.export.export(Branch(), (torch.zeros(2, 3, 72, 120), torch.zeros(2, 2)), dynamic_shapes=dims, strict=False)
    assert pinned(program, lambda batch, size: {"images": torch.zeros(batch, 3, *size), "sizes": torch.zeros(batch, 2)}, 72, 120) == says


def test_a_model_of_one_size_is_refused_without_torchs_own_words(monkeypatch):
    graph = ExportGraph(detector("detr"))
    monkeypatch.setattr("boxquery.export.graph.pinned", lambda *given: True)
    monkeypatch.setattr(torch.export, "export", lambda *given, **options: None)
    with pytest.raises(UserError, match=r"^detr: part of the graph would be that of one size; give a fixed --size HxW$"):
        trace(graph, None)

    def fails(*given, **options):
        raise RuntimeError("could not guard on u0 + L['images'].size()[2] // 8")

    monkeypatch.setattr(torch.export, "export", fails)
    with pytest.raises(UserError, match=r"^detr: torch \S+ cannot trace the model \(RuntimeError\); give a fixed --size HxW$"):
        trace(graph, None)


def test_queries_that_change_places_agree_and_others_are_counted():
    boxes = np.random.default_rng(0).uniform(0, 100, (1, 6, 4)).astype(np.float32)
    one = {"query_boxes": boxes, "class_scores": np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 6, 2)}
    order = [0, 2, 1, 3, 4, 5]
    swapped = {name: values[:, order] for name, values in one.items()}
    assert compare(image_rows(one, (100, 100)), image_rows(swapped, (100, 100))) == (0, 0)
    swapped["class_scores"] = swapped["class_scores"] + np.array([0, 0, 0, 0, 5e-5, 2e-3], np.float32)[:, None]
    difference, differing = compare(image_rows(one, (100, 100)), image_rows(swapped, (100, 100)))
    assert difference == pytest.approx(5e-5, rel=0.01)
    assert differing == 1


def test_boxes_that_leave_the_image_agree_to_as_many_digits_as_those_inside():
    """Corners of an untrained Sparse R-CNN lie up to a hundred images away, where float32 has two digits less of the image."""
    boxes = np.array([[[20.0, 30.0, 60.0, 70.0], [-900.0, 10.0, 1200.0, 40.0], [1900.0, -20.0, 2700.0, 50.0]]], np.float32)
    one = {"query_boxes": boxes, "class_scores": np.full((1, 3, 2), 0.5, np.float32)}
    for shift, differing in ((2e-5, 0), (4e-4, 3)):
        farthest = np.abs(boxes).max(-1, keepdims=True)
        other = {**one, "query_boxes": boxes + shift * np.maximum(farthest, 100)}
        assert compare(image_rows(one, (100, 100)), image_rows(other, (100, 100)))[1] == differing
    inside = {**one, "query_boxes": boxes + np.array([0.02, 0, 0], np.float32)[:, None]}
    assert compare(image_rows(one, (100, 100)), image_rows(inside, (100, 100)))[1] == 1


def test_a_miss_leaves_what_was_there(tmp_path, monkeypatch):
    """Whatever the comparison finds too different; the graph itself is not made here."""
    (tmp_path / "model.onnx").write_text("older")
    monkeypatch.setattr(writer, "trace", lambda graph, size: None)
    monkeypatch.setattr(writer, "to_onnx", lambda program: None)
    monkeypatch.setattr(writer, "write_onnx", lambda model, path, values: path.write_text(json.dumps(values)))

    def too_far(*given):
        raise CheckFailed("too far apart")

    monkeypatch.setattr(writer, "verify", too_far)
    with pytest.raises(CheckFailed, match="too far apart"):
        detector("detr").export(tmp_path / "model.onnx", verify="shapes:size=64,train=2,val=2,test=2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "older"


def test_data_of_other_classes_is_named_before_the_model_is_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "trace", None)
    made = detector("detr")
    made.classes[:] = [f"other {i}" for i in range(len(made.classes))]
    with pytest.raises(UserError, match="the detector does not know"):
        made.export(tmp_path / "model.onnx", verify="shapes:size=64,train=2,val=2,test=2")


def test_a_fixed_size_is_compared_on_the_same_pixels_and_the_usual_size_is_named(tmp_path, capsys):
    made = detector("detr")
    values = made.export(tmp_path / "model.onnx", size=(48, 80), verify="shapes:size=64,train=2,val=3,test=2")
    seen = values["verified"]
    assert (seen["usual_size"], seen["differing"]) == ([64, 64], 0)
    assert seen["AP"] == pytest.approx(seen["AP_exported"], abs=1e-3)
    said = capsys.readouterr().err
    assert "note: the model has AP" in said
    assert "--size 64x64 is that of 3 of 3 images" in said


@pytest.fixture
def without_a_trace(monkeypatch):
    """The files are made of a tiny graph."""
    import openvino
    from openvino import opset13 as ops

    def tiny(path):
        given = ops.parameter([1, 2], np.float32)
        return openvino.Model([ops.add(given, ops.constant(np.ones((1, 2), np.float32)))], [given])

    monkeypatch.setattr(writer, "trace", lambda graph, size: None)
    monkeypatch.setattr(writer, "to_onnx", lambda program: None)
    monkeypatch.setattr(writer, "write_onnx", lambda model, path, values: path.write_text(json.dumps(values)))
    monkeypatch.setattr(writer, "read_graph", tiny)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_weights_of_another_program_are_kept_and_those_of_an_export_replaced(tmp_path, without_a_trace):
    made = detector("detr")
    (tmp_path / "model.bin").write_text("firmware")
    for foreign in (None, "<annotation/>"):
        if foreign:
            (tmp_path / "model.xml").write_text(foreign)
        with pytest.raises(UserError, match=r"model.bin: belongs to no model that was exported as model.xml; move it"):
            made.export(tmp_path / "model.xml")
    assert (tmp_path / "model.bin").read_text() == "firmware"
    (tmp_path / "model.bin").unlink()
    made.export(tmp_path / "model.xml")
    made.export(tmp_path / "model.xml", precision="fp16")
    assert names(tmp_path) == ["model.bin", "model.xml"]
    assert (tmp_path / "model.bin").stat().st_size == 4


@pytest.mark.parametrize("older", [True, False])
def test_both_files_of_openvino_are_replaced_or_neither(older, tmp_path, without_a_trace, monkeypatch):
    made = detector("detr")
    if older:
        made.export(tmp_path / "model.xml", precision="fp16")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def refused(source, target):
        if Path(target) == tmp_path / "model.xml":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(UserError, match=r"model.xml: cannot be written \(Permission denied\)"):
        made.export(tmp_path / "model.xml")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_openvino_cannot_write_is_an_error_line(tmp_path, without_a_trace, monkeypatch):
    import openvino

    def full(*given, **options):
        raise RuntimeError("Exception from src/core/src/pass/serialize.cpp:1:\nbasic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(UserError, match=r"model.xml: OpenVINO cannot write it \(basic_ios::clear: iostream error\); make room"):
        detector("detr").export(tmp_path / "model.xml")
    assert not names(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="of POSIX signals")
def test_a_termination_leaves_no_folder(tmp_path, without_a_trace, monkeypatch, capsys):
    detector("detr").save(tmp_path / "run")
    monkeypatch.setattr(writer, "to_onnx", lambda program: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.run(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "out" / "model.onnx")]) == 130
    assert "tracing detr, which takes ten seconds to a few minutes" in capsys.readouterr().err
    assert not names(tmp_path / "out")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"path": "model.pt"}, r"model.pt: must end in .onnx \(onnx\) or .xml \(openvino\)"),
        ({"path": "model.onnx", "precision": "bf16"}, "onnxruntime has no bf16 kernels for CPUs; use --to openvino"),
        ({"path": "model.xml", "precision": "fp8"}, "choose one of fp32, fp16, bf16, int8"),
        ({"path": "folder.onnx"}, "folder.onnx: is a folder; give the name of a file"),
        ({"path": "model.xml", "size": (8, 64)}, "size=8x64: each side must have 16 to 8192 pixels"),
    ],
)
def test_what_cannot_be_exported_is_named_before_anything_is_done(call, says, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    path = tmp_path / call["path"]
    with pytest.raises(UserError, match=says):
        detector("detr").export(path, **{name: value for name, value in call.items() if name != "path"})
    assert names(tmp_path) == ["folder.onnx"]


def test_a_baseline_is_named(tmp_path):
    model = bq.create_model("fcos", classes=2, preset="tiny", backbone="resnet10t")
    with pytest.raises(UserError, match="fcos has no queries"):
        Detector(model, ["a", "b"], [1, 2], Preprocessing(64)).export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "found", "says"),
    [
        ("onnxscript", None, r"--to onnx needs the package onnxscript: pip install 'boxquery\[export\]'"),
        ("onnxruntime", "1.17.3", "onnxruntime 1.17.3 cannot read the graph's version; pip install 'onnxruntime>=1.22'"),
        ("torch", "2.6.0", "torch 2.6.0 exports by another method; pip install 'torch>=2.9'"),
    ],
)
def test_packages_that_are_missing_or_too_old_are_named(package, found, says, monkeypatch):
    def installed(name: str) -> str:
        if name == package and found is None:
            raise PackageNotFoundError(name)
        return found if name == package else version(name)

    monkeypatch.setattr(packages, "version", installed)
    with pytest.raises(UserError, match=says):
        packages.check_combination("onnx", "fp32")
