"""The CUDA kernels, emulated on the CPU, against the references.

Outputs are nan before a kernel writes them, arrays lie between guards, and threads and blocks run
in any order; see `emulation/machine.py`.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerators.emulation import machine as emulation
from accelerators.emulation.machine import Emulation
from blocks import convolution_block, linear_block
from numpy.typing import NDArray

from xbp import accelerators, models, nn, optim, primitives, registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import (
    convolution,
    cross_entropy,
    launch,
    passes,
    philox,
    pooling,
    product,
)
from xbp.errors import InputError
from xbp.testing.catalogue import AcceleratorItem, Item, catalogue

pytestmark = pytest.mark.skipif(
    emulation.compiler() is None, reason="the emulation needs Linux and a C++ compiler"
)

Real = NDArray[Any]
ITEMS = [item for item in catalogue() if isinstance(item, Item) and item.kind == "primitive"]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    here = Emulation(order=2)
    monkeypatch.setitem(launch.machines, "numpy", here)
    return here


@pytest.fixture
def _in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated kernels stand in for the primitives on numpy arrays."""
    table = {function.__name__: function for function in cuda.implementations()}
    monkeypatch.setitem(registry._tables, np.ndarray, table)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows_first(x: Real) -> Real:
    return np.ascontiguousarray(x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)


def batch_innermost(x: Real) -> Real:
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)


def mirrored(x: Real) -> Real:
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


LAYOUTS = {f.__name__: f for f in (np.ascontiguousarray, rows_first, batch_innermost, mirrored)}


def assert_close(result: Real, truth: Real, terms: int) -> None:
    """Rounding of a sum of `terms` products of order 1, in any order: √terms · u each, at most
    about 20 of that (Higham & Mary 2019)."""
    assert result.shape == truth.shape
    allowed = 20 * math.sqrt(terms) * float(np.finfo(result.dtype).eps) * (1 + np.abs(truth).max())
    assert np.abs(result - truth).max() <= allowed


# --- the cases of `xbp parity`, within its bounds ------------------------------------------------


@pytest.mark.usefixtures("_in_use")
@pytest.mark.parametrize("function", cuda.implementations(), ids=lambda function: function.__name__)
def test_the_catalogue(function: Callable[..., Any]) -> None:
    name = function.__name__
    here = accelerators.Accelerator(name, "numpy", function)
    cases = [item for item in ITEMS if item.name == name]
    assert cases
    computed = 0
    for item in cases:
        fields = vars(item) | {"kind": "accelerator", "differentiable": False}
        found = AcceleratorItem(**fields, accelerator=here).check(["numpy"])
        assert [str(finding) for finding in found if not finding.passed] == []
        computed += bool(found)
    dispatched = hasattr(getattr(primitives, name), "reference")
    assert computed or not dispatched


# --- each family ---------------------------------------------------------------------------------

# n, c, h, w, o, (kh, kw), stride, padding, relu, pool
CONVOLUTIONS = [
    (37, 1, 28, 28, 6, (5, 5), (1, 1), (2, 2), True, (2, 2)),
    (20, 6, 14, 14, 16, (5, 5), (1, 1), (0, 0), True, (2, 2)),
    (3, 24, 6, 7, 8, (5, 5), (1, 1), (0, 1), False, (1, 1)),
    (3, 8, 7, 6, 24, (5, 5), (1, 1), (1, 0), False, (1, 1)),
    (1, 2, 7, 6, 5, (3, 3), (1, 1), (1, 1), False, (1, 1)),
    (18, 3, 11, 9, 9, (3, 2), (2, 1), (1, 0), True, (1, 1)),
    (17, 2, 9, 10, 4, (2, 2), (3, 2), (1, 1), False, (2, 1)),
    (5, 4, 8, 8, 10, (3, 3), (1, 1), (2, 2), False, (3, 3)),
    (16, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), True, (1, 1)),
    (33, 7, 5, 5, 7, (5, 5), (1, 1), (4, 4), True, (4, 2)),
    (9, 3, 12, 4, 3, (1, 4), (4, 3), (0, 3), True, (1, 1)),
    (2, 1, 9, 33, 2, (2, 31), (2, 1), (5, 0), False, (1, 3)),
]


def convolve(machine: Emulation, case: Any, layout: str, dtype: str) -> tuple[list[Real], Any]:
    """Output and gradients; and the truth."""
    n, c, h, w, o, kernel, stride, padding, relu, pool = case
    rng = np.random.default_rng(0)
    x = LAYOUTS[layout](rng.normal(size=(n, c, h, w)).astype(dtype))
    weight = rng.normal(size=(o, c, *kernel)).astype(dtype)
    bias = rng.normal(size=2 * o).astype(dtype)[::2]  # with gaps
    options: dict[str, Any] = {"stride": stride, "padding": padding, "relu": relu, "pool": pool}
    given = [machine.guarded(array) for array in (x, weight, bias)]
    y, backward = convolution.convolve(*given, **options)
    double = [a.astype(np.float64) for a in (x, weight, bias)]
    truth, true_backward = convolution_block(*double, **options)
    dy = LAYOUTS[layout](rng.normal(size=y.shape).astype(dtype))
    gradients = backward(machine.guarded(dy))
    without, *others = backward(machine.guarded(dy), False)
    assert without is None
    assert all(np.array_equal(a, b) for a, b in zip(others, gradients[1:], strict=True))
    return [y, *gradients], [truth, *true_backward(dy.astype(np.float64))]


@pytest.mark.parametrize("fill", ["full", "empty"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(
    case: Any, fill: str, dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fill == "full":  # few threads are enough: each has as many channels as it can
        monkeypatch.setattr(convolution, "FILL", 1)
    layout = list(LAYOUTS)[CONVOLUTIONS.index(case) % len(LAYOUTS)]
    found, truth = convolve(machine, case, layout, dtype)
    n, c, _, _, o, kernel, *_ = case
    terms = [c * math.prod(kernel), o * math.prod(kernel), *[n * math.prod(truth[0].shape[2:])] * 2]
    for result, true, count in zip(found, truth, terms, strict=True):
        assert result.dtype == dtype
        assert_close(result, true, count)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order_does_not_matter(layout: str, dtype: str, machine: Emulation) -> None:
    results = [convolve(machine, CONVOLUTIONS[5], name, dtype)[0] for name in (layout, "mirrored")]
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    assert all(a.transpose(1, 2, 3, 0).flags.c_contiguous for a in results[0][:2])


def test_sizes_that_are_constants_of_the_program_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, machine: Emulation
) -> None:
    """As NVRTC compiles it."""
    monkeypatch.setattr(convolution, "FILL", 1)
    variables, _ = convolve(machine, CONVOLUTIONS[1], "rows_first", "float32")
    fixed = Emulation(fixed=True)
    monkeypatch.setitem(launch.machines, "numpy", fixed)
    constants, _ = convolve(fixed, CONVOLUTIONS[1], "rows_first", "float32")
    assert all(np.array_equal(a, b) for a, b in zip(variables, constants, strict=True))


@pytest.mark.parametrize("splits", [(4 * 196 * 64, 1), (30, 1), (4096, 24), (10**6, 10**4)])
def test_a_sum_is_split_into_parts_that_are_worth_a_block(splits: tuple[int, int]) -> None:
    entries, rows = splits
    parts = convolution.parts_of(entries, rows)
    assert 1 <= parts <= 64
    assert parts == 1 or entries / parts >= 4 * convolution.THREADS


def test_a_thread_has_as_many_channels_as_leave_enough_threads() -> None:
    assert convolution.tile_of(6, 64 * 196) == 6  # LeNet-5 with batches of 64
    assert convolution.tile_of(16, 64 * 25) == 2
    assert [convolution.tile_of(9, n) for n in (10**6, 4224, 3000, 1700)] == [5, 5, 3, 2]
    assert convolution.tile_of(9, 100) == 1


# n, c, h, w, kernel, stride, padding
POOLS = [
    (17, 3, 6, 7, (2, 2), (2, 2), (0, 0)),
    (5, 1, 9, 9, (3, 3), (2, 2), (1, 1)),
    (4, 2, 8, 5, (3, 2), (1, 1), (1, 1)),
    (33, 2, 7, 7, (2, 3), (3, 4), (0, 1)),
    (16, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    (2, 1, 34, 35, (15, 17), (15, 17), (0, 0)),
]


@pytest.mark.parametrize("case", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
def test_pooling(case: Any, kind: str, dtype: str, machine: Emulation) -> None:
    n, c, h, w, *window = case
    rng = np.random.default_rng(0)
    layout = LAYOUTS[list(LAYOUTS)[POOLS.index(case) % len(LAYOUTS)]]
    # Few values, so that maxima are tied: the first one must win.
    x = layout(rng.integers(-2, 3, (n, c, h, w)).astype(dtype))
    options = dict(zip(("kernel_size", "stride", "padding"), window, strict=True))
    y, backward = getattr(pooling, kind)(machine.guarded(x), **options)
    truth, true_backward = getattr(primitives, kind).reference(x.astype(np.float64), **options)
    assert y.dtype == dtype
    assert_close(y, truth, math.prod(window[0]))
    dy = layout(rng.normal(size=y.shape).astype(dtype))
    (dx,), (true_dx,) = backward(machine.guarded(dy)), true_backward(dy.astype(np.float64))
    assert_close(dx, true_dx, math.prod(window[0]))


@pytest.mark.parametrize("numbers", ["on the host", "on the device", "on the device in float64"])
@pytest.mark.parametrize("n", [1, 255, 300_001])
def test_updates(n: int, numbers: str, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    p, g, m = (rng.normal(size=n).astype(dtype) for _ in range(3))
    v = rng.uniform(0, 2, n).astype(dtype)

    def number(value: float) -> Any:
        if numbers == "on the host":
            return value
        return machine.guarded(np.array(value, dtype if numbers == "on the device" else "f8"))

    calls: dict[str, tuple[Any, ...]] = {
        "add_scaled": (p, -0.3, g),
        "accumulate": (p, 0.9, g),
        "accumulate ": (p, 0.9, g, 0.25),
        "rescale": (p, 0.7),
        "average": (p, 0.9, g),
        "average ": (p, 0.9, g, m),
        "normalized_step": (p, 0.3, m, 1.5, v, 1e-3),
    }
    for name, arguments in calls.items():
        own = [machine.guarded(a) if isinstance(a, np.ndarray) else number(a) for a in arguments]
        true = [a.astype("f8") if isinstance(a, np.ndarray) else a for a in arguments]
        assert getattr(passes, name.strip())(*own) is None
        getattr(primitives, name.strip()).reference(*true)
        assert_close(own[0], true[0], 3)
        for a, b in zip(own, arguments, strict=True):
            if a is not own[0] and isinstance(b, np.ndarray):
                assert np.array_equal(a, b)


def test_many_parameters_in_one_launch(dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 700, 3, 256, 5000] + [7] * (passes.MOST - 5)
    for more in (0, 1, 2):  # than there is room for in one launch
        many = [*sizes, *[9] * more]
        before, g = ([rng.normal(size=size).astype(dtype) for size in many] for _ in range(2))
        p = [machine.guarded(array) for array in before]
        machine.launches.clear()
        assert passes.add_scaled(p, 0.5, [machine.guarded(array) for array in g]) is None
        assert machine.launches == ["add_scaled"] * (2 if more else 1)
        for now, then, gradient in zip(p, before, g, strict=True):
            assert_close(now, then + 0.5 * gradient, 1)
    p[3] = p[3][:, None][::2]  # one that does not fit, and none of them is changed
    same = [array.copy() for array in p]
    assert passes.add_scaled(p, 0.5, [np.ones(array.shape, dtype) for array in p]) is NotImplemented
    assert all(np.array_equal(now, then) for now, then in zip(p, same, strict=True))


@pytest.mark.usefixtures("_in_use")
@pytest.mark.parametrize(
    ("make", "launches"),
    [
        (lambda p: optim.SGD(p, 0.1), ["add_scaled"]),
        (lambda p: optim.SGD(p, 0.1, 0.9), ["accumulate", "add_scaled"]),
        (optim.AdamW, ["rescale", "average", "average_product", "normalized_step"]),
    ],
)
def test_launches_of_an_optimizer(make: Any, launches: list[str], machine: Emulation) -> None:
    parameters = [nn.Parameter(np.ones(size)) for size in (3, 300, 70)]
    for parameter in parameters:
        parameter.add_grad(np.ones_like(parameter.data))
    make(parameters).step()
    assert machine.launches == launches


def test_updates_decline_what_does_not_fit() -> None:
    p = np.ones((4, 6))
    for to, factor, g in [
        (p[:, ::2], 0.5, p[:, ::2]),
        (p, 0.5, p[:2]),
        (p, 0.5, p.astype("f4")),
        (p.astype("f2"), 0.5, p.astype("f2")),
        (p, np.ones(1), p),
        (p, np.array(1), p),
        (p, np.array(1, "f2"), p),
        (p[:0], 0.5, p[:0]),
    ]:
        assert passes.add_scaled(to, factor, g) is NotImplemented
    assert passes.average(p, 0.5, p, p, p) is NotImplemented
    assert passes.average(p, 0.5) is NotImplemented
    assert np.array_equal(p, np.ones((4, 6)))
    passes.add_scaled(p, np.float32(0.5), p.T.copy().T)
    assert np.array_equal(p, np.full((4, 6), 1.5))


@pytest.mark.parametrize("shape", [(), (3,), (3, 70, 5)])
def test_write_row(shape: tuple[int, ...], dtype: str, machine: Emulation) -> None:
    rows = machine.guarded(np.zeros((4, *shape), dtype))
    value = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for index in (2, 0, 3):
        given = machine.guarded(np.array([index])), machine.guarded(value)
        assert passes.write_row(rows, *given) is None
        assert np.array_equal(rows[index], value)
        rows[index] = 0
        assert not rows.any()
    for wrong in [
        (rows, np.array([1], "i4"), value),
        (rows, np.array([1, 2]), value),
        (rows[::2], np.array([1]), value),
        (rows, np.array([1]), value[None]),
        (rows, np.array([1]), value.astype("f2")),
    ]:
        assert passes.write_row(*wrong) is NotImplemented


@pytest.mark.parametrize("shape", [(1,), (300, 20), (5, 7, 4, 33)])
@pytest.mark.parametrize("axes", [None, (-1, 0)])
def test_rectify(shape: tuple[int, ...], axes: Any, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(dtype)
    x = x if axes is None else np.moveaxis(x, *axes)
    x[x > 1] = 0
    dy = rng.normal(size=x.shape).astype(dtype)  # laid out otherwise
    y, backward = passes.rectify(machine.guarded(x))
    assert np.array_equal(y, np.maximum(x, 0)) and y.strides == x.strides
    (dx,) = backward(machine.guarded(dy))
    assert np.array_equal(dx, dy * (x > 0)) and dx.dtype == dtype


def test_rectify_declines_what_has_gaps() -> None:
    assert passes.rectify(np.ones((4, 6))[:, ::2]) is NotImplemented
    assert passes.rectify(np.ones((4, 6), "f2")) is NotImplemented


@pytest.mark.parametrize("shape", [(13, 7), (300, 10), (5, 33), (3, 1500), (1, 1)])
@pytest.mark.parametrize("labels", ["int64", "uint8", "int32", "probabilities"])
def test_cross_entropy(shape: tuple[int, int], labels: str, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    logits = (10 * rng.normal(size=shape)).astype(dtype)
    if labels == "probabilities":
        target = rng.uniform(0, 1, shape).astype(dtype)
    else:
        target = rng.integers(0, min(shape[1], 256), shape[0]).astype(labels)
    given = machine.guarded(logits), machine.guarded(target)
    value, gradient = cross_entropy.cross_entropy(*given, 0.5)
    reference = primitives.cross_entropy.reference  # type: ignore[attr-defined]
    double = target if target.ndim == 1 else target.astype("f8")
    truth, true_gradient = reference(logits.astype("f8"), double, 0.5)
    assert value.dtype == dtype and value.shape == ()
    assert_close(value, truth, sum(shape))
    assert_close(gradient, true_gradient, shape[1])


@pytest.mark.parametrize("level", [-2000.0, 0.0, 2000.0])
def test_no_exponential_overflows(level: float, dtype: str) -> None:
    logits = level + np.arange(12.0).reshape(3, 4).astype(dtype)
    given = logits, np.array([1, 0, 3]), 1.0
    value, gradient = cross_entropy.cross_entropy(*given)
    reference = primitives.cross_entropy.reference  # type: ignore[attr-defined]
    truth, true_gradient = reference(logits.astype("f8"), *given[1:])
    assert_close(value, truth, 12)
    assert_close(gradient, true_gradient, 4)


@pytest.mark.parametrize("wrong", [7, -1])
def test_a_label_that_is_no_class_makes_the_loss_nan(wrong: int, dtype: str) -> None:
    logits, target = np.zeros((5, 7), dtype), np.array([1, 2, wrong, 0, 6])
    value, gradient = cross_entropy.cross_entropy(logits, target, 1.0)
    assert np.isnan(value)
    assert np.array_equal(np.isnan(gradient).all(axis=1), target == wrong)
    assert np.isfinite(gradient[target != wrong]).all()


def test_cross_entropy_declines_what_does_not_fit() -> None:
    logits = np.zeros((5, 7))
    for given, target in [
        (logits, np.zeros(4, int)),
        (logits, np.zeros(5)),
        (logits, np.zeros((5, 6))),
        (logits, np.zeros((5, 7), "f4")),
        (logits.astype("f2"), np.zeros(5, int)),
        (logits[:0], np.zeros(0, int)),
    ]:
        assert cross_entropy.cross_entropy(given, target, 1.0) is NotImplemented


def test_nan_and_infinity_come_out_as_from_the_reference(dtype: str, machine: Emulation) -> None:
    x = np.random.default_rng(0).normal(size=(16, 1, 6, 6)).astype(dtype)
    x[0, 0, 1, 1], x[1, 0, 2, 2], x[2, 0, 3, 3] = np.nan, np.inf, -np.inf
    x[3, 0, :2, :2] = -np.inf
    weight = np.ones((1, 1, 1, 1), dtype)
    overlapping = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    calls: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = [
        (convolution.convolve, convolution_block, (weight,), {"relu": True, "pool": (2, 2)}),
        (pooling.max_pool, primitives.max_pool, (), {"kernel_size": (2, 2), "stride": (2, 2)}),
        (pooling.max_pool, primitives.max_pool, (), overlapping),
        (passes.rectify, primitives.rectify, (), {}),
        (product.affine, linear_block, (np.eye(6, dtype=dtype),), {"relu": True}),
    ]
    with np.errstate(invalid="ignore"):
        for function, reference, more, options in calls:
            found = []
            for run in (function, reference):
                y, backward = run(x, *more, **options)
                # Not the weight's: no gradient through a nan of x is 0 here, and 0 · nan there.
                found.append([y, backward(np.ones_like(y))[0]])
            for a, b in zip(*found, strict=True):
                np.testing.assert_array_equal(a, b)
    for wrong in (np.nan, np.inf):
        logits = np.zeros((3, 4), dtype)
        logits[1, 2] = wrong
        value, gradient = cross_entropy.cross_entropy(logits, np.zeros(3, int), 1.0)
        assert np.isnan(value) and np.isnan(gradient).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(1,), (5, 7, 3), (1025,), (2, 4096)])
@pytest.mark.parametrize("where", ["on the host", "on the device"])
def test_random_bits(shape: tuple[int, ...], where: str, machine: Emulation) -> None:
    key, counter = (3, 2**32 - 1), (1, 2**32 - 1, 7)
    given: Any = counter
    if where == "on the device":
        given = tuple(machine.guarded(np.array(word)) for word in counter)
    bits = philox.random_bits(np.zeros(1), shape, key=key, counter=given)
    reference = getattr(primitives.random_bits, "reference", primitives.random_bits)
    expected = reference(np.zeros(1), shape, key=key, counter=counter)
    assert bits.dtype == expected.dtype and np.array_equal(bits, expected)


def test_random_bits_decline_what_does_not_fit() -> None:
    class Other(np.ndarray):
        """Of another library, for all that a kernel knows."""

    Other.__module__ = "numpy"
    elsewhere = np.zeros(1).view(Other)
    here: dict[str, Any] = {"key": (0, 0), "counter": (np.array(1), 0, 0)}
    assert philox.random_bits(elsewhere, (3,), **here) is NotImplemented
    like, key = np.zeros(1), (0, 0)
    for shape, word in [((0,), 0), ((2**40,), 0), ((3,), np.array([1])), ((3,), np.array(1, "i4"))]:
        given = philox.random_bits(like, shape, key=key, counter=(word, 0, 0))
        assert given is NotImplemented


# m, k, n
PRODUCTS = [(64, 400, 120), (1, 1, 1), (17, 129, 33), (5, 3, 70), (700, 20, 900), (130, 65, 4)]


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
@pytest.mark.parametrize("stored", ["as such", "transposed", "in a larger one", "mirrored"])
def test_matmul(shape: Any, stored: str, dtype: str, machine: Emulation) -> None:
    m, k, n = shape
    rng = np.random.default_rng(0)

    def draw(rows: int, columns: int) -> Real:
        a = rng.normal(size=(rows + 2, columns + 3)).astype(dtype)
        if stored == "in a larger one":
            return a[1:-1, 2:-1]
        a = machine.guarded(a[2:, 3:].copy())
        if stored == "mirrored":
            return a[::-1, ::-1]
        return machine.guarded(a.T.copy()).T if stored == "transposed" else a

    a, b = draw(m, k), draw(k, n)
    c = product.matmul(a, b)
    assert c.dtype == dtype and machine.launches == ["multiply"]
    assert_close(c, a.astype("f8") @ b.astype("f8"), k)


def test_matmul_of_many_axes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4, 5)), rng.normal(size=(5, 2))
    assert_close(product.matmul(a, b), a @ b, 5)
    same = np.broadcast_to(a[0, 0], (6, 5))
    assert_close(product.matmul(same, b), same @ b, 5)
    for left, right in [(a, rng.normal(size=(3, 5, 2))), (a[0, 0], b), (a, b[:4]), (a[:0], b)]:
        assert product.matmul(left, right) is NotImplemented
    assert product.matmul(a, b.astype("f4")) is NotImplemented
    assert product.matmul(a, np.broadcast_to(b[:, :1], (5, 2**20))) is NotImplemented


# rows, in, out
AFFINE = [((64,), 400, 120), ((3, 4), 5, 2), ((1,), 1, 1), ((130,), 33, 129), ((900,), 7, 700)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("case", AFFINE, ids=str)
def test_affine(case: Any, relu: bool, with_bias: bool, dtype: str, machine: Emulation) -> None:
    rows, features, out = case
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Real:
        return rng.normal(size=shape).astype(dtype)

    x, weight = machine.guarded(draw(features, *rows).T), machine.guarded(draw(out, features))
    x = x.T.reshape(features, -1).T.reshape(*rows, features)  # or a copy of it
    bias = machine.guarded(draw(2 * out))[::2] if with_bias else None
    y, backward = product.affine(x, weight, bias, relu=relu)
    dy = machine.guarded(draw(*y.shape[::-1]).T)
    double = [None if a is None else a.astype("f8") for a in (x, weight, bias)]
    truth, true_backward = linear_block(*double, relu=relu)
    count = math.prod(rows)
    found, true = [y, *backward(dy)], [truth, *true_backward(dy.astype("f8"), True)]
    assert (found[3] is None) is (not with_bias)
    for a, b, terms in zip(found, true, (features, out, count, count), strict=True):
        if b is not None:
            assert a.dtype == dtype
            assert_close(a, b, terms)
    without, *others = backward(dy, False)
    assert without is None and np.array_equal(others[0], found[2])
    with pytest.raises(InputError, match="shape"):
        backward(dy[..., :0])


def test_affine_declines_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = np.ones((3, 5)), np.ones((2, 5)), np.ones(2)
    for given in [
        (x[0], weight, bias),
        (x[:, :4], weight, bias),
        (x, weight[None], bias),
        (x, weight, bias[:1]),
        (x, weight.astype("f4"), bias),
        (x, weight, bias.astype("f4")),
        (x[:0], weight, bias),
        (x, np.broadcast_to(weight[:1], (2**20, 5)), None),
    ]:
        assert product.affine(*given) is NotImplemented
    monkeypatch.setattr(product, "LEAST_LARGE", 31)
    assert product.affine(x, weight, bias)[0].tolist() == [[6.0, 6.0]] * 3
    monkeypatch.setattr(product, "LEAST_LARGE", 30)
    assert product.affine(x, weight, bias) is NotImplemented


def test_large_products_are_for_cublas(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LEAST_LARGE", 30)

    def multiply(a: Real, b: Real, c: Real) -> bool:
        c[...] = -(a @ b)
        return True

    monkeypatch.setattr(machine, "multiply", multiply)
    a, b = np.arange(15.0).reshape(3, 5), np.arange(10.0).reshape(5, 2)
    assert np.array_equal(product.matmul(a[:2], b), a[:2] @ b)
    assert machine.launches == ["multiply"]
    assert np.array_equal(product.matmul(a.reshape(3, 1, 5), b), -(a @ b).reshape(3, 1, 2))
    assert machine.launches == ["multiply"]
    monkeypatch.setattr(machine, "multiply", lambda *given: False)
    assert np.array_equal(product.matmul(a, b), a @ b)


def test_as_many_blocks_as_there_is_work_for(machine: Emulation) -> None:
    x = np.zeros((300, 2, 6, 6))
    philox.random_bits(x, (4097,), key=(0, 0), counter=(0, 0, 0))
    for size in (256, 257, 300_001):
        passes.add_scaled(np.zeros(size), 1.0, np.zeros(size))
    for m, n in ((129, 17), (704, 704), (704, 768), (768, 704)):
        product.multiply(np.zeros((m, 2)), np.zeros((2, n)))
    cross_entropy.cross_entropy(np.zeros((257, 32)), np.zeros(257, int), 1.0)
    cross_entropy.cross_entropy(np.zeros((257, 33)), np.zeros(257, int), 1.0)
    pooling.max_pool(x, kernel_size=(3, 3), stride=(1, 1))
    convolution.convolve(x, np.zeros((16, 2, 3, 3)))
    assert machine.grids == [
        *((5, 1), (1, 1), (2, 1), (1024, 1)),
        *((9, 2), (44, 44), (11, 12), (12, 11)),
        *((2, 1), (1, 1), (33, 1), (1, 1)),
        *((75, 1), (38, 2)),
    ]


# --- what must hold for all of them --------------------------------------------------------------


def everything(dtype: str, machine: Emulation) -> Iterator[Real]:
    """What each kernel makes of something, with more than one block where it can have them."""
    rng = np.random.default_rng(0)
    for case in CONVOLUTIONS[1:3]:
        yield from convolve(machine, case, "rows_first", dtype)[0]
    x = rng.integers(-2, 3, (17, 3, 6, 7)).astype(dtype)
    for kind in (pooling.max_pool, pooling.average_pool):
        y, backward = kind(x, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
        yield from (y, *backward(y))
    y, backward = passes.rectify(x)
    yield from (y, *backward(x))
    p, m = (machine.guarded(rng.normal(size=3000).astype(dtype)) for _ in range(2))
    passes.average(p, 0.5, m)
    passes.average(p, 0.5, m, m)
    passes.add_scaled(p, 0.5, m)
    passes.accumulate(p, 0.5, m, 0.25)
    passes.rescale(p, 0.75)
    passes.normalized_step(p, 0.1, m, 1.5, m * m, 1e-3)
    yield p
    for classes in (10, 40):
        logits = rng.normal(size=(600, classes)).astype(dtype)
        yield from cross_entropy.cross_entropy(logits, np.arange(600) % classes, 1.0)
        yield from cross_entropy.cross_entropy(logits, logits**2, 1.0)
    yield philox.random_bits(p, (1500,), key=(1, 2), counter=(3, 4, 5))
    for m, n in ((40, 50), (700, 900)):
        a, b = rng.normal(size=(m, 45)).astype(dtype), rng.normal(size=(n, 45)).astype(dtype)
        yield product.matmul(a, b.T)
        y, backward = product.affine(a, b, b[:, 0], relu=True)
        yield from (y, *backward(y))


def test_no_race(dtype: str, machine: Emulation) -> None:
    """Whatever comes first, the result is the same, bit for bit."""
    machine.order = 0
    first = list(everything(dtype, machine))
    assert all(np.isfinite(array).all() for array in first)  # nothing was left as it was
    kernels = {name for file in FILES for name in emulation.kernels(launch.source(file))}
    assert set(machine.launches) == kernels - {"write_row"}
    for order in (1, 2, 3):
        machine.order = order
        for a, b in zip(everything(dtype, machine), first, strict=True):
            assert a.tobytes() == b.tobytes()


def ends_with(run: Callable[[], object]) -> int:
    """The status of a copy of this process that does nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons say that fork and threads are dangerous
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        faulthandler.disable()
        run()
        status = 0
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_nothing_is_read_beyond_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where nobody would see it: on a GPU that can be the end of the run."""

    def run() -> None:
        fenced = launch.machines["numpy"] = Emulation(fenced=True)
        for dtype in launch.REALS:
            assert all(np.isfinite(array).all() for array in everything(dtype, fenced))

    assert ends_with(run) == 0
    whole = launch.source
    right, wrong = "if (at >= all) continue;", "if (at > all) continue;"
    monkeypatch.setattr(launch, "source", lambda file: whole(file).replace(right, wrong))
    assert ends_with(run) in (-signal.SIGSEGV, -signal.SIGBUS)


FILES = (
    *("convolution.cu", "pooling.cu", "passes.cu", "cross_entropy.cu", "philox.cu"),
    "product.cu",
)


def test_these_are_all_files() -> None:
    assert {path.name for path in Path(launch.__file__).parent.glob("*.cu")} == set(FILES)


def test_the_emulation_finds_a_race(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    text, barrier = launch.source("convolution.cu"), "__syncthreads();"
    before, _, after = text.rpartition(barrier)  # behind the last sums in shared memory
    monkeypatch.setattr(launch, "source", lambda file: before + after)
    found = []
    for order in (0, 1):
        machine.order = order
        found.append(convolve(machine, CONVOLUTIONS[4], "mirrored", "float64")[0][2])
    assert found[0].tobytes() != found[1].tobytes()


def test_the_emulation_finds_what_is_not_written_or_beyond_the_end(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, guard = launch.source("pooling.cu"), "if (at >= C * ROWS"
    # A third channel behind x: what the kernel reads beyond its end is 1, not what the heap holds,
    # which now and then is nan, and then what it writes cannot be told from a guard.
    x = np.ones((3, 4, 4, 5))[:2].transpose(3, 0, 1, 2)
    window = {"kernel_size": (2, 2), "stride": (2, 2)}
    more, less = (text.replace(guard, f"if (at {what} ROWS") for what in ("> C *", ">="))
    monkeypatch.setattr(launch, "source", lambda file: more)
    with pytest.raises(AssertionError, match="beyond the end"):
        pooling.average_pool(x, **window)
    machine.given.clear()
    monkeypatch.setattr(launch, "source", lambda file: less)
    assert np.isnan(pooling.average_pool(x, **window)[0]).any()


def test_the_emulation_finds_threads_at_different_barriers(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "FILL", 1)
    source = launch.source("convolution.cu")
    text = source.replace("continue; /* no return", "return; /* a")
    assert text != source
    monkeypatch.setattr(launch, "source", lambda file: text)
    with pytest.raises(AssertionError, match="different barriers"):
        convolve(machine, CONVOLUTIONS[2], "mirrored", "float64")


def test_convolutions_that_the_kernels_do_not_know_are_declined() -> None:
    x, weight = np.ones((8, 2, 6, 6), "float32"), np.ones((2, 2, 3, 3), "float32")
    assert convolution.convolve(x, weight) is not NotImplemented
    assert convolution.convolve(x, weight, dilation=(2, 1)) is NotImplemented
    assert convolution.convolve(x, weight, padding=((0, 0), (1, 0))) is NotImplemented
    assert convolution.convolve(x, weight[:, :1], groups=2) is NotImplemented


def test_gradients_of_another_dtype_or_shape() -> None:
    x = np.random.default_rng(0).normal(size=(8, 2, 6, 6)).astype("float32")
    window = {"kernel_size": (2, 2), "stride": (2, 2)}
    calls = [
        convolution.convolve(x, x[:3, :, :3, :3]),
        pooling.max_pool(x, **window),
        pooling.average_pool(x, **window),
        passes.rectify(x),
    ]
    for y, backward in calls:
        dy = np.random.default_rng(1).normal(size=y.shape)
        both = [backward(d) for d in (dy, dy.astype("float32"))]
        for a, b in zip(*both, strict=True):
            assert (a is b is None) or (a.dtype == "float32" and np.array_equal(a, b))
        for wrong in (dy[:3], dy[..., :-1], dy[0, 0, 0]):
            with pytest.raises(InputError, match="shape"):
                backward(wrong)


def test_convolutions_and_pools_decline_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = np.ones((8, 2, 40, 40)), np.ones((3, 2, 3, 3))

    def block(
        x: Any, weight: Any, bias: Any = None, pool: Any = (1, 1), stride: Any = (1, 1)
    ) -> Any:
        return convolution.convolve(x, weight, bias, stride=stride, relu=True, pool=pool)

    for given in [
        (x.astype("f2"), weight.astype("f2")),
        (x, weight.astype("f4")),
        (x, weight, np.ones(3, "f4")),
        (x, weight, np.ones(4)),
        (x, weight[:, :1]),
        (x, weight, None, (17, 1)),
        (x, weight, None, (1, 17)),
        (x[:, :, :5], weight, None, (4, 1)),
        (x[..., :5], weight, None, (1, 4)),
        (x, np.ones((1, 2, 1, 32))),
        (x, np.ones((1, 2, 29, 5))),
        (x, np.ones((1, 2, 9, 8)), None, (4, 5)),
        (x[:0], weight),
    ]:
        assert block(*given) is NotImplemented
    assert block(x, weight, np.ones(3), (4, 4))[0].shape == (8, 3, 9, 9)
    for stride in ((1, 1), (3, 1), (1, 3)):  # 144 pixels seen by each entry
        y, _ = block(x[:2], np.ones((1, 2, 9, 16)), stride=stride)
        assert y.shape == (2, 1, 31 // stride[0] + 1, 24 // stride[1] + 1)
    assert block(x, np.ones((1, 2, 1, 31)))[0].shape == (8, 1, 40, 10)
    monkeypatch.setattr(convolution, "MOST_KERNELS", 5)
    assert block(x, weight) is NotImplemented

    def pooled(kind: Any, x: Any, *size: int) -> Any:
        return kind(x, kernel_size=size, stride=(1, 1))

    assert pooled(pooling.max_pool, x, 16, 16) is NotImplemented
    assert pooled(pooling.average_pool, x, 41, 1) is NotImplemented
    assert pooled(pooling.max_pool, x.astype("f2"), 2, 2) is NotImplemented
    monkeypatch.setattr(launch, "MOST_ENTRIES", x.size)
    assert pooled(pooling.max_pool, x, 2, 2) is NotImplemented


# --- a network -----------------------------------------------------------------------------------

STEP = {  # of LeNet-5, with two images
    "convolve": 2, "convolve_to_weight": 2, "convolve_to_input": 1, "multiply": 9,
    "cross_entropy": 1,
    "average": 1, "average_product": 1, "normalized_step": 1,
}  # fmt: skip


def train(steps: int) -> list[float]:
    """The losses of LeNet-5."""
    model = models.LeNet5(rng=0).astype("float64")
    optimizer, losses = optim.Adam(model.parameters()), []
    x = np.random.default_rng(0).normal(size=(2, 1, 28, 28))
    for _ in range(steps):
        logits, backward = model.forward(x, training=True)
        value, gradient = nn.CrossEntropyLoss()(logits, np.array([3, 7]))
        nn.for_parameters(backward)(gradient)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value))
    return losses


@pytest.mark.usefixtures("_in_use")
def test_a_training_and_its_launches(machine: Emulation) -> None:
    losses = train(3)
    assert {name: machine.launches.count(name) / 3 for name in machine.launches} == STEP
    with accelerators.disabled():
        # Three steps, each of sums of at most a few thousand numbers of order 1.
        np.testing.assert_allclose(losses, train(3), rtol=1e-11)
