"""The exercises whose answer is a layer, with the formulas of their right answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from xbp.homework.exercise import Exercise, Truths
from xbp.homework.hints import Host, Truth


def drawn(seed: int, *shapes: tuple[int, ...]) -> tuple[Host, ...]:
    """Arrays of normal numbers, always the same for a seed."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for shape in shapes)


def case(seed: int, x: tuple[int, ...], y: tuple[int, ...], **parameters: Any) -> tuple[Any, ...]:
    """An input, an output gradient, and parameters."""
    names = list(parameters)
    first, delta, *values = drawn(seed, x, y, *(parameters[name] for name in names))
    return first, delta, dict(zip(names, values, strict=True))


# --- linear --------------------------------------------------------------------------------------


def linear(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    weight, bias = parameters["weight"], parameters["bias"]
    sizes = {"N": len(x), "in": x.shape[1], "out": len(bias)}
    product = x @ weight.T
    mistakes = []
    if weight.shape[0] == weight.shape[1]:
        sentence = "the weights are used with rows and columns exchanged"
        mistakes = [("transpose", sentence, delta @ weight.T)]
        sentence = "W is used where Wᵀ belongs"
        wrong = [("transpose", sentence, x @ weight + bias)]
    else:
        wrong = []
    return {
        "output": Truth(product + bias, {"x Wᵀ": product, "b": bias + 0 * product}, mistakes=wrong),
        "input": Truth(delta @ weight, mistakes=mistakes, sizes=sizes),
        "weight": Truth(
            delta.T @ x,
            samples=[np.outer(d, row) for d, row in zip(delta, x, strict=True)],
            sizes=sizes,
        ),
        "bias": Truth(delta.sum(axis=0), samples=list(delta), sizes=sizes),
    }


LINEAR = Exercise(
    "linear",
    "layer",
    "Linear",
    "y = x Wᵀ + b",
    lambda cls, x, delta, parameters: cls(x.shape[1], delta.shape[1]),
    [
        case(0, (5, 4), (5, 3), weight=(3, 4), bias=(3,)),
        case(1, (3, 3), (3, 3), weight=(3, 3), bias=(3,)),
    ],
    linear,
    {"weight": "∂L/∂W", "bias": "∂L/∂b"},
)


# --- sigmoid -------------------------------------------------------------------------------------


def logistic(x: Host) -> Host:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def sigmoid(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    y = logistic(x)
    slope = y * (1 - y)
    wrong = "the slope y (1 - y) is taken at something else than the output y"
    return {
        "output": Truth(
            y,
            mistakes=[
                ("sign", "the sign in the exponent is wrong", logistic(-x)),
                ("chain", "this is the slope, not the function", slope),
                ("factor", "this is tanh, which is 2 σ(2x) - 1", np.tanh(x)),
            ],
        ),
        "input": Truth(
            slope * delta,
            factors={"∂L/∂y": delta, "y": y, "1 - y": 1 - y, "y (1 - y)": slope},
            mistakes=[
                ("chain", wrong, x * (1 - x) * delta),
                ("chain", wrong, logistic(y) * (1 - logistic(y)) * delta),
                ("chain", "this is the slope of tanh", (1 - y * y) * delta),
                ("sign", "the sign within the slope is wrong", y * (1 + y) * delta),
            ],
        ),
    }


SIGMOID = Exercise(
    "sigmoid",
    "layer",
    "Sigmoid",
    "y = 1 / (1 + e⁻ˣ) for each entry",
    lambda cls, *inputs: cls(),
    [case(2, (4, 3), (4, 3))],
    sigmoid,
    extreme=(np.array([[-1000.0, 0.0, 1000.0]]),),
)


# --- softmax -------------------------------------------------------------------------------------


def softmax(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    def over(z: Host, axis: Any = 1) -> Host:
        e = np.exp(z - z.max())
        return e / np.sum(e, axis=axis, keepdims=True)  # type: ignore[no-any-return]

    y = over(x)
    along = np.sum(y * delta, axis=1, keepdims=True)
    wrong = "the sum runs over something else than the entries of a row"
    everywhere = np.sum(y * delta)
    return {
        "output": Truth(
            y,
            mistakes=[
                ("sum", wrong, over(x, axis=0)),
                ("sum", wrong, over(x, axis=None)),
                ("sum", "the exponentials are not divided by their sum", np.exp(x)),
                ("sign", "the sign in the exponent is wrong", over(-x)),
            ],
        ),
        "input": Truth(
            y * (delta - along),
            terms={"y ∘ ∂L/∂y": y * delta, "y Σ y ∘ ∂L/∂y": -y * along},
            factors={"y": y, "∂L/∂y": delta},
            mistakes=[
                ("sum", wrong, y * (delta - np.sum(y * delta, axis=0))),
                ("sum", wrong, y * (delta - everywhere)),
                ("sum", "a sum over the row is missing", y * (delta - y * delta)),
                ("chain", "in the sum, y is missing", y * (delta - delta.sum(1, keepdims=True))),
                ("chain", "only the diagonal of the Jacobian is there", y * (1 - y) * delta),
                ("factor", "a mean, where a sum belongs", y * (delta - along / x.shape[1])),
            ],
        ),
    }


SOFTMAX = Exercise(
    "softmax",
    "layer",
    "Softmax",
    "y_i = e^{x_i} / Σ_j e^{x_j} for each row",
    lambda cls, *inputs: cls(),
    [case(3, (4, 3), (4, 3))],
    softmax,
    extreme=(np.array([[1000.0, 0.0, -1000.0]]),),
)


# --- batch normalization -------------------------------------------------------------------------

EPS = 1e-5


def batch_norm(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    weight, bias, n = parameters["weight"], parameters["bias"], len(x)
    centred = x - x.mean(axis=0)
    variance = np.mean(centred**2, axis=0)
    r = 1 / np.sqrt(variance + EPS)
    normal, g = centred * r, weight * delta
    level, along = g.mean(axis=0), np.mean(g * normal, axis=0)
    dx = r * (g - level - normal * along)
    unbiased = centred / np.sqrt(variance * n / (n - 1) + EPS)
    ones = np.ones_like(x)
    return {
        "output": Truth(
            weight * normal + bias,
            {"w x̂": weight * normal, "b": bias * ones},
            mistakes=[
                ("factor", "the variance is divided by n, not by n - 1", weight * unbiased + bias),
                ("chain", "the mean is not subtracted", weight * x * r + bias),
                (
                    "chain",
                    "it is divided by the variance, not by its root",
                    weight * centred * r * r + bias,
                ),
                (
                    "sum",
                    "the mean runs over something else than the batch",
                    _over_features(x, weight, bias),
                ),
            ],
        ),
        "input": Truth(
            dx,
            terms={
                "r g": r * g,
                "-r mean(g)": -r * level * ones,
                "-r x̂ mean(g x̂)": -r * normal * along,
            },
            factors={"r = 1/√(σ² + ε)": r * ones, "w": weight * ones},
            mistakes=[
                ("sum", "a mean over the batch is missing", r * (g - level - normal * g * normal)),
            ],
            sizes={"n": n},
        ),
        "weight": Truth(
            np.sum(delta * normal, axis=0),
            samples=list(delta * normal),
            mistakes=[
                ("chain", "x stands where x̂ belongs", np.sum(delta * x, axis=0)),
                ("chain", "x - μ stands where x̂ belongs", np.sum(delta * centred, axis=0)),
                ("chain", "the factor x̂ is missing", np.sum(delta, axis=0)),
                (
                    "chain",
                    "y stands where x̂ belongs",
                    np.sum(delta * (weight * normal + bias), axis=0),
                ),
            ],
            sizes={"n": n},
        ),
        "bias": Truth(
            delta.sum(axis=0),
            samples=list(delta),
            mistakes=[("chain", "there is a factor w too much", g.sum(axis=0))],
            sizes={"n": n},
        ),
    }


def _over_features(x: Host, weight: Host, bias: Host) -> Host:
    centred = x - x.mean(axis=1, keepdims=True)
    spread: Host = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + EPS)
    y: Host = weight * centred / spread + bias
    return y


BATCH_NORM = Exercise(
    "batch_norm",
    "layer",
    "BatchNorm",
    "y = w x̂ + b with x̂ = (x - μ)/√(σ² + ε), ε = 1e-5, by mean and variance over the batch",
    lambda cls, x, delta, parameters: cls(x.shape[1]),
    [case(4, (6, 3), (6, 3), weight=(3,), bias=(3,))],
    batch_norm,
    {"weight": "∂L/∂w", "bias": "∂L/∂b"},
)


# --- a recurrent layer ---------------------------------------------------------------------------


def rnn(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    W, U, b = (parameters[name] for name in ("weight_ih", "weight_hh", "bias"))
    N, T, _ = x.shape
    H = len(b)
    h = np.zeros((N, T + 1, H))  # h[:, 0] is the initial state
    for t in range(T):
        h[:, t + 1] = np.tanh(x[:, t] @ W.T + h[:, t] @ U.T + b)

    def back(
        *, through: bool = True, slope: bool = True, transposed: bool = False, given: bool = True
    ) -> dict[str, Host]:
        """All gradients, or those with one part of the derivation left out."""
        da, dh = np.zeros((N, T, H)), np.zeros((N, H))
        for t in reversed(range(T)):
            dh = dh + delta[:, t] if given or t == T - 1 else dh
            da[:, t] = dh * (1 - h[:, t + 1] ** 2) if slope else dh
            dh = da[:, t] @ (U.T if transposed else U) if through else np.zeros((N, H))
        return {
            "input": da @ W,
            "weight_ih": np.einsum("nto,nti->oi", da, x),
            "weight_hh": np.einsum("nto,nti->oi", da, h[:, :-1]),
            "bias": da.sum(axis=(0, 1)),
            "after": np.einsum("nto,nti->oi", da, h[:, 1:]),
            "last_ih": da[:, -1].T @ x[:, -1],
            "last_hh": da[:, -1].T @ h[:, -2],
            "last": da[:, -1].sum(axis=0),
            "first_ih": da[:, 0].T @ x[:, 0],
            "first_hh": da[:, 0].T @ h[:, 0],
            "first": da[:, 0].sum(axis=0),
        }

    right = back()
    variants = [
        ("chain", "the way through the next step's state is missing", back(through=False)),
        ("chain", "the slope of tanh, 1 - h², is missing", back(slope=False)),
        ("transpose", "the way back through W_hh is transposed", back(transposed=True)),
        ("chain", "∂L/∂h counts at the last step alone", back(given=False)),
    ]
    one_step = "it is the share of one time step alone, and all contribute"

    def truth(name: str, *steps: str) -> Truth:
        mistakes = [(kind, sentence, wrong[name]) for kind, sentence, wrong in variants]
        mistakes += [("sum", one_step, right[step]) for step in steps]
        if name == "weight_hh":
            mistakes.append(("chain", "h_t stands where h_{t-1} belongs", right["after"]))
            mistakes.append(("transpose", "it is the transpose of the right one", right[name].T))
        return Truth(right[name], mistakes=mistakes, sizes={"N": N, "T": T, "N T": N * T})

    without = np.zeros((N, T + 1, H))
    for t in range(T):
        without[:, t + 1] = np.tanh(x[:, t] @ W.T + b)
    return {
        "output": Truth(
            h[:, 1:],
            mistakes=[("state", "the state of the step before is not used", without[:, 1:])],
        ),
        "input": truth("input"),
        "weight_ih": truth("weight_ih", "last_ih", "first_ih"),
        "weight_hh": truth("weight_hh", "last_hh", "first_hh"),
        "bias": truth("bias", "last", "first"),
    }


RNN = Exercise(
    "rnn",
    "layer",
    "RNN",
    "h_t = tanh(W_ih x_t + W_hh h_{t-1} + b), with h_0 = 0; the output is h_1 … h_T",
    lambda cls, x, delta, parameters: cls(x.shape[2], delta.shape[2]),
    [
        case(5, (3, 4, 2), (3, 4, 5), weight_ih=(5, 2), weight_hh=(5, 5), bias=(5,)),
        case(6, (3, 3, 3), (3, 3, 3), weight_ih=(3, 3), weight_hh=(3, 3), bias=(3,)),
    ],
    rnn,
    {"weight_ih": "∂L/∂W_ih", "weight_hh": "∂L/∂W_hh", "bias": "∂L/∂b"},
)
