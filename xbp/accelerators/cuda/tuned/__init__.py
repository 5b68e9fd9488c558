"""Choices that were measured on a GPU, in place of those that rules make by estimates.

A kernel can be divided in several ways, with equal results up to the order of sums. Where a rule
chooses one, it asks here first. ``sm_90.json`` beside this file has the choices that were measured
with compute capability 9.0, by kind of kernel and by sizes; one of nearly equal sizes serves, too.
Without one the rule decides. ``python -m benchmarks.gpu tune`` measures, and writes such a file.

``XBP_TUNED=0`` in the environment, before the first use, leaves all choices to the rules, and so
does ``XBP_REPRODUCIBLE=1``, since the order of a sum then must not depend on the GPU.
``XBP_TUNED=FILE`` names another table. A table that cannot be used is ignored: `status` says why.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Container, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from xbp.errors import DataError
from xbp.paths import open_file

Numbers: TypeAlias = "tuple[int, ...]"

FORMAT = 1
MOST_BYTES = 2**20
"""The largest table that is read."""
NEAR = math.log(1.25)
"""How far each size may differ from a measured one: within that, about as many blocks take part."""


class Decision(NamedTuple):
    """What is to be chosen.

    Attributes
    ----------
    family : str
        The kind of kernel, which says what the numbers of a choice mean.
    key : str
        What must be equal: dtype, direction, …
    sizes : tuple of int
        What may differ a little.
    """

    family: str
    key: str
    sizes: Numbers


class Table(NamedTuple):
    """Measured choices.

    Attributes
    ----------
    rows : dict
        For each family and key, sizes with the choice; an empty one where the rule was best.
    said : str
        Where they come from, or why there are none.
    """

    rows: dict[tuple[str, str], list[tuple[Numbers, Numbers]]]
    said: str


class HasArchitecture(Protocol):
    """A `launch.Machine`, which this file must not import."""

    def architecture(self) -> str: ...


def choose(
    machine: HasArchitecture,
    decision: Decision,
    allowed: Callable[[Numbers], bool],
    rule: Callable[[], Numbers],
) -> Numbers:
    """The numbers that were measured for the machine's architecture, or those of the rule.

    Parameters
    ----------
    machine : launch.Machine
    decision : Decision
    allowed : callable
        Whether the kernel can be divided by some numbers, which may come from other sizes, or from
        a table with errors.
    rule : callable
    """
    found = look_up(machine.architecture(), decision)
    return found if found and allowed(found) else rule()


def number(machine: HasArchitecture, decision: Decision, allowed: Container[int], rule: int) -> int:
    """A choice of one number; see `choose`."""
    found = choose(machine, decision, lambda it: len(it) == 1 and it[0] in allowed, lambda: (rule,))
    return found[0]


@lru_cache(4096)
def look_up(architecture: str, decision: Decision) -> Numbers:
    """The choice of the nearest measured sizes, if any are near; else ()."""
    known = table(architecture).rows.get(decision[:2], ())
    near = [
        (distance, numbers)
        for sizes, numbers in known
        if (distance := apart(sizes, decision.sizes)) is not None
    ]
    return min(near, key=lambda item: item[0], default=(0.0, ()))[1]


def apart(some: Numbers, others: Numbers) -> float | None:
    """The distance of sizes, a sum of logarithms of their ratios; None if they are not near."""
    if len(some) != len(others) or min(others, default=1) < 1:
        return None
    each = [abs(math.log(a / b)) for a, b in zip(some, others, strict=True)]
    return sum(each) if max(each, default=0.0) <= NEAR else None


# --- tables --------------------------------------------------------------------------------------


def path_of(architecture: str) -> Path:
    """Where the package's table of an architecture is, if there is one."""
    return Path(__file__).parent / f"sm_{architecture}.json"


@cache
def table(architecture: str) -> Table:
    """The table of an architecture, such as "90", with one warning if it cannot be used."""
    wanted = os.environ.get("XBP_TUNED", "")
    if not architecture:
        return Table({}, "by rules, as the compute capability is unknown")
    if wanted == "0":
        return Table({}, "by rules (XBP_TUNED=0)")
    if os.environ.get("XBP_REPRODUCIBLE", "0") not in ("", "0"):
        return Table({}, "by rules (XBP_REPRODUCIBLE=1)")
    path = Path(wanted) if wanted not in ("", "1") else path_of(architecture)
    if path == path_of(architecture) and not path.exists():
        return Table({}, f"by rules, without a table of compute capability {architecture}")
    try:
        return read(path, architecture)
    except DataError as error:
        warnings.warn(f"choices that were measured are not used: {error}", stacklevel=2)
        return Table({}, f"by rules: {error}")


def forget() -> None:
    """Read tables anew at the next choice."""
    table.cache_clear()
    look_up.cache_clear()


def read(path: Path, architecture: str) -> Table:
    """Read a table.

    Raises
    ------
    DataError
        It is no table, has errors, or was measured with another architecture.
    """
    what = "a table of measured choices"
    with open_file(path, what) as file:
        content = file.read(MOST_BYTES + 1)
    try:
        if len(content) > MOST_BYTES:
            msg = f"more than {MOST_BYTES} bytes"
            raise ValueError(msg)
        told = json.loads(content)
        if (known := told["format"]) != FORMAT:
            msg = f"format {known!r}, where {FORMAT} is known"
            raise ValueError(msg)
        rows = dict(rows_of(told["choices"]))
        where, measured = told["architecture"], told["measured"]
        if not all(isinstance(it, str) for it in (where, measured)):
            msg = "no words about the device"
            raise ValueError(msg)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        msg = f"{str(path)!r} is no {what[2:]} ({type(error).__name__}: {error})"
        raise DataError(msg) from None
    if where != architecture:
        msg = f"{str(path)!r} was measured with compute capability {where}, this is {architecture}"
        raise DataError(msg)
    count = sum(bool(numbers) for known in rows.values() for _, numbers in known)
    return Table(rows, f"by {count} measured choices, else by rules; {measured}")


def rows_of(choices: dict[str, Any]) -> Iterator[tuple[tuple[str, str], list[Any]]]:
    """The rows of a table by family and key; a ValueError if one has another form."""
    for family, keys in choices.items():
        for key, rows in keys.items():
            found = [(numbers_of(row[0], least=1), numbers_of(row[1], least=0)) for row in rows]
            yield (family, key), found


def numbers_of(them: Any, least: int) -> Numbers:
    """A list of whole numbers, as a tuple."""
    good = isinstance(them, list) and all(type(it) is int and it >= least for it in them)
    if not good or max(them, default=0) > 2**62:
        msg = f"{them!r}"[:60] + f" are no numbers of {least} or more"
        raise ValueError(msg)
    return tuple(them)


def architecture_in(device: str) -> str:
    """The compute capability in the description of a device; "" if there is none.

    >>> architecture_in("NVIDIA H200, compute capability 9.0, 140 GiB")
    '90'
    """
    found = re.search(r"compute capability (\d+)\.(\d+)", device)
    return found[1] + found[2] if found else ""


def status(architecture: str) -> str:
    """How kernels are divided on an architecture, for ``xbp info``."""
    return f"kernels are divided {table(architecture).said}"
