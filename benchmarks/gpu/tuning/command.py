"""``python -m benchmarks.gpu tune``; see the docstring of the package."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.gpu.tuning
from benchmarks.gpu.facts import file_stem
from benchmarks.gpu.running import ROOT
from benchmarks.gpu.tuning import convolutions, networks, products, winograd
from benchmarks.gpu.tuning.asked import ASKED
from benchmarks.gpu.tuning.fit import Measured, current, fit, regret
from benchmarks.gpu.tuning.measure import compile_all, emulation, gpu, measure, to_compile
from benchmarks.gpu.tuning.package import architecture_of, install
from benchmarks.gpu.tuning.row import Row
from benchmarks.gpu.tuning.shapes import KINDS, SHAPES
from benchmarks.gpu.tuning.table import Table, markdown, timed
from benchmarks.gpu.tuning.table import regret as regret_of
from xbp.accelerators.cuda import tuned
from xbp.backend import why_unavailable
from xbp.machine import facts_of, surroundings
from xbp.training.files import write_text

BY_HAND = (convolutions, products, networks, winograd)
FAMILIES: dict[str, Any] = {it.FAMILY: it for it in (*BY_HAND, *ASKED)}


def main(arguments: Sequence[str]) -> int:
    end = time.perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu tune",
        description=benchmarks.gpu.tuning.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names of products")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tiles", type=int, default=1000, help="the most tiles of a product")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether all of it works")
    parser.add_argument("--emulate", action="store_true", help="--quick, checked, not timed")
    parser.add_argument("--backend", choices=("cupy", "numpy"), help="numpy is --emulate")
    parser.add_argument(
        "--install", action="store_true", help="write the table that the package carries"
    )
    parser.add_argument("--report", type=Path, metavar="TABLE.json", help="measure nothing")
    given = parser.parse_args(arguments)
    given.emulate |= given.backend == "numpy"
    small = given.quick or given.emulate
    known_there = families_in(given.report) if given.report else set()
    every = rows_of(given.names, known_there, small)
    names = given.names or [""]
    rows = [row for row in every if any(name in row.name for name in names)]
    if not rows:
        parser.error(f"no product has a name with {' or '.join(given.names)}")
    if not given.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {given.minutes:g}")
    if given.report and not given.report.is_file():
        parser.error(f"--report names no file: {given.report}")
    if given.report:
        table = Table(given.report, {})
        print(report(rows, table))
        print(*written(rows, table, given, given.report), sep="")
        return 0
    end += 60 * given.minutes
    backend = "numpy" if given.emulate else "cupy"
    if reason := why_unavailable(backend):
        parser.error(f"{reason}; or try the command with --emulate")
    facts = facts_of(backend) | surroundings()
    stem = file_stem(backend, facts, quick=small)
    table = Table(given.output / f"{stem}_tuned.json", facts)
    given.output.mkdir(parents=True, exist_ok=True)
    for name, family in FAMILIES.items():
        if table.begin(name, family.FILES):
            print(f"{name}: the kernels have changed; earlier times are discarded")
    if not given.emulate:
        begun, wanted = time.perf_counter(), to_compile(rows, table, given.tiles)
        count, failed = compile_all(wanted, (end - begun) / 3)
        took = time.perf_counter() - begun
        print(f"{count} of {len(wanted)} programs compiled in {took:.0f} s")
        print(*(f"does not compile: {line}\n" for line in failed), sep="", end="", flush=True)
    with emulation() if given.emulate else gpu() as device:
        measure(rows, table, device, end, given.tiles)
    table.write()
    begun_there = {name for name, it in table.families.items() if it["rows"]}
    known = [row for row in rows_of([], begun_there, small) if table.knows(row)]
    said = report(known, table, small)
    write_text(given.output / f"{stem}_tuned.md", page(known, table, said))
    print(said)
    if not small:
        print(*written(known, table, given, given.output / f"{stem}_tuned.json"), sep="")
    failures = [row.name for row in rows if table.row(row)["failed"]]
    return int(bool(failures))


def families_in(path: Path) -> set[str]:
    """The families of which a table has times; none if it is no file."""
    table = Table(path, {}) if path.is_file() else None
    return {name for name, it in table.families.items() if it["rows"]} if table else set()


def rows_of(names: Sequence[str], known: set[str], small: bool) -> list[Row]:
    """The rows of families that may be meant, and of those in a table.

    To know what steps ask for takes some seconds; names of such rows begin with their family's.
    """
    found = list[Row]()
    for family in FAMILIES.values():
        asked = family in ASKED
        meant = any(name.startswith(family.FAMILY) for name in names) or not (names or known)
        if not asked or meant or family.FAMILY in known:
            found += family.rows(small)
    return found


def written(
    rows: Sequence[Row], table: Table, given: argparse.Namespace, source: Path
) -> list[str]:
    """Write the package's table if it is wanted, and say so."""
    architecture = architecture_of(table)
    if not given.install or not architecture:
        return []
    facts = {key: table.facts[key] for key in ("device", "commit") if key in table.facts}
    said = f"{', '.join(facts.values())}: benchmarks/results/{source.name}"
    path = tuned.path_of(architecture)
    count = install(rows, table, path, said)
    return [f"{count} choices are in {path}"]


def page(rows: Sequence[Row], table: Table, said: str) -> str:
    """Both families in Markdown."""
    facts = "; ".join(f"{key}: {value}" for key, value in table.facts.items())
    lines = ["`python -m benchmarks.gpu tune`", "", facts, "", "```text", said, "```"]
    pages = []
    for family in FAMILIES:
        its = [row for row in rows if row.family == family]
        if its:
            pages.append(markdown(f"Tiles of {family}", lines, its, table))
            lines = []
    return "\n".join(pages)


def report(rows: Sequence[Row], table: Table, small: bool = False) -> str:
    """The regret of the rules, the constants that fit unless sizes are small, what was left out."""
    lines = []
    for family in FAMILIES:
        ratios = {row.name: regret_of(row, table.row(row)) for row in rows if row.family == family}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        if known:
            mean = math.exp(sum(map(math.log, known.values())) / len(known))
            worst = max(known, key=known.__getitem__)
            lines.append(
                f"{family}: the rule takes {100 * (mean - 1):.1f} % longer than the best tile in "
                f"the mean of {len(known)}; at worst {100 * (known[worst] - 1):.0f} %, {worst}"
            )
    lines += [] if small else constants(measured(table))
    left = {row.name: len(table.left(row)) for row in rows}
    if any(left.values()):
        every = sum(len(row.tiles) for row in rows)
        counts = "; ".join(f"{name} {count}" for name, count in left.items() if count)
        lines.append(f"left out: {sum(left.values())} of {every} tiles: {counts}")
    return "\n".join(lines)


def measured(table: Table) -> list[Measured]:
    """The times of convolutions in a table."""
    known = table.families.get(convolutions.FAMILY, {"rows": {}})["rows"]
    found = []
    for shape in SHAPES:
        for kind in KINDS:
            times = known.get(f"{shape.name} {kind}")
            if times and (some := timed(times)):
                found.append(Measured(shape, kind, some))
    return found


def constants(known: Sequence[Measured]) -> list[str]:
    """The fitted constants of wide.py, to be pasted."""
    if not known:
        return []
    fitted = fit(known)
    before, after = regret(current(), known), regret(fitted, known)
    lines = [
        f"cost model: {100 * (before - 1):.1f} % longer than the best; fitted to {len(known)} "
        f"products {100 * (after - 1):.1f} %, with LATENCY = {fitted.latency:.0f} and"
    ]
    for tile in fitted.tiles():
        sizes = ", ".join(map(str, tile[:5]))
        lines.append(f"    Tile({sizes}, {tile.speed:.2f}),")
    return lines
