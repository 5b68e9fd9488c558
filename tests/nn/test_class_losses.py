"""Losses of classes and of several inputs: options, kinks, refused targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.errors import BackendError, InputError
from xbp.testing import assert_no_host_sync, check_gradients, check_parity
from xbp.testing.helpers import replaced

Z = np.random.default_rng(0).normal(size=(6, 3))
LABELS = np.array([0, 1, 2, 2, 1, 0])
LOSSES_OF_LABELS = [
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    nn.MultiMarginLoss,
]


# --- several axes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES_OF_LABELS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_labels_of_several_axes_are_as_many_samples(kind: Any, reduction: str) -> None:
    z = np.random.default_rng(1).normal(size=(2, 4, 3, 5))
    labels = np.random.default_rng(2).integers(0, 4, (2, 3, 5))
    loss = kind(reduction, weight=[1.0, 0.5, 2.0, 0.0])
    value, gradient = loss(z, labels)
    rows = np.moveaxis(z, 1, -1).reshape(-1, 4)
    expected, slopes = loss(rows, labels.reshape(-1))
    assert value == expected
    assert np.array_equal(gradient, np.moveaxis(slopes.reshape(2, 3, 5, 4), -1, 1))
    counts = np.array([2.0, 0.5])  # of the two samples, over all of their labels
    value, gradient = loss(z, labels, counts)
    expected, slopes = loss(rows, labels.reshape(-1), np.repeat(counts, 15))
    assert value == expected
    assert np.array_equal(gradient, np.moveaxis(slopes.reshape(2, 3, 5, 4), -1, 1))


def test_probabilities_of_several_axes() -> None:
    z = np.random.default_rng(1).normal(size=(2, 4, 3))
    labels = np.random.default_rng(2).integers(0, 4, (2, 3))
    shares = np.moveaxis(np.eye(4)[labels], -1, 1)
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss("sum", label_smoothing=0.2)):
        value, gradient = loss(z, labels)
        expected, slopes = loss(z, shares)
        assert gradient.shape == z.shape
        assert value == pytest.approx(expected, rel=1e-14)  # the same sums in another order
        np.testing.assert_allclose(gradient, slopes, rtol=1e-13, atol=1e-16)


# --- weights, a label left out --------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES_OF_LABELS)
def test_an_integer_weight_of_a_class_is_a_repetition(kind: Any, backend: str) -> None:
    counts = np.array([2, 0, 3])
    repeated = np.repeat(np.arange(6), counts[LABELS])
    z, again = xbp.asarray(Z), xbp.asarray(Z[repeated])
    value, gradient = kind("sum", weight=counts)(z, xbp.asarray(LABELS))
    expected, slopes = kind("sum")(again, xbp.asarray(LABELS[repeated]))
    # float64, sums of some terms in another order
    assert float(xbp.to_numpy(value)) == pytest.approx(float(xbp.to_numpy(expected)), rel=1e-13)
    total = np.zeros_like(Z)
    np.add.at(total, repeated, xbp.to_numpy(slopes))
    np.testing.assert_allclose(xbp.to_numpy(gradient), total, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", LOSSES_OF_LABELS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_weight_of_a_sample_is_a_repetition(kind: Any, reduction: str) -> None:
    counts = np.array([2, 0, 3, 1, 0, 1])
    repeated = np.repeat(np.arange(6), counts)
    value, gradient = kind(reduction)(Z, LABELS, counts)
    expected, slopes = kind(reduction)(Z[repeated], LABELS[repeated])
    assert value == pytest.approx(expected, rel=1e-13)  # sums of some terms in another order
    total = np.zeros_like(Z)
    np.add.at(total, repeated, slopes)
    np.testing.assert_allclose(gradient, total, rtol=1e-12, atol=1e-15)
    share = 1 / 64 if reduction == "sum" else 1.0  # a mean does not depend on the weights' unit
    assert kind(reduction)(Z, LABELS, counts / 64)[0] == pytest.approx(share * value, rel=1e-13)
    nothing, still = kind(reduction)(Z, LABELS, 0 * counts)
    assert nothing == 0 and not still.any()


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
@pytest.mark.parametrize("left_out", [-100, 1, 255])
@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_a_label_left_out_is_as_if_not_there(kind: Any, left_out: int, dtype: str) -> None:
    if left_out < 0 and dtype == "uint8":
        left_out = 200
    labels = np.where(LABELS == 1, left_out, LABELS).astype(dtype)
    kept = labels != left_out
    loss = kind(ignore_index=left_out, weight=[0.5, 3.0, 2.0])
    z = np.where(kept[:, None], Z, 1e9)  # for any output
    value, gradient = loss(z, labels)
    expected, slopes = loss(Z[kept], labels[kept])
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradient[kept], slopes, rtol=1e-13, atol=1e-16)
    assert not gradient[~kept].any()


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_nothing_counts_the_loss_is_0(kind: Any, reduction: str, backend: str) -> None:
    loss = kind(reduction, ignore_index=-1)
    value, gradient = loss(xbp.asarray(Z), xbp.asarray(np.full(6, -1)))
    assert xbp.to_numpy(value) == 0 and not xbp.to_numpy(gradient).any()
    loss = kind(reduction, weight=[0.0, 1.0, 1.0])
    value, gradient = loss(xbp.asarray(Z), xbp.asarray(np.zeros(6, int)))
    assert xbp.to_numpy(value) == 0 and not xbp.to_numpy(gradient).any()


def test_weights_move_once_and_follow_the_outputs() -> None:
    loss = nn.CrossEntropyLoss(weight=[1.0, 2.0, 0.5])
    expected = loss(Z, LABELS)[0]
    for name in xbp.available_backends():
        with xbp.use_backend(name):
            z, labels = xbp.asarray(Z), xbp.asarray(LABELS)
            loss.check(z, labels)  # the check before training
            placed = loss._placed[1]
            assert type(placed) is type(z) and placed.device == z.device
            value = loss(z, labels)[0]
            # another library's exp and log
            assert float(xbp.to_numpy(value)) == pytest.approx(float(expected), rel=1e-14)
            assert loss._placed[1] is placed
    assert loss(Z.astype("f4"), LABELS)[1].dtype == np.float32
    loss.weight = (4.0, 2.0, 0.5)
    assert loss(Z, LABELS)[0] == nn.CrossEntropyLoss(weight=[4.0, 2.0, 0.5])(Z, LABELS)[0]


def test_weights_may_come_from_anywhere() -> None:
    expected = nn.NLLLoss(weight=[1.0, 2.0, 0.5])(Z, LABELS)[0]
    given = [1, 2.0, 0.5]
    for name in xbp.available_backends():
        with xbp.use_backend(name):
            weight = xbp.asarray(given, dtype="float64")
        assert nn.NLLLoss(weight=weight)(Z, LABELS)[0] == expected
    assert nn.NLLLoss(weight=tuple(given))(Z, LABELS)[0] == expected


def test_a_wrong_label_on_a_device_makes_the_loss_nan() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), assert_no_host_sync():
        z = xbp.asarray(Z)
        labels = [xbp.asarray([0, 1, 2, 2, 1, wrong]) for wrong in (3, -1)]
        values = [
            loss(z, label)[0]
            for label in labels
            for loss in (
                nn.CrossEntropyLoss(label_smoothing=0.5),
                nn.CrossEntropyLoss(ignore_index=7),
                nn.CrossEntropyLoss("sum", weight=[1.0, 1.0, 1.0]),
                nn.NLLLoss(),
                nn.NLLLoss(weight=[1.0, 0.0, 0.0]),
                nn.MultiMarginLoss(),
            )
        ]
        pair = xbp.asarray(Z), xbp.asarray(Z[::-1])
        values.append(nn.CosineEmbeddingLoss()(pair, xbp.asarray([1, 1, -1, -1, 0, 1]))[0])
    assert np.isnan([xbp.to_numpy(value) for value in values]).all()


def test_an_option_that_is_not_given_is_not_shown() -> None:
    assert repr(nn.CrossEntropyLoss()) == "CrossEntropyLoss(reduction='mean')"
    loss = nn.CrossEntropyLoss(weight=[1.0] * 20, ignore_index=0, label_smoothing=0.1)
    loss(np.zeros((1, 20)), np.array([1]))
    shown = "reduction='mean', weight=20 numbers, ignore_index=0, label_smoothing=0.1"
    assert repr(loss) == f"CrossEntropyLoss({shown})"


# --- limits and kinks -----------------------------------------------------------------------------


def test_divergence_where_a_probability_is_0() -> None:
    y = np.array([[-1.0, -np.inf, -2.0]])
    value, gradient = nn.KLDivLoss("sum")(y, np.array([[1.0, 0.0, 0.0]]))
    assert value == 1 and gradient.tolist() == [[-1, 0, 0]]
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[1.0, 0.0, 0.0]]))
    value, gradient = nn.KLDivLoss("sum", log_target=True)(y, log_p)
    assert value == 1 and gradient.tolist() == [[-1, 0, 0]]


def test_log_likelihood_beside_an_impossible_class() -> None:
    y = np.array([[0.0, -np.inf]])
    value, gradient = nn.NLLLoss()(y, np.array([0]))
    assert value == 0 and gradient.tolist() == [[-1, 0]]
    assert nn.NLLLoss()(y, np.array([1]))[0] == np.inf


@pytest.mark.parametrize("p", [1, 2])
def test_a_margin_counts_the_classes_within_it(p: int) -> None:
    """At the margin, below it, also infinitely, and above it: C = 4."""
    y = np.array([[1.0, 0.0, -np.inf, 2.0]])
    value, gradient = nn.MultiMarginLoss(p=p)(y, np.array([0]))
    assert value == 2**p / 4
    slope = p * 2 ** (p - 1) / 4
    assert gradient.tolist() == [[-slope, 0.0, 0.0, slope]]


@pytest.mark.parametrize("unit", [1.0, 3.0])
def test_a_cosine_at_its_margin_has_a_slope(unit: float) -> None:
    u, v = np.array([[unit, 0.0]]), np.array([[0.0, 1.0]])
    value, (du, dv) = nn.CosineEmbeddingLoss()((u, v), np.array([-1]))
    assert value == 0
    np.testing.assert_allclose(du, v / unit, rtol=1e-11)  # ε = 1e-12 beside ‖u‖²
    np.testing.assert_allclose(dv, [[1.0, 0.0]], rtol=1e-11)


def test_a_cosine_with_a_vector_of_zeros() -> None:
    """‖u‖ is √ε = 10⁻⁶ there."""
    u, v = np.zeros((1, 2)), np.array([[0.0, 1.0]])
    value, (du, dv) = nn.CosineEmbeddingLoss()((u, v), np.array([1]))
    assert value == 1 and not dv.any()
    np.testing.assert_allclose(du, [[0.0, -1e6]], rtol=1e-11)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 3.0])
def test_slopes_of_distances_by_their_definition(p: float) -> None:
    """0 where two vectors are equal; at the kink of the loss that of its positive side."""
    zero, near, far = np.array([[0.0, 0.0]]), np.array([[0.1, 0.0]]), np.array([[2.0, 0.0]])
    loss = nn.TripletMarginLoss(p=p, eps=0.0)
    value, gradients = loss((zero, zero, near))
    assert value == pytest.approx(0.9, rel=1e-14)
    for found, expected in zip(gradients, ([1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]), strict=True):
        np.testing.assert_allclose(found, [expected], rtol=1e-14)
    value, gradients = loss((zero, np.array([[0.0, -1.0]]), far))
    assert value == pytest.approx(0.0, abs=1e-14)
    for found, expected in zip(gradients, ([1.0, 1.0], [0.0, -1.0], [-1.0, 0.0]), strict=True):
        np.testing.assert_allclose(found, [expected], rtol=1e-14)
    a, q, n = np.random.default_rng(5).normal(size=(3, 4, 5))
    apart = [(np.abs(a - other) ** p).sum(axis=1) ** (1 / p) for other in (q, n)]
    expected = np.maximum(0.0, apart[0] - apart[1] + 3.0).sum()
    loss = nn.TripletMarginLoss("sum", margin=3.0, p=p, eps=0.0)
    assert loss((a, q, n))[0] == pytest.approx(expected, rel=1e-13)
    check_gradients(loss, (a, q, n))


def test_equal_distances_share_the_slope() -> None:
    a, q, n = np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]), np.zeros((1, 2))
    value, gradients = nn.TripletMarginLoss(eps=0.0, swap=True)((a, q, n))
    assert value == 2
    assert [g.tolist() for g in gradients] == [[[0.5, 0.0]], [[-0.5, 0.0]], [[0.0, 0.0]]]


def test_smooth_l1_with_beta_0_is_l1() -> None:
    y, t = np.array([1.0, -2.0, 0.0, np.nan]), np.zeros(4)
    ours, theirs = nn.SmoothL1Loss("sum", beta=0.0)(y, t), nn.L1Loss("sum")(y, t)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("beta", [1e-300, 0.5, 2.0])
def test_smooth_l1_is_hubers_loss_divided_by_beta(beta: float) -> None:
    y = np.linspace(-3, 3, 25)
    value, gradient = nn.SmoothL1Loss(beta=beta)(y, 0 * y)
    if beta > 1e-200:
        expected, slopes = nn.HuberLoss(delta=beta, factor=1 / beta)(y, 0 * y)
        assert value == pytest.approx(expected, rel=1e-14)
        np.testing.assert_allclose(gradient, slopes, rtol=1e-14)
    else:
        assert np.array_equal(gradient, np.sign(y) / 25)


def test_slopes_at_kinks_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    u, v = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    far = np.array([[0.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[2.0, 0.0]])
    same = np.array([[0.0, 0.0]]), np.array([[0.0, 0.0]]), np.array([[0.1, 0.0]])
    kinks: list[tuple[Any, Any, Any, tuple[Any, ...]]] = [
        (nn.CosineEmbeddingLoss(), torch.nn.CosineEmbeddingLoss(), (u, v), (np.array([-1]),)),
        (nn.CosineEmbeddingLoss(), torch.nn.CosineEmbeddingLoss(), (0 * u, v), (np.array([1]),)),
        (nn.TripletMarginLoss(eps=0.0), torch.nn.TripletMarginLoss(eps=0.0), far, ()),
    ]
    kinks += [
        (nn.TripletMarginLoss(eps=0.0, p=p), torch.nn.TripletMarginLoss(eps=0.0, p=p), same, ())
        for p in (1.0, 2.0, 3.0)
    ]
    for ours, theirs, inputs, target in kinks:
        leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
        theirs(*leaves, *map(torch.tensor, target)).backward()
        _, gradients = ours(inputs, *target)
        for gradient, leaf in zip(gradients, leaves, strict=True):
            # ∂c/∂u of a zero vector is 10⁶, where PyTorch's backward loses digits.
            np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-8, atol=1e-12)
    y = np.array([[0.0, 1.0], [2.0, 2.0]])
    leaf = torch.tensor(y, requires_grad=True)
    torch.nn.MultiMarginLoss()(leaf, torch.tensor([1, 0])).backward()
    assert nn.MultiMarginLoss()(y, np.array([1, 0]))[1].tolist() == leaf.grad.tolist()


# --- several inputs -------------------------------------------------------------------------------

EMBEDDINGS = np.random.default_rng(3).normal(size=(3, 5, 4))
SIGNS = np.array([1, -1, 1, 1, -1])


def test_gradients_of_each_input() -> None:
    u, v, w = EMBEDDINGS
    check_gradients(nn.CosineEmbeddingLoss(margin=-0.9), (u, v), SIGNS)
    check_gradients(nn.TripletMarginLoss(margin=5.0, swap=True), (u, v, w))

    class Wrong(nn.TripletMarginLoss):
        def __call__(self, prediction: Any, target: Any = None, weight: Any = None) -> Any:
            value, (a, p, n) = super().__call__(prediction, target, weight)
            return value, (a, 2 * p, n)

    with pytest.raises(AssertionError, match=r"the prediction\[1\]"):
        check_gradients(Wrong(margin=5.0), (u, v, w))


def test_backends_agree_on_each_input() -> None:
    u, v, w = EMBEDDINGS
    check_parity(nn.CosineEmbeddingLoss, (u, v), SIGNS)
    check_parity(lambda: nn.TripletMarginLoss(swap=True), (u, v, w))


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
def test_weights_of_samples_repeat_comparisons(p: float) -> None:
    counts = np.array([1, 0, 2, 3, 1])
    repeated = np.repeat(np.arange(5), counts)
    for loss, inputs, target in (
        (nn.CosineEmbeddingLoss(margin=-0.5), EMBEDDINGS[:2], SIGNS),
        (nn.TripletMarginLoss(p=p), EMBEDDINGS, np.zeros(5)),
    ):
        value, gradients = loss(tuple(inputs), target, counts)
        expected, slopes = loss(tuple(x[repeated] for x in inputs), target[repeated])
        assert value == pytest.approx(expected, rel=1e-14)
        for gradient, slope in zip(gradients, slopes, strict=True):
            total = np.zeros_like(gradient)
            np.add.at(total, repeated, slope)
            np.testing.assert_allclose(gradient, total, rtol=1e-13, atol=1e-16)


def test_inputs_elsewhere_are_refused() -> None:
    pytest.importorskip("array_api_strict")
    u, v, w = EMBEDDINGS
    with xbp.use_backend("array_api_strict"):
        there = xbp.asarray(v)
    with pytest.raises(BackendError, match=r"on numpy.* the second input is on array_api_strict"):
        nn.CosineEmbeddingLoss()((u, there), SIGNS)
    with pytest.raises(BackendError, match=r"on numpy.* the negative is on array_api_strict"):
        nn.TripletMarginLoss()((u, w, there))


def test_a_loss_of_several_inputs_runs_on_the_device_of_the_first() -> None:
    from xbp.backend import arrays

    seen: list[Any] = []
    with replaced(arrays, on_device_of=lambda array: seen.append(array) or arrays.ANYWHERE):
        nn.TripletMarginLoss()(tuple(EMBEDDINGS))
    assert seen and seen[0] is not None and seen[0].shape == EMBEDDINGS[0].shape


# --- doors ----------------------------------------------------------------------------------------

O = np.zeros((2, 3))  # noqa: E741
Y = np.array([0, 1])
BAD = [
    (lambda: nn.CrossEntropyLoss(weight=[1, 2])(O, Y), "has 2 weights, where .* 3 classes"),
    (lambda: nn.CrossEntropyLoss(weight=[1, -2]), r"at least 0 for each class.*got \[1, -2\]"),
    (lambda: nn.CrossEntropyLoss(weight=[0.0, 0.0]), "not only zeros"),
    (lambda: nn.CrossEntropyLoss(weight=[np.inf, 0.0]), "a finite number of at least 0"),
    (lambda: nn.CrossEntropyLoss(weight=O), "at least 0 for each class"),
    (lambda: nn.CrossEntropyLoss(weight=[]), "at least 0 for each class"),
    (lambda: nn.CrossEntropyLoss(ignore_index=1.5), "ignore_index must be an integer, got 1.5"),
    (lambda: nn.NLLLoss(ignore_index=True), "ignore_index must be an integer, got True"),
    (lambda: nn.CrossEntropyLoss(label_smoothing=1.5), "label_smoothing must be .*0 to 1, got 1.5"),
    (lambda: nn.CrossEntropyLoss()(O, -100 * Y), "got -100; if it marks .* ignore_index=-100"),
    (lambda: nn.CrossEntropyLoss(ignore_index=-1)(O, Y + 2), "labels from 0 to 2 .* got 3"),
    (lambda: nn.CrossEntropyLoss(ignore_index=1)(O, O), "cannot be given probabilities"),
    (
        lambda: nn.CrossEntropyLoss(ignore_index=-1).check(O, 0 * Y - 1),
        "nothing to learn from: all labels are -1",
    ),
    (
        lambda: nn.CrossEntropyLoss()(np.zeros((2, 5, 7)), np.zeros((2, 5), int)),
        r"labels of shape \(2, 7\) or .* \(2, 5, 7\).*; classes lie along axis 1: .*"
        r"Permute\(0, 2, 1\)",
    ),
    (
        lambda: nn.CrossEntropyLoss()(np.zeros((2, 5, 7)), np.zeros((3, 7), int)),
        r"labels of shape \(2, 7\).*got shape \(3, 7\)",
    ),
    (
        lambda: nn.CrossEntropyLoss().check(np.zeros((1, 5, 7)), np.zeros((3, 8), int)),
        r"labels of shape \(N, 7\) or .* \(N, 5, 7\).*got shape \(3, 8\)",
    ),
    (
        lambda: nn.CrossEntropyLoss()(np.zeros((2, 5, 7)), np.zeros((2, 7))),
        "if they are labels, convert",
    ),
    (lambda: nn.NLLLoss()(O, O), r"needs integer labels of shape \(2,\), got shape \(2, 3\)"),
    (lambda: nn.NLLLoss()(O[0], Y), r"log-probabilities of shape \(N, C\) or \(N, C, …\)"),
    (lambda: nn.NLLLoss()(O, Y + 2), "labels from 0 to 2 for 3 classes, got 3"),
    (lambda: nn.MultiMarginLoss()(O, Y - 1), "labels from 0 to 2 for 3 classes, got -1"),
    (lambda: nn.MultiMarginLoss()(O, O), r"needs integer labels of shape \(2,\), got shape"),
    (lambda: nn.MultiMarginLoss(p=3), "p must be 1 or 2, got 3"),
    (lambda: nn.MultiMarginLoss(margin="1"), "margin must be a finite number"),  # type: ignore[arg-type]
    (lambda: nn.KLDivLoss("none"), "'mean', 'sum', 'batchmean', got 'none'"),
    (lambda: nn.KLDivLoss().check(O, O - 1), "needs targets that are probabilities"),
    (lambda: nn.KLDivLoss().check(O, O + np.nan), "needs targets that are probabilities"),
    (lambda: nn.KLDivLoss(log_target=True).check(O, O + 1), "log-probabilities, at most 0"),
    (lambda: nn.KLDivLoss(log_target=3), "log_target must be True or False, got 3"),  # type: ignore[arg-type]
    (lambda: nn.SmoothL1Loss(beta=-1), "beta must be a finite number from 0, got -1"),
    (lambda: nn.CosineEmbeddingLoss(margin=2), "margin must be .* -1 to 1, got 2"),
    (lambda: nn.CosineEmbeddingLoss()(O, Y), r"takes a tuple \(first input, second input\), got a"),
    (lambda: nn.CosineEmbeddingLoss()((O, O), Y), "targets that are 1, .*, or -1"),
    (lambda: nn.CosineEmbeddingLoss().check((O, O), Y), "targets that are 1, .*, or -1"),
    (lambda: nn.CosineEmbeddingLoss()((O, O), O), r"targets of shape \(2,\).*got \(2, 3\)"),
    (lambda: nn.CosineEmbeddingLoss().check((O, O), O), r"targets of shape \(N,\).*got \(2, 3\)"),
    (lambda: nn.CosineEmbeddingLoss()((O, O[:1]), Y), r"one shape and dtype.*\(1, 3\)"),
    (lambda: nn.CosineEmbeddingLoss()((O, O.astype("f4")), Y), "one shape and dtype.*float32"),
    (lambda: nn.TripletMarginLoss()((O, O)), "anchor, positive, negative.*got a tuple of 2"),
    (lambda: nn.TripletMarginLoss()((O[0],) * 3), r"shape \(N, …, D\), got \(3,\)"),
    (lambda: nn.TripletMarginLoss(margin=0), "margin must be a finite number above 0"),
    (lambda: nn.TripletMarginLoss(p=0.5), "p must be a finite number from 1, got 0.5"),
    (lambda: nn.TripletMarginLoss(eps=-1), "eps must be a finite number from 0"),
    (lambda: nn.TripletMarginLoss(swap=2), "swap must be True or False"),  # type: ignore[arg-type]
    (lambda: nn.TripletMarginLoss("none"), "'mean', 'sum', got 'none'"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_good_targets_pass_the_door() -> None:
    nn.KLDivLoss().check(O, O)
    nn.KLDivLoss(log_target=True).check(O, O - np.inf)
    nn.CosineEmbeddingLoss().check((O[:1], O[:1]), np.array([1, -1, 1.0]))
    nn.CrossEntropyLoss(ignore_index=-1).check(O[:1], np.array([-1, 2, 0, 1]))
    nn.CrossEntropyLoss().check(np.zeros((1, 3, 2)), np.full((5, 3, 2), 1 / 3))
