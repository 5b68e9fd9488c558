"""Answers checked in a process of their own: one that hangs or exits harms nobody else's check.

    python -m xbp.homework.apart FILE [EXERCISES]

prints what was found as JSON; what the file itself prints goes to the standard error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

from xbp.errors import DataError
from xbp.homework.checking import Answer, check_file, imported
from xbp.homework.exercise import Exercise
from xbp.homework.hints import Hint
from xbp.homework.table import EXERCISES


def check_apart(path: Path, exercises: Path | None = None, *, timeout: float = 60) -> list[Answer]:
    """`check_file` in a process of its own.

    Parameters
    ----------
    path : Path
    exercises : Path, optional
        A Python file with a dict ``EXERCISES``, in place of those of the package.
    timeout : float, default 60
        Seconds, after which an endless loop is assumed.

    Raises
    ------
    DataError
        There is no such file.
    """
    if not path.is_file():
        msg = f"there is no file {path}"
        raise DataError(msg)
    command = [sys.executable, "-m", __name__, str(path), *([str(exercises)] if exercises else [])]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return [_failed(path, f"it has not finished after {timeout:g} seconds")]
    try:
        found = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return [_failed(path, f"its process ended before the check did{last}")]
    return [
        Answer(it["exercise"], it["file"], it["passed"], [Hint(**hint) for hint in it["hints"]])
        for it in found
    ]


def _failed(path: Path, sentence: str) -> Answer:
    return Answer(path.stem, str(path), hints=[Hint("the file", "crash", sentence)])


def table_of(path: Path) -> Mapping[str, Exercise]:
    """The dict ``EXERCISES`` of a teacher's file.

    Raises
    ------
    DataError
        It has none.
    """
    table = getattr(imported(path), "EXERCISES", None)
    if not isinstance(table, dict) or not all(isinstance(it, Exercise) for it in table.values()):
        msg = f"{path} should have a dict EXERCISES, of names to xbp.homework.Exercise"
        raise DataError(msg)
    return table


def main(path: str, exercises: str = "") -> None:
    """Check one file, and print what was found as JSON."""
    with redirect_stdout(sys.stderr):
        answers = check_file(path, table_of(Path(exercises)) if exercises else EXERCISES)
    sys.stdout.write(json.dumps([answer.as_dict() for answer in answers]))


if __name__ == "__main__":
    main(*sys.argv[1:])
