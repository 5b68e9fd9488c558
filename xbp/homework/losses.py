"""The exercises whose answer is a loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from xbp.homework.exercise import Exercise, Truths
from xbp.homework.hints import Host, Truth
from xbp.homework.layers import drawn


def mse(y: Host, t: Host) -> Truths:
    d, sizes = y - t, {"N": len(y), "C": y.shape[1], "N C": y.size}
    value = np.asarray(np.mean(d * d))
    return {
        "value": Truth(
            value,
            mistakes=[
                ("chain", "the difference is not squared", np.asarray(np.mean(d))),
                ("chain", "it is the root of the loss", np.sqrt(value)),
                ("chain", "it is the mean of absolute differences", np.asarray(np.mean(abs(d)))),
            ],
            sizes=sizes,
        ),
        "gradient": Truth(
            2 * d / y.size,
            mistakes=[
                ("chain", "it is the derivative of the absolute difference", np.sign(d) / y.size),
                ("chain", "it is the loss of each entry, not its derivative", d * d / y.size),
                ("chain", "y stands where y - t belongs", 2 * y / y.size),
                ("sign", "the sign of t is wrong", 2 * (y + t) / y.size),
            ],
            sizes=sizes,
        ),
    }


MSE = Exercise(
    "mse",
    "loss",
    "MSELoss",
    "L = mean over all entries of (y - t)²",
    lambda cls, *inputs: cls(),
    [drawn(10, (5, 3), (5, 3))],
    mse,
    {"gradient": "∂L/∂y"},
)


def cross_entropy(z: Host, labels: Host) -> Truths:
    def softmax(a: Host, axis: Any = 1) -> Host:
        e = np.exp(a - a.max())
        return e / np.sum(e, axis=axis, keepdims=True)  # type: ignore[no-any-return]

    p, t, n = softmax(z), np.eye(z.shape[1])[labels], len(z)
    wrong = "the softmax sums over something else than the classes of a row"
    over_batch = softmax(z, axis=0)
    each = -np.log(np.sum(p * t, axis=1))
    return {
        "value": Truth(
            np.asarray(each.mean()),
            samples=[np.asarray(v / n) for v in each],
            mistakes=[
                ("chain", "the logarithm is missing", np.asarray(-np.sum(p * t) / n)),
                ("sum", wrong, np.asarray(-np.sum(t * np.log(over_batch)) / n)),
                ("sum", "the term log Σ eᶻ is missing", np.asarray(-np.sum(t * z) / n)),
                (
                    "sum",
                    "it sums over all classes, and not the label's alone",
                    np.asarray(-np.sum(np.log(p)) / n),
                ),
            ],
            sizes={"N": n, "C": z.shape[1], "N C": z.size},
        ),
        "gradient": Truth(
            (p - t) / n,
            terms={"softmax(z)": p / n, "t, 1 at the label,": -t / n},
            mistakes=[
                ("sum", wrong, (over_batch - t) / n),
                ("chain", "it is the derivative by p, and not by z", -t / p / n),
                ("chain", "z stands where softmax(z) belongs", (z - t) / n),
                ("chain", "the slope of the softmax is there twice", p * (1 - p) * (p - t) / n),
                ("chain", "log p stands where p belongs", (np.log(p) - t) / n),
            ],
            sizes={"N": n, "C": z.shape[1], "N C": z.size},
        ),
    }


CROSS_ENTROPY = Exercise(
    "cross_entropy",
    "loss",
    "CrossEntropyLoss",
    "L = mean over samples of -log p_label, with p = softmax(z)",
    lambda cls, *inputs: cls(),
    [(*drawn(11, (5, 3)), np.array([0, 2, 1, 1, 0]))],
    cross_entropy,
    {"gradient": "∂L/∂z"},
    extreme=(np.array([[1000.0, 0.0, -1000.0]]), np.array([1])),
)
