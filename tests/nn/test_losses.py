"""Losses: equality with PyTorch's, kinks, inputs of ±1e4, targets and weights that do not fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from twin import namespace as twin_namespace
from twin import twin

import xbp
from xbp import nn
from xbp.backend import find_backend
from xbp.errors import BackendError, InputError
from xbp.models.lenet1998 import RejectingCrossEntropyLoss
from xbp.testing.helpers import replaced

WEIGHTS = [0.5, 2.0, 0.0]

PAIRS: list[tuple[Any, Any]] = [
    (nn.MSELoss(), lambda t: t.nn.MSELoss()),
    (nn.L1Loss("sum"), lambda t: t.nn.L1Loss(reduction="sum")),
    (nn.HuberLoss(), lambda t: t.nn.HuberLoss()),
    (nn.HuberLoss("sum", delta=0.5), lambda t: t.nn.HuberLoss(reduction="sum", delta=0.5)),
    (nn.HuberLoss(factor=1 / 2.5, delta=2.5), lambda t: t.nn.SmoothL1Loss(beta=2.5)),
    (nn.BCEWithLogitsLoss(), lambda t: t.nn.BCEWithLogitsLoss()),
    (nn.BCEWithLogitsLoss("sum"), lambda t: t.nn.BCEWithLogitsLoss(reduction="sum")),
    (
        nn.BCEWithLogitsLoss(pos_weight=2.5),
        lambda t: t.nn.BCEWithLogitsLoss(pos_weight=t.tensor(2.5)),
    ),
    (
        nn.BCEWithLogitsLoss(pos_weight=np.array(WEIGHTS)),
        lambda t: t.nn.BCEWithLogitsLoss(pos_weight=t.tensor(WEIGHTS, dtype=t.float64)),
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[repr(ours) for ours, _ in PAIRS])
def test_values_and_gradients_equal_pytorchs(ours: nn.Loss, theirs: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    prediction = np.concatenate([np.linspace(-30, 30, 60), 3 * rng.normal(size=60)]).reshape(40, 3)
    target = rng.uniform(size=(40, 3))
    target[:10], target[10:20] = 0.0, 1.0
    target[20] = prediction[20]  # an error of 0
    target[21] = prediction[21] + 0.5  # the border of Huber's two formulas
    target[20:22] = target[20:22] if isinstance(ours, nn.RegressionLoss) else 0.5
    leaf = torch.tensor(prediction, requires_grad=True)
    expected = theirs(torch)(leaf, torch.tensor(target))
    expected.backward()
    value, gradient = ours(prediction, target)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_slopes_at_the_kinks() -> None:
    zero = np.zeros(1)
    assert nn.L1Loss()(zero, zero) == (0, 0)
    assert nn.HuberLoss()(zero, zero) == (0, 0)
    assert nn.HuberLoss(delta=2.0)(zero + 2, zero) == (2, 2)  # ½·2², the start of the tangent
    assert nn.HuberLoss(delta=2.0)(zero - 3, zero) == (4, -2)  # 2 (3 - 1)


@pytest.mark.parametrize("name", xbp.available_backends())
def test_the_slope_of_l1_is_the_sign(name: str) -> None:
    backend = find_backend(name)
    error = np.array([np.inf, 2.0, 5e-324, 0.0, -0.0, -5e-324, -2.0, -np.inf, np.nan])
    _, gradient = nn.L1Loss("sum")(backend.asarray(error), backend.asarray(0 * np.ones(9)))
    np.testing.assert_array_equal(xbp.to_numpy(gradient), np.sign(error))


def test_l1_does_not_ask_for_the_sign_which_waits_for_cupy() -> None:
    def sign(x: Any) -> Any:
        raise AssertionError("array_api_compat.cupy.sign assigns through a mask")

    with twin(), replaced(twin_namespace, sign=sign):
        x = find_backend("twin").asarray([1.0])
        assert nn.L1Loss()(x, 2 * x)[1].tolist() == [-1.0]


def test_huber_is_half_the_square_inside_and_delta_times_l1_far_out() -> None:
    near, far, zero = np.array([0.1, -0.2]), np.array([1e6, -1e6]), np.zeros(2)
    assert nn.HuberLoss()(near, zero)[0] == nn.MSELoss(factor=0.5)(near, zero)[0]
    value, gradient = nn.HuberLoss(delta=3.0)(far, zero)
    assert value == 3 * 1e6 - 4.5
    np.testing.assert_array_equal(gradient, nn.L1Loss(factor=3.0)(far, zero)[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_cross_entropy_is_exact_at_large_logits(dtype: str) -> None:
    logits = np.array([1e4, -1e4, 1e4, -1e4, 0.0], dtype)
    target = np.array([1, 0, 0, 1, 1])
    value, gradient = nn.BCEWithLogitsLoss("sum")(logits, target)
    # 0 + 0 + 10⁴ + 10⁴ + log 2, with a rounding of the sum.
    assert value == pytest.approx(2e4 + math.log(2), rel=2 * float(np.finfo(dtype).eps))
    assert gradient.dtype == logits.dtype
    assert gradient.tolist() == [0, 0, 1, -1, -0.5]


def test_binary_cross_entropy_keeps_the_digits_of_small_losses() -> None:
    """A correct and confident output: ℓ = log(1 + e^-40) and its gradient, e^-40 to 17 digits."""
    for logit, t in ((40.0, 1.0), (-40.0, 0.0)):
        for weight in (1.0, 0.1):  # 40 p - 40 p would leave 1e-15
            p = weight if t else 1.0
            loss = nn.BCEWithLogitsLoss(pos_weight=weight)
            value, gradient = loss(np.array([logit]), np.array([t]))
            assert value == pytest.approx(p * math.exp(-40), rel=1e-15, abs=0)
            slope = -p * math.exp(-40) if t else math.exp(-40)
            assert gradient[0] == pytest.approx(slope, rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_weight_of_each_output_takes_the_outputs_dtype(dtype: str) -> None:
    pytest.importorskip("array_api_strict")
    weights, events = [0.1, 0.7, 3.0], np.array([[1, 0, 1], [1, 1, 0]])
    logits = np.arange(6.0).reshape(2, 3) / 8
    with xbp.use_backend("array_api_strict"):
        loss = nn.BCEWithLogitsLoss("sum", pos_weight=xbp.asarray(weights, dtype="float64"))
        x, t = xbp.asarray(logits, dtype=dtype), xbp.asarray(events, dtype=dtype)
        with xbp.testing.assert_no_host_sync():
            value, gradient = loss(x, t)
    value, gradient = xbp.to_numpy(value), xbp.to_numpy(gradient)
    assert value.dtype == gradient.dtype == dtype
    alone = [
        nn.BCEWithLogitsLoss("sum", pos_weight=w)(logits[:, [i]], events[:, [i]])
        for i, w in enumerate(weights)
    ]
    eps = 8 * float(np.finfo(dtype).eps)  # sums of six terms in another order
    assert value == pytest.approx(sum(float(v) for v, _ in alone), rel=eps)
    np.testing.assert_allclose(gradient, np.concat([g for _, g in alone], axis=1), rtol=eps)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float32"])
def test_targets_of_any_dtype_are_converted(dtype: str) -> None:
    logits, target = np.array([[0.5], [-1.0]]), np.array([[1], [0]])
    expected = nn.BCEWithLogitsLoss()(logits, target.astype(float))
    found = nn.BCEWithLogitsLoss()(logits, target.astype(dtype))
    assert found[0] == expected[0]
    assert found[1].tolist() == expected[1].tolist()
    for name in xbp.available_backends():
        with xbp.use_backend(name):
            arrays = xbp.asarray(logits), xbp.asarray(target.astype(dtype))
            nn.BCEWithLogitsLoss().check(*arrays)
            value = float(xbp.to_numpy(nn.BCEWithLogitsLoss()(*arrays)[0]))
            assert value == pytest.approx(float(expected[0]), rel=1e-14)  # another library's exp


def test_probabilities_and_labels_of_any_dtype_leave_the_gradients_dtype_as_it_is() -> None:
    logits = np.array([[0.5, -1.0], [2.0, 0.1]], np.float32)
    for target in (np.array([[0.3, 0.7], [1, 0]]), np.array([1, 0], np.uint64)):
        expected = nn.CrossEntropyLoss()(logits, target.astype("f4" if target.ndim > 1 else "i8"))
        for name in xbp.available_backends():
            with xbp.use_backend(name):
                arrays = xbp.asarray(logits), xbp.asarray(target)
                found = [xbp.to_numpy(array) for array in nn.CrossEntropyLoss()(*arrays)]
            assert {array.dtype for array in found} == {np.dtype("float32")}
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)  # a few roundings


def test_probabilities_are_not_taken_for_labels_where_the_loss_is_nan() -> None:
    value, gradient = nn.CrossEntropyLoss()(np.full((1, 2), np.nan), np.array([[5.0, 0.0]]))
    assert np.isnan(value) and np.isnan(gradient).all()


def test_a_weight_counts_an_event_as_often_as_it_says() -> None:
    logits, events = np.array([0.3, -0.7, 1.1]), np.array([1.0, 0.0, 1.0])
    doubled = np.array([0.3, 0.3, -0.7, 1.1, 1.1]), np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    value = nn.BCEWithLogitsLoss("sum", pos_weight=2)(logits, events)[0]
    # Sums of five terms of order 1 in another order.
    assert value == pytest.approx(nn.BCEWithLogitsLoss("sum")(*doubled)[0], rel=1e-15)


Z = np.zeros((2, 3))


def check(target: Any) -> None:
    nn.BCEWithLogitsLoss().check(Z, np.asarray(target))


BAD = [
    (lambda: nn.HuberLoss(delta=0), "delta must be a finite number above 0, got 0"),
    (lambda: nn.HuberLoss("huber"), "'mean', 'sum', 'batchmean', got 'huber'"),
    (lambda: nn.HuberLoss(factor=float("nan")), "factor must be a finite number, got nan"),
    (lambda: nn.HuberLoss()(Z, Z[:1]), r"shape \(2, 3\), got \(1, 3\)"),
    (lambda: nn.BCEWithLogitsLoss("none"), "'mean', 'sum', 'batchmean', got 'none'"),
    (lambda: nn.BCEWithLogitsLoss()(Z, Z[:, 0]), r"shape \(2, 3\), got \(2,\)"),
    (lambda: nn.BCEWithLogitsLoss()(np.zeros((2, 1), int), Z[:, :1]), "floating-point"),
    (lambda: nn.BCEWithLogitsLoss()(Z[:0], Z[:0]), "at least one sample"),
    (lambda: nn.BCEWithLogitsLoss(pos_weight=-1), "pos_weight must be .* from 0, got -1"),
    (lambda: nn.BCEWithLogitsLoss(pos_weight=[1.0]), r"pos_weight must be .*got \[1.0\]"),
    (
        lambda: nn.BCEWithLogitsLoss(pos_weight=np.ones(2))(Z, Z),
        r"pos_weight=array of shape \(2,\)\) needs a pos_weight of shape \(3,\)",
    ),
    (lambda: nn.BCEWithLogitsLoss(pos_weight=Z)(Z, Z), r"pos_weight of shape \(3,\)"),
    (lambda: check(np.zeros((5, 4))), r"targets of shape \(N, 3\).*\(5, 4\)"),
    (lambda: check([[0, 1, 2]]), "targets from 0 to 1"),
    (lambda: check([[0, -1, 1]]), "targets from 0 to 1"),
    (lambda: check([[0, float("nan"), 1]]), "targets from 0 to 1"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_weight_elsewhere_is_named() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        weight = xbp.asarray(WEIGHTS)
    with pytest.raises(BackendError, match=r"on numpy.* the pos_weight is on array_api_strict"):
        nn.BCEWithLogitsLoss(pos_weight=weight)(Z, Z)


# --- weights of samples --------------------------------------------------------------------------

WEIGHTED = [
    (nn.MSELoss("mean", factor=0.5), "numbers"),
    (nn.L1Loss("sum"), "numbers"),
    (nn.HuberLoss("batchmean"), "numbers"),
    (nn.BCEWithLogitsLoss(pos_weight=2.0), "shares"),
    (nn.BCEWithLogitsLoss("sum"), "shares"),
    (nn.CrossEntropyLoss(), "labels"),
    (nn.CrossEntropyLoss("sum"), "labels"),
    (nn.CrossEntropyLoss(), "probabilities"),
    (RejectingCrossEntropyLoss(), "labels"),
]


@pytest.mark.parametrize(("loss", "kind"), WEIGHTED, ids=lambda value: str(value))
def test_an_integer_weight_is_a_repetition(loss: Any, kind: str, backend: str) -> None:
    rng = np.random.default_rng(0)
    z, counts = rng.normal(size=(6, 3)), np.array([1, 0, 2, 3, 1, 2])
    shares = rng.dirichlet(np.ones(3), 6)
    t = {"numbers": rng.normal(size=(6, 3)), "shares": shares, "probabilities": shares,
         "labels": np.array([0, 1, 2, 2, 1, 0])}[kind]  # fmt: skip
    place = xbp.asarray
    with xbp.testing.assert_no_host_sync():
        value, gradient = loss(place(z), place(t), place(counts))
    repeated = np.repeat(np.arange(6), counts)
    expected, slopes = loss(place(z[repeated]), place(t[repeated]))
    # float64, sums of nine terms in another order
    assert float(xbp.to_numpy(value)) == pytest.approx(float(xbp.to_numpy(expected)), rel=1e-13)
    total = np.zeros_like(z)
    np.add.at(total, repeated, xbp.to_numpy(slopes))
    assert xbp.to_numpy(gradient) == pytest.approx(total, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("loss", "kind"), WEIGHTED[::2], ids=lambda value: str(value))
def test_weights_that_are_all_0_give_0(loss: Any, kind: str) -> None:
    t = np.array([0, 1]) if kind == "labels" else np.full((2, 3), 1 / 3)
    value, gradient = loss(np.ones((2, 3)), t, np.zeros(2))
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), RejectingCrossEntropyLoss()], ids=str)
def test_whole_numbers_may_be_probabilities(loss: Any, weighted: bool, backend: str) -> None:
    """Targets of another dtype than the logits, which not every library combines with them."""
    z, labels = np.random.default_rng(0).normal(size=(3, 4)), np.array([2, 0, 2])
    more = [xbp.asarray(np.array([1.0, 0.5, 2.0]))] if weighted else []
    value, gradient = loss(xbp.asarray(z), xbp.asarray(np.eye(4, dtype=np.int64)[labels]), *more)
    expected, slopes = loss(xbp.asarray(z), xbp.asarray(labels), *more)
    # float64, the same sums in another order
    assert float(xbp.to_numpy(value)) == pytest.approx(float(xbp.to_numpy(expected)), rel=1e-14)
    assert xbp.to_numpy(gradient) == pytest.approx(xbp.to_numpy(slopes), rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    for loss, t in ((nn.MSELoss(), np.ones((2, 3))), (nn.CrossEntropyLoss(), np.array([0, 1]))):
        with pytest.raises(InputError, match=r"needs weights of shape \(2,\), one a sample"):
            loss(np.ones((2, 3)), t, np.ones(shape))
