"""Backends: the current one, errors of those that do not work, arrays from and to the host."""

import os
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from twin import twin

import xbp
from xbp.backend import (
    LIBRARIES,
    Backend,
    array_namespace,
    backend_of,
    current,
    dtype_name,
    find_backend,
    library_of,
    on_host,
    resolve,
    whereabouts,
    why_unavailable,
)
from xbp.errors import BackendError, InputError

ROOT = Path(xbp.__file__).parents[1]
NAMES = list(LIBRARIES)
HERE = xbp.available_backends()


def need(name: str) -> Backend:
    reason = why_unavailable(name)
    if reason is not None:
        pytest.skip(reason)
    return find_backend(name)


@pytest.fixture
def strict() -> Backend:
    return need("array_api_strict")


@pytest.fixture(autouse=True)
def _numpy_is_set_and_then_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "_default", find_backend("numpy"))


@pytest.mark.parametrize("name", [*HERE, "twin"])
def test_equal_backends_have_equal_hashes(name: str) -> None:
    with twin():
        a, b = find_backend(name), find_backend(name)
        assert a == b
        assert hash(a) == hash(b)
        assert {a: 1} == {b: 1}


def test_backends_on_other_devices_are_others() -> None:
    with twin():
        places = {find_backend("twin", device=number) for number in (0, 1, 1, 0)}
        assert len(places) == 2


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, with no XBP_BACKEND but the one given."""
    inherited = {key: value for key, value in os.environ.items() if key != "XBP_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_sentence(message: str, *parts: str) -> None:
    """One line without a trailing stop, holding each of `parts`."""
    assert "\n" not in message
    assert len(message) > 20
    for part in parts:
        assert part in message


# --- which backend is set ------------------------------------------------------------------------

SHOW = "import xbp; print(xbp.get_backend())"
SHOW_ERROR = """
import xbp
try:
    xbp.get_backend()
except xbp.errors.BackendError as error:
    print(error)
"""


@pytest.mark.parametrize("environment", [{}, {"XBP_BACKEND": ""}, {"XBP_BACKEND": "numpy"}])
def test_the_backend_is_numpy_until_someone_says_otherwise(environment: dict[str, str]) -> None:
    assert python(SHOW, **environment).stdout == "numpy (cpu)\n"


def test_the_environment_variable_chooses_the_backend(strict: Backend) -> None:
    assert python(SHOW, XBP_BACKEND="array_api_strict").stdout == f"{strict}\n"


def test_set_backend_goes_before_the_environment_variable() -> None:
    code = "import xbp; xbp.set_backend('numpy'); print(xbp.get_backend())"
    assert python(code, XBP_BACKEND="array_api_strict").stdout == "numpy (cpu)\n"


def test_an_unknown_name_in_the_environment_is_one_sentence_that_names_the_variable() -> None:
    done = python(SHOW_ERROR, XBP_BACKEND="nunpy")
    assert done.returncode == 0, done.stderr
    assert_one_sentence(done.stdout.rstrip("\n"), "XBP_BACKEND", "'nunpy'", *map(repr, NAMES))


def test_importing_does_not_look_at_the_environment_variable() -> None:
    assert python("import xbp", XBP_BACKEND="nunpy").returncode == 0


def test_set_backend_returns_the_backend_that_holds_from_then_on(strict: Backend) -> None:
    assert xbp.set_backend("array_api_strict") == strict
    assert xbp.get_backend() == strict
    assert backend_of(xbp.asarray([1.0])) == strict


def test_set_backend_takes_a_backend_and_a_device(strict: Backend) -> None:
    chosen = xbp.set_backend(strict, device="device2")  # type: ignore[arg-type]
    assert chosen.device == strict.xp.Device("device2")
    assert xbp.set_backend(chosen) is chosen  # type: ignore[arg-type]
    assert xbp.asarray(1.0).device == chosen.device


def test_set_backend_holds_for_the_whole_process(strict: Backend) -> None:
    xbp.set_backend("array_api_strict")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(xbp.get_backend).result() == strict


def test_use_backend_restores_at_its_end(strict: Backend) -> None:
    with xbp.use_backend("array_api_strict") as used:
        assert used == strict
        assert xbp.get_backend() == strict
    assert xbp.get_backend().name == "numpy"


def test_use_backend_restores_on_an_exception(strict: Backend) -> None:
    with pytest.raises(ZeroDivisionError), xbp.use_backend("array_api_strict"):
        raise ZeroDivisionError
    assert xbp.get_backend().name == "numpy"


def test_use_backend_nests(strict: Backend) -> None:
    devices = []
    with xbp.use_backend("array_api_strict", device="device1"):
        with xbp.use_backend("array_api_strict", device="device2"):
            devices.append(xbp.get_backend().device)
            with xbp.use_backend("numpy"):
                devices.append(xbp.get_backend().device)
            devices.append(xbp.get_backend().device)
        devices.append(xbp.get_backend().device)
    one, two = strict.xp.Device("device1"), strict.xp.Device("device2")
    assert devices == [two, "cpu", two, one]
    assert xbp.get_backend().name == "numpy"


def test_set_backend_inside_a_block_holds_until_the_block_ends(strict: Backend) -> None:
    with xbp.use_backend("array_api_strict", device="CPU_DEVICE"):
        with xbp.use_backend("numpy"):
            xbp.set_backend("array_api_strict")
            assert xbp.get_backend() == strict
        assert xbp.get_backend().device == strict.xp.Device("CPU_DEVICE")
    assert xbp.get_backend().name == "numpy"


@pytest.mark.parametrize(
    "choose", [xbp.set_backend, lambda name: xbp.use_backend(name).__enter__()]
)
def test_a_choice_that_fails_changes_nothing(choose: Any) -> None:
    before = xbp.get_backend()
    with pytest.raises(BackendError):
        choose("nunpy")
    assert xbp.get_backend() is before


def test_use_backend_in_one_thread_does_not_change_another(strict: Backend) -> None:
    inside, seen = threading.Barrier(2, timeout=30), {}

    def work(name: str) -> None:
        with xbp.use_backend(name):
            inside.wait()  # both threads are in their blocks now
            seen[name] = xbp.get_backend().name
            inside.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ["numpy", "array_api_strict"]))
    assert seen == {"numpy": "numpy", "array_api_strict": "array_api_strict"}


def test_set_backend_inside_a_block_of_one_thread_does_not_change_another(strict: Backend) -> None:
    with ThreadPoolExecutor(1) as pool, xbp.use_backend("numpy"):
        pool.submit(xbp.get_backend).result()  # the thread runs before the choice is made
        xbp.set_backend("array_api_strict")
        assert pool.submit(xbp.get_backend).result().name == "numpy"


def test_a_backend_shows_its_name_and_device() -> None:
    assert str(find_backend("numpy")) == "numpy (cpu)"


# --- backends that cannot work -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_that_is_installed_makes_arrays(name: str) -> None:
    assert need(name).asarray([1.0, 2.0]).shape == (2,)  # a skip names the missing library


def test_available_backends_are_those_that_give_no_reason_against() -> None:
    available = xbp.available_backends()
    assert "numpy" in available
    assert available == [name for name in NAMES if why_unavailable(name) is None]


@pytest.mark.parametrize("name", ["nunpy", "", "NumPy", None, 3, ["numpy"]])
def test_an_unknown_backend_is_one_sentence_that_lists_the_known_ones(name: Any) -> None:
    with pytest.raises(BackendError) as caught:
        xbp.set_backend(name)
    assert_one_sentence(str(caught.value), repr(name), *map(repr, NAMES))


@pytest.mark.parametrize(
    ("name", "device", "advice"),
    [
        ("numpy", "cuda", "'cpu'"),
        ("numpy", 0, "'cpu'"),
        ("array_api_strict", "device9", "device1"),
        ("array_api_strict", 1, "device1"),
        ("torch", "nowhere", "'cpu'"),
        ("torch", "cuda:99", "'cpu'"),
        ("torch", object(), "'cpu'"),
    ],
)
def test_a_device_that_does_not_exist_is_one_sentence_that_names_one_that_does(
    name: str, device: Any, advice: str
) -> None:
    need(name)
    with pytest.raises(BackendError) as caught:
        xbp.set_backend(name, device=device)
    assert_one_sentence(str(caught.value), repr(name), repr(device), advice)
    assert xbp.get_backend().name == "numpy"


NOT_INSTALLED = """
import sys
sys.modules[{name!r}] = None  # makes `import {name}` fail
import xbp
from xbp.backend import why_unavailable
print(why_unavailable({name!r}))
print(xbp.available_backends() if {name!r} != "torch" else [])
try:
    xbp.set_backend({name!r})
except xbp.errors.BackendError as error:
    print(error)
"""


@pytest.mark.parametrize("name", [name for name in NAMES if name != "numpy"])
def test_a_backend_that_is_not_installed_is_one_sentence_that_says_how_to_install_it(
    name: str,
) -> None:
    done = python(NOT_INSTALLED.format(name=name))
    assert done.returncode == 0, done.stderr
    reason, available, error = done.stdout.splitlines()
    command = f"pip install {name}"[:16] if name != "cupy" else "pip install 'cupy-cuda13x[ctk]'"
    assert_one_sentence(reason, repr(name), "not installed", command)
    assert name not in available
    assert error == reason


def test_cupy_without_a_gpu_is_one_sentence_that_says_what_to_check() -> None:
    if pytest.importorskip("cupy").cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError) as caught:
        xbp.set_backend("cupy")
    assert_one_sentence(str(caught.value), "no CUDA device", "nvidia-smi")
    assert "cupy" not in xbp.available_backends()


# --- CuPy's devices, by a stand-in ---------------------------------------------------------------


class FakeDevice:
    """A device like cupy.cuda.Device: current after `use`, and within `with`."""

    current = 0
    before: ClassVar[list[int]] = []

    def __init__(self, index: int) -> None:
        self.id = index

    def use(self) -> None:
        FakeDevice.current = self.id

    def __enter__(self) -> None:
        FakeDevice.before.append(FakeDevice.current)
        self.use()

    def __exit__(self, *error: object) -> None:
        FakeDevice.current = FakeDevice.before.pop()


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for CuPy with two GPUs, for the choice of a device."""
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 2)
    cuda = types.SimpleNamespace(is_available=lambda: True, runtime=runtime, Device=FakeDevice)
    fake = types.SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", fake)
    monkeypatch.setattr(FakeDevice, "current", 0)
    return fake


@pytest.mark.parametrize(
    ("device", "index"),
    [(None, 0), (0, 0), (1, 1), ("1", 1), ("cuda", 0), ("cuda:1", 1), (FakeDevice(1), 1)],
)
def test_a_gpu_is_chosen_by_number_name_or_device(
    fake_cupy: types.SimpleNamespace, device: Any, index: int
) -> None:
    assert find_backend("cupy", device=device).device.id == index


@pytest.mark.parametrize("device", [2, -1, "cuda:2", "cuda:x", "gpu", "cpu", 1.5])
def test_a_gpu_that_does_not_exist_is_one_sentence_that_names_those_that_do(
    fake_cupy: types.SimpleNamespace, device: Any
) -> None:
    with pytest.raises(BackendError) as caught:
        find_backend("cupy", device=device)
    assert_one_sentence(str(caught.value), "'cupy'", repr(device), "0 to 1")


def test_cupy_takes_the_memory_of_an_array_on_its_gpu(fake_cupy: types.SimpleNamespace) -> None:
    class Theirs:
        """An array of Numba's, say, on the first GPU."""

        __cuda_array_interface__: ClassVar[dict[str, Any]] = {"shape": (2,)}

    first, second = FakeDevice(0), FakeDevice(1)

    class ndarray:  # noqa: N801 - CuPy's name
        __module__ = "cupy"
        dtype, device = np.dtype("float32"), first

        def __init__(self, memory: Any) -> None:
            self.memory = memory

    def asarray(obj: Any, dtype: Any = None) -> Any:
        assert FakeDevice.current == 0 or isinstance(obj, Theirs)
        return obj if isinstance(obj, ndarray) else ndarray(obj)

    fake_cupy.asarray, theirs = asarray, Theirs()
    made = Backend("cupy", fake_cupy, first).asarray(theirs)
    assert isinstance(made, ndarray) and made.memory is theirs
    library = LIBRARIES["cupy"]
    assert library.adopted(theirs, second) is None  # it lies on the first
    assert library.adopted(np.ones(2), first) is None
    assert LIBRARIES["numpy"].adopted(theirs, "cpu") is None


def test_a_driver_without_a_gpu_is_one_sentence(fake_cupy: types.SimpleNamespace) -> None:
    fake_cupy.cuda.is_available = lambda: False
    assert_one_sentence(why_unavailable("cupy") or "", "no CUDA device", "nvidia-smi")


def test_the_chosen_gpu_is_the_current_one_until_the_block_ends(
    fake_cupy: types.SimpleNamespace,
) -> None:
    xbp.set_backend("cupy", device=1)
    assert FakeDevice.current == 1
    with xbp.use_backend("cupy", device=0):
        assert FakeDevice.current == 0
    assert FakeDevice.current == 1


# --- making arrays -------------------------------------------------------------------------------

OBJECTS: list[tuple[Any, str]] = [
    (True, "bool"),
    (3, "int64"),
    (0.5, "float64"),
    (np.float32(0.5), "float32"),
    ([], "float64"),
    ([1, 2], "int64"),
    (((0.5, 1.0), (2.0, -3.0)), "float64"),
    ([1 + 2j], "complex128"),
    (range(3), "int64"),
    (np.arange(6, dtype=np.uint8).reshape(2, 3), "uint8"),
    (np.arange(6.0).reshape(2, 3).T, "float64"),
    (np.arange(6.0)[::-1], "float64"),
    (np.arange(6.0)[::2], "float64"),
    (np.arange(3, dtype=">f4"), "float32"),
    (np.broadcast_to(np.float32(2.0), (2, 2)), "float32"),
]


@pytest.mark.parametrize(("obj", "dtype"), OBJECTS)
def test_asarray_keeps_values_shape_and_dtype(backend: Backend, obj: Any, dtype: str) -> None:
    array = xbp.asarray(obj)
    assert backend_of(array) == backend
    assert dtype_name(array.dtype) == dtype
    assert tuple(array.shape) == np.shape(obj)
    np.testing.assert_array_equal(xbp.to_numpy(array), np.asarray(obj))


@pytest.mark.parametrize("library", [None, *HERE])
@pytest.mark.parametrize("source", HERE)
def test_a_dtype_may_be_a_name_or_the_object_of_any_library(
    backend: Backend, source: str, library: str | None
) -> None:
    dtype = "float32" if library is None else find_backend(library).xp.float32
    array = backend.asarray(find_backend(source).asarray([1, 2]), dtype=dtype)
    assert backend_of(array) == backend
    assert array.dtype == resolve(backend.xp, "float32")
    assert xbp.to_numpy(array).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(
    "obj",
    [
        "3",
        ["3"],
        None,
        [None],
        object(),
        {"a": 1},
        2**70,
        np.array(["3"]),
        np.array([1.0, None]),
        np.array("2026-11-21", dtype="datetime64[D]"),
        [[1.0], [1.0, 2.0]],
    ],
)
def test_what_holds_no_numbers_is_refused(backend: Backend, obj: Any, dtype: Any) -> None:
    with pytest.raises(InputError) as caught:
        backend.asarray(obj, dtype=dtype)
    assert_one_sentence(str(caught.value), type(obj).__name__)


def test_an_array_that_is_there_already_is_not_copied(backend: Backend) -> None:
    array = backend.asarray([1.0, 2.0])
    backend.asarray(array)[0] = 3.0
    backend.asarray(array, dtype="float64")[1] = 4.0
    assert xbp.to_numpy(array).tolist() == [3.0, 4.0]


def test_an_array_goes_to_the_device_of_the_backend(strict: Backend) -> None:
    there = find_backend("array_api_strict", device="device2")
    moved = there.asarray(strict.asarray([1.0, 2.0]))
    assert backend_of(moved) == there
    assert xbp.to_numpy(moved).tolist() == [1.0, 2.0]


def test_a_read_only_array_can_become_a_tensor_and_stays_as_it_is() -> None:
    torch = need("torch")
    source = np.ones(2)
    source.flags.writeable = False
    tensor = torch.asarray(source)  # torch would warn, which is an error in this test suite
    tensor[0] = 5.0
    assert tensor.tolist() == [5.0, 1.0]
    assert source.tolist() == [1.0, 1.0]


DTYPES = ["bool", "int8", "int32", "int64", "uint8", "uint16", "float32", "float64", "complex64"]
PAIRS = list(permutations(HERE, 2))


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_go_through_two_libraries_and_come_back_bit_for_bit(
    first: str, second: str, dtype: str
) -> None:
    one, two = find_backend(first), find_backend(second)
    extremes = [0.0, -0.0, 1.5, np.inf, -np.inf, np.nan]
    if "float" in dtype or "complex" in dtype:
        values = np.array(extremes).astype(dtype)
    elif dtype == "bool":
        values = np.array([True, False])
    else:
        values = np.array([np.iinfo(dtype).min, 0, np.iinfo(dtype).max], dtype=dtype)
    for array in (
        values,
        values[:0],
        values[0],
        values.reshape(2, -1) if values.size == 6 else values,
    ):
        back = xbp.to_numpy(two.asarray(one.asarray(array)))
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()


def test_a_tensor_that_requires_a_gradient_comes_to_the_host() -> None:
    torch = need("torch")
    tensor = torch.xp.ones(2, requires_grad=True)
    assert xbp.to_numpy(tensor).tolist() == [1.0, 1.0]


# --- asking arrays -------------------------------------------------------------------------------


def test_numpy_arrays_and_scalars_have_numpy_itself_as_their_namespace() -> None:
    assert array_namespace(np.ones(2)) is np
    assert array_namespace(np.float32(1.0)) is np


def test_an_array_has_its_backends_namespace(backend: Backend) -> None:
    array = backend.asarray([1.0])
    assert array_namespace(array) is backend.xp
    assert array_namespace(array) is array_namespace(array)


@pytest.mark.parametrize("ask", [array_namespace, backend_of])
@pytest.mark.parametrize("thing", [[1.0], 1.0, "numpy", None, np.dtype("float32"), np])
def test_what_is_no_array_is_one_sentence(ask: Any, thing: Any) -> None:
    with pytest.raises(InputError) as caught:
        ask(thing)
    assert_one_sentence(str(caught.value), type(thing).__name__, "xbp.asarray")


def test_backend_of_an_array_makes_others_beside_it(strict: Backend) -> None:
    for device in ("device1", "device2", "CPU_DEVICE"):
        array = find_backend("array_api_strict", device=device).asarray([1.0])
        assert backend_of(array).asarray([2.0]).device == array.device


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("numpy", None, True),
        ("torch", None, True),
        ("array_api_strict", "CPU_DEVICE", True),
        ("array_api_strict", "device1", False),
        ("array_api_strict", "device2", False),
        ("cupy", None, False),
    ],
)
def test_on_host_says_whether_reading_waits_for_no_device(
    name: str, device: Any, expected: bool
) -> None:
    need(name)
    assert on_host(find_backend(name, device=device).asarray([1.0])) is expected


def test_numpy_scalars_are_on_the_host_and_what_is_no_array_is_nowhere() -> None:
    assert on_host(np.float32(1.0))
    assert not on_host([1.0])


def test_whereabouts_are_library_and_device(strict: Backend) -> None:
    assert whereabouts(np.ones(1)) == "numpy (cpu)"
    assert whereabouts(strict.asarray([1.0])) == str(strict)
    assert whereabouts([1.0]) == "list (no device)"


def test_the_library_of_an_array_is_found_and_of_other_things_is_none(backend: Backend) -> None:
    assert library_of(backend.asarray([1.0])) is LIBRARIES[backend.name]
    assert library_of([1.0]) is None
    assert library_of(np.dtype("float32")) is None


@pytest.mark.parametrize(
    "name", ["bool", "int64", "uint8", "uint64", "float32", "float64", "complex128"]
)
def test_dtype_name_is_the_same_for_every_librarys_own_dtype(backend: Backend, name: str) -> None:
    assert dtype_name(getattr(backend.xp, name)) == name
    assert dtype_name(name) == name
    assert dtype_name(np.dtype(name)) == name


@pytest.mark.parametrize("dtype", ["float33", "", None, float, "float16", object, 3])
def test_an_unknown_dtype_is_one_sentence_that_lists_the_known_ones(dtype: Any) -> None:
    with pytest.raises(InputError) as caught:
        dtype_name(dtype)
    assert_one_sentence(str(caught.value), repr(dtype), "float32", "int64")
