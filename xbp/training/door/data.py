"""Data and targets: moved to the model, and checked against it, loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from xbp.arguments import described
from xbp.backend import (
    Array,
    Backend,
    array_namespace,
    dtype_name,
    get_backend,
    is_floating,
    out_of_memory,
    to_numpy,
)
from xbp.errors import InputError, OutOfMemoryError
from xbp.nested import tree_leaves, tree_map
from xbp.nn import Layer, Loss
from xbp.nn.embedding import check_tokens
from xbp.nn.losses import advice
from xbp.training.door.pieces import check_pieces, check_single
from xbp.training.memory import enough_memory
from xbp.training.metrics.counting import Metric, len_of
from xbp.training.results import check_distinct
from xbp.training.state import Pair, Pieces

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Pieces)


def home_of(model: Layer) -> Backend:
    """The backend on which the model lives; the current one if it has no parameters."""
    return model.backend() or get_backend()


def on_device_of_model(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """A trainer's `method`, with the model's device as the current one, in any thread."""

    @wraps(method)
    def run(self: T, *args: P.args, **options: P.kwargs) -> R:
        check_pieces(self.model, self.loss, self.optimizer)  # they may have been replaced
        with home_of(self.model).on_device():
            return method(self, *args, **options)

    return run  # type: ignore[return-value]  # mypy distinguishes self by name and by position


def place(model: Layer, x: Any) -> Array:
    """`x` where the model lives, and in the dtype of its parameters if both are floating-point.

    float64 becomes float32 for a model of float32. Integers, which may be tokens, stay as they are.

    Raises
    ------
    InputError
        `x` holds no numbers, or numbers beyond the range of the model's dtype.
    OutOfMemoryError
        There is not enough memory for it.
    """
    backend = home_of(model)
    try:
        return fitted(model, backend.asarray(x))
    except Exception as error:
        if not out_of_memory(error):
            raise
        shape = getattr(x, "shape", "")
        msg = f"there is no room for data of shape {shape} on {backend}; give fewer at once"
        raise OutOfMemoryError(msg) from None


def fitted(model: Layer, x: Array) -> Array:
    """`x`, where it is, in the dtype of the model's parameters if both are floating-point.

    Raises
    ------
    InputError
        `x` holds complex numbers, or some that are beyond the model's dtype.
    """
    refuse_complex("x", x)
    dtypes = [dtype_name(dtype) for dtype in model.dtypes()]
    if len(dtypes) != 1 or not is_floating(x) or dtype_name(x.dtype) in dtypes:
        return x
    (name,), xp = dtypes, array_namespace(x)
    with np.errstate(over="ignore"):
        converted = xp.astype(x, getattr(xp, name))
    lost = xp.any(xp.isfinite(x) & ~xp.isfinite(converted))
    if bool(to_numpy(lost)):
        msg = f"x holds numbers beyond the model's {name}; scale them, or use .astype on it"
        raise InputError(msg)
    return converted


def refuse_complex(name: str, array: Array) -> None:
    """Refuse complex numbers, as training would drop their imaginary part."""
    if array_namespace(array).isdtype(array.dtype, "complex floating"):
        msg = (
            f"{name} holds complex numbers ({dtype_name(array.dtype)}), where real ones were "
            "expected; give their real and imaginary parts as features of their own"
        )
        raise InputError(msg)


def admit_alone(model: Layer, x: Any, sample_shape: tuple[int, ...] | None) -> Array:
    """Data without targets, moved to the model.

    Parameters
    ----------
    model : Layer
    x : array
    sample_shape : tuple of int or None
        The shape of a sample in earlier data, if there were any.

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
    if x.ndim == 1:  # a layer may take the whole vector as one sample
        try:
            one_output(model, x)
        except InputError as error:
            msg = (
                f"x of shape {tuple(x.shape)} is no batch for this model ({error}); samples lie "
                "along the first axis: for a single one give x[None]"
            )
            raise InputError(msg) from None
    check_tokens(model, x)
    return x


def one_output(model: Layer, x: Any) -> Array:
    """The model's output for the first sample of an array, or of a tuple of arrays.

    Raises
    ------
    InputError
        The sample does not fit the model, or the number of outputs is not 1.
    OutOfMemoryError
        There is not enough memory for one sample.
    """
    x = tree_map(lambda part: part[:1, ...], x)
    with enough_memory(tree_leaves(x)[0], 1, "a forward pass", model):
        prediction = model(x)
    for output in tree_leaves(prediction):
        if output.ndim == 0 or len_of(output) != 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in tree_leaves(x))
            msg = (
                f"the model makes an output of shape {tuple(output.shape)} of one sample "
                f"{shapes}; its first axis must be that of the samples"
            )
            raise InputError(msg)
    return prediction


def admit(pieces: Pieces, x: Any, y: Any) -> tuple[Pair, list[str]]:
    """Both arrays, moved to the model and checked against each other, model, loss and metrics.

    Returns
    -------
    data : (x, y)
    quantities : list of str
        The names of the loss and of the values that metrics give for such data.

    Raises
    ------
    InputError
        They do not fit.
    """
    model = pieces.model
    if y is None:
        msg = (
            f"there are no targets: x and y must be arrays, got {described(x)} and None; x alone "
            "may be a source (xbp.data) or an iterable of batches (x, y)"
        )
        raise InputError(msg)
    x, y = place(model, x), home_of(model).asarray(y)
    refuse_complex("y", y)
    if x.ndim == 0 or y.ndim == 0 or len_of(x) != len_of(y) or len_of(x) == 0:
        msg = (
            f"x and y need the same number of samples, at least one; they have shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
        raise InputError(msg)
    prediction = one_output(model, x)
    check_tokens(model, x)
    check_single(model, pieces.loss, prediction)
    check_targets(pieces.loss, pieces.metrics.values(), prediction, y)
    return (x, y), quantities_of(pieces, prediction)


def check_targets(loss: Any, metrics: Iterable[Metric], prediction: Any, y: Any) -> None:
    """Refuse targets that do not fit such predictions.

    Raises
    ------
    InputError
    """
    if isinstance(loss, Loss):
        loss.check(prediction, y)
    for metric in metrics:
        metric.check(prediction, y)


def quantities_of(pieces: Pieces, prediction: Array) -> list[str]:
    """The loss, and what the metrics measure of such predictions, by their names.

    Raises
    ------
    InputError
        Two have the same name.
    """
    names = (name for metric in pieces.metrics.values() for name in metric.names(prediction))
    quantities = ["loss", *names]
    check_distinct(["epoch", "lr", *quantities])
    return quantities


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
    """Refuse validation targets of another shape than training targets, if the samples agree.

    Raises
    ------
    InputError
    """
    (x, y), (x_train, y_train) = validation, data
    if any(isinstance(part, tuple) for part in (x, y, x_train, y_train)):
        return
    if x.shape[1:] == x_train.shape[1:] and y.shape[1:] != y_train.shape[1:]:
        wanted, got = ("N", *y_train.shape[1:]), tuple(y.shape)
        msg = (
            f"the validation targets have shape {got}, where those of training have "
            f"{tuple(y_train.shape)}; give them alike{advice(wanted, got)}"
        )
        raise InputError(msg)
