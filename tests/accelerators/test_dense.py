"""Chains of small linear layers in one compiled call against their references, at each level."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from guards import Guards
from numpy.typing import NDArray

from xbp import accelerators, nn, primitives
from xbp.accelerators.cpu import dense, native
from xbp.errors import InputError

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level", "guards"),
]

Real = NDArray[Any]
NETWORKS: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]] = {
    "4-32-16-4": ((4, 32, 16, 4), ("tanh", "tanh", None)),
    "full vectors": ((16, 48, 32), ("rectify", "logistic")),
    "odd sizes": ((7, 1, 33, 5, 17), ("logistic", "rectify", None, "tanh")),
    "one layer": ((3, 2), ("rectify",)),
    "of one number": ((1, 1, 1), (None, None)),
    "wide": ((100, 128, 128, 70), ("rectify", "rectify", "logistic")),
}


def drawn(name: str, shape: tuple[int, ...], dtype: str, biases: bool = True) -> tuple[Real, Any]:
    """x, and weight and bias of each layer; every second bias is missing without `biases`."""
    rng, guards = np.random.default_rng(0), Guards()
    sizes = NETWORKS[name][0]
    parameters: list[Real | None] = []
    for index, (i, o) in enumerate(pairwise(sizes)):
        parameters.append(guards.copy((rng.normal(size=(o, i)) / np.sqrt(i)).astype(dtype)))
        bias = guards.copy(rng.normal(size=o).astype(dtype))
        parameters.append(bias if biases or index % 2 else None)
    return guards.copy(rng.normal(size=(*shape, sizes[0])).astype(dtype)), parameters


def reference(name: str, x: Real, parameters: Any, dy: Real) -> list[Real | None]:
    """y, ∂L/∂x and the parameters' gradients, the last layer's first, in double precision."""
    operations: list[Any] = []
    own: list[Any] = []
    x, dy, *given = (None if a is None else a.astype("f8") for a in (x, dy, *parameters))
    for index, activation in enumerate(NETWORKS[name][1]):
        operations.append((primitives.affine, ()))
        own.append(given[2 * index : 2 * index + 2])
        if activation:
            operations.append((getattr(primitives, activation), ()))
            own.append(())
    with accelerators.disabled():
        y, gradients = primitives.chain(x, tuple(operations), own)
        return [y, *gradients(dy)]


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3,), (64,), (65,), (2, 3, 50), (1100,)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_reference(name: str, shape: tuple[int, ...], biases: bool, dtype: str) -> None:
    x, parameters = drawn(name, shape, dtype, biases)
    result = dense.dense(x, *parameters, activations=NETWORKS[name][1])
    if name in ("wide", "full vectors") and shape in ((1,), (3,)):
        assert result is NotImplemented  # turning the weights takes longer
        return
    y, gradients = result
    dy = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    found, expected = [y, *gradients(dy)], reference(name, x, parameters, dy)
    without = gradients(dy, wants_dx=False)
    assert without[0] is None
    scale = np.finfo(dtype).eps * 20 * max(1, x.size // x.shape[-1]) ** 0.5
    for one, true in zip(found, expected, strict=True):
        assert (one is None) == (true is None)
        if one is not None:
            assert one.shape == true.shape and one.dtype == dtype
            # Rounding errors of sums grow as the root of their length; terms are of order 1, and
            # slopes 1 - y² and y (1 - y) add no more. A rectifier at ±0 was not met.
            assert np.max(np.abs(one - true)) <= scale * max(1, np.max(np.abs(true)))
    for one, same in zip(found[2:], without[1:], strict=True):
        assert (one is same is None) or one.tobytes() == same.tobytes()


def test_neither_threads_nor_other_rows_change_a_bit(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, parameters = drawn("wide", (1100,), dtype)
    activations = NETWORKS["wide"][1]
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        y, gradients = dense.dense(x, *parameters, activations=activations)
        results.append([array.tobytes() for array in (y, *gradients(np.cos(y)))])
    assert results[0] == results[1] == results[2]
    for rows in (slice(0, 5), slice(63, 130), slice(1000, 1004)):
        some, _ = dense.dense(x[rows].copy(), *parameters, activations=activations)
        assert some.tobytes() == y[rows].tobytes()


@pytest.mark.parametrize("activation", [None, "rectify", "tanh", "logistic"])
def test_what_is_not_finite_comes_out_as_from_the_reference(
    activation: str | None, dtype: str
) -> None:
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]
    x = np.array([[a, b] for a in special for b in special], dtype)
    parameters = [np.array([[1.0, 1.0], [2.0, -1.0], [-1.0, 0.5]], dtype), np.zeros(3, dtype)]
    dy = np.array([[s, 1.0, -s] for s in special for _ in special], dtype)
    y, gradients = dense.dense(x, *parameters, activations=(activation,))
    found = [y, gradients(dy)[0]]
    with np.errstate(all="ignore"), accelerators.disabled():
        chain: Any = [(primitives.affine, ())]
        if activation:
            chain.append((getattr(primitives, activation), ()))
        z, back = primitives.chain(x, tuple(chain), [parameters, ()][: len(chain)])
        expected = [z, back(dy)[0]]
    for one, true in zip(found, expected, strict=True):
        # 5 units in the last place of activations; a few sums of three terms
        np.testing.assert_allclose(one, true, rtol=1e2 * np.finfo(dtype).eps, atol=1e-6)


def test_a_row_that_is_not_finite_stays_alone(dtype: str) -> None:
    x, parameters = drawn("odd sizes", (70,), dtype)
    activations = NETWORKS["odd sizes"][1]
    y, _ = dense.dense(x, *parameters, activations=activations)
    x[66] = np.nan
    z, gradients = dense.dense(x, *parameters, activations=activations)
    assert np.all(np.isnan(z[66]))
    rest = np.arange(70) != 66
    assert z[rest].tobytes() == y[rest].tobytes()
    dx = gradients(np.ones_like(z))[0]
    assert np.all(np.isfinite(dx[rest]))


@pytest.mark.parametrize("kind", ["turned", "every second", "not aligned"])
def test_arrays_may_lie_anywhere(kind: str, dtype: str) -> None:
    def moved(array: Real | None) -> Real | None:
        if array is None:
            return None
        if kind == "turned":
            return np.asfortranarray(array)
        if kind == "every second":
            return np.repeat(array, 2, axis=-1)[..., ::2]
        memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(dtype).reshape(array.shape)
        memory[...] = array
        return memory

    x, parameters = drawn("odd sizes", (9,), dtype)
    activations = NETWORKS["odd sizes"][1]
    y, gradients = dense.dense(x, *parameters, activations=activations)
    z, others = dense.dense(moved(x), *map(moved, parameters), activations=activations)
    dy = np.random.default_rng(0).normal(size=y.shape).astype(dtype)
    for one, same in zip((y, *gradients(dy)), (z, *others(moved(dy))), strict=True):
        assert one.tobytes() == same.tobytes()


class Subclass(np.ndarray):
    """An array of another type."""


def test_what_is_declined(dtype: str) -> None:
    x, (w, b, *_) = drawn("4-32-16-4", (8,), dtype)
    other = "float64" if dtype == "float32" else "float32"
    none: tuple[None] = (None,)
    declined: list[tuple[Any, ...]] = [
        (x[:0], w, b),
        (x[:, :3], w, b),
        (x[0, 0], w, b),
        (x.astype(other), w, b),
        (x, w.astype(other), b),
        (x, w, b.astype(other)),
        (x.astype("f2"), w.astype("f2"), b.astype("f2")),
        (x, w, b[:-1]),
        (x, w, b[None]),
        (x, w[:0], b[:0]),
        (x, w[0], b),
        (x, None, b),
        (x, w),
        (x, np.ones((2**13, 4), dtype), None),
    ]
    assert dense.dense(x, w, b, activations=none) is not NotImplemented
    for arrays in declined:
        assert dense.dense(*arrays, activations=none) is NotImplemented
    assert dense.dense(x, w, b, w, b, activations=(None, None)) is NotImplemented
    assert dense.dense(x, *(w[:4], b[:4]) * 17, activations=none * 17) is NotImplemented
    assert dense.dense(x, *(w[:4], b[:4]) * 16, activations=none * 16) is not NotImplemented


def test_hidden_layers_of_very_many_rows_are_not_kept(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, parameters = drawn("4-32-16-4", (1000,), dtype)
    monkeypatch.setattr(dense, "MOST_KEPT", 1000 * 32 * 4)
    assert dense.dense(x, *parameters, activations=NETWORKS["4-32-16-4"][1]) is NotImplemented


def test_a_gradient_of_another_shape_or_dtype(dtype: str) -> None:
    x, parameters = drawn("4-32-16-4", (8,), dtype)
    y, gradients = dense.dense(x, *parameters, activations=NETWORKS["4-32-16-4"][1])
    for wrong in (y[:3], y[:, :2], y[0]):
        with pytest.raises(InputError, match="shape"):
            gradients(wrong)
    whole = np.arange(y.size).reshape(y.shape)
    for one, same in zip(gradients(whole), gradients(whole.astype(dtype)), strict=True):
        assert one.tobytes() == same.tobytes()


def test_a_model_gives_its_parameters_their_gradients(dtype: str) -> None:
    layers = [nn.Linear(5, 7, dtype=dtype, rng=0), nn.Tanh()]
    layers += [
        nn.Linear(7, 7, bias=False, dtype=dtype, rng=1),
        nn.ReLU(),
        nn.Linear(7, 3, dtype=dtype, rng=2),
    ]
    model, x = nn.Sequential(*layers), np.random.default_rng(0).normal(size=(20, 5)).astype(dtype)

    def gradients() -> list[Real]:
        for parameter in model.parameters():
            parameter.zero_grad()
        y, backward = model.forward(x, training=True)
        return [y, backward(np.cos(y)), *(p.grad for p in model.parameters()), model(x)]

    found = gradients()
    with accelerators.disabled():
        expected = gradients()
    for one, true in zip(found, expected, strict=True):
        # Sums of at most 20 terms of order 1, through three layers.
        np.testing.assert_allclose(one, true, rtol=0, atol=300 * np.finfo(dtype).eps)
    assert found[0].tobytes() == found[-1].tobytes()
