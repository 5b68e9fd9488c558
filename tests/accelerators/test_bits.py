"""XBP_REPRODUCIBLE=1: the same bits for any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from processes import search_path

from xbp import primitives
from xbp.accelerators.cpu import (
    affine,
    attention,
    convolution,
    dense,
    native,
    product,
    recurrence,
    rows,
)
from xbp.primitives import cells

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")
Real = NDArray[Any]
Draw = Callable[..., Real]


def convolved(draw: Draw, n: int, c: int, o: int, size: int, k: int, **options: Any) -> list[Real]:
    y, gradients = convolution.convolve(
        draw(n, c, size, size), draw(o, c // options.get("groups", 1), k, k), draw(o), **options
    )
    return [y, *gradients(draw(*y.shape))]


def recurrent(draw: Draw, step: Any, gates: int, steps: int, n: int, hidden: int) -> list[Real]:
    weights = draw(gates * hidden, 20), draw(gates * hidden, hidden)
    biases, states = (draw(gates * hidden), draw(gates * hidden)), [draw(n, hidden)]
    if step is cells.lstm:
        states.append(draw(n, hidden))
    (h, last), gradients = recurrence.recurrence(
        draw(steps, n, 20), *(w / 8 for w in weights), *biases, *states, step=step
    )
    dx, dstates, *others = gradients(draw(*h.shape), tuple(draw(*state.shape) for state in last))
    return [h, *last, dx, *dstates, *others]


def multiplied(draw: Draw, m: int, k: int, n: int, *stack: int) -> list[Real]:
    a, b = draw(*stack, m, k), draw(*stack, k, n)
    turned = np.ascontiguousarray(b.swapaxes(-1, -2)).swapaxes(-1, -2)
    found = [product.matmul(a, b), product.matmul(a, turned), product.matmul(a, b[..., :3])]
    if stack:
        found.append(product.matmul(a, b[(0,) * len(stack)]))
    for result, right in zip(found, (b, turned, b[..., :3], b[(0,) * len(stack)]), strict=False):
        bound = 1e-5 * (np.abs(a) @ np.abs(right))  # k ε, and more
        assert np.all(np.abs(result - a.astype(float) @ right.astype(float)) <= bound)
    return found


def connected(draw: Draw, n: int, *sizes: int) -> list[Real]:
    weights = [(draw(o, i), draw(o)) for i, o in pairwise(sizes)]
    activations = ("tanh",) * (len(weights) - 1) + (None,)
    flat = [array for pair in weights for array in pair]
    y, gradients = dense.dense(draw(n, sizes[0]), *flat, activations=activations)
    return [y, *gradients(draw(*y.shape))]


def normalized(draw: Draw, n: int, c: int) -> list[Real]:
    y, gradients = rows.normalize(draw(n, c), draw(c), draw(c), axes=(1,), eps=1e-5)
    return [y, *gradients(draw(n, c))]


def attended(draw: Draw, n: int, heads: int, times: int, d: int) -> list[Real]:
    y, gradients = attention.attention(*(draw(n, heads, times, d) for _ in range(3)), causal=True)
    return [y, *gradients(draw(*y.shape))]


def one_layer(draw: Draw, n: int, features: int, out: int) -> list[Real]:
    y, gradients = affine.affine(draw(n, features), draw(out, features), draw(out))
    return [y, *gradients(draw(*y.shape))]


CASES: dict[str, Callable[[Draw], list[Real]]] = {
    "convolution": lambda draw: convolved(draw, 150, 3, 5, 9, 5),
    "few images": lambda draw: convolved(draw, 7, 2, 3, 6, 3, padding=(1, 1)),
    "kernels 1 × 1": lambda draw: convolved(draw, 9, 30, 40, 6, 1),
    "positions one by one": lambda draw: convolved(draw, 33, 8, 17, 6, 5, padding=(2, 2)),
    "Winograd's products": lambda draw: convolved(draw, 150, 8, 9, 8, 3, padding=(1, 1)),
    "with ReLU and pooling": lambda draw: convolved(draw, 150, 2, 4, 8, 3, relu=True, pool=(2, 2)),
    "groups of channels": lambda draw: convolved(draw, 150, 4, 6, 9, 3, groups=2),
    "LSTM": lambda draw: recurrent(draw, cells.lstm, 4, 60, 70, 20),
    "LSTM, few steps": lambda draw: recurrent(draw, cells.lstm, 4, 2, 70, 20),
    "GRU": lambda draw: recurrent(draw, cells.gru, 3, 60, 70, 20),
    "RNN": lambda draw: recurrent(draw, cells.elman, 1, 60, 70, 20),
    "small products": lambda draw: multiplied(draw, 5, 7, 6),
    "large products": lambda draw: multiplied(draw, 330, 700, 130),
    "a stack of products": lambda draw: multiplied(draw, 20, 30, 40, 3, 2),
    "a linear layer": lambda draw: one_layer(draw, 30, 90, 40),
    "dense layers": lambda draw: connected(draw, 1000, 20, 30, 10),
    "rows": lambda draw: normalized(draw, 1000, 70),
    "attention": lambda draw: attended(draw, 5, 3, 40, 20),
    "with strides": lambda draw: convolved(draw, 150, 8, 9, 8, 3, stride=(2, 2)),
}


def found(case: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> list[Real]:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(native, "threads", lambda: threads)
    results = CASES[case](lambda *shape: rng.normal(size=shape).astype(np.float32))
    return [result for result in results if result is not None]


@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_threads(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "reproducible", lambda: True)
    first = found(case, 1, monkeypatch)
    for threads in (2, 3, 7, 64):
        for one, other in zip(first, found(case, threads, monkeypatch), strict=True):
            np.testing.assert_array_equal(one, other)


def test_products_without_entries_and_of_other_dtypes_are_numpys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "reproducible", lambda: True)
    for a, b in (
        (np.ones((3, 0)), np.ones((0, 2))),
        (np.ones((3, 2), np.float16), np.ones((2, 2), np.float16)),
        (np.ones((3, 2)), np.ones((2, 2), np.float32)),
    ):
        np.testing.assert_array_equal(primitives.matmul(a, b), a @ b)


@pytest.mark.parametrize(("value", "most"), [("1", "avx2"), ("0", None), ("", None)])
def test_avx512_is_left_out(value: str, most: str | None) -> None:
    if native.status() != "avx512":
        pytest.skip("this processor has no AVX-512, or a level was chosen")
    program = "import xbp.accelerators as a; print(a.status())"
    environment = os.environ | {"XBP_REPRODUCIBLE": value, "PYTHONPATH": search_path()}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert ("reproducible" in said) == (most is not None)
    assert (most or "avx512") in said
