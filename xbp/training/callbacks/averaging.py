"""Weights averaged over the steps of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xbp.arguments import described, integer, number
from xbp.backend import Array, array_namespace, backend_of, dtype_name, library_of, on_device_of
from xbp.errors import InputError
from xbp.nn import Layer, Parameter
from xbp.primitives import average
from xbp.training.callbacks.base import Callback, Training


class ExponentialMovingAverage(Callback):
    """An exponential average of a model's weights, whose noise is that of many steps together.

        θ̄ ← β θ̄ + (1 - β) θ      after each step;      θ̄ ← θ      after the first

    Polyak & Juditsky 1992; the exponential form of Tarvainen & Valpola 2017, as in PyTorch's
    AveragedModel. Of each epoch the validation is that of the averaged weights; training goes on
    with the model's own, which checkpoints hold, with the average beside them. What keeps the
    best or validated model, `EarlyStopping` and `ModelCheckpoint(save_weights_only=True)`, keeps
    the averaged weights. At the end of `fit` the model takes the averaged ones, or those that
    `EarlyStopping` restores.

    Only trainable parameters are averaged. What a layer keeps (`Buffer`), as the running statistics
    of BatchNorm, and parameters that are not trainable are the model's own in either case: copied,
    not averaged. (Statistics of the averaged weights themselves: `nn.update_statistics`, within
    `applied`.) A second `fit` goes on with the average.

    Outside of a `fit`, call `update` after each step, and evaluate within `applied`.

    Parameters
    ----------
    decay : float, default 0.999
        β, from 0 to 1: an average over about 1/(1 - β) steps.
    apply_at_end : bool, default True
        Whether the model has the averaged weights when `fit` has ended.

    Attributes
    ----------
    updates : int
        How many steps are in the average.

    Raises
    ------
    InputError
        The decay is out of range; or, in `update`, the model is another one than before.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> from xbp.training import ExponentialMovingAverage
    >>> model, ema = nn.PReLU(dtype="float64"), ExponentialMovingAverage(decay=0.5)
    >>> for weight in (1.0, 3.0, 6.0):
    ...     model.weight.assign(np.array([weight]))
    ...     ema.update(model)
    >>> with ema.applied(model):
    ...     print(model.weight.data.tolist())
    [4.0]
    >>> model.weight.data.tolist()
    [6.0]
    """

    call_order = 1  # at the end of `fit` before EarlyStopping, which restores the best average

    def __init__(self, decay: float = 0.999, *, apply_at_end: bool = True) -> None:
        self.decay = number("decay", decay, least=0, most=1)
        self.apply_at_end = apply_at_end
        self.updates = 0
        self._average: dict[str, Array] = {}

    # --- by hand ---

    def update(self, model: Layer) -> None:
        """Take the weights of `model` into the average, without a wait for the device.

        Raises
        ------
        InputError
            Its parameters have other names, shapes or dtypes than before.
        """
        named = self._named(model)
        if not self.updates:
            self._average = {name: _copy(parameter.data) for name, parameter in named.items()}
        else:
            self._check(named)
            for alike in _by_dtype(named):
                with on_device_of(alike[0][1].data):
                    means = [self._average[name] for name, _ in alike]
                    average(means, self.decay, [parameter.data for _, parameter in alike])
        self.updates += 1

    @contextmanager
    def applied(self, model: Layer) -> Iterator[None]:
        """Within the block `model` has the averaged weights; before the first update, its own."""
        named = self._named(model) if self.updates else {}
        saved = {name: _copy(parameter.data) for name, parameter in named.items()}
        self.copy_to(model)
        try:
            yield
        finally:
            for name, parameter in named.items():
                parameter.assign(saved[name])

    def copy_to(self, model: Layer) -> None:
        """Give `model` the averaged weights, in place; before the first update, nothing changes."""
        if self.updates:
            named = self._named(model)
            self._check(named)
            for name, parameter in named.items():
                parameter.assign(self._average[name])

    # --- in a training ---

    def on_fit_begin(self, trainer: Training) -> None:
        if self.updates:
            self._check(self._named(trainer.model))

    def on_step_end(self, trainer: Training, step: int) -> None:
        self.update(trainer.model)

    @contextmanager
    def around_validation(self, trainer: Training) -> Iterator[None]:
        with self.applied(trainer.model):
            yield

    def on_fit_end(self, trainer: Training) -> None:
        if self.apply_at_end:
            self.copy_to(trainer.model)

    def state_dict(self) -> dict[str, Any]:
        averages = {f"average.{name}": array for name, array in self._average.items()}
        return {"updates": self.updates, "decay": self.decay, **averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if number("decay", state["decay"]) != self.decay:
            msg = f"the average has the decay {state['decay']:g}, where this one has {self.decay:g}"
            raise InputError(msg)
        updates = integer("updates", state["updates"], least=0)
        averages = {
            name.removeprefix("average."): array
            for name, array in state.items()
            if name.startswith("average.")
        }
        if bool(averages) != bool(updates) or any(library_of(a) is None for a in averages.values()):
            msg = "the average has no arrays"
            raise InputError(msg)
        self.updates, self._average = updates, averages

    # --- the model ---

    def _named(self, model: Any) -> dict[str, Parameter]:
        if not isinstance(model, Layer):
            msg = f"an average is that of a model, an nn.Layer, got {described(model)}"
            raise InputError(msg)
        return dict(model.named_parameters())

    def _check(self, named: dict[str, Parameter]) -> None:
        """Refuse another model; bring the average to where this one lives."""
        kinds = [
            {name: (tuple(array.shape), dtype_name(array.dtype)) for name, array in arrays.items()}
            for arrays in (self._average, {name: p.data for name, p in named.items()})
        ]
        if kinds[0] != kinds[1]:
            names = sorted(set(kinds[0].items()) ^ set(kinds[1].items()))
            msg = (
                f"this model is not the one of the average: {names[0][0]!r} differs; take a new "
                "ExponentialMovingAverage for it"
            )
            raise InputError(msg)
        for name, parameter in named.items():
            mean, data = self._average[name], parameter.data
            if type(mean) is not type(data) or mean.device != data.device:
                self._average[name] = backend_of(data).asarray(mean, dtype=data.dtype)


def _by_dtype(named: dict[str, Parameter]) -> list[list[tuple[str, Parameter]]]:
    groups: dict[str, list[tuple[str, Parameter]]] = {}
    for name, parameter in named.items():
        groups.setdefault(dtype_name(parameter.data.dtype), []).append((name, parameter))
    return list(groups.values())


def _copy(array: Array) -> Array:
    with on_device_of(array):
        return array_namespace(array).asarray(array, copy=True)
