"""Detection of hidden waits for the device, by array-api-strict on a CPU, or on a GPU."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from xbp.errors import BackendError
from xbp.testing.helpers import replaced
from xbp.testing.strict_devices import as_strict_as_cupy
from xbp.testing.strictness import HostSyncError, waits_refused

_CONVERSIONS = ("__float__", "__int__", "__bool__", "__index__", "__complex__")

_CUPY_METHODS = (
    *("get", "item", "tolist", "tobytes", "tofile", "dump", "dumps", "nonzero", "argwhere"),
    *("compress", "__reduce__", "__str__", "__repr__", "__format__"),
)
_CUPY_FUNCTIONS = ("deviceSynchronize", "streamSynchronize", "eventSynchronize")


@contextmanager
def assert_no_host_sync() -> Iterator[None]:
    """Within the block, waiting for a device raises `HostSyncError`.

    Moving data *to* the device is allowed. These operations wait:

    - reading a value: ``float(x)``, ``bool(x)``, ``if x > 0``, ``xbp.to_numpy(x)``, …;
    - a shape that depends on values: ``x[mask]``, ``xp.nonzero(x)``, ``xp.unique_values(x)``, …;
    - other functions by `cupy_rules`: ``xp.sign`` of floats, ``xp.clip``, slices with bounds that
      are arrays, printing, pickling, …;
    - on CuPy itself also ``.item()``, ``.tolist()``, and ``synchronize`` of streams and events.

    array_api_strict emulates a GPU on its device1, and behaves like CuPy in the block
    (`as_strict_as_cupy`). CuPy, and torch on CUDA, are guarded if they were imported before.

    Notes
    -----
    The guard of torch on CUDA has not been run on a GPU yet. That CuPy's methods raise before they
    touch a device is tested without one.

    CuPy 14's arrays are of a Python class, whose methods are replaced here; its functions that wait
    (``cupy.nonzero``, ``put``, ``choose``, ``percentile``, …) call one of them. Waits below Python
    are not detected: ``cupy.cuda.Device.synchronize``, a synchronous copy by
    ``MemoryPointer.copy_to_host``, ``cudaFree`` of memory outside the memory pool, and waits of
    other libraries. (``cupyx.allow_synchronize`` does not help, as CuPy 14 does not report its
    waits to it.) Torch's waits are found by ``torch.cuda.set_sync_debug_mode``.

    Raises
    ------
    BackendError
        array_api_strict is not installed and CuPy not imported: nothing would be guarded.

    Examples
    --------
    >>> import xbp
    >>> with xbp.use_backend("array_api_strict"), assert_no_host_sync():
    ...     x = xbp.asarray([1.0])
    ...     bool(x[0] > 0)
    Traceback (most recent call last):
    xbp.testing.strictness.HostSyncError: __bool__ of an array on device1 waits for the device
    """
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    with ExitStack() as stack:
        if cupy is not None and hasattr(cupy, "ndarray"):  # else it could not be imported
            _guard_cupy(stack, cupy)
        if torch is not None and torch.cuda.is_available():
            stack.enter_context(_torch_guarded(torch))
        if cupy is None or importlib.util.find_spec("array_api_strict"):
            stack.enter_context(as_strict_as_cupy())
            stack.enter_context(waits_refused())
        yield


def _guard_cupy(stack: ExitStack, cupy: Any) -> None:
    kind = cupy.ndarray

    def guarded(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **keywords: Any) -> Any:
            raise _error(name, "a CuPy array" if isinstance(self, kind) else type(self).__name__)

        return method

    def function(name: str) -> Callable[..., Any]:
        def called(*args: Any, **keywords: Any) -> Any:
            raise _error(name, "cupy.cuda.runtime")

        return called

    def masked(name: str) -> Callable[..., Any]:
        original = getattr(kind, name)

        def method(self: Any, key: Any, *value: Any) -> Any:
            for index in key if isinstance(key, tuple) else (key,):
                if isinstance(index, kind) and index.dtype.kind == "b":
                    raise _error(f"{name} by a mask", "a CuPy array")
            return original(self, key, *value)

        return method

    def fill(self: Any, value: Any) -> Any:
        if isinstance(value, kind):
            raise _error("fill by an array", "a CuPy array")
        return filled(self, value)

    def dlpack(self: Any, *args: Any, **keywords: Any) -> Any:
        if (keywords.get("dl_device") or (None,))[0] == 1:  # kDLCPU
            raise _error("__dlpack__ to the CPU", "a CuPy array")
        return exported(self, *args, **keywords)

    filled, exported = kind.fill, kind.__dlpack__
    names = [name for name in (*_CONVERSIONS, *_CUPY_METHODS) if hasattr(kind, name)]
    methods = {name: guarded(name) for name in names}
    methods |= {name: masked(name) for name in ("__getitem__", "__setitem__")}
    stack.enter_context(replaced(kind, **methods, fill=fill, __dlpack__=dlpack))
    # Stream and ExternalStream inherit it from a class without a public name.
    for owner in (cupy.cuda.Stream, cupy.cuda.ExternalStream, cupy.cuda.Event):
        stack.enter_context(replaced(owner, synchronize=guarded("synchronize")))
    functions = {name: function(name) for name in _CUPY_FUNCTIONS}
    stack.enter_context(replaced(cupy.cuda.runtime, **functions))


@contextmanager
def _torch_guarded(torch: Any) -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # of a prototype
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise _error("an operation", "a torch tensor on CUDA") from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _error(what: str, whose: str) -> HostSyncError:
    return HostSyncError(f"{what} of {whose} waits for the device")


__all__ = ["BackendError", "HostSyncError", "assert_no_host_sync"]
