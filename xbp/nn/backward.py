"""The contract of a layer's `forward` and of the backward that it returns.

A layer may return any function of ∂L/∂y as its backward. `TwoPartBackward` is one that can leave
out ∂L/∂x; `CheckedBackward` wraps either for callers, where arrays have a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Protocol, TypeAlias, TypeVar

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
from xbp.random import RandomStream, Seed, as_stream

C = TypeVar("C", bound=Callable[..., Any])

Rng: TypeAlias = "Seed | RandomStream"
"""The `rng` of a forward: an int, a numpy Generator, a RandomStream, or None."""


class Backward(Protocol):
    """Any function that takes ∂L/∂y, adds to each `Parameter.grad` of its layer, returns ∂L/∂x."""

    def __call__(self, dy: Array, /) -> Array: ...


class TwoPartBackward:
    """A backward that can leave out ∂L/∂x, such as a primitive's.

    Parameters
    ----------
    gradients : callable
        ``gradients(dy, wants_dx)`` returns a tuple: ∂L/∂x, or None where it is not wanted, and the
        gradients of the parameters.
    *take : callable or None
        The receiver of each parameter's gradient, usually its `add_grad`; None drops it.
    check : callable, optional
        Refuses an unfit ∂L/∂y before anything is computed, as `Layer.check_gradient` does.
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
        """Compute the parameters' gradients alone."""
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
    """The variant of `backward` that computes the parameters' gradients alone.

    The input of a whole network is data, and the unused ∂L/∂data can cost as much as the rest of
    the first layer's backward. A backward that can leave it out has a method `for_parameters`,
    which returns nothing, as `TwoPartBackward` has. Any other backward is returned unchanged.

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
    """A layer's backward that refuses a gradient on another device than the output's.

    Every layer's `forward` returns it for arrays that have a device (`Layer.__init_subclass__`).
    It is the partial call ``_checked(layer, kind, device, own, dy)``, with the output's type and
    device.
    """

    __slots__ = ()

    def for_parameters(self, dy: Array) -> None:
        """Run without ∂L/∂x, if the layer's own backward can leave it out."""
        layer, kind, device, own = self.args
        _checked(layer, kind, device, for_parameters(own), dy)


def shown(layer: object) -> str:
    """A layer's name in error sentences: its repr, or its class if the repr has several lines."""
    text = repr(layer)
    return type(layer).__name__ if "\n" in text else text


def _checked(layer: object, kind: type, device: Any, own: Backward, dy: Array) -> Array:
    """The layer's own backward, ``own(dy)``, on the output's device; `dy` must lie there too."""
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
        return own(dy)


def without_backward(call: C) -> C:
    """Mark a `__call__` that gives the output of its class's forward in a shorter way.

    A subclass with another forward goes by that: see `goes_by_forward`.
    """
    call.without_backward = True  # type: ignore[attr-defined]
    return call


def goes_by_forward(kind: type) -> bool:
    """Whether a class has another forward than the one whose output its `__call__` gives."""
    forward, call = (
        next(place for place, cls in enumerate(kind.__mro__) if name in vars(cls))
        for name in ("forward", "__call__")
    )
    own: Any = vars(kind.__mro__[call])["__call__"]
    return forward < call and getattr(own, "without_backward", False)


def placed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A class's own `forward`, run on the device of its input, with a `CheckedBackward`.

    In training a seed becomes one `RandomStream`, which the layers inside share: given the seed
    itself, each would begin with the same bits, and two dropouts would drop the same entries.

    For numpy arrays, which have no device, the backward is not wrapped: a layer's own backward
    calls `Layer.check_gradient`, at no cost to the forward.
    """

    def checked(layer: object, result: Any) -> Any:
        if not isinstance(result, tuple) or len(result) != 2 or not callable(result[1]):
            return result  # refused by the caller
        y, backward = result
        first = first_of(y)
        device = getattr(first, "device", None)
        return y, CheckedBackward(_checked, layer, type(first), device, backward)

    @wraps(forward)
    def placed_forward(self: object, x: Array, *, training: bool = False, rng: Rng = None) -> Any:
        if training and rng is not None and type(rng) is not RandomStream:
            rng = as_stream(rng)
        if type(x) is HostArray:
            return forward(self, x, training=training, rng=rng)
        with on_device_of(first_of(x)):
            return checked(self, forward(self, x, training=training, rng=rng))

    @wraps(forward)
    def placed_with_arguments_of_its_own(self: object, *args: Any, **options: Any) -> Any:
        if options.get("training") and "rng" in options:
            options["rng"] = as_stream(options["rng"])
        if args and type(args[0]) is HostArray:
            return forward(self, *args, **options)
        with on_device_of(first_of(args[0]) if args else None):
            return checked(self, forward(self, *args, **options))

    usual: Any = getattr(forward, "__kwdefaults__", None) == {"training": False, "rng": None}
    usual = usual and forward.__code__.co_argcount == 2 and not forward.__code__.co_flags & 12
    return placed_forward if usual else placed_with_arguments_of_its_own  # the slower one


def run_forward(
    layer: Any, x: Array, *, training: bool = False, rng: Rng = None
) -> tuple[Array, Backward]:
    """``layer.forward(x, training=…, rng=…)``, checked to return an output and a backward.

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
    """The error for a method that does not return a result and a function."""
    kind = type(result).__name__
    if isinstance(result, tuple):
        kind = f"{len(result)} things: ({', '.join(type(item).__name__ for item in result)})"
    return InputError(
        f"{type(owner).__name__}.{method} must return ({wanted}), the second being a function; "
        f"it returned {kind}"
    )


def check_arguments(layer: Any) -> None:
    """Refuse a forward that does not take `training` and `rng` by name."""
    import inspect  # lazy: it would add milliseconds to `import xbp`

    try:
        inspect.signature(layer.forward).bind(None, training=False, rng=None)
    except (TypeError, ValueError) as error:
        msg = (
            f"{type(layer).__name__}.forward must be defined as forward(self, x, *, "
            f"training=False, rng=None), as it is called with all of them ({error})"
        )
        raise InputError(msg) from None
