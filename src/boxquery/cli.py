"""The command line: names of commands, how results are printed, and how errors are."""

from __future__ import annotations

import difflib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError, UnknownCommandError

from boxquery.errors import UserError
from boxquery.flags import fill_in

JSON = "With --json a command prints one machine-readable object on stdout; progress and remarks go to stderr."

app = App(
    name="boxquery",
    help="Detection transformers: train, understand, compare and ship a DETR.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_iterable=()),
)
#: where a command is, by its name, and what it takes where that may be left out or repeated, which cyclopts calls ARGS
COMMANDS = {
    "train": ("boxquery.training.run:command", "[DATA]"),
    "pretrain": ("boxquery.pretraining.command:command", "[IMAGES]"),
    "check": ("boxquery.check.command:check", ""),
    "explain": ("boxquery.explain.command:explain", "RUN IMAGES..."),
    "compare": ("boxquery.compare.command:compare", "[DATA]"),
    "demo": ("boxquery.commands:demo", ""),
    "evaluate": ("boxquery.commands:evaluate", ""),
    "predict": ("boxquery.commands:predict", "RUN SOURCES..."),
    "benchmark": ("boxquery.benchmark.command:benchmark", "[RUN|MODEL]"),
    "export": ("boxquery.export_command:export", ""),
    "models": ("boxquery.models_command:models", "[NAME]"),
    "import-official": ("boxquery.import_command:import_official", ""),
}
for name, (place, takes) in COMMANDS.items():
    app.command(place, name=name, usage=f"Usage: boxquery {name} [OPTIONS] {takes}" if takes else None)


def run(arguments: Sequence[str]) -> int:
    """Run one command line. Returns the exit status: 0 done, 1 a check failed, 2 the input was wrong, 130 interrupted."""
    words = fill_in([word for word in arguments if word != "--json"])
    as_json = "--json" in arguments
    words = words or ["--help"]
    if not {*words}.isdisjoint(app.help_flags):
        app.help_epilogue = f"{JSON}\n\nPages that are called docs/... are in {docs_folder()}"
    if words[0] in app.help_flags:
        for name in _commands():
            app[name]  # commands are imported lazily; without it the list of all commands would have no descriptions
    try:
        result = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if as_json and result is not None:
            print(json.dumps(result if isinstance(result, dict) else result.summary(), allow_nan=False), flush=True)
        elif result is not None and hasattr(result, "show"):
            result.show()
    except UserError as error:
        return _failed(_with_flag(error.line(), words), error.status)
    except UnknownCommandError:
        close = difflib.get_close_matches(words[0], _commands(), 1)
        return _failed(f"no command {words[0]!r};{f' did you mean {close[0]}?' if close else ''} commands: {', '.join(_commands())}")
    except CycloptsError as error:
        return _failed(" ".join(str(error).split()).rstrip(".") + "; --help lists what is known")
    except KeyboardInterrupt as stopped:  # with what is kept, where a command knows
        print("interrupted" + f": {stopped}" * bool(str(stopped)), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return getattr(result, "status", 0)


def docs_folder() -> Path:
    """Where the pages are: in the installed package, or at the root of a checkout."""
    here = Path(__file__).parent
    return here / "docs" if (here / "docs").is_dir() else here.parents[1] / "docs"


def _commands() -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _with_flag(line: str, words: Sequence[str]) -> str:
    """A message about ``batch_size=0`` names the flag, ``--batch-size=0``, where that was given."""
    name, equals, rest = line.partition("=")
    flag = f"--{name.replace('_', '-')}"
    return f"{flag}={rest}" if equals and any(word.partition("=")[0] == flag for word in words) else line


def _failed(line: str, status: int = 2) -> int:
    print(f"error: {line}", file=sys.stderr)
    return status


def main() -> Any:
    """The ``boxquery`` command."""
    # read when torch is loaded: what PyTorch lacks on a Mac's GPU is computed on its CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # of broken EXIF in images that can be read; here, since filters are those of all threads
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    sys.exit(run(sys.argv[1:]))
