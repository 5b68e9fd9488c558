"""Room on a device for the next batches, filled while the device works on the present one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Slots:
    """Arrays divided into slots of equal size along their first axis.

    A reading thread calls `fill`; the thread that works on the batches calls `receive` before it
    uses a slot, and `release` after. A slot is filled again when it has been released.

    Parameters
    ----------
    arrays : list of arrays
    count : int
        How many slots there are.
    place : callable ``(host, array) -> array``
        Brings an array of numpy beside another one.
    at_once : bool
        Whether `fill` may write into the arrays, as no device works on them meanwhile.
    """

    def __init__(
        self,
        arrays: list[Any],
        count: int,
        *,
        place: Callable[[NDArray[Any], Any], Any],
        at_once: bool,
    ) -> None:
        self.arrays, self.size = arrays, arrays[0].shape[0] // count
        self.place, self.at_once = place, at_once
        self.waiting: dict[int, Sequence[NDArray[Any]]] = {}

    def fill(self, slot: int, hosts: Sequence[NDArray[Any]]) -> None:
        """Begin to bring a batch, one array of numpy for each of the arrays, to a slot."""
        if self.at_once:
            self._write(slot, hosts)
        else:
            self.waiting[slot] = hosts

    def receive(self, slot: int) -> None:
        """Make the slot's batch available to the device, which waits for it; the host does not.

        Here it is copied by the calling thread; see `CuPySlots`.
        """
        hosts = self.waiting.pop(slot, None)
        if hosts is not None:
            self._write(slot, hosts)

    def release(self, slot: int) -> None:
        """The device has been asked for all that is to be done with the slot."""

    def _write(self, slot: int, hosts: Sequence[NDArray[Any]]) -> None:
        start = slot * self.size
        for array, host in zip(self.arrays, hosts, strict=True):
            array[start : start + len(host), ...] = self.place(host, array)


class CuPySlots(Slots):
    """Copies on a stream of their own, from pinned memory, beside the work of the device.

    ``copied[slot]`` is recorded by the stream of copies and waited for by that of the work, and
    ``used[slot]`` the other way round. The host waits in the reading thread alone, for pinned
    memory to be free again. Not yet run on a GPU.
    """

    def __init__(self, arrays: list[Any], count: int) -> None:
        self.arrays, self.size = arrays, arrays[0].shape[0] // count
        self.device = arrays[0].device
        self.cuda = cuda = importlib.import_module("cupy").cuda
        pinned = importlib.import_module("cupyx").empty_pinned
        with self.device:
            self.stream = cuda.Stream(non_blocking=True)
            self.pinned = [
                [pinned((self.size, *array.shape[1:]), array.dtype) for array in arrays]
                for _ in range(count)
            ]
            self.copied = [cuda.Event(disable_timing=True) for _ in range(count)]
            self.used = [cuda.Event(disable_timing=True) for _ in range(count)]
            for event in self.used:
                event.record()  # the arrays are there from here on

    def fill(self, slot: int, hosts: Sequence[NDArray[Any]]) -> None:
        start = slot * self.size
        with self.device:
            self.copied[slot].synchronize()
            self.stream.wait_event(self.used[slot])
            for array, pinned, host in zip(self.arrays, self.pinned[slot], hosts, strict=True):
                np.copyto(pinned[: len(host)], host)
                target = array[start : start + len(host)]
                target.data.copy_from_host_async(pinned.ctypes.data, target.nbytes, self.stream)
            self.copied[slot].record(self.stream)

    def receive(self, slot: int) -> None:
        with self.device:
            self.cuda.get_current_stream().wait_event(self.copied[slot])

    def release(self, slot: int) -> None:
        with self.device:
            self.used[slot].record()
