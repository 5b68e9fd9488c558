"""xbp's errors: one sentence with what was wrong, what was expected, and what to do.

Each is a subclass of a built-in error such as ``ValueError``, so code that catches those keeps
working. The command line prints the sentence and exits with status 2.
"""


class XBPError(Exception):
    """Base of every error that xbp raises on purpose."""


class InputError(XBPError, ValueError):
    """An argument has the wrong shape, dtype, value or library."""


class UnknownNameError(InputError, KeyError):
    """A name is unknown."""

    __str__ = Exception.__str__  # KeyError's would quote the sentence


class UnknownIndexError(InputError, IndexError):
    """An index is out of range."""


class DataError(InputError):
    """A file is missing, malformed, or does not fit its companions."""


class BackendError(XBPError, RuntimeError):
    """A backend is unknown, not installed or has no device, or arrays of two were mixed."""


class NonFiniteError(XBPError, ArithmeticError):
    """The loss became infinite or nan in training."""


class OutOfMemoryError(XBPError, MemoryError):
    """A step needs more memory than there is."""


class RankError(XBPError, RuntimeError):
    """Processes that train one model together differ, or one of them has failed."""


def on_one_line(text: object, most: int = 400) -> str:
    """Text of a file or another library, made printable and short enough to quote in a sentence."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]} …"


def brief(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
