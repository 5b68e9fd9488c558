"""The errors of array libraries after a failed allocation."""

from __future__ import annotations

import re

from xbp.errors import brief


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that memory ran out."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(brief(error)))


def asked_for(error: BaseException) -> int | None:
    """The number of bytes requested, according to such an error.

    >>> asked_for(MemoryError("Unable to allocate 1.5 GiB for an array with shape …"))
    1610612736
    """
    found = _ASKED.search(str(error))
    if found is None:
        return None
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(found[2])
    return int(float(found[1].replace(",", "")) * 1024**unit)


_NO_MEMORY = re.compile(r"out of memory|OutOfMemory|can't allocate memory", re.IGNORECASE)
_ASKED = re.compile(r"allocat\w+:? ([\d.,]+) (bytes|[KMGTPE]iB)")
