"""Arguments that are not plain arrays: converted correctly, or refused in one sentence."""

from __future__ import annotations

import array
import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import Backend, library_of
from xbp.errors import InputError
from xbp.nn import Layer
from xbp.training import load_weights, save_weights


class Quantity(np.ndarray):
    """A quantity like those of astropy or unyt."""

    unit: str

    def __new__(cls, values: Any, unit: str = "m") -> Quantity:
        made = np.asarray(values, float).view(cls)
        made.unit = unit
        return made

    def __array_finalize__(self, other: Any) -> None:
        self.unit = getattr(other, "unit", "")


class Wrapped:
    """A quantity like those of pint."""

    units = property(lambda self: "metre")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ones((2, 2))


class Mine(np.ndarray):
    """A subclass that adds nothing."""


class Endless:
    """A sequence that numpy reads until an IndexError, which never comes."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return [1.0, 2.0]


class Pairs(Endless):
    """A data set like PyTorch's."""

    def __getitem__(self, index: int) -> Any:
        return np.ones(3), 1


class Loader:
    """A loader like PyTorch's DataLoader."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        return iter([np.ones((1, 2))] * 2)


Loader.__module__ = "torch.utils.data.dataloader"


class Rows(Sequence[Any]):
    """A sequence with a length whose items never end."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        return [1.0, 2.0]


class Exported:
    """An array with DLPack and nothing else."""

    def __init__(self, values: Any = ((1.0, 2.0),) * 2) -> None:
        self.array = np.asarray(values)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Converted:
    def __init__(self, error: type[Exception] | None = None) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if self.error:
            raise self.error("not here,\nnot now")
        return np.array([[1.0, 2.0]] * 2)


class Variable:
    """A variable like netCDF4's, whose `__array__` masks missing values."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ma.masked_array(PLAIN, mask=PLAIN > 1)


class Interface:
    def __init__(self) -> None:
        self.array = np.array([[1.0, 2.0]] * 2)
        self.__array_interface__ = self.array.__array_interface__


class OnGPU:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (2, 2), "typestr": "<f8", "data": (0, False), "version": 3}


PLAIN = np.array([[1.0, 2.0]] * 2)


def torch_() -> Any:
    return pytest.importorskip("torch")


def pandas_() -> Any:
    return pytest.importorskip("pandas")


def few_bits() -> Any:
    return pytest.importorskip("ml_dtypes")


def numba_() -> Any:
    return pytest.importorskip("numba")


def memory_map(folder: Path) -> Any:
    np.save(folder / "x.npy", PLAIN)
    return np.load(folder / "x.npy", mmap_mode="r")


def numbas_dict() -> Any:
    made = numba_().typed.Dict()
    made[0] = 1.0
    return made


def loop() -> Any:
    itself: list[Any] = []
    itself.append(itself)
    return itself


CONVERTED: dict[str, Callable[[], Any]] = {
    "a masked array without masked entries": lambda: np.ma.masked_array(PLAIN, mask=False),
    "a matrix": lambda: np.matrix(PLAIN),
    "a subclass": lambda: PLAIN.view(Mine),
    "no unit": lambda: Quantity(PLAIN, "m").view(Mine),
    "a list of subclasses": lambda: [row.view(Mine) for row in PLAIN],
    "a sequence of one's own": Rows,
    "a deque": lambda: collections.deque(PLAIN.tolist()),
    "arrays of Python's": lambda: [array.array("d", [1, 2])] * 2,
    "a memoryview": lambda: memoryview(PLAIN),
    "DLPack": Exported,
    "__array__": Converted,
    "__array_interface__": Interface,
    "a data frame with a column 'units'": lambda: pandas_().DataFrame({"units": [1, 1], "b": 2.0}),
    "float16": lambda: PLAIN.astype("float16"),
    "bfloat16": lambda: torch_().tensor(PLAIN, dtype=torch_().bfloat16),
    "float8": lambda: torch_().tensor(PLAIN).to(torch_().float8_e4m3fn),
    "conjugate": lambda: torch_().tensor(PLAIN + 0j).conj(),
    "negative": lambda: torch_().tensor(PLAIN * -1j).conj().imag,
    "a tensor that requires a gradient": lambda: torch_().tensor(PLAIN, requires_grad=True),
    "a tensor of a subclass": lambda: torch_().nn.Parameter(torch_().tensor(PLAIN)),
    "a list of tensors": lambda: list(torch_().tensor(PLAIN)),
    "a list of tensors that require gradients": lambda: list(
        torch_().tensor(PLAIN, requires_grad=True)
    ),
    "a tuple of bfloat16": lambda: tuple(torch_().tensor(PLAIN, dtype=torch_().bfloat16)),
    "numbers among tensors": lambda: [[torch_().tensor(1.0, requires_grad=True), 2.0]] * 2,
    "a list of DLPack": lambda: [Exported([1.0, 2.0])] * 2,
    "bfloat16 of numpy": lambda: PLAIN.astype(few_bits().bfloat16),
    "float8 of numpy": lambda: PLAIN.astype(few_bits().float8_e4m3fn),
    "a list of Numba's": lambda: numba_().typed.List(list(PLAIN)),
    "a list of numpy's bfloat16": lambda: [[few_bits().bfloat16(1), few_bits().bfloat16(2)]] * 2,
}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (lambda: np.ma.masked_array(PLAIN, mask=PLAIN > 1), "masked entries"),
    "a list of masked": (lambda: [np.ma.masked_array([1.0, 2.0], [0, 1])] * 2, "masked entries"),
    "the masked constant": (lambda: [[1.0, np.ma.masked]] * 2, "masked entries"),
    "masked by __array__": (Variable, "masked entries"),
    "masked by __array__, in a list": (lambda: [Variable()] * 2, "masked entries"),
    "a unit": (lambda: Quantity(PLAIN), "has the unit 'm'"),
    "a wrapped unit": (Wrapped, "has the unit 'metre'"),
    "a list of units": (lambda: [Quantity([1.0, 2.0])] * 2, "has the unit 'm'"),
    "sparse": (lambda: pytest.importorskip("scipy.sparse").csr_array(PLAIN), "is sparse"),
    "an endless sequence": (Endless, "of this Endless"),
    "endless sequences": (lambda: [Endless(), Endless()], "of this Endless"),
    "a data set": (Pairs, "collect"),
    "a loader": (Loader, "collect"),
    "a generator": (lambda: (row for row in PLAIN), "collect"),
    "what counts for ever": (itertools.count, "collect"),
    "a set": (lambda: {1.0}, "collect"),
    "itself": (loop, "of this list"),
    "a dict": (lambda: {0: 1.0}, "of this dict"),
    "a dict of one's own": (lambda: collections.UserDict({0: 1.0}), "of this UserDict"),
    "dicts in a list": (lambda: [collections.ChainMap({0: 1.0})] * 2, "of this ChainMap"),
    "a dict of Numba's": (numbas_dict, "of this Dict"),
    "a failing __array__": (lambda: Converted(RuntimeError), "RuntimeError: not here, not now"),
    "a wrong __array__": (lambda: Converted(ValueError), "not here, not now"),
    "on a GPU": (OnGPU, "is on a GPU"),
    "integers that may miss": (
        lambda: pandas_().DataFrame({"a": [1, 1], "b": [2, 2]}, dtype="Int64"),
        'x.astype("float64")',
    ),
    "missing values": (lambda: pandas_().Series([True, None], dtype="boolean"), "dtype object"),
    "words": (lambda: pandas_().DataFrame({"a": ["x"]}), "dtype object"),
    "objects": (lambda: np.array([[1, 2.0]] * 2, object), "dtype object"),
    "records": (lambda: np.zeros(2, [("a", "f4")]), "booleans and numbers"),
    "more digits than float64": (lambda: PLAIN.astype(np.longdouble), "which xbp lacks"),
    "a sparse tensor": (lambda: torch_().tensor(PLAIN).to_sparse(), "x.to_dense()"),
    "a tensor without values": (lambda: torch_().empty(2, device="meta"), "has no values"),
    "a nested tensor": (
        lambda: torch_().nested.nested_tensor([torch_().ones(n) for n in (1, 2)]),
        "is nested",
    ),
    "a list of sparse tensors": (lambda: [torch_().tensor(PLAIN).to_sparse()], "x.to_dense()"),
    "a parameter of a lazy module": (
        lambda: torch_().nn.LazyLinear(2).weight,
        "has no values yet",
    ),
    "few bits of an integer": (lambda: PLAIN.astype(few_bits().int4), "booleans and numbers"),
}

quiet = pytest.mark.filterwarnings("ignore")  # deprecated or experimental uses


@quiet
@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_only_numbers_is_converted(backend: Backend, name: str) -> None:
    made = xbp.asarray(CONVERTED[name]())
    assert library_of(made) is library_of(backend.asarray(1.0))
    assert type(made) is type(backend.asarray(1.0))
    np.testing.assert_array_equal(xbp.to_numpy(made), PLAIN)


@quiet
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_or_less_is_refused(backend: Backend, name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(InputError) as caught:
        xbp.asarray(make())
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def jax_array() -> Any:
    return pytest.importorskip("jax").numpy.asarray(np.arange(64.0, dtype="float32"))


def numbas_array() -> Any:
    return numba_().njit(lambda: np.arange(64.0))()


SHARED: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.arange(64.0),
    "DLPack alone": lambda: Exported(np.arange(64.0)),
    "memoryview": lambda: memoryview(np.arange(64.0)),
    "torch": lambda: torch_().arange(64.0),
    "jax": jax_array,
    "numba": numbas_array,
}
"""Arrays on the CPU that need not be copied, as their dtype is one of xbp's."""


@pytest.mark.parametrize("name", SHARED)
def test_numpy_shares_the_memory_of_other_arrays(name: str) -> None:
    theirs = SHARED[name]()
    with xbp.use_backend("numpy"):
        ours = xbp.asarray(theirs)
    values = theirs.array if name == "DLPack alone" else np.asarray(theirs)
    assert np.shares_memory(ours, values)
    assert not np.shares_memory(xbp.asarray(ours, dtype="complex64"), values)


@pytest.mark.parametrize("name", ["numpy", "memoryview", "torch"])
def test_torch_shares_the_memory_of_other_arrays(name: str) -> None:
    """But for read-only ones, of which torch has none: those of JAX and DLPack are copied."""
    torch_()
    theirs = SHARED[name]()
    with xbp.use_backend("torch"):
        ours = xbp.asarray(theirs)
    assert np.shares_memory(ours.numpy(), np.asarray(theirs))


def test_a_memory_map_is_not_read(tmp_path: Path) -> None:
    mapped = memory_map(tmp_path)
    with xbp.use_backend("numpy"):
        assert np.shares_memory(xbp.asarray(mapped), mapped)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_an_imaginary_part_is_not_dropped(backend: Backend, dtype: str) -> None:
    for obj in (PLAIN + 1j, backend.asarray(PLAIN + 1j)):
        with pytest.raises(InputError, match=f"cannot become {dtype}; give its real part"):
            xbp.asarray(obj, dtype=dtype)
    assert xbp.to_numpy(xbp.asarray(PLAIN, dtype="complex64")).dtype == "complex64"


# --- the other doors ---

FEW = ["masked", "a unit", "sparse", "an endless sequence", "a loader", "a sparse tensor"]


def linear() -> Layer:
    return nn.Linear(2, 2, bias=False, dtype="float64", rng=0)


def fit(obj: Any) -> object:
    model = linear()
    return xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1)).fit(PLAIN, obj)


def predict(obj: Any) -> object:
    model = linear()
    return xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1)).predict(obj)


DOORS: dict[str, Callable[[Any, Path], object]] = {
    "fit": lambda obj, folder: fit(obj),
    "predict": lambda obj, folder: predict(obj),
    "load_state_dict": lambda obj, folder: linear().load_state_dict({"weight": obj}),
    "save_weights": lambda obj, folder: save_weights({"w": obj}, folder / "w.safetensors"),
    "Parameter": lambda obj, folder: nn.Parameter(obj),
    "assign": lambda obj, folder: nn.Parameter(PLAIN.copy()).assign(obj),
    "to_numpy": lambda obj, folder: xbp.asarray(xbp.to_numpy(obj)),
}


@quiet
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_them(door: str, name: str, tmp_path: Path) -> None:
    if (door, name) == ("predict", "a loader"):
        assert predict(Loader()).shape == (2, 2)  # for batches
        return
    with pytest.raises(InputError) as caught:
        DOORS[door](REFUSED[name][0](), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@quiet
def test_tensors_of_few_bits_are_saved_and_loaded(tmp_path: Path) -> None:
    half = torch_().tensor(PLAIN, dtype=torch_().bfloat16)
    save_weights({"weight": half}, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded["weight"].dtype == "float32"
    for state in (loaded, {"weight": half}):
        layer = linear()
        layer.load_state_dict(state)
        np.testing.assert_array_equal(layer.state_dict()["weight"], PLAIN)


def test_a_complex_state_is_refused_before_anything_has_changed() -> None:
    layer = nn.Sequential(linear(), linear())
    before = layer.state_dict()
    with pytest.raises(InputError, match=r"'1\.weight' is complex in place of float64"):
        layer.load_state_dict({"0.weight": PLAIN, "1.weight": PLAIN + 0j})
    assert np.array_equal(layer.state_dict()["0.weight"], before["0.weight"])


@pytest.mark.parametrize("state", [None, [], "weights.safetensors", np.ones(2)])
def test_a_state_is_a_dict(state: Any) -> None:
    with pytest.raises(InputError, match=f"got a {type(state).__name__}"):
        linear().load_state_dict(state)


def test_a_trainable_parameter_is_floating() -> None:
    with pytest.raises(InputError, match="floating-point numbers, got int64"):
        nn.Parameter(np.arange(3))
    assert nn.Parameter(np.arange(3), trainable=False).data.dtype == "int64"


@pytest.mark.parametrize("dtype", ["float16", "longdouble", ">f4"])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_parameter_has_a_dtype_of_xbp(dtype: str, trainable: bool) -> None:
    if np.dtype(dtype) == np.float64:
        pytest.skip("longdouble is float64 on this machine")
    with pytest.raises(InputError, match="unknown dtype"):
        nn.Parameter(np.ones(2, dtype), trainable=trainable)


READ_ONLY: dict[str, Callable[[Path], Any]] = {
    "a scalar": lambda folder: np.float64(1),
    "a broadcast": lambda folder: np.broadcast_to(1.0, (2, 2)),
    "a buffer": lambda folder: np.frombuffer(PLAIN.tobytes()),
    "a memory map": memory_map,
    "a data frame's": lambda folder: pandas_().DataFrame(PLAIN).to_numpy(copy=False),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_read_only_array_is_copied_by_a_parameter(name: str, tmp_path: Path) -> None:
    given = READ_ONLY[name](tmp_path)
    before = given.copy()
    parameter = nn.Parameter(given)
    parameter.add_grad(np.ones_like(parameter.data))
    optim.SGD([parameter], 0.5).step()
    np.testing.assert_array_equal(parameter.data, before - 0.5)
    if not (isinstance(given, np.ndarray) and given.flags.writeable):
        np.testing.assert_array_equal(given, before)


def test_a_parameter_of_torch_is_trained_by_xbp() -> None:
    tensor = torch_().ones(2, requires_grad=True)
    parameter = nn.Parameter(tensor)
    parameter.add_grad(torch_().ones(2))
    optim.SGD([parameter], 0.5).step()
    assert parameter.data.tolist() == tensor.tolist() == [0.5, 0.5]


@quiet
@pytest.mark.parametrize("kind", [np.matrix, np.ma.masked_array, Quantity])
def test_a_layer_computes_with_no_class_of_its_own_rules(kind: Callable[[Any], Any]) -> None:
    """A matrix class, whose product is not that of entries."""
    with pytest.raises(InputError):
        nn.ReLU()(kind(PLAIN))


def test_a_subclass_belongs_to_the_library_of_its_base() -> None:
    x = PLAIN.view(Mine)
    assert library_of(x) is library_of(PLAIN)
    np.testing.assert_array_equal(linear()(x), linear()(PLAIN))
    assert library_of(Loader()) is None
