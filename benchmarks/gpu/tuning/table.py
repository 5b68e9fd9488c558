"""Measured times by product and tile: kept in JSON, shown in Markdown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.tuning.row import Row
from xbp.accelerators.cuda import launch
from xbp.training.files import write_text

Times = dict[str, Any]
"""Of a product: "flop", "rule", "peer" in µs, "tiles" (µs by label, None if only checked), "failed"
(reasons by label)."""


class Table:
    """The times of a device.

    Attributes
    ----------
    facts : dict of str to str
        Device and versions.
    families : dict
        For each family of products, "source", a digest of its kernels, and "rows".
    """

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self.path, self.facts = path, facts
        self.families: dict[str, dict[str, Any]] = {}
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            self.families = known["families"]
            self.facts = facts or known["facts"]

    def begin(self, family: str, files: Iterable[str]) -> bool:
        """Keep the times of kernels that are still the same; whether others were discarded."""
        source = digest(files)
        known = self.families.get(family, {"source": source, "rows": {}})
        changed = bool(known["source"] != source)
        self.families[family] = {"source": source, "rows": {}} if changed else known
        return changed

    def knows(self, row: Row) -> bool:
        """Whether a product has been begun."""
        return row.name in self.families.get(row.family, {"rows": {}})["rows"]

    def row(self, row: Row) -> Times:
        """The entry of a product."""
        rows = self.families.setdefault(row.family, {"source": "", "rows": {}})["rows"]
        known: Times = rows.setdefault(row.name, {"peer": None, "tiles": {}, "failed": {}})
        return known

    def left(self, row: Row) -> list[str]:
        """The labels of the tiles that remain to be measured, the rule's first."""
        return [label for label in row.tiles if label not in self.row(row)["tiles"]]

    def write(self) -> None:
        told = {"facts": self.facts, "families": self.families}
        write_text(self.path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def digest(files: Iterable[str]) -> str:
    text = "\n".join(launch.source(file) for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- for readers ---------------------------------------------------------------------------------


def timed(times: Times) -> dict[str, float]:
    """The tiles with a time, the fastest first."""
    known = {label: t for label, t in times["tiles"].items() if t is not None}
    return dict(sorted(known.items(), key=lambda item: item[1]))


def regret(row: Row, times: Times) -> float | None:
    """The time of the rule's tile divided by the least, if both were measured."""
    known = timed(times)
    return known[row.rule] / min(known.values()) if row.rule in known else None


def markdown(title: str, lines: Sequence[str], rows: Sequence[Row], table: Table) -> str:
    """A page about the products of one family, which `lines` introduce."""
    text = [f"# {title}", "", *lines, ""]
    text += ["Times in µs, in parentheses TFLOP/s. Rule: the tile that xbp chooses.", ""]
    text += ["| product | PyTorch | rule | its time | longer than the best | the fastest |"]
    text += ["| --- " * 6 + "|"]
    for row in rows:
        times = table.row(row)
        known, longer = timed(times), regret(row, times)
        cells = [row.name, shown(times["peer"], row.flop), row.rule]
        cells += [shown(known.get(row.rule), row.flop)]
        cells += ["–" if longer is None else f"{100 * (longer - 1):.0f} %"]
        fastest = "; ".join(f"{label} {t:.4g}" for label, t in list(known.items())[:4])
        cells += [fastest or f"{len(times['tiles'])} checked, not timed"]
        text += [f"| {' | '.join(cells)} |"]
    failed = [(row, *item) for row in rows for item in table.row(row)["failed"].items()]
    if failed:
        text += ["", "## What failed", ""]
        text += [f"- {row.name}, {label}: {why}" for row, label, why in failed]
    return "\n".join(text) + "\n"


def shown(time: float | None, flop: int) -> str:
    return "–" if time is None else f"{time:.4g} ({flop / time / 1e6:.1f})"
