"""Compiled updates of optimizers against their references, at each level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guards import Guards
from numpy.typing import NDArray

from xbp import optim, primitives
from xbp.accelerators.cpu import arrays, native, updates
from xbp.nn import Parameter

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level"),
]

Real = NDArray[Any]
SHAPES = [(1,), (), (15,), (3, 0), (16, 5), (40_001,), (7, 3, 2)]  # in all for several threads
NUMBERS = {  # in the places of the arguments
    "add_scaled": (-0.3,),
    "average": (0.9,),
    "average of products": (0.9,),
    "accumulate": (0.9,),
    "accumulate a share": (0.9, 0.2),
    "rescale": (0.7,),
    "normalized_step": (0.3, 1.5, 1e-3),
}


def drawn(dtype: str, shapes: Any = SHAPES) -> list[list[Real]]:
    """Lists p, a and b of arrays in guarded memory, those of b being positive."""
    rng, guards = np.random.default_rng(0), Guards()
    lists = [[guards.copy(rng.normal(size=s).astype(dtype)) for s in shapes] for _ in range(3)]
    for array in lists[2]:
        np.abs(array, out=array)
    return lists


def arguments(name: str, p: Any, a: Any, b: Any) -> tuple[Any, ...]:
    numbers = NUMBERS[name]
    if name == "normalized_step":
        return p, numbers[0], a, numbers[1], b, numbers[2]
    arrays = {"rescale": (), "average of products": (a, b)}.get(name, (a,))
    return p, numbers[0], *arrays, *numbers[1:]


def functions(name: str) -> tuple[Any, Any, Any]:
    """The accelerator, the primitive and its reference."""
    known = name.split()[0]
    primitive = getattr(primitives, known, None) or getattr(primitives.updates, known)
    return getattr(updates, known), primitive, primitive.reference


def test_lists_and_arrays_are_where_c_expects_them() -> None:
    assert arrays.is_known()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", list(NUMBERS))
def test_a_list_is_changed_as_by_the_reference(
    name: str, threads: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "threads", lambda: threads)
    fast, _, reference = functions(name)
    p, a, b = drawn(dtype)
    before = [[array.tobytes() for array in group] for group in (a, b)]
    one_by_one, _, _ = drawn(dtype)
    true = [[x.astype("f8") for x in group] for group in (p, a, b)]
    for group in zip(*true, strict=True):
        reference(*arguments(name, *group))
    for group in zip(one_by_one, a, b, strict=True):
        assert fast(*arguments(name, *group)) is None
    assert fast(*arguments(name, p, a, b)) is None
    for own, same, expected in zip(p, one_by_one, true[0], strict=True):
        assert own.tobytes() == same.tobytes()  # the number of arrays and threads changes no bit
        # up to five roundings of terms of at most 10
        assert np.all(np.abs(own - expected) <= 40 * np.finfo(dtype).eps)
    assert before == [[array.tobytes() for array in group] for group in (a, b)]


@pytest.mark.parametrize("name", list(NUMBERS))
def test_what_is_not_finite_comes_out_as_from_the_reference(name: str, dtype: str) -> None:
    fast, _, reference = functions(name)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], dtype)
    p, a, b = (grid.ravel().copy() for grid in np.meshgrid(special, special, np.abs(special)))
    expected = p.copy()
    with np.errstate(all="ignore"):
        reference(*arguments(name, expected, a, b))
        assert fast(*arguments(name, [p], [a], [b])) is None
    np.testing.assert_array_equal(p, expected)


RATES = 0.9, 0.99, 0.3, 1.5, 1e-3
"""β₁, β₂, rate, scale and eps of `adaptive_step`."""


def adaptive(dtype: str, shapes: Any = SHAPES) -> list[list[Real]]:
    """Lists p, m, v and g, in guarded memory."""
    return [*drawn(dtype, shapes), drawn(dtype, shapes)[1]]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_adaptive_steps_have_the_bits_of_their_three_updates(
    threads: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "threads", lambda: threads)
    one_by_one, at_once, separate = (adaptive(dtype) for _ in range(3))
    true = [[x.astype("f8") for x in group] for group in at_once]
    for group in zip(*true, strict=True):
        primitives.adaptive_step.reference(*group, *RATES)  # type: ignore[attr-defined]
    for group in zip(*one_by_one, strict=True):
        assert updates.adaptive_step(*group, *RATES) is None
    assert updates.adaptive_step(*at_once, *RATES) is None
    p, m, v, g = separate
    updates.average(m, RATES[0], g)
    updates.average(v, RATES[1], g, g)
    updates.normalized_step(p, RATES[2], m, RATES[3], v, RATES[4])
    for kind, same, three, expected in zip(at_once, one_by_one, separate, true, strict=True):
        for own, other, third, exact in zip(kind, same, three, expected, strict=True):
            assert own.tobytes() == other.tobytes() == third.tobytes()
            assert np.all(np.abs(own - exact) <= 40 * np.finfo(dtype).eps)


def test_an_adaptive_step_of_what_is_not_finite(dtype: str) -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], dtype)
    grids = np.meshgrid(special, special, np.abs(special), special)
    found, expected = ([grid.ravel().copy() for grid in grids] for _ in range(2))
    with np.errstate(all="ignore"):
        primitives.adaptive_step.reference(*expected, *RATES)  # type: ignore[attr-defined]
        assert updates.adaptive_step(*found, *RATES) is None
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_an_adaptive_step_declines(dtype: str) -> None:
    other = "float64" if dtype == "float32" else "float32"
    memory, read_only = np.ones(12, dtype), np.ones(4, dtype)
    read_only.flags.writeable = False
    for place in range(4):
        for wrong in (
            *(np.ones(4, other), np.ones((4, 1), dtype), np.ones(4, dtype).view(Subclass)),
            *([] if place == 3 else [read_only, np.ones(8, dtype)[::2]]),
            *([memory[1:5]] if place else []),  # shared with those before
        ):
            given = [np.ones(4, dtype) for _ in range(4)]
            if wrong.base is memory:
                given[place - 1] = memory[:4]
            given[place] = wrong
            before = [array.copy() for array in given]
            arrays = [[np.ones(4, dtype), array] for array in given]
            assert updates.adaptive_step(*given, *RATES) is NotImplemented
            assert updates.adaptive_step(*arrays, *RATES) is NotImplemented
            for array, copy in zip(given, before, strict=True):
                np.testing.assert_array_equal(array, copy)
            assert all(np.all(first == 1) for first, _ in arrays)
    ones = [np.ones(4, dtype) for _ in range(4)]
    assert updates.adaptive_step(*ones, *RATES[:4], np.ones((), dtype)) is NotImplemented
    strided = [*ones[:3], np.full(8, 2.0, dtype)[::2]]  # a gradient may lie anywhere
    assert updates.adaptive_step(*strided, *RATES) is None
    np.testing.assert_allclose(strided[1], 0.9 + 0.1 * 2, rtol=1e-6)


def test_lists_of_different_lengths_are_declined_and_numbers_beyond_the_dtype_infinite(
    dtype: str,
) -> None:
    lists = [[np.ones(4, dtype) for _ in range(length)] for length in (2, 1, 2, 3)]
    assert updates.adaptive_step(*lists, *RATES) is NotImplemented
    assert all(np.all(array == 1) for group in lists for array in group)
    p, m, v, g = ([np.ones(4, dtype)] for _ in range(4))
    with np.errstate(over="ignore"):
        primitives.adaptive_step(p, m, v, g, 0.9, 0.99, 1e39, 1.0, 1e-8)
    np.testing.assert_allclose(m[0], 1.0, rtol=1e-6)
    np.testing.assert_allclose(p[0], -np.inf if dtype == "float32" else -1e39, rtol=1e-6)


@pytest.mark.parametrize("kind", ["turned", "every second", "not aligned"])
def test_partners_may_lie_anywhere(kind: str, dtype: str) -> None:
    p = [np.ones((6, 4), dtype)]
    rng = np.random.default_rng(0)
    if kind == "turned":
        g = rng.normal(size=(4, 6)).astype(dtype).T
    elif kind == "every second":
        g = rng.normal(size=(6, 8)).astype(dtype)[:, ::2]
    else:
        g = np.zeros(24 * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype).reshape(6, 4)
        g[...] = rng.normal(size=(6, 4))
    assert updates.add_scaled(p, -0.5, [g]) is None  # exact
    np.testing.assert_array_equal(p[0], 1 + np.asarray(-0.5, dtype) * g)


class Subclass(np.ndarray):
    """An array of another type."""


def test_what_does_not_fit_is_declined_and_unchanged(dtype: str) -> None:
    other = "float64" if dtype == "float32" else "float32"
    swapped = np.dtype(dtype).newbyteorder()
    read_only = np.ones(4, dtype)
    read_only.flags.writeable = False
    memory = np.ones(8, dtype)
    p = np.ones(4, dtype)
    declined: list[tuple[Any, Any]] = [
        (np.ones(4, dtype), np.ones(4, other)),
        (np.ones(4, dtype), np.ones(4, swapped)),
        (np.ones(4, swapped), np.ones(4, dtype)),
        (np.ones(4, dtype), np.ones(4, dtype).view(Subclass)),
        (np.ones(4, dtype), np.ones(1, dtype)),
        (np.ones(4, dtype), np.ones((4, 1), dtype)),
        (np.ones(8, dtype)[::2], np.ones(4, dtype)),
        (np.ones(4, "f2"), np.ones(4, "f2")),
        (np.ones(4, "i4"), np.ones(4, "i4")),
        (read_only, np.ones(4, dtype)),
        (memory[:4], memory[1:5]),  # the reference reads before it writes
        (p, p),
    ]
    for to, g in declined:
        before = to.copy()
        for given in ((to, g), ([np.ones(4, dtype), to], [np.ones(4, dtype), g])):
            assert updates.add_scaled(given[0], 1.0, given[1]) is NotImplemented
        np.testing.assert_array_equal(to, before)
    two = [np.ones(4, dtype), np.ones(4, dtype)]
    assert updates.add_scaled(two, 1.0, np.ones((2, 4), dtype)) is NotImplemented
    assert updates.add_scaled(two, 1.0, [np.ones(4, dtype)]) is NotImplemented
    assert updates.add_scaled(two, np.ones((), dtype), two) is NotImplemented
    assert updates.average(two, 0.9, two, two, two) is NotImplemented
    assert all(np.all(array == 1) for array in two)


def test_one_that_does_not_fit_is_left_to_the_reference(dtype: str) -> None:
    p = [np.ones(4, dtype), np.ones(8, dtype)[::2]]
    primitives.add_scaled(p, 2.0, [np.ones(4, dtype), np.ones(4, dtype)])
    assert all(np.array_equal(array, np.full(4, 3.0)) for array in p)


def test_other_layouts_leave_everything_to_the_reference(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "is_known", lambda: False)
    assert updates.rescale([np.ones(3, dtype)], 2.0) is NotImplemented


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda p: optim.SGD(p, 0.1), 1),
        (lambda p: optim.SGD(p, 0.1, 0.9), 2),
        (optim.Adam, 1),
        (optim.AdamW, 2),
    ],
)
def test_an_optimizer_updates_all_parameters_at_once(
    make: Any, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    own = updates._update

    def counted(name: str, dtype: Any) -> Any:
        names.append(name)
        return own(name, dtype)

    monkeypatch.setattr(updates, "_update", counted)
    parameters = [Parameter(np.ones(size, np.float32)) for size in (3, 50, 5000)]
    for parameter in parameters:
        parameter.add_grad(np.ones_like(parameter.data))
    make(parameters).step()
    assert len(names) == calls
