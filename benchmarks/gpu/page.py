"""The final page: what passed, what is slower than a peer, what was not reached."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.parts import Settings
from benchmarks.gpu.running import Outcome
from xbp.benchmarks.tables import UNITS
from xbp.benchmarks.workloads import SIDES, WORKLOADS

Lines = Iterator[str]


def page(
    outcomes: Sequence[Outcome],
    settings: Settings,
    facts: dict[str, str],
    minutes: float = math.inf,
    left_out: dict[str, str] | None = None,
) -> str:
    """The whole page in Markdown.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Outcomes of all parts of the backend, in the order in which they run.
    settings : Settings
    facts : dict
        Device, versions, commit.
    minutes : float
        The time limit.
    left_out : dict
        The names of parts that do not apply here, with the reasons.
    """
    allowed = "" if minutes == math.inf else f", {minutes:g} minutes"
    lines = [f"# {facts.get('device', 'unknown')}: backend {settings.backend}{allowed}", ""]
    if settings.quick:
        lines += ["**`--quick`: a trial that everything works; its numbers mean nothing.**", ""]
    ratios = list(_ratios(outcomes, settings))
    slower, others = [r for r in ratios if r[2] < 1], [r for r in ratios if r[2] >= 1]
    sections = {
        "What was run": list(_parts(outcomes, settings)),
        "What failed": list(_failures(outcomes, settings)),
        "Slower than a peer": _table(slower),
        "As fast as a peer, or faster": _table(others),
        "Not reached": list(_unreached(outcomes, left_out or {})),
        "On what": [f"| {key} | {_cell(value)} |" for key, value in {"": "", **facts}.items()],
    }
    sections["On what"].insert(1, "| --- | --- |")
    for title, content in sections.items():
        lines += [f"## {title}", "", *(content or ["Nothing."]), ""]
    return "\n".join(lines)


def _parts(outcomes: Sequence[Outcome], settings: Settings) -> Lines:
    yield "| part | what | how it ended | seconds | what it says |"
    yield "| --- | --- | --- | --- | --- |"
    for o in outcomes:
        if o.how != "not reached":
            cells = o.part.name, o.part.what, o.how, f"{o.seconds:.0f}", headline(o, settings)
            yield f"| {' | '.join(cells)} |"


def _failures(outcomes: Sequence[Outcome], settings: Settings) -> Lines:
    for o in outcomes:
        if o.how not in ("done", "running", "not reached"):
            yield f"- {o.part.name}: {o.how} after {o.seconds:.0f} s; {_cell(last_word(o))}"
        if o.part.name in ("tests", "parity"):
            said = o.log.read_text(encoding="utf-8", errors="replace") if o.log else ""
            found = re.findall(r"^(?:\[gw\d+\] \[ *\d+%\] )?FAILED +(\S.*)$", said, re.MULTILINE)
            yield from (f"  - {_cell(line)[:300]}" for line in dict.fromkeys(found))
        for problem in _measured(o, settings).get("failures", ()):
            yield f"  - {_cell(problem)}"


def _unreached(outcomes: Sequence[Outcome], left_out: dict[str, str]) -> Lines:
    for o in outcomes:
        if o.how in ("not reached", "stopped", "running"):
            how = {"not reached": "", "stopped": ", in part", "running": ", still at work"}[o.how]
            yield f"- {o.part.name}{how}: {o.part.what} (takes about {o.part.seconds:.0f} s)"
    yield from (f"- {name}: {why}" for name, why in left_out.items())


def _ratios(
    outcomes: Sequence[Outcome], settings: Settings
) -> Iterator[tuple[str, str, float, float, float]]:
    """For each measurement and peer, the ratio of the peer's time to xbp's, minimum and maximum."""
    for o in outcomes:
        for row in _measured(o, settings).get("rows", ()):
            title = f"{WORKLOADS[row['workload']].title} {row['label']}".rstrip()
            title += {"tf32": ", TF32", "bfloat16": ", bfloat16"}.get(o.part.name, "")
            for side, spread in row.get("ratios", {}).get("xbp", {}).items():
                if spread and not side.startswith(("xbp", "reference")):
                    yield (title, SIDES[side].title, *spread)


def _table(ratios: Sequence[tuple[str, str, float, float, float]]) -> list[str]:
    if not ratios:
        return []
    lines = ["| measured | beside | times as fast (least–most) |", "| --- | --- | --- |"]
    for title, side, middle, least, most in sorted(ratios, key=lambda ratio: ratio[2]):
        lines.append(f"| {title} | {side} | {middle:.2f} ({least:.2f}–{most:.2f}) |")
    return lines


def _measured(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """The JSON of a benchmark of this run, not of an earlier one."""
    path = settings.file(outcome.part.name, "json")
    if outcome.log is None or not path.exists() or path.stat().st_mtime < outcome.started - 1:
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if "versions" in found else {}  # not a certificate


def headline(outcome: Outcome, settings: Settings) -> str:
    """A summary of a part: xbp's numbers in a benchmark, else the last line."""
    rows = [row for row in _measured(outcome, settings).get("rows", ()) if "xbp" in row["medians"]]
    told = []
    for row in rows:
        unit, cost = WORKLOADS[row["workload"]].unit, row["medians"]["xbp"]
        value = "–" if cost is None else f"{UNITS[unit](row, cost).rstrip('%')} {unit}"
        told.append(f"{row['workload']} {row['label']}".rstrip() + f": {value}")
    return _cell("; ".join(told) or last_word(outcome))


def last_word(outcome: Outcome) -> str:
    """The last line of a part's output."""
    if outcome.log is None or not outcome.log.exists():
        return ""
    lines = outcome.log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip(" =") for line in lines if line.strip(" =\n")]
    verdicts = [line for line in said if re.match(r"passed: |FAILED: |test loss ", line)]
    return (verdicts or said or [""])[-1][:200]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
