"""``xbp bench``: xbp and its peers side by side."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from xbp.arguments import integer
from xbp.backend import find_backend
from xbp.benchmarks.harness import Harness
from xbp.benchmarks.options import Options
from xbp.benchmarks.tables import file_stem, markdown, plot, results
from xbp.benchmarks.workloads import SIDES, WORKLOADS, takes_part
from xbp.cli.files import prepare_file, prepare_folder
from xbp.cli.options import BackendName, Device
from xbp.errors import InputError, XBPError
from xbp.machine import cpus
from xbp.training.files import replacing, write_text

Workloads = Annotated[
    list[str] | None,
    typer.Argument(
        help=f"What to measure, of {', '.join(WORKLOADS)}; by default all that belongs to the "
        "backend."
    ),
]
Sides = Annotated[
    list[str] | None,
    typer.Option("--side", help=f"Only these, one each time, of {', '.join(SIDES)}."),
]
Rounds = Annotated[
    int | None,
    typer.Option(help="How often the sides take turns: 7, and at most 3 where a turn takes long."),
]
Batches = Annotated[
    list[int] | None, typer.Option("--batch", help="Other batch sizes, one each time.")
]
Threads = Annotated[
    int | None, typer.Option(help="Of every side; by default as many as there are cores.")
]
TF32 = Annotated[bool, typer.Option("--tf32", help="On a GPU, multiply in TF32 on all sides.")]
BFloat16 = Annotated[
    bool,
    typer.Option(
        "--bfloat16",
        help="Train with the factors of products in bfloat16: Trainer's precision, and PyTorch's "
        "autocast.",
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Only try, in seconds, whether all of it works.")
]
JSON = Annotated[Path | None, typer.Option("--json", help="A file for everything measured.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="A file for the tables.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="A file for a picture of the ratios.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="A folder for what of these three has no file of its own, under the name of the "
        "processor or GPU: gpu_nvidia_h200.json, .md, .png.",
    ),
]


def bench(
    workloads: Workloads = None,
    side: Sides = None,
    backend: BackendName = "numpy",
    device: Device = None,
    rounds: Rounds = None,
    batch: Batches = None,
    threads: Threads = None,
    tf32: TF32 = False,
    bfloat16: BFloat16 = False,
    quick: Quick = False,
    json_file: JSON = None,
    markdown_file: Markdown = None,
    plot_file: Plot = None,
    output: Output = None,
) -> None:
    """Measure xbp and its peers side by side, and print tables.

    Each side runs in a process of its own, with the same data, weights, batches and number of
    threads; they take turns, round by round. Before anything is timed, their losses over the first
    steps must be the same. Peers that are not installed are named, with what installs them.

    Everything takes about an hour on two cores, which should have nothing else to do. On a GPU
    (--backend cupy) the data stay on the device, PyTorch also replays a CUDA graph, and kernels are
    counted.
    """
    names = _of("workload", workloads, WORKLOADS, backend)
    chosen = _of("side", side, SIDES, backend)
    cores = len(cpus()) or os.cpu_count() or 1
    threads = cores if threads is None else integer("--threads", threads, least=1)
    if threads > cores:
        msg = f"--threads must not exceed {cores}, the cores that may be used here; got {threads}"
        raise InputError(msg)
    rounds = None if rounds is None else integer("--rounds", rounds, least=1)
    batches = tuple(integer("--batch", size, least=1) for size in batch or ())
    if batches and not any(WORKLOADS[name].sizes for name in names):
        msg = f"--batch says nothing to {', '.join(names)}; leave it out"
        raise InputError(msg)
    find_backend(backend, device=device)
    for path in filter(None, (json_file, markdown_file, plot_file)):
        prepare_file(path)
    if output:
        prepare_folder(output, ())
    options = Options(backend, device, threads, tf32, rounds, batches, quick, bfloat16)
    with Harness(options, chosen, lambda line: typer.echo(line, err=True)) as harness:
        missing = [f"{SIDES[s].title} ({harness.not_run[s]})" for s in harness.not_run]
        if side and missing:
            msg = f"--side asks for {', '.join(missing)}; install it, or leave it out"
            raise InputError(msg)
        for line in missing:
            typer.echo(f"not run: {line}", err=True)
        if output:
            some = "_".join(names) if workloads else ""  # keeps the files of a full run
            stem = "_".join(filter(None, [str(output / file_stem(results(harness))), some]))
            json_file = json_file or Path(f"{stem}.json")
            markdown_file = markdown_file or Path(f"{stem}.md")
            if find_spec("matplotlib"):
                plot_file = plot_file or Path(f"{stem}.png")
        files = json_file, markdown_file, plot_file
        # Write after each row, and plot after each workload, in case a long run is stopped.
        harness.found = lambda: _write(results(harness), json_file, markdown_file)
        for name in names:
            harness.measure(name)
            _write(results(harness), *files)
    typer.echo(markdown(results(harness)), nl=False)
    for path in filter(None, files if output else ()):
        typer.echo(f"wrote {path}", err=True)
    if harness.failures:
        count = len(harness.failures)
        msg = f"{count} measurement{'s' * (count > 1)} failed; the table says at its end, which"
        raise XBPError(msg)


def _of(what: str, wanted: list[str] | None, known: dict[str, Any], backend: str) -> list[str]:
    """The wanted names in their usual order; by default all those of the backend.

    Raises
    ------
    InputError
        A name is unknown.
    """
    for name in wanted or ():
        if name not in known:
            msg = f"there is no {what} {name!r}; choose from {', '.join(known)}"
            raise InputError(msg)
    usual = [name for name, item in known.items() if takes_part(item.where, backend)]
    return [name for name in known if name in (wanted or usual)]


def _write(
    found: dict[str, Any],
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None = None,
) -> None:
    if json_file:
        write_text(json_file, json.dumps(found, indent=1) + "\n")
    if markdown_file:
        write_text(markdown_file, markdown(found))
    if plot_file:
        with replacing(plot_file) as path:
            plot(found).savefig(path, format="png")
