"""Recurrent layers on the GPU, emulated on the CPU, against the reference in double precision."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from accelerators.recurrences import CELLS, FORMS, LAYOUTS, Problem, as_such, wide
from layouts import assert_close

from xbp.accelerators.cells import GATES
from xbp.accelerators.cuda import recurrence
from xbp.accelerators.cuda.recurrence import Plan, plan_for, used_by
from xbp.errors import InputError
from xbp.primitives import cells

pytestmark = needs_a_compiler

SHAPES = {"float32": (4, 5, 3, 12), "float64": (3, 9, 5, 7)}
"""T, N, features, hidden: rows of W_hh that can and cannot be read by 16 bytes."""
PLANS = [  # forward, backward
    (Plan(1, 32, 1, 0), Plan(2, 64, 4, 1)),  # one part; squares beyond all edges
    (Plan(4, 32, 8, 1), Plan(4, 32, 16, 0)),  # several units of a thread, more parts than terms
    (Plan(2, 32, 16, 2), Plan(1, 32, 8, 99)),  # some squares in registers; all
]


def agrees(problem: Problem, terms: int) -> None:
    results = problem.solve(recurrence.recurrence)
    for result, truth in zip(results, problem.truth(), strict=True):
        assert (result is None) == (truth is None)
        if result is not None:
            assert_close(result, truth, terms)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("step", CELLS)
def test_outputs_and_gradients(step: Any, form: Any, dtype: str, machine: Emulation) -> None:
    for layout in LAYOUTS[:3] if FORMS.index(form) < 2 else [as_such]:
        problem = Problem(step, SHAPES[dtype], dtype, layout, **form)
        problem.arguments = [a if a is None else machine.guarded(a) for a in problem.arguments]
        agrees(problem, sum(SHAPES[dtype]) * SHAPES[dtype][0])
    assert machine.launches.count("recur") == machine.launches.count("recur_backward") > 0


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("step", [cells.elman, cells.gru, cells.lstm])
def test_every_kind_of_plan(step: Any, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    T, N, features, hidden = 3, 5, 2, 12 if plan is PLANS[0] else 10
    width = GATES[CELLS.index(step)] * hidden

    def chosen(gates: int, hidden: int, n: int, itemsize: int, *, backward: bool) -> Plan:
        asked.append((gates * hidden, n, itemsize, backward))
        outputs, terms = (hidden, width) if backward else (width, hidden)
        quads, strips = plan[backward].squares(outputs, terms)
        return plan[backward]._replace(held=min(plan[backward].held, quads * strips))

    asked: list[Any] = []
    monkeypatch.setattr(recurrence, "plan_for", chosen)
    agrees(Problem(step, (T, N, features, hidden), "float32", padded=True, chunk=2), 100)
    assert asked == [(width, N, 4, False), (width, N, 4, True)]


def test_products_that_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left to cuBLAS, one by one; here there is none."""
    monkeypatch.setattr(recurrence, "is_large", lambda a, b: a.shape[1] > b.shape[1])
    agrees(Problem(cells.gru, SHAPES["float32"], "float32"), 100)


def test_weights_at_any_address(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read by 16 bytes only where that is aligned."""
    problem, seen = Problem(cells.elman, SHAPES["float32"], "float32"), []
    launch = machine.launch

    def watched(kernel: Any, macros: Any, *others: Any) -> None:
        if "WHOLE" in macros:
            seen.append(macros["WHOLE"])
        launch(kernel, macros, *others)

    monkeypatch.setattr(machine, "launch", watched)
    for offset in (0, 1):
        memory = machine.empty(12 * 12 + 4, "float32")
        weight = memory[offset : offset + 144].reshape(12, 12)
        weight[...] = problem.arguments[2]
        problem.arguments[2] = weight
        agrees(problem, 100)
        problem = Problem(cells.elman, SHAPES["float32"], "float32")
    assert seen == [1, 1, 0, 0]


@pytest.mark.parametrize("step", CELLS)
def test_orders_of_threads_and_a_second_backward(step: Any, machine: Emulation) -> None:
    """No bit depends on the order, nor on whether ∂L/∂x is wanted; no argument changes."""
    first: list[Any] = []
    for machine.order in (0, 1, 2):
        problem = Problem(step, SHAPES["float32"], "float32", padded=True)
        before = wide(problem.arguments), wide(problem.given)
        (h, last), gradients = recurrence.recurrence(*problem.arguments, **problem.options)
        dx, dstates, *found = gradients(*problem.given)
        none, dstates_again, *again = gradients(*problem.given, False)
        assert none is None
        results = [h, *last, *dstates, *found]
        first = first or [*results, dx]
        for one, two in zip([*results, dx], first, strict=True):
            assert np.array_equal(one, two)
        for one, two in zip((*dstates, *found), (*dstates_again, *again), strict=True):
            assert np.array_equal(one, two)
        after = wide(problem.arguments), wide(problem.given)
        for kind in range(2):
            for one, two in zip(_flat(before[kind]), _flat(after[kind]), strict=True):
                assert np.array_equal(one, two)


def _flat(given: Any) -> list[Any]:
    if isinstance(given, list | tuple):
        return [leaf for item in given for leaf in _flat(item)]
    return [] if given is None else [given]


@pytest.mark.parametrize("step", CELLS)
def test_numbers_that_are_not_finite(step: Any) -> None:
    """A sample's infinities and nan stay its own, and are those of the reference."""
    T, N, features, hidden = SHAPES["float32"]
    problem = Problem(step, (T, N, features, hidden), "float32")
    x, finite = problem.arguments[0], problem.solve(recurrence.recurrence)
    x[0, 1], x[1, 2, 0], x[0, 4, 1] = -np.inf, np.inf, np.nan
    kinds, others = 1 + (step is cells.lstm), [0, 3]
    with np.errstate(invalid="ignore"):
        results, truths = problem.solve(recurrence.recurrence), problem.truth()
    for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
        np.testing.assert_allclose(result, truth, rtol=1e-4, atol=1e-4)
        if index < 2 + 2 * kinds:  # states, their gradients and ∂L/∂x, by samples
            rows = np.s_[:, others] if result.ndim == 3 else np.s_[others]
            assert np.array_equal(result[rows], finite[index][rows])


@pytest.mark.parametrize("step", CELLS)
def test_what_is_declined(step: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(step, SHAPES[dtype], dtype)
    other = "float64" if dtype == "float32" else "float32"
    for index in range(len(problem.arguments)):
        for wrong in (lambda a: a.astype(other), lambda a: a[..., :-1]):
            given = list(problem.arguments)
            given[index] = wrong(given[index])
            assert recurrence.recurrence(*given, **problem.options) is NotImplemented
    unknown = {"step": lambda *arguments: step(*arguments)}
    assert recurrence.recurrence(*problem.arguments, **unknown) is NotImplemented
    gradients = recurrence.recurrence(*problem.arguments, **problem.options)[1]
    dh, dstates = problem.given
    for wrong_gradients in ((dh[1:], dstates), (dh, (*dstates[:-1], dstates[-1][1:]))):
        with pytest.raises(InputError, match="shape"):
            gradients(*wrong_gradients)
    for limit in ("MOST_BYTES", "MOST_ENTRIES", "MOST_SHARED"):
        with monkeypatch.context() as patch:
            patch.setattr(recurrence, limit, 100)
            plan_for.cache_clear()
            assert recurrence.recurrence(*problem.arguments, **problem.options) is NotImplemented
        plan_for.cache_clear()


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("gates", [1, 3, 4])
def test_every_size_within_the_bound_has_a_plan(gates: int, itemsize: int) -> None:
    for hidden in (1, 2, 5, 31, 64, 128, 200, 256, 511):
        if gates * hidden**2 * itemsize > recurrence.MOST_BYTES:
            continue
        for n, backward in product((1, 7, 128, 512, 10_000), (False, True)):
            plan = plan_for(gates, hidden, n, itemsize, backward=backward)
            outputs, terms = (hidden, gates * hidden)[:: 1 if backward else -1]
            assert plan is not None
            quads, strips = plan.squares(outputs, terms)
            groups = plan.threads // plan.parts
            assert 4 * quads * groups >= outputs and 4 * strips * plan.parts >= terms
            assert 0 <= plan.held <= quads * strips
            assert used_by(plan, quads, strips, itemsize // 4) * plan.threads <= 2**16


def test_measured_plans_come_first(
    machine: Any, tuned_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, dtype = Plan(2, 64, 4, 3), np.dtype("float32")
    tuned_by({"recurrence": {"float32, 100 units, gates: 3, backward": [[[4], [*mine]]]}})

    def plan(n: int, backward: bool = True) -> Plan | None:
        return recurrence.measured(machine, 3, 100, n, dtype, backward=backward)

    found = {n: plan(n) for n in (1, 128, 396, 397, 5000)}
    assert {n for n, it in found.items() if it == mine} == {397, 5000}
    assert plan(512, backward=False) != mine
    monkeypatch.setattr(recurrence, "MOST_SHARED", 100)
    recurrence.has_room.cache_clear()
    assert plan(512) != mine  # has no room
    recurrence.has_room.cache_clear()
