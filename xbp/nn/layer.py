"""The core: a layer's forward returns its own backward.

There is no tape and no graph. What a backward needs it holds in its closure, next to the formula
it implements; nothing of one call is kept on the layer. So a layer may be used twice, and dropping
the closure frees the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import xbp.random
from xbp.backend import (
    Array,
    Backend,
    Namespace,
    array_namespace,
    as_numbers,
    backend_of,
    dtype_name,
    is_floating,
    to_numpy,
    whereabouts,
)
from xbp.errors import BackendError, InputError
from xbp.nn.parameter import Parameter

Backward: TypeAlias = Callable[[Array], Array]
"""Takes ∂L/∂y, adds to each `Parameter.grad` of its layer, returns ∂L/∂x."""


def for_parameters(backward: Backward) -> Callable[[Array], Any]:
    """`backward` for the sake of the parameters' gradients alone.

    The input of a whole network is data, and ∂L/∂data, which nobody reads, can cost as much as all
    else in the first layer. A layer that can leave it out gives its backward an attribute
    `for_parameters`: a function of ∂L/∂y that returns nothing. Others run as they are.

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


def with_part(backward: Backward, for_parameters: Callable[[Array], None]) -> Backward:
    """`backward`, which from now on knows what to do where its result is not wanted."""
    backward.for_parameters = for_parameters  # type: ignore[attr-defined]
    return backward


def adding(
    gradients: Callable[[Array, bool], tuple[Any, ...]], *take: Callable[[Array], None] | None
) -> Backward:
    """A layer's backward from that of a primitive, which has the parameters' gradients after ∂L/∂x.

    Each of those goes to its function in `take`, as a rule a parameter's `add_grad`; None drops it.
    """

    def add(dy: Array, wants_dx: bool) -> Array:
        dx, *found = gradients(dy, wants_dx)
        for function, gradient in zip(take, found, strict=True):
            if function is not None:
                function(gradient)
        return dx

    def backward(dy: Array) -> Array:
        return add(dy, wants_dx=True)

    def for_parameters(dy: Array) -> None:
        add(dy, wants_dx=False)

    return with_part(backward, for_parameters)


Rng: TypeAlias = "xbp.random.Seed | xbp.random.Stream"
"""What a forward's `rng` takes: an int, a numpy Generator, a Stream, or None for fresh entropy."""

L = TypeVar("L", bound="Layer")


class Layer:
    """Base of all layers. A new one defines `forward`, and `__init__` if it has parameters.

    Parameters and sublayers are found by being attributes; they are named after them.

    Examples
    --------
    A layer that scales each feature, y = s ∘ x, so ∂L/∂s = Σ_n dy ∘ x and ∂L/∂x = s ∘ dy:

    >>> import xbp
    >>> from xbp import nn
    >>> class Scale(nn.Layer):
    ...     def __init__(self, features):
    ...         self.scale = nn.Parameter(xbp.asarray([1.0] * features))
    ...
    ...     def forward(self, x, *, training=False, rng=None):
    ...         xp = self.namespace(x)
    ...         s = self.scale.data
    ...
    ...         def backward(dy):
    ...             self.scale.add_grad(xp.sum(dy * x, axis=0))
    ...             return s * dy
    ...
    ...         return s * x, backward
    >>> Scale(2)(xbp.asarray([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        """The output for `x`, and the function that turns ∂L/∂output into ∂L/∂x.

        Parameters
        ----------
        x : array
        training : bool, default False
            Whether layers that differ in training (Dropout) shall behave so.
        rng : int, numpy.random.Generator, xbp.random.Stream or None
            The source of random masks.

        Returns
        -------
        y : array
        backward : callable
            ``dx = backward(dy)``, which also adds to each `Parameter.grad`.
        """
        msg = f"{type(self).__name__} has no forward; define forward(self, x, *, training, rng)"
        raise NotImplementedError(msg)

    def __call__(self, x: Array) -> Array:
        """Inference: the output alone."""
        return self.forward(x)[0]

    # --- what forward may ask ---

    def namespace(self, x: Array) -> Namespace:
        """The Array API namespace of `x`, which must match this layer's own parameters.

        Raises
        ------
        BackendError
            `x` belongs to another library, or lies on another device, than a parameter.
        InputError
            `x` is no array, is not floating-point, or has another dtype than a parameter.
        """
        xp = array_namespace(x)
        if not is_floating(x):
            msg = (
                f"{self} needs floating-point input, got {dtype_name(x.dtype)}; "
                "convert it with xbp.asarray(x, dtype=…)"
            )
            raise InputError(msg)
        for value in vars(self).values():
            if isinstance(value, Parameter):
                data = value.data
                if array_namespace(data) is not xp or data.device != x.device:
                    msg = (
                        f"{self} got input on {whereabouts(x)}, but its parameters are on "
                        f"{whereabouts(data)}; move the model with .to(…) or the input with "
                        "xbp.asarray(…)"
                    )
                    raise BackendError(msg)
                if data.dtype != x.dtype:
                    msg = (
                        f"{self} got {dtype_name(x.dtype)} input, but its parameters are "
                        f"{dtype_name(data.dtype)}; convert the input with "
                        f"xbp.asarray(x, dtype={dtype_name(data.dtype)!r}) or the model with "
                        f".astype({dtype_name(x.dtype)!r})"
                    )
                    raise InputError(msg)
        return xp

    # --- what it is made of ---

    def children(self) -> Iterator[tuple[str, Layer]]:
        """The direct sublayers and their names; members of a list are named ``list.0``, …"""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{index}", item

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, Parameter) pairs of all that is trainable, each once, under its first name."""
        seen: set[int] = set()
        for name, parameter in self._all_names(""):
            if parameter.trainable and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> list[Parameter]:
        """Each trainable Parameter once, in the order of `named_parameters`."""
        return [parameter for _, parameter in self.named_parameters()]

    def _all_names(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        """All Parameters, constants too; a shared one comes under each of its names."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if isinstance(item, Parameter):
                        yield f"{prefix}{name}.{index}", item
        for name, child in self.children():
            yield from child._all_names(f"{prefix}{name}.")

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Names to numpy arrays: copies of all parameters, a shared one under each of its names."""
        return {name: to_numpy(p.data).copy() for name, p in self._all_names("")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy arrays of any library into the parameters, in place; all of them, or none.

        Raises
        ------
        InputError
            A name is missing or unknown, a shape differs, or something holds no numbers. Nothing
            has been changed then.
        """
        own = dict(self._all_names(""))
        if not isinstance(state, Mapping):
            kind = type(state).__name__
            msg = f"a state is a dict of names to arrays, as from state_dict(); got a {kind}"
            raise InputError(msg)
        state = {name: as_numbers(value) for name, value in state.items()}
        problems = [f"{name!r} is missing" for name in own if name not in state]
        problems += [f"{name!r} is unknown" for name in state if name not in own]
        common = {name: (state[name], own[name]) for name in own if name in state}
        for name, (new, old) in common.items():
            if new.shape != old.shape:
                problems.append(f"{name!r} has shape {new.shape} in place of {old.shape}")
            elif new.dtype.kind == "c" and "complex" not in str(old.data.dtype):
                problems.append(f"{name!r} is complex in place of {dtype_name(old.data.dtype)}")
        if problems:
            msg = f"the state does not fit this {type(self).__name__}: {', '.join(problems)}"
            raise InputError(msg)
        for name, parameter in own.items():
            parameter.assign(state[name])

    def to(self: L, backend: str | Backend, *, device: Any = None) -> L:
        """Move all parameters to a backend, in place; returns the layer itself.

        Make an optimizer after this: its state stays where the parameters were when it was made.
        """
        for _, parameter in self._all_names(""):
            parameter.to(backend, device=device)
        return self

    def astype(self: L, dtype: Any) -> L:
        """Convert all parameters to a dtype, e.g. ``"float64"``, in place; returns the layer."""
        for _, parameter in self._all_names(""):
            parameter.astype(dtype)
        return self

    def backend(self) -> Backend | None:
        """Where the first parameter lives; None for a layer that has none."""
        first = next(self._all_names(""), None)
        return None if first is None else backend_of(first[1].data)

    # --- how it shows itself ---

    def options(self) -> str:
        """The arguments that `repr` shows, e.g. ``"3, 8, kernel_size=(5, 5)"``."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options()})"
