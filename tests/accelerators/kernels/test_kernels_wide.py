"""Convolutions with many channels, emulated on the CPU, against the reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.convolutions import Case, computed, draw, reference, truth
from accelerators.kernels.reference import LAYOUTS, ends_with, needs_a_compiler
from layouts import assert_close
from nightly import NIGHTLY

from xbp.accelerators.cuda import convolution, launch, wide
from xbp.errors import InputError

pytestmark = needs_a_compiler

WIDE: list[Case] = [
    (8, 16, 6, 5, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, (1, 1)),
    (3, 17, 7, 6, 33, (3, 2), (2, 1), ((0, 2), (1, 0)), (1, 1), 1, False, (1, 1)),
    (4, 24, 9, 8, 70, (3, 3), (2, 3), (1, 2), (1, 1), 1, True, (2, 2)),
    (5, 32, 6, 7, 40, (1, 1), (1, 1), (0, 0), (1, 1), 1, False, (1, 1)),
    (8, 16, 8, 8, 16, (1, 1), (2, 2), (0, 0), (1, 1), 1, False, (1, 1)),
    (12, 32, 9, 9, 48, (3, 3), (2, 2), (2, 1), (1, 2), 1, False, (1, 1)),
    (4, 96, 5, 6, 60, (3, 3), (1, 1), (1, 1), (2, 2), 3, True, (1, 1)),
    (1, 130, 3, 3, 131, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, (1, 1)),
    (2, 16, 5, 5, 40, (2, 2), (4, 3), (0, 1), (1, 1), 2, False, (1, 1)),  # pixels that none sees
    (36, 3, 5, 4, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, True, (2, 2)),
    (6, 16, 1, 9, 16, (1, 4), (1, 5), (0, 3), (1, 1), 1, False, (1, 1)),
    (4, 16, 3, 2, 16, (2, 1), (5, 4), (1, 0), (1, 1), 1, False, (1, 1)),  # strides beyond the image
]


@pytest.fixture(autouse=True)
def _no_choice_is_cached() -> Iterator[None]:
    yield
    for choice in (wide.loadable, wide.tile_of, wide.split):
        choice.cache_clear()


def use(tile: wide.Tile, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This tile alone, or the last one where images cannot be loaded by its threads."""
    tiles_of = wide.tiles_of
    monkeypatch.setitem(wide.TILES, dtype, (tile, wide.TILES[dtype][-1]))
    monkeypatch.setattr(wide, "tiles_of", lambda *given: tiles_of(*given)[:1])


def tiles() -> list[Any]:
    return [
        pytest.param(dtype, tile, id=f"{dtype}-{'x'.join(map(str, tile[:5]))}-{tile.images}")
        for dtype, several in wide.TILES.items()
        for tile in (
            *several,
            several[0]._replace(images=4),
            several[-1]._replace(images=2),
            several[0]._replace(images=12),
        )
    ]


SOME = tiles()[:: 1 if NIGHTLY else 3]


@pytest.mark.parametrize("case", WIDE, ids=str)
@pytest.mark.parametrize(("dtype", "tile"), tiles())
def test_every_tile_on_every_case(
    case: Case, dtype: str, tile: wide.Tile, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tile, dtype, monkeypatch)
    index = WIDE.index(case)
    if index % 2:  # many parts of ∂L/∂W, each of a stage
        monkeypatch.setattr(wide, "LEAST_LENGTH", tile.depth)
    found = computed(machine, case, dtype, list(LAYOUTS)[index % len(LAYOUTS)])
    assert {"convolve_wide", "convolve_wide_to_weight", "convolve_wide_to_input"} <= set(
        machine.launches
    )
    true, terms = truth(case, dtype)
    for result, it, count in zip(found, true, terms, strict=True):
        assert result.dtype == dtype
        assert_close(result, it, count)


@pytest.mark.parametrize("case", [WIDE[2], WIDE[6]], ids=str)
@pytest.mark.parametrize(("dtype", "tile"), SOME)
def test_no_race(
    case: Case, dtype: str, tile: wide.Tile, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tile, dtype, monkeypatch)
    monkeypatch.setattr(wide, "LEAST_LENGTH", tile.depth)
    results = []
    for order in (0, 1, *range(5, 12 if NIGHTLY else 6)):
        machine.order = order
        results.append([array.tobytes() for array in computed(machine, case, dtype)])
    assert all(bits == results[0] for bits in results[1:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("dtype", "tile"), SOME)
def test_nothing_is_read_beyond_the_end(
    dtype: str, tile: wide.Tile, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tile, dtype, monkeypatch)

    def run() -> None:
        for case in WIDE:
            launch.machines["numpy"] = Emulation(fenced=True)
            given, window, then = draw(case, dtype)
            y, back = convolution.convolve(*given, **window, **then)
            found = [y, *back(np.ones(y.shape, dtype))]
            assert all(np.isfinite(array).all() for array in found)

    assert ends_with(run) == 0


def test_the_emulation_finds_that_one_stage_is_not_enough(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may be a stage ahead of another, as there is one barrier for each."""
    whole, other = launch.source, "turn ^= 1"
    assert other in whole("wide.cu")
    monkeypatch.setattr(launch, "source", lambda file: whole(file).replace(other, "turn ^= 0"))
    (given, window, then), found = draw(WIDE[0], "float32"), []
    for order in (0, 1):
        machine.order = order
        found.append(convolution.convolve(*given, **window, **then)[0].tobytes())
    assert found[0] != found[1]


@pytest.mark.parametrize("case", WIDE[:4], ids=str)
def test_sizes_that_are_constants_of_the_program_give_the_same_bits(
    case: Case, dtype: str, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = computed(machine, case, dtype)
    fixed = Emulation(fixed=True)
    monkeypatch.setitem(launch.machines, "numpy", fixed)
    for a, b in zip(variables, computed(fixed, case, dtype), strict=True):
        assert a.tobytes() == b.tobytes()


def test_images_that_do_not_begin_at_a_multiple_of_16_bytes(dtype: str, machine: Emulation) -> None:
    """Then no load is of 16 bytes. ∂L/∂b alone adds in another order."""
    (x, weight, bias), window, then = draw(WIDE[0], dtype)
    results = []
    for shift in (0, 1):
        memory = np.empty(x.size + 64, dtype)
        begin = -memory.ctypes.data % 64 // memory.itemsize + shift
        moved = memory[begin : begin + x.size].reshape(16, 6, 5, 8).transpose(3, 0, 1, 2)
        moved[...] = x
        y, back = convolution.convolve(moved, weight, bias, **window, **then)
        results.append([y, *back(np.cos(y))])
    *equal, bias_gradient = zip(*results, strict=True)
    assert all(np.array_equal(a, b) for a, b in equal)
    assert_close(bias_gradient[1], bias_gradient[0].astype("float64"), 8 * 30)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["x", "weight", "dy"])
@pytest.mark.parametrize("case", [WIDE[0], WIDE[1], WIDE[2]], ids=str)
def test_numbers_that_are_not_finite(case: Case, whose: str, value: float, dtype: str) -> None:
    """As in the reference. Of an infinite weight ∂L/∂x has nan, for the zeros around ∂L/∂y."""
    given, window, then = draw(case, dtype)
    own = dict(zip(("x", "weight"), given, strict=False))
    if whose in own:
        own[whose][1, 2, 1, 1] = own[whose][-1, -1, -1, -1] = value
    with np.errstate(all="ignore"):
        y, back = convolution.convolve(*given, **window, **then)
        true, true_back = reference(given, window, then)
        dy = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
        if whose == "dy":
            dy[1, 2, 0, 1] = dy[-1, -1, -1, -1] = value
        found, truth = [y, *back(dy)], [true, *true_back(dy)]
    if whose == "weight":
        del found[1], truth[1]
    for a, b in zip(found, truth, strict=True):
        # Sums of a few hundred numbers of order 1, in float32 or better.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_gradients_of_another_dtype_or_shape() -> None:
    given, window, then = draw(WIDE[2], "float32")
    y, back = convolution.convolve(*given, **window, **then)
    dy = np.random.default_rng(1).normal(size=y.shape)
    both = [back(d) for d in (dy, dy.astype("float32"))]
    assert all(np.array_equal(a, b) and a.dtype == "float32" for a, b in zip(*both, strict=True))
    for wrong in (dy[:3], dy[..., :-1], dy[0, 0, 0]):
        with pytest.raises(InputError, match="shape"):
            back(wrong)


# --- the rules that choose -----------------------------------------------------------------------


def test_which_convolutions_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    def suits(o: int, c: int, groups: int = 1, stride: Any = (1, 1)) -> bool:
        return wide.suits((o, c // groups, 3, 3), stride, groups)

    assert not suits(6, 1) and not suits(16, 6)  # LeNet-5
    assert suits(64, 3) and suits(16, 16)  # VGG, ResNet-20
    assert suits(64, 64, 4) and not suits(64, 64, 8) and not suits(64, 64, 64)
    assert not suits(8, 512)  # of a tile with 16 outputs half would be idle
    assert not suits(64, 64, 1, (256, 256))  # more classes of pixels than blocks in a grid
    assert wide.tiles_of(np.dtype("float32"), 1)[-1] == wide.TILES["float32"][-1]
    x = np.ones((4, 16, 5, 5), "float32")
    monkeypatch.setattr(convolution, "MOST_ENTRIES", 4 * 20 * 25)
    assert convolution.convolve(x, np.ones((20, 16, 1, 1), "float32")) is NotImplemented
    assert convolution.convolve(x, np.ones((19, 16, 1, 1), "float32")) is not NotImplemented


@pytest.mark.parametrize("dtype", wide.TILES)
def test_a_tile_can_be_filled_by_its_threads(dtype: str) -> None:
    lanes = 16 // np.dtype(dtype).itemsize
    for tile in wide.TILES[dtype]:
        assert tile.threads % 32 == 0 and tile.n <= tile.threads * lanes <= 1024 * lanes
        assert tile.sums_m % lanes == tile.sums_n % lanes == tile.depth % lanes == 0
        for vector in (1, lanes) if tile.n <= tile.threads else (lanes,):
            assert tile.threads % (tile.n // vector) == tile.threads % (tile.depth // vector) == 0


@pytest.mark.parametrize("rows", [16, 64, 100, 256])
@pytest.mark.parametrize("columns", [27, 576, 8192, 131072])
def test_a_tile_leaves_no_multiprocessor_idle_for_its_size(rows: int, columns: int) -> None:
    several = wide.TILES["float32"]
    tile = wide.tile_of(several, rows, columns)
    assert tile.m < 2 * max(rows, 16)
    if rows * columns >= 128 * 128 * 132:
        assert tile.m >= min(rows // 2, 128)
    terms = 131072
    tile, parts, length = wide.split(several, rows, columns, terms)
    assert (parts - 1) * length < terms <= parts * length and length % tile.depth == 0
    number = parts * -(-rows // tile.m) * -(-columns // tile.n)
    assert parts == 1 or number * tile.threads <= wide.RESIDENT * wide.PROCESSORS
    assert number * tile.threads >= 128 * wide.PROCESSORS
