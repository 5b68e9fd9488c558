"""Dispatch of primitives to accelerators.

Primitives that layers consist of are *operations*: ``y, gradients = operation(x, *parameters,
**options)``, where ``gradients(dy, wants_dx=True)`` returns a tuple of ∂L/∂x and ∂L/∂p for each
parameter. ∂L/∂x is None if it is not wanted, ∂L/∂p if the parameter is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import update_wrapper
from itertools import repeat
from typing import Any, Generic, TypeAlias, TypeVar

from xbp import registry
from xbp.backend import HostArray, check_beside, library_of
from xbp.errors import InputError

NO_ARRAYS = frozenset({bool, int, float, str, tuple, list, type(None)})
"""The types of other arguments."""

Gradients: TypeAlias = "Callable[..., tuple[Any, ...]]"
"""Of an operation: ``gradients(dy, wants_dx=True)`` gives (∂L/∂x, *parameters' gradients)."""

F = TypeVar("F", bound=Callable[..., Any])


class Primitive(Generic[F]):
    """A function of arrays, computed by an accelerator for the first one's type or the reference.

    The reference computes whatever has no accelerator, or is declined by it with
    ``NotImplemented``.

    Raises
    ------
    BackendError
        In a call with arrays of several libraries or devices, which accelerators do not check.

    Attributes
    ----------
    reference : function
        The definition, in the Array API.
    """

    def __init__(self, reference: F) -> None:
        self.reference = reference
        self.name = reference.__name__
        update_wrapper(self, reference)

    def __call__(self, x: Any, *args: Any, **keywords: Any) -> Any:
        kind = type(x)
        for other in args:
            if not kind is type(other) is HostArray and type(other) not in NO_ARRAYS:
                self.check(x, args)
                break
        fast = registry.find(self.name, kind)
        if fast is not None:
            result = fast(x, *args, **keywords)
            if result is not NotImplemented:
                return result
        return self.reference(x, *args, **keywords)

    def check(self, x: Any, others: Iterable[Any]) -> None:
        """Refuse arrays of another library or device than `x`, as accelerators do not check."""
        kind = type(x)
        for other in others:
            if kind is type(other) is HostArray:
                continue
            # A numpy scalar counts as a number.
            if library_of(other) is not None and hasattr(other, "__setitem__"):
                check_beside(self.name, "an array", other, "its first one is", x)


class Update(Primitive[F]):
    """A primitive that changes its first argument in place, and accepts lists of arrays, too.

    For lists it changes each array of the first list by its counterparts in the others. An
    accelerator may change all of them, say all parameters of a model, at once.

    Attributes
    ----------
    composed : bool
        Whether the reference consists of updates, and so accepts lists itself.
    """

    composed = False

    def __call__(self, x: Any, *args: Any) -> None:
        if not isinstance(x, list):
            super().__call__(x, *args)
            return
        fast = registry.find(self.name, type(x[0]))
        if fast is not None and fast(x, *args) is not NotImplemented:
            return
        if self.composed:
            self.reference(x, *args)
        else:
            change = self.reference if fast is None else super().__call__
            partners = (arg if isinstance(arg, list) else repeat(arg) for arg in args)
            for own in zip(x, *partners, strict=False):
                change(*own)


class Each(Primitive[F]):
    """A primitive that makes a new array, and of lists of arrays a list of new ones.

    An accelerator may make all of them at once, as for an `Update`.
    """

    def __call__(self, x: Any, *args: Any) -> Any:
        if not isinstance(x, list):
            return super().__call__(x, *args)
        fast = registry.find(self.name, type(x[0]))
        if fast is not None and (found := fast(x, *args)) is not NotImplemented:
            return found
        partners = (arg if isinstance(arg, list) else repeat(arg) for arg in args)
        return [self.reference(*own) for own in zip(x, *partners, strict=False)]


def composed_update(reference: F) -> F:
    """`reference`, which consists of updates, as an `Update`."""
    made = Update(reference)
    made.composed = True
    return made  # type: ignore[return-value]


def primitive(reference: F) -> F:
    """`reference` as a primitive of the same signature."""
    return Primitive(reference)  # type: ignore[return-value]


def of_input(dx: Callable[[Any], Any]) -> Gradients:
    """The gradients of an operation without parameters, from ∂L/∂x as a function of ∂L/∂y."""

    def gradients(dy: Any, wants_dx: bool = True) -> tuple[Any]:
        return (dx(dy) if wants_dx else None,)

    return gradients


def check_gradient(dy: Any, shape: tuple[int, ...]) -> None:
    """Refuse a ∂L/∂y of another shape than y, which formulas might broadcast and kernels trust.

    Raises
    ------
    InputError
    """
    if dy.shape != shape:
        msg = f"the gradient of an output of shape {shape} has shape {dy.shape}; give one like it"
        raise InputError(msg)


def update(reference: F) -> F:
    """`reference`, a function that changes its first argument in place, as an `Update`."""
    return Update(reference)  # type: ignore[return-value]


def each(reference: F) -> F:
    """`reference`, a function that makes a new array, as an `Each`."""
    return Each(reference)  # type: ignore[return-value]
