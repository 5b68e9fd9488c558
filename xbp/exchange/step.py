"""Export of a training step to an ONNX file: with it a runtime without xbp trains a network."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import integer
from xbp.backend import to_numpy
from xbp.errors import InputError
from xbp.exchange.export import NEW, WRONG, largest, needed, placed, run_session, session_of
from xbp.nn.layer import Layer
from xbp.optim import Optimizer
from xbp.training import Trainer
from xbp.training.files import replacing

COMPARED = 3
"""Steps of the comparison with xbp; the second is the first with a state."""


@dataclass(frozen=True)
class ExportedStep:
    """An exported training step: what its file contains, and what training starts from.

    Attributes
    ----------
    start : dict of str to numpy array
        The values of all inputs but ``input`` and ``target`` in the first step: ``rate``, ``step``,
        parameters and buffers, which have their names in the state dict, and the state of the
        optimizer, as ``0.weight.velocity``.
    opset : int
    nodes : dict of str to int
        The number of nodes of each ONNX operator.
    difference : float or None
        The largest difference of the loss in the first three steps between onnxruntime and xbp;
        None if onnxruntime is not installed.
    """

    start: dict[str, NDArray[Any]]
    opset: int
    nodes: dict[str, int]
    difference: float | None


def export_training_step(
    model: Layer,
    loss: Any,
    optimizer: Optimizer,
    path: str | os.PathLike[str],
    x: Any,
    y: Any,
    *,
    rng: int = 0,
) -> ExportedStep:
    """Write one training step as an ONNX file: forward, loss, backward and update.

    The step is that of ``Trainer(model, loss, optimizer, rng=rng)``. Its inputs are ``input`` and
    ``target``, the batch; ``rate``, float64; ``step``, int64, which counts from 0; and all that
    changes from step to step: parameters, buffers, and the optimizer's state. Its outputs are
    ``loss``, ``prediction``, and the new value of each of these, with ``.new`` after its name.

    If onnxruntime is installed, it makes three steps with the batch (x, y); losses and state are
    compared with xbp's.

    Parameters
    ----------
    model : Layer
        On any backend. It is not changed.
    loss : callable
        ``value, gradient = loss(prediction, target)``.
    optimizer : Optimizer
        Of the model's parameters. Training goes on from its state. It is not changed.
    path : path-like
        The file appears whole or not at all.
    x, y : array
        A batch; each batch of the file has its shapes and dtypes.
    rng : int, default 0
        The seed of dropout masks, which depend on it and on ``step``.

    Returns
    -------
    ExportedStep

    Notes
    -----
    Parameters that do not change (frozen, or unknown to the optimizer) are constants of the file.
    With groups of parameters, ``rate`` has one entry for each. A learning rate schedule is left to
    the caller, who gives the rate of each step. `NAdam` and `RAdam` are refused: they decide by the
    number of the step.

    The backwards are traced as `xbp.exchange.to_onnx` traces the forward. Those of convolution and
    pooling are single nodes in float32. onnxruntime has no convolution of float64.

    Raises
    ------
    InputError
        Layer, loss or optimizer cannot be traced (the message names it), or refuse such a batch;
        or losses or state in onnxruntime differ, and nothing is written.
    BackendError
        ndonnx is not installed.
    DataError
        The file cannot be written.

    Examples
    --------
    >>> import pytest; _ = pytest.importorskip("ndonnx")
    >>> import tempfile, numpy as np
    >>> from xbp import nn, optim
    >>> from xbp.exchange import export_training_step
    >>> model = nn.Linear(2, 1, rng=0)
    >>> sgd = optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     step = export_training_step(model, nn.MSELoss(), sgd, f"{folder}/step.onnx", x, y)
    >>> sorted(step.start)
    ['bias', 'rate', 'step', 'weight']
    """
    for package in ("ndonnx", "onnx"):
        needed(package)
    from xbp.exchange.step_tracing import traced_step

    seed = integer("rng", rng, least=0)
    batch = _on_host("x", x), _on_host("y", y)
    expected = _results(model, loss, optimizer, *batch, seed)
    file, start = traced_step(model, loss, optimizer, *batch, seed)
    content = file.SerializeToString()
    got = _results_in_onnxruntime(content, start, optimizer, *batch)
    apart = {kind: largest(own - expected[kind]) for kind, own in (got or {}).items()}
    for kind, difference in apart.items():
        if not difference <= WRONG * max(1e-30, largest(expected[kind])):
            msg = (
                f"after {COMPARED} steps of this {type(model).__name__} the {kind} differs by "
                f"{difference:.2g} between onnxruntime and xbp, where the largest is "
                f"{largest(expected[kind]):.2g}, so nothing was written; export its layers one by "
                "one to find out which it is"
            )
            raise InputError(msg)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    nodes = dict(Counter(node.op_type for node in file.graph.node))
    return ExportedStep(start, file.opset_import[0].version, nodes, apart.get("loss"))


def _on_host(name: str, array: Any) -> NDArray[Any]:
    host = to_numpy(array)
    if host.ndim and host.size:
        return host
    msg = f"{name} must be a batch, whose first axis counts its samples, got shape {host.shape}"
    raise InputError(msg)


def _results(
    model: Layer, loss: Any, optimizer: Optimizer, x: Any, y: Any, seed: int
) -> dict[str, NDArray[Any]]:
    """The losses of the first steps of a copy where the model lives, and its state after them.

    Arrays of one kind of state, such as the velocities of all parameters, are one array: some may
    hold rounding errors alone, as those of a bias before a batch normalization. Parameters are not
    among them, since Adam makes whole steps of such errors.
    """
    pieces = copy.deepcopy((model, loss, optimizer))
    trainer = Trainer(*pieces, rng=seed)
    trainer.optimizer.zero_grad()
    batch = placed(model, x), placed(model, y)
    losses = []
    for _ in range(COMPARED):
        trainer.step(*batch)
        losses.append(to_numpy(trainer.current_loss))
    after = trainer.optimizer
    state = [after.state[i] for i, count in enumerate(optimizer.counts) if after.counts[i] > count]
    return {"loss": np.stack(losses)} | {
        kind: _joined(to_numpy(arrays[kind]) for arrays in state if kind in arrays)
        for kind in sorted({kind for arrays in state for kind in arrays})
    }


def _results_in_onnxruntime(
    content: bytes, start: dict[str, NDArray[Any]], optimizer: Optimizer, x: Any, y: Any
) -> dict[str, NDArray[Any]] | None:
    """Those of the file; None if onnxruntime is not installed."""
    session = session_of(content)
    if session is None:
        return None
    names = [output.name for output in session.get_outputs()]
    given = {"input": x, "target": y, **start}
    losses = []
    for k in range(COMPARED):
        rates = np.asarray(optimizer.rates_at(optimizer.steps + k))
        given["rate"] = np.reshape(rates, start["rate"].shape)
        results = dict(zip(names, run_session(session, given), strict=True))
        losses.append(results["loss"])
        given |= {name.removesuffix(NEW): results[name] for name in names if name.endswith(NEW)}
        given["step"] = np.asarray(given["step"] + 1)
    kinds = {kind for rule, _ in optimizer.rules() for kind in rule.state_names()}
    return {"loss": np.stack(losses)} | {
        kind: _joined(given[name] for name in start if name.rpartition(".")[2] == kind)
        for kind in kinds
    }


def _joined(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.ravel(array) for array in arrays])
