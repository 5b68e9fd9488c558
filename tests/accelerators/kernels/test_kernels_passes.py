"""Updates, rows, cross-entropy, random bits: emulated on the CPU, against the references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from blocks import convolution_block, linear_block
from layouts import assert_close

from xbp import nn, optim, primitives
from xbp.accelerators.cuda import (
    activations,
    convolution,
    cross_entropy,
    passes,
    philox,
    pooling,
    product,
)

pytestmark = needs_a_compiler


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


@pytest.mark.parametrize("numbers", ["on the host", "on the device"])
@pytest.mark.parametrize("n", [1, 700])
def test_a_step_of_adam(n: int, numbers: str, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    p, m, g = (rng.normal(size=n).astype(dtype) for _ in range(3))
    v = rng.uniform(0, 2, n).astype(dtype)
    coefficients: list[Any] = [0.3, 1.5, 1e-3]
    true = [array.astype("f8") for array in (p, m, v, g)]
    primitives.adaptive_step.reference(*true, 0.9, 0.99, *coefficients)
    if numbers == "on the device":
        coefficients = [machine.guarded(np.array(it, dtype)) for it in coefficients]
    own = [machine.guarded(array) for array in (p, m, v, g)]
    assert passes.adaptive_step(*own, 0.9, 0.99, *coefficients) is None
    assert machine.launches == ["adaptive_step"]
    for found, right in zip(own, true, strict=True):
        assert_close(found, right, 4)
    wide = [np.ones((4, 6), dtype) for _ in range(4)]
    for k in range(3):  # each that is changed lies in row-major order
        given = [array.T.copy().T if i == k else array for i, array in enumerate(wide)]
        assert passes.adaptive_step(*given, 0.9, 0.99, 0.3, 1.5, 1e-3) is NotImplemented


def test_many_parameters_in_one_launch(dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 700, 3, 256, 5000] + [7] * (passes.MOST - 5)
    for more in (0, 1, 2):  # than fit into one launch
        many = [*sizes, *[9] * more]
        before, g = ([rng.normal(size=size).astype(dtype) for size in many] for _ in range(2))
        p = [machine.guarded(array) for array in before]
        machine.launches.clear()
        assert passes.add_scaled(p, 0.5, [machine.guarded(array) for array in g]) is None
        assert machine.launches == ["add_scaled"] * (2 if more else 1)
        for now, then, gradient in zip(p, before, g, strict=True):
            assert_close(now, then + 0.5 * gradient, 1)
    p[3] = p[3][:, None][::2]  # one does not fit, so none is changed
    same = [array.copy() for array in p]
    assert passes.add_scaled(p, 0.5, [np.ones(array.shape, dtype) for array in p]) is NotImplemented
    assert all(np.array_equal(now, then) for now, then in zip(p, same, strict=True))


@pytest.mark.usefixtures("_in_use")
@pytest.mark.parametrize(
    ("make", "launches"),
    [
        (lambda p: optim.SGD(p, 0.1), ["add_scaled"]),
        (lambda p: optim.SGD(p, 0.1, 0.9), ["accumulate", "add_scaled"]),
        (
            lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.1),
            ["plus_scaled", "accumulate", "plus_scaled", "add_scaled"],
        ),
        (optim.AdamW, ["rescale", "adaptive_step"]),
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
        (activations.rectify, primitives.rectify, (), {}),
        (product.affine, linear_block, (np.eye(6, dtype=dtype),), {"relu": True}),
    ]
    with np.errstate(invalid="ignore"):
        for function, reference, more, options in calls:
            found = []
            for run in (function, reference):
                y, backward = run(x, *more, **options)
                found.append([y, *(g for g in backward(np.ones_like(y)) if g is not None)])
            for a, b in zip(*found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)  # sums of a weight in another order
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
        """An array of another library, for the wrapper of a kernel."""

    Other.__module__ = "numpy"
    elsewhere = np.zeros(1).view(Other)
    here: dict[str, Any] = {"key": (0, 0), "counter": (np.array(1), 0, 0)}
    assert philox.random_bits(elsewhere, (3,), **here) is NotImplemented
    like, key = np.zeros(1), (0, 0)
    for shape, word in [((0,), 0), ((2**40,), 0), ((3,), np.array([1])), ((3,), np.array(1, "i4"))]:
        given = philox.random_bits(like, shape, key=key, counter=(word, 0, 0))
        assert given is NotImplemented
