"""``python -m benchmarks.gpu tune``: the fit, the table, and a run on the emulation."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerators.emulation import machine as emulation

import benchmarks.gpu.__main__ as command
from benchmarks.gpu.tuning import (
    choosing,
    convolutions,
    fit,
    measure,
    networks,
    package,
    products,
    shapes,
    winograd,
)
from benchmarks.gpu.tuning import command as tuning
from benchmarks.gpu.tuning.row import Case, Row, error_of
from benchmarks.gpu.tuning.table import Table, digest, markdown, regret
from xbp.accelerators.cuda import launch, product, tuned, wide

RESULTS = Path(command.ROOT) / "benchmarks" / "results"
MEASURED = RESULTS / "gpu_nvidia_h200_tuned.json"


# --- the fit -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LATENCIES", range(16, 257, 16))


def synthetic(constants: fit.Constants, noise: float = 0.0) -> list[fit.Measured]:
    """Times that the cost model gives to all tiles, in some unit for each kind of product."""
    rng, units, found = random.Random(0), {"y": 0.1, "∂L/∂x": 0.12, "∂L/∂W": 0.2}, []
    with fit.latency_is(constants.latency):
        for shape in shapes.SHAPES:
            for kind, unit in units.items():
                times = {
                    shapes.label(tile): unit
                    * shapes.predicted(tile, shape, kind)
                    * math.exp(rng.gauss(0, noise))
                    for tile in constants.tiles()
                }
                found.append(fit.Measured(shape, kind, times))
    return found


def other_constants() -> fit.Constants:
    tiles, rng = wide.TILES["float32"], random.Random(1)
    speeds = [1.0, *(rng.uniform(0.4, 1.1) for _ in tiles[1:])]
    labels = map(shapes.label, tiles)
    return fit.Constants(dict(zip(labels, speeds, strict=True)), 96)


def test_least_squares_find_the_constants() -> None:
    true = other_constants()
    found = fit.least_squares(synthetic(true))
    assert found.latency == true.latency
    assert found.speeds == pytest.approx(true.speeds)
    noisy = fit.least_squares(synthetic(true, noise=0.02))
    assert noisy.latency == pytest.approx(true.latency, rel=0.25)
    assert noisy.speeds == pytest.approx(true.speeds, rel=0.05)


def test_the_fit_leaves_no_regret() -> None:
    before, true = wide.LATENCY, other_constants()
    times = synthetic(true)
    assert fit.regret(fit.current(), times) > 1.02
    assert fit.regret(true, times) == pytest.approx(1)
    assert fit.regret(fit.fit(times, trials=3), times) == pytest.approx(1)
    assert before == wide.LATENCY  # put back


def test_a_search_never_ends_worse() -> None:
    times = synthetic(other_constants())
    begin = fit.current()
    found = fit.search(begin, times, trials=20)
    assert fit.regret(found, times) < fit.regret(begin, times)


def test_regret_of_constants() -> None:
    shape, known = shapes.SHAPES[1], wide.TILES["float32"][:2]
    choice = shapes.label(shapes.chosen(known, shape, "y"))
    times = {shapes.label(tile): 10.0 for tile in known} | {choice: 15.0, "of no tile": 1.0}
    assert fit.regret(fit.current(), [fit.Measured(shape, "y", times)]) == pytest.approx(1.5)


def test_a_large_latency_asks_for_more_threads() -> None:
    speeds = {"64x64x8/64": 0.9, "64x64x8/128": 0.8}
    small = shapes.Shape("", 8, 64, 8, 64)
    times = fit.Measured(small, "y", {"64x64x8/64": 3.0, "64x64x8/128": 2.0})
    found = [fit.regret(fit.Constants(speeds, latency), [times]) for latency in (1, 200)]
    assert found == pytest.approx([1.5, 1])


def test_the_choice_is_that_of_the_package() -> None:
    for shape in shapes.SHAPES:
        tiles = shapes.loadable(shape)
        for kind in shapes.KINDS:
            rows, columns, copies = shapes.sizes(shape, kind)
            expected = (
                wide.split(tiles, rows, columns, shape.terms(kind))[0]
                if kind == "∂L/∂W"
                else wide.tile_of(tiles, rows, columns, copies)
            )
            assert shapes.chosen(tiles, shape, kind) == expected


# --- the rules, by the times that were measured --------------------------------------------------


def test_rules_are_close_to_the_best_that_was_measured() -> None:
    table = Table(MEASURED, {})
    for family, allowed in ((convolutions, 1.03), (products, 1.04)):
        found = [regret(row, table.row(row)) for row in family.rows()]
        known = [math.log(it) for it in found if it is not None]
        assert len(known) >= 24, "choices that were measured"
        assert math.exp(sum(known) / len(known)) <= allowed


# --- the table -----------------------------------------------------------------------------------

ASKED = tuned.Decision("some", "float32", (100, 20))


@pytest.fixture(autouse=True)
def _on_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launch.machines, "numpy", emulation.Emulation())


def row(name: str = "a", tiles: str = "rule other", **case: Any) -> Row:
    """A row whose tiles are numbers, and whose result is its tile."""

    def ask() -> float:
        machine = launch.machine_for("numpy")
        return float(tuned.choose(machine, ASKED, lambda it: True, lambda: (1,))[0])

    def made(draw: Any) -> Case:
        given = {"call": ask, "error": lambda found: 0.0, **case}
        return Case(given["call"], given["error"], lambda: lambda: None)

    labels = {label: (1 + i,) for i, label in enumerate(tiles.split())}
    return Row("products", name, 2_000_000, ASKED.family, labels, made)


def device(timed: Any = lambda call: call()) -> measure.Device:
    return measure.Device(measure.drawing(np), timed, peer=False)


def test_times_are_kept_and_only_the_rest_is_measured(tmp_path: Path) -> None:
    path, one = tmp_path / "table.json", row(tiles="rule other third")
    table = Table(path, {"device": "some"})
    assert not table.begin("products", ["product.cu"])
    assert table.left(one) == ["rule", "other", "third"] and one.rule == "rule"
    measure.measure([one], table, device(), math.inf, most=2)
    again = Table(path, {})
    assert again.facts == {"device": "some"} and not again.begin("products", ["product.cu"])
    assert again.row(one)["tiles"] == {"rule": 1.0, "other": 2.0}
    assert again.left(one) == ["third"]
    seen: list[float] = []
    measure.measure([one], again, device(lambda call: seen.append(call()) or 9.0), math.inf)
    assert seen == [3.0] and Table(path, {}).left(one) == []


def test_other_kernels_begin_anew(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.json", {})
    table.begin("products", ["product.cu"])
    table.row(row())["tiles"]["rule"] = 1.0
    assert table.begin("products", ["product.cu", "passes.cu"])
    assert table.left(row()) == ["rule", "other"]
    assert digest(["wide.cu"]) != digest(["product.cu"])


def test_rows_take_turns_until_the_time_is_over(tmp_path: Path) -> None:
    rows, seen = [row("a", "r s t"), row("b", "r s")], []
    table = Table(tmp_path / "table.json", {})

    def timed(call: Any) -> float:
        seen.append(call())
        return 1.0

    measure.measure(rows, table, device(timed), math.inf)
    assert seen == [1, 1, 2, 2, 3]
    measure.measure([row("c")], table, device(timed), time.perf_counter())
    assert table.left(row("c")) == ["rule", "other"] and len(seen) == 5


def test_a_wrong_tile_is_not_timed(tmp_path: Path, capsys: Any) -> None:
    one = row(error=lambda found: 1.5 if found == 2.0 else 0.5)
    table = Table(tmp_path / "table.json", {})
    for nan in (False, True):
        one = row("nan", error=lambda found: math.nan) if nan else one
        measure.measure([one], table, device(), math.inf)
        assert "other" not in table.row(one)["tiles"]
        assert "times what rounding allows" in table.row(one)["failed"]["other"]
    assert table.row(row())["tiles"] == {"rule": 1.0}
    assert "a, other: ArithmeticError: wrong by 1.5" in capsys.readouterr().out
    page = markdown("Tiles", ["by hand"], [row()], table)
    assert "- a, other: ArithmeticError" in page and "by hand" in page


def test_regret_and_page(tmp_path: Path) -> None:
    table, one = Table(tmp_path / "table.json", {}), row()
    assert regret(one, table.row(one)) is None
    table.row(one)["tiles"] |= {"rule": 5.0, "other": 4.0, "checked": None}
    table.row(one)["peer"] = 8.0
    assert regret(one, table.row(one)) == 1.25
    line = "| a | 8 (0.2) | rule | 5 (0.4) | 25 % | other 4; rule 5 |"
    assert line in markdown("Tiles", [], [one], table)


def test_errors_in_units_of_what_rounding_allows() -> None:
    true = np.full(4, 3.0)
    bound = 20 * math.sqrt(16) * 2.0**-23 * 4
    assert error_of(true + bound / 2, true, 16) == pytest.approx(0.5)
    assert math.isnan(error_of(true * np.nan, true, 16))


# --- what is tuned -------------------------------------------------------------------------------


def test_the_rules_come_first() -> None:
    for family in (convolutions, networks, products, winograd):
        rows = list(family.rows())
        assert len({it.name for it in rows}) == len(rows)
        assert all(len(it.tiles) > 1 for it in rows)
    for it in products.rows():
        *tile, depth, first = it.tiles[it.rule][:6]
        assert tuple(tile) in [t[:4] for t in product.TILES] and min(depth, first) >= 1


def test_programs_to_compile(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.json", {})
    rows = [it for it in convolutions.rows() if it.name.startswith("VGG 64-64 @32")]
    found = measure.to_compile(rows, table)
    assert {file for file, _ in found[:3]} == set(convolutions.FILES)
    assert len(found) == len(set(found)) > 15
    assert {dict(macros)["OUT"] for _, macros in found if "OUT" in dict(macros)} == {64}
    for it in rows:
        table.row(it)["tiles"] |= dict.fromkeys(it.tiles, 1.0)
    assert measure.to_compile(rows, table) == []
    small = [it for it in products.rows() if it.name == "batch 32, fc3 forward"]
    assert {file for file, _ in measure.to_compile(small, table)} == {"product.cu"}


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu", "tune", *arguments])
        with pytest.raises(SystemExit) as exit_:
            command.main()
        return int(exit_.value.code or 0)

    return call


@pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs a C++ compiler")
def test_on_the_emulation(tune: Any, tmp_path: Path, capsys: Any) -> None:
    names, before = ("ResNet-20 16-32 /2", "batch 4, fc3"), dict(launch.machines)
    for count, option in ((1, ["--emulate"]), (2, ["--backend", "numpy"])):
        assert tune(*option, "--tiles", "1", "--output", str(tmp_path), *names) == 0
        assert "left out" in capsys.readouterr().out and launch.machines == before
        told = json.loads((tmp_path / "trial_numpy_quick_tuned.json").read_text(encoding="utf-8"))
        rows = [it for family in told["families"].values() for it in family["rows"].values()]
        assert len(rows) == 5
        for it in rows:
            assert [*it["tiles"].values()] == [None] * count and not it["failed"]
    page = (tmp_path / "trial_numpy_quick_tuned.md").read_text(encoding="utf-8")
    assert "| ResNet-20 16-32 /2 ∂L/∂W | – |" in page and "2 checked, not timed" in page
    assert page.count("checked, not timed") == 5 and "batch 4, fc2" not in page


@pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs a C++ compiler")
def test_fewer_products_are_a_choice() -> None:
    one = next(it for it in winograd.rows(small=True) if it.name.startswith("ResNet-20 16-16"))
    decision = package.decision_of(one)
    assert decision is not None and decision.sizes == (8, 16, 16, 6, 6, 1)
    for label, numbers in one.tiles.items():
        with measure.emulation() as device, choosing.forced(one.kernel, numbers):
            assert measure.checked(one.case(device.draw), device) is None
            launches = launch.machines["numpy"].launches  # type: ignore[attr-defined]
        assert ("winograd_output" in launches) == (label == "a quarter")


@pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs a C++ compiler")
def test_divisions_of_whole_networks() -> None:
    (one,) = networks.rows(small=True)
    decision = package.decision_of(one)
    assert decision is not None and decision.sizes == (4,)
    numbers = one.tiles[one.rule]
    with measure.emulation() as device, choosing.forced(one.kernel, numbers):
        assert measure.checked(one.case(device.draw), device) is None
        launches = launch.machines["numpy"].launches  # type: ignore[attr-defined]
    assert launches == ["whole_step", "whole_weights"]
    for it in networks.rows():
        _, samples, resident = it.tiles[it.rule]
        batch = int(it.name.split(",")[0].removeprefix("batch "))
        assert resident == 1 + (batch > 132 * samples)


@pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs a C++ compiler")
def test_a_broken_kernel_is_noticed(
    tune: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = product.multiply
    broken = lambda *given, **more: [(c * 1.01, s) for c, s in whole(*given, **more)]  # noqa: E731
    monkeypatch.setattr(product, "multiply", broken)
    names = ("batch 4, fc3 forward",)
    assert tune("--emulate", "--tiles", "1", "--output", str(tmp_path), *names) == 1
    assert "times what rounding allows" in capsys.readouterr().out


# --- the table of the package --------------------------------------------------------------------


def test_what_is_forced_is_asked_for() -> None:
    def choose(decision: tuned.Decision = ASKED) -> tuned.Numbers:
        machine = launch.machine_for("numpy")
        return tuned.choose(machine, decision, lambda it: it != (3,), lambda: (1,))

    with choosing.forced("some", (2,)):
        assert choose() == (2,) and choose(ASKED._replace(family="another")) == (1,)
    with choosing.forced("some", (2,), ASKED._replace(key="float64")):
        assert choose() == (1,)
    with choosing.forced("some", (3,)), pytest.raises(ValueError, match="cannot be"):
        choose()
    ((decision, (allowed, rule)),) = choosing.asked_by(choose).items()
    assert decision == ASKED and rule == (1,) and not allowed((3,))
    assert choose() == (1,)


def test_the_fastest_is_installed_where_it_gains(tmp_path: Path) -> None:
    table, path = Table(tmp_path / "times.json", {"device": "X, compute capability 8.6"}), tmp_path
    table.row(row())["tiles"] |= {"rule": 10.0, "other": 9.4, "of no tile": 1.0}
    found = package.choices([row()], table)
    assert found == {"some": {"float32": [[[100, 20], [2], [9.4, 10.0]]]}}
    table.row(row())["tiles"]["other"] = 9.6
    assert package.choices([row()], table)["some"]["float32"][0][1] == []
    assert package.choices([row("unknown")], table) == {}
    path = tmp_path / "sm_86.json"
    assert package.install([row()], table, path, "once") == 0
    table.row(row())["tiles"]["other"] = 5.0
    assert [package.install([row()], table, path, said) for said in ("twice", "once")] == [1, 1]
    told = tuned.read(path, "86")
    assert told.rows == {("some", "float32"): [((100, 20), (2,))]} and "once; twice" in told.said


def test_rows_of_the_rule_stay_beside_near_choices() -> None:
    rows = [[[100], [1]], [[110], []], [[1000], []], [[300], [2]]]
    again = [[[300], []]]
    found = package.merged({"a": {"b": rows}, "c": {"d": rows[2:3]}}, {"a": {"b": again}})
    assert found == {"a": {"b": rows[:2]}}


def test_the_package_has_what_was_measured(tmp_path: Path, tune: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tuned, "path_of", lambda architecture: tmp_path / f"{architecture}.json")
    monkeypatch.setattr(tuning, "report", lambda *arguments: "")
    names = ("batch 512", "VGG 128-128")
    assert tune("--report", str(MEASURED), "--install", *names) == 0
    found = tuned.read(tmp_path / "90.json", "90").rows
    mine = tuned.read(Path(tuned.__file__).parent / "sm_90.json", "90").rows
    assert {key for key, _ in found} == {"products", "wide"}
    for key, rows in found.items():
        assert [row for row in rows if row not in mine[key]] == []


def test_report_of_a_table(tune: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "TRIALS", 2)
    monkeypatch.setattr(tuning, "fit", lambda known: fit.fit(known, trials=2))
    assert tune("--report", str(MEASURED)) == 0
    said = capsys.readouterr().out
    assert "convolutions: the rule takes " in said and "products: the rule takes " in said
    assert "LATENCY = " in said and said.count("    Tile(") == len(wide.TILES["float32"])


def test_no_such_product(tune: Any, capsys: Any) -> None:
    assert tune("--emulate", "nothing") == 2
    assert "no product has a name with nothing" in capsys.readouterr().err
