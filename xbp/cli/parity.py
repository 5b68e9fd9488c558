"""``xbp parity``: whether all backends here agree, as a table and a certificate."""

from __future__ import annotations

import datetime
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from xbp.arguments import integer
from xbp.backend import available_backends, find_backend
from xbp.cli.display import new_table
from xbp.cli.files import prepare_file, prepare_folder
from xbp.cli.ranks import group_of
from xbp.errors import InputError
from xbp.machine import facts_of, surroundings
from xbp.training.callbacks.progress import on_terminal
from xbp.training.files import write_text

if TYPE_CHECKING:
    from xbp.parallel import Group
    from xbp.testing.certificate import Certificate, Progress, Row

Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        help="Check this one; may be given several times. By default all that work here.",
    ),
]
Only = Annotated[
    str, typer.Option(help="Only the cases with this text in them: a kind, a name, an argument.")
]
JSON = Annotated[Path | None, typer.Option("--json", help="A file for the certificate.")]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="A file for the certificate, to be read.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="A folder for what of these two has no file of its own: parity_cupy.json, .md."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="The number of processes, which share the device and the cores: by default one a "
        "core, 8 at most, and fewer for few cases. The certificate is the same."
    ),
]

Ranks = Annotated[
    int | None,
    typer.Option(
        help="Check instead that this many processes, which train together, compute what one does, "
        "and are equal bit for bit. Needs mpi4py and an MPI."
    ),
]

WIDTH = 80
"""The width of the tables, in columns of a terminal."""
LINES = 10
"""The number of progress lines without a terminal."""


def parity(
    backend: Backends = None,
    only: Only = "",
    json_file: JSON = None,
    markdown_file: Markdown = None,
    output: Output = None,
    jobs: Jobs = None,
    ranks: Ranks = None,
) -> None:
    """Check that every layer, loss, optimizer, initializer, primitive and accelerator of xbp, and
    a training of LeNet-5, give on each backend what numpy gives in float64, up to rounding.

    The exit status is 1 if anything does not. A backend is checked on its default device;
    CUDA_VISIBLE_DEVICES chooses another GPU.
    """
    from xbp.testing.certificate import Certificate, certify  # here, as it imports all of xbp

    group = group_of(ranks)
    if group is not None and jobs is not None:
        msg = (
            "--jobs divides the cases of one process, and --ranks starts several; give one of them"
        )
        raise InputError(msg)
    jobs = None if jobs is None else integer("--jobs", jobs, least=1)
    usual = available_backends() if group is None else ["numpy"]
    names = list(dict.fromkeys(backend or usual))
    for name in names:
        find_backend(name)  # refuses unknown and missing backends
    if output is not None:
        stem = file_stem(names, only, 1 if group is None else group.size)
        prepare_folder(output, ())
        json_file = json_file or output / f"{stem}.json"
        markdown_file = markdown_file or output / f"{stem}.md"
    for path in (json_file, markdown_file):
        if path is not None:
            prepare_file(path)
    if names == ["numpy"] and group is None:
        typer.echo(
            "only numpy is checked, the reference against itself and its accelerators; "
            "xbp info says how to get other backends"
        )
    start, date = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    versions = surroundings()  # now, as files may change during the checks
    if group is None:
        with progress_bar() as progress:
            rows = certify(names, only, progress, jobs)
    else:
        with progress_bar() if group.rank == 0 else nullcontext(silent) as progress:
            rows = rows_of_ranks(group, names, only, progress)
    if not rows:
        msg = f"no case has {only!r} in it; try a name, such as --only Conv2d"
        raise InputError(msg)
    about = {
        "command": shlex.join(["xbp", *sys.argv[1:]]),
        "date": f"{date:%Y-%m-%d %H:%M} UTC, {time.perf_counter() - start:.0f} s",
    }
    facts = {name: facts_of(name) for name in names}
    together = 1 if group is None else group.size
    certificate = Certificate(rows, about | versions, facts, together)
    if group is None or group.rank == 0:
        print_tables(certificate)
        if json_file is not None:
            write(json_file, certificate.as_json())
        if markdown_file is not None:
            write(markdown_file, certificate.as_markdown())
    if not certificate.passed:
        raise typer.Exit(1)


def rows_of_ranks(group: Group, names: list[str], only: str, progress: Progress) -> list[Row]:
    """The rows of all backends, each with the group of its kind."""
    from xbp import parallel
    from xbp.testing.ranks import certify_ranks

    rows = []
    for name in names:
        own = parallel.group("nccl") if name == "cupy" and group.size > 1 else group
        rows += certify_ranks(own, name, only, progress=progress)
    return rows


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress: a transient bar on a terminal, otherwise some lines for a log."""
    if not on_terminal():
        yield tell
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, case: str) -> None:
            bar.update(task, completed=done, total=total, description=case)

        yield update


def tell(done: int, total: int, case: str) -> None:
    """Print a line on standard error at the start and after each tenth of the cases."""
    if total and (done == 0 or done * LINES // total > (done - 1) * LINES // total):
        typer.echo(f"{done} of {total} cases", err=True)


def silent(done: int, total: int, case: str) -> None:
    """Progress of the other ranks, of which rank 0 speaks."""


def print_tables(certificate: Certificate) -> None:
    """A table for each backend, with failures first; then every failure, and the verdict."""
    from xbp.testing.certificate import COLUMNS, LEGEND

    if certificate.ranks > 1:
        typer.echo(certificate.title())
    first, *shown = certificate.columns()
    for backend, facts in certificate.backends.items():
        typer.echo(f"{backend} ({facts['device']})")
        table, kind = new_table(*(COLUMNS[k] for k in (first, *shown)), left=2), ""
        table.padding, table.show_edge = (0, 0), False  # narrow, without padding
        for row in certificate.failing_first(backend):
            if kind != row.kind:
                table.add_section()
                table.add_row(f"{row.kind}:")
            kind = row.kind
            cells = row.cells()
            table.add_row(row.name, *(cells[k] for k in shown))
        # A console that is wide enough, so that nothing is cut off.
        Console(markup=False, emoji=False, highlight=False, width=WIDTH).print(table)
    for failure in certificate.failures:
        typer.echo(f"FAILED  {failure}")
    typer.echo(textwrap.fill(LEGEND, WIDTH))
    typer.echo(certificate.verdict())


def file_stem(backends: list[str], only: str, ranks: int = 1) -> str:
    """The file name of a certificate, which tells a partial one from a full one.

    >>> file_stem(["cupy"], ""), file_stem(["numpy", "cupy"], "LeNet-5 (tanh")
    ('parity_cupy', 'parity_numpy_cupy_only_lenet_5_tanh')
    >>> file_stem(["numpy"], "", ranks=2)
    'parity_numpy_2_ranks'
    """
    part = re.sub(r"[^a-z0-9]+", "_", only.lower()).strip("_")
    several = [f"{ranks}_ranks"] if ranks > 1 else []
    return "_".join(["parity", *backends, *several, *(["only", part] if only else [])])


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and print its name."""
    write_text(path, text)
    typer.echo(f"wrote {path}")
