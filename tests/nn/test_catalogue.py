"""Every layer and loss of the table: oracle, gradients, memory order, batch of one, backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nn.cases import CASES, LAYERS, check_oracle, forward
from numpy.typing import NDArray

import xbp
from xbp import nn
from xbp.backend import why_unavailable
from xbp.nested import tree_leaves, tree_map
from xbp.testing import assert_no_host_sync, check_gradients, check_parity, oracles
from xbp.testing.cases import Case

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_layer = pytest.mark.parametrize("case", LAYERS, ids=str)
away_from_kinks = pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=str)
differentiable = pytest.mark.parametrize("case", [c for c in CASES if c.differentiable], ids=str)
every_backend = pytest.mark.parametrize("backend", ["array_api_strict", "torch", "cupy"])


def scattered(array: NDArray[Any]) -> NDArray[Any]:
    """The same values, but neither C- nor Fortran-contiguous: every second entry of a mirror."""
    doubled = np.repeat(array, 2, axis=-1)[..., ::-1]
    return doubled[..., ::-2] if array.ndim else array


@every_case
def test_forward_equals_the_oracle(case: Case) -> None:
    check_oracle(case)


@differentiable
def test_gradients_equal_numeric_derivatives(case: Case) -> None:
    check_gradients(case.make(), *case.inputs())


WEIGHTS = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
"""f′(0) = Σ w (f(kh) - f(-kh)) / h, but for h⁶ f⁽⁷⁾/140: with h = 1e-3, 1e-18 of it."""


@away_from_kinks
def test_gradients_have_ten_digits(case: Case) -> None:
    """The derivative in a random direction of input and parameters, in float64 throughout."""
    subject, (x, *rest) = case.make(), case.inputs()
    rng, is_layer = np.random.default_rng(3), hasattr(subject, "forward")
    parameters = subject.parameters() if is_layer else []
    arrays = [x, *(parameter.data for parameter in parameters)]
    start = [array.copy() for array in arrays]
    directions = [rng.normal(size=array.shape) for array in arrays]
    r = rng.normal(size=forward(case, (x, *rest))[1].shape) if is_layer else np.ones(())

    def value(step: float) -> tuple[Any, Any]:
        for array, origin, direction in zip(arrays, start, directions, strict=True):
            array[...] = origin + step * direction
        y, back = subject.forward(x, training=True, rng=0) if is_layer else subject(x, *rest)
        return r * y, back

    terms, back = value(0.0)
    gradients = [back(r), *(p.grad for p in parameters)] if is_layer else [back]
    found = sum(np.sum(g * v) for g, v in zip(gradients, directions, strict=True))
    h = 1e-3
    expected = sum(w * np.sum(value(k * h)[0] - value(-k * h)[0]) for k, w in WEIGHTS) / h
    # Rounding: ε of each term over h, 2e-13; a gradient through float32 is 1e-8 off.
    assert abs(found - expected) <= 1e-10 * (1 + np.sum(np.abs(terms)))


@differentiable
def test_gradients_of_a_batch_of_one(case: Case) -> None:
    check_gradients(case.make(), *(array[:1] for array in case.inputs()))


def results(case: Case, order: Callable[[Any], Any]) -> list[Any]:
    """The output and all gradients, or a loss and its gradient, of arrays in this memory order."""
    subject, inputs = case.make(), [order(array) for array in case.inputs()]
    if case.kind == "loss":
        return tree_leaves(subject(*inputs))
    y, backward = subject.forward(*inputs, training=True, rng=0)
    if not case.differentiable:
        return [y]
    dy = np.random.default_rng(3).normal(size=y.shape)
    gradients = y, backward(order(dy)), tuple(p.grad for p in subject.parameters())
    return [array for array in tree_leaves(gradients) if array is not None]


@every_case
def test_memory_order_does_not_matter(case: Case) -> None:
    assert not scattered(case.inputs()[0]).flags.forc
    pairs = zip(results(case, scattered), results(case, np.asarray), strict=True)
    for found, expected in pairs:
        # Equal sums, possibly in another order in BLAS: a few roundings.
        largest = np.max(np.abs(expected), initial=1.0)
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14 * largest)


@every_layer
def test_a_subclass_infers_by_its_own_forward(case: Case) -> None:
    """Whatever shorter way the class has for its own outputs."""
    subject, inputs = case.make(), case.inputs()
    expected = subject(*inputs)

    class Doubled(type(subject)):  # type: ignore[misc]
        def forward(self, *arrays: Any, **mode: Any) -> Any:
            y, backward = super().forward(*arrays, **mode)
            return tree_map(lambda a: 2 * a, y), backward

    subject.__class__ = Doubled
    pairs = zip(tree_leaves(subject(*inputs)), tree_leaves(expected), strict=True)
    for found, once in pairs:
        np.testing.assert_allclose(found, 2 * once, rtol=1e-12, atol=1e-12)


@every_case
@every_backend
def test_agrees_with_numpy_on(case: Case, backend: str) -> None:
    reason = why_unavailable(backend)
    if reason:
        pytest.skip(reason)
    check_parity(case.make, *case.inputs(), backends=[backend])


@every_layer
def test_inference_equals_the_training_forward(case: Case) -> None:
    """Inference equals its definition, and a call is a forward without training."""
    x, same = case.inputs()[0], case.line.inference is None
    assert np.array_equal(case.make()(x), forward(case, (x,), training=same)[1])
    if not same:
        check_oracle(case, training=False)


@every_layer
def test_integers_are_refused(case: Case) -> None:
    with pytest.raises(xbp.errors.InputError, match="floating-point"):
        case.make()(np.ones(case.inputs()[0].shape, int))


@every_case
def test_nothing_waits_for_the_device(case: Case) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        subject, inputs = case.make(), [xbp.asarray(array) for array in case.inputs()]
        with assert_no_host_sync():
            if hasattr(subject, "forward"):
                y, backward = subject.forward(*inputs, training=True, rng=0)
                backward(y)
                nn.for_parameters(backward)(y)
                subject(*inputs)
            else:
                subject(*inputs)


def test_a_sequential_does_not_wait_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model, x = nn.Sequential(nn.Linear(2, 3, rng=0), nn.Tanh()), xbp.asarray([[1.0, 2.0]])
        x = xbp.asarray(x, dtype="float32")
        with assert_no_host_sync():
            y, backward = model.forward(x, training=True)
            backward(y)
            model(x)


@every_layer
def test_neither_input_nor_gradient_is_changed(case: Case) -> None:
    x = case.inputs()[0]
    y, backward = case.make().forward(x, training=True, rng=0)
    dy = np.ones_like(y)
    x.flags.writeable = dy.flags.writeable = False
    backward(dy)
    case.make().forward(x, training=True, rng=0)


@every_layer
def test_two_calls_do_not_disturb_each_other(case: Case) -> None:
    """A layer keeps nothing of a call, so backwards may run in any order."""
    layer, x = case.make(), case.inputs()[0]
    y, first = layer.forward(x, training=True, rng=0)
    _, second = layer.forward(2 * x + 1, training=True, rng=3)
    dy = np.random.default_rng(0).normal(size=y.shape)
    second(dy)
    alone = case.make().forward(x, training=True, rng=0)[1](dy)
    assert np.array_equal(first(dy), alone)


def test_the_size_of_an_output_is_told_beforehand() -> None:
    layer, x = nn.Conv2d(1, 2, (3, 2), (2, 1), (0, 1)), np.zeros((1, 1, 9, 7), np.float32)
    assert layer.output_shape(x.shape) == layer(x).shape == (1, 2, 4, 8)


def test_max_pool_sends_the_gradient_of_ties_to_the_first() -> None:
    x = np.random.default_rng(0).integers(0, 2, (2, 2, 6, 6)).astype(float)
    y, backward = nn.MaxPool2d(3, 2, 1).forward(x)
    dy = np.random.default_rng(1).normal(size=y.shape)
    expected = oracles.max_pool2d_input_gradient(x, dy, (3, 3), (2, 2), (1, 1))
    np.testing.assert_allclose(backward(dy), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.Softmax])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_are_finite_at_large_inputs(kind: type[nn.Layer], dtype: str) -> None:
    x = np.array([[-1e4, -80.0, 0.0, 80.0, 1e4]], dtype)
    y, backward = kind().forward(x)
    assert np.isfinite(y).all()
    assert np.isfinite(backward(np.ones_like(y))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_is_exact_at_large_logits(dtype: str) -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype)
    value, gradient = nn.CrossEntropyLoss("sum")(logits, np.array([1, 2]))
    # -log p is 2e4 for the first, log 2 for the second; ε·2e4 is the spacing of the sum.
    assert value == pytest.approx(2e4 + np.log(2), rel=2 * float(np.finfo(dtype).eps))
    np.testing.assert_allclose(gradient, [[1, -1, 0], [0, 0.5, -0.5]], atol=1e-7)


def test_slopes_at_the_kinks_are_pytorchs() -> None:
    zero, one = np.zeros(1), np.ones(1)
    assert nn.ReLU().forward(zero)[1](one) == 0
    assert nn.LeakyReLU(0.2).forward(zero)[1](one) == 0.2
    assert nn.PReLU(init=0.25, dtype="float64").forward(zero)[1](one) == 0.25
    assert nn.ELU(0.3).forward(zero)[1](one) == 0.3
    assert nn.L1Loss()(zero, zero)[1] == 0


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_at_its_ends(p: float) -> None:
    x = np.ones((3, 4))
    y, backward = nn.Dropout(p).forward(x, training=True, rng=0)
    assert np.array_equal(y, (1 - p) * x)
    assert np.array_equal(backward(x), (1 - p) * x)


def test_dropout_keeps_the_expectation() -> None:
    y, _ = nn.Dropout(0.2).forward(np.ones(100_000), training=True, rng=0)
    # Variance p/(1-p) = 0.25 an entry, so σ of the mean is 0.5/√n = 0.0016; 5 σ.
    assert abs(y.mean() - 1) < 0.008


BAD = [
    (lambda: nn.Conv2d(1, 2, 3)(np.zeros((28, 28), np.float32)), r"\(N, 1, H, W\).*\(28, 28\)"),
    (lambda: nn.Conv2d(1, 2, 3)(np.zeros((1, 3, 9, 9), np.float32)), r"\(1, 3, 9, 9\)"),
    (lambda: nn.Conv2d(1, 2, 5)(np.zeros((1, 1, 4, 9), np.float32)), "4 × 9 pixels"),
    (lambda: nn.Conv2d(1, 2, 3)(np.zeros((1, 1, 9, 9))), "float64 input.*float32.*astype"),
    (lambda: nn.Conv2d(0, 2, 3), "in_channels.*at least 1.*0"),
    (lambda: nn.Conv2d(1, 2, (3, 3, 3)), "kernel_size.*pair"),  # type: ignore[arg-type]
    (lambda: nn.Conv2d(1, 2, 3, stride=0), "stride.*at least 1"),
    (lambda: nn.MaxPool2d(2, padding=2), "more than half"),
    (lambda: nn.MaxPool2d(2)(np.zeros((3, 3))), r"\(N, C, H, W\)"),
    (lambda: nn.AvgPool2d(2)(np.zeros((1, 3, 3))), r"\(N, C, H, W\).*\(1, 3, 3\)"),
    (lambda: nn.Linear(3, 2)(np.zeros((4, 5), np.float32)), r"\(…, 3\).*\(4, 5\)"),
    (lambda: nn.Linear(3, 2)([[1.0, 2.0, 3.0]]), "expected an array, got list.*xbp.asarray"),
    (lambda: nn.Linear(3, 2, rng=-1), "rng must be"),
    (lambda: nn.Sigmoid()(np.array([1], np.uint8)), "floating-point input, got uint8"),
    (lambda: nn.Linear(3, 2, dtype="float33"), "unknown dtype 'float33'"),
    (lambda: nn.Dropout(1.5), "p must be.*0 to 1.*1.5"),
    (lambda: nn.Softmax(axis=2)(np.zeros((2, 2))), "no axis 2"),
    (lambda: nn.MSELoss()(np.zeros((3, 1)), np.zeros(3)), r"\(3, 1\), got \(3,\)"),
    (lambda: nn.MSELoss("avg"), "'mean', 'sum', 'batchmean', got 'avg'"),
    (
        lambda: nn.CrossEntropyLoss()(np.zeros((2, 3)), np.array([0, 3])),
        "labels from 0 to 2.*got 3",
    ),
    (lambda: nn.CrossEntropyLoss()(np.zeros((2, 3)), np.array([-1, 0])), "got -1"),
    (lambda: nn.CrossEntropyLoss()(np.zeros((2, 3)), np.array([0.0, 1.0])), "integer labels"),
    (lambda: nn.CrossEntropyLoss()(np.zeros((2, 3)), np.array([0])), r"labels of shape \(2,\)"),
    (lambda: nn.CrossEntropyLoss()(np.zeros(3), np.array([0])), r"\(N, C\)"),
    (lambda: nn.CrossEntropyLoss()(np.zeros((0, 3)), np.zeros(0, int)), "at least one sample"),
    (lambda: nn.CrossEntropyLoss()(np.zeros((1, 3), int), np.array([0])), "floating-point"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(xbp.errors.InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_on_a_device_makes_the_loss_nan(label: int) -> None:
    """An invalid label gives no plausible number on devices where checking it would wait."""
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        value, _ = nn.CrossEntropyLoss()(xbp.asarray([[0.0, 1.0]]), xbp.asarray([label]))
    assert np.isnan(xbp.to_numpy(value))
