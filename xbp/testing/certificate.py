"""The certificate of `xbp parity`: the cases, the machine, and the results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, TypeAlias

from xbp.testing.catalogue import Item, catalogue, working_accelerators
from xbp.testing.curves import Training, sees_waits
from xbp.testing.finding import Finding
from xbp.testing.workers import check_all, usual_jobs

LEGEND = (
    "forward, backward, state: the largest distance of a result to numpy's in float64, in units of "
    "what rounding explains; up to 1 passes. Away from kinks, numpy's own gradients are compared "
    "with numeric derivatives. bits: whether initial weights, masks and other random draws are the "
    "same, bit for bit; of ranks, whether all have the same losses and weights. waits: "
    "hidden waits for the device; – where there are none to be seen, as the host reads the memory "
    "itself."
)
WAIT = "waits for the device"
"""The text of a `HostSyncError`."""


@dataclass(frozen=True)
class Row:
    """All cases of one item on one backend in one dtype.

    Attributes
    ----------
    kind, name, backend, dtype : str
    cases : int
    forward, backward, state : float or None
        The largest error in units of its bound; None if there is no such quantity.
    bits : bool or None
        Whether initial weights, random bits and masks equal numpy's, bit for bit.
    waits : int or None
        The number of cases with a hidden wait; None on the host, where nothing waits.
    failures : tuple of str
        A sentence for each failed finding.
    """

    kind: str
    name: str
    backend: str
    dtype: str
    cases: int
    forward: float | None
    backward: float | None
    state: float | None
    bits: bool | None
    waits: int | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def cells(self) -> tuple[str, ...]:
        """The cells of the columns `COLUMNS`."""
        errors = (self.forward, self.backward, self.state)
        return (
            *(f"{self.kind} {self.name}", self.dtype, str(self.cases), *map(_shown, errors)),
            "" if self.bits is None else "equal" if self.bits else "DIFFER",
            "–" if self.waits is None else str(self.waits),
            "passed" if self.passed else "FAILED",
        )


COLUMNS = ("item", "dtype", "cases", "forward", "backward", "state", "bits", "waits", "result")


Progress: TypeAlias = "Callable[[int, int, str], None]"
"""Called with the number of finished cases, the number of all cases, and the last one."""


def certify(
    backends: Iterable[str],
    only: str = "",
    progress: Progress = lambda done, total, case: None,
    jobs: int | None = 1,
) -> list[Row]:
    """Run the catalogue.

    Parameters
    ----------
    backends : iterable of str
        Backends that work here.
    only : str
        Run only the cases with this text in their kind, name or call, ignoring case.
    progress : callable, optional
    jobs : int, optional
        The number of processes; by default chosen from the numbers of cores and cases. It does not
        change the rows.

    Returns
    -------
    list of Row
        Empty if there is no such case. An error in a case is part of its row.
    """
    backends = list(backends)
    watched = {name for name in backends if sees_waits(name)}
    items = {i: item for i, item in enumerate(catalogue()) if _matches(item, only)}
    jobs = usual_jobs(len(items)) if jobs is None else min(jobs, max(1, len(items)))
    progress(0, len(items), "")
    checked: dict[int, list[Finding]] = {}
    for number, findings in check_all(items, backends, jobs):
        checked[number] = findings
        progress(len(checked), len(items), items[number].case)
    rows: list[Row] = []
    found: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    for number, item in items.items():
        pairs = ((item.case, finding) for finding in checked[number])
        found.setdefault((item.kind, item.name), []).extend(pairs)
    rows = [
        row
        for (kind, name), group in found.items()
        for row in _summarize(kind, name, group, watched)
    ]
    return rows + [row for row in _idle_accelerators(rows, backends) if not only]


def _matches(item: Item | Training, text: str) -> bool:
    return text.casefold() in f"{item.kind} {item.name} {item.case}".casefold()


def _summarize(
    kind: str, name: str, found: list[tuple[str, Finding]], watched: set[str]
) -> Iterator[Row]:
    """The rows of one item, from pairs of a case and its findings."""

    def place(pair: tuple[str, Finding]) -> tuple[str, str]:
        return pair[1].backend, pair[1].dtype

    for (backend, dtype), pairs in groupby(sorted(found, key=place), key=place):
        group = list(pairs)
        units: dict[str, float] = {}
        for _, finding in group:
            units[finding.direction] = max(units.get(finding.direction, 0.0), finding.units)
        bits = [finding.passed for _, finding in group if finding.direction == "bits"]
        waits = {case for case, finding in group if WAIT in finding.problem}
        yield Row(
            kind=kind,
            name=name,
            backend=backend,
            dtype=dtype,
            cases=len({case for case, _ in group}),
            forward=units.get("forward"),
            backward=units.get("backward"),
            state=units.get("state"),
            bits=all(bits) if bits else None,
            waits=len(waits) if backend in watched else None,
            failures=tuple(f"{case}: {f}" for case, f in group if not f.passed),
        )


def _idle_accelerators(rows: list[Row], backends: list[str]) -> Iterator[Row]:
    """A failure for an accelerator that declines every case, as nothing was compared."""
    seen = {(row.name, row.backend) for row in rows if row.kind == "accelerator"}
    for name, backend, _ in working_accelerators():
        if backend in backends and (name, backend) not in seen:
            problem = f"the accelerator {name} on {backend} computed none of the catalogue's cases"
            none: dict[str, Any] = dict.fromkeys(("forward", "backward", "state", "bits", "waits"))
            yield Row("accelerator", name, backend, "", 0, **none, failures=(problem,))


@dataclass(frozen=True)
class Certificate:
    """The results of `xbp parity`.

    Attributes
    ----------
    rows : sequence of Row
    about : dict
        Command, date, commit, versions, processor.
    backends : dict
        Facts about the device of each backend.
    ranks : int
        The number of processes that have trained together.
    """

    rows: Sequence[Row]
    about: dict[str, str]
    backends: dict[str, dict[str, str]]
    ranks: int = 1

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def failures(self) -> list[str]:
        return [failure for row in self.rows for failure in row.failures]

    def verdict(self) -> str:
        """The verdict in one sentence."""
        failed, total = sum(not row.passed for row in self.rows), len(self.rows)
        waits = [row.waits for row in self.rows if row.waits is not None]
        seen = f"{sum(waits)} hidden waits" if waits else "hidden waits cannot be seen here"
        if failed:
            return f"FAILED: {failed} of {total} rows exceed their bounds; {seen}"
        return f"passed: all {total} rows are within their bounds; {seen}"

    def title(self) -> str:
        """What is compared with what."""
        if self.ranks > 1:
            return f"Parity of {self.ranks} ranks with one process of numpy in float64"
        return "Parity with numpy in float64"

    def columns(self) -> list[int]:
        """The indices of the columns that are not empty."""
        rows = [row.cells() for row in self.rows]
        return [k for k in range(len(COLUMNS)) if any(cells[k] for cells in rows)]

    def failing_first(self, backend: str) -> list[Row]:
        return sorted((row for row in self.rows if row.backend == backend), key=lambda r: r.passed)

    def as_json(self) -> str:
        """Everything as JSON values, failures first; infinities and nan are strings."""
        content: dict[str, Any] = {
            **{"passed": self.passed, "verdict": self.verdict(), "failures": self.failures},
            **{"title": self.title(), "ranks": self.ranks},
            **{"about": self.about, "backends": self.backends, "legend": LEGEND},
            "rows": [
                {key: _plain(value) for key, value in asdict(row).items()} | {"passed": row.passed}
                for backend in self.backends
                for row in self.failing_first(backend)
            ],
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def as_markdown(self) -> str:
        lines = [f"# {self.title()}: {', '.join(self.backends)}", ""]
        lines += [f"**{self.verdict()}.**", "", LEGEND, ""]
        if self.failures:
            lines += ["## What failed", "", *(f"- {failure}" for failure in self.failures), ""]
        lines += ["| | |", "| --- | --- |"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in self.about.items()]
        for backend, facts in self.backends.items():
            lines += [f"| {backend}: {key} | {_cell(value)} |" for key, value in facts.items()]
        shown = self.columns()
        for backend in self.backends:
            lines += ["", f"## {backend}", ""]
            tables = [COLUMNS, ["---"] * len(COLUMNS)]
            tables += [row.cells() for row in self.failing_first(backend)]
            lines += [f"| {' | '.join(cells[k] for k in shown)} |" for cells in tables]
        return "\n".join(lines) + "\n"


def _shown(units: float | None) -> str:
    if units is None:
        return ""
    return "0" if units == 0 else f"{units:.2g}" if units >= 0.01 else "< 0.01"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
