"""Layer norm, softmax, attention, embedding: emulated on the CPU, against the references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from layouts import Real, assert_close

from xbp import primitives
from xbp.accelerators.cuda import embedding, layer_norm, softmax

pytestmark = needs_a_compiler


def normal(*shape: int, seed: int = 0, dtype: str = "f8") -> Real:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# --- layer norm ----------------------------------------------------------------------------------

ROWS = [  # shape, axes
    ((40, 128), (1,)),
    ((7, 5, 33), (2,)),
    ((300, 3, 4), (1, 2)),
    ((3, 2500), (1,)),  # a block for each row
    ((1, 1), (1,)),
]


@pytest.mark.parametrize(("shape", "axes"), ROWS, ids=str)
@pytest.mark.parametrize("centre", [True, False], ids=["centred", "not centred"])
@pytest.mark.parametrize("has", [(True, True), (True, False), (False, True), (False, False)])
def test_layer_norm(
    shape: Any, axes: Any, centre: bool, has: Any, dtype: str, machine: Emulation
) -> None:
    last = shape[axes[0] :]
    x, dy = (machine.guarded(normal(*shape, seed=seed, dtype=dtype)) for seed in (0, 1))
    both = (machine.guarded(normal(*last, seed=seed, dtype=dtype)) for seed in (2, 3))
    own = [it if wanted else None for it, wanted in zip(both, has, strict=True)]
    options = {"axes": axes, "eps": 1e-3, "centre": centre}
    y, backward = layer_norm.normalize(x, *own, **options)
    double = [None if it is None else it.astype("f8") for it in own]
    reference = primitives.normalize.reference  # type: ignore[attr-defined]
    truth, true_backward = reference(x.astype("f8"), *double, **options)
    assert y.dtype == dtype
    assert_close(y, truth, 4)
    found, true = backward(dy), true_backward(dy.astype("f8"))
    # A row of one number: r is up to 1/√ε.
    for a, b, terms in zip(found, true, (16 if x.size > 1 else 1000, len(x), len(x)), strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert_close(a, b, terms * 8)
    without = backward(dy, False)
    assert without[0] is None
    assert all(
        np.array_equal(a, b) for a, b in zip(without[1:], found[1:], strict=True) if any(has)
    )


@pytest.mark.parametrize(
    "shape", [(5, 3, 2, 4, 3), (70, 2, 3, 16), (9, 4, 1), (9, 1, 2, 25, 20), (3, 2, 1, 1)], ids=str
)
@pytest.mark.parametrize("has", [(True, True), (True, False), (False, True)])
def test_group_norm(shape: Any, has: Any, dtype: str, machine: Emulation) -> None:
    """(N, groups, channels of a group, …), with parameters of (groups, channels, 1, …)."""
    own = (*shape[1:3], *(1 for _ in shape[3:]))
    x, dy = (machine.guarded(normal(*shape, seed=seed, dtype=dtype)) for seed in (0, 1))
    both = (machine.guarded(normal(*own, seed=seed, dtype=dtype)) for seed in (2, 3))
    given = [it if wanted else None for it, wanted in zip(both, has, strict=True)]
    options = {"axes": tuple(range(2, len(shape))), "eps": 1e-3}
    y, backward = layer_norm.normalize(x, *given, **options)
    double = [None if it is None else it.astype("f8") for it in given]
    reference = primitives.normalize.reference  # type: ignore[attr-defined]
    truth, true_backward = reference(x.astype("f8"), *double, **options)
    assert_close(y, truth, 4)
    found, true = backward(dy), true_backward(dy.astype("f8"))
    terms = x.size // (shape[1] * shape[2])
    alone = 1000 if shape[2:] in {(1,), (1, 1)} else 16  # one number: r is up to 1/√ε
    for a, b, count in zip(found, true, (alone, terms, terms), strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.shape == b.shape
            assert_close(a, b, count * 8)
    without = backward(dy, False)
    assert without[0] is None
    assert all(
        np.array_equal(a, b) for a, b in zip(without[1:], found[1:], strict=True) if any(has)
    )
    assert "normalize_to_channel" in machine.launches


def test_layer_norm_of_numbers_far_from_zero(dtype: str) -> None:
    x = (1e6 + normal(6, 200)).astype(dtype)
    y, _ = layer_norm.normalize(x, None, None, axes=(1,), eps=0.0)
    wide = x.astype(np.longdouble)
    wide -= wide.mean(1, keepdims=True)
    assert_close(y, wide / np.sqrt((wide**2).mean(1, keepdims=True)), 16)
    equal, _ = layer_norm.normalize(np.full_like(x, 0.1), None, None, axes=(1,), eps=1e-5)
    # The mean has a rounding error, and so has what it leaves; r is up to 1/√ε.
    assert_close(equal, np.zeros(x.shape), 100)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_layer_norm_of_what_is_not_finite(wrong: float, dtype: str) -> None:
    x = normal(5, 40, dtype=dtype)
    x[2, 3] = wrong
    for centre in (True, False):
        with np.errstate(invalid="ignore"):
            options = {"axes": (1,), "eps": 1e-3, "centre": centre}
            y, backward = layer_norm.normalize(x, None, None, **options)
            reference = primitives.normalize.reference  # type: ignore[attr-defined]
            truth, true_backward = reference(x, None, None, **options)
            np.testing.assert_array_equal(np.isnan(y), np.isnan(truth))
            found, true = backward(np.ones_like(x))[0], true_backward(np.ones_like(x))[0]
        np.testing.assert_array_equal(np.isnan(found), np.isnan(true))


def test_layer_norm_declines_what_does_not_fit() -> None:
    x, w = normal(4, 3, 5), normal(5)
    for given, weight, axes in [
        (x, w, (1,)),
        (x, w[:, None], (2,)),
        (x, w, (1, 2)),
        (x.astype("f2"), None, (2,)),
        (x, w.astype("f4"), (2,)),
        (x[:0], w, (2,)),
        (x, normal(4, 1), (1, 2)),
        (x, normal(3, 1), (2,)),
        (x[0], normal(5, 1), (0, 1)),
    ]:
        assert layer_norm.normalize(given, weight, None, axes=axes, eps=0.1) is NotImplemented


# --- softmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(33, 65), (3, 5, 7), (2, 3000), (1, 1)])
def test_softmax(shape: Any, dtype: str, machine: Emulation) -> None:
    x, dy = (machine.guarded(3 * normal(*shape, seed=seed, dtype=dtype)) for seed in (0, 1))
    y, backward = softmax.softmax(x, axis=-1)
    reference = primitives.softmax.reference  # type: ignore[attr-defined]
    truth, true_backward = reference(x.astype("f8"), axis=-1)
    assert_close(y, truth, 8)
    assert_close(backward(dy)[0], true_backward(dy.astype("f8"))[0], shape[-1])
    assert backward(dy, False) == (None,)
    assert softmax.softmax(x, axis=0) is NotImplemented or x.ndim == 1
    assert softmax.softmax(x.astype("f2"), axis=-1) is NotImplemented


def test_softmax_of_what_is_not_finite(dtype: str) -> None:
    x = normal(6, 40, dtype=dtype)
    x[0, 3], x[1, 4], x[2, 5], x[3], x[4, ::2] = np.nan, np.inf, -np.inf, -np.inf, -np.inf
    reference = primitives.softmax.reference  # type: ignore[attr-defined]
    with np.errstate(invalid="ignore"):
        truth = reference(x, axis=1)[0]
    np.testing.assert_array_equal(np.isnan(softmax.softmax(x, axis=1)[0]), np.isnan(truth))
    assert_close(softmax.softmax(x, axis=1)[0][[2, 4, 5]], truth[[2, 4, 5]], 8)


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 3, 9, 9, 4), (1, 2, 70, 33, 8), (2, 1, 3, 2100, 2)], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["all keys", "causal"])
@pytest.mark.parametrize("ignores", [False, True], ids=["", "some ignored"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "dropout"])
def test_attention(
    sizes: Any, causal: bool, ignores: bool, masked: bool, dtype: str, machine: Emulation
) -> None:
    n, heads, queries, keys, width = sizes
    q = machine.guarded(3 * normal(n, queries, heads, width, dtype=dtype)).transpose(0, 2, 1, 3)
    k, v = (normal(n, heads, keys, size, seed=size, dtype=dtype) for size in (width, width + 1))
    ignored = mask = None
    if ignores:
        ignored = np.arange(n * keys).reshape(n, keys) % 3 == 0
        ignored[-1] = True  # all keys of a sample
    if masked:
        mask = (normal(n, heads, queries, keys) > 0).astype(dtype) * 2
    y, backward = softmax.attention(q, k, v, ignored, mask, causal=causal)
    double = [None if a is None else a.astype("f8") for a in (q, k, v, mask)]
    reference = primitives.attention.reference  # type: ignore[attr-defined]
    truth, true_backward = reference(*double[:3], ignored, double[3], causal=causal)
    assert y.dtype == dtype
    assert_close(y, truth, keys)
    dy = normal(*y.shape, seed=5, dtype=dtype)
    found, true = backward(dy), true_backward(dy.astype("f8"))
    for a, b in zip(found, true, strict=True):
        assert_close(a, b, 8 * keys)
    without = backward(dy, False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:], found[1:], strict=True))


def test_attention_to_scores_that_are_not_finite(dtype: str) -> None:
    q, k, v = (normal(1, 1, 5, 4, seed=seed, dtype=dtype) for seed in range(3))
    k[0, 0, 3] = np.nan
    q[0, 0, 0] = np.inf
    reference = primitives.attention.reference  # type: ignore[attr-defined]
    for causal in (False, True):
        with np.errstate(invalid="ignore"):
            found = []
            for function in (softmax.attention, reference):
                y, backward = function(q, k, v, causal=causal)
                found.append([y, *backward(np.ones_like(y))])
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))


def test_attention_declines_what_does_not_fit() -> None:
    q = normal(2, 3, 5, 4)
    for given, more in [
        ((q.astype("f2"),) * 3, ()),
        ((q, q, q.astype("f4")), ()),
        ((q[:0],) * 3, ()),
        ((q,) * 3, (np.zeros((2, 4), bool),)),
        ((q,) * 3, (np.zeros((2, 5)),)),
        ((q,) * 3, (None, q)),
    ]:
        assert softmax.attention(*given, *more) is NotImplemented


# --- embedding -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "width", "shape"),
    [(7, 3, (9,)), (65, 140, (30, 40)), (1, 1, (1,)), (90, 3, (9,)), (255, 140, (11, 20))],
)
@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("padding", [None, 0])
def test_embedding(
    length: int, width: int, shape: Any, kind: str, padding: Any, dtype: str, machine: Emulation
) -> None:
    low = 0 if kind == "uint8" else -2
    tokens = np.random.default_rng(0).integers(low, length + 2, shape).astype(kind)  # some unknown
    weight = machine.guarded(normal(length, width, dtype=dtype))
    y, backward = embedding.embedding(machine.guarded(tokens), weight, padding)
    truth, true_backward = primitives.embedding.reference(  # type: ignore[attr-defined]
        tokens, weight, padding
    )
    np.testing.assert_array_equal(y, truth)
    dy = machine.guarded(normal(*y.shape, seed=1, dtype=dtype))
    nothing, dweight = backward(dy)
    assert nothing is None and dweight.dtype == dtype
    assert_close(dweight, true_backward(dy.astype("f8"))[1], tokens.size)


@pytest.mark.parametrize("blocks", [1, 4000])
def test_rows_that_share_an_index(
    blocks: int, dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "ENOUGH_BLOCKS", blocks)
    values, index = normal(1000, 130, dtype=dtype), np.arange(1000) ** 2 % 13 - 1
    total = embedding.scatter_add(machine.guarded(values), machine.guarded(index), 11)
    truth = np.zeros((11, 130))
    kept = (index >= 0) & (index < 11)
    np.add.at(truth, index[kept], values[kept].astype("f8"))
    assert_close(total, truth, 1000)
    assert machine.launches == ["scatter_add", "add_up"][: 1 + (blocks > 1)]


def test_rows_without_an_index_are_cleared(
    dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more rows than values; the bits are those of blocks for each row."""
    values, index = normal(600, 130, dtype=dtype), np.arange(600) ** 2 % 301 * 2 + 1
    index[5::50] = 3  # often
    index[100:102] = 2  # only there, side by side
    index[7::100] = -1
    index[9::100] = 700
    given = machine.guarded(values), machine.guarded(index)
    few = embedding.scatter_add(*given, 603)
    assert machine.launches == ["clear", "scatter_few"]
    assert not few[::2].any(axis=1)[[0, *range(2, 302)]].any()
    np.testing.assert_array_equal(embedding.scatter_add(*given, 599), few[:599])
    assert machine.launches[2:] == ["scatter_add"]
    truth = np.zeros((603, 130))
    kept = (index >= 0) & (index < 603)
    np.add.at(truth, index[kept], values[kept].astype("f8"))
    assert_close(few, truth, 600)


def test_embedding_declines_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, weight = np.arange(3), normal(4, 5)
    assert embedding.embedding(tokens, weight.astype("f2")) is NotImplemented
    assert embedding.embedding(tokens[:0], weight) is NotImplemented
    assert embedding.scatter_add(weight, tokens[:0].astype("f8"), 3) is NotImplemented
    assert embedding.scatter_add(weight[:0], tokens[:0], 3) is NotImplemented
    monkeypatch.setattr(embedding, "MOST_SCANNED", 8)
    assert embedding.embedding(tokens, weight) is NotImplemented
    assert embedding.scatter_add(weight[:3], tokens, 4) is NotImplemented
