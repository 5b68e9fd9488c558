"""Callbacks, and the names in the records that they will see."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xbp.arguments import described, takes
from xbp.errors import InputError
from xbp.optim import Optimizer
from xbp.paths import same_place
from xbp.training.callbacks.base import HOOKS, Callback
from xbp.training.metrics.counting import Metric
from xbp.training.results import check_distinct, rate_names


def callbacks_of(given: Any) -> list[Callback]:
    """The callbacks of a `fit`; None stands for none.

    Raises
    ------
    InputError
        It is no iterable of callbacks; or two of them write to one place.
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
        for name in ("path", "folder", "log_dir"):  # the attributes of xbp's own callbacks
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
    """Refuse methods of a user's callback that do not accept their arguments."""
    for name, wanted in HOOKS.items():
        method = getattr(callback, name)
        if not str(getattr(method, "__module__", "")).startswith("xbp."):
            takes(f"{type(callback).__name__}.{name}", method, *wanted)


def expected_names(
    optimizer: Optimizer, quantities: Sequence[str], *, validated: bool
) -> list[str]:
    """The names in the record of a whole epoch, apart from those that a user's callbacks add."""
    rates = [name for name in rate_names(optimizer) if name]
    check_distinct(["epoch", *rates, *quantities])
    return ["epoch", *rates, *quantities, *(f"val_{name}" for name in quantities if validated)]


def adds_names(metrics: Iterable[Metric], callbacks: Sequence[Callback]) -> bool:
    """Whether a user's own callback or metric may add names to a record."""
    functions: list[Callable[..., Any]] = [callback.on_epoch_end for callback in callbacks]
    functions += [metric.numbers for metric in metrics if type(metric).names is Metric.names]
    return not all((f.__module__ or "").startswith("xbp.") for f in functions)
