"""The table that the package reads, from measured times; see `xbp.accelerators.cuda.tuned`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.gpu.tuning.choosing import asked_by
from benchmarks.gpu.tuning.measure import zeros
from benchmarks.gpu.tuning.row import Row
from benchmarks.gpu.tuning.table import Table, timed
from xbp.accelerators.cuda import tuned
from xbp.training.files import write_text

LEAST_GAIN = 0.05
"""How much less time than the rule's a choice must take; repeated times differ by 1 or 2 %."""
Choices: TypeAlias = "dict[str, dict[str, list[Any]]]"
"""By family and key: sizes, numbers of the choice (none where the rule is as good), and the µs of
the fastest and of the rule."""


def architecture_of(table: Table) -> str:
    """The compute capability of the device, such as "90"; "" if the table does not say it."""
    return tuned.architecture_in(table.facts.get("device", ""))


def decision_of(row: Row) -> tuned.Decision | None:
    """What the package asks where it computes the product of a row."""
    if row.decision is not None:
        return row.decision
    asked = asked_by(row.case(zeros).call)
    return next((decision for decision in asked if decision.family == row.kernel), None)


def choices(rows: Sequence[Row], table: Table) -> Choices:
    """What the times say of the rows whose rule was measured."""
    found: Choices = {}
    for row in rows:
        known = {label: t for label, t in timed(table.row(row)).items() if label in row.tiles}
        decision = decision_of(row) if row.rule in known and len(known) > 1 else None
        if decision is None:
            continue
        best, rule = min(known, key=known.__getitem__), known[row.rule]
        gained = known[best] <= (1 - LEAST_GAIN) * rule
        numbers = list(row.tiles[best]) if gained else []
        entry = [list(decision.sizes), numbers, [round(known[best], 2), round(rule, 2)]]
        found.setdefault(decision.family, {}).setdefault(decision.key, []).append(entry)
    return found


def merged(old: Choices, new: Choices) -> Choices:
    """The rows of both, where new ones replace those of the same sizes; without needless ones.

    A row that leaves it to the rule is needed beside a choice for near sizes.
    """
    found: Choices = {}
    for family in sorted({*old, *new}):
        for key in sorted({*old.get(family, {}), *new.get(family, {})}):
            rows = {
                tuple(row[0]): row
                for choices in (old, new)
                for row in choices.get(family, {}).get(key, [])
            }
            chosen = [sizes for sizes, row in rows.items() if row[1]]
            needed = [
                rows[sizes]
                for sizes in sorted(rows)
                if any(tuned.apart(sizes, other) is not None for other in chosen)
            ]
            if needed:
                found.setdefault(family, {})[key] = needed
    return found


def install(rows: Sequence[Row], table: Table, path: Path, measured: str) -> int:
    """Write the choices into a table of the package, beside its earlier ones; returns their number.

    Parameters
    ----------
    rows : sequence of Row
    table : Table
    path : Path
        Of the table.
    measured : str
        Device, versions and commits.
    """
    architecture, old = architecture_of(table), {}
    if path.exists():
        tuned.read(path, architecture)
        told = json.loads(path.read_text(encoding="utf-8"))
        old, measured = told["choices"], joined(told["measured"], measured)
    whole = merged(old, choices(rows, table))
    write_text(path, text_of(architecture, measured, whole))
    return sum(bool(row[1]) for keys in whole.values() for some in keys.values() for row in some)


def joined(old: str, new: str) -> str:
    """What is said of two measurements, once if it is the same."""
    return old if new in old else f"{old}; {new}"


def text_of(architecture: str, measured: str, whole: Choices) -> str:
    """The file, a line for each row."""
    families = []
    for family, keys in whole.items():
        lines = []
        for key, rows in keys.items():
            each = ",\n".join(f"    {json.dumps(row)}" for row in rows)
            lines.append(f"   {json.dumps(key)}: [\n{each}\n   ]")
        families.append(f"  {json.dumps(family)}: {{\n" + ",\n".join(lines) + "\n  }")
    head = {"format": tuned.FORMAT, "architecture": architecture, "measured": measured}
    beginning = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    body = ",\n".join(families)
    return beginning + ',\n "choices": {\n' + body + "\n }\n}\n"
