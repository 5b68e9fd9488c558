"""Where arrays are born, and the one file that knows array libraries by name.

Computation never asks which backend is set: it follows its inputs (`array_namespace`). A backend
only says where *new* arrays are born: parameters, data, random numbers. The table of libraries
below is all there is to it; adding one means adding one class and one entry.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from xbp.errors import BackendError, InputError
from xbp.foreign import as_host, check_kind, check_numbers

Array: TypeAlias = Any
"""An array of any library that speaks the Array API; Python has no type for it yet."""

Namespace: TypeAlias = Any
"""The module of functions that belongs to an array: numpy, array_api_compat.cupy, …"""


P = ParamSpec("P")
R = TypeVar("R")


class Graph:
    """Work for a device, recorded once and repeated on the same memory, as one CUDA graph.

    What Python does meanwhile is not repeated: numbers, shapes and calls are frozen as they were.
    So everything that changes from one time to the next is read from arrays, and kept in arrays
    that were there before.
    """

    def rehearse(self, function: Callable[[], object]) -> None:
        """Run `function` for once, where it will be recorded: compile, load, find memory."""
        function()

    def record(self, function: Callable[[], object]) -> None:
        """Take down what `function` asks of the device, which does nothing of it yet.

        Memory that it takes is the graph's own. Whatever refuses to be recorded raises.
        """
        raise NotImplementedError

    def replay(self) -> None:
        """Let the device do what was recorded, after all that it was asked before."""
        raise NotImplementedError


class CuPyGraph(Graph):
    """A CUDA graph by CuPy, with a stream and a memory pool of its own."""

    def __init__(self, device: Any) -> None:
        cupy = importlib.import_module("cupy")
        self.cuda, self.device = cupy.cuda, device
        with device:
            self.pool = self.cuda.MemoryPool(partial(_memory_for_a_graph, cupy))
            self.pool.set_limit(size=0)  # at a limit, too, a pool frees its unused blocks
            self.stream = self.cuda.Stream(non_blocking=True)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, as the default one cannot be recorded, with memory of its own."""
        with self.device:
            outside = self.cuda.get_current_stream()
            self.stream.wait_event(outside.record())
            try:
                with self.cuda.using_allocator(self.pool.malloc), self.stream:
                    yield
            finally:
                outside.wait_event(self.stream.record())

    def rehearse(self, function: Callable[[], object]) -> None:
        with self._aside():
            function()

    def record(self, function: Callable[[], object]) -> None:
        with self._aside():
            self.stream.begin_capture()
            try:
                function()
            except BaseException:
                with suppress(Exception):  # it says that the recording failed, which is known
                    self.stream.end_capture()
                raise
            self.graph = self.stream.end_capture()

    def replay(self) -> None:
        with self.device:
            self.graph.launch()  # on the current stream


def _memory_for_a_graph(cupy: Any, size: int) -> Any:
    """Memory from the device for the pool of a graph.

    Where there is none, CuPy's pool would free its own unused blocks and ask again. But the graph
    uses those, at the addresses that were recorded. So in their place the unused blocks of the
    common pool are freed; and if that does not help, the error is one which CuPy's pool lets pass.

    Raises
    ------
    MemoryError
    """
    cuda = cupy.cuda
    for last in (False, True):
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except (MemoryError, cuda.runtime.CUDARuntimeError) as error:
            if last or not out_of_memory(error):
                msg = f"Out of memory allocating {size:,} bytes for a graph"
                raise (MemoryError(msg) if out_of_memory(error) else error) from None
            cupy.get_default_memory_pool().free_all_blocks()
    raise AssertionError


class TorchGraph(Graph):
    """A CUDA graph by torch. Not yet run on a GPU."""

    def __init__(self, device: Any) -> None:
        self.cuda, self.device = importlib.import_module("torch").cuda, device
        self.graph, self.stream = self.cuda.CUDAGraph(), self.cuda.Stream(device)

    def rehearse(self, function: Callable[[], object]) -> None:
        outside = self.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with self.cuda.stream(self.stream):
            function()
        outside.wait_stream(self.stream)

    def record(self, function: Callable[[], object]) -> None:
        outside = self.cuda.current_stream(self.device)
        try:
            with self.cuda.graph(self.graph, stream=self.stream):
                function()
        finally:
            self.cuda.set_stream(outside)  # which torch forgets where the recording fails

    def replay(self) -> None:
        self.graph.replay()


class Fetch(NamedTuple):
    """Values on their way to the host."""

    host: NDArray[Any]
    done: Callable[[], bool] = lambda: True
    wait: Callable[[], object] = lambda: None

    def values(self) -> NDArray[Any]:
        """Them, waiting for the device if need be."""
        self.wait()
        return self.host


ANYWHERE: AbstractContextManager[None] = nullcontext()


class Library:
    """An array library: how to import it, place arrays with it, and bring them to the host."""

    name: str
    module: str  # the namespace that speaks the Array API
    root: str  # the top-level package of its array types
    install: str  # what makes it usable where it is missing

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
        """The library's own device for a user's choice, None meaning the default one."""
        if device in (None, "cpu"):
            return "cpu"
        msg = f"the {self.name!r} backend has no device {device!r}; its only device is 'cpu'"
        raise BackendError(msg)

    def activate(self, device: Any) -> None:
        """Make `device` the calling thread's current one, if the library has such a setting."""

    def on(self, device: Any) -> AbstractContextManager[Any]:
        """A block in which `device` is the current one of this thread, if there is such a thing.

        Where there is, new arrays and results are born on the current device, wherever the operands
        are. So whatever makes arrays enters such a block first.
        """
        return ANYWHERE

    def place(self, xp: Namespace, array: NDArray[Any], device: Any) -> Array:
        return xp.asarray(array, device=device)

    def plain(self, array: Array) -> Array:
        """`array`, where it lives, without what a library has beyond dense arrays of numbers.

        Raises
        ------
        InputError
            It is sparse, masked, quantized, …: no dense array of numbers.
        """
        return array

    def to_numpy(self, array: Array) -> NDArray[Any]:
        return np.asarray(array)

    def on_host(self, array: Array) -> bool:
        """Whether reading a value is free of any wait for a device."""
        return True

    def fetch(self, array: Array) -> Fetch:
        """Begin to bring `array` to the host, without a wait."""
        return Fetch(self.to_numpy(array))

    def graph(self, device: Any) -> Graph | None:
        """A new graph, where the library can record what `device` is asked to do."""
        return None

    def free_memory(self, device: Any) -> int | None:
        """Bytes that could be taken now, if the system says so."""
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None


class NumPy(Library):
    name, module, root = "numpy", "numpy", "numpy"
    install = "pip install numpy"

    def activate(self, device: Any) -> None:
        # glibc hands large freed blocks back to the system, and a training step then gets all its
        # arrays as fresh pages, to be zeroed one by one (a third of the time of LeNet-5's), until
        # it has seen that such blocks come and go; of up to 32 MiB it learns (mallopt(3)).
        np.empty(2**25 - 2**16, np.uint8)

    def plain(self, array: Array) -> Array:
        check_kind(array)
        return array

    def to_numpy(self, array: Array) -> NDArray[Any]:
        return as_host(array)


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
        device.use()  # array_api_compat.cupy ignores device= (cupy allocates on the current one)

    def on(self, device: Any) -> AbstractContextManager[Any]:
        return device  # type: ignore[no-any-return]

    def place(self, xp: Namespace, array: NDArray[Any], device: Any) -> Array:
        with device:
            return xp.asarray(array)

    def to_numpy(self, array: Array) -> NDArray[Any]:
        with array.device:  # whose current stream is waited for
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

    def graph(self, device: Any) -> Graph | None:
        return CuPyGraph(device)

    def free_memory(self, device: Any) -> int | None:
        cupy = importlib.import_module("cupy")
        with device:
            # This pool alone: a graph uses memory of its own pool that seems to be free there.
            cupy.get_default_memory_pool().free_all_blocks()
            return int(cupy.cuda.runtime.memGetInfo()[0])


class ArrayAPIStrict(Library):
    """The standard's reference implementation, on its fake accelerator `device1`.

    Nothing there reaches the host by accident, so code that runs on it will run on a GPU.
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
        # Not `self.to_numpy`, which `assert_no_host_sync` guards: the fake device is never behind.
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
            (array.is_nested, "is nested", "x.to_padded_tensor(…)"),
            (array.layout is not torch.strided, "is sparse or packed", "x.to_dense()"),
            (array.is_quantized, "is quantized", "x.dequantize()"),
            (array.device.type == "meta", "has no values", "one that is not on the meta device"),
        ):
            if wrong:
                msg = f"this {type(array).__name__} {what}, and xbp takes dense arrays; give {way}"
                raise InputError(msg)
        if array.requires_grad:
            array = array.detach()  # xbp's backward is its own
        if type(array) is not torch.Tensor:
            array = array.as_subclass(torch.Tensor)
        if array.is_conj() or array.is_neg():
            array = array.resolve_conj().resolve_neg()
        name = str(array.dtype)
        if name.startswith(("torch.bfloat16", "torch.float8")):
            return array.float()  # which holds all their values
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


LIBRARIES: dict[str, Library] = {
    library.name: library for library in (NumPy(), CuPy(), ArrayAPIStrict(), Torch())
}


@dataclass(frozen=True)
class Backend:
    """A library and one of its devices: the place where new arrays are born.

    Attributes
    ----------
    name : str
        ``"numpy"``, ``"cupy"``, ``"array_api_strict"`` or ``"torch"``.
    xp : module
        The library's Array API namespace.
    device
        The library's own device object, as its creation functions take it.
    """

    name: str
    xp: Namespace
    device: Any

    def asarray(self, obj: Any, *, dtype: Any = None) -> Array:
        """`obj` as an array of this backend; see `xbp.asarray`."""
        library, name = LIBRARIES[self.name], None if dtype is None else dtype_name(dtype)
        if self.xp is not np and library_of(obj) is library and obj.device == self.device:
            with library.on(self.device):
                obj = library.plain(obj)
                name = _target(obj, obj.dtype, name)
                return self.xp.asarray(obj, dtype=None if name is None else getattr(self.xp, name))
        host = as_numbers(obj)
        name = _target(obj, host.dtype, name)
        if name is not None:
            host = host.astype(name, copy=False)
        return library.place(self.xp, host, self.device)

    def on_device(self) -> AbstractContextManager[Any]:
        """A block in which new arrays and results are born here; see `Library.on`."""
        return LIBRARIES[self.name].on(self.device)

    def __hash__(self) -> int:
        return hash(self.name)  # CuPy's devices have no hash

    def __str__(self) -> str:
        return f"{self.name} ({self.device})"


# --- the current backend -------------------------------------------------------------------------

_default: Backend | None = None  # set_backend's choice, for the whole process
_override: ContextVar[Backend | None] = ContextVar("xbp_backend", default=None)  # use_backend's


def set_backend(name: str, *, device: Any = None) -> Backend:
    """Choose where new arrays are born, for the whole process.

    Inside a `use_backend` block the choice holds until the block ends. Arrays that exist already
    stay where they are: move a model with ``layer.to(name)``.

    Parameters
    ----------
    name : {"numpy", "cupy", "array_api_strict", "torch"}
    device : optional
        A device of that library, e.g. ``1`` or ``"cuda:1"``; None is its default.

    Raises
    ------
    BackendError
        The backend is unknown, not installed, or has no such device.

    Examples
    --------
    >>> import xbp
    >>> print(xbp.set_backend("numpy"))
    numpy (cpu)
    """
    global _default
    backend = find_backend(name, device=device)
    LIBRARIES[backend.name].activate(backend.device)
    if _override.get() is None:
        _default = backend
    else:
        _override.set(backend)
    return backend


@contextmanager
def use_backend(name: str, *, device: Any = None) -> Iterator[Backend]:
    """`set_backend` for a ``with`` block: restored at its end and on any error.

    Examples
    --------
    >>> import xbp
    >>> with xbp.use_backend("numpy") as backend:
    ...     backend.name
    'numpy'
    """
    backend = find_backend(name, device=device)
    with backend.on_device():
        LIBRARIES[backend.name].activate(backend.device)
        token = _override.set(backend)
        try:
            yield backend
        finally:
            _override.reset(token)


def get_backend() -> Backend:
    """The backend on which new arrays are born now.

    It is numpy until `set_backend` or `use_backend` says otherwise, or the environment variable
    ``XBP_BACKEND`` did so when it was first asked for.
    """
    global _default
    override = _override.get()
    if override is not None:
        return override
    if _default is None:
        try:
            _default = find_backend(os.environ.get("XBP_BACKEND") or "numpy")
        except BackendError as error:
            msg = f"the environment variable XBP_BACKEND cannot be followed: {error}"
            raise BackendError(msg) from None
        LIBRARIES[_default.name].activate(_default.device)
    return _default


def find_backend(name: str | Backend, *, device: Any = None) -> Backend:
    """The backend called `name`, made ready but not set.

    Raises
    ------
    BackendError
        As `set_backend`.
    """
    if isinstance(name, Backend):
        if device is None:
            return name
        name = name.name
    if not isinstance(name, str) or name not in LIBRARIES:
        msg = f"there is no backend {name!r}; choose one of {', '.join(map(repr, LIBRARIES))}"
        raise BackendError(msg)
    library = LIBRARIES[name]
    try:
        return Backend(name, library.namespace(), library.device(device))
    except BackendError:
        raise
    except (Exception, SystemExit) as error:  # an installation may be broken in any way
        msg = f"the {name!r} backend is installed but broken ({brief(error)}); install it again"
        raise BackendError(msg) from error


def brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def available_backends() -> list[str]:
    """The names of the backends that work here, now: installed, with a device."""
    return [name for name in LIBRARIES if why_unavailable(name) is None]


def why_unavailable(name: str) -> str | None:
    """None for a backend that works here, else one sentence that says what would make it so."""
    try:
        find_backend(name)
    except BackendError as error:
        return str(error)
    return None


# --- arrays --------------------------------------------------------------------------------------


def asarray(obj: Any, *, dtype: Any = None) -> Array:
    """`obj` as an array on the current backend, copied only where it must be.

    Parameters
    ----------
    obj : array of any library, number, or nested sequence of numbers
        Also what has ``__array__``, a buffer, DLPack or ``__cuda_array_interface__``: a data frame,
        a memory map. a float of fewer bits becomes float32; a tensor that requires a gradient is
        detached.
    dtype : str or dtype of any library, optional
        ``"float32"``, ``numpy.float32``, …; None keeps what `obj` has (Python floats: float64).

    Raises
    ------
    InputError
        `obj` does not hold numbers, or more than numbers: a mask, a unit; it is sparse or
        quantized, or a sequence of no known length; or it is complex and `dtype` is not.

    Examples
    --------
    >>> import xbp
    >>> xbp.asarray([[1, 2], [3, 4]], dtype="float32").shape
    (2, 2)
    """
    return get_backend().asarray(obj, dtype=dtype)


def to_numpy(array: Any) -> NDArray[Any]:
    """`array` of any library as a numpy array, waiting for its device if it has one."""
    library = library_of(array)
    if library is not None:
        return library.to_numpy(array)
    if hasattr(type(array), "__cuda_array_interface__") and not hasattr(array, "__array__"):
        return _from_a_gpu(array)
    return as_host(array)


def plain(array: Array) -> Array:
    """`array`, where it lives, as one that holds numbers and no more.

    Raises
    ------
    InputError
        It is no array, or has a mask, a unit, …; see `asarray`.
    """
    array_namespace(array)
    library = library_of(array)
    return array if library is None else library.plain(array)


def fetch(array: Array) -> Fetch:
    """The values of `array` on their way to the host, without a wait for its device."""
    library = library_of(array)
    return Fetch(np.asarray(array)) if library is None else library.fetch(array)


def on_device_of(array: Any) -> AbstractContextManager[Any]:
    """A block in which new arrays and results are born beside `array`; see `Library.on`."""
    library = None if type(array) is HostArray else library_of(array)
    return ANYWHERE if library is None else library.on(array.device)


def there(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run on the device of the first array among its arguments."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        for array in (*args, *options.values()):
            if library_of(array) is not None:
                with on_device_of(array):
                    return function(*args, **options)
        return function(*args, **options)

    return run


def graph_for(array: Array) -> Graph | None:
    """A new graph for the device of `array`, if what it does can be recorded."""
    library = library_of(array)
    return None if library is None else library.graph(array.device)


def free_memory(array: Array) -> int | None:
    """Bytes that could be taken where `array` lives; None where nobody says how many."""
    library = library_of(array)
    return None if library is None else library.free_memory(array.device)


def out_of_memory(error: BaseException) -> bool:
    """Whether any library says that there is too little memory."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(brief(error)))


def asked_for(error: BaseException) -> int | None:
    """The bytes that an error of that kind says were asked for.

    >>> asked_for(MemoryError("Unable to allocate 1.5 GiB for an array with shape …"))
    1610612736
    """
    found = _ASKED.search(str(error))
    if found is None:
        return None
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(found[2])
    return int(float(found[1].replace(",", "")) * 1024**unit)


# What numpy, CuPy, CUDA and torch say, on a CPU and on a GPU.
_NO_MEMORY = re.compile(r"out of memory|OutOfMemory|can't allocate memory", re.IGNORECASE)
_ASKED = re.compile(r"allocat\w+:? ([\d.,]+) (bytes|[KMGTPE]iB)")


def as_numbers(obj: Any) -> NDArray[Any]:
    """`obj` as a numpy array of booleans or numbers, in the machine's byte order."""
    host = to_numpy(obj)
    check_numbers(obj, host)
    return host.astype(host.dtype.newbyteorder("="), copy=False)


def _from_a_gpu(obj: Any) -> NDArray[Any]:
    """What has ``__cuda_array_interface__``, through CuPy. Not yet run on a GPU."""
    cupy = LIBRARIES["cupy"]
    try:
        return cupy.to_numpy(cupy.namespace().asarray(obj))
    except Exception as error:
        if out_of_memory(error):
            raise
        msg = f"this {type(obj).__name__} is on a GPU, and CuPy cannot read it ({brief(error)})"
        raise InputError(msg) from None


def _target(obj: Any, dtype: Any, wanted: str | None) -> str | None:
    """The name of the dtype to convert `obj` to, from its own; None where it stays as it is.

    Raises
    ------
    InputError
        An imaginary part would be dropped, or xbp has no such dtype.
    """
    own = str(dtype).rpartition(".")[2]
    if wanted is not None and own.startswith("c") and not wanted.startswith("c"):
        msg = f"this {type(obj).__name__} is {own}, and cannot become {wanted}; give its real part"
        raise InputError(msg)
    if wanted is not None or own in _DTYPE_NAMES:
        return wanted
    if own == "float16":
        return "float32"  # which holds all its values
    msg = f'this {type(obj).__name__} is {own}, which xbp lacks; name another dtype, as "float64"'
    raise InputError(msg)


def library_of(array: Any) -> Library | None:
    """The library of the table to which an array belongs; None for anything else.

    An array of a subclass, of whatever module, belongs where its base does. Remembered by type.
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


def backend_of(array: Array) -> Backend:
    """The backend on which `array` lives, for placing others beside it.

    Raises
    ------
    InputError
        `array` belongs to no library of the table.
    """
    library = library_of(array)
    if library is None:
        msg = f"{type(array).__name__} belongs to no backend of xbp; make an array with xbp.asarray"
        raise InputError(msg)
    return Backend(library.name, library.namespace(), array.device)


def whereabouts(array: Any) -> str:
    """Library and device of an array, for messages: ``"numpy (cpu)"``."""
    library = library_of(array)
    name = type(array).__name__ if library is None else library.name
    return f"{name} ({getattr(array, 'device', 'no device')})"


def check_beside(
    owner: Any,
    what: str,
    array: Array,
    other: str,
    neighbour: Array,
    advice: str = "move one of them with xbp.asarray(…)",
) -> None:
    """Refuse an array of another library, or on another device, than the one it is used with.

    Neither shape nor dtype tells them apart: CuPy has numpy's.

    Parameters
    ----------
    owner : object
        Who was given both, as messages show it.
    what, array
        An array, in words: ``"a target"``.
    other, neighbour
        The one that it has to fit, with its verb: ``"the prediction is"``.
    advice : str

    Raises
    ------
    BackendError
    InputError
        One of them is no array.
    """
    kind = type(array)
    if kind is type(neighbour) and (kind is HostArray or array.device == neighbour.device):
        return
    together = array_namespace(array) is array_namespace(neighbour)  # a numpy scalar and an array
    if not together or array.device != neighbour.device:
        msg = (
            f"{owner} got {what} on {whereabouts(array)}, where {other} on "
            f"{whereabouts(neighbour)}; {advice}"
        )
        raise BackendError(msg)


HOST: Namespace = np
HostArray = np.ndarray
"""The type of arrays that have but one device. Where a call counts, two of them are let pass by
``type(a) is type(b) is HostArray`` before `check_beside` is asked."""


def on_host(array: Array) -> bool:
    """Whether the values of `array` can be read without waiting for a device."""
    library = library_of(array)
    return library is not None and library.on_host(array)


def array_namespace(array: Array) -> Namespace:
    """The Array API namespace of `array`: where its functions live.

    numpy arrays give numpy itself, which has conformed since 2.0; array_api_compat wraps the
    others. The answer is remembered by type, since every layer asks for it on every call.

    Raises
    ------
    InputError
        `array` is no array.
    """
    kind = type(array)
    xp = _NAMESPACE_OF_TYPE.get(kind)
    if xp is None:
        xp = _NAMESPACE_OF_TYPE[kind] = _find_namespace(array)
    return xp


def _find_namespace(array: Any) -> Namespace:
    if isinstance(array, np.ndarray | np.generic):
        check_kind(array)
        return np
    import array_api_compat

    try:
        return array_api_compat.array_namespace(array)
    except TypeError:
        msg = f"expected an array, got {type(array).__name__}; make one with xbp.asarray"
        raise InputError(msg) from None


_ARRAYS = ("ndarray", "generic", "Tensor", "Array")
"""The names of the libraries' classes of arrays."""

_LIBRARY_OF_ROOT = {library.root: library for library in LIBRARIES.values()}
_LIBRARY_OF_TYPE: dict[type, Library | None] = {}
_NAMESPACE_OF_TYPE: dict[type, Namespace] = {}


def is_floating(array: Array) -> bool:
    """Whether an array holds floating-point numbers, real or complex; remembered by dtype."""
    key = type(array), array.dtype
    floating = _IS_FLOATING.get(key)
    if floating is None:
        xp, kinds = array_namespace(array), ("real floating", "complex floating")
        floating = _IS_FLOATING[key] = xp.isdtype(array.dtype, kinds)
    return floating


_IS_FLOATING: dict[tuple[type, Any], bool] = {}


# --- dtypes --------------------------------------------------------------------------------------


def dtype_name(dtype: Any) -> str:
    """The standard's name of a dtype: ``"float32"`` for a string or any library's own object.

    >>> import numpy
    >>> dtype_name(numpy.float32), dtype_name(numpy.dtype("float64")), dtype_name("int64")
    ('float32', 'float64', 'int64')
    """
    if isinstance(dtype, type):  # numpy.float32 and friends
        name = dtype.__name__
    else:
        name = str(dtype).rpartition(".")[2]  # "torch.float32", "array_api_strict.float32"
    if name not in _DTYPE_NAMES:
        msg = f"unknown dtype {dtype!r}; choose one of {', '.join(_DTYPE_NAMES)}"
        raise InputError(msg)
    return name


def resolve(xp: Namespace, dtype: Any) -> Any:
    """The dtype object of namespace `xp` for a dtype given by name or by any library."""
    return getattr(xp, dtype_name(dtype))


_DTYPE_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "complex64", "complex128"),
)


def _device_index(device: Any, prefix: str) -> int | None:
    """0 for None, n for n, "n" and "cuda:n", and for a device object that has an `id`."""
    text = str(getattr(device, "id", 0 if device is None else device)).removeprefix(prefix)
    text = text.removeprefix(":") or "0"
    return int(text) if text.isdecimal() else None
