"""The folder that a teacher hands out: files to fill in, a page about them, a workflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xbp.errors import DataError, InputError
from xbp.homework.source import Source, installed
from xbp.homework.table import EXERCISES
from xbp.training.files import write_text

README = """# Homework

Each file has a class to be completed. In this folder, once:

    python -m pip install "{xbp}" array-api-strict

Replace every TODO, then check what you wrote:

    xbp homework check {files}

The check says what is right, and of what is wrong, where to look again: a sum, a transpose, a
factor, a sign, a term of the chain rule. It compares your gradients with numeric derivatives, tries
large numbers, and runs your class on other array libraries than numpy.

| file | class | what it computes |
| --- | --- | --- |
{rows}
"""

WORKFLOW = """# Checks every push, and keeps the reports (for programs, and for JUnit).
name: homework
on: [push, pull_request]
permissions:
  contents: read
jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: python -m pip install "{xbp}" array-api-strict
      - run: xbp homework check {files} --json homework.json --junit homework.xml
      - if: always()
        uses: actions/upload-artifact@v4
        with:
          name: homework
          path: homework.*
"""


def write_folder(
    folder: Path, names: Iterable[str] = (), source: Source | None = None
) -> list[Path]:
    """Write the files of some exercises, by default of all.

    Students and the workflow install xbp from `source`, by default that of this installation.

    Raises
    ------
    InputError
        There is no exercise of a name.
    DataError
        One of the files is there already; nothing has been written then.
    """
    names = list(names) or list(EXERCISES)
    unknown = [name for name in names if name not in EXERCISES]
    if unknown:
        msg = f"there is no exercise {unknown[0]!r}; there are {', '.join(EXERCISES)}"
        raise InputError(msg)
    chosen = [EXERCISES[name] for name in names]
    files = " ".join(f"{name}.py" for name in names)
    rows = "\n".join(f"| `{it.name}.py` | `{it.wanted}` | {it.task} |" for it in chosen)
    texts = {f"{exercise.name}.py": exercise.text() for exercise in chosen}
    source = source or installed()
    texts["README.md"] = README.format(files=files, rows=rows, xbp=source.requirement)
    workflow = WORKFLOW.format(files=files, xbp=source.requirement)
    texts[".github/workflows/homework.yml"] = workflow
    there = [name for name in texts if (folder / name).exists()]
    if there:
        msg = f"{folder / there[0]} is there already; give a new folder"
        raise DataError(msg)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    wheels = source.copied(folder)
    return [*(folder / name for name in texts), *wheels]
