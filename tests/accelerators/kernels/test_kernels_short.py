"""Products of factors that are stored in 16 bits: the kernel that stores them, what is multiplied,
and what a backward keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import GUARD, Emulation, numbers
from accelerators.kernels.reference import LAYOUTS, needs_a_compiler

import xbp
from xbp import nn, primitives
from xbp.accelerators.cuda import cublas, short
from xbp.primitives.rounding import FORMATS, round_to

pytestmark = [needs_a_compiler, pytest.mark.usefixtures("_in_use", "_of_any_size")]

EPS = 2.0**-24
NAMES = list(cublas.SHORT)


@pytest.fixture
def _of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "LEAST", 0)


def edges() -> Any:
    """Numbers of all sizes: ends of the formats, ties, subnormal numbers, infinity and nan."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255 << 23, 3000, dtype=np.uint32).view("f4")
    ends = [0, 2.0**-25, 2.0**-24, 3 * 2.0**-25, 2.0**-14, 65504, 65519, 65520, 3.4e38, np.inf]
    near = np.nextafter(np.asarray(ends[:-1], "f4"), np.float32(1))
    ties = np.ldexp(1 + np.arange(64) / 2**12, 3)
    small = np.arange(50) * 2.0**-26
    nan = np.asarray([0x7F800001, 0x7FC00000], "u4").view("f4")
    given = [drawn, ends, near, ties, 1 + np.arange(1, 40, 2) / 2**9, small, nan]
    x = np.concatenate([np.asarray(part, "f4") for part in given])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_nearest_number(name: str, machine: Emulation) -> None:
    x = edges()
    x = x[: x.size // 4 * 4].reshape(2, -1, 2)
    for some in (x, x.transpose(2, 0, 1), x[:, ::2], x[:, 1:, 1]):
        bits = short.shorten(machine.guarded(some), name)
        assert bits.dtype == "uint16" and bits.shape == some.shape
        found = numbers(bits, name)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = primitives.round_to.reference(some, name)  # type: ignore[attr-defined]
            if name == "float16":
                np.testing.assert_array_equal(bits.view("f2"), some.astype("f2"))
        np.testing.assert_array_equal(found, expected)
        assert np.array_equal(np.signbit(found), np.signbit(expected))
    assert set(machine.launches) == {"shorten"}


OPERATIONS: dict[str, tuple[Any, ...]] = {  # operation, x, weight, bias, options
    "affine": (primitives.affine, (9, 20), (7, 20), 7, {}),
    "affine of sequences": (primitives.affine, (3, 5, 12), (7, 12), 7, {}),
    "affine of one feature": (primitives.affine, (5, 1), (1, 1), 1, {}),
    "convolve": (primitives.convolve, (2, 8, 4, 5), (16, 8, 3, 3), 16, {"padding": (1, 1)}),
    "convolve, a stride": (
        *(primitives.convolve, (3, 9, 8, 7), (17, 9, 3, 2), 17),
        {"stride": (2, 3), "padding": (1, 0)},
    ),
    "convolve, rows that no window sees": (
        *(primitives.convolve, (2, 8, 9, 8), (16, 8, 1, 1), 16),
        {"stride": (3, 2)},
    ),
    "convolve, a wide frame": (
        *(primitives.convolve, (2, 8, 3, 3), (16, 8, 2, 2), 16),
        {"padding": (2, 1)},
    ),
    "convolve1d": (primitives.convolve1d, (5, 8, 11), (16, 8, 4), 16, {"padding": (0, 2)}),
}


def run(operation: Any, options: Any, arrays: Any, dy: Any, dtype: str) -> list[Any]:
    x, weight, bias = (None if it is None else it.astype(dtype) for it in arrays)
    y, gradients = operation(x, weight, bias, **options)
    return [y, *gradients(dy[: y.size].reshape(y.shape).astype(dtype))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", OPERATIONS)
def test_products_are_those_of_rounded_factors(case: str, name: str, machine: Emulation) -> None:
    """The sums alone err, by n ε Σ|a||b|; all three products are of 16 bits."""
    operation, x, weight, bias, options = OPERATIONS[case]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("f4") for shape in (x, weight, bias)]
    if len(x) == 4:
        arrays[0] = LAYOUTS["batch_innermost"](arrays[0])
    dy = rng.normal(size=9000).astype("f4")
    with xbp.precision(name):
        found = run(operation, options, arrays, dy, "f4")
        plain, gradients = operation(*arrays[:2], None, **options)
    assert len(machine.products) == 4
    assert set(machine.launches) <= {"shorten", "add_up"}
    near = [round_to(arrays[0], name), round_to(arrays[1], name), arrays[2]]
    truth = run(operation, options, near, round_to(dy, name), "f8")
    truth[3] = run(operation, options, near, dy, "f8")[3]
    sizes = run(operation, options, [abs(array) for array in near], abs(dy), "f8")
    for one, exact, size in zip(found, truth, sizes, strict=True):
        assert one.dtype == "f4"
        assert np.all(abs(one - exact) <= 400 * EPS * size)
    dy = dy[: plain.size].reshape(plain.shape)
    with machine_order(machine, 1):  # the other branch first
        none, dweight, dbias = gradients(dy, False)
        _, again, _ = gradients(dy)
    assert none is dbias is None
    assert np.array_equal(dweight, found[2]) and np.array_equal(again, found[2])


class machine_order:  # noqa: N801
    def __init__(self, machine: Emulation, order: int) -> None:
        self.machine, self.order = machine, order

    def swap(self, *_: object) -> None:
        self.machine.order, self.order = self.order, self.machine.order

    __enter__ = __exit__ = swap


@pytest.mark.parametrize("name", NAMES)
def test_products_alone_and_in_stacks(name: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    for a, b in (((5, 7), (7, 3)), ((2, 3, 7), (7, 4)), ((2, 3, 4, 5), (2, 3, 5, 6))):
        x, z = (rng.normal(size=shape).astype("f4") for shape in (a, b))
        z = np.ascontiguousarray(z.swapaxes(-1, -2)).swapaxes(-1, -2)
        with xbp.precision(name):
            found = primitives.matmul(x, z)
        near = [round_to(it, name).astype("f8") for it in (x, z)]
        assert np.all(abs(found - near[0] @ near[1]) <= 7 * EPS * (abs(near[0]) @ abs(near[1])))
    assert len(machine.products) == 3 and machine.launches.count("shorten") == 6


def test_infinite_factors_and_those_that_become_it(machine: Emulation) -> None:
    """As for the reference: what is too large for float16 is infinite, 0 · ∞ is nan."""
    x = np.asarray([[7e4, 0.0], [np.nan, 1.0], [-np.inf, 1.0], [1.0, 1e-9]], "f4")
    weight = np.asarray([[1.0, 2.0], [0.0, 1.0]], "f4")
    dy = np.ones((4, 2), "f4")
    for name in NAMES:
        with xbp.precision(name), np.errstate(invalid="ignore"):
            y, gradients = primitives.affine(x, weight)
            found = y, *gradients(dy)[:2]
            with xbp.accelerators.disabled():
                y, gradients = primitives.affine(x, weight)
                expected = y, *gradients(dy)[:2]
        for one, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, right)
    assert machine.products


def test_what_is_declined(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, image = np.ones((3, 5), "f4"), np.ones((2, 5), "f4"), np.ones((2, 8, 4, 4), "f4")
    kernel = np.ones((16, 8, 3, 3), "f4")

    def declined(of: Callable[..., Any], *arrays: Any, name: str = "float16", **how: Any) -> bool:
        return getattr(short, f"rounded_{of}")(*arrays, name=name, **how) is NotImplemented

    assert not declined("affine", x, weight) and not declined("convolve", image, kernel)
    assert not declined("matmul", x, weight.T)
    assert declined("affine", x, weight, name="tf32")
    assert declined("affine", x.astype("f8"), weight.astype("f8"))
    assert declined("affine", x[0], weight) and declined("affine", x, weight[:, :4])
    assert declined("affine", x, weight, np.ones(1, "f4")) and declined("affine", x[:0], weight)
    assert declined("matmul", x, weight) and declined("matmul", x[0], weight.T)
    assert declined("matmul", np.ones((2, 3, 5), "f4"), np.ones((1, 5, 2), "f4"))
    assert declined("convolve", image, kernel[:15]) and declined("convolve", image[:, :4], kernel)
    assert declined("convolve", image, kernel, dilation=(2, 1))
    assert declined("convolve", image, kernel[:, :4], groups=2)
    assert declined("convolve", image, kernel, padding=((0, 1), (0, 1)))
    assert declined("convolve", image[:, :, :2], kernel)
    monkeypatch.setattr(short, "LEAST", 31)
    assert declined("affine", x, weight) and declined("matmul", x, weight.T)
    monkeypatch.setattr(short, "LEAST", 30)
    assert not declined("affine", x, weight) and not declined("matmul", x, weight.T)
    monkeypatch.setattr(machine, "multiplies_short", lambda name: False)
    assert declined("affine", x, weight)


def reached(function: Any) -> Iterator[Any]:
    """The arrays that closures refer to, from a function on; each memory once."""
    seen: dict[int, Any] = {}
    rest, met = [function], set()
    while rest:
        it = rest.pop()
        if id(it) in met:
            continue
        met.add(id(it))
        if isinstance(it, np.ndarray):
            while isinstance(it.base, np.ndarray):
                it = it.base
            seen[id(it)] = it
        elif isinstance(it, tuple | list):
            rest += it
        elif getattr(it, "__closure__", None):
            rest += [cell.cell_contents for cell in it.__closure__]
    yield from seen.values()


@pytest.mark.parametrize("operation", ["affine", "convolve"])
def test_a_backward_keeps_two_bytes_for_each_number(operation: str, machine: Emulation) -> None:
    """In float32, and in TF32 where rounded arrays are kept beside the caller's, four or more."""
    shapes = {"affine": ((40, 30), (20, 30)), "convolve": ((3, 16, 6, 6), (16, 16, 3, 3))}
    x, weight = (np.ones(shape, "f4") for shape in shapes[operation])
    bias = np.ones(weight.shape[0], "f4")

    def kept(name: str) -> int:
        with xbp.precision(name):
            _, gradients = getattr(primitives, operation)(x, weight, bias, **options)
        guards = [id(memory) for memory in machine.given]
        return sum(it.nbytes - 2 * GUARD * (id(it) in guards) for it in reached(gradients))

    options = {"padding": (1, 1)} if operation == "convolve" else {}
    for name in NAMES:
        assert kept(name) == 2 * (x.size + weight.size)
    assert kept("tf32") >= 4 * (x.size + weight.size)
    assert kept("float32") >= 4 * (x.size + weight.size)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_gradients_as_by_the_references(name: str, machine: Emulation) -> None:
    """But for rare factors that are rounded to the other neighbour."""
    model = nn.Sequential(
        *(nn.Conv2d(8, 16, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64, 9, rng=1), nn.ReLU(), nn.Linear(9, 4, rng=2)),
    )
    x = np.random.default_rng(0).normal(size=(6, 8, 4, 4)).astype("f4")

    def results() -> list[Any]:
        for parameter in model.parameters():
            parameter.zero_grad()
        y, backward = model.forward(x, training=True)
        return [y, backward(np.cos(y)), *(parameter.grad for parameter in model.parameters())]

    with xbp.precision(name):
        found, count = results(), len(machine.products)
        with xbp.accelerators.disabled():
            expected = results()
    assert count == len(machine.products) == 9
    for one, right in zip(found, expected, strict=True):
        assert np.max(abs(one - right)) <= 4 * FORMATS[name].unit * np.max(abs(right))
