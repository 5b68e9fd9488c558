"""The table of array libraries, with one class for each; no other file knows them by name.

A new library is one class and one entry in `LIBRARIES`; its CUDA graphs, if it has any, are in
`xbp.backend.graphs`.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.backend.foreign import as_host, check_kind
from xbp.backend.graphs import CuPyGraph, Graph, TorchGraph
from xbp.backend.memory import out_of_memory
from xbp.backend.slots import CuPySlots, Slots
from xbp.errors import BackendError, InputError, brief

Array: TypeAlias = Any
"""An array of any library with the Array API; Python has no type for it yet."""

Namespace: TypeAlias = Any
"""The Array API module of an array: numpy, array_api_compat.cupy, …"""


class Fetch(NamedTuple):
    """A transfer of values to the host."""

    host: NDArray[Any]
    done: Callable[[], bool] = lambda: True
    wait: Callable[[], object] = lambda: None

    def values(self) -> NDArray[Any]:
        """The values, after a wait for the device if necessary."""
        self.wait()
        return self.host


ANYWHERE: AbstractContextManager[None] = nullcontext()


class Library:
    """An array library: how to import it, and how to move arrays to its devices and to the host."""

    name: str
    module: str  # the Array API namespace
    root: str  # the top-level package of its array types
    install: str  # how to install it

    def namespace(self) -> Namespace:
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            msg = (
                f"the {self.name!r} backend is not installed ({error}); "
                f"install it with: {self.install}"
            )
            raise BackendError(msg) from None

    def device(self, device: Any) -> Any:
        """The library's device object for a user's choice; None is the default device."""
        if device in (None, "cpu"):
            return "cpu"
        msg = f"the {self.name!r} backend has no device {device!r}; its only device is 'cpu'"
        raise BackendError(msg)

    def activate(self, device: Any) -> None:
        """Make `device` the current one of this thread, if the library has current devices."""

    def on(self, device: Any) -> AbstractContextManager[Any]:
        """A block in which `device` is the current one of this thread.

        In a library with current devices, new arrays and results lie on the current device,
        wherever the operands are. So code that creates arrays enters such a block first.
        """
        return ANYWHERE

    def place(self, xp: Namespace, array: NDArray[Any], device: Any) -> Array:
        return xp.asarray(array, device=device)

    def plain(self, array: Array) -> Array:
        """`array`, on its device, as a dense array of numbers without the library's extensions.

        Raises
        ------
        InputError
            It is sparse, masked, quantized, …
        """
        return array

    def adopted(self, obj: Any, device: Any) -> Array | None:
        """An array on the memory of `obj`, if that lies on the GPU `device`; else None."""
        return None

    def to_numpy(self, array: Array) -> NDArray[Any]:
        return np.asarray(array)

    def on_host(self, array: Array) -> bool:
        """Whether a value can be read without a wait for a device."""
        return True

    def is_lost(self, value: Array) -> bool:
        """Whether a 0-d value is infinite or nan, where that can be seen without a wait."""
        return self.on_host(value) and not math.isfinite(value)

    def fetch(self, array: Array) -> Fetch:
        """Start the transfer of `array` to the host, without a wait."""
        return Fetch(self.to_numpy(array))

    def graph(self, device: Any) -> Graph | None:
        """A new graph for `device`; None if the library cannot capture its work."""
        return None

    def slots(self, arrays: list[Array], count: int) -> Slots:
        """`arrays`, divided into slots that are filled from the host; see `Slots`."""
        return Slots(arrays, count, place=self.place_beside, at_once=self.on_host(arrays[0]))

    def place_beside(self, host: NDArray[Any], array: Array) -> Array:
        """`host` on the device of `array`."""
        return self.place(self.namespace(), host, array.device)

    def free_memory(self, device: Any) -> int | None:
        """Free bytes, if the system knows them."""
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None


class NumPy(Library):
    name, module, root = "numpy", "numpy", "numpy"
    install = "pip install numpy"

    def activate(self, device: Any) -> None:
        # glibc returns large freed blocks to the system, so that each step gets new pages, which
        # are zeroed first (a third of LeNet-5's time). It adapts its threshold when such a block
        # is freed, up to 32 MiB (mallopt(3)): free one now.
        np.empty(2**25 - 2**16, np.uint8)

    def plain(self, array: Array) -> Array:
        check_kind(array)
        return array

    def to_numpy(self, array: Array) -> NDArray[Any]:
        return as_host(array, of_another_library)

    def graph(self, device: Any) -> Graph | None:
        return importlib.import_module("xbp.backend.host_graph").HostGraph()  # type: ignore[no-any-return]


class RecordedNumPy(NumPy):
    """numpy in a step that is recorded (`xbp.backend.recorded`): nobody may look at a value."""

    module = "xbp.backend.recorded"

    def namespace(self) -> Namespace:
        return super().namespace().NAMESPACE

    def to_numpy(self, array: Array) -> NDArray[Any]:
        array.refuse()
        raise AssertionError

    def on_host(self, array: Array) -> bool:
        return False

    def is_lost(self, value: Array) -> bool:
        value.end_unless_finite()
        return False

    def graph(self, device: Any) -> Graph | None:
        return None


class CuPy(Library):
    name, module, root = "cupy", "array_api_compat.cupy", "cupy"
    install = "pip install 'cupy-cuda13x[ctk]' (cupy-cuda12x for CUDA 12)"

    def device(self, device: Any) -> Any:
        cuda = importlib.import_module("cupy").cuda
        if not cuda.is_available():
            msg = (
                "the 'cupy' backend is installed but finds no CUDA device; check that "
                "nvidia-smi lists a GPU and that the CuPy wheel fits the driver's CUDA version"
            )
            raise BackendError(msg)
        count = cuda.runtime.getDeviceCount()
        index = _device_index(device, "cuda")
        if index is None or not 0 <= index < count:
            msg = f"the 'cupy' backend has no device {device!r}; choose one of 0 to {count - 1}"
            raise BackendError(msg)
        return cuda.Device(index)

    def activate(self, device: Any) -> None:
        device.use()  # array_api_compat.cupy ignores device=: CuPy allocates on the current one

    def on(self, device: Any) -> AbstractContextManager[Any]:
        return device  # type: ignore[no-any-return]

    def place(self, xp: Namespace, array: NDArray[Any], device: Any) -> Array:
        with device:
            return xp.asarray(array)

    def adopted(self, obj: Any, device: Any) -> Array | None:
        # Not yet run on a GPU.
        owner = library_of(obj)
        obj = obj if owner is None else owner.plain(obj)  # without what PyTorch adds
        if not hasattr(obj, "__cuda_array_interface__"):
            return None
        with device:
            array = self.namespace().asarray(obj)
        return array if array.device == device else None

    def to_numpy(self, array: Array) -> NDArray[Any]:
        with array.device:  # waits for its current stream
            return array.get()  # type: ignore[no-any-return]

    def on_host(self, array: Array) -> bool:
        return False

    def fetch(self, array: Array) -> Fetch:
        with array.device:
            pinned = importlib.import_module("cupyx").empty_pinned(array.shape, array.dtype)
            array = self.namespace().asarray(array, order="C")
            array.data.copy_to_host_async(pinned.ctypes.data, array.nbytes)
            event = importlib.import_module("cupy").cuda.get_current_stream().record()
        return Fetch(pinned, lambda: bool(event.done), event.synchronize)

    def slots(self, arrays: list[Array], count: int) -> Slots:
        return CuPySlots(arrays, count)

    def graph(self, device: Any) -> Graph | None:
        return CuPyGraph(device)

    def free_memory(self, device: Any) -> int | None:
        cupy = importlib.import_module("cupy")
        with device:
            # Only the default pool: a graph uses blocks that its own pool considers free.
            cupy.get_default_memory_pool().free_all_blocks()
            return int(cupy.cuda.runtime.memGetInfo()[0])


class ArrayAPIStrict(Library):
    """The standard's strict implementation, on its fake accelerator `device1`.

    It refuses implicit transfers to the host, so code that runs on it will run on a GPU.
    """

    name, module, root = "array_api_strict", "array_api_strict", "array_api_strict"
    install = "pip install array-api-strict"

    def device(self, device: Any) -> Any:
        strict = self.namespace()
        names = ("device1", "device2", "CPU_DEVICE")
        chosen = "device1" if device is None else str(getattr(device, "_device", device))
        if chosen not in names:
            msg = f"the 'array_api_strict' backend has no device {device!r}; choose one of {names}"
            raise BackendError(msg)
        return strict.Device(chosen)

    def to_numpy(self, array: Array) -> NDArray[Any]:
        strict = self.namespace()
        return np.asarray(strict.asarray(array, device=strict.Device("CPU_DEVICE")))

    def on_host(self, array: Array) -> bool:
        return bool(array.device == self.namespace().Device("CPU_DEVICE"))

    def fetch(self, array: Array) -> Fetch:
        # Not `self.to_numpy`, which `assert_no_host_sync` replaces: this device needs no wait.
        return Fetch(ArrayAPIStrict.to_numpy(self, array))


class Torch(Library):
    name, module, root = "torch", "array_api_compat.torch", "torch"
    install = "pip install torch"

    def device(self, device: Any) -> Any:
        torch = importlib.import_module("torch")
        try:
            return torch.empty(0, device="cpu" if device is None else device).device
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            msg = f"the 'torch' backend cannot use device {device!r} ({reason}); try 'cpu'"
            raise BackendError(msg) from None

    def place(self, xp: Namespace, array: NDArray[Any], device: Any) -> Array:
        # torch shares memory with numpy, and has neither read-only tensors nor negative strides.
        if not array.flags.writeable or min(array.strides, default=0) < 0:
            array = array.copy()
        return xp.asarray(array, device=device)

    def plain(self, array: Array) -> Array:
        torch = importlib.import_module("torch")
        for wrong, what, way in (
            (torch.nn.parameter.is_lazy(array), "has no values yet", "it after a first forward"),
            (array.is_nested, "is nested", "x.to_padded_tensor(…)"),
            (array.layout is not torch.strided, "is sparse or packed", "x.to_dense()"),
            (array.is_quantized, "is quantized", "x.dequantize()"),
            (array.device.type == "meta", "has no values", "one that is not on the meta device"),
        ):
            if wrong:
                msg = f"this {type(array).__name__} {what}, and xbp takes dense arrays; give {way}"
                raise InputError(msg)
        if array.requires_grad:
            array = array.detach()  # xbp has its own backward
        if type(array) is not torch.Tensor:
            array = array.as_subclass(torch.Tensor)
        if array.is_conj() or array.is_neg():
            array = array.resolve_conj().resolve_neg()
        name = str(array.dtype)
        if name.startswith(("torch.bfloat16", "torch.float8")):
            return array.float()  # float32 holds all their values
        return array.to(torch.complex64) if name == "torch.complex32" else array

    def to_numpy(self, array: Array) -> NDArray[Any]:
        try:
            return self.plain(array).cpu().numpy()  # type: ignore[no-any-return]
        except (TypeError, NotImplementedError) as error:
            msg = f"torch cannot hand this {type(array).__name__} to numpy ({brief(error)})"
            raise InputError(msg) from None

    def on_host(self, array: Array) -> bool:
        return bool(array.device.type == "cpu")

    def fetch(self, array: Array) -> Fetch:
        if self.on_host(array):
            return super().fetch(array)
        torch = importlib.import_module("torch")
        pinned = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        pinned.copy_(array, non_blocking=True)
        event = torch.cuda.current_stream(array.device).record_event()
        return Fetch(pinned.numpy(), event.query, event.synchronize)

    def graph(self, device: Any) -> Graph | None:
        return TorchGraph(device) if device.type == "cuda" else None

    def free_memory(self, device: Any) -> int | None:
        if device.type != "cuda":
            return super().free_memory(device)
        torch = importlib.import_module("torch")
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])


# --- the table -----------------------------------------------------------------------------------


LIBRARIES: dict[str, Library] = {
    library.name: library for library in (NumPy(), CuPy(), ArrayAPIStrict(), Torch())
}


def library_of(array: Any) -> Library | None:
    """The library of the table that an array belongs to; None for anything else.

    An array of a subclass belongs to the library of its base. Cached by type.
    """
    return library_of_type(type(array))


def library_of_type(kind: type) -> Library | None:
    """The same for arrays of type `kind`."""
    try:
        return _LIBRARY_OF_TYPE[kind]
    except KeyError:
        found = (
            _LIBRARY_OF_ROOT.get(base.__module__.partition(".")[0])
            for base in kind.__mro__
            if base.__name__ in _ARRAYS
        )
        library = _LIBRARY_OF_TYPE[kind] = next(filter(None, found), None)
        return library


_ARRAYS = ("ndarray", "generic", "Tensor", "Array", "RecordedArray")
"""The names of the libraries' classes of arrays."""

_LIBRARY_OF_ROOT = {
    "xbp": RecordedNumPy(),
    **{library.root: library for library in LIBRARIES.values()},
}
_LIBRARY_OF_TYPE: dict[type, Library | None] = {}


def of_another_library(obj: Any) -> NDArray[Any] | None:
    """An array of any library but numpy as a numpy array; None for anything else."""
    library = library_of(obj)
    return None if library is None or library.name == "numpy" else library.to_numpy(obj)


def read_from_gpu(obj: Any) -> NDArray[Any]:
    """The values of an object that has ``__cuda_array_interface__``, through CuPy.

    Not yet run on a GPU.
    """
    cupy = LIBRARIES["cupy"]
    try:
        return cupy.to_numpy(cupy.namespace().asarray(obj))
    except Exception as error:
        if out_of_memory(error):
            raise
        msg = f"this {type(obj).__name__} is on a GPU, and CuPy cannot read it ({brief(error)})"
        raise InputError(msg) from None


def _device_index(device: Any, prefix: str) -> int | None:
    """0 for None, n for n, "n" and "cuda:n", and for a device object that has an `id`."""
    text = str(getattr(device, "id", 0 if device is None else device)).removeprefix(prefix)
    text = text.removeprefix(":") or "0"
    return int(text) if text.isdecimal() else None
