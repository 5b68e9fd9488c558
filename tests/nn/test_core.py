"""Parameter, Layer and Sequential: names, gradients, state, places, and what each refuses."""

import copy
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.backend import Backend, backend_of, dtype_name, find_backend, why_unavailable
from xbp.errors import BackendError, InputError
from xbp.random import Stream, generator
from xbp.testing import oracles

HERE = xbp.available_backends()
PAIRS = list(permutations(HERE, 2))


@pytest.fixture(params=HERE)
def backend(request: pytest.FixtureRequest) -> Backend:
    return find_backend(request.param)


@pytest.fixture
def strict() -> Backend:
    reason = why_unavailable("array_api_strict")
    if reason is not None:
        pytest.skip(reason)
    return find_backend("array_api_strict")


@pytest.fixture(autouse=True)
def _layers_are_born_on_numpy() -> Any:
    with xbp.use_backend("numpy"):
        yield


class Block(nn.Layer):
    """Parameters of its own, sublayers, and lists of them; its forward is never asked for."""

    def __init__(self) -> None:
        self.inner = nn.Linear(2, 3, rng=0)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.many = [nn.Linear(3, 3, rng=1), nn.ReLU(), nn.Linear(3, 2, bias=False, rng=2)]
        self.pair = (nn.Tanh(), nn.Sequential(nn.Linear(2, 2, rng=3)))
        self.size = 3
        self.nothing = None
        self.mixed = ["relu", 3, nn.Linear(2, 1, bias=False, rng=4)]


NAMES = [
    "scale",
    "inner.weight",
    "inner.bias",
    "many.0.weight",
    "many.0.bias",
    "many.2.weight",
    "pair.1.0.weight",
    "pair.1.0.bias",
    "mixed.2.weight",
]


class Twice(nn.Layer):
    """One layer under two names."""

    def __init__(self) -> None:
        self.first = nn.Linear(2, 2, rng=0)
        self.second = self.first


def mlp(dtype: str = "float64") -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 4, dtype=dtype, rng=0),
        nn.Tanh(),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4, dtype=dtype, rng=1), nn.Dropout(0.3)),
        nn.Linear(4, 2, dtype=dtype, rng=2),
    )


def equal(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> bool:
    """Bit for bit, dtypes included."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


def assert_one_sentence(caught: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- Parameter -----------------------------------------------------------------------------------


def test_a_parameter_holds_its_array_without_a_copy_and_has_no_gradient() -> None:
    data = np.ones((2, 3))
    parameter = nn.Parameter(data)
    assert parameter.data is data
    assert parameter.grad is None
    assert parameter.shape == (2, 3)
    assert repr(parameter) == "Parameter(shape=(2, 3), dtype=float64)"


@pytest.mark.parametrize("thing", [[1.0], 1.0, "weight", None])
def test_a_parameter_of_no_array_is_one_sentence(thing: Any) -> None:
    with pytest.raises(InputError) as caught:
        nn.Parameter(thing)
    assert_one_sentence(caught, type(thing).__name__, "xbp.asarray")


def test_a_misspelt_attribute_of_a_parameter_is_an_error() -> None:
    with pytest.raises(AttributeError):
        nn.Parameter(np.ones(1)).gard = np.ones(1)  # type: ignore[attr-defined]


def test_a_parameter_is_drawn_on_the_current_backend(backend: Backend) -> None:
    draw = lambda shape, rng: rng.normal(size=shape)  # noqa: E731
    with xbp.use_backend(backend.name):
        parameter = nn.Parameter.draw((2, 3), draw, generator(4), "float32")
    assert backend_of(parameter.data) == backend
    assert dtype_name(parameter.data.dtype) == "float32"
    expected = default_rng(4).normal(size=(2, 3)).astype(np.float32)
    assert xbp.to_numpy(parameter.data).tolist() == expected.tolist()


def test_gradients_add_up_and_the_arrays_given_stay_as_they_are(backend: Backend) -> None:
    parameter = nn.Parameter(backend.asarray([0.0, 0.0]))
    given = [
        backend.asarray([1.0, 2.0]),
        backend.asarray([10.0, 20.0]),
        backend.asarray([0.5, 0.5]),
    ]
    totals = []
    for gradient in given:
        parameter.add_grad(gradient)
        totals.append(xbp.to_numpy(parameter.grad).tolist())
    assert totals == [[1.0, 2.0], [11.0, 22.0], [11.5, 22.5]]
    assert [xbp.to_numpy(g).tolist() for g in given] == [[1.0, 2.0], [10.0, 20.0], [0.5, 0.5]]
    assert backend_of(parameter.grad) == backend
    parameter.zero_grad()
    assert parameter.grad is None


def test_a_gradient_may_be_a_view_of_something_that_stays_as_it_is() -> None:
    whole = np.arange(6.0).reshape(2, 3)
    parameter = nn.Parameter(np.zeros((3, 2)))
    parameter.add_grad(whole.T)
    parameter.add_grad(whole.T)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == (2 * whole.T).tolist()
    assert whole.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 2), "float64"), ((3,), "float64"), ((1, 3), "float64"), ((), "float64"),
     ((2, 3, 1), "float64"), ((2, 3), "float32"), ((2, 3), "int64"), ((2, 3), "complex128")],
)  # fmt: skip
def test_a_gradient_of_another_shape_or_dtype_is_one_sentence(
    backend: Backend, shape: tuple[int, ...], dtype: str
) -> None:
    parameter = nn.Parameter(backend.asarray(np.zeros((2, 3))))
    good = backend.asarray(np.ones((2, 3)))
    bad = backend.asarray(np.ones(shape), dtype=dtype)
    for _ in range(2):  # as the first gradient, and as one to be added
        with pytest.raises(InputError) as caught:
            parameter.add_grad(bad)
        assert_one_sentence(caught, str(shape), "(2, 3)", dtype, "float64", "backward")
        parameter.add_grad(good)
    assert xbp.to_numpy(parameter.grad).tolist() == np.full((2, 3), 2.0).tolist()


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_a_gradient_of_another_library_is_one_sentence(mine: str, theirs: str) -> None:
    parameter = nn.Parameter(find_backend(mine).asarray([0.0]))
    with pytest.raises(BackendError) as caught:
        parameter.add_grad(find_backend(theirs).asarray([1.0]))
    assert_one_sentence(caught, mine, theirs, "backward")
    assert parameter.grad is None


@pytest.mark.parametrize("source", HERE)
def test_a_value_of_any_library_is_assigned_in_place(backend: Backend, source: str) -> None:
    data = backend.asarray([0.0, 0.0], dtype="float32")
    parameter = nn.Parameter(data)
    value = find_backend(source).asarray([1.0, 0.1])
    parameter.assign(value)
    assert parameter.data is data
    assert xbp.to_numpy(data).tolist() == [1.0, np.float32(0.1)]
    value[0] = 5.0
    assert xbp.to_numpy(data).tolist()[0] == 1.0


def test_a_parameter_that_is_a_numpy_scalar_is_refused_or_trained() -> None:
    try:
        parameter = nn.Parameter(np.float64(1.0))
    except InputError:
        return
    parameter.add_grad(np.array(1.0))
    optim.SGD([parameter], lr=0.5).step()
    assert parameter.data == 0.5


# --- what a layer is made of ---------------------------------------------------------------------


def test_parameters_are_named_after_attributes_list_places_and_nesting() -> None:
    block = Block()
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert [id(p) for p in block.parameters()] == [id(p) for _, p in block.named_parameters()]
    assert list(block.state_dict()) == NAMES
    children = ["inner", "many.0", "many.1", "many.2", "pair.0", "pair.1", "mixed.2"]
    assert [name for name, _ in block.children()] == children


def test_sequential_names_its_layers_by_their_places() -> None:
    names = ["0.weight", "0.bias", "2.1.weight", "2.1.bias", "3.weight", "3.bias"]
    assert [name for name, _ in mlp().named_parameters()] == names


def test_a_shared_layer_has_its_parameters_once_but_its_state_under_each_name() -> None:
    model = Twice()
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias"]
    assert len(model.parameters()) == 2
    state = model.state_dict()
    assert list(state) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert state["first.weight"].tolist() == state["second.weight"].tolist()
    model.load_state_dict({name: array + 1 for name, array in state.items()})
    assert model.second is model.first
    assert model.first.state_dict()["bias"].tolist() == (state["first.bias"] + 1).tolist()


def test_a_shared_parameter_is_moved_and_converted_once(strict: Backend) -> None:
    model = Twice()
    tied = nn.Linear(2, 2, rng=1)
    tied.weight = model.first.weight
    pair = nn.Sequential(model.first, tied).to(strict).astype("float64")
    assert tied.weight is model.first.weight
    assert backend_of(tied.weight.data) == strict
    assert [name for name, _ in pair.named_parameters()] == ["0.weight", "0.bias", "1.bias"]


def test_a_layer_without_parameters_has_no_state_and_no_backend() -> None:
    layer = nn.ReLU()
    assert layer.parameters() == []
    assert layer.state_dict() == {}
    assert layer.backend() is None
    layer.load_state_dict({})
    assert layer.to("numpy") is layer


# --- state ---------------------------------------------------------------------------------------


def test_a_state_holds_numpy_copies(backend: Backend) -> None:
    model = Block().to(backend)
    state = model.state_dict()
    expected = Block().state_dict()
    assert {type(array) for array in state.values()} == {np.ndarray}
    assert equal(state, expected)
    for array in state.values():
        array += 1
    assert equal(model.state_dict(), expected)
    before = model.state_dict()
    model.scale.data[...] = 5.0
    assert before["scale"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("source", HERE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_of_any_library_is_loaded_in_place(
    backend: Backend, source: str, dtype: str
) -> None:
    model = Block().to(backend)
    arrays = [parameter.data for parameter in model.parameters()]
    wanted = {name: array * np.pi for name, array in Block().astype("float64").state_dict().items()}
    place = find_backend(source)
    state = {name: place.asarray(array, dtype=dtype) for name, array in wanted.items()}
    model.load_state_dict(state)
    assert all(p.data is a for p, a in zip(model.parameters(), arrays, strict=True))
    expected = {name: array.astype(dtype).astype("float32") for name, array in wanted.items()}
    assert equal(model.state_dict(), expected)
    for array in state.values():
        array[...] = 0.0
    assert equal(model.state_dict(), expected)


def test_a_state_in_another_order_is_the_same_state() -> None:
    state = {name: array + 1 for name, array in Block().state_dict().items()}
    model = Block()
    model.load_state_dict(dict(reversed(state.items())))
    assert equal(model.state_dict(), state)


def changed(**changes: Any) -> dict[str, Any]:
    """A state of Block, all its entries other than a new Block's; None takes one out."""
    state: dict[str, Any] = {name: array + 1 for name, array in Block().state_dict().items()}
    state |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "problems"),
    [
        ({}, NAMES),
        (changed(scale=None), ["'scale' is missing"]),
        (changed(pair__1__0__bias=None), ["'pair.1.0.bias' is missing"]),
        (changed(extra=np.ones(1)), ["'extra' is unknown"]),
        (changed(scale=np.ones(4)), ["'scale' has shape (4,) in place of (3,)"]),
        (changed(scale=np.ones((3, 1))), ["'scale' has shape (3, 1) in place of (3,)"]),
        (changed(scale=np.array(1.0)), ["'scale' has shape () in place of (3,)"]),
        (
            changed(
                scale=None,
                inner__bias=None,
                extra=np.ones(1),
                other=np.ones(1),
                inner__weight=np.ones((2, 3)),
                many__0__weight=np.ones(9),
            ),
            [
                "'scale' is missing",
                "'inner.bias' is missing",
                "'extra' is unknown",
                "'other' is unknown",
                "'inner.weight' has shape (2, 3) in place of (3, 2)",
                "'many.0.weight' has shape (9,) in place of (3, 3)",
            ],
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing_and_each_problem_is_named(
    backend: Backend, state: dict[str, Any], problems: list[str]
) -> None:
    model = Block().to(backend)
    before = model.state_dict()
    with pytest.raises(InputError) as caught:
        model.load_state_dict(state)
    assert_one_sentence(caught, "does not fit this Block", *problems)
    assert equal(model.state_dict(), before)


def test_a_state_with_text_in_place_of_numbers_changes_nothing() -> None:
    model = Block()
    before = model.state_dict()
    with pytest.raises(InputError):
        model.load_state_dict(changed(pair__1__0__bias=np.array(["a", "b"])))
    assert equal(model.state_dict(), before)


def test_a_state_of_lists_is_loaded_or_refused_in_one_sentence() -> None:
    model = nn.Linear(2, 1, bias=False)
    try:
        model.load_state_dict({"weight": [[1.0, 2.0]]})
    except InputError:
        return
    assert model.weight.data.tolist() == [[1.0, 2.0]]


# --- places and dtypes ---------------------------------------------------------------------------


def test_a_model_goes_round_all_backends_and_comes_back_bit_for_bit() -> None:
    model = Block()
    state, parameters = model.state_dict(), model.parameters()
    for index, parameter in enumerate(parameters):
        parameter.add_grad(np.full(parameter.shape, index, dtype=np.float32))
    for name in [*HERE, *reversed(HERE)]:
        place = find_backend(name)
        assert model.to(name) is model
        assert model.backend() == place
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
        assert all(backend_of(p.data) == place for p in parameters)
        assert all(backend_of(p.grad) == place for p in parameters)
        assert equal(model.state_dict(), state)
    gradients = [np.unique(xbp.to_numpy(p.grad)).tolist() for p in parameters]
    assert gradients == [[float(index)] for index in range(len(parameters))]


def test_a_model_goes_to_a_device(strict: Backend) -> None:
    there = find_backend("array_api_strict", device="device2")
    model = nn.Linear(2, 1, rng=0)
    assert model.to("array_api_strict", device="device2").backend() == there
    assert model.to(strict).backend() == strict
    assert model.to(there).backend() == there


def test_moving_to_where_it_is_keeps_the_values_in_place(backend: Backend) -> None:
    parameter = nn.Parameter(backend.asarray([1.0, 2.0]))
    data = parameter.data
    parameter.to(backend)
    parameter.data[0] = 3.0
    assert xbp.to_numpy(data).tolist() == [3.0, 2.0]


def test_a_model_stays_where_it_is_if_the_backend_does_not_exist() -> None:
    model = nn.Linear(2, 1, rng=0)
    with pytest.raises(BackendError, match="there is no backend 'nunpy'"):
        model.to("nunpy")
    assert model.backend() == find_backend("numpy")


def test_a_moved_model_computes_the_same(backend: Backend) -> None:
    x = default_rng(0).normal(size=(5, 3))
    model = mlp()
    expected = model(x)
    found = model.to(backend)(backend.asarray(x))
    assert backend_of(found) == backend
    # Sums of four products of order one, which another library may take in another order.
    np.testing.assert_allclose(xbp.to_numpy(found), expected, rtol=0, atol=1e-14)


def test_astype_converts_values_and_gradients_in_every_backend(backend: Backend) -> None:
    model = mlp().to(backend)
    double = model.state_dict()
    for parameter in model.parameters():
        parameter.add_grad(backend.xp.ones_like(parameter.data))
    for dtype in ("float32", np.float64, backend.xp.float32):
        assert model.astype(dtype) is model
        name = dtype_name(dtype)
        assert {dtype_name(p.data.dtype) for p in model.parameters()} == {name}
        assert {dtype_name(p.grad.dtype) for p in model.parameters() if p.grad is not None} == {
            name
        }
        assert all(backend_of(p.data) == backend for p in model.parameters())
        rounded = {key: array.astype("float32").astype(name) for key, array in double.items()}
        assert equal(model.state_dict(), rounded)
        x = backend.asarray(np.ones((1, 3)), dtype=name)
        assert dtype_name(model(x).dtype) == name


def test_an_unknown_dtype_changes_nothing() -> None:
    model = nn.Linear(2, 1, rng=0)
    with pytest.raises(InputError, match="unknown dtype 'float33'"):
        model.astype("float33")
    assert model.weight.data.dtype == np.float32


LAYERS: list[tuple[Callable[[], nn.Layer], tuple[int, ...], str]] = [
    (lambda: nn.Linear(3, 2, rng=0), (4, 3), "Linear(3, 2, bias=True)"),
    (lambda: nn.Conv2d(1, 2, 3, rng=0), (1, 1, 4, 4), "Conv2d(1, 2, kernel_size=(3, 3)"),
    (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2, rng=0)),
        (4, 3),
        "Linear(3, 2, bias=True)",
    ),
]


@pytest.mark.parametrize(("make", "shape", "name"), LAYERS)
@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_mixing_backends_is_one_sentence_that_names_the_layer_and_both_sides(
    mine: str, theirs: str, make: Callable[[], nn.Layer], shape: tuple[int, ...], name: str
) -> None:
    model, place = make().to(mine), find_backend(theirs)
    x = place.asarray(np.zeros(shape, np.float32))
    for use in (model, model.forward):
        with pytest.raises(BackendError) as caught:
            use(x)
        sides = (f"input on {place}", f"parameters are on {find_backend(mine)}")
        assert_one_sentence(caught, name, *sides, ".to(", "xbp.asarray(")


def test_mixing_devices_is_one_sentence_too(strict: Backend) -> None:
    model = nn.Linear(3, 2, rng=0).to("array_api_strict", device="device2")
    with pytest.raises(BackendError) as caught:
        model(strict.asarray(np.zeros((4, 3), np.float32)))
    assert_one_sentence(caught, "Linear(3, 2, bias=True)", "'device1'", "'device2'")


@pytest.mark.parametrize(("make", "shape", "name"), LAYERS)
def test_input_of_another_dtype_is_one_sentence_that_names_the_layer_and_both_dtypes(
    backend: Backend, make: Callable[[], nn.Layer], shape: tuple[int, ...], name: str
) -> None:
    model = make().to(backend)
    with pytest.raises(InputError) as caught:
        model(backend.asarray(np.zeros(shape), dtype="float64"))
    advice = ("xbp.asarray(x, dtype='float32')", ".astype('float64')")
    assert_one_sentence(caught, name, "got float64 input", "are float32", *advice)
    for dtype in ("int64", "uint8", "bool"):
        with pytest.raises(InputError) as caught:
            model(backend.asarray(np.zeros(shape), dtype=dtype))
        assert_one_sentence(caught, "needs floating-point input", f"got {dtype}", "xbp.asarray(")


@pytest.mark.parametrize("x", [[[1.0, 2.0, 3.0]], 1.0, "x", None])
def test_input_that_is_no_array_is_one_sentence(x: Any) -> None:
    for layer in (nn.Linear(3, 2), nn.ReLU(), mlp()):
        with pytest.raises(InputError) as caught:
            layer(x)
        assert_one_sentence(caught, type(x).__name__, "xbp.asarray")


def test_a_file_mapped_into_memory_is_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = nn.Linear(3, 2, rng=0)
    assert model(mapped).tolist() == model(np.ones((4, 3), np.float32)).tolist()


# --- forward and backward ------------------------------------------------------------------------


def linear_chain(layer: nn.Linear) -> nn.Sequential:
    """The same layer twice."""
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied_chain(layer: nn.Linear) -> nn.Sequential:
    """Another layer with the same parameters."""
    other = nn.Linear(3, 3, dtype="float64")
    other.weight, other.bias = layer.weight, layer.bias
    return nn.Sequential(layer, nn.Tanh(), other)


@pytest.mark.parametrize("chain", [linear_chain, tied_chain])
def test_weights_that_are_used_twice_get_the_sum_of_both_gradients(
    chain: Callable[[nn.Linear], nn.Sequential],
) -> None:
    layer = nn.Linear(3, 3, dtype="float64", rng=0)
    model = chain(layer)
    rng = default_rng(1)
    x, dy = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    start = layer.state_dict()
    assert len(model.parameters()) == 2

    dx = model.forward(x)[1](dy)
    found = {name: xbp.to_numpy(p.grad) for name, p in layer.named_parameters()}
    for name, value in start.items():

        def loss(changed: oracles.F64, name: str = name) -> float:
            layer.load_state_dict(start | {name: changed})
            return float(np.sum(dy * model(x)))

        # Good to about 1e-10 for derivatives of order one, says the oracle; these are up to ten.
        np.testing.assert_allclose(found[name], oracles.numeric_gradient(loss, value), atol=1e-8)
    layer.load_state_dict(start)
    expected = oracles.numeric_gradient(lambda changed: float(np.sum(dy * model(changed))), x)
    np.testing.assert_allclose(dx, expected, atol=1e-8)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_calls_of_one_layer_have_two_backwards_in_any_order(order: tuple[int, int]) -> None:
    model, rng = mlp(), default_rng(1)
    xs, dys = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 2))

    def gradients() -> list[NDArray[Any]]:
        found = [xbp.to_numpy(parameter.grad) for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.zero_grad()
        return found

    separate = []
    for x, dy in zip(xs, dys, strict=True):
        dx = model.forward(x, training=True, rng=7)[1](dy)
        separate.append((dx, gradients()))

    backwards = [model.forward(x, training=True, rng=7)[1] for x in xs]
    for index in order:
        assert backwards[index](dys[index]).tolist() == separate[index][0].tolist()
    for total, first, second in zip(gradients(), separate[0][1], separate[1][1], strict=True):
        assert total.tolist() == (first + second).tolist()  # a sum of two has one order


def test_a_backward_that_runs_twice_adds_twice() -> None:
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    x, dy = default_rng(1).normal(size=(4, 3)), default_rng(2).normal(size=(4, 2))
    backward = layer.forward(x)[1]
    backward(dy)
    once = xbp.to_numpy(layer.weight.grad)
    backward(dy)
    assert xbp.to_numpy(layer.weight.grad).tolist() == (2 * once).tolist()


def test_a_call_leaves_nothing_on_the_layers_and_its_arrays_as_they_were() -> None:
    model = mlp()
    layers = [model, *model, *model[2].layers]  # type: ignore[attr-defined]
    before = [copy.copy(vars(layer)) for layer in layers]
    x, dy = default_rng(1).normal(size=(4, 3)), default_rng(2).normal(size=(4, 2))
    kept = x.tolist(), dy.tolist(), model.state_dict()
    model.forward(x, training=True, rng=0)[1](dy)
    model(x)
    assert [vars(layer) for layer in layers] == before
    assert (x.tolist(), dy.tolist()) == kept[:2]
    assert equal(model.state_dict(), kept[2])


def test_calling_a_layer_is_its_forward_in_inference() -> None:
    model, x = mlp(), default_rng(1).normal(size=(4, 3))
    assert model(x).tolist() == model.forward(x)[0].tolist()
    assert model(x).tolist() != model.forward(x, training=True, rng=0)[0].tolist()


# --- Sequential ----------------------------------------------------------------------------------


def test_sequential_is_its_layers_one_after_the_other() -> None:
    layers = [nn.Linear(3, 4, dtype="float64", rng=0), nn.Tanh(), nn.Linear(4, 2, dtype="float64")]
    x, dy = default_rng(1).normal(size=(5, 3)), default_rng(2).normal(size=(5, 2))
    model = nn.Sequential(*layers)
    y, backward = model.forward(x)
    hidden, backwards = x, []
    for layer in layers:
        hidden, one = layer.forward(hidden)
        backwards.append(one)
    assert y.tolist() == hidden.tolist()
    dx = backward(dy)
    for one in reversed(backwards):
        dy = one(dy)
    assert dx.tolist() == dy.tolist()


def test_sequential_is_indexed_counted_and_iterated() -> None:
    layers = (nn.Linear(2, 2), nn.ReLU(), nn.Tanh())
    model = nn.Sequential(*layers)
    assert len(model) == 3
    assert tuple(model) == model.layers == layers
    assert (model[0], model[-1]) == (layers[0], layers[2])
    with pytest.raises(IndexError):
        model[3]


def test_sequential_of_nothing_is_the_identity() -> None:
    model, x = nn.Sequential(), np.ones(3)
    y, backward = model.forward(x, training=True)
    assert y is x
    assert backward(x) is x
    assert model(x) is x
    assert repr(model) == "Sequential(\n)"


def test_sequential_shows_its_layers_one_a_line() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.25), nn.Tanh()))
    assert repr(model).splitlines() == [
        "Sequential(",
        "  (0): Linear(2, 3, bias=True)",
        "  (1): Sequential(",
        "    (0): Dropout(p=0.25)",
        "    (1): Tanh()",
        "  )",
        ")",
    ]


@pytest.mark.parametrize(
    "thing", [nn.ReLU, np.tanh, None, "relu", nn.Parameter(np.ones(1)), [nn.ReLU()]]
)
def test_what_is_no_layer_is_one_sentence_that_says_where(thing: Any) -> None:
    with pytest.raises(InputError) as caught:
        nn.Sequential(nn.Tanh(), thing)
    assert_one_sentence(caught, "argument 1", type(thing).__name__)


def test_each_dropout_of_a_sequential_draws_a_mask_of_its_own(backend: Backend) -> None:
    x = backend.asarray(np.ones(200))
    outputs = []
    for dropouts in ([0.5], [0.0, 0.5], [0.5, 0.5]):
        model = nn.Sequential(*map(nn.Dropout, dropouts))
        outputs.append(xbp.to_numpy(model.forward(x, training=True, rng=3)[0]))
        assert model(x) is x
    one, same, both = outputs
    assert one.tolist() == same.tolist()  # p = 0 draws nothing
    assert set(both.tolist()) == {0.0, 4.0}
    # A quarter of 200 is 50, six standard deviations are 37; one mask used twice keeps 100.
    assert 13 < np.count_nonzero(both) < 87
    assert not np.any((both != 0) & (one == 0))  # the first mask is the same as alone


# --- trace ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make_rng", [lambda: 5, lambda: default_rng(5), lambda: Stream(5, step=2)])
def test_trace_gives_each_output_of_one_forward_masks_included(
    training: bool, make_rng: Callable[[], Any]
) -> None:
    model, x = mlp(), default_rng(1).normal(size=(6, 3))
    steps = list(nn.trace(model, x, training=training, rng=make_rng()))
    assert [name for name, _, _ in steps] == ["0", "1", "2.0", "2.1", "2.2", "3"]
    inner = model[2]
    assert isinstance(inner, nn.Sequential)
    layers = [model[0], model[1], *inner, model[3]]
    assert [layer for _, layer, _ in steps] == layers
    for index, (_, _, output) in enumerate(steps):
        beginning = nn.Sequential(*layers[: index + 1])
        expected = beginning.forward(x, training=training, rng=make_rng())[0]
        assert output.tolist() == expected.tolist()
    whole = model.forward(x, training=training, rng=make_rng())[0]
    assert steps[-1][2].tolist() == whole.tolist()


def test_trace_of_a_single_layer_is_that_layer() -> None:
    layer, x = nn.Dropout(0.5), np.ones(50)
    steps = list(nn.trace(layer, x, training=True, rng=3))
    assert [(name, traced) for name, traced, _ in steps] == [("", layer)]
    assert steps[0][2].tolist() == layer.forward(x, training=True, rng=3)[0].tolist()


# --- layers of one's own -------------------------------------------------------------------------


def test_a_layer_without_a_forward_says_what_to_define() -> None:
    class Unfinished(nn.Layer):
        pass

    for use in (Unfinished(), Unfinished().forward, nn.Sequential(Unfinished())):
        with pytest.raises(
            NotImplementedError, match=r"^Unfinished has no forward; define forward\("
        ):
            use(np.ones(1))


def test_an_activation_without_a_formula_says_what_to_define() -> None:
    class Unfinished(nn.Elementwise):
        pass

    with pytest.raises(NotImplementedError, match=r"^Unfinished has no formula; define formula\("):
        Unfinished()(np.ones(1))


def test_a_layer_shows_its_class_and_its_options() -> None:
    class Shown(nn.Layer):
        def options(self) -> str:
            return "3, p=0.5"

    assert repr(Shown()) == str(Shown()) == "Shown(3, p=0.5)"
    assert repr(Block()) == "Block()"


def test_trainers_and_optimizers_say_what_they_are() -> None:
    layer = nn.Linear(2, 1, rng=0)
    optimizer = optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    assert repr(optimizer).startswith("SGD(2 parameters, lr=0.1, ")
    assert "momentum=0.9" in repr(optimizer)
    trainer = repr(xbp.Trainer(layer, nn.MSELoss(), optimizer, rng=3))
    assert trainer.startswith("Trainer(Linear, MSELoss(") and trainer.endswith(", rng=3)")


def test_a_summary_is_a_function_of_nn() -> None:
    (row,) = nn.summary(nn.Linear(3, 2, rng=0), (3,))
    assert (row.output_shape, row.parameters) == ((2,), 8)
