"""The table of losses, with one line for each.

In ``Loss(name, oracle, calls)`` the name of a call is the kind of its targets: with
``labels((5, 3), penalty=2.0)`` a loss with this penalty gets normal predictions (5, 3) and integer
labels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

import xbp
from xbp import nn
from xbp.backend import array_namespace
from xbp.models import lenet1998
from xbp.testing import oracles
from xbp.testing.cases.arrays import Host, ends, masked, sparse, wide
from xbp.testing.cases.case import Call, Choices, Line, filled, within

# --- targets --------------------------------------------------------------------------------------


def _numbers(y: Host) -> Host:
    """Normal numbers, but equal to predictions of 0, where |y - t| has a kink."""
    return np.where(y == 0, y, 5 * np.random.default_rng(3).normal(size=y.shape))


def _events(y: Host) -> Host:
    """Probabilities, among them 0 and 1."""
    return np.random.default_rng(3).uniform(-1, 2, y.shape).clip(0, 1)


LEFT_OUT = -7
"""The label that losses ignore."""


def _labels(y: Host) -> Host:
    """Labels (N, d1, …) for outputs (N, C, d1, …)."""
    counted: Host = np.arange(y.size // y.shape[1]) % y.shape[1]
    return counted.reshape(len(y), *y.shape[2:])


TARGETS: dict[str, Callable[[Host], Host]] = {
    "numbers": _numbers,
    "events": _events,
    "labels": _labels,
    "labels and others": lambda y: np.where(_labels(y) % 3 == 1, LEFT_OUT, _labels(y)),
    "labels of a byte": lambda y: (np.arange(len(y)) % y.shape[1]).astype("uint8"),
    "probabilities": lambda y: np.moveaxis(
        np.random.default_rng(3).dirichlet(np.ones(y.shape[1]), (len(y), *y.shape[2:])), -1, 1
    ),
    "log-probabilities": lambda y: np.log(TARGETS["probabilities"](y)),
    "signs": lambda y: np.where(np.arange(len(y)) % 3 == 1, -1, 1),
    "nothing": lambda y: np.zeros(len(y)),
    "weights": lambda y: np.arange(float(y.size)).reshape(y.shape),  # of other sums than 1
}


def with_target(target: str) -> Callable[..., Call]:
    return lambda x, *arguments, **options: Call(x, arguments, options, target)


numbers, events = with_target("numbers"), with_target("events")
labels, bytes_ = with_target("labels"), with_target("labels of a byte")
some_labels = with_target("labels and others")
probabilities, weights = with_target("probabilities"), with_target("weights")
log_probabilities = with_target("log-probabilities")
signs, nothing = with_target("signs"), with_target("nothing")


class Loss(Line):
    """A line of `xbp.testing.cases.LOSSES`."""

    kind = "loss"

    def inputs(self, call: Call) -> tuple[Host, ...]:
        y = filled(call.x)
        return y, TARGETS[call.target](y)


# --- definitions, as functions of state, inputs and constructor arguments -------------------------


def without_state(function: Callable[..., float]) -> Callable[..., float]:
    return lambda state, y, t, *arguments, **options: function(y, t, *arguments, **options)


def huber(state: Any, y: Host, t: Host, *, delta: float = 1.0, **options: Any) -> float:
    return oracles.huber_loss(y, t, delta, **options)


def binary_cross_entropy(
    state: Any, y: Host, t: Host, *, pos_weight: Any = 1.0, **options: Any
) -> float:
    weight = pos_weight if isinstance(pos_weight, float) else np.asarray(pos_weight)
    return oracles.binary_cross_entropy(y, t, weight, **options)


def rejecting(state: Any, y: Host, t: Host, *, penalty: float = 1.0, **options: Any) -> float:
    return oracles.rejecting_cross_entropy(y, t, penalty, **options)


def weighted(pos_weight: list[float]) -> nn.Loss:
    """BCEWithLogitsLoss with a weight for each column, on the current backend."""
    return nn.BCEWithLogitsLoss(pos_weight=xbp.asarray(pos_weight))


class Packed(nn.Loss):
    """A loss of several inputs, given as one array (N, inputs, D)."""

    def __init__(self, loss: nn.EmbeddingLoss) -> None:
        self.loss, self.reduction = loss, loss.reduction

    def __call__(self, prediction: Any, target: Any) -> Any:
        xp = array_namespace(prediction)
        inputs = tuple(prediction[:, i, :] for i in range(prediction.shape[1]))
        value, gradients = self.loss(inputs, target)
        return value, xp.stack(gradients, axis=1)

    def check(self, prediction: Any, target: Any) -> None:
        self.loss.check(tuple(prediction[:, i, :] for i in range(prediction.shape[1])), target)


def packed(kind: type[nn.EmbeddingLoss]) -> Callable[..., nn.Loss]:
    @wraps(kind)
    def make(**options: Any) -> nn.Loss:
        return Packed(kind(**options))

    return make


def triplets(state: Any, x: Host, t: Host, **options: Any) -> float:
    return oracles.triplet_margin_loss(x[:, 0], x[:, 1], x[:, 2], **options)


def pairs(state: Any, x: Host, t: Host, **options: Any) -> float:
    return oracles.cosine_embedding_loss(x[:, 0], x[:, 1], t, **options)


# --- kinks ----------------------------------------------------------------------------------------


def where_equal(y: Host, t: Host, *arguments: Any, **options: Any) -> float:
    """The least distance between prediction and target."""
    return float(np.min(np.abs(y - t)))


def at_delta(y: Host, t: Host, *arguments: Any, delta: float = 1.0, **options: Any) -> float:
    """The least distance between an absolute error and delta."""
    return float(np.min(np.abs(np.abs(y - t) - delta)))


# --- the table ------------------------------------------------------------------------------------

REGRESSION = [
    numbers((4, 3)),
    numbers((65, 33)),
    numbers((5, 2, 3), reduction="sum", factor=0.5),
    numbers(sparse(7, 3), reduction="batchmean"),
    numbers((4, 3), reduction="batchmean", factor=0.5),
    numbers((5,), reduction="sum"),
]
CLASSES = [target(z) for target in (labels, probabilities) for z in (masked(7, 5), ends(6, 4))]

HOW: Choices = {
    "reduction": ["mean", "sum", "batchmean"],
    "factor": [1.0, 0.5, 2.0, 1 / 3],
}
QUARTERS = [k / 4 for k in range(1, 9)]

LOSSES: list[Loss] = [
    Loss("MSELoss", without_state(oracles.mse_loss), [*REGRESSION, numbers(ends(5, 3))],
         axes=1, exact=True, drawn=[HOW]),
    Loss("L1Loss", without_state(oracles.l1_loss), REGRESSION, kinks=where_equal,
         axes=1, exact=True, drawn=[HOW]),
    Loss("HuberLoss", huber, [
        *REGRESSION,
        numbers((4, 3), delta=3.0),
        numbers((4, 3), reduction="sum", factor=1 / 3, delta=3.0),
        numbers(ends(5, 3)),
    ], kinks=at_delta, axes=1, exact=True, drawn=[HOW | {"delta": QUARTERS}]),
    Loss("BCEWithLogitsLoss", binary_cross_entropy, [
        events((5, 3)),
        events((6, 1), reduction="sum"),
        events((5, 3), pos_weight=2.5),
        events(wide(6, 1), reduction="sum", pos_weight=2.5),
        events(ends(5, 3)),
    ]),
    Loss("BCEWithLogitsLoss", binary_cross_entropy, [events((5, 3), pos_weight=[2.6, 0.0, 1.0])],
         make=weighted),
    Loss("CrossEntropyLoss", without_state(oracles.cross_entropy), [
        labels((5, 3)),
        labels(wide(33, 10), reduction="sum"),
        bytes_((6, 4), reduction="sum"),
        probabilities((5, 3)),
        *CLASSES,
    ]),
    Loss("CrossEntropyLoss", without_state(oracles.cross_entropy), [
        weights((5, 3), reduction="sum"),
    ], trains=False),
    Loss("CrossEntropyLoss", without_state(oracles.class_cross_entropy), [
        labels((4, 3, 5)),
        probabilities((3, 4, 2, 2), reduction="sum"),
        labels((5, 3), weight=[0.5, 2.0, 0.0]),
        some_labels((7, 3), ignore_index=LEFT_OUT),
        some_labels((3, 4, 2, 3), ignore_index=LEFT_OUT, weight=[2.0, 1.0, 0.5, 3.0],
                    label_smoothing=0.1),
        some_labels(masked(7, 5), ignore_index=LEFT_OUT),
        labels(wide(33, 10), reduction="sum", label_smoothing=0.3),
        probabilities((5, 3), weight=[0.5, 2.0, 1.0], label_smoothing=0.2),
    ]),
    Loss("NLLLoss", without_state(oracles.nll_loss), [
        labels((5, 3)),
        labels((4, 3, 5), reduction="sum"),
        some_labels((7, 3), ignore_index=LEFT_OUT),
        some_labels((3, 4, 2, 3), ignore_index=LEFT_OUT, weight=[2.0, 1.0, 0.5, 3.0]),
        labels(masked(7, 5)),
    ]),
    Loss("MultiMarginLoss", without_state(oracles.multi_margin_loss), [
        labels((5, 3)),
        labels((4, 3, 2), reduction="sum", p=2, margin=0.5),
        labels((5, 3), weight=[0.5, 2.0, 0.0]),
    ], kinks=within),
    Loss("KLDivLoss", without_state(oracles.kl_divergence), [
        probabilities((5, 3)),
        probabilities((4, 3, 2), reduction="batchmean", factor=0.5),
        log_probabilities((5, 3), reduction="sum", log_target=True),
    ]),
    Loss("SmoothL1Loss", without_state(oracles.smooth_l1_loss), [
        *REGRESSION,
        numbers((4, 3), beta=3.0),
        numbers((4, 3), beta=0.0),
        numbers(ends(5, 3)),
    ], kinks=within),
    Loss("CosineEmbeddingLoss", pairs, [
        signs((5, 2, 4)),
        signs((6, 2, 3), reduction="sum", margin=0.3),
    ], make=packed(nn.CosineEmbeddingLoss), kinks=within),
    Loss("TripletMarginLoss", triplets, [
        nothing((5, 3, 4)),
        nothing((6, 3, 4), reduction="sum", margin=2.0, p=3.0),
        nothing((6, 3, 4), p=1.0, eps=0.01),
        nothing((6, 3, 4), swap=True),
    ], make=packed(nn.TripletMarginLoss), kinks=within),
    Loss("RejectingCrossEntropyLoss", rejecting, [
        labels((5, 3)),
        labels((6, 4), reduction="sum", penalty=-0.5),
        bytes_((6, 4), reduction="sum", penalty=-0.5),
        probabilities((5, 3)),
        *CLASSES,
    ], room=lenet1998),
]  # fmt: skip
