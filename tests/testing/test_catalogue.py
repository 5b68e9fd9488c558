"""The catalogue of `xbp parity` is complete, and notices faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import accelerators, nn, optim
from xbp.accelerators.cuda import short
from xbp.backend import why_unavailable
from xbp.testing.cases import (
    DIFFERENTIABLE,
    INITIALIZERS,
    LAYERS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    PRIMITIVES,
)
from xbp.testing.catalogue import AcceleratorItem, Item, catalogue, scattered
from xbp.testing.certificate import certify
from xbp.testing.curves import TRAININGS
from xbp.testing.parity import findings

ITEMS = [item for item in catalogue() if isinstance(item, Item)]


def names(*kinds: str) -> set[str]:
    return {item.name for item in ITEMS if item.kind in kinds}


@pytest.fixture
def strict() -> str:
    reason = why_unavailable("array_api_strict")
    if reason:
        pytest.skip(reason)
    return "array_api_strict"


# --- completeness --------------------------------------------------------------------------------


def test_it_is_the_table() -> None:
    for kind, table in (("layer", LAYERS), ("loss", LOSSES), ("model", MODELS)):
        assert names(kind) == {line.name for line in table}
    assert names("optimizer") == {line.name for line in OPTIMIZERS} | {
        "clip_grad_norm",
        "clip_grad_value",
    }
    assert names("initializer") == {line.name for line in INITIALIZERS}
    assert names("primitive") == {name for name, *_ in (*PRIMITIVES, *DIFFERENTIABLE)}


def test_every_accelerator_is_in_it_and_computes_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(short, "LEAST", 0)  # cases are small
    expected = {(name, backend) for name, backend, _ in accelerators.registered()}
    items = [item for item in ITEMS if isinstance(item, AcceleratorItem)]
    assert {(item.name, item.accelerator.backend) for item in items} == expected
    for name, backend in expected:
        cases = (i for i in items if (i.name, i.accelerator.backend) == (name, backend))
        assert any(item.check([backend]) for item in cases)


def test_operations_of_rounded_factors_have_no_numeric_derivatives() -> None:
    found = [item for item in ITEMS if item.name.startswith("rounded_")]
    assert len({item.name for item in found}) == 4
    for item in found:
        assert [str(finding) for finding in item.check(["numpy"]) if not finding.passed] == []


def test_accelerators_that_are_switched_off_are_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with accelerators.disabled():
        assert not any(isinstance(item, AcceleratorItem) for item in catalogue())
        monkeypatch.setattr("xbp.testing.certificate.catalogue", lambda: iter(()))
        assert certify(["numpy"]) == []


def test_every_item_has_several_cases_and_no_case_comes_twice() -> None:
    cases = [(item.kind, item.case) for item in catalogue()]
    assert len(set(cases)) == len(cases)
    for kind, name in {(item.kind, item.name) for item in ITEMS} - {("initializer", "map_by_map")}:
        assert sum(item.name == name and item.kind == kind for item in ITEMS) >= 2, name


# --- what is fed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(names("primitive")))
def test_every_case_of_a_primitive_can_be_computed(name: str) -> None:
    """A mistake in the table itself would be seen by the whole certificate alone."""
    for item in ITEMS:
        if item.kind == "primitive" and item.name == name:
            backends, dtypes = ["numpy"], ["float64"]
            assert findings(item.make, *item.inputs, backends=backends, dtypes=dtypes), item.case


def test_inputs_are_the_same_every_time() -> None:
    again = [item for item in catalogue() if isinstance(item, Item)]
    for item, other in zip(ITEMS, again, strict=True):
        assert item.case == other.case
        for a, b in zip(item.inputs, other.inputs, strict=True):
            assert np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_scattered_arrays_are_contiguous_in_no_order(backend: str) -> None:
    if why_unavailable(backend):
        pytest.skip(f"no {backend}")
    host = np.arange(24.0).reshape(2, 3, 4)
    with xbp.use_backend(backend) as place:
        x = scattered(place.asarray(host))
    assert np.array_equal(xbp.to_numpy(x), host)
    flags = xbp.to_numpy(x).flags
    assert not flags.c_contiguous and not flags.f_contiguous


# --- what is found -------------------------------------------------------------------------------


def failures(backend: str, only: str) -> str:
    return "\n".join(failure for row in certify([backend], only) for failure in row.failures)


def test_all_is_well(strict: str) -> None:
    assert failures(strict, "Linear") == ""


def test_a_backward_that_is_wrong_on_one_backend(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = nn.Tanh.forward

    def broken(self: nn.Tanh, x: Any, **options: Any) -> Any:
        y, backward = forward(self, x, **options)
        factor = 1.0 if isinstance(x, np.ndarray) else 1.0001
        return y, lambda dy: factor * backward(dy)

    monkeypatch.setattr(nn.Tanh, "forward", broken)
    found = failures(strict, "layer Tanh")
    assert "Tanh() of (4, 7): on array_api_strict in float32, the gradient of the input" in found
    assert "the output" not in found


def test_a_backward_that_is_wrong_everywhere(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends that agree with each other but not with numpy fail."""
    formula = nn.ScaledTanh.formula
    sloping = lambda self, xp, x: (formula(self, xp, x)[0], lambda: 1 + 0 * x)  # noqa: E731
    monkeypatch.setattr(nn.ScaledTanh, "formula", sloping)
    assert "the truth is wrong" in failures(strict, "layer ScaledTanh")


def test_a_layer_that_fails_on_numpy(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: nn.Tanh, x: Any, **options: Any) -> Any:
        msg = "no"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(nn.Tanh, "forward", crash)
    assert "numpy fails with ZeroDivisionError: no" in failures(strict, "layer Tanh")


def test_a_hidden_wait_is_counted(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.Tanh.forward

    def waiting(self: nn.Tanh, x: Any, **options: Any) -> Any:
        float(x[(0,) * x.ndim])
        return forward(self, x, **options)

    monkeypatch.setattr(nn.Tanh, "forward", waiting)
    rows = certify([strict], "layer Tanh")
    cases = sum(item.kind == "layer" and item.name == "Tanh" for item in ITEMS)
    assert [row.waits for row in rows] == [cases, cases]
    assert not any(row.passed for row in rows)


def test_an_accelerator_that_computes_nothing_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declining = accelerators.Accelerator("none", "numpy", lambda *arguments: NotImplemented)
    monkeypatch.setattr(accelerators, "registered", lambda: [declining])
    monkeypatch.setattr("xbp.testing.certificate.catalogue", lambda: iter(()))
    (row,) = certify(["numpy"])
    assert not row.passed and "computed none" in row.failures[0]


def test_wrong_bits_of_an_initializer(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asarray = xbp.backend.Backend.asarray

    def off(self: Any, obj: Any, *, dtype: Any = None) -> Any:
        array = asarray(self, obj, dtype=dtype)
        return array if self.name == "numpy" else array * 1.000001

    monkeypatch.setattr(xbp.backend.Backend, "asarray", off)
    (row, _) = certify([strict], "he_normal(")
    assert row.bits is False and not row.passed


# --- trainings -----------------------------------------------------------------------------------

SHORT = [replace(training, steps=3) for training in TRAININGS]


@pytest.mark.parametrize("training", SHORT, ids=lambda training: training.name)
def test_a_training_passes(strict: str, training: Any) -> None:
    found = training.check([strict], ["float32"])
    assert [str(finding) for finding in found if not finding.passed] == []
    assert {finding.direction for finding in found} == {"forward", "state", "bits"}


def test_a_training_in_lower_precision_does_not_pass(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of 11 bits, as of TF32, on one backend."""
    matmul = strict_namespace().matmul

    def coarse(a: Any, b: Any) -> Any:
        xp = strict_namespace()
        return matmul(*(xp.round(x * 2048.0) / 2048.0 for x in (a, b)))

    monkeypatch.setattr(strict_namespace(), "matmul", coarse)
    found = SHORT[0].check([strict], ["float32"])
    (loss,) = (finding for finding in found if finding.direction == "forward")
    assert loss.units > 10


def strict_namespace() -> Any:
    return xbp.backend.find_backend("array_api_strict").xp


def test_a_training_with_another_rate_does_not_pass(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = optim.SGD.update

    def off(self: Any, xp: Any, p: Any, g: Any, state: Any, lr: float, t: int) -> None:
        update(self, xp, p, g, state, lr * (1.0 if isinstance(p[0], np.ndarray) else 1.001), t)

    monkeypatch.setattr(optim.SGD, "update", off)
    found = SHORT[0].check([strict], ["float32"])
    assert any("after 3 steps" in str(finding) for finding in found if not finding.passed)


def test_a_training_that_breaks_off_or_waits_does_not_pass(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = optim.SGD.update

    def waiting(self: Any, xp: Any, p: Any, *rest: Any) -> None:
        bool(xp.any(p[0] != p[0]))
        update(self, xp, p, *rest)

    monkeypatch.setattr(optim.SGD, "update", waiting)
    (finding,) = SHORT[0].check([strict], ["float32"])
    assert "waits for the device" in finding.problem
