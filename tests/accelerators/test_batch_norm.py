"""Batch normalization, and ReLU after it, in one pass: against the reference, in guarded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from layouts import assert_close, elsewhere, unaligned
from numpy.typing import NDArray

from xbp import accelerators, nn, primitives
from xbp.accelerators.cpu import native, normalization

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("threads", "guards"),
]

Real = NDArray[Any]
EPS = 1e-3
SHAPES = [  # with the memory order of axes
    ((37, 3, 9, 8), (2, 1, 3, 0)),  # the batch innermost
    ((16, 5, 1, 1), (2, 1, 3, 0)),
    ((200, 2, 7, 6), (2, 1, 3, 0)),  # several chunks of a sum
    ((4, 3, 8, 7), (0, 1, 2, 3)),
    ((3, 1, 100, 90), (0, 1, 2, 3)),
    ((6, 4, 19), (0, 1, 2)),
    ((18, 4, 5), (2, 1, 0)),
    ((70, 7), (1, 0)),
    ((5, 3, 20, 20), (3, 1, 2, 0)),
    ((64, 4, 16, 16), (2, 1, 3, 0)),  # on all threads
]


def laid_out(x: Real, order: tuple[int, ...]) -> Real:
    copy = np.empty([x.shape[axis] for axis in order], x.dtype)
    copy[...] = x.transpose(order)
    return copy.transpose(np.argsort(order))


def draw(shape: tuple[int, ...], order: tuple[int, ...], dtype: str) -> tuple[Real, ...]:
    rng, channels = np.random.default_rng(0), shape[1]
    x = laid_out(
        (
            3 * rng.normal(size=shape) + np.arange(channels).reshape(-1, *(1,) * (len(shape) - 2))
        ).astype(dtype),
        order,
    )
    dy = laid_out(rng.normal(size=shape).astype(dtype), order)
    return x, dy, *rng.uniform(0.5, 2, size=(4, channels)).astype(dtype)


def reference(relu: bool, x: Real, dy: Real, *parameters: Real | None) -> tuple[Real, ...]:
    """Output, gradients and moments, in double precision."""
    x, dy, *own = (None if a is None else a.astype("f8") for a in (x, dy, *parameters))
    y, gradients = primitives.batch_normalize.reference(x, *own, eps=EPS)  # type: ignore[attr-defined]
    if relu:
        dy = dy * (y > 0)
        y = np.maximum(y, 0)
    return y, *gradients(dy)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("known", [False, True], ids=["of_the_batch", "running"])
def test_it_is_the_reference(shape: Any, relu: bool, known: bool, dtype: str) -> None:
    x, dy, weight, bias, *moments = draw(*shape, dtype)
    own = (weight, bias, *moments) if known else (weight, bias, None, None)
    y, backward = elsewhere(normalization.batch_normalize, x, *own, eps=EPS, relu=relu)
    truth, dx, dw, db, (n, mean, variance) = reference(relu, x, dy, *own)
    assert y.dtype == dtype and y.strides == x.strides
    assert_close(y, truth, 4)
    terms = x.size // x.shape[1]
    for given in (dy, np.ascontiguousarray(dy), dy.astype("f8")):  # other orders, another dtype
        found = elsewhere(backward, given)
        assert_close(found[0], dx, 8)  # two means of terms below 1
        assert_close(found[1], dw, terms)
        assert_close(found[2], db, terms)
    assert found[3].n == n == terms
    if known:
        assert found[3].mean is found[3].variance is None
    else:
        assert_close(found[3].mean, mean, 4)
        assert_close(found[3].variance, variance, 4)
    without = elsewhere(backward, dy, False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:3], found[1:3], strict=True))


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=str)
def test_without_weight_or_bias(given: tuple[bool, bool], dtype: str) -> None:
    x, dy, weight, bias, *_ = draw((40, 3, 4, 5), (2, 1, 3, 0), dtype)
    own = weight if given[0] else None, bias if given[1] else None, None, None
    y, backward = normalization.batch_normalize(x, *own, eps=EPS)
    truth, dx, dw, db, _ = reference(False, x, dy, *own)
    found = backward(dy)
    assert_close(y, truth, 4)
    assert_close(found[0], dx, 8)
    for one, other in zip(found[1:3], (dw, db), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, 800)


@pytest.mark.parametrize("channels", [17, 3])  # more than threads, and fewer
def test_no_bit_depends_on_the_number_of_threads(
    channels: int, dtype: str, monkeypatch: Any
) -> None:
    """Few threads: those of a kernel never end, and each later call wakes all of them."""
    x, dy, weight, bias, *_ = draw((64, channels, 16, 8), (2, 1, 3, 0), dtype)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        y, backward = normalization.batch_normalize(x, weight, bias, None, None, eps=EPS, relu=True)
        dx, dw, db, (_, mean, variance) = backward(dy)
        results.append([array.tobytes() for array in (y, dx, dw, db, mean, variance)])
    assert all(other == results[0] for other in results[1:])


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_numbers_far_from_zero_keep_their_precision(offset: float) -> None:
    """A first number, or a first chunk, far from the others."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1, 3, 20_000)) + offset).astype("float32")
    x[:, 1, 0] += 1000
    x[:, 2, :5000] += 1000
    y, backward = normalization.batch_normalize(x, None, None, None, None, eps=EPS)
    truth, _, _, _, (_, mean, variance) = reference(False, x, x, None, None, None, None)
    found = backward(x)[3]
    # The numbers are exact; a mean is rounded once, a variance like a sum of positive numbers.
    np.testing.assert_allclose(found.mean, mean, rtol=2e-7, atol=2e-7)
    np.testing.assert_allclose(found.variance, variance, rtol=2e-6)
    np.testing.assert_allclose(y, truth, rtol=2e-6, atol=2e-6)


def test_equal_numbers_have_no_variance(dtype: str) -> None:
    x = np.full((50, 2, 6, 6), 1e6 + 0.3, dtype)
    y, backward = normalization.batch_normalize(x, None, None, None, None, eps=1e-12)
    variance = backward(x)[3].variance
    assert not y.any() and not variance.any()


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 5000, -1])
def test_what_is_not_finite_comes_out_as_from_the_reference(
    relu: bool, value: float, where: int, dtype: str
) -> None:
    x, dy, weight, bias, *moments = draw((2, 3, 100, 90), (0, 1, 2, 3), dtype)
    x[1, 1].reshape(-1)[where] = value
    dy[0, 2, 3, 4] = value
    operations = [(primitives.batch_normalize, (("eps", EPS),)), (primitives.rectify, ())]
    for own in ((weight, bias, None, None), (weight, bias, *moments)):
        results = []
        for context in (nullcontext, accelerators.disabled):
            with context(), np.errstate(invalid="ignore"):
                y, backward = primitives.chain(x, operations[: 1 + relu], [own, ()][: 1 + relu])
                dx, dw, db, found = backward(dy)
            results.append([y, dx, dw, db, found.mean, found.variance])
        for one, other in zip(*results, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_what_it_declines() -> None:
    x, one = np.ones((32, 2, 4, 4)), np.ones(2)
    own = one, one, None, None

    def declined(x: Any, *own: Any, **options: Any) -> bool:
        return normalization.batch_normalize(x, *own, eps=EPS, **options) is NotImplemented

    assert not declined(x, *own)
    assert declined(x, *own, sum_=print) and not declined(x, one, one, one, one, sum_=print)
    assert declined(x.astype("f2"), *(None,) * 4)
    assert declined(x[:0], *own)
    assert declined(x[:, :, ::2], *own)
    assert declined(np.ones((32, 2)), *own)  # a channel's numbers are not contiguous
    assert declined(x.astype("f4"), *own)
    assert declined(x, one[:1], one, None, None) and declined(x, one, one, one, np.ones(3))
    assert declined(np.ones(5), None, None, None, None)


def test_memory_that_is_not_aligned_and_parameters_with_gaps(dtype: str) -> None:
    x, dy, weight, bias, *_ = draw((40, 3, 4, 5), (0, 1, 2, 3), dtype)
    spread = [np.repeat(array, 2)[::2] for array in (weight, bias)]
    expected = normalization.batch_normalize(x, weight, bias, None, None, eps=EPS)
    y, backward = normalization.batch_normalize(unaligned(x), *spread, None, None, eps=EPS)
    assert np.array_equal(y, expected[0])
    pairs = zip(backward(unaligned(dy))[:3], expected[1](dy)[:3], strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_memory_of_a_call_lives_as_long_as_its_backward(dtype: str) -> None:
    x, dy, weight, bias, *_ = draw((40, 3, 4, 5), (0, 1, 2, 3), dtype)
    _, backward = normalization.batch_normalize(
        x.copy(), weight.copy(), bias.copy(), None, None, eps=EPS
    )
    expected = [array.copy() for array in backward(dy)[:3]]
    for _ in range(20):  # other calls, which reuse freed memory
        normalization.batch_normalize(2 * x, weight, bias, None, None, eps=EPS)
    assert all(np.array_equal(a, b) for a, b in zip(expected, backward(dy)[:3], strict=True))


@pytest.mark.parametrize("make", [lambda: [nn.ReLU()], list], ids=["relu", "plain"])
def test_in_a_model_statistics_move_once_and_results_are_those_of_single_layers(
    make: Callable[[], list[nn.Layer]], dtype: str
) -> None:
    def model() -> nn.Sequential:
        conv = nn.Conv2d(2, 3, 3, dtype=dtype, rng=0)
        return nn.Sequential(conv, nn.BatchNorm2d(3, dtype=dtype), *make(), nn.Flatten())

    x = np.random.default_rng(0).normal(size=(40, 2, 6, 6)).astype(dtype)
    whole, single = model(), model()
    y, backward = whole.forward(x, training=True)
    state = whole.state_dict()
    assert not state["1.running_mean"].any() and state["1.num_batches_tracked"] == 0
    dx = [backward(y), backward(y)][0]
    expected, backwards = x, []
    for layer in single:
        expected, back = layer.forward(expected, training=True)
        backwards.append(back)
    for _ in range(2):
        delta = expected
        for back in reversed(backwards):
            delta = back(delta)
    for one, other in (
        (y, expected),
        (dx, delta),
        *((p.grad, q.grad) for p, q in zip(whole.parameters(), single.parameters(), strict=True)),
        *zip(whole.state_dict().values(), single.state_dict().values(), strict=True),
    ):
        assert_close(one.astype(dtype), other.astype("f8"), 1000)
    assert whole.state_dict()["1.num_batches_tracked"] == 1
    assert_close(whole(x), single(x), 10)


def test_a_value_a_channel_is_refused_in_training_alone() -> None:
    from xbp.errors import InputError

    model = nn.Sequential(nn.Linear(4, 3, rng=0), nn.BatchNorm1d(3), nn.ReLU())
    x = np.ones((1, 4), "float32")
    assert model(x).shape == model.forward(x)[0].shape == (1, 3)
    with pytest.raises(InputError, match="more than one value a channel in training"):
        model.forward(x, training=True)
    assert math.prod(model.forward(np.ones((2, 4), "float32"), training=True)[0].shape) == 6
