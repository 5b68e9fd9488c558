"""Graphs of the host: the calls of a step on numpy's arrays, recorded once and replayed in order.

The calls are those of numpy's functions (`xbp.backend.recorded`) and of compiled kernels, which
their wrappers note. A replay makes them again with the same arguments and the same memory: all
arrays of the recording stay alive. What a call reads must exist before the recording, or have been
computed by an earlier call. Anything else, such as a copy that was made unseen, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from numpy.typing import NDArray

from xbp.backend.graphs import RECORDING, Graph, NotMadeError, ReplayError
from xbp.backend.recorded import RecordedArray, owner
from xbp.errors import InputError, brief

Values = NDArray[Any]
Call = Callable[[], object]

MOST_BYTES = 2**22
"""Of a recording, whose arrays all have memory of their own, where eager steps use theirs again."""


class HostGraph(Graph):
    """A list of calls. (See `Graph`.)"""

    on_host = True

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.kept: list[Values] = []

    def check_size(self, size: int) -> None:
        if size > MOST_BYTES:
            msg = f"a recording would keep more than {MOST_BYTES >> 20} MiB, and gain little time"
            raise InputError(msg)

    def lend(self, array: Any) -> Any:
        if RECORDING.tape is not None:
            RECORDING.tape.lasting[id(owner(array))] = array
        return RecordedArray(array)

    def take_back(self, array: Any) -> Any:
        return array.values if isinstance(array, RecordedArray) else array

    def record(self, function: Callable[[], object]) -> None:
        RECORDING.tape = tape = Tape(self.check_size)
        try:
            function()
        finally:
            RECORDING.tape = None
            for array, before in reversed(tape.changed):
                array[...] = before
        self.calls, self.kept = joined(tape.calls), tape.kept

    def replay(self) -> None:
        try:
            for call in self.calls:
                call()
        except NotMadeError:
            raise
        except Exception as error:
            msg = f"a recorded step has failed ({brief(error)}); train with capture=False"
            raise ReplayError(msg) from error


class Tape:
    """The calls of a recording, and the memory that they may read.

    Parameters
    ----------
    check_size : callable
        Refuses too many bytes of memory.

    Attributes
    ----------
    lasting : dict
        Arrays from before the recording, by the id of their memory's owner.
    changed : list of (array, array)
        Those that calls have changed, with a copy from before.
    """

    def __init__(self, check_size: Callable[[int], None]) -> None:
        self.check_size = check_size
        self.calls: list[Call] = []
        self.kept: list[Values] = []
        self.lasting: dict[int, Values] = {}
        self.made: set[int] = set()  # ids of the owners of computed memory
        self.changed: list[tuple[Values, Values]] = []
        self.bytes = 0

    def add(self, call: Call, read: Iterable[Values], written: Iterable[Values]) -> None:
        """Note a call, before it is made for the first time if it changes lasting arrays.

        Raises
        ------
        InputError
            It reads memory that no earlier call has computed; or there is too much memory.
        """
        for array in read:
            whose = owner(array)
            if id(whose) not in self.lasting and id(whose) not in self.made:
                msg = "a value that is computed unseen, or kept elsewhere, cannot be recorded"
                raise InputError(msg)
        for array in written:
            whose = owner(array)
            if id(whose) in self.lasting:
                self.changed.append((array, array.copy()))
            elif id(whose) not in self.made:
                self.made.add(id(whose))
                self.kept.append(whose)
                self.bytes += whose.nbytes
        self.check_size(self.bytes)
        self.calls.append(call)

    def end_unless(self, check: Call, value: Values) -> None:
        """Note a check that may end a replay.

        Raises
        ------
        InputError
            Something lasting has been changed before.
        """
        if self.changed:
            msg = "a step that changes arrays before its last loss is known cannot be recorded"
            raise InputError(msg)
        self.add(check, (value,), ())


def joined(calls: Sequence[Call]) -> list[Call]:
    """The calls, with neighbours of a class that has `together` as one."""
    found: list[Call] = []
    for kind, some in groupby(calls, type):
        together: Any = getattr(kind, "together", None)
        own = list(some)
        found += [together(own)] if together else own
    return found
