"""Attention by blocks: emulated on the CPU, against the reference; tiles, and where it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import SMALL_TILE, needs_a_compiler
from layouts import Real, assert_close
from nightly import NIGHTLY

from xbp import models, nn, primitives
from xbp.accelerators.cuda import attention, attention_plan, launch, softmax
from xbp.accelerators.cuda.attention_plan import WIDTHS, Sizes, Tile, pays, plan, tiles

pytestmark = needs_a_compiler
reference = primitives.attention.reference  # type: ignore[attr-defined]
GPT = Sizes(48, 64, 64, 32, 32, 4, causal=True)
"""Of the benchmarks: a batch of 12, 4 heads, 64 tokens."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "plan", lambda sizes: (SMALL_TILE, SMALL_TILE))


def normal(*shape: int, seed: int = 0, dtype: Any = "f8") -> Real:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def by_heads(*shape: int, seed: int = 0, dtype: Any = "f8") -> Real:
    """(N, H, T, d), with the memory order (N, T, H, d) of a projection."""
    n, heads, times, width = shape
    return normal(n, times, heads, width, seed=seed, dtype=dtype).transpose(0, 2, 1, 3)


def compare(
    machine: Emulation, sizes: Any, dtype: str, causal: bool, ignores: bool, masked: bool
) -> None:
    n, heads, queries, keys, d, e = sizes
    shapes = (queries, d), (keys, d), (keys, e)
    given = [by_heads(n, heads, *it, seed=i, dtype=dtype) for i, it in enumerate(shapes)]
    q, k, v = (machine.guarded(array) for array in (3 * given[0], *given[1:]))
    ignored = mask = None
    if ignores:
        ignored = machine.guarded(np.arange(n * keys).reshape(n, keys) % 3 == 0)
        ignored[-1] = True  # all keys of a sample
    if masked:
        mask = machine.guarded((normal(n, heads, queries, keys) > 0).astype(dtype) * 2)
    y, backward = attention.by_blocks(q, k, v, ignored, mask, causal=causal)
    double = [None if a is None else a.astype("f8") for a in (q, k, v, mask)]
    truth, true_backward = reference(*double[:3], ignored, double[3], causal=causal)
    assert y.dtype == dtype
    # Scores are of order 3, so that the powers of their errors are relative errors of a few ε.
    assert_close(y, truth, 2 * keys)
    dy = machine.guarded(by_heads(*y.shape, seed=5, dtype=dtype))
    found, true = backward(dy), true_backward(dy.astype("f8"))
    for a, b in zip(found, true, strict=True):
        assert_close(a, b, 8 * max(queries, keys))
    without = backward(dy, False)
    assert without[0] is None
    assert all(np.array_equal(a, b) for a, b in zip(without[1:], found[1:], strict=True))
    assert {*machine.launches} == {"attend_by_blocks", "attend_by_blocks_backward"}


@pytest.mark.parametrize(
    "sizes", [(2, 3, 9, 9, 4, 4), (1, 2, 37, 21, 12, 7), (1, 1, 21, 37, 3, 16)], ids=str
)
def test_by_blocks(sizes: Any, dtype: str, machine: Emulation) -> None:
    for causal in (False, True):
        for ignores, masked in ((False, False), (True, True), (False, True), (True, False)):
            compare(machine, sizes, dtype, causal, ignores, masked)


@pytest.mark.skipif(not NIGHTLY, reason="each tile is a program to compile: nightly")
@pytest.mark.parametrize("width", WIDTHS)
def test_every_tile(
    width: int, dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = [tiles(width, np.dtype(dtype).itemsize, backward) for backward in (False, True)]
    for i in range(max(len(way) for way in ways)):
        both = tuple(way[min(i, len(way) - 1)] for way in ways)
        monkeypatch.setattr(attention, "plan", lambda sizes, both=both: both)
        for sizes in ((1, 2, 70, 67, width, width - 3), (1, 2, 5, 67, width - 5, width)):
            compare(machine, sizes, dtype, True, True, True)
            compare(machine, sizes, dtype, False, False, False)


def test_what_is_not_finite(dtype: str) -> None:
    """Also where it meets hidden scores alone, of blocks that are left out where it does not."""
    rng, met = np.random.default_rng(0), 0
    for _ in range(300 if NIGHTLY else 40):
        causal, (queries, keys) = bool(rng.integers(2)), rng.integers(1, 50, 2)
        given = [rng.normal(size=(1, 1, n, 4)) for n in (queries, keys, keys, queries)]
        for array in given:
            if rng.random() < 0.4:
                row = rng.integers(array.shape[2])
                array[0, 0, row, rng.integers(4)] = rng.choice([np.nan, np.inf, -np.inf])
        q, k, v, dy = (array.astype(dtype) for array in given)
        found = []
        with np.errstate(invalid="ignore", over="ignore"):
            for function in (attention.by_blocks, reference):
                y, backward = function(q, k, v, causal=causal)
                found.append([y, *backward(dy)])
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
            met += causal and bool(np.isnan(a).any())
    assert met > 20


@pytest.mark.skipif(not NIGHTLY, reason="it compiles other programs: nightly")
def test_blocks_of_hidden_scores_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden scores that count as 0 change results only in the blocks that are computed."""
    source, wrong = launch.source, ": 0 * (lowest < 0)"

    def changed(file: str) -> str:
        return source(file).replace(": lowest)", f"{wrong})").replace(": lowest;", f"{wrong};")

    monkeypatch.setattr(launch, "source", changed)
    q, k, v, dy = (normal(1, 1, 32, 4, seed=seed) for seed in range(4))
    q[:, :, 16:] = k[:, :, :16] = v[:, :, :16] = 0
    y, backward = attention.by_blocks(q, k, v, causal=True)
    dq, dk, _ = backward(dy)
    assert not y[0, 0, :16].any() and not dq[0, 0, :16].any() and not dk[0, 0, 16:].any()
    v[0, 0, 16, 0] = np.inf  # so that no block is left out
    with np.errstate(invalid="ignore"):
        y, backward = attention.by_blocks(q, k, v, causal=True)
        assert y[0, 0, :16, 1:].all() and backward(dy)[0][0, 0, :16].all()


def test_nothing_is_copied_and_no_scores_are_kept(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k, v and ∂L/∂y are views of projections, and results have the order of projections."""
    monkeypatch.setattr(attention, "dense", None)
    allocated, empty = [], machine.empty
    monkeypatch.setattr(
        machine, "empty", lambda shape, dtype: (allocated.append(shape), empty(shape, dtype))[1]
    )
    projected = normal(2, 40, 3, 3, 8).transpose(2, 0, 3, 1, 4)
    y, backward = attention.by_blocks(*projected, causal=True)
    results = [y, *backward(by_heads(*y.shape, seed=1))]
    assert all(array.transpose(0, 2, 1, 3).flags.c_contiguous for array in results)
    truth, true_backward = reference(*projected, causal=True)
    for a, b in zip(results, [truth, *true_backward(by_heads(*y.shape, seed=1))], strict=True):
        assert_close(a, b, 320)
    assert sum(np.prod(shape) for shape in allocated) == 4 * y.size + y.size // y.shape[3]


def test_other_memory_orders_are_copied(machine: Emulation) -> None:
    q, k, v, dy = (normal(1, 2, 4, 9, seed=seed).transpose(0, 1, 3, 2) for seed in range(4))
    y, backward = attention.by_blocks(q, k, v)
    truth, true_backward = reference(q, k, v)
    for a, b in zip((y, *backward(dy)), (truth, *true_backward(dy)), strict=True):
        assert_close(a, b, 72)
    unaligned = normal(1, 2, 9, 5)[..., 1:]
    assert_close(attention.by_blocks(unaligned, k, v)[0], reference(unaligned, k, v)[0], 72)


# --- tiles, and where blocks are used -------------------------------------------------------------


def test_tiles_have_their_memory_and_registers() -> None:
    for width in WIDTHS:
        for itemsize in (4, 8):
            for backward in (False, True):
                found = tiles(width, itemsize, backward)
                assert all(tile.suits(itemsize, backward) for tile in found)
                assert all(tile.threads % 32 == 0 and tile.threads <= 256 for tile in found)
                areas = [tile.rows * tile.columns for tile in found]
                assert areas == sorted(areas, reverse=True)
                assert areas[0] >= (512 if itemsize * width <= 256 else 64)


def test_blocks_for_all_multiprocessors() -> None:
    forward, backward = plan(GPT)
    assert GPT.heads * GPT.queries // forward.rows == 192 > attention_plan.PROCESSORS
    assert GPT.heads * 2 * GPT.queries // backward.rows >= 192
    forward, backward = plan(GPT._replace(heads=2000))  # more than enough heads: larger tiles
    assert forward == backward == Tile(64, 32, 4, 4, 32)


def test_where_blocks_are_used() -> None:
    assert pays(GPT) and pays(GPT._replace(causal=False)) and pays(GPT._replace(itemsize=8))
    assert pays(Sizes(512, 28, 28, 16, 16, 4, causal=False))
    assert pays(Sizes(384, 64, 64, 32, 32, 4, causal=True))
    # Products are faster where they are large.
    assert not pays(Sizes(48, 1024, 1024, 64, 64, 4, causal=False))
    # One query of a long sequence: a block would walk alone.
    assert not pays(Sizes(8, 1, 1024, 64, 64, 4, causal=False))
    ones = (Sizes(8, 1, keys, 32, 32, 4, causal=False) for keys in range(1, 1024, 16))
    used = [one for one in ones if pays(one)]
    assert used
    for one in used:
        # Copies of k and v, two products, a pass.
        assert attention_plan.seconds(plan(one)[0], one, backward=False) < 4 * 3.5e-6


def test_a_choice_by_the_environment(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(attention, "by_blocks", lambda *_, **__: used.append("blocks"))
    monkeypatch.setattr(softmax, "attention", lambda *_, **__: used.append("products"))
    small, long, wide = (
        np.ones(shape) for shape in ((1, 2, 3, 4), (1, 2, 5000, 4), (1, 1, 2, 129))
    )
    for said, expected in (
        ("", "blocks products products"),
        ("blocks", "blocks blocks products"),
        ("products", "products products products"),
    ):
        monkeypatch.setenv("XBP_ATTENTION", said)
        used.clear()
        for x in (small, long, wide):
            attention.attention(x, x, x)
        assert " ".join(used) == expected


def test_it_declines_what_does_not_fit() -> None:
    q = normal(2, 3, 5, 4)
    for given, more in [
        ((q.astype("f2"),) * 3, ()),
        ((q, q, q.astype("f4")), ()),
        ((q[:0],) * 3, ()),
        ((q,) * 3, (np.zeros((2, 4), bool),)),
        ((q,) * 3, (np.zeros((2, 5)),)),
        ((q,) * 3, (None, q)),
    ]:
        assert attention.attention(*given, *more) is NotImplemented


@pytest.mark.usefixtures("_in_use")
def test_launches_of_a_gpt(machine: Emulation) -> None:
    """One for each attention forward, one backward; by products there were four and five."""
    model = models.GPT(9, 8, layers=2, heads=2, width=8, rng=0)
    x = np.arange(24).reshape(3, 8) % 9
    logits, backward = model.forward(x, training=True)
    nn.for_parameters(backward)(logits)
    counts = {name: machine.launches.count(name) for name in machine.launches if "attend" in name}
    assert counts == {"attend_by_blocks": 2, "attend_by_blocks_backward": 2}
