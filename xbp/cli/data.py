"""``xbp data``: data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xbp.datasets.fetching import fetch, folder_of, missing
from xbp.datasets.known import SETS

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(SETS)}.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where to put it; by default $XBP_DATA/NAME, or below the user's folder of caches, "
        "where the loaders look for it.",
    ),
]


@app.callback()
def data() -> None:
    """Download data sets, and say where they are."""


@app.command("fetch")
def fetch_set(name: Name, folder: Folder = None) -> None:
    """Download a data set, check it against its SHA-256, and unpack it.

    What is there already is not fetched again. It takes the packages of pip install
    "xbackprop[download]".
    """
    typer.echo(f"{name} is in {fetch(name.replace('-', '_'), folder)}")


@app.command("list")
def list_sets() -> None:
    """Say which data sets can be fetched, how large the downloads are, and which are there."""
    for name, known in SETS.items():
        place, downloads = folder_of(name), known.downloads
        here = not any(missing(place, download.files) for download in downloads)
        size = sum(download.size for download in downloads) / 1e6
        state = f"in {place}" if here else "not fetched"
        typer.echo(f"{name:14} {known.title:14} {size:4.0f} MB  {state}")
