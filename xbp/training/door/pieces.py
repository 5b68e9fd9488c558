"""Model, loss and optimizer, checked one by one and against each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from xbp.arguments import described, takes
from xbp.backend import Array, get_backend, is_floating, library_of
from xbp.errors import InputError
from xbp.nested import tree_map
from xbp.nn import (
    BCEWithLogitsLoss,
    Composite,
    CrossEntropyLoss,
    Layer,
    Loss,
    Sequential,
    Sigmoid,
    Softmax,
)
from xbp.nn.backward import run_forward
from xbp.nn.watch import is_handwritten, watched
from xbp.optim import Optimizer
from xbp.training.door.warn import warn
from xbp.training.state import Pieces


def check_pieces(model: Any, loss: Any, optimizer: Any) -> None:
    """Refuse a model, loss or optimizer of the wrong type.

    Raises
    ------
    InputError
        One of them has the wrong type, or a loss takes other arguments.
    """
    kinds: list[tuple[str, Any, type, str]] = [
        ("model", model, Layer, "an nn.Layer, such as nn.Sequential(…)"),
        ("optimizer", optimizer, Optimizer, "an Optimizer, such as optim.Adam(model.parameters())"),
    ]
    for name, piece, kind, wanted in kinds:
        if not isinstance(piece, kind):
            msg = f"the {name} must be {wanted}, got {described(piece)}"
            raise InputError(msg)
    if isinstance(loss, type) or not callable(loss):
        msg = (
            "the loss must be a Loss, such as nn.MSELoss(), or a function (prediction, target) -> "
            f"(value, gradient), got {described(loss)}"
        )
        raise InputError(msg)
    if not isinstance(loss, Loss):
        takes("the loss", loss, "prediction", "target")


def examine(model: Layer, loss: Any, optimizer: Optimizer) -> None:
    """Compare model, loss and optimizer with each other.

    Raises
    ------
    InputError
        The optimizer has none of the model's parameters.

    Warns
    -----
    UserWarning
        See `compare`, `_check_end` and `_check_attributes`.
    """
    compare(model, loss, optimizer)
    _check_end(model, loss)
    _check_attributes(model)


def parameters_of(pieces: Pieces) -> tuple[int, ...]:
    """The identities of the model's trainable parameters and the optimizer's parameters."""
    both = (pieces.model.parameters(), pieces.optimizer.parameters)
    return tuple(id(parameter) for parameters in both for parameter in parameters)


def compare(model: Layer, loss: Any, optimizer: Optimizer) -> None:
    """Compare the optimizer's parameters with those of the model.

    Raises
    ------
    InputError
        They have no parameter in common.

    Warns
    -----
    UserWarning
        The optimizer lacks a trainable parameter, or has some that belong neither to the model nor
        to the loss.
    """
    given = {id(parameter) for parameter in optimizer.parameters}
    own = {id(parameter) for _, parameter in model._all_names("")}
    if not given & own:
        msg = (
            f"this {type(optimizer).__name__} has none of the model's parameters, but those of "
            "another model; make it from model.parameters() of this one"
        )
        raise InputError(msg)
    missing = [name for name, p in model.named_parameters() if id(p) not in given]
    if missing:
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        warn(
            f"the optimizer lacks {len(missing)} of the model's trainable parameters ({names}), "
            "and they will not be trained; make it from model.parameters(), or freeze them with "
            "trainable=False"
        )
    own |= {id(value) for value in getattr(loss, "__dict__", {}).values()}
    if given - own:
        warn(
            f"{len(given - own)} of the optimizer's parameters are not the model's, and will not "
            "be trained; make it from model.parameters()"
        )


def _check_end(model: Layer, loss: Any) -> None:
    """Warn of a model that ends with a softmax or sigmoid if the loss has its own."""
    last = _last(model)
    has_own = isinstance(loss, CrossEntropyLoss | BCEWithLogitsLoss)
    if has_own and isinstance(last, Softmax | Sigmoid):
        own = "sigmoid" if isinstance(loss, BCEWithLogitsLoss) else "softmax"
        warn(
            f"{type(loss).__name__} takes logits and has a {own} of its own, so the model should "
            f"end without its {type(last).__name__}"
        )


def check_forward(model: Layer, x: Array) -> None:
    """Run a forward that xbp has not written once, to see what it does with its layers.

    Raises
    ------
    InputError
        See `xbp.nn.watch`.
    """
    if is_handwritten(model):
        with watched(model):
            run_forward(model, first_samples(model, x, 2), training=True, rng=0)


def first_samples(model: Layer, x: Any, count: int) -> Any:
    """The first samples of x, of which batches of a source lie on the host, where the model is."""
    backend = model.backend() or get_backend()
    return tree_map(lambda part: backend.asarray(part[: min(count, part.shape[0]), ...]), x)


def check_last_batch(model: Layer, x: Array, samples: int, batch_size: int) -> None:
    """Refuse a last batch of one sample if the model, such as one with BatchNorm, does so.

    A forward in training mode leaves no trace.

    Raises
    ------
    InputError
    """
    try:
        run_forward(model, first_samples(model, x, 1), training=True, rng=0)
    except InputError as error:
        msg = (
            "the last batch of each epoch would be one sample, the rest of "
            f"{samples} in batches of {batch_size}, with which the model cannot be "
            f"trained ({error}); leave it out by "
            "drop_last=True, or take another batch_size"
        )
        raise InputError(msg) from None


def check_single(model: Layer, loss: Any, prediction: Array) -> None:
    """Warn of a softmax over a single output, which is always 1."""
    softmax = isinstance(_last(model), Softmax) or type(loss) is CrossEntropyLoss
    if softmax and getattr(prediction, "ndim", 0) == 2 and prediction.shape[1] == 1:
        warn(
            "a softmax over a single output is always 1, so nothing is learned; for two classes "
            "take two outputs, or one with BCEWithLogitsLoss and no softmax"
        )


def _last(model: Layer) -> Layer:
    """The last layer, inside nested `Sequential` and `Composite`."""
    while True:
        if isinstance(model, Composite):
            model = model.composed()
        elif isinstance(model, Sequential) and model.layers:
            model = model.layers[-1]
        else:
            return model


def _check_attributes(model: Layer) -> None:
    """Warn of floating-point arrays that a layer keeps outside a `Parameter`."""
    for layer in model.tree():
        for name, value in vars(layer).items():
            if name.startswith("_") or library_of(value) is None or isinstance(value, np.generic):
                continue
            if value.ndim and is_floating(value):
                kind = type(layer).__name__
                warn(
                    f"{kind} keeps the array {name!r} as it is, which is neither trained nor moved "
                    f"nor saved; write self.{name} = nn.Parameter(…), for a constant with "
                    "trainable=False, for what the layer itself changes nn.Buffer(…)"
                )
