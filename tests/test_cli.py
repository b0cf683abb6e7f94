"""The command line as its users meet it: instant help, one line for an error, numbers on stdout and remarks on stderr."""

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from rich.console import Console

import boxquery as bq
from boxquery.cli import app, run
from boxquery.data.preprocessing import Preprocessing
from boxquery.models import describe, differences, list_scene_models

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "check",
    "train",
    "pretrain",
    "evaluate",
    "predict",
    "explain",
    "compare",
    "benchmark",
    "export",
    "models",
    "demo",
    "import-official",
)


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import boxquery",
        "import boxquery; boxquery.list_models()",
        "from boxquery.cli import run; run(['--help'])",
        "from boxquery.cli import run; run(['train', '--help'])",
        "from boxquery.cli import run; run(['evaluate', '--help'])",
        "from boxquery.cli import run; run(['compare', '--help'])",
        "from boxquery.cli import run; run(['check', '--help'])",
        "from boxquery.cli import run; run(['benchmark', '--help'])",
        "from boxquery.cli import run; run(['benchmark', 'no.onnx'])",
        "from boxquery.cli import run; run(['models', 'deformable-detr'])",
        "from boxquery.report.page import write_report",
        "from boxquery.data.open import open_data; open_data('shapes')",
        "from boxquery.evaluation.metrics import evaluate",
        "from boxquery.cli import run; run(['predict', 'own/er', 'no/such/image.jpg'])",
        "from boxquery.cli import run; run(['predict', 'no/such/run', '.'])",
        "from boxquery.cli import run; run(['evaluate', 'own/er', 'no/such/data'])",
        "from boxquery.cli import run; run(['train', 'no/such/data'])",
        "import boxquery; assert boxquery.__version__; boxquery.Result",
    ],
)
def test_what_only_reads_never_loads_torch(code):
    assert not {"torch", "torchvision", "timm", "lightning"} & loaded_by(code)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    usage, _, rest = shown.partition("\n")
    assert f"Usage: boxquery {command}" in usage
    for name in re.findall(r"([A-Z]+)\.\.\.", usage):
        assert re.search(rf"^│ \*? +{name} ", rest, re.MULTILINE), "what may be repeated has one name"
    assert "ARGS" not in shown


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_page_of_all_commands_says_what_each_is_for(words):
    shown = subprocess.run([sys.executable, "-m", "boxquery", *words], capture_output=True, text=True, check=True).stdout
    for command in COMMANDS:
        assert re.search(rf"^\W*{command} +[A-Z]\w+ \w+", shown, flags=re.M), command
    assert "--empty" not in shown


def test_the_commands_are_those_that_work():
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "frobnicate"),
        (["train"], "DATA"),
        (["train", "--pretrained", "some/data", "--out", "x"], "--pretrained took some/data as weights"),
        (["train", "shapes", "--modell", "detr"], "--modell"),
        (["train", "shapes", "--epochs", "many"], "--epochs"),
        (["train", "shapes", "--option", "levels"], "name=value"),
        (["train", "shapes", "--model", "dert", "--out", "x"], "dert"),
        (["train", "no/such/folder"], "no/such/folder"),
        (["check", "no/such/folder"], "no/such/folder"),
        (["check", "shapes", "--model", "dert"], "dert"),
        (["evaluate", "no/such/run", "shapes"], "no/such/run"),
        (["predict", "no/such/run", "a.jpg"], "no/such/run"),
        (["predict", "no/such/run"], "name images"),
        (["predict", "no/run", "a.jpg"], "no/run: no such folder here"),
        (["predict", "own/er", ".", "--classes", "ace", "jack"], "--classes are separated by commas"),
        (["predict", "own/er", "a.jpg"], "a.jpg"),
        (["predict", "own/er", "."], "no image or video there"),
        (["predict", "own/er", ".", "--threshold", "2"], "threshold=2"),
        (["predict", "own/er", ".", "--nms", "0"], "nms=0"),
        (["predict", "own/er", ".", "--batch-size", "0"], "--batch-size=0"),
        (["predict", "own/er", ".", "--image-size", "-1"], "--image-size=-1"),
        (["predict", "own/er", ".", "--max-detections", "0"], "--max-detections=0"),
        (["predict", "own/er", ".", "--save", "pdf"], "--save pdf"),
        (["predict", "own/er", ".", "--every", "0"], "--every=0: must"),
        (["predict", "own/er", ".", "--tiles", "8"], "--tiles=8: must"),
        (["predict", "own/er", "a.jpg", "--watch"], "--watch: a.jpg is no folder"),
        (["predict", "own/er", "rtsp://127.0.0.1:9/x", "--overlap", "1"], "overlap=1"),
        (["evaluate", "own/er", "no/such/data"], "no/such/data"),
        (["evaluate", "own/er", "shapes", "--split", "night"], "no split 'night'"),
        (["evaluate", "own/er", "shapes", "--max-detections", "0"], "--max-detections=0"),
        (["explain", "no/such/run", "shapes:1"], "no/such/run"),
        (["explain", "no/such/run"], "name images"),
        (["models", "yolo"], "yolo"),
        (["import-official", "no.pth", "--model", "detr", "--out", "x"], "no.pth"),
        (["import-official", "no.pth", "--model", "yolo", "--out", "x"], "yolo"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_models_prints_the_family_and_each_difference(capsys):
    assert run(["models", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in known["models"]] == bq.list_models()
    assert [row["name"] for row in known["scenes"]] == list_scene_models()
    for row in known["models"] + known["scenes"]:
        assert "arXiv" in row["paper"]
        assert row["differs_from_detr_in"] == differences(row["name"]) != []
        for heading in ("Paper:", "Year:", "Licence:", "Differs from DETR in:"):
            assert heading in describe(row["name"])
    assert run(["models", "deformable-detr"]) == 0
    assert "Differs from DETR in:" in capsys.readouterr().out


def test_models_is_readable_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["models"]) == 0
    table, _, _ = capsys.readouterr().out.partition("size: ")
    assert max(map(len, table.splitlines())) <= 80
    for name in [*bq.list_models(), *list_scene_models()]:
        summary = describe(name).splitlines()[0].partition(": ")[2]
        assert {name, *summary.split()} <= set(table.split())


def test_an_unknown_command_lists_all_that_there_are(capsys):
    assert run(["frobnicate"]) == 2
    commands = ", ".join(name for name in app if not name.startswith("-"))
    assert capsys.readouterr().err == f"error: no command 'frobnicate'; commands: {commands}\n"
    assert run(["trian"]) == 2
    assert capsys.readouterr().err == f"error: no command 'trian'; did you mean train? commands: {commands}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_of_flags_and_not_of_python(command, capsys, monkeypatch):
    """Each argument has a sentence; defaults and choices are printed."""
    monkeypatch.setattr(app, "_console", Console(width=400))  # each command keeps the console of its first --help otherwise
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"None|True|False|list_models|start_from|``", text)
    for line in re.findall(r"^│ (.+?) +│$", text, re.MULTILINE):
        assert re.search(r"[A-Z].*\.( \[.+\])?$", line), line
    assert "--device" not in text or "[choices: auto, cpu, cuda, mps] [default: auto]" in text


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    made = bq.create_model("detr", classes=2, preset="tiny", backbone="resnet10t", num_queries=5)
    return str(bq.Detector(made, ["cat", "owl"], [1, 2], Preprocessing(64)).save(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """cam1/frame.png, cam2/frame.png, cam2/broken.png, cam2/other.png, cam2/notes.txt in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("cam1/frame.png", "cam2/frame.png", "cam2/other.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.effect_noise((64, 48), 90).convert("RGB").save(name)
    Path("cam2/broken.png").write_bytes(b"no picture")
    Path("cam2/notes.txt").touch()
    return tmp_path


def test_predict_decodes_each_image_once(model, photos, monkeypatch, capsys):
    """For the detector and the picture alike."""
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (image.tile and decoded.append(image.filename)) or load(image))
    assert run(["predict", model, "cam1/frame.png", "cam2/other.png", "--threshold", "0", "--out", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == 10
    assert [Path(name).name for name in decoded if name] == ["frame.png", "other.png"]
    assert sorted(str(path) for path in Path("out/pictures").rglob("*.jpg")) == [
        "out/pictures/cam1/frame.jpg",
        "out/pictures/cam2/other.jpg",
    ]


def test_predict_keeps_apart_what_has_one_name_and_loses_nothing(model, photos, capsys):
    save = "pictures,json,txt,csv,crops"
    assert run(["predict", model, "cam1", "cam2", "cam2/frame.png", "--threshold", "0", "--batch-size", "3", "--save", save, "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["images"], told["objects"], told["unreadable"], told["out"], told["threshold_from"]) == (3, 15, 1, "predictions", "given")
    out = Path("predictions")
    rows = json.loads((out / "predictions.json").read_text())
    names = ["cam1/frame", "cam2/frame", "cam2/other"]
    assert Counter((row["image_id"], row["file_name"]) for row in rows) == {(name, f"{name}.png"): 5 for name in names}
    for kind, suffix in (("pictures", ".jpg"), ("labels", ".txt")):
        files = [path for path in (out / kind).rglob("*") if path.is_file()]
        assert sorted(files) == [out / kind / f"{name}{suffix}" for name in names]
    assert len(list((out / "crops").rglob("*.jpg"))) == 15
    assert len((out / "predictions.csv").read_text().splitlines()) == 16
    for words in ("looked at once: cam2/frame.png", "image_id is the path", "1 .txt", "skipped: cam2/broken.png: not an image"):
        assert words in captured.err


def test_predict_says_how_images_were_read(model, photos, capsys):
    frames = [Image.effect_noise((64, 48), 90) for _ in range(3)]
    frames[0].save("cam1/film.gif", save_all=True, append_images=frames[1:])
    Image.linear_gradient("L").save("cam1/cut.jpg", quality=90)
    Path("cam1/cut.jpg").write_bytes(Path("cam1/cut.jpg").read_bytes()[:-12])
    assert run(["predict", model, "cam1", "--out", "found", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 3
    assert "note: 1 image with several frames or pages, of which the first is used: film.gif" in captured.err
    assert "note: 1 image lacking the end of the file, used as far as it goes: cut.jpg" in captured.err


def test_predict_says_which_threshold_and_where(model, photos, capsys):
    assert run(["predict", model, "cam1", "--out", "found"]) == 0
    out = capsys.readouterr().out
    assert "in 1 image" in out
    assert "threshold: a score of 0.5 or more, the default" in out
    assert "see found: pictures/, predictions.json" in out
    assert run(["predict", model, "cam2", "--out", "found"]) == 2
    assert "found: holds another result (pictures, predictions.json); choose another --out" in capsys.readouterr().err
    assert run(["predict", model, "cam2/broken.png", "--out", "other"]) == 2
    assert "cam2/broken.png: not an image" in capsys.readouterr().err
    assert not Path("other").exists()
    assert run(["predict", model, "cam1", "--classes", "cat,dog", "--out", "other"]) == 2
    assert "does not know dog" in capsys.readouterr().err
    assert not Path("other").exists()


def test_an_interrupted_predict_keeps_what_it_has_found(model, photos, monkeypatch, capsys):
    from boxquery.predict.outputs import ResultWriter

    add, added = ResultWriter.add, []

    def second_is_interrupted(*words):
        if added:
            raise KeyboardInterrupt
        added.append(add(*words))

    monkeypatch.setattr(ResultWriter, "add", second_is_interrupted)
    assert run(["predict", model, "cam1", "cam2", "--threshold", "0", "--out", "found"]) == 130
    assert "1 of 4 images were looked at; what was found in them is in found" in capsys.readouterr().err
    assert len(json.loads(Path("found/predictions.json").read_text())) == 5


@pytest.mark.parametrize("imported", [(), ("pydantic",)])
def test_every_repeated_option_arrives(imported):
    for name in imported:  # cyclopts uses it where it is there
        pytest.importorskip(name)
    words = ["train", "x", "--option", "levels=3", "--option", "box-refine=false", "--option", "anchor_size=[0.1, 1.0e-2]"]
    words += ["--schedule-steps", "700,32:900"]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.arguments["flags"].options == {"levels": 3, "box_refine": False, "anchor_size": [0.1, 0.01]}
    assert bound.arguments["flags"].schedule_steps == {0: 700, 32: 900}


def test_interrupted_is_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("boxquery.training.run.TrainFlags.check", interrupted)
    assert run(["train", "shapes"]) == 130


def test_the_readme_names_commands_that_exist():
    """Every boxquery line of the README parses: its command and every flag are known."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0] for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("boxquery ")]
    assert len(commands) >= 4
    for words in commands:
        app.parse_args(words[1:], exit_on_error=False, print_error=False)
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)


def test_public_names_are_a_checked_list():
    assert bq.__all__ == [
        "Detector",
        "Result",
        "SceneDetector",
        "UserError",
        "create_model",
        "list_models",
        "load",
        "load_official",
        "pretrain",
        "train",
    ]
    for name in bq.__all__:
        assert getattr(bq, name).__doc__


def test_a_reader_that_leaves_is_no_error():
    """As ``| head`` does."""
    words = [sys.executable, "-m", "boxquery", "models", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_the_ap_of_a_model_is_that_of_its_preset_paper(capsys):
    """Anchor DETR's default has DC5: so has the size beside it."""
    assert run(["models"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("anchor-detr")]
    assert row.split()[-2:] == ["44.3", "50"]


def test_broken_exif_is_not_the_terminals(tmp_path):
    """Pillow warns of it, though the image is fine."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\xff\xff\xff\xff\6\0\0\0"
    for i in range(4):
        Image.new("RGB", (32, 32), (50 * i, 90, 120)).save(tmp_path / "images" / f"{i}.jpg", exif=exif)
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    words = [sys.executable, "-m", "boxquery", "check", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "4" in done.stdout
    assert "UserWarning" not in done.stdout + done.stderr
