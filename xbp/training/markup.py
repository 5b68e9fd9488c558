"""A history as HTML, for notebooks: curves as SVG, and the numbers of the last epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any, TypeAlias

Records: TypeAlias = "list[dict[str, Any]]"

WIDTH, HEIGHT = 240, 120
TRAINING, VALIDATION = "#1f77b4", "#d95f02"
ROWS = 5
"""The last epochs that are listed."""


def as_html(records: Records, names: list[str], stopped: str) -> str:
    """Curves of the loss and of each metric, training and validation in one, and a table.

    Parameters
    ----------
    records : list of dict
        One for each epoch.
    names : list of str
        Those in the records, in order.
    stopped : str
        Why training ended.
    """
    names = [name for name in names if any(name in record for record in records)]
    drawn = [name for name in names if not name.startswith(("epoch", "lr", "val_"))]
    curves = "".join(_figure(records, name) for name in drawn)
    return f"<div>{curves}{_table(records, names)}<p>{escape(stopped)}</p></div>"


def _figure(records: Records, name: str) -> str:
    lines = {
        colour: [(r["epoch"], r[key]) for r in records if math.isfinite(r.get(key, math.nan))]
        for key, colour in ((name, TRAINING), (f"val_{name}", VALIDATION))
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{6 + across * (WIDTH - 12):.1f},{HEIGHT - 8 - up * (HEIGHT - 32):.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" '
        f'points="{" ".join(place(x, y) for x, y in line)}"/>'
        + (_dot(place(*line[0]), colour) if len(line) == 1 else "")
        for colour, line in lines.items()
        if line
    )
    title = f"{escape(name)}: {low:.4g} to {high:.4g}, epochs {left:g} to {right:g}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" style="border: 1px solid #8884; margin: 0 6px 6px 0">'
        f'<text x="6" y="14" font-size="11" fill="currentColor">{title}</text>{drawn}</svg>'
    )


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'


def _table(records: Records, names: list[str]) -> str:
    head = "".join(f"<th>{_coloured(name)}</th>" for name in names)
    rows = "".join(f"<tr>{''.join(_cells(record, names))}</tr>" for record in records[-ROWS:])
    hidden = len(records) - ROWS
    more = f'<tr><td colspan="{len(names)}">… {hidden} before</td></tr>' if hidden > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{more}{rows}</tbody></table>"


def _coloured(name: str) -> str:
    if name in ("epoch",) or name.startswith("lr"):
        return escape(name)
    colour = VALIDATION if name.startswith("val_") else TRAINING
    return f'<span style="color: {colour}">{escape(name)}</span>'


def _cells(record: dict[str, float], names: list[str]) -> Iterator[str]:
    for name in names:
        yield f"<td>{record[name]:.4g}</td>" if name in record else "<td></td>"
