"""What a layer's `forward` and the backward that it returns promise, whoever wrote the layer.

A layer may return any function of ∂L/∂y as its backward. `TwoPartBackward` is one that can leave
out ∂L/∂x; `CheckedBackward` is what callers get of either where arrays have a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Protocol, TypeAlias

import xbp.random
from xbp.backend import (
    Array,
    HostArray,
    library_of,
    library_of_type,
    on_device_of,
    whereabouts,
)
from xbp.errors import BackendError, InputError
from xbp.nested import first_of, tree_leaves

Rng: TypeAlias = "xbp.random.Seed | xbp.random.RandomStream"
"""The `rng` of a forward: an int, a numpy Generator, a RandomStream, or None."""


class Backward(Protocol):
    """Takes ∂L/∂y, adds to each `Parameter.grad` of its layer, returns ∂L/∂x: any such function."""

    def __call__(self, dy: Array, /) -> Array: ...


class TwoPartBackward:
    """A backward that can leave out ∂L/∂x, as that of a primitive.

    Parameters
    ----------
    gradients : callable
        Of ∂L/∂y, and of whether ∂L/∂x is wanted. Gives a tuple: ∂L/∂x, or None where it is not
        wanted, and the gradients of the parameters.
    *take : callable or None
        What each of those goes to, as a rule a parameter's `add_grad`; None drops it.
    check : callable, optional
        Refuses a ∂L/∂y before anything is computed, as `Layer.check_gradient`.
    """

    __slots__ = ("_check", "_gradients", "_take")

    def __init__(
        self,
        gradients: Callable[[Array, bool], tuple[Any, ...]],
        *take: Callable[[Array], None] | None,
        check: Callable[[Array], None] | None = None,
    ) -> None:
        self._gradients, self._take, self._check = gradients, take, check

    def __call__(self, dy: Array, /) -> Array:
        return self._add(dy, wants_dx=True)

    def for_parameters(self, dy: Array) -> None:
        """The parameters' gradients alone."""
        self._add(dy, wants_dx=False)

    def _add(self, dy: Array, wants_dx: bool) -> Array:
        if self._check is not None:
            self._check(dy)
        dx, *found = self._gradients(dy, wants_dx)
        for take, gradient in zip(self._take, found, strict=True):
            if take is not None:
                take(gradient)
        return dx


def for_parameters(backward: Backward) -> Callable[[Array], Any]:
    """`backward` for the sake of the parameters' gradients alone.

    The input of a whole network is data, and ∂L/∂data, which nobody reads, can cost as much as all
    else in the first layer. A backward that can leave it out has a method `for_parameters`, as
    `TwoPartBackward` has; it returns nothing. Others run as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.Linear(2, 1, dtype="float64", rng=0)
    >>> y, backward = layer.forward(np.ones((1, 2)))
    >>> nn.for_parameters(backward)(np.ones((1, 1)))
    >>> layer.weight.grad.tolist()
    [[1.0, 1.0]]
    """
    return getattr(backward, "for_parameters", backward)


class CheckedBackward(partial[Any]):
    """A layer's backward that refuses a gradient which does not lie where the output does.

    Each layer's `forward` returns it for an array of a device, whoever wrote it:
    `Layer.__init_subclass__` sees to that. It is the partial call
    ``_run(layer, kind, device, run, dy)``, with the output's type and device.
    """

    __slots__ = ()

    def for_parameters(self, dy: Array) -> None:
        """Leave out ∂L/∂x, if the layer's own backward can."""
        layer, kind, device, run = self.args
        _run(layer, kind, device, for_parameters(run), dy)


def shown(layer: object) -> str:
    """How sentences call a layer: as it shows itself, or its class if that takes several lines."""
    text = repr(layer)
    return type(layer).__name__ if "\n" in text else text


def _run(layer: object, kind: type, device: Any, run: Backward, dy: Array) -> Array:
    """A layer's own backward, ``run(dy)``, on the output's device, where `dy` has to lie."""
    mine = library_of_type(kind)
    for part in tree_leaves(dy):
        theirs = library_of(part)
        if mine and theirs and (mine is not theirs or part.device != device):
            msg = (
                f"{shown(layer)} got a gradient on {whereabouts(part)}, where its output is on "
                f"{mine.name} ({device}); move the gradient with xbp.asarray(…)"
            )
            raise BackendError(msg)
    with on_device_of(first_of(dy)):
        return run(dy)


def placed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A class's own `forward`, run on the device of its input, with a `CheckedBackward`.

    On numpy arrays, which have no device, it is left as it is: there a layer's own backward calls
    `Layer.check_gradient`, which costs its forward nothing.
    """

    def checked(layer: object, result: Any) -> Any:
        if not isinstance(result, tuple) or len(result) != 2 or not callable(result[1]):
            return result  # those who call it refuse it
        y, backward = result
        first = first_of(y)
        device = getattr(first, "device", None)
        return y, CheckedBackward(_run, layer, type(first), device, backward)

    @wraps(forward)
    def placed_forward(self: object, x: Array, *, training: bool = False, rng: Rng = None) -> Any:
        if type(x) is HostArray:
            return forward(self, x, training=training, rng=rng)
        with on_device_of(first_of(x)):
            return checked(self, forward(self, x, training=training, rng=rng))

    @wraps(forward)
    def placed_with_arguments_of_its_own(self: object, *args: Any, **options: Any) -> Any:
        if args and type(args[0]) is HostArray:
            return forward(self, *args, **options)
        with on_device_of(first_of(args[0]) if args else None):
            return checked(self, forward(self, *args, **options))

    usual: Any = getattr(forward, "__kwdefaults__", None) == {"training": False, "rng": None}
    usual = usual and forward.__code__.co_argcount == 2 and not forward.__code__.co_flags & 12
    return placed_forward if usual else placed_with_arguments_of_its_own  # which takes longer


def run_forward(
    layer: Any, x: Array, *, training: bool = False, rng: Rng = None
) -> tuple[Array, Backward]:
    """``layer.forward(x, training=…, rng=…)``, of which it is sure that it has both results.

    Raises
    ------
    InputError
        It returns something else, or does not take these arguments.
    """
    try:
        result = layer.forward(x, training=training, rng=rng)
    except TypeError:
        check_arguments(layer)
        raise
    if not isinstance(result, tuple) or len(result) != 2 or not callable(result[1]):
        raise not_both(layer, "forward", "output, backward", result)
    return result


def not_both(owner: object, method: str, wanted: str, result: Any) -> InputError:
    """What to say of a method that returns something else than a result and a function."""
    kind = type(result).__name__
    if isinstance(result, tuple):
        kind = f"{len(result)} things: ({', '.join(type(item).__name__ for item in result)})"
    return InputError(
        f"{type(owner).__name__}.{method} must return ({wanted}), of which the second is a "
        f"function; it returned {kind}"
    )


def check_arguments(layer: Any) -> None:
    """Refuse a forward that does not take `training` and `rng` by name."""
    import inspect  # here, as it takes milliseconds of `import xbp`

    try:
        inspect.signature(layer.forward).bind(None, training=False, rng=None)
    except (TypeError, ValueError) as error:
        msg = (
            f"{type(layer).__name__}.forward must be defined as forward(self, x, *, "
            f"training=False, rng=None), as it is called with all of them ({error})"
        )
        raise InputError(msg) from None
