"""Batch normalization and an activation after it, emulated on the CPU, against the references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from layouts import Real, assert_close

from xbp import primitives
from xbp.accelerators.cuda import batch_norm

pytestmark = needs_a_compiler

EPS = 1e-3
SHAPES = [  # with the memory order of axes
    ((16, 3, 9, 8), (1, 2, 3, 0)),  # the batch innermost
    ((37, 3, 5, 3), (1, 2, 3, 0)),
    ((37, 3, 5, 3), (2, 1, 3, 0)),
    ((4, 3, 8, 8), (0, 1, 2, 3)),
    ((3, 1, 19, 9), (0, 1, 2, 3)),
    ((6, 4, 35), (0, 1, 2)),
    ((18, 34, 5), (0, 1, 2)),
    ((300, 70), (0, 1)),
    ((300, 7), (1, 0)),
    ((2, 1), (0, 1)),
    ((1, 2, 1, 2), (0, 1, 2, 3)),
]


def laid_out(x: Real, order: tuple[int, ...], machine: Emulation) -> Real:
    """A copy in that memory order, between guards."""
    copy = machine.empty([x.shape[axis] for axis in order], x.dtype)
    copy[...] = x.transpose(order)
    return copy.transpose(np.argsort(order))


def draw(shape: Any, order: Any, dtype: str, machine: Emulation) -> tuple[Real, ...]:
    rng, channels = np.random.default_rng(0), shape[1]
    levels = np.arange(channels).reshape(-1, *(1,) * (len(shape) - 2))
    x, dy = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    own = (machine.guarded(rng.uniform(0.5, 2, channels).astype(dtype)) for _ in range(4))
    return laid_out((2 * x + levels).astype(dtype), order, machine), dy, *own


def reference(activation: Any, x: Real, *own: Real | None) -> Any:
    """In double precision."""
    given = (None if array is None else array.astype("f8") for array in own)
    y, gradients = primitives.batch_normalize.reference(  # type: ignore[attr-defined]
        x.astype("f8"), *given, eps=EPS
    )
    if activation is None:
        return y, gradients
    name, options = activation
    z, through = getattr(primitives, name).reference(y, **options)
    return z, lambda dy: gradients(through(dy)[0])


@pytest.fixture(params=["one block", "parts"])
def _parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that share a channel, in small arrays too; or none."""
    if request.param == "parts":
        monkeypatch.setattr(batch_norm, "LEAST", 0.001)
        monkeypatch.setattr(batch_norm, "ENOUGH_BLOCKS", 40)
    else:
        monkeypatch.setattr(batch_norm, "ENOUGH_BLOCKS", 1)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize(("shape", "order"), SHAPES, ids=str)
@pytest.mark.parametrize("known", [False, True], ids=["of the batch", "running"])
@pytest.mark.parametrize("activation", [None, ("rectify", {}), ("gelu", {"approximate": "tanh"})])
def test_batch_norm(
    shape: Any, order: Any, known: bool, activation: Any, dtype: str, machine: Emulation
) -> None:
    x, dy, weight, bias, *moments = draw(shape, order, dtype, machine)
    own = (weight, bias, *(moments if known else (None, None)))
    after = {} if activation is None else {"activation": activation[0], **activation[1]}
    y, backward = batch_norm.batch_normalize(x, *own, eps=EPS, **after)
    truth, true_backward = reference(activation, x, *own)
    dx, dw, db, (n, mean, variance) = true_backward(dy.astype("f8"))
    assert y.dtype == dtype and y.strides == x.strides
    assert_close(y, truth, 4)
    terms = x.size // shape[1]
    for given in (dy, laid_out(dy, order, machine), dy.astype("f8")):  # another dtype
        found = backward(given)
        assert found[0].dtype == dtype and found[0].strides == x.strides
        # Two means of terms below 1; of two numbers, r up to 1/√ε magnifies.
        assert_close(found[0], dx, 8 if terms > 2 else 1000)
        assert_close(found[1], dw, terms)
        assert_close(found[2], db, terms)
    assert found[3].n == n == terms
    if known:
        assert found[3].mean is found[3].variance is None
    else:
        assert_close(found[3].mean, mean, 4)
        assert_close(found[3].variance, variance, 4)
    without = backward(dy, False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:3], found[1:3], strict=True))


@pytest.mark.parametrize("which", [(True, False), (False, True), (False, False)])
def test_without_weight_or_bias(which: tuple[bool, bool], dtype: str, machine: Emulation) -> None:
    x, dy, *both, _, _ = draw((16, 3, 9, 8), (1, 2, 3, 0), dtype, machine)
    own = (*(it if has else None for it, has in zip(both, which, strict=True)), None, None)
    y, backward = batch_norm.batch_normalize(x, *own, eps=EPS)
    truth, true_backward = reference(None, x, *own)
    assert_close(y, truth, 4)
    pairs = zip(backward(dy)[:3], true_backward(dy.astype("f8"))[:3], (8, 1152, 1152), strict=True)
    for found, true, terms in pairs:
        if true is None:
            assert found is None
        else:
            assert_close(found, true, terms)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("first", [0.0, 1e5], ids=["typical", "an outlier first"])
def test_a_mean_far_from_zero_and_an_outlier(first: float, dtype: str, machine: Emulation) -> None:
    """Float32 has numbers of 10⁶ ± 1 to a sixteenth; their variance is that of these numbers."""
    rng = np.random.default_rng(0)
    x = machine.guarded((1e6 + rng.normal(size=(64, 2, 9, 8))).astype(dtype))
    x[0, :, 0, 0] += first
    y, backward = batch_norm.batch_normalize(x, None, None, None, None, eps=0.0)
    wide = x.astype(np.longdouble)
    mean, variance = wide.mean((0, 2, 3)), wide.var((0, 2, 3))
    truth = (wide - mean[:, None, None]) / np.sqrt(variance)[:, None, None]
    assert_close(y, truth, 16)
    moments = backward(y)[-1]
    np.testing.assert_allclose(moments.mean, mean, rtol=2 * np.finfo(dtype).eps)
    # Each square has three roundings; sums over parts of a block and over blocks add some.
    np.testing.assert_allclose(moments.variance, variance, rtol=16 * np.finfo(dtype).eps)


def test_equal_numbers_have_no_variance(dtype: str) -> None:
    x = np.full((8, 3, 5, 8), 0.1, dtype)
    y, backward = batch_norm.batch_normalize(x, None, None, None, None, eps=1e-5)
    assert not y.any() and not backward(y)[-1].variance.any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7])
def test_not_finite(wrong: float, place: int, dtype: str) -> None:
    """One channel is spoilt, others are not, and the moments are those of the reference."""
    x = np.random.default_rng(0).normal(size=(8, 3, 5, 8)).astype(dtype)
    x[place, 1, 0, 0] = wrong
    with np.errstate(invalid="ignore"):
        y, backward = batch_norm.batch_normalize(x, None, None, None, None, eps=EPS)
        truth, true_backward = reference(None, x, None, None, None, None)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(truth))
        found, true = backward(x), true_backward(x.astype("f8"))
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(true[0]))
    for a, b in zip(found[-1][1:], true[-1][1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # nan and ∞ included


@pytest.mark.parametrize("channels", [1, 300])
def test_running_statistics(channels: int, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    arrays = [machine.guarded(rng.normal(size=channels).astype(dtype)) for _ in range(4)]
    count = machine.guarded(np.array(2**40))
    mean, variance, new_mean, new_variance = (it.astype("f8") for it in arrays)
    given = (*arrays[:2], count, *arrays[2:])
    assert batch_norm.track(*given, share=0.25, correction=1.5) is None
    assert count == 2**40 + 1
    assert_close(arrays[0], 0.75 * mean + 0.25 * new_mean, 2)
    assert_close(arrays[1], 0.75 * variance + 0.375 * new_variance, 2)
    assert np.array_equal(arrays[2], new_mean) and np.array_equal(arrays[3], new_variance)
    for wrong in (
        (*given[:2], count.astype("i4"), *given[3:]),
        (given[0].astype("f2"), *given[1:]),
        (given[0], np.ones(channels + 1, dtype), *given[2:]),
    ):
        assert batch_norm.track(*wrong, share=0.25, correction=1.5) is NotImplemented
    assert batch_norm.track(*given, share=np.array(0.25), correction=1.5) is NotImplemented
    assert count == 2**40 + 1


def test_what_does_not_fit_is_declined() -> None:
    x, w = np.ones((4, 3, 5)), np.ones(3)
    for given, own, more in [
        (x.astype("f2"), (None,) * 4, {}),
        (x[:0], (None,) * 4, {}),
        (x, (w[:2], None, None, None), {}),
        (x, (None, w.astype("f4"), None, None), {}),
        (x, (None,) * 4, {"sum_": lambda total: None}),
        (np.ones((1, 2**16 * 32)), (None,) * 4, {}),
    ]:
        assert batch_norm.batch_normalize(given, *own, eps=EPS, **more) is NotImplemented
    known = batch_norm.batch_normalize(x, w, w, w, w, eps=EPS, sum_=lambda total: None)
    assert known is not NotImplemented


@pytest.mark.usefixtures("_in_use")
def test_batch_norm_and_its_activation_are_one_pass_of_a_chain(machine: Emulation) -> None:
    x = np.random.default_rng(0).normal(size=(8, 3, 5, 8))
    launches = [
        *("batch_norm_moments", "batch_normalize", "batch_norm_products", "batch_norm_to_input"),
    ]
    for name, options in [("rectify", ()), ("gelu", (("approximate", "tanh"),)), ("silu", ())]:
        machine.launches.clear()
        operations = [
            (primitives.batch_normalize, (("eps", EPS),)),
            (getattr(primitives, name), options),
        ]
        y, backward = primitives.chain(x, operations, [(None,) * 4, ()])
        dx = backward(y)[0]
        assert machine.launches == launches
        truth, true_backward = reference((name, dict(options)), x, *(None,) * 4)
        assert_close(y, truth, 4)
        assert_close(dx, true_backward(y)[0], 8)
