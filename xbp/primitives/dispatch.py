"""Where a faster version takes the place of a primitive.

Primitives that layers are made of are *operations*: ``y, gradients = operation(x, *parameters,
**options)``, where ``gradients(dy, wants_dx=True)`` gives a tuple of ∂L/∂x and ∂L/∂p for each
parameter. ∂L/∂x is None where it is not wanted, ∂L/∂p where a parameter is None.
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
"""What else primitives take."""

Gradients: TypeAlias = "Callable[..., tuple[Any, ...]]"
"""Of an operation: ``gradients(dy, wants_dx=True)`` gives (∂L/∂x, *parameters' gradients)."""

F = TypeVar("F", bound=Callable[..., Any])


class Primitive(Generic[F]):
    """A function of arrays whose first one decides who computes it.

    Where an accelerator is registered for the first argument's type it is asked; what it declines
    with ``NotImplemented``, and everything else, is computed by the reference.

    Raises
    ------
    BackendError
        In a call with arrays of several libraries or devices: an accelerator trusts what it gets.

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
        """Refuse arrays that are not where `x` is: an accelerator trusts them."""
        for other in others:
            # A numpy scalar is a number, wherever it is used.
            if library_of(other) is not None and hasattr(other, "__setitem__"):
                check_beside(self.name, "an array", other, "its first one is", x)


class Update(Primitive[F]):
    """A primitive that changes its first argument in place, and takes lists, too.

    Of lists in place of arrays each array of the first one is changed, with its partners in the
    others: all parameters of a model, which an accelerator may change at once.
    """

    def __call__(self, x: Any, *args: Any) -> None:
        if not isinstance(x, list):
            super().__call__(x, *args)
            return
        fast = registry.find(self.name, type(x[0]))
        if fast is None or fast(x, *args) is NotImplemented:
            change = self.reference if fast is None else super().__call__
            partners = (arg if isinstance(arg, list) else repeat(arg) for arg in args)
            for own in zip(x, *partners, strict=False):
                change(*own)


def primitive(reference: F) -> F:
    """Let accelerators stand in for `reference`, whose signature it keeps."""
    return Primitive(reference)  # type: ignore[return-value]


def of_input(dx: Callable[[Any], Any]) -> Gradients:
    """The gradients of an operation without parameters, from ∂L/∂x as a function of ∂L/∂y."""

    def gradients(dy: Any, wants_dx: bool = True) -> tuple[Any]:
        return (dx(dy) if wants_dx else None,)

    return gradients


def check_gradient(dy: Any, shape: tuple[int, ...]) -> None:
    """Refuse a ∂L/∂y that has not the shape of y: formulas might broadcast it, kernels trust it.

    Raises
    ------
    InputError
    """
    if dy.shape != shape:
        msg = f"the gradient of an output of shape {shape} has shape {dy.shape}; give one like it"
        raise InputError(msg)


def update(reference: F) -> F:
    """The same for one that changes its first argument, and returns nothing; it takes lists."""
    return Update(reference)  # type: ignore[return-value]
