"""Sixty mistakes in ten answers: what students get wrong, and the kind that a hint should name.

    python tests/homework/faults.py         # how many are found, and how many hints are right

Each replaces text of one solution, once. The kinds were written down before any check had seen the
faults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from xbp.homework import Answer, check_file

SOLUTIONS = Path(__file__).parent / "solutions"


class Fault(NamedTuple):
    exercise: str
    old: str
    new: str
    kind: str


FAULTS = [
    # --- linear
    Fault("linear", "dy.T @ x)", "x.T @ dy)", "transpose"),
    Fault("linear", "return dy @ W", "return dy @ W.T", "transpose"),
    Fault("linear", "xp.sum(dy, axis=0)", "dy", "sum"),
    Fault("linear", "xp.sum(dy, axis=0)", "xp.mean(dy, axis=0)", "factor"),
    Fault("linear", "dy.T @ x)", "dy.T @ x / x.shape[0])", "factor"),
    Fault("linear", "dy.T @ x)", "dy[-1:, :].T @ x[-1:, :])", "sum"),
    # --- sigmoid
    Fault("sigmoid", "return y * (1 - y) * dy", "return x * (1 - x) * dy", "chain"),
    Fault("sigmoid", "return y * (1 - y) * dy", "return y * (1 - y)", "chain"),
    Fault("sigmoid", "return y * (1 - y) * dy", "return -y * (1 - y) * dy", "sign"),
    Fault("sigmoid", "return y * (1 - y) * dy", "return y * (1 + y) * dy", "sign"),
    Fault("sigmoid", "return y * (1 - y) * dy", "return (1 - y) * dy", "chain"),
    Fault(
        "sigmoid",
        "xp.where(x >= 0, 1 / (1 + small), small / (1 + small))",
        "1 / (1 + xp.exp(-x))",
        "overflow",
    ),
    # --- softmax
    Fault("softmax", "y * (dy - xp.sum(y * dy, axis=1, keepdims=True))", "y * dy", "chain"),
    Fault(
        "softmax", "y * (dy - xp.sum(y * dy, axis=1, keepdims=True))", "y * (1 - y) * dy", "chain"
    ),
    Fault(
        "softmax",
        "xp.sum(y * dy, axis=1, keepdims=True)",
        "xp.sum(y * dy, axis=0, keepdims=True)",
        "sum",
    ),
    Fault("softmax", "(dy - xp.sum(", "(dy + xp.sum(", "sign"),
    Fault("softmax", "xp.exp(x - xp.max(x, axis=1, keepdims=True))", "xp.exp(x)", "overflow"),
    Fault("softmax", "xp.sum(e, axis=1, keepdims=True)", "xp.sum(e)", "sum"),
    # --- squared error
    Fault("mse", "2 * difference / entries", "difference / entries", "factor"),
    Fault("mse", "2 * difference / entries", "2 * difference / difference.shape[0]", "factor"),
    Fault("mse", "2 * difference / entries", "2 * (target - prediction) / entries", "sign"),
    Fault("mse", "2 * difference / entries", "2 * difference", "factor"),
    Fault(
        "mse", "xp.sum(difference**2) / entries", "0.5 * xp.sum(difference**2) / entries", "factor"
    ),
    Fault("mse", "2 * difference / entries", "2 * xp.sum(difference, axis=0) / entries", "sum"),
    # --- cross-entropy
    Fault("cross_entropy", "(xp.exp(log_p) - t) / n", "xp.exp(log_p) - t", "factor"),
    Fault("cross_entropy", "(xp.exp(log_p) - t) / n", "(t - xp.exp(log_p)) / n", "sign"),
    Fault("cross_entropy", "(xp.exp(log_p) - t) / n", "(prediction - t) / n", "chain"),
    Fault("cross_entropy", "(xp.exp(log_p) - t) / n", "-t / xp.exp(log_p) / n", "chain"),
    Fault("cross_entropy", "(xp.exp(log_p) - t) / n", "xp.exp(log_p) / n", "chain"),
    Fault(
        "cross_entropy",
        "z = prediction - xp.max(prediction, axis=1, keepdims=True)",
        "z = prediction",
        "overflow",
    ),
    # --- convolution
    Fault(
        "conv2d",
        "dx[:, :, i : i + rows, j : j + columns] +=",
        "dx[:, :, i : i + rows, j : j + columns] =",
        "sum",
    ),
    Fault("conv2d", "xp.sum(dy, axis=(0, 2, 3))", "xp.sum(dy, axis=(2, 3))", "sum"),
    Fault(
        "conv2d",
        "xp.tensordot(dy, W[:, :, i, j]",
        "xp.tensordot(dy, W[:, :, kh - 1 - i, kw - 1 - j]",
        "transpose",
    ),
    Fault("conv2d", "dW[:, :, i, j] =", "dW[:, :, kh - 1 - i, kw - 1 - j] =", "transpose"),
    Fault("conv2d", "add_weight_grad(dW)", "add_weight_grad(dW / n)", "factor"),
    Fault("conv2d", "xp.sum(dy, axis=(0, 2, 3))", "xp.mean(dy, axis=(0, 2, 3))", "factor"),
    # --- max pooling
    Fault("max_pool", "chosen = (window == y) & free", "chosen = window == y", "chain"),
    Fault(
        "max_pool",
        "j : j + columns] += xp.where(chosen, dy, 0.0)",
        "j : j + columns] = xp.where(chosen, dy, 0.0)",
        "sum",
    ),
    Fault("max_pool", "xp.where(chosen, dy, 0.0)", "xp.astype(chosen, dy.dtype)", "chain"),
    Fault("max_pool", "xp.where(chosen, dy, 0.0)", "dy / 4", "chain"),
    Fault("max_pool", "xp.where(chosen, dy, 0.0)", "xp.where(chosen, -dy, 0.0)", "sign"),
    Fault("max_pool", "for window in windows[1:]:", "for window in windows[2:]:", "unknown"),
    # --- batch normalization
    Fault(
        "batch_norm",
        "return r * (g - xp.mean(g, axis=0) - normal * xp.mean(g * normal, axis=0))",
        "return r * g",
        "chain",
    ),
    Fault("batch_norm", " - normal * xp.mean(g * normal, axis=0))", ")", "chain"),
    Fault("batch_norm", "- normal * xp.mean(", "+ normal * xp.mean(", "sign"),
    Fault("batch_norm", "- xp.mean(g, axis=0)", "- xp.sum(g, axis=0)", "factor"),
    Fault("batch_norm", "g = w * dy", "g = dy", "chain"),
    Fault(
        "batch_norm",
        "add_weight_grad(xp.sum(dy * normal, axis=0))",
        "add_weight_grad(xp.sum(dy * x, axis=0))",
        "chain",
    ),
    # --- a recurrent layer
    Fault("rnn", "dh = da @ U", "dh = da @ U.T", "transpose"),
    Fault("rnn", "da = (1 - h * h) * dh", "da = dh", "chain"),
    Fault("rnn", "dU += da.T @ states[t]", "dU += da.T @ states[t + 1]", "chain"),
    Fault("rnn", "dW += da.T @ x[:, t, :]", "dW = da.T @ x[:, t, :]", "sum"),
    Fault("rnn", "dh = dh + dy[:, t, :]", "dh = dy[:, t, :]", "chain"),
    Fault("rnn", "db += xp.sum(da, axis=0)", "db += xp.mean(da, axis=0)", "factor"),
    # --- Adam
    Fault("adam", "p -= rate", "p += rate", "sign"),
    Fault(
        "adam",
        "return lr / (1 - self.betas[0] ** t), 1 / (1 - self.betas[1] ** t)",
        "return lr, 1.0",
        "factor",
    ),
    Fault("adam", "(1 - self.betas[1]) * g * g", "(1 - self.betas[1]) * xp.abs(g)", "chain"),
    Fault("adam", "(xp.sqrt(scale * v) + self.eps)", "(scale * v + self.eps)", "chain"),
    Fault("adam", "m *= self.betas[0]", "m *= self.betas[1]", "factor"),
    Fault("adam", "m *= self.betas[0]", "m *= 0.0", "state"),
]


@contextmanager
def planted(fault: Fault) -> Iterator[Path]:
    """A file with the solution, wrong in this one place."""
    right = (SOLUTIONS / f"{fault.exercise}.py").read_text(encoding="utf-8")
    assert right.count(fault.old) == 1, fault
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{fault.exercise}.py"
        file.write_text(right.replace(fault.old, fault.new), encoding="utf-8")
        yield file


def found(fault: Fault) -> Answer:
    with planted(fault) as file:
        (answer,) = check_file(file)
    return answer


def main() -> None:
    caught = named = 0
    for fault in FAULTS:
        hints = found(fault).hints
        caught += bool(hints)
        named += any(hint.kind == fault.kind for hint in hints)
        said = "; ".join(f"[{hint.kind}] {hint}" for hint in hints) or "NOT FOUND"
        right = "ok " if any(hint.kind == fault.kind for hint in hints) else "   "
        sys.stdout.write(
            f"{right} {fault.exercise:<14} {fault.kind:<10} {fault.new}\n     {said}\n"
        )
    total = len(FAULTS)
    sys.stdout.write(f"{caught} of {total} faults found, {named} hints name the right kind\n")


if __name__ == "__main__":
    main()
