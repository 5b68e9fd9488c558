"""What training steps ask for: calls found in a dry run, and made again in the emulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerators.emulation import machine as emulation

from benchmarks.gpu.roofline.dry import Watcher
from benchmarks.gpu.tuning import asked, calls, command, measure, package
from benchmarks.gpu.tuning.choosing import forced
from benchmarks.gpu.tuning.table import Table
from xbp.accelerators.cuda import (
    batch_norm,
    embedding,
    launch,
    layer_norm,
    softmax,
    tuned,
)
from xbp.accelerators.cuda.ahead import computed_by

DRAW = measure.drawing(np)
X = np.zeros((2, 3, 8, 4), "f4")
W = np.zeros((12, 4), "f4")
CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "softmax": (softmax.attention, (X, X, X), {"causal": True}),
    "layer_norm": (layer_norm.normalize, (X, X[0, 0, 0], X[0, 0, 0]), {"axes": (3,), "eps": 1e-5}),
    "batch_norm": (batch_norm.batch_normalize, (X, *[np.zeros(3, "f4")] * 2, None, None),
                   {"eps": 1e-5}),
    "embedding": (embedding.embedding, (np.zeros((4, 40), int), W), {}),
}  # fmt: skip


def found(name: str) -> list[calls.Call]:
    """The call of a case, and that of its gradients."""
    function, args, keywords = CASES[name]
    watcher, seen = Watcher(""), list[calls.Call]()
    with computed_by(watcher):
        y, backward = calls.watched(function, watcher, seen)(*args, **keywords)
        backward(y)
    return seen


@pytest.fixture
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    if emulation.compiler() is None:
        pytest.skip("the emulation needs a C++ compiler")
    monkeypatch.setitem(launch.machines, "numpy", emulation.Emulation())


@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize("name", list(CASES))
def test_calls_are_made_again(name: str) -> None:
    for call in found(name):
        case = calls.case_of(call, False, DRAW)
        assert case.error(case.call()) <= 1
        assert call.launches and call.seconds > 0


@pytest.mark.usefixtures("_emulated")
def test_another_choice_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = [it for it in found("layer_norm") if not it.backward]
    ((decision, (allowed, rule)),) = call.asked.items()
    assert rule == (32,) and allowed((64,)) and not allowed((65,))
    case = calls.case_of(call, False, DRAW)
    with forced(decision.family, (64,), decision):
        assert case.error(case.call()) <= 1
        (y,) = calls.numbers_in(case.call())
        assert case.error((y * 1.001, None)) > 1 and np.isnan(case.error((y * np.nan, None)))


def test_calls_in_a_step() -> None:
    several, step = calls.calls_of("mlp-128", 4, "float32")
    families = {decision.family for call in several for decision in call.asked}
    assert families == {"large", "products"}
    assert {call.backward for call in several} == {False, True}
    assert 0 < sum(call.seconds for call in several) <= 2 * step
    assert all(call.then for call in several if call.backward)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "SIZES", [("mlp-128", 4, "float32"), ("lstm", 4, "float32")])


@pytest.mark.usefixtures("_small")
def test_rows_of_what_steps_ask_for(tmp_path: Path) -> None:
    rows = {it.FAMILY: list(it.rows()) for it in asked.ASKED}
    assert [name for name in rows if rows[name]] == ["cuBLAS", "steps' products", "recurrence"]
    every = [row for some in rows.values() for row in some]
    assert len({row.name for row in every}) == len(every)
    assert all(row.name.startswith(family) for family in rows for row in rows[family])
    forward, backward = rows["recurrence"]
    assert "forward" in forward.name and len(forward.tiles) == len(backward.tiles) == asked.PLANS
    assert forward.decision == tuned.Decision(
        "recurrence", "float32, 128 units, gates: 4, forward", (1,)
    )
    table = Table(tmp_path / "times.json", {"device": "X, compute capability 9.0"})
    first, second = list(forward.tiles)[:2]
    table.row(forward)["tiles"] |= {first: 10.0, second: 5.0}
    entry = package.choices([forward], table)["recurrence"]["float32, 128 units, gates: 4, forward"]
    assert entry == [[[1], list(forward.tiles[second]), [5.0, 10.0]]]
    programs = measure.to_compile([forward, rows["cuBLAS"][0]], table)
    assert {file for file, _ in programs} >= {"recurrence.cu"}


@pytest.mark.usefixtures("_small", "_emulated")
def test_a_fused_call_that_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    (cublas,) = [it for it in asked.ASKED if it.FAMILY == "cuBLAS"]
    (row,) = [it for it in cublas.rows() if "4×128×784" in it.name]
    case = row.case(DRAW)
    results = []
    for numbers in ((0,), (1,)):
        with forced(row.kernel, numbers, row.decision):
            results.append(list(calls.numbers_in(case.call())))
    assert len(results[0]) == len(results[1]) >= 3
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_families_that_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    class Family:
        def __init__(self, name: str) -> None:
            self.FAMILY = name

        def rows(self, small: bool) -> list[Any]:
            built.append(self.FAMILY)
            return []

    several = {name: Family(name) for name in ("by hand", "first", "second")}
    monkeypatch.setattr(command, "FAMILIES", several)
    monkeypatch.setattr(command, "ASKED", tuple(several.values())[1:])
    for names, known, expected in (
        ([], set(), ["by hand", "first", "second"]),
        (["VGG"], set(), ["by hand"]),
        (["first float32"], set(), ["by hand", "first"]),
        ([], {"second"}, ["by hand", "second"]),
    ):
        built.clear()
        command.rows_of(names, known, True)
        assert built == expected


def test_the_row_with_the_most_to_gain_is_next(tmp_path: Path) -> None:
    tried: list[str] = []

    def row(name: str, share: float) -> Any:
        case = measure.Case(lambda: name, lambda result: 0.0, lambda: lambda: None)
        tiles = {str(i): (i,) for i in range(5)}
        return measure.Row("some", name, 1, "some", tiles, lambda draw: case, share=share)

    def timed(call: Any) -> float:
        tried.append(call())
        return float(len(tried))  # later ones are slower

    table = Table(tmp_path / "table.json", {})
    rows = [row("small", 0.1), row("large", 0.25)]
    measure.measure(rows, table, measure.Device(DRAW, timed, False), float("inf"))
    assert tried[:5] == ["large", "large", "small", "large", "small"]
    assert sorted(tried) == ["large"] * 5 + ["small"] * 5
