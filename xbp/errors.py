"""The errors a user can meet: one sentence with what was wrong, what was expected, what to do.

All of them are ordinary ``ValueError`` or ``RuntimeError`` underneath, so code that catches those
keeps working; the command line turns every one into its sentence and exit status 2.
"""


class XBPError(Exception):
    """Base of every error that xbp raises on purpose."""


class InputError(XBPError, ValueError):
    """An argument has the wrong shape, dtype, value or library."""


class UnknownNameError(InputError, KeyError):
    """There is nothing of that name."""

    __str__ = Exception.__str__  # KeyError's puts the sentence into quotes


class DataError(InputError):
    """A file is missing, malformed, or does not fit its companions."""


class BackendError(XBPError, RuntimeError):
    """A backend is unknown, not installed, has no device, or two of them were mixed."""


class NonFiniteError(XBPError, ArithmeticError):
    """Training met a loss that is infinite or not a number."""


class OutOfMemoryError(XBPError, MemoryError):
    """A step needs more memory than there is."""


def on_one_line(text: object, most: int = 400) -> str:
    """What shall be quoted in a sentence, of a file or another library: printable, and not long."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]} …"


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
