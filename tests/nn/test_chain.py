"""Chains of operations: layers that join, changes that a plan notices, results."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from nn.cases import LAYERS

import xbp
from xbp import accelerators, nn, parallel, primitives
from xbp.errors import BackendError, InputError
from xbp.nn.operation import OperationChain
from xbp.nn.sequential import plan_of
from xbp.testing import assert_no_host_sync
from xbp.testing.cases import Case

AFTER: dict[str, Callable[[], list[nn.Layer]]] = {
    "relu pool": lambda: [nn.ReLU(), nn.MaxPool2d(2)],
    "relu": lambda: [nn.ReLU()],
    "pool": lambda: [nn.MaxPool2d((2, 3))],
    "relu relu pool": lambda: [nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)],
    "pool relu": lambda: [nn.MaxPool2d(2), nn.ReLU()],
    "relu overlapping pool": lambda: [nn.ReLU(), nn.MaxPool2d(3, 1)],
    "relu padded pool": lambda: [nn.ReLU(), nn.MaxPool2d(2, padding=1)],
    "relu pool of one": lambda: [nn.ReLU(), nn.MaxPool2d(1)],
    "tanh pool": lambda: [nn.Tanh(), nn.MaxPool2d(2)],
    "relu average": lambda: [nn.ReLU(), nn.AvgPool2d(2)],
    "flatten linear relu linear": lambda: [
        nn.Flatten(),
        nn.Linear(108, 7, dtype="float64", rng=0),
        nn.ReLU(),
        nn.Linear(7, 5, bias=False, dtype="float64", rng=1),
    ],
    "softplus flatten linear relu": lambda: [
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(108, 7, dtype="float64", rng=0),
        nn.ReLU(),
    ],
}


def images(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def small(dtype: str = "float64") -> nn.Sequential:
    """A convolution, ReLU, a linear layer and tanh: one run."""
    conv = nn.Conv2d(1, 2, 3, dtype=dtype, rng=0)
    linear = nn.Linear(32, 3, dtype=dtype, rng=1)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear, nn.Tanh())


def by_hand(layers: list[nn.Layer], x: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The forward, layer by layer."""
    backwards: list[Any] = []
    for layer in layers:
        x, step = layer.forward(x, training=True)
        backwards.append(step)

    def backward(dy: Any) -> Any:
        for step in reversed(backwards):
            dy = step(dy)
        return dy

    return x, backward


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("after", AFTER)
def test_a_run_gives_what_its_layers_give(
    after: str, bias: bool, nested: bool, backend: Any
) -> None:
    def make() -> list[nn.Layer]:
        conv = nn.Conv2d(2, 3, 3, bias=bias, dtype="float64", rng=0)
        return [conv, *AFTER[after]()]

    layers, plain = make(), make()
    model = nn.Sequential(*layers)
    if nested:
        model = nn.Sequential(nn.Sequential(layers[0]), nn.Sequential(*layers[1:]))
    x = backend.asarray(images(5, 2, 8, 8))
    for parameter in (*model.parameters(), *nn.Sequential(*plain).parameters()):
        parameter.to(backend)
    y, backward = model.forward(x, training=True)
    expected, expected_backward = by_hand(plain, x)
    dy = backend.asarray(images(*y.shape, seed=1))
    pairs = [(y, expected), (model(x), expected), (backward(dy), expected_backward(dy))]
    theirs = nn.Sequential(*plain).parameters()
    pairs += [(p.grad, q.grad) for p, q in zip(model.parameters(), theirs, strict=True)]
    for one, other in pairs:
        # The same sums in other orders, of at most 200 terms of order 1.
        np.testing.assert_allclose(xbp.to_numpy(one), xbp.to_numpy(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("off", [False, True])
def test_a_parameter_of_several_layers_has_the_sum_of_their_gradients(off: bool) -> None:
    def make() -> list[nn.Layer]:
        linear = nn.Linear(4, 4, dtype="float64", rng=0)
        return [linear, nn.Tanh(), linear, nn.ReLU(), linear]

    layers, plain, x = make(), make(), images(9, 4)
    with accelerators.disabled() if off else nullcontext():
        y, backward = nn.Sequential(*layers).forward(x, training=True)
        _, expected_backward = by_hand(plain, x)
        backward(np.ones_like(y))
        expected_backward(np.ones_like(y))
    for p, q in zip(layers[0].parameters(), plain[0].parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-13)


def test_nested_models_are_one_run() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Flatten()))
    model = nn.Sequential(nn.Conv2d(1, 1, 3, rng=0), inner, nn.Linear(4, 2, rng=0))
    (run,) = plan_of(model).parts
    assert isinstance(run, OperationChain)
    assert [type(layer) for layer in run.layers] == [
        *(nn.Conv2d, nn.ReLU, nn.Tanh, nn.Flatten, nn.Linear)
    ]


# --- who joins -----------------------------------------------------------------------------------


class Forward(nn.ReLU):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        y, backward = super().forward(x, training=training, rng=rng)
        return 2 * y, lambda dy: 2 * backward(dy)


class Called(nn.ReLU):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class Checked(nn.ReLU):
    def check_input(self, x: Any, *, integers: bool = False) -> Any:
        return super().check_input(x, integers=integers)


class CheckedGradient(nn.ReLU):
    def check_gradient(self, xp: Any, dy: Any, shape: Any) -> None:
        return super().check_gradient(xp, dy, shape)


class Told(nn.ReLU):
    """A subclass with nothing but a name."""


def patched() -> nn.Layer:
    layer = nn.ReLU()
    layer.forward = lambda x, **options: (x, lambda dy: dy)  # type: ignore[method-assign, misc, assignment]
    return layer


def pooled() -> nn.Layer:
    layer = nn.BatchNorm1d(2)
    nn.pool_statistics(layer, parallel.group("alone"))
    return layer


ALONE: dict[str, Callable[[], nn.Layer]] = {
    "sums over processes": pooled,
    "a forward of its own": Forward,
    "a call of its own": Called,
    "a check of its own": Checked,
    "a check of gradients of its own": CheckedGradient,
    "an instance's forward": patched,
    "no operation": nn.Softplus,
    "dropout": nn.Dropout,
}


@pytest.mark.parametrize("who", ALONE)
def test_who_has_a_way_of_its_own_is_in_no_run(who: str) -> None:
    other = ALONE[who]()
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.ReLU(), other, nn.ReLU(), nn.Tanh())
    first, alone, last = plan_of(model).parts
    assert isinstance(first, OperationChain) and alone is other and isinstance(last, OperationChain)


def test_two_with_ways_of_their_own_are_no_run() -> None:
    layers = [Forward(), Called()]
    assert plan_of(nn.Sequential(*layers)).parts == layers


def test_a_subclass_without_a_way_of_its_own_joins() -> None:
    (run,) = plan_of(nn.Sequential(nn.ReLU(), Told())).parts
    assert isinstance(run, OperationChain)


def test_one_operation_needs_no_run() -> None:
    model = nn.Sequential(nn.Linear(2, 2, rng=0), nn.Dropout(), nn.ReLU())
    assert plan_of(model).parts == list(model.layers)


def test_a_subclass_is_called_as_it_is() -> None:
    conv, x = nn.Conv2d(2, 3, 3, rng=0), images(4, 2, 9, 9).astype("float32")
    plain = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))
    for other in (Forward(), Called()):
        assert np.array_equal(nn.Sequential(conv, other, nn.MaxPool2d(2))(x), 2 * plain(x))


def test_a_sequential_with_a_way_of_its_own_is_called() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x, training=training, rng=rng)
            return 2 * y, lambda dy: backward(2 * dy)

    model = nn.Sequential(nn.ReLU(), Twice(nn.ReLU(), nn.ReLU()), nn.ReLU())
    assert model(np.array([1.0, -1.0])).tolist() == [2.0, 0.0]
    y, backward = model.forward(np.array([1.0, -1.0]))
    assert y.tolist() == [2.0, 0.0] and backward(np.ones(2)).tolist() == [2.0, 0.0]
    x = images(2, 3)
    assert Twice(nn.Tanh())(x).tobytes() == (2 * nn.Tanh()(x)).tobytes()
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        x = xbp.asarray(x)
        with assert_no_host_sync():
            Twice(nn.Tanh())(x)


# --- what a plan notices -------------------------------------------------------------------------


def other_layer(model: Any) -> None:
    model.layers = (*model.layers[:-1], nn.ReLU())


def in_a_list(model: Any) -> None:
    model.layers = list(model.layers)
    model(images(2, 1, 6, 6))
    model.layers[-1] = nn.ReLU()


def in_an_inner_model(model: Any) -> None:
    model.layers = (nn.Sequential(*model.layers), nn.ReLU())
    model(images(2, 1, 6, 6))
    model.layers[0].layers = model.layers[0].layers[:-1]


def other_option(model: Any) -> None:
    model[0].padding, model[3].weight = (1, 1), nn.Parameter(images(3, 72))
    model[3].in_features = 72


def option_in_a_list(model: Any) -> None:
    model[0].stride = [1, 1]
    model(images(2, 1, 6, 6))
    model[0].stride[0] = 2
    model[3].weight, model[3].in_features = nn.Parameter(images(3, 16)), 16


def an_option_that_is_an_array(model: Any) -> None:
    model[0].stride = np.array([1, 1])


def other_parameter(model: Any) -> None:
    model[3].weight = nn.Parameter(images(3, 32))


def no_bias(model: Any) -> None:
    model[3].bias = None


def other_data(model: Any) -> None:
    model[3].weight.data = images(3, 32)


def data_in_place(model: Any) -> None:
    model[3].weight.assign(images(3, 32))


def own_forward(model: Any) -> None:
    relu = nn.ReLU()
    model[4].forward = lambda x, training=False, rng=None: relu.forward(x)


def other_class(model: Any) -> None:
    model[4].__class__ = nn.ReLU


CHANGES = [
    *(other_layer, in_a_list, in_an_inner_model, other_option, option_in_a_list),
    *(an_option_that_is_an_array, other_parameter, no_bias, other_data, data_in_place),
    *(own_forward, other_class),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_plan_notices_a_change(change: Callable[[Any], None], training: bool) -> None:
    model, x = small(), images(2, 1, 6, 6)
    for _ in range(2):
        before = model(x)
        model.forward(x, training=True)
    change(model)
    layers = [layer for part in model.layers for layer in getattr(part, "layers", [part])]
    expected, _ = by_hand(layers, x)
    y = model.forward(x, training=True)[0] if training else model(x)
    # The same sums in other orders, of at most 72 terms of order 1.
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    same = change is an_option_that_is_an_array
    assert same or y.shape != before.shape or not np.array_equal(y, before)


def test_what_is_changed_in_place_is_noticed() -> None:
    model, x = small(), images(2, 1, 6, 6)
    model[0].stride = [1, 1]
    model(x)
    model[0].stride[0] = 2
    with pytest.raises(InputError, match=r"^Linear\(32, 3"):
        model(x)


def test_a_class_that_is_changed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.ReLU()), np.array([1.0, -1.0])
    before = model(x)
    for name, value in {
        "forward": lambda self, x, *, training=False, rng=None: (3 * x, None),
        "__call__": lambda self, x: 3 * x,
        "operation": lambda self: nn.Operation(primitives.rectify),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(nn.Tanh, name, value)
            assert model(x).tolist() == [1.0 if name == "operation" else 3.0, 0.0]
        np.testing.assert_array_equal(model(x), before)


def test_other_shapes_and_dtypes_are_taken() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2))
    for dtype in ("float32", "float64", "float32"):
        model.astype(dtype)
        for size in (4, 6, 9, 4):
            y = model(images(2, 1, size, size).astype(dtype))
            assert y.shape == (2, 2, (size - 2) // 2, (size - 2) // 2) and y.dtype == dtype


def test_only_so_many_shapes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.operation, "SHAPES", 2)
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    (run,) = plan_of(model).parts
    assert isinstance(run, OperationChain)
    remembered = []
    for size in range(1, 5):
        model(np.ones(size))
        remembered.append({shape for shape, _ in run.fitting})
    assert remembered == [{(1,)}, {(1,), (2,)}, {(3,)}, {(3,), (4,)}]


def test_an_entry_of_a_tuple_that_may_change_in_place_is_not_trusted() -> None:
    layer: Any = nn.ReLU()
    for entry, holds in ((2, True), ([2], False)):
        layer.own = (1, entry)
        assert OperationChain([layer, nn.Tanh()]).holds() == holds


def test_a_sequential_with_a_call_of_its_own_is_called() -> None:
    class Twice(nn.Sequential):
        def __call__(self, x: Any) -> Any:
            return 2 * super().__call__(x)

    patched: Any = nn.Sequential(nn.ReLU(), nn.ReLU())
    patched.forward = lambda x, **options: (2 * x, lambda dy: 2 * dy)
    for inner in (Twice(nn.ReLU(), nn.ReLU()), patched):
        model = nn.Sequential(nn.ReLU(), inner, nn.ReLU())
        assert model(np.array([1.0, -1.0])).tolist() == [2.0, 0.0]


def test_a_plan_of_nested_models_and_single_layers_is_made_once() -> None:
    inner: Any = nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Tanh())
    model = nn.Sequential(nn.Linear(4, 3, rng=0), nn.Softmax(), inner)
    plan = plan_of(model)
    assert plan_of(model) is plan
    inner.layers = list(inner.layers)  # may change in place
    assert plan_of(model) is not plan
    plan = plan_of(model)
    inner.layers.append(nn.ReLU())
    assert plan_of(model).chains[-1].layers == inner.layers[1:]


def test_a_plan_is_made_once_and_goes_with_its_model() -> None:
    model = small()
    plan = plan_of(model)
    assert plan_of(model) is plan and vars(model).keys() == {"layers"}
    twin = copy.deepcopy(model)
    assert plan_of(twin) is not plan
    gone = weakref.ref(model), weakref.ref(plan)
    del model, plan
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


def test_a_model_without_a_hash_runs() -> None:
    class Equal(nn.Sequential):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert Equal(nn.ReLU(), nn.ReLU())(np.array([1.0, -1.0])).tolist() == [1.0, 0.0]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("seen_before", [False, True])
def test_what_does_not_fit_is_refused_by_the_layer_that_it_does_not_fit(seen_before: bool) -> None:
    def refused(model: nn.Sequential, x: Any, sentence: str, error: Any = InputError) -> None:
        for run in (model, model.forward):
            with pytest.raises(error, match=sentence):
                run(x)

    model, x = small(), images(4, 1, 6, 6)
    if seen_before:
        model(x)
    for shape in ((2, 6, 6), (4, 2, 6, 6), (4, 1, 2, 6)):
        refused(model, images(*shape), r"^Conv2d\(1, 2")
    refused(model, images(4, 1, 7, 6), r"^Linear\(32, 3.* expects input .* got shape \(4, 40\)")
    refused(model, x.astype("float32"), r"^Conv2d.* got float32 input, but its parameters are")
    refused(model, np.ones((4, 1, 6, 6), int), r"^Conv2d.* needs floating-point input")
    model[3].astype("float32")
    refused(model, x, r"^Linear.* got float64 input, but its parameters are float32")
    if "array_api_strict" in xbp.available_backends():
        model[3].astype("float64").to("array_api_strict")
        refused(model, x, r"^Linear.* got input on numpy", BackendError)

    later = nn.Sequential(nn.ReLU(), nn.Linear(4, 3, dtype="float64", rng=0))
    if seen_before:
        later(images(2, 4))
    later.astype("float32")
    refused(later, images(2, 4), r"^Linear.* got float64 input, but its parameters are float32")
    refused(
        nn.Sequential(nn.Tanh(), nn.MaxPool2d(2)), images(3, 4), r"^MaxPool2d\(.* expects images"
    )


@pytest.mark.parametrize("way", [lambda b: b, nn.for_parameters], ids=["all", "parameters"])
def test_a_gradient_that_does_not_fit_is_refused_by_the_last_layer(way: Any) -> None:
    y, backward = small().forward(images(4, 1, 6, 6))
    with pytest.raises(InputError, match=r"^Tanh\(\) got .* \(3,\) as the gradient of an output"):
        way(backward)(y[0])


def test_an_operation_whose_gradient_has_another_shape_is_named() -> None:
    @primitives.dispatch.primitive
    def wrong(x: Any) -> Any:
        return x, lambda dy, wants_dx=True: (dy[:1],)

    y, gradients = primitives.chain(images(3, 2), [(primitives.tanh, ()), (wrong, ())], [(), ()])
    with pytest.raises(InputError, match=r"of an output of shape \(3, 2\) has shape \(1, 2\)"):
        gradients(y)


def test_a_layer_without_its_operation_says_what_to_define() -> None:
    class Unfinished(nn.OperationLayer):
        """Nothing."""

    with pytest.raises(NotImplementedError, match=r"Unfinished has no output_shape; define"):
        Unfinished()(np.ones(2))
    Unfinished.output_shape = lambda self, shape: shape  # type: ignore[method-assign]
    for model in (Unfinished(), nn.Sequential(nn.ReLU(), Unfinished())):
        with pytest.raises(NotImplementedError, match=r"Unfinished has no operation; define"):
            model(np.ones(2))


def test_parameters_that_changed_before_the_backward_are_noticed() -> None:
    model = small()
    for index in (0, 3):
        y, backward = model.forward(images(4, 1, 6, 6), training=True)
        model[index].weight.data -= 0.5
        with pytest.raises(InputError, match="was changed between a forward and its backward"):
            backward(y)


# --- what is left out ----------------------------------------------------------------------------


def test_a_run_without_the_gradient_of_its_input_goes_through_all_layers_backward() -> None:
    model, x = small(), images(5, 1, 6, 6)
    y, backward = model.forward(x, training=True)
    backward(y)
    wanted = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.zero_grad()
    assert nn.for_parameters(model.forward(x, training=True)[1])(y) is None
    assert all(np.array_equal(p.grad, g) for p, g in zip(model.parameters(), wanted, strict=True))


@pytest.mark.parametrize("wants_dx", [True, False])
def test_what_comes_before_the_first_parameters_needs_no_gradient(wants_dx: bool) -> None:
    asked: list[str] = []

    def watched(name: str) -> Any:
        def operation(x: Any, *parameters: Any) -> Any:
            def gradients(dy: Any, wants_dx: bool = True) -> Any:
                asked.append(name + "!" * wants_dx)
                return (dy if wants_dx else None, *parameters)

            return x, gradients

        return primitives.dispatch.Primitive(operation)

    operations = [(watched(name), ()) for name in "abcd"]
    x = np.ones(2)
    _, gradients = primitives.chain(x, operations, [(), (2 * x,), (), (3 * x, None)])
    dx, *found = gradients(x, wants_dx)
    assert asked == (["d!", "c!", "b!", "a!"] if wants_dx else ["d!", "c!", "b"])
    assert (dx is None) is not wants_dx
    assert [None if g is None else g.tolist() for g in found] == [[3.0, 3.0], None, [2.0, 2.0]]


@pytest.mark.parametrize("without", [[(), ()], []])
def test_a_chain_without_parameters_leaves_all_out(without: list[tuple[()]]) -> None:
    operations = [(primitives.tanh, ()), (primitives.rectify, ())][: len(without)]
    x = images(3)
    y, gradients = primitives.chain(x, operations, without)
    assert gradients(y, False) == (None,) and y.shape == x.shape
    assert gradients(y)[0].shape == x.shape


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_without_the_gradient_of_the_input(case: Case) -> None:
    """The parameters' gradients and the buffers are the same, to the bit, alone or first in a
    Sequential."""
    x = case.inputs()[0]
    wanted = []
    for wrap in (lambda layer: layer, nn.Sequential):
        for run in (lambda backward: backward, nn.for_parameters):
            layer = wrap(case.make())
            y, backward = layer.forward(x, training=True, rng=0)
            run(backward)(np.cos(y))
            buffers = layer.state_dict().values()
            wanted.append([*(p.grad for p in layer.parameters()), *buffers])
    for gradients in wanted[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(gradients, wanted[0], strict=True))


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(3, 2, rng=0), lambda: nn.Conv2d(3, 2, 1, rng=0), nn.ReLU]
)
def test_it_is_really_left_out(make: Any) -> None:
    layer = make()
    x = np.ones((2, 3, 1, 1) if isinstance(layer, nn.Conv2d) else (2, 3), np.float32)
    y, backward = layer.forward(x, training=True)
    assert nn.for_parameters(backward) is not backward
    assert nn.for_parameters(backward)(y) is None


# --- memory and waits ----------------------------------------------------------------------------


@pytest.mark.parametrize("off", [False, True])
def test_inference_holds_two_activations_at_most(off: bool) -> None:
    """The array that is read and the one that is made, and nothing for a backward."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Watched(np.ndarray):
        """An array with a weak reference, for counting."""

    def operation(x: Any) -> Any:
        nonlocal most
        y = (x + 1).view(Watched)
        alive.append(weakref.ref(y))
        most = max(most, sum(ref() is not None for ref in alive))
        return y, lambda dy, wants_dx=True: (dy + x,)

    watched = primitives.dispatch.Primitive(operation)
    operations = [(watched, ())] * 6
    x = np.zeros(3)
    chain: Any = primitives.chain
    if not off:
        from xbp.accelerators import chains

        chain = type(chain)(chains.accelerated({}))
    with accelerators.disabled():
        for x in chain.outputs(x, operations, [()] * 6):  # noqa: B007, B020
            pass
    assert x.tolist() == [6.0] * 3 and most == 2


def test_it_does_not_wait_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2))
        x = xbp.asarray(np.ones((2, 1, 8, 8)), dtype="float32")
        with assert_no_host_sync():
            y, backward = model.forward(x, training=True)
            nn.for_parameters(backward)(y)
            backward(y)


# --- what an accelerator does in one pass --------------------------------------------------------


def operations_of(*layers: Any) -> tuple[Any, ...]:
    said = [layer.operation() for layer in layers]
    return tuple((it.primitive, tuple(it.options.items())) for it in said)


def lengths(*layers: nn.Layer, dense: bool = False) -> list[int]:
    """The numbers of operations in each pass, if all passes are possible."""
    from xbp.accelerators import chains

    known = [chains.convolution_block, chains.rectified_affine, chains.rectified_batch_norm]
    fusions = dict.fromkeys([chains.dense_layers] * dense + known, print)
    operations = operations_of(*layers)
    return [step.length for step in chains.plan(tuple(fusions.items()), operations)]


def test_what_is_done_in_one_pass() -> None:
    conv, relu, pool = nn.Conv2d(1, 1, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2)
    linear, tanh = nn.Linear(9, 9, rng=0), nn.Tanh()
    assert lengths(conv, relu, pool, conv, relu, conv, pool) == [3, 2, 2]
    assert lengths(linear, relu, linear, relu, relu, linear) == [2, 2, 1, 1]
    assert lengths(linear, relu) == [2] and lengths(conv, relu) == [2]
    assert lengths(relu, conv, tanh, pool, linear) == [1, 1, 1, 1, 1]
    norm = nn.BatchNorm2d(1)
    assert lengths(conv, norm, relu, conv, norm, tanh, relu) == [1, 2, 1, 1, 1, 1]
    for other in (nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 2, (0, 1)), nn.MaxPool2d(1), nn.AvgPool2d(2)):
        assert lengths(conv, other) == [1, 1]
        assert lengths(conv, relu, other) == [2, 1]


def test_an_activation_after_a_batch_norm_in_the_same_pass() -> None:
    from xbp.accelerators.chains import activated_batch_norm

    norm = nn.BatchNorm2d(1, eps=0.5)
    for layer, options in [
        (nn.ReLU(), {"activation": "rectify"}),
        (nn.SiLU(), {"activation": "silu"}),
        (nn.GELU("tanh"), {"activation": "gelu", "approximate": "tanh"}),
    ]:
        found = activated_batch_norm(operations_of(norm, layer, nn.ReLU()))
        assert found == (2, {"eps": 0.5, **options})
    for others in ((norm,), (norm, nn.MaxPool2d(2)), (nn.ReLU(), norm)):
        assert activated_batch_norm(operations_of(*others)) is None


def test_linear_layers_and_their_activations_are_one_pass() -> None:
    linear, relu, tanh, flat = nn.Linear(9, 9, rng=0), nn.ReLU(), nn.Tanh(), nn.Flatten()
    assert lengths(linear, tanh, linear, nn.Sigmoid(), linear, dense=True) == [5]
    assert lengths(flat, linear, linear, relu, flat, linear, dense=True) == [1, 3, 1, 1]
    assert lengths(linear, relu, relu, linear, relu, dense=True) == [2, 1, 2]
    assert lengths(linear, nn.GELU(), linear, dense=True) == [1, 1, 1]
    assert lengths(tanh, linear, dense=True) == [1, 1]
    assert lengths(*[linear] * 17, dense=True) == [16, 1]
    assert lengths(*[linear, relu] * 16, tanh, dense=True) == [32, 1]


def test_what_a_pass_of_many_declines_is_done_by_passes_of_fewer() -> None:
    from xbp.accelerators import chains

    asked: list[Any] = []

    def declined(x: Any, *parameters: Any, activations: Any) -> Any:
        asked.append((len(parameters), activations))
        return NotImplemented

    def pair(x: Any, weight: Any, bias: Any, *, relu: bool) -> Any:
        y, gradients = primitives.affine.reference(x, weight, bias)
        return np.maximum(y, 0), gradients

    fast = chains.accelerated({chains.dense_layers: declined, chains.rectified_affine: pair})
    layers = [nn.Linear(4, 4, dtype="float64", rng=seed) for seed in range(3)]
    chain = [layers[0], nn.ReLU(), layers[1], nn.Tanh(), nn.Flatten(), layers[2]]
    arrays = [[p.data for p in layer.parameters()] for layer in chain]
    x = images(5, 4)
    found = list(fast(x, operations_of(*chain), arrays))
    assert [count for _, _, count in found] == [2, 1, 1, 1, 1]
    assert asked == [(4, ("rectify", "tanh"))]
    np.testing.assert_allclose(found[-1][0], by_hand(chain, x)[0], rtol=1e-13)


def test_what_is_declined_is_done_one_by_one() -> None:
    from xbp.accelerators import chains

    asked: list[dict[str, Any]] = []

    def declined(x: Any, *parameters: Any, **options: Any) -> Any:
        asked.append(options)
        return NotImplemented

    fast = chains.accelerated({chains.convolution_block: declined})
    window = (("kernel_size", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0)))
    operations = (
        (primitives.convolve, (("stride", (1, 1)), ("padding", (0, 0)))),
        (primitives.rectify, ()),
        (primitives.max_pool, window),
        (primitives.convolve, (("stride", (1, 1)), ("padding", (0, 0)))),
    )
    weight = images(2, 1, 3, 3)
    parameters = [(weight, None), (), (), (np.concat([weight, -weight], axis=1), None)]
    x = images(2, 1, 8, 8)
    found = [(y, count) for y, _, count in fast(x, operations, parameters)]
    assert [count for _, count in found] == [1, 1, 1, 1]
    assert asked == [{"stride": (1, 1), "padding": (0, 0), "relu": True, "pool": (2, 2)}]
    expected, _ = primitives.chain(x, operations, parameters)
    # The same sums in other orders, of nine terms of order 1.
    np.testing.assert_allclose(found[-1][0], expected, rtol=1e-13)


def test_a_kernel_is_given_no_array_of_another_library() -> None:
    from xbp.accelerators import chains

    def kernel(*arrays: Any, **options: Any) -> Any:
        pytest.fail("it trusts what it is given")

    strict = pytest.importorskip("array_api_strict")
    operations = ((primitives.affine, ()), (primitives.rectify, ()))
    weight = strict.ones((32, 32), dtype=strict.float64)
    fast = chains.accelerated({chains.rectified_affine: kernel})
    with pytest.raises(BackendError, match="affine got an array on array_api_strict"):
        list(fast(images(8, 32), operations, [(weight, None), ()]))
