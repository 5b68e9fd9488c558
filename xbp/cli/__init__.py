"""The command line: ``xbp train lenet5``, ``xbp parity``, ``xbp bench``, ``xbp info``.

What a user can do wrong ends in one sentence on the standard error and exit status 2.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import xbp
from xbp.cli import bench, export, info, page, parity, predict, train
from xbp.errors import XBPError


class Commands(TyperGroup):
    """The group of all commands: turns errors that are meant for the user into sentences."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except XBPError as error:
            sentence = str(error)
        except MemoryError as error:
            sentence = (
                f"there is not enough memory ({error}); try a smaller --batch-size or --limit"
            )
        typer.echo(f"Error: {sentence}", err=True)
        raise typer.Exit(2)


app = typer.Typer(
    name="xbp",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train.app, name="train")
app.command("bench")(bench.bench)
app.command("export")(export.export)
app.command("info")(info.info)
app.command("parity")(parity.parity)
app.command("predict")(predict.predict)
app.command("report")(page.report)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xbp {xbp.__version__}")
        raise typer.Exit


@app.callback()
def _xbp(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Backpropagation written once, on the Python Array API: numpy, CuPy and others run it.

    Try: xbp train lenet5
    """


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks × shall get a ?
    try:
        app(prog_name="xbp")
    except OSError as error:
        # What is still in the buffer must go somewhere, or Python complains about it at its exit.
        with suppress(OSError, AttributeError):  # there may be no standard output, or no real one
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        typer.echo(f"Error: the system refused to read or write something ({error})", err=True)
        sys.exit(2)
