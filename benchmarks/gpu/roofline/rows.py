"""The launches of a step by kernel and size, with what bounds them, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.roofline.arithmetic import bytes_of, flop, occupancy
from benchmarks.gpu.roofline.device import EMPTY, Device, Usage
from benchmarks.gpu.roofline.dry import Launch
from benchmarks.gpu.roofline.timeline import Key, Timed, Timeline
from xbp.accelerators.cuda.ahead import Program

HEAD = (
    *("kernel", "a step", "blocks × threads", "registers, shared", "occupancy", "waves"),
    *("MFLOP", "MB", "least µs", "bound by", "µs", "of the step"),
)


@dataclass
class Row:
    """Equal launches of a step.

    Attributes
    ----------
    name : str
    grid : (int, int)
    threads : int
    count : float
        How many there are in a step.
    flop : int or None
        Of each launch.
    bytes : int
        Of each launch.
    usage : Usage or None
    timed : Timed or None
    """

    name: str
    grid: tuple[int, int]
    threads: int
    count: float = 0
    flop: int | None = 0
    bytes: int = 0
    usage: Usage | None = None
    timed: Timed | None = None

    @property
    def key(self) -> Key:
        return self.name, self.grid, self.threads

    def least(self, device: Device) -> tuple[float, str]:
        """The least seconds of a launch, and what they are bound by."""
        ways = [(EMPTY, "launch"), ((self.flop or 0) / device.flop, "FLOP")]
        return max([*ways, (self.bytes / device.bandwidth, "bytes")])

    def seconds(self, device: Device) -> float:
        """All such launches of a step, measured or at least."""
        if self.timed is not None:
            return self.timed.count * self.timed.seconds
        return self.count * self.least(device)[0]


def rows_of(
    launches: Sequence[Launch], usages: Mapping[tuple[Program, str], Usage], timed: Timeline | None
) -> list[Row]:
    """Launches with equal names and grids in one row each; then kernels that were only timed."""
    found: dict[Key, list[Launch]] = {}
    for it in launches:
        found.setdefault((it.name, it.grid, it.threads), []).append(it)
    times: dict[Key, Timed] = dict(timed.kernels) if timed else {}
    rows = []
    for key, some in found.items():
        known = [flop(it) for it in some]
        total = None if None in known else sum(it for it in known if it is not None)
        usage = usages.get(((some[0].file, tuple(some[0].macros.items())), key[0]))
        row = Row(*key, len(some), None if total is None else total // len(some))
        row.bytes = sum(map(bytes_of, some)) // len(some)
        row.usage, row.timed = usage, times.pop(key, None)
        rows.append(row)
    rows += [Row(*key, it.count, None, timed=it) for key, it in times.items()]
    return rows


def table(rows: Sequence[Row], device: Device, step: float | None) -> list[str]:
    """The table in Markdown, the longest rows first, and a last row with the sums."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    longest = sorted(rows, key=lambda row: -row.seconds(device))
    lines += [f"| {' | '.join(cells(row, device, step))} |" for row in longest]
    sums = [
        "all", f"{sum(row.count for row in rows):.3g}", "", "", "", "",
        number(sum(row.count * (row.flop or 0) for row in rows) / 1e6),
        number(sum(row.count * row.bytes for row in rows) / 1e6),
        number(1e6 * sum(row.count * row.least(device)[0] for row in rows)), "", "", "",
    ]  # fmt: skip
    if step is not None:
        spent = sum(row.seconds(device) for row in rows if row.timed is not None)
        sums[-2:] = [number(1e6 * spent), f"{spent / step:.0%}"]
    return [*lines, f"| {' | '.join(sums)} |"]


def cells(row: Row, device: Device, step: float | None) -> list[str]:
    """A row of the table."""
    (blocks, more), usage = row.grid, row.usage
    size = f"{blocks} · {more} × {row.threads}" if more > 1 else f"{blocks} × {row.threads}"
    taken, share, waves = "", "", ""
    if usage is not None:
        taken = f"{usage.registers}, {usage.shared}" + f", {usage.spilled} spilled" * (
            usage.spilled > 0
        )
        resident = occupancy(row.threads, usage.registers, usage.shared, device.most)
        share = f"{resident:.0%}"
        at_once = device.processors * resident * device.most["threads"] / row.threads
        waves = number(blocks * more / at_once)
    seconds, bound = row.least(device)
    known = row.flop is not None or row.bytes > 0
    found = [
        f"`{row.name[:40]}`", f"{row.count:.3g}", size if row.threads else "", taken, share, waves,
        "" if row.flop is None else number(row.flop / 1e6), number(row.bytes / 1e6),
        number(1e6 * seconds) if known else "", bound if known else "", "", "",
    ]  # fmt: skip
    if row.timed is not None:
        found[-2] = number(1e6 * row.timed.seconds)
        if step is not None:
            found[-1] = f"{row.seconds(device) / step:.0%}"
    return found


def number(value: float) -> str:
    """Three digits.

    >>> [number(value) for value in (0.0, 0.01234, 12.34, 12345.6)]
    ['', '0.0123', '12.3', '12346']
    """
    return "" if not value else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
