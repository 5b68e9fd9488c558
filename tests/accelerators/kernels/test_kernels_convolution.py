"""Convolution and pooling, emulated on the CPU, against their references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import CONVOLUTIONS, LAYOUTS, convolve, needs_a_compiler
from layouts import assert_close

from xbp import primitives
from xbp.accelerators.cuda import activations, convolution, launch, pooling
from xbp.errors import InputError

pytestmark = needs_a_compiler


@pytest.mark.parametrize("fill", ["full", "empty"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(
    case: Any, fill: str, dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fill == "full":  # few threads, each with as many channels as possible
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
    """The constants are those of NVRTC's compilation."""
    monkeypatch.setattr(convolution, "FILL", 1)
    variables, _ = convolve(machine, CONVOLUTIONS[1], "rows_first", "float32")
    fixed = Emulation(fixed=True)
    monkeypatch.setitem(launch.machines, "numpy", fixed)
    constants, _ = convolve(fixed, CONVOLUTIONS[1], "rows_first", "float32")
    assert all(np.array_equal(a, b) for a, b in zip(variables, constants, strict=True))


@pytest.mark.parametrize("teams", [1, 3])
@pytest.mark.parametrize("taps", [5, 11])
@pytest.mark.parametrize("sums", [1, 24])
def test_results_for_any_division_of_the_work(
    teams: int, taps: int, sums: int, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of taps of a block, one or two of five; its outputs, of seven; threads for a pixel."""
    monkeypatch.setattr(convolution, "MOST_TEAMS", teams)
    monkeypatch.setattr(convolution, "MOST_TAPS", taps)
    monkeypatch.setattr(convolution, "MOST_SUMS", sums)
    case = (6, 3, 9, 8, 7, (5, 5), (2, 1), (1, 2), True, (1, 2))
    found, truth = convolve(machine, case, "rows_first", "float64")
    for result, true, count in zip(found, truth, (75, 175, 168, 168), strict=True):
        assert_close(result, true, count)


@pytest.mark.parametrize("splits", [(4 * 196 * 64, 1), (30, 1), (4096, 24), (10**6, 10**4)])
def test_a_sum_is_split_into_parts_that_are_worth_a_block(splits: tuple[int, int]) -> None:
    entries, rows = splits
    parts = convolution.parts_of(entries, rows)
    assert 1 <= parts <= convolution.MOST_PARTS
    assert parts == 1 or entries / parts >= 2 * convolution.THREADS


def test_threads_share_the_channels_where_there_are_few_threads() -> None:
    # LeNet-5's second convolution with batches of 128: y, with windows of four, and ∂L/∂x
    assert convolution.teams_of(6, (25, 4), 4 * 4) == 3
    assert convolution.teams_of(16, (196, 1), 6) == 4
    assert convolution.teams_of(16, (784, 1), 6) == 1
    assert convolution.teams_of(1, (25, 4), 6) == 1
    for sums in (1, 6, 8, 16, 32, 128):
        room = (convolution.teams_of(99, (1, 1), sums) - 1) * sums * convolution.THREADS
        assert room <= convolution.ROOM


def test_a_thread_has_the_pixels_of_a_step_from_window_to_window() -> None:
    assert convolution.block_of((14, 14), (0, 0), (2, 2)) == ((2, 2), 7 * 7)  # LeNet-5's second one
    assert convolution.block_of((9, 9), (1, 2), (2, 2)) == ((2, 2), 5 * 5)
    assert convolution.block_of((9, 9), (3, 1), (2, 2)) == ((2, 2), 5 * 5)
    assert convolution.block_of((9, 9), (3, 1), (2, 3)) == ((1, 1), 9 * 9)  # else six


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


@pytest.mark.parametrize("size", [(1, 1), (None, 3), (2, None)])
def test_adaptive_average_pool(size: Any, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 4, 6)).astype(dtype)
    y, backward = pooling.adaptive_average_pool(machine.guarded(x), output_size=size)
    reference = primitives.adaptive_average_pool.reference  # type: ignore[attr-defined]
    truth, true_backward = reference(x.astype("f8"), output_size=size)
    dy = rng.normal(size=y.shape).astype(dtype)
    assert_close(y, truth, 24)
    assert_close(backward(dy)[0], true_backward(dy.astype("f8"))[0], 2)
    assert machine.launches == ["pool", "pool_to_input"]
    for other in ((3, 1), (8, 6), (None, 4)):
        assert pooling.adaptive_average_pool(x, output_size=other) is NotImplemented


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
        activations.rectify(x),
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
