"""Hidden waits for the device, found on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from xbp.backend import LIBRARIES
from xbp.errors import BackendError

_CONVERSIONS = ("__float__", "__int__", "__bool__", "__index__", "__complex__", "__dlpack__")


class HostSyncError(AssertionError):
    """Code that must not wait for the device read a value from it."""


@contextmanager
def assert_no_host_sync() -> Iterator[None]:
    """Within the block, reading a value from a device raises `HostSyncError`.

    array_api_strict stands in for a GPU: on its device1 ``float(x)``, ``bool(x)``, ``if x > 0``,
    ``xbp.to_numpy(x)``, … are errors within the block. Moving data *to* the device is allowed.

    Raises
    ------
    BackendError
        array_api_strict is not installed.

    Examples
    --------
    >>> import xbp
    >>> with xbp.use_backend("array_api_strict"), assert_no_host_sync():
    ...     x = xbp.asarray([1.0])
    ...     bool(x[0] > 0)
    Traceback (most recent call last):
    xbp.testing.host_sync.HostSyncError: __bool__ of an array on device1 waits for the device
    """
    strict = LIBRARIES["array_api_strict"]
    xp: Any = strict.namespace()
    kind = type(xp.zeros(1))
    cpu = xp.Device("CPU_DEVICE")

    def guarded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **keywords: Any) -> Any:
            if self.device != cpu:
                place = str(self.device).rpartition("(")[2].strip("')")
                msg = f"{name} of an array on {place} waits for the device"
                raise HostSyncError(msg)
            return original(self, *args, **keywords)

        return method

    originals = {name: getattr(kind, name) for name in _CONVERSIONS}
    to_numpy = guarded("to_numpy", strict.to_numpy)
    try:
        for name, original in originals.items():
            setattr(kind, name, guarded(name, original))
        strict.to_numpy = lambda array: to_numpy(array)  # type: ignore[method-assign]
        yield
    finally:
        for name, original in originals.items():
            setattr(kind, name, original)
        del strict.to_numpy  # the method of the class again


__all__ = ["BackendError", "HostSyncError", "assert_no_host_sync"]
