"""``xbp homework``: exercises to hand out, and answers checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xbp.arguments import positive
from xbp.cli.files import prepare_file
from xbp.homework import as_json, as_junit, as_text, check_apart
from xbp.homework.folder import write_folder
from xbp.homework.source import given, installed
from xbp.homework.table import EXERCISES
from xbp.training.files import write_text

app = typer.Typer(no_args_is_help=True)

NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder to write.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=f"One of {', '.join(EXERCISES)}; may be given several times. By default all.",
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--xbp",
        metavar="SOURCE",
        help="Where students and the workflow install xbp from: git+https://…, or a wheel for any "
        "system, which is copied into DIR. By default where this installation is from.",
    ),
]
Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Students' Python files.")]
JSON = Annotated[Path | None, typer.Option("--json", help="A file for all that was found.")]
JUnit = Annotated[Path | None, typer.Option("--junit", help="The same as JUnit's XML.")]
Own = Annotated[
    Path | None,
    typer.Option(
        "--exercises",
        metavar="FILE",
        help="A Python file with exercises of your own: a dict EXERCISES, of names to "
        "xbp.homework.Exercise.",
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds for each file.")]


@app.callback()
def homework() -> None:
    """Write exercises in backpropagation, and check answers to them."""


@app.command()
def new(folder: NewFolder, exercise: Only = None, source: From = None) -> None:
    """Write a folder of exercises: layers, losses and an optimizer to be completed, a page about
    them, and a workflow that checks every push.
    """
    found = installed() if source is None else given(source)
    for path in write_folder(folder, exercise or (), found):
        typer.echo(f"wrote {path}")
    if found.note:
        typer.echo(found.note)


@app.command()
def check(
    files: Files,
    json_file: JSON = None,
    junit_file: JUnit = None,
    exercises: Own = None,
    timeout: Timeout = 60.0,
) -> None:
    """Check answers: each gradient, large numbers, other backends; and say where what is wrong went
    astray.

    The files are run, each in a process of its own. That is no protection against ill will: check
    files of strangers in a container. The exit status is 1 if anything is wrong.
    """
    timeout = positive("--timeout", timeout)
    for path in (json_file, junit_file):
        if path is not None:
            prepare_file(path)
    answers = [it for path in files for it in check_apart(path, exercises, timeout=timeout)]
    for line in as_text(answers):
        typer.echo(line)
    for path, write in ((json_file, as_json), (junit_file, as_junit)):
        if path is not None:
            write_text(path, write(answers))
            typer.echo(f"wrote {path}")
    right = sum(answer.right for answer in answers)
    typer.echo(f"{right} of {len(answers)} right")
    if right < len(answers):
        raise typer.Exit(1)
