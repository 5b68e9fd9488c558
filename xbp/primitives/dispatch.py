"""Where a faster version takes the place of a primitive."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, TypeVar

from xbp import accelerators

F = TypeVar("F", bound=Callable[..., Any])


class Primitive(Generic[F]):
    """A function of arrays whose first one decides who computes it.

    Where an accelerator is registered for the first argument's type it is asked; what it declines
    with ``NotImplemented``, and everything else, is computed by the reference.

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
        fast = accelerators.find(self.name, type(x))
        if fast is not None:
            result = fast(x, *args, **keywords)
            if result is not NotImplemented:
                return result
        return self.reference(x, *args, **keywords)


def primitive(reference: F) -> F:
    """Let accelerators stand in for `reference`, whose signature it keeps."""
    return Primitive(reference)  # type: ignore[return-value]
