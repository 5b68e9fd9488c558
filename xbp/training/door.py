"""What a training is asked to do, checked before its first step."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from xbp.arguments import described, name_of, takes
from xbp.backend import (
    Array,
    array_namespace,
    dtype_name,
    get_backend,
    is_floating,
    library_of,
    out_of_memory,
    to_numpy,
)
from xbp.errors import InputError, OutOfMemoryError
from xbp.nn import BCEWithLogitsLoss, CrossEntropyLoss, Layer, Loss, Sequential, Sigmoid, Softmax
from xbp.nn.losses import advice
from xbp.optim import Optimizer
from xbp.paths import same_place
from xbp.training.callbacks.base import HOOKS, Callback
from xbp.training.callbacks.rates import LearningRateScheduler
from xbp.training.files.checkpoints import Checkpoint
from xbp.training.metrics.counting import Metric, len_of
from xbp.training.results import check_distinct
from xbp.training.state import Pieces

Pair = tuple[Array, Array]


# --- model, loss and optimizer ---


def check_pieces(model: Any, loss: Any, optimizer: Any) -> None:
    """Refuse what is no model, loss or optimizer.

    Raises
    ------
    InputError
        Something has the wrong type, or a loss takes other arguments.
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
    """Compare the pieces of a training with each other.

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
    """The identities of the model's trainable parameters, and of the optimizer's."""
    both = (pieces.model.parameters(), pieces.optimizer.parameters)
    return tuple(id(parameter) for parameters in both for parameter in parameters)


def compare(model: Layer, loss: Any, optimizer: Optimizer) -> None:
    """Compare the optimizer's parameters with those of the model.

    Raises
    ------
    InputError
        They have none in common.

    Warns
    -----
    UserWarning
        A trainable one is missing, or some are of something else (than the model or the loss).
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
        _warn(
            f"the optimizer lacks {len(missing)} of the model's trainable parameters ({names}), "
            "and they will not be trained; make it from model.parameters(), or freeze them with "
            "trainable=False"
        )
    own |= {id(value) for value in getattr(loss, "__dict__", {}).values()}
    if given - own:
        _warn(
            f"{len(given - own)} of the optimizer's parameters are not the model's, and will not "
            "be trained; make it from model.parameters()"
        )


def _check_end(model: Layer, loss: Any) -> None:
    """Warn of a softmax or sigmoid before a loss that has one of its own."""
    last = _last(model)
    has_own = isinstance(loss, CrossEntropyLoss | BCEWithLogitsLoss)
    if has_own and isinstance(last, Softmax | Sigmoid):
        own = "sigmoid" if isinstance(loss, BCEWithLogitsLoss) else "softmax"
        _warn(
            f"{type(loss).__name__} takes logits and has a {own} of its own, so the model should "
            f"end without its {type(last).__name__}"
        )


def _check_single(model: Layer, loss: Any, prediction: Array) -> None:
    """Warn of a softmax over a single output, which is 1 whatever the model says."""
    softmax = isinstance(_last(model), Softmax) or type(loss) is CrossEntropyLoss
    if softmax and prediction.ndim == 2 and prediction.shape[1] == 1:
        _warn(
            "a softmax over a single output is always 1, so nothing is learned; for two classes "
            "take two outputs, or one with BCEWithLogitsLoss and no softmax"
        )


def _last(model: Layer) -> Layer:
    """The layer that the outputs come from, as far as containers tell."""
    while isinstance(model, Sequential) and model.layers:
        model = model.layers[-1]
    return model


def _check_attributes(model: Layer) -> None:
    """Warn of floating-point arrays that a layer keeps without a `Parameter` around them."""
    for layer in model.tree():
        for name, value in vars(layer).items():
            if name.startswith("_") or library_of(value) is None or isinstance(value, np.generic):
                continue
            if value.ndim and is_floating(value):
                kind = type(layer).__name__
                _warn(
                    f"{kind} keeps the array {name!r} as it is, which is neither trained nor moved "
                    f"nor saved; write self.{name} = nn.Parameter(…), for a constant with "
                    "trainable=False"
                )


# --- data ---


def place(model: Layer, x: Any) -> Array:
    """`x` where the model lives, and in its parameters' dtype if both are floating-point.

    float64 becomes float32 for a model of float32, as training needs no more digits; integers,
    which may be tokens, stay what they are.

    Raises
    ------
    InputError
        `x` holds no numbers, or some that are beyond the model's dtype.
    OutOfMemoryError
        There is no room for it.
    """
    backend = model.backend() or get_backend()
    try:
        x = backend.asarray(x)
        refuse_complex("x", x)
        dtypes = {dtype_name(p.data.dtype): p.data.dtype for _, p in model._all_names("")}
        if len(dtypes) != 1 or not is_floating(x) or dtype_name(x.dtype) in dtypes:
            return x
        ((name, dtype),) = dtypes.items()
        xp = array_namespace(x)
        with np.errstate(over="ignore"):
            converted = xp.astype(x, dtype)
        lost = xp.any(xp.isfinite(x) & ~xp.isfinite(converted))
        if bool(to_numpy(lost)):
            msg = f"x holds numbers beyond the model's {name}; scale them, or use .astype on it"
            raise InputError(msg)
    except Exception as error:
        if not out_of_memory(error):
            raise
        shape = getattr(x, "shape", "")
        msg = f"there is no room for data of shape {shape} on {backend}; give fewer at once"
        raise OutOfMemoryError(msg) from None
    return converted


def refuse_complex(name: str, array: Array) -> None:
    """Refuse complex numbers, of which training would keep the real part alone."""
    if array_namespace(array).isdtype(array.dtype, "complex floating"):
        msg = (
            f"{name} holds complex numbers ({dtype_name(array.dtype)}), where real ones were "
            "expected; give their real and imaginary parts as features of their own"
        )
        raise InputError(msg)


def admit_alone(model: Layer, x: Any, sample_shape: tuple[int, ...] | None) -> Array:
    """Data without targets where the model lives.

    Parameters
    ----------
    model : Layer
    x : array
    sample_shape : tuple of int or None
        The shape of a sample of other data, if it is known.

    Raises
    ------
    InputError
        There are no samples, or they do not fit the model.
    """
    x = place(model, x)
    if x.ndim == 0 or len_of(x) == 0:
        msg = f"there is nothing to predict: x has shape {tuple(x.shape)}"
        raise InputError(msg)
    if x.shape == sample_shape:
        msg = (
            f"x has the shape {tuple(x.shape)} of a single sample, where samples along the first "
            "axis were expected; give x[None]"
        )
        raise InputError(msg)
    if x.ndim == 1:  # a layer may take a whole vector for one sample
        try:
            _one_output(model, x)
        except InputError as error:
            msg = (
                f"x of shape {tuple(x.shape)} is no batch for this model ({error}); samples lie "
                "along the first axis: for a single one give x[None]"
            )
            raise InputError(msg) from None
    return x


def _one_output(model: Layer, x: Array) -> Array:
    """The model's output for the first sample.

    Raises
    ------
    InputError
        The sample does not fit the model, or there is more than one output, or none.
    """
    prediction = model(x[:1, ...])
    if prediction.ndim == 0 or len_of(prediction) != 1:
        msg = (
            f"the model makes an output of shape {tuple(prediction.shape)} of one sample "
            f"{tuple(x[:1, ...].shape)}; its first axis must be that of the samples"
        )
        raise InputError(msg)
    return prediction


def admit(pieces: Pieces, x: Any, y: Any) -> tuple[Pair, list[str]]:
    """Both arrays where the model lives, checked against each other, model, loss and metrics.

    Returns
    -------
    data : (x, y)
    quantities : list of str
        The loss, and what the metrics measure of such data.

    Raises
    ------
    InputError
        They do not fit.
    """
    model, loss, metrics = pieces.model, pieces.loss, pieces.metrics.values()
    if y is None:
        msg = f"there are no targets: x and y must be arrays, got {described(x)} and None"
        raise InputError(msg)
    x, y = place(model, x), (model.backend() or get_backend()).asarray(y)
    refuse_complex("y", y)
    if x.ndim == 0 or y.ndim == 0 or len_of(x) != len_of(y) or len_of(x) == 0:
        msg = (
            f"x and y need the same number of samples, at least one; they have shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
        raise InputError(msg)
    prediction = _one_output(model, x)
    _check_single(model, loss, prediction)
    if isinstance(loss, Loss):
        loss.check(prediction, y)
    for metric in metrics:
        metric.check(prediction, y)
    quantities = ["loss", *_names(metrics, prediction)]
    check_distinct(["epoch", "lr", *quantities])
    return (x, y), quantities


def pair_of(validation_data: Any) -> tuple[Any, Any]:
    """Validation data as (x, y).

    Raises
    ------
    InputError
        They are no pair.
    """
    if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
        msg = f"validation_data must be a pair (x, y), got {described(validation_data)}"
        raise InputError(msg)
    x, y = validation_data
    return x, y


def check_alike(validation: Pair, data: Pair) -> None:
    """Refuse validation targets of another shape than those of training, where samples agree.

    Raises
    ------
    InputError
    """
    (x, y), (x_train, y_train) = validation, data
    if x.shape[1:] == x_train.shape[1:] and y.shape[1:] != y_train.shape[1:]:
        wanted, got = ("N", *y_train.shape[1:]), tuple(y.shape)
        msg = (
            f"the validation targets have shape {got}, where those of training have "
            f"{tuple(y_train.shape)}; give them alike{advice(wanted, got)}"
        )
        raise InputError(msg)


def _names(metrics: Iterable[Metric], prediction: Array) -> Iterator[str]:
    for metric in metrics:
        yield from metric.names(prediction)


# --- callbacks, and what they will find ---


def callbacks_of(given: Any) -> list[Callback]:
    """The callbacks of a `fit`; None stands for none.

    Raises
    ------
    InputError
        It is no iterable of them; or two of them write to one place, however it is spelled.
    """
    if given is None:
        return []
    if isinstance(given, Callback | str | type) or not isinstance(given, Iterable):
        msg = f"callbacks must be a list of Callbacks, got {described(given)}; put it into a list"
        raise InputError(msg)
    callbacks = list(given)
    for index, callback in enumerate(callbacks):
        if isinstance(callback, Callback):
            if any(callback is earlier for earlier in callbacks[:index]):
                msg = f"the same {type(callback).__name__} is given twice; it would be called twice"
                raise InputError(msg)
            _check_hooks(callback)
            continue
        msg = f"callbacks must be Callbacks, got {described(callback)}"
        if isinstance(callback, type):
            msg += f"; make one with {callback.__name__}(…)"
        elif callable(callback):
            msg += "; wrap it, as in LambdaCallback(on_epoch_end=…)"
        raise InputError(msg)
    _check_places(callbacks)
    return callbacks


def _check_places(callbacks: list[Callback]) -> None:
    known: list[tuple[Callback, Any]] = []
    for callback in callbacks:
        for name in ("path", "folder", "log_dir"):  # what xbp's own are called
            place = vars(callback).get(name)
            if not isinstance(place, str | os.PathLike):
                continue
            for other, taken in known:
                if other is not callback and same_place(place, taken):
                    msg = (
                        f"a {type(other).__name__} and a {type(callback).__name__} write to one "
                        f"place, {str(place)!r}; give each its own"
                    )
                    raise InputError(msg)
            known.append((callback, place))


def _check_hooks(callback: Callback) -> None:
    """Refuse methods of somebody else's callback that cannot take what they will be given."""
    for name, wanted in HOOKS.items():
        method = getattr(callback, name)
        if not str(getattr(method, "__module__", "")).startswith("xbp."):
            takes(f"{type(callback).__name__}.{name}", method, *wanted)


def expected_names(quantities: Sequence[str], *, validated: bool) -> list[str]:
    """What the record of a whole epoch will hold, apart from what callbacks of others add."""
    return ["epoch", "lr", *quantities, *(f"val_{name}" for name in quantities if validated)]


def adds_names(metrics: Iterable[Metric], callbacks: Sequence[Callback]) -> bool:
    """Whether somebody else's callback or metric may put more into a record."""
    functions: list[Callable[..., Any]] = [callback.on_epoch_end for callback in callbacks]
    functions += [metric.numbers for metric in metrics if type(metric).names is Metric.names]
    return not all((f.__module__ or "").startswith("xbp.") for f in functions)


# --- the learning rate ---


def steps_to_come(steps: int, in_fit: int, in_epoch: int, resumed: Checkpoint | None) -> range:
    """The steps that will be made, as a schedule counts them.

    Parameters
    ----------
    steps : int
        How many the optimizer has made.
    in_fit, in_epoch : int
        How many a whole `fit` makes, and each of its epochs.
    resumed : Checkpoint or None
        Where the `fit` goes on.
    """
    if resumed is None:
        return range(steps, steps + in_fit)
    made = (resumed.epochs_done - resumed.first_epoch) * in_epoch + resumed.steps_done
    return range(resumed.steps, resumed.steps - made + in_fit)


def check_schedule(optimizer: Optimizer, callbacks: Sequence[Callback], steps: range) -> None:
    """Compare the optimizer's schedule with the steps that will be made.

    Raises
    ------
    InputError
        The rate of the last step is none, or cannot be computed.

    Warns
    -----
    UserWarning
        The schedule is made for another number of steps.
    """
    schedule, start, end = optimizer._lr, steps.start, steps.stop
    if not callable(schedule) or any(isinstance(c, LearningRateScheduler) for c in callbacks):
        return
    optimizer.lr_at(start)
    try:
        optimizer.lr_at(end - 1)
    except InputError:
        raise
    except Exception as error:
        msg = (
            f"the schedule {name_of(schedule)} fails at step {end - 1}, the last of this training "
            f"({type(error).__name__}: {error}); let it cover all of them"
        )
        raise InputError(msg) from error
    total = getattr(schedule, "total_steps", end)
    if total != end:
        fate = "will not come to its end" if total > end else "stays at its end from then on"
        _warn(
            f"{type(schedule).__name__} is made for {total} steps, where this training ends after "
            f"{end}: the rate {fate}; give it total_steps={end}, if that is not meant"
        )


def _warn(msg: str) -> None:
    """At the line outside of xbp that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("xbp."):
        level, frame = level + 1, frame.f_back
    warnings.warn(msg, UserWarning, stacklevel=level)
