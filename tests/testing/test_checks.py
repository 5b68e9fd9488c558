"""The checks themselves: what they accept, and that each fault makes them fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.testing import HostSyncError, assert_no_host_sync, check_gradients, check_parity


class Scale(nn.Layer):
    """y = s ∘ x, with a fault to choose."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.scale = nn.Parameter(xbp.asarray([1.0, 2.0, 3.0]))

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.namespace(x)
        s, fault = self.scale.data, self.fault

        def backward(dy: Any) -> Any:
            grad = xp.sum(dy * x, axis=0)
            if fault == "parameter":
                grad = grad * 1.001
            if fault == "overwrites":
                self.scale.grad = grad
            elif fault != "forgets":
                self.scale.add_grad(grad)
            dx = dy * s
            if fault == "input":
                dx = dx * 1.001
            if fault == "dtype":
                dx = xp.astype(dx, xp.float32)
            return dx[0, ...] if fault == "shape" else dx

        y = s * x
        if fault == "waits" and x[0, 0] > 1e9:
            y = 2 * y
        if fault == "differs" and xp.__name__ != "numpy":
            y = y * (1 + 1e-4)
        return y, backward


X = np.random.default_rng(0).normal(size=(4, 3))


def test_right_gradients_pass() -> None:
    check_gradients(Scale(), X)
    check_gradients(nn.MSELoss(), X, X + 1)
    check_gradients(nn.Linear(3, 2, rng=0), [[1, 2, 3]])


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("parameter", "the gradient of scale is wrong, worst at entry"),
        ("input", "the gradient of the input is wrong"),
        ("overwrites", "does not add"),
        ("forgets", "gives parameter scale no gradient"),
        ("dtype", "dtype float32 in place of"),
        ("shape", r"has shape \(3,\)"),
    ],
)
def test_wrong_gradients_fail(fault: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_gradients(Scale(fault), X)


def test_a_kink_is_named() -> None:
    with pytest.raises(AssertionError, match=r"entry \(0, 1\) of the input lies on a kink"):
        check_gradients(nn.ReLU(), np.array([[1.0, 0.0, -1.0]]))


def test_the_layer_itself_is_not_touched() -> None:
    layer = nn.Linear(3, 2, rng=0)
    before = layer.state_dict()
    check_gradients(layer, X)
    assert layer.weight.grad is None
    assert all(np.array_equal(before[k], v) for k, v in layer.state_dict().items())
    assert layer.weight.data.dtype == np.float32


def test_equal_backends_pass() -> None:
    pytest.importorskip("array_api_strict")
    check_parity(Scale, X, backends=["numpy", "array_api_strict"], dtypes=["float64"])


@pytest.mark.parametrize(("fault", "sentence"), [("differs", "the output is"), ("waits", "waits")])
def test_unequal_backends_and_hidden_waits_fail(fault: str, sentence: str) -> None:
    pytest.importorskip("array_api_strict")
    with pytest.raises(AssertionError, match=sentence):
        check_parity(lambda: Scale(fault), X, backends=["array_api_strict"], dtypes=["float64"])


def test_initial_weights_that_differ_fail() -> None:
    pytest.importorskip("array_api_strict")
    seeds = iter(range(99))
    with pytest.raises(AssertionError, match="the initial weight is not the same, bit for bit"):
        check_parity(lambda: nn.Linear(3, 2, rng=next(seeds)), X, backends=["array_api_strict"])


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: bool(x[0]),
        lambda x: 1 if x[0] > 0 else 2,
        lambda x: np.from_dlpack(x),
        lambda x: xbp.to_numpy(x),
    ],
)
def test_every_way_to_wait_is_found(wait: Any) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        x = xbp.asarray([1.0, 2.0])
        with assert_no_host_sync(), pytest.raises(HostSyncError, match="waits for the device"):
            wait(x)
        wait(x)  # allowed again, and after an error, too


def test_a_training_step_does_not_wait() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
        optimizer = xbp.optim.Adam(model.parameters())
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)
        x, y = xbp.asarray(X, dtype="float32"), xbp.asarray([0, 1, 1, 0])
        with assert_no_host_sync():
            trainer.step(x, y)
            trainer.step(x, y)
