"""``xbp report``: a page about an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import xbp
from xbp.backend import find_backend
from xbp.cli.files import prepare_file
from xbp.cli.options import BackendName, Device
from xbp.report import write_report
from xbp.report.run import REPORT

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that xbp train has written.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where the run's set is, if no longer where it was.")
]
Output = Annotated[
    Path | None, typer.Option(help=f"The file to write; by default {REPORT} in the folder.")
]


def report(
    folder: Folder,
    data_dir: DataDir = None,
    output: Output = None,
    backend: BackendName = "numpy",
    device: Device = None,
) -> None:
    """Show a run on one page: how it learned, what it confuses, what it sees, how to repeat it.

    Nothing is trained again; the test images are read once more. The page is one file of HTML
    that needs no network. Writing it takes jinja2 and matplotlib.
    """
    found = find_backend(backend, device=device)
    xbp.set_backend(found.name, device=device)
    path = output or folder / REPORT
    if output is not None:
        prepare_file(path)
    write_report(folder, path, data_dir=data_dir)
    typer.echo(f"wrote {path}")
