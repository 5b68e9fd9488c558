"""The folder and files of a run, checked before training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from xbp.errors import DataError, InputError, brief
from xbp.staging import staging
from xbp.training.files import check_writable


def prepare_folder(folder: Path, names: Iterable[str]) -> None:
    """Make `folder`; refuse it before training if files `names` cannot be written there.

    Raises
    ------
    DataError
        It is a file, cannot be made or written to, or has something, such as a folder, in place of
        one of the files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder):
            pass
    except FileExistsError:
        msg = f"{str(folder)!r} is a file, where --output needs a folder; choose another"
        raise DataError(msg) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        msg = (
            f"{str(folder)!r} is no folder that can be written to ({reason}); "
            "choose another with --output"
        )
        raise DataError(msg) from None
    for name in names:
        check_writable(folder / name)


def prepare_file(path: Path) -> None:
    """Refuse a file that cannot be written, before its content is computed.

    Raises
    ------
    DataError
        See `check_writable`.
    """
    check_writable(path)


Module = Annotated[
    str | None,
    typer.Option(
        help="A module of yours to import first, which registers the model's class "
        "(xbp.models.register); looked for in the current folder, too."
    ),
]


def import_module(name: str | None) -> None:
    """Import the module of `Module`, if one is given.

    Raises
    ------
    InputError
        It cannot be imported.
    """
    if name is None:
        return
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(name)
    except Exception as error:
        msg = f"--module {name!r} cannot be imported ({brief(error)})"
        raise InputError(msg) from None
    finally:
        sys.path[:] = before
