"""The exception that users can cause, and text that is safe to print."""


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
    """Text that UTF-8 can encode: lone surrogates, as in file names of other encodings, are escaped as ``\\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
