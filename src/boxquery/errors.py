"""The exception that users can cause, and the wording of messages."""

import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """Input that cannot be used.

    The text is one line that says what is wrong, where (file, line or key, image id) and what to do. The command line prints it
    after ``error:`` and exits with ``status``.
    """

    status = 2

    def line(self) -> str:
        """The message in one line, without what a data loader's worker wraps around it."""
        text = str(self)
        marker = f"{type(self).__name__}: "
        if text.startswith("Caught ") and marker in text:
            text = text.rpartition(marker)[2]
        return " ".join(text.split())


class CheckFailed(UserError):
    """Usable input that a check rejects, since training would be pointless; ``--force`` overrides it."""

    status = 1


def one_line(error: BaseException) -> str:
    """An exception's message in one line; its class name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its class name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """Text that a terminal shows in one line: what ``encodable`` escapes, control characters, and those that reverse the direction of
    writing are escaped as ``\\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), encodable(text))


def encodable(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates, as in file names of other encodings, are escaped as ``\\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def count(value: int, one: str, many: str = "") -> str:
    """1 image, 1,200 images; ``many`` where the plural is not ``one`` and an s."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first names of many, and how many more there are: a, b, c and 5 more."""
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
