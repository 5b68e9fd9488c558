"""The command line: ``xbp train lenet5``, ``xbp parity``, ``xbp bench``, ``xbp info``.

A user's mistake ends in one sentence on the standard error and exit status 2. The module of a
command is imported when the command is called, so that ``xbp --help`` stays fast.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xbp._version import __version__
from xbp.errors import XBPError
from xbp.launchers import launched, take_share_of_cores

COMMANDS = {
    "train": ("train", "app", "Train a model and test it."),
    "bench": ("bench", "bench", "Measure xbp and its peers side by side, and print tables."),
    "data": ("data", "app", "Download data sets, and say where they are."),
    "export": (
        "export",
        "export",
        "Write a trained model as an ONNX file, which runs without Python or xbp.",
    ),
    "homework": (
        "homework",
        "app",
        "Write exercises in backpropagation, and check answers to them.",
    ),
    "info": (
        "info",
        "info",
        "Say which versions are installed, which backends and devices work here, and why not.",
    ),
    "parity": (
        "parity",
        "parity",
        "Check that every layer, loss, optimizer, initializer, primitive and accelerator of xbp, "
        "and a training of LeNet-5, give on each backend what numpy gives in float64, up to "
        "rounding.",
    ),
    "predict": (
        "predict",
        "predict",
        "Print the digits on pictures, or the class of a text, with probabilities.",
    ),
    "report": (
        "report",
        "report",
        "Show a run on one page: how it learned, what it confuses, what it sees, how to repeat it.",
    ),
    "sample": ("sample", "sample", "Let a trained GPT continue a text, and print both."),
}
"""For each command its module, the name in it, and the first paragraph of its help."""


class Commands(TyperGroup):
    """The group of all commands, which prints xbp's errors as sentences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # None until it is imported
        self.commands = commands

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command called `cmd_name`, imported; None if there is none."""
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            file, name, _ = COMMANDS[cmd_name]
            found = getattr(import_module(f"xbp.cli.{file}"), name)
            alone = typer.Typer(rich_markup_mode=self.rich_markup_mode)
            if isinstance(found, typer.Typer):
                alone.add_typer(found, name=cmd_name)
            else:
                alone.command(cmd_name)(found)
            self.commands.update(typer.main.get_group(alone).commands)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Plain text, as importing `TyperGroup`'s frames would take longer than all else."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, _, help_text) in COMMANDS.items()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except XBPError as error:
            sentence = str(error)
        except MemoryError as error:
            sentence = (
                f"there is not enough memory ({error}); try a smaller --batch-size or --limit"
            )
        complain(sentence)
        raise typer.Exit(2)


def complain(sentence: str) -> None:
    """Print what was wrong; of several ranks, one does, and all end."""
    if launched() is not None:
        import_module("xbp.cli.ranks").end_all_ranks(sentence)
    typer.echo(f"Error: {sentence}", err=True)


app = typer.Typer(
    name="xbp",
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xbp {__version__}")
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
    take_share_of_cores()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a ? on terminals that lack a character such as ×
    try:
        app(prog_name="xbp")
    except OSError as error:
        # Flushed here, as Python would complain about a failure at exit.
        with suppress(OSError, AttributeError):  # no standard output, or a replacement
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        complain(f"the system refused to read or write something ({error})")
        sys.exit(2)
