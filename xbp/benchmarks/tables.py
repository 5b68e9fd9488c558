"""Results of a benchmark as a dictionary for JSON, as Markdown tables, and as a plot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING, Any, TypeAlias

from xbp.benchmarks.harness import Harness, precision, threads_label
from xbp.benchmarks.process import OURS
from xbp.benchmarks.workloads import SIDES, WORKLOADS, on_gpu

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = "dict[str, Any]"
"""One measurement; see `Harness`."""

UNITS: dict[str, Callable[[Row, float], str]] = {
    "images/s": lambda row, cost: f"{int(row['label']) / cost:,.0f}",
    "samples/s": lambda row, cost: f"{int(row['label']) / cost:,.0f}",
    "GFLOP/s": lambda row, cost: f"{row['flop'] / cost / 1e9:,.1f}",
    "GB/s": lambda row, cost: f"{row['bytes'] / cost / 1e9:,.1f}",
    "MB": lambda row, cost: f"{cost / 1e6:,.0f}",
    "s": lambda row, cost: f"{cost:.1f}",
    "ms": lambda row, cost: f"{cost * 1e3:.1f}",
    "µs": lambda row, cost: f"{cost * 1e6:.2f}",
    "%": lambda row, cost: f"{cost:.2%}",
    "kernels": lambda row, cost: f"{cost:,.0f}",
}
"""The scale and the unit of costs in seconds, bytes or counts."""

FLOORS = ("sgemm", "copy", "launch", "mlp-products")
RIVALS = ("torch", "numpy")
"""Peers to compare with: the first that is installed."""


SLOW = 0.8
"""A ratio to PyTorch that is listed by name."""


def results(harness: Harness) -> dict[str, Any]:
    """All results as JSON values."""
    threads = threads_label(harness.options.threads)
    how = "bfloat16" if harness.options.bfloat16 else precision(harness.options.tf32)
    gpu = how, ""
    add_floors(harness.rows, *gpu if harness.on_gpu else (threads, threads))
    return {
        "machine": harness.machine,
        "options": vars(harness.options) | {"rounds": harness.rounds},
        "versions": harness.versions,
        "not_run": harness.not_run,
        "failures": harness.failures,
        "rows": harness.rows,
    }


def add_floors(rows: list[Row], products: str, copying: str) -> None:
    """Add a lower bound of the time on this machine to each row, as "floor".

    It is the larger of FLOP / the rate of the square matrix product and bytes / the rate of
    copying, measured on the best side in the rows of these labels. An MLP also gets the time of its
    matrix products alone.
    """
    least = {
        (row["workload"], row["label"]): (row, min(row["medians"].values()))
        for row in rows
        if row["workload"] in FLOORS
    }
    sgemm, copy = least.get(("sgemm", products)), least.get(("copy", copying))
    for row in rows:
        if row["workload"] == "mlp" and (alone := least.get(("mlp-products", row["label"]))):
            row["products"] = alone[1]
        if {"flop", "bytes"} <= row.keys() and sgemm and copy:
            arithmetic = row["flop"] / sgemm[0]["flop"] * sgemm[1]
            row["floor"] = max(arithmetic, row["bytes"] / copy[0]["bytes"] * copy[1])


# --- Markdown ------------------------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> str:
    """A table for each workload, with a description before and notes after them."""
    parts = ["# Side by side", _conditions(found)]
    for name, workload in WORKLOADS.items():
        if rows := [row for row in found["rows"] if row["workload"] == name]:
            parts.append(f"## {workload.title} ({workload.unit})\n\n{_table(name, rows)}")
            parts += ["\n".join(f"- {line}" for line in _remarks(rows))] * any(_remarks(rows))
    for title, lines in (("Not run", _not_run(found)), ("Failed", found["failures"])):
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    parts.append(READING)
    return "\n\n".join(parts) + "\n"


READING = """\
## How to read it

Values are medians over the rounds, in which the sides took turns. The ratio a : b says how many
times as much time (or memory) b took as a in the same round, in parentheses the least and the
largest: above 1, a is better. "Floor" is what the machine would reach if the step took no longer
than its FLOP at the rate of the square matrix product, or than the memory traffic that no cache can
save (the batch, the parameters) at the rate of copying, whichever is longer. "Deviation" is the
largest relative difference between the losses of the sides in the first steps from the same
weights, which were compared before anything was timed."""


def _conditions(found: dict[str, Any]) -> str:
    machine, options = found["machine"], found["options"]
    bfloat16 = options.get("bfloat16")
    versions: dict[str, str] = {}
    for side in found["versions"].values():
        versions |= {
            k: v for k, v in side.items() if k not in ("threads", "device", "accelerators")
        }
    devices = {s["device"] for s in found["versions"].values() if "device" in s} - {"cpu"}
    devices = {d for d in devices if not any(o != d and o.startswith(d) for o in devices)}
    where = ", ".join([machine["processor"], *sorted(devices)])
    lines = [
        f"{machine['date']}; {where}, {threads_label(options['threads'])}; {machine['system']}",
        f"Python {machine['python']}, " + ", ".join(f"{k} {v}" for k, v in versions.items()),
        f"backend {options['backend']}, {'products in bfloat16, else ' * bool(bfloat16)}float32, "
        f"TF32 {'on' if options['tf32'] else 'off'}; "
        f"{options['rounds']} rounds" + (f"; commit {c}" if (c := machine["commit"]) else ""),
    ]
    if machine["load"] is not None:
        lines[0] += f"; load before the start {machine['load']}"
    if "xbp" in found["versions"]:
        lines[1] += f"; accelerators: {found['versions']['xbp']['accelerators']}"
    if options["quick"]:
        lines.append("**`--quick`: a trial that everything works; its numbers mean nothing.**")
    return "\\\n".join(lines)


def _not_run(found: dict[str, Any]) -> list[str]:
    return [f"{SIDES[side].title}: {why}" for side, why in found["not_run"].items()]


def _remarks(rows: list[Row]) -> Iterator[str]:
    """Notes on a table: accuracies, the time of kernels, memory."""
    for row in rows:
        for side, runs in row.get("epochs", {}).items():
            last = [epochs[-1]["accuracy"] for epochs in runs]
            said = f"{SIDES[side].title}: test accuracy {min(last):.2%} to {max(last):.2%}"
            if WORKLOADS[row["workload"]].averaged:
                spent = fmean(epochs[-1]["seconds"] for epochs in runs)
                said += f"; in the mean of {len(runs)} seeds {fmean(last):.3%} in {spent:.2f} s"
            yield said
        for side, seen in row.get("timeline", {}).items():
            name, count, spent = seen["largest"][0]
            yield (
                f"{SIDES[side].title}: {seen['kernels']:,.1f} kernels and {seen['copies']:,.1f} "
                f"copies a step; the device is busy for {seen['busy']:,.1f} of {seen['span']:,.1f} "
                f"µs; most of it, {spent:,.1f} µs, in {count:,.1f} of `{name[:60]}`"
            )
        for side, held in row.get("held", {}).items() if "grown" not in row else ():
            most = max(h["most"] for h in held) / 1e6
            yield f"{SIDES[side].title}: of this {most:,.0f} MB in the memory pool of its library"
    if WORKLOADS[rows[0]["workload"]].kind == "sweep":
        yield from _distribution(rows)


def _distribution(rows: list[Row]) -> Iterator[str]:
    """The spread of a sweep's ratios, and its slowest shapes."""
    found = {row["label"]: row["ratios"].get("xbp", {}).get("torch") for row in rows}
    ratios = {label: ratio[0] for label, ratio in found.items() if ratio is not None}
    if len(ratios) > 1:
        tenths = quantiles(ratios.values(), n=10, method="inclusive")
        yield (
            f"{len(ratios)} shapes: in the median PyTorch takes {median(ratios.values()):.2f} times"
            f" as long, at the worst tenth {tenths[0]:.2f}, at the best {tenths[-1]:.2f}"
        )
    slow = sorted((ratio, label) for label, ratio in ratios.items() if ratio < SLOW)
    listed = "; ".join(f"{label}: {ratio:.2f}" for ratio, label in slow)
    yield f"below {SLOW}: {listed or 'none'}"


def _table(name: str, rows: list[Row]) -> str:
    unit, sized = UNITS[WORKLOADS[name].unit], bool(WORKLOADS[name].sizes)
    sides = [side for side in SIDES if any(side in row["medians"] for row in rows)]

    def value(side: str) -> Callable[[Row], str]:
        return lambda row: _known(unit, row, row["medians"].get(side))

    def ratio(ours: str, theirs: str) -> Callable[[Row], str]:
        return lambda row: _ratio(row["ratios"].get(ours, {}).get(theirs))

    def share(least: str) -> Callable[[Row], str]:
        return lambda row: _share(row.get(least), row["medians"].get("xbp"))

    columns: dict[str, Callable[[Row], str]] = {}
    if any(row["label"] for row in rows):
        columns["batch" if sized else " "] = lambda row: row["label"]
    columns |= {SIDES[side].title: value(side) for side in sides}
    for theirs in [side for side in RIVALS if side in sides][:1]:
        names = {ours: SIDES[ours].title for ours in OURS if ours in sides}
        columns |= {f"{n} : {SIDES[theirs].title}": ratio(o, theirs) for o, n in names.items()}
    if any("floor" in row for row in rows):
        columns["floor"] = lambda row: _known(unit, row, row.get("floor"))
        columns["xbp, of the floor"] = share("floor")
    if any("products" in row for row in rows):
        columns["xbp, of its products alone"] = share("products")
    if any("deviation" in row for row in rows):
        columns["deviation"] = lambda row: _deviation(row.get("deviation", {}))
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def file_stem(found: dict[str, Any]) -> str:
    """The file name for these results: ``cpu_2threads``, ``gpu_nvidia_h200_tf32``.

    >>> versions = {"xbp": {"device": "NVIDIA H200, compute capability 9.0, 140 GiB"}}
    >>> options = {"backend": "cupy", "threads": 16, "tf32": True, "quick": False}
    >>> file_stem({"options": options, "versions": versions})
    'gpu_nvidia_h200_tf32'
    """
    options: dict[str, Any] = found["options"]
    if on_gpu(options["backend"]):
        devices = [side["device"] for side in found["versions"].values() if "device" in side]
        name = str(devices[0]).partition(",")[0] if devices else "unknown"
        place = "gpu_" + re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    else:
        place = "cpu" if options["backend"] == "numpy" else str(options["backend"])
        place += f"_{threads_label(options['threads'])}".replace(" ", "")
    marks = [mark for mark in ("tf32", "bfloat16", "quick") if options.get(mark)]
    return "_".join([place, *marks])


def _known(unit: Callable[[Row, float], str], row: Row, cost: float | None) -> str:
    return "–" if cost is None else unit(row, cost)


def _ratio(ratio: list[float] | None) -> str:
    return "–" if ratio is None else "{:.2f} ({:.2f}–{:.2f})".format(*ratio)


def _share(least: float | None, cost: float | None) -> str:
    return "–" if least is None or cost is None else f"{least / cost:.0%}"


def _deviation(apart: dict[str, float]) -> str:
    return f"{max(apart.values()):.0e}" if apart else "–"


# --- plot ----------------------------------------------------------------------------------------


def plot(found: dict[str, Any]) -> Figure:
    """A plot of the costs of peers relative to xbp, with smallest and largest; by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [r for r in found["rows"] if r["ratios"].get("xbp") and r["workload"] not in FLOORS]
    figure = Figure(figsize=(7.5, 1.2 + 0.42 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # PNG, independent of the user's backend
    axes = figure.add_subplot()
    peers = [side for side in SIDES if any(row["ratios"]["xbp"].get(side) for row in rows)]
    for index, side in enumerate(peers):
        shift = 0.6 * ((index + 0.5) / len(peers) - 0.5)  # keeps error bars apart
        points = [(y, row["ratios"]["xbp"].get(side)) for y, row in enumerate(rows)]
        known = [(y + shift, *ratio) for y, ratio in points if ratio]
        y, middle, least, most = zip(*known, strict=True)
        below = [m - a for m, a in zip(middle, least, strict=True)]
        above = [a - m for m, a in zip(middle, most, strict=True)]
        style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2}
        axes.errorbar(middle, y, xerr=(below, above), label=SIDES[side].title, **style)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{r['workload']} {r['label']}".rstrip() for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times as much time or memory as xbp; on the right of 1, xbp is better")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if peers:
        figure.legend(loc="outside upper center", ncols=len(peers), frameon=False, fontsize=8)
    return figure
